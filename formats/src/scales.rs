//! The scales by which a float encoder becomes integers (`docs/integer-arithmetic.md`). The quantizer writes them; the trainer
//! rounds by the same ones while it trains a model for the integer engine.
//!
//! A scale is what one step of an integer is worth. Samples are values seen on calibration tiles.

use nadir::model::int8_layout::TABLE_MAX;
use rayon::prelude::*;

/// Room above the largest value seen, for i16 values.
pub const HEADROOM: f64 = 1.5;
/// Largest bias in units of its accumulator. A channel with hardly any weights gets a coarser scale, so that its bias is not lost;
/// and since the products of a layer sum to less than 1.3e9 (32 bands of i16, 9 taps), no accumulator overflows.
pub const BIAS_MAX: f64 = (1u32 << 29) as f64;
/// Largest i16.
pub const I16_MAX: f64 = 32767.0;
/// Largest multiplier to a GELU index: where it is reached, a 32nd of the unit of the index is lost at most.
const INDEX_MULTIPLIER: f64 = 2048.0;
/// The most tiles that calibrate; the samples of more would fill the memory without moving a scale.
pub const MAX_CALIBRATION_TILES: usize = 512;

/// Samples kept of all tiles at one place, about, and the fewest of one tile. Too few miss the rare large values that decide a clip.
const SAMPLES: usize = 1 << 20;
const SAMPLES_OF_A_TILE: usize = 4096;
/// Positions kept of all tiles at the input of a matrix product, about: several times the columns of the widest layer, or its
/// covariance would say more than the tiles do.
const ROWS: usize = 8192;
/// Fewest positions of one tile.
const ROWS_OF_A_TILE: usize = 16;

/// How much is kept of each tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Samples of one tile at one place.
    pub samples: usize,
    /// Positions of one tile at the input of a matrix product.
    pub rows: usize,
}

impl Sampling {
    /// For this many calibration tiles.
    pub fn of(tiles: usize) -> Self {
        Self {
            samples: (SAMPLES / tiles.max(1)).max(SAMPLES_OF_A_TILE),
            rows: (ROWS / tiles.max(1)).max(ROWS_OF_A_TILE),
        }
    }

    /// The positions kept of a map of `positions` with `channels`; of one that is the input of a matrix product at least
    /// [`rows`](Self::rows).
    pub fn positions(&self, positions: usize, channels: usize, is_input: bool) -> impl Iterator<Item = usize> + use<> {
        let kept = (self.samples / channels).max(if is_input { self.rows } else { 1 });
        let every = positions.div_ceil(kept).max(1);
        // Every n-th position, but not always the same columns of a map whose width n divides.
        (0..positions).filter(move |position| (position + position / every).is_multiple_of(every))
    }
}

/// The calibration tiles in use of `tiles`: all, or [`MAX_CALIBRATION_TILES`] evenly spaced.
pub fn calibration_tiles(tiles: usize) -> Vec<usize> {
    let used = tiles.min(MAX_CALIBRATION_TILES);
    (0..used).map(|i| i * tiles / used).collect()
}

/// Scale of i16 values that may grow by [`HEADROOM`] above the `largest` seen.
pub fn value_scale(largest: f64) -> f64 {
    (largest * HEADROOM).max(1e-6) / I16_MAX
}

/// The scales on both sides of a layer, and the largest output seen of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Ends {
    /// Scale of the input.
    pub input: f64,
    /// Scale of the output.
    pub output: f64,
    /// Larger multipliers are more exact in themselves and coarser in what they multiply.
    pub multiplier: f64,
    /// Largest output of each channel, in real units.
    pub largest: Vec<f64>,
}

impl Ends {
    /// Of a layer that gives i16 values.
    pub fn of_values(input: f64, output: f64, largest: &[f64]) -> Self {
        Self { input, output, multiplier: I16_MAX, largest: largest.to_vec() }
    }

    /// Of a layer that gives indices of a GELU table to `channels`.
    pub fn of_indices(input: f64, index: f64, channels: usize) -> Self {
        // An index beyond the table saturates, wherever it does.
        let largest = vec![256.0 / HEADROOM * index; channels];
        Self { input, output: index, multiplier: INDEX_MULTIPLIER, largest }
    }
}

/// Scales of the weights of a layer, one an output channel, and the multipliers and the shift that go with them.
#[derive(Clone, Debug, PartialEq)]
pub struct RowScales {
    /// The weights' scales.
    pub scale: Vec<f64>,
    /// Whole numbers, 1 to 32767.
    pub multiplier: Vec<f64>,
    /// 0 to 31.
    pub shift: i32,
}

impl RowScales {
    /// For `weight` `[outputs, columns]` and `bias` `[outputs]`, already folded.
    ///
    /// A channel's weights get the finest scale for which its multiplier is an integer, its bias fits, and the largest output
    /// seen, and half as much again, does not saturate on the way.
    pub fn of(weight: &[f64], columns: usize, bias: &[f64], ends: &Ends) -> Self {
        let rows = weight.chunks_exact(columns);
        let finest = rows.zip(bias).map(|(row, bias)| {
            let largest = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            (largest / 127.0).max(bias.abs() / (BIAS_MAX * ends.input))
        });
        let ratio: Vec<f64> = finest.map(|scale| scale * ends.input / ends.output).collect();
        let largest = ratio.iter().fold(1e-30f64, |m, &r| m.max(r));
        let shift = ((ends.multiplier / largest).log2().floor() as i32 - 15).clamp(0, 31);
        let one = 2f64.powi(15 + shift);
        let room = |seen: f64| seen / ends.output * HEADROOM * 2f64.powi(15) / I16_MAX;
        let multiplier: Vec<f64> = ratio
            .iter()
            .zip(&ends.largest)
            .map(|(r, &seen)| (r * one).max(room(seen)).ceil().clamp(1.0, I16_MAX))
            .collect();
        let scale = multiplier.iter().map(|m| m / one * ends.output / ends.input).collect();
        Self { scale, multiplier, shift }
    }
}

/// What the squared error of a clipped value counts, against that of a rounded one. Rounding errors differ from position to position and
/// mostly vanish in the mean over the map; the values that a clip cuts off come together in a few tiles, always with the same sign, and
/// turn the embeddings of those. On a random atto with 12 bands, calibrated on 32 tiles, 1 gave a mean cosine of 0.9984 and
/// a least of 0.988, 8 gave 0.9993 and 0.998, 64 gave 0.9994 and 0.9986 (nearest rounding).
const CLIPPED: f64 = 64.0;

/// The scale of symmetric int8 with the least squared error over `samples`, that of clipped values counted 64-fold.
pub fn clip(samples: &[f32]) -> f64 {
    let largest = samples.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return 1.0 / 127.0;
    }
    let error = |scale: f32| -> f64 {
        let squared = |&v: &f32| {
            let whole = (v / scale).round();
            let kept = whole.clamp(-128.0, 127.0);
            f64::from(v - kept * scale).powi(2) * if whole == kept { 1.0 } else { CLIPPED }
        };
        samples.iter().map(squared).sum()
    };
    best((6..=40).map(|i| largest * i as f32 / 40.0 / 127.0), error)
}

/// Samples that decide a GELU table's index.
const MAX_GELU_SAMPLES: usize = 100_000;

/// Scale and zero point of a GELU table's index with the least squared error after GELU: `real = (index - zero_point) * scale`.
pub fn gelu_clip(samples: &[f32]) -> (f64, i32) {
    let (low, high) = samples.iter().fold((-0.5f32, 0.5f32), |(l, h), &v| (l.min(v), h.max(v)));
    let samples: Vec<f32> = samples.iter().step_by(samples.len().div_ceil(MAX_GELU_SAMPLES).max(1)).copied().collect();
    let exact: Vec<f32> = samples.iter().map(|&v| gelu(f64::from(v)) as f32).collect();
    let mut found = (f64::INFINITY, 1.0, 0);
    for low in [-6.0f32, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0].map(|clip| low.max(clip)) {
        for step in 8..=24 {
            let high = high * step as f32 / 24.0;
            let scale = (high - low) / 255.0;
            let zero_point = (-128.0 - low / scale).round().clamp(-128.0, 127.0);
            let table: Vec<f32> =
                (-128..128).map(|i| gelu(f64::from((i as f32 - zero_point) * scale)) as f32).collect();
            let error: f64 = samples
                .iter()
                .zip(&exact)
                .map(|(&v, &exact)| {
                    let raw = (v / scale).round() + zero_point;
                    let index = raw.clamp(-128.0, 127.0) as i32;
                    f64::from(exact - table[(index + 128) as usize]).powi(2) * if raw > 127.0 { CLIPPED } else { 1.0 }
                })
                .sum();
            if error < found.0 {
                found = (error, f64::from(scale), zero_point as i32);
            }
        }
    }
    (found.1, found.2)
}

/// The GELU table for an index of `scale` and `zero_point`, and the scale of its i16 values.
pub fn gelu_table(scale: f64, zero_point: i32) -> (Vec<i16>, f64) {
    let values: Vec<f64> = (-128..128).map(|i| gelu(f64::from(i - zero_point) * scale)).collect();
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let unit = largest / f64::from(TABLE_MAX);
    (values.iter().map(|v| (v / unit).round() as i16).collect(), unit)
}

/// Exact GELU.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn best(scales: impl Iterator<Item = f32>, error: impl Fn(f32) -> f64 + Sync) -> f64 {
    let scales: Vec<f32> = scales.collect();
    let candidates: Vec<(f64, f32)> = scales.into_par_iter().map(|scale| (error(scale), scale)).collect();
    f64::from(candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, scale)| scale))
}

/// The input of the second pointwise layer: Global Response Normalization without its beta, divided by `balance` channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// Divisors, one a channel.
    pub divisors: Vec<f64>,
    /// Scale of what is left.
    pub scale: f64,
    /// The multiplier that a divisor of 1 has where the normalization does nothing.
    pub unit: f64,
}

impl Balance {
    /// From `samples` `[positions, columns]` of the normalization without beta, the layer's `weight` `[outputs, columns]`, the normalization's
    /// `gamma`, the largest of each channel's ratios to the mean norm, and the scale of what enters. `clip` sets the scale, from the balanced
    /// samples and the divisors.
    pub fn of(
        samples: &[f32],
        weight: &[f64],
        gamma: &[f64],
        norms: &[f64],
        activation: f64,
        clip: impl FnOnce(&[f32], &[f64]) -> f64,
    ) -> Self {
        let columns = gamma.len();
        let mut divisors = balance(samples, weight, columns);
        let balanced: Vec<f32> = samples.iter().enumerate().map(|(i, v)| v / divisors[i % columns] as f32).collect();
        let scale = clip(&balanced, &divisors);
        // The multiplier of a channel's calibrated norm takes at most half of an i16: room for larger norms than any seen.
        let unit = activation / scale * 2f64.powi(15);
        for ((divisor, gamma), norm) in divisors.iter_mut().zip(gamma).zip(norms) {
            *divisor = divisor.max(unit * (1.0f64).max((1.0 + gamma * norm).abs()) / (I16_MAX / 2.0));
        }
        Self { divisors, scale, unit }
    }
}

/// Divisors for the input channels of `weight` `[outputs, columns]` that share the spread of values between inputs and weights: the
/// square root of the ratio of their ranges, normalised to a geometric mean of 1.
fn balance(samples: &[f32], weight: &[f64], columns: usize) -> Vec<f64> {
    let mut inputs = vec![0.0f64; columns];
    samples.iter().enumerate().for_each(|(i, v)| inputs[i % columns] = inputs[i % columns].max(f64::from(v.abs())));
    let mut weights = vec![0.0f64; columns];
    weight.iter().enumerate().for_each(|(i, w)| weights[i % columns] = weights[i % columns].max(w.abs()));
    let ratio = |(&x, &w): (&f64, &f64)| if x > 0.0 && w > 0.0 { (x / w).sqrt() } else { 1.0 };
    let ratios: Vec<f64> = inputs.iter().zip(&weights).map(ratio).collect();
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / columns as f64).exp();
    ratios.iter().map(|r| (r / mean).clamp(1.0 / 16.0, 16.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_outlier_is_clipped() {
        let mut samples: Vec<f32> = (0..1_000_000).map(|i| (i as f32 * 0.618).sin()).collect();
        let plain = clip(&samples);
        assert!((plain - 1.0 / 127.0).abs() < 1e-3 / 127.0);
        samples.push(3.0);
        assert!(clip(&samples) < 2.9 / 127.0);
    }

    #[test]
    fn gelu_tables_are_exact_at_their_points() {
        let samples: Vec<f32> = (0..1000).map(|i| i as f32 * 0.01 - 4.0).collect();
        let (scale, zero_point) = gelu_clip(&samples);
        let (table, unit) = gelu_table(scale, zero_point);
        for &x in &samples {
            let index = ((f64::from(x) / scale).round() as i32 + zero_point).clamp(-128, 127);
            let error = (f64::from(table[(index + 128) as usize]) * unit - gelu(f64::from(x))).abs();
            assert!(error < 0.6 * scale, "{x}: {error}");
        }
    }
}
