//! Which method sets the scale of a place: the one whose layer has the best signal-to-noise ratio on tiles that did not calibrate.

use nadir_formats::scales::{gelu, gelu_table};
use rayon::prelude::*;

use super::methods::Method;

/// Parts of the calibration tiles: each is judged with scales that the others set.
const PARTS: usize = 4;
/// With fewer calibration tiles nothing is chosen: too few would judge.
pub const FEWEST: usize = 32;
/// Decibels by which a method must be better than [`Method::DEFAULT`] to be taken.
const MARGIN: f64 = 1.0;

/// How the scales are set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// Place by place, as measured.
    Auto,
    /// Everywhere the same.
    Fixed(Method),
}

/// What was chosen at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The place, `block 1.0 norm`.
    pub place: String,
    /// The method.
    pub method: Method,
    /// Signal-to-noise ratio of the place's layer with each of [`Method::ALL`], on tiles that did not set its scale, in decibels; empty where
    /// nothing was measured.
    pub decibels: Vec<f64>,
}

/// Chooses for a place seen on `tiles` tiles, each of which gave as many samples. `measure` gives the energies of signal and noise that a
/// method's scale, set on one side of a split, has on the other.
pub fn choose(
    choice: Choice,
    place: String,
    tiles: usize,
    measure: impl Fn(Method, &Split) -> (f64, f64) + Sync,
) -> Chosen {
    let plain = |method| Chosen { place: place.clone(), method, decibels: Vec::new() };
    match choice {
        Choice::Fixed(method) => return plain(method),
        Choice::Auto if tiles < FEWEST => return plain(Method::DEFAULT),
        Choice::Auto => {}
    }
    let decibels = Method::ALL.map(|method| {
        let each = (0..PARTS).into_par_iter().map(|part| measure(method, &Split { tiles, part })).collect::<Vec<_>>();
        let (signal, noise) = each.into_iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        10.0 * (signal.max(f64::MIN_POSITIVE) / noise.max(f64::MIN_POSITIVE)).log10()
    });
    let best = (1..Method::ALL.len()).fold(0, |best, i| if decibels[i] > decibels[best] { i } else { best });
    let best = if decibels[best] >= decibels[0] + MARGIN { best } else { 0 };
    Chosen { method: Method::ALL[best], decibels: decibels.into(), place }
}

/// Which samples calibrate and which judge.
pub struct Split {
    tiles: usize,
    part: usize,
}

impl Split {
    /// The samples of the tiles that calibrate.
    pub fn calibrating(&self, samples: &[f32]) -> Vec<f32> {
        self.side(samples, false)
    }

    /// The samples of the tiles that judge.
    pub fn judging(&self, samples: &[f32]) -> Vec<f32> {
        self.side(samples, true)
    }

    /// The number of tiles that judge.
    pub fn judges(&self) -> usize {
        (0..self.tiles).filter(|tile| tile % PARTS == self.part).count()
    }

    fn side(&self, samples: &[f32], judging: bool) -> Vec<f32> {
        let of_tile = (samples.len() / self.tiles).max(1);
        let tiles = samples.chunks(of_tile).enumerate();
        tiles.filter(|(i, _)| (i % PARTS == self.part) == judging).flat_map(|(_, v)| v).copied().collect()
    }
}

/// Energies of signal and noise of a layer `weight` `[outputs, columns]` whose inputs are rounded to int8 of `scale`: of the means of its
/// outputs over a tile, `rows` `[positions, columns]` holding those of `tiles` tiles one after the other. The signal is what differs
/// between tiles.
///
/// Means, because single positions mislead: rounding errors vanish in the mean over the map, and embeddings are such means; the few large
/// values that a clip cuts off add up in a few tiles and turn the embeddings of those.
pub fn layer_ratio(weight: &[f64], columns: usize, rows: &[f32], tiles: usize, scale: f64) -> (f64, f64) {
    let scale = scale as f32;
    let rounded = |v: f32| (v / scale).round().clamp(-128.0, 127.0) * scale;
    let (signals, noises) = tile_means(rows, columns, tiles, |v| (f64::from(v), f64::from(v - rounded(v))));
    let energy = |inputs: &Vec<f64>| -> f64 {
        weight.chunks_exact(columns).map(|w| w.iter().zip(inputs).map(|(w, v)| w * v).sum::<f64>().powi(2)).sum()
    };
    (sum(signals.par_iter().map(energy).collect()), sum(noises.par_iter().map(energy).collect()))
}

/// The same of GELU by a table whose index has this scale and zero point, over `samples` `[positions, channels]` of what enters.
pub fn gelu_ratio(samples: &[f32], channels: usize, tiles: usize, (scale, zero_point): (f64, i32)) -> (f64, f64) {
    let (table, unit) = gelu_table(scale, zero_point);
    let (signals, noises) = tile_means(samples, channels, tiles, |sample| {
        let exact = gelu(f64::from(sample));
        let index = ((f64::from(sample) / scale).round() as i32 + zero_point).clamp(-128, 127);
        (exact, exact - f64::from(table[(index + 128) as usize]) * unit)
    });
    let energy = |values: &Vec<f64>| values.iter().map(|v| v * v).sum::<f64>();
    (signals.iter().map(energy).sum(), noises.iter().map(energy).sum())
}

/// Means over the positions of each of `tiles` tiles of what `of` makes of every value (signal and noise), a vector of `columns` a tile;
/// those of the signal less their mean over tiles.
fn tile_means(
    rows: &[f32],
    columns: usize,
    tiles: usize,
    of: impl Fn(f32) -> (f64, f64) + Sync,
) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let of_tile = (rows.len() / columns / tiles.max(1)).max(1);
    let mean = |rows: &[f32]| {
        let (mut signal, mut noise) = (vec![0.0; columns], vec![0.0; columns]);
        for row in rows.chunks_exact(columns) {
            for (column, &value) in row.iter().enumerate() {
                let (s, n) = of(value);
                signal[column] += s / of_tile as f64;
                noise[column] += n / of_tile as f64;
            }
        }
        (signal, noise)
    };
    let (mut signals, noises): (Vec<_>, Vec<_>) = rows.par_chunks(of_tile * columns).map(mean).unzip();
    for column in 0..columns {
        let mean = signals.iter().map(|signal| signal[column]).sum::<f64>() / signals.len().max(1) as f64;
        signals.iter_mut().for_each(|signal| signal[column] -= mean);
    }
    (signals, noises)
}

/// In order, whichever thread was first.
fn sum(values: Vec<f64>) -> f64 {
    values.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 tiles of 10 positions of one channel, within -1..=1; three tiles also hold a value of 8 now and then.
    fn samples() -> Vec<f32> {
        let value = |tile: usize, i: usize| ((tile * 10 + i) as f32 * 0.73).sin();
        let rare = |tile: usize, i: usize| matches!((tile, i % 2), (5 | 18 | 31, 0));
        (0..400).map(|at| (at / 10, at % 10)).map(|(t, i)| if rare(t, i) { 8.0 } else { value(t, i) }).collect()
    }

    fn chosen(choice: Choice, tiles: usize, samples: &[f32]) -> Chosen {
        choose(choice, "here".into(), tiles, |method, split| {
            let scale = method.symmetric(&split.calibrating(samples));
            layer_ratio(&[2.0], 1, &split.judging(samples), split.judges(), scale)
        })
    }

    /// Entropy and 95 % would cut off what three tiles are full of; the measured ratio sees it.
    #[test]
    fn rare_tiles_count() {
        let found = chosen(Choice::Auto, 40, &samples());
        assert_eq!((found.method, found.place.as_str()), (Method::MinMax, "here"));
        assert!(chosen(Choice::Auto, FEWEST - 1, &samples()[..10 * (FEWEST - 1)]).decibels.is_empty());
        let fixed = chosen(Choice::Fixed(Method::Entropy), 40, &samples());
        assert_eq!((fixed.method, fixed.decibels.len()), (Method::Entropy, 0));
    }

    #[test]
    fn parts_are_disjoint_and_make_the_whole() {
        let samples: Vec<f32> = (0..70).map(|v| v as f32).collect();
        let mut judged = Vec::new();
        for part in 0..PARTS {
            let split = Split { tiles: 35, part };
            let [calibrating, judging] = [split.calibrating(&samples), split.judging(&samples)];
            assert_eq!((calibrating.len() + judging.len(), judging.len()), (70, 2 * split.judges()));
            assert!(judging.iter().all(|v| !calibrating.contains(v)));
            judged.extend(judging);
        }
        judged.sort_by(f32::total_cmp);
        assert_eq!(judged, samples);
    }

    /// Two tiles of two positions and two channels, a weight of one output: means and energies by hand.
    #[test]
    fn ratios_are_those_of_the_means() {
        let rows = [1.2, 0.0, 0.9, 0.0, 3.0, -1.0, 3.0, -1.4];
        let (signal, noise) = layer_ratio(&[1.0, 2.0], 2, &rows, 2, 1.0);
        // Means (1.05, 0) and (3, -1.2): outputs 1.05 and 0.6, 0.225 from their mean.
        assert!((signal - 2.0 * 0.225f64.powi(2)).abs() < 1e-6, "{signal}");
        // Errors 0.2, -0.1 of the first channel, mean 0.05; 0, -0.4 of the second, mean -0.2.
        assert!((noise - (0.05f64.powi(2) + 0.4f64.powi(2))).abs() < 1e-6, "{noise}");
    }

    #[test]
    fn finer_tables_have_less_noise() {
        let samples: Vec<f32> = (0..4000).map(|i| 3.0 * (i as f32 * 0.37).sin()).collect();
        let noise = |range: f64| gelu_ratio(&samples, 2, 20, (range / 255.0, -20)).1;
        assert!(noise(8.0) < noise(64.0) && noise(8.0) > 0.0);
    }
}
