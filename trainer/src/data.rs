//! Tiles as the encoder reads them: chosen rows, band statistics, normalised batches, and which tiles a step sees.

pub mod eurosat;
pub mod folder;
pub mod geobench;
mod labels;
pub mod mmearth;
mod pretext;
mod rcf;
mod table;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use nadir_formats::{BandCard, Pixels, Tiles, canonical_band, read_integers};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

pub use labels::{Labels, NO_CLASS};
pub use pretext::{PixelTarget, PixelTargetKind, Pretext};
pub use rcf::{RandomFeatures, random_features};
pub use table::{ImageTarget, ImageValues, Table};

/// What the bands' numbers mean, apart from their statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct BandMeaning {
    /// What a stored value counts.
    pub unit: String,
    /// Stored value that means "no data".
    pub no_data: Option<f32>,
    /// Stored value at and above which the sensor is saturated.
    pub saturation: Option<f32>,
}

/// The indices of the tiles that a run may use: all `tiles`, or those whose entry in the split file is one of `used`.
///
/// Fails if the split file does not have one entry a tile, or none of the wanted ones.
pub fn rows_in_split(tiles: usize, split: Option<&Path>, used: &[i64]) -> Result<Vec<usize>> {
    let Some(path) = split else {
        return Ok((0..tiles).collect());
    };
    let split = read_integers(path)?;
    ensure!(split.len() == tiles, "{}: has {} entries for {tiles} tiles", path.display(), split.len());
    let rows: Vec<usize> = (0..tiles).filter(|&i| used.contains(&split[i])).collect();
    ensure!(!rows.is_empty(), "{}: no tile is in split {}", path.display(), join(used));
    Ok(rows)
}

/// Checks that the tiles are square and have as many bands as there are names.
pub fn check_shape(tiles: &Tiles, path: &Path, names: &[String]) -> Result<()> {
    let [_, bands, height, width] = tiles.shape;
    ensure!(
        bands == names.len(),
        "{}: has {bands} bands, {} are named ({})",
        path.display(),
        names.len(),
        names.join(",")
    );
    ensure!(height == width, "{}: tiles of {height} x {width} pixels are not square", path.display());
    Ok(())
}

/// The bands' cards with mean and standard deviation over all pixels that hold data, accumulated in f64.
///
/// Fails if a band holds no data at all, or the same value everywhere.
pub fn band_cards(tiles: &Tiles, names: &[String], meaning: &BandMeaning) -> Result<Vec<BandCard>> {
    names
        .iter()
        .enumerate()
        .map(|(band, name)| {
            let name = canonical_band(name);
            let (mean, std) =
                channel_statistics(tiles, band, meaning.no_data).with_context(|| format!("band {name}"))?;
            Ok(BandCard {
                name,
                unit: meaning.unit.clone(),
                mean: mean as f32,
                std: std as f32,
                no_data: meaning.no_data,
                saturation: meaning.saturation,
            })
        })
        .collect()
}

/// Mean and standard deviation of one channel over finite pixels that are not `no_data`.
fn channel_statistics(tiles: &Tiles, channel: usize, no_data: Option<f32>) -> Result<(f64, f64)> {
    let plane = tiles.shape[2] * tiles.shape[3];
    let valid = |v: &f32| v.is_finite() && Some(*v) != no_data;
    let values = || {
        (0..tiles.len()).flat_map(move |tile| {
            let start = tile * tiles.tile_len() + channel * plane;
            (start..start + plane).map(|at| value(&tiles.pixels, at))
        })
    };
    // Two passes: the difference of large squares would lose digits.
    let (mut count, mut sum) = (0u64, 0.0);
    for v in values().filter(valid) {
        count += 1;
        sum += f64::from(v);
    }
    ensure!(count > 0, "every pixel of all {} tiles is no data or not finite", tiles.len());
    let mean = sum / count as f64;
    let variance = values().filter(valid).map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count as f64;
    ensure!(variance > 0.0, "every pixel of all {} tiles holds {mean}", tiles.len());
    Ok((mean, variance.sqrt()))
}

pub(crate) fn value(pixels: &Pixels, at: usize) -> f32 {
    match pixels {
        Pixels::U8(v) => f32::from(v[at]),
        Pixels::U16(v) => f32::from(v[at]),
        Pixels::F32(v) => v[at],
    }
}

/// One of the eight symmetries of a square: bit 2 transposes, then bit 1 turns rows around, then bit 0 columns.
pub type Symmetry = u8;

/// The identity [`Symmetry`].
pub const AS_IS: Symmetry = 0;

/// Where, in the tile as stored, pixel (`row`, `column`) of the transformed tile comes from.
pub(crate) fn source(symmetry: Symmetry, side: usize, row: usize, column: usize) -> usize {
    let row = if symmetry & 2 != 0 { side - 1 - row } else { row };
    let column = if symmetry & 1 != 0 { side - 1 - column } else { column };
    if symmetry & 4 != 0 { column * side + row } else { row * side + column }
}

/// The tiles at `indices`, each under its symmetry, as f32 `[batch, bands, side, side]`: `(value - mean) / std`, and
/// `missing` where a value is no data or not finite.
///
/// # Panics
/// If an index is out of range or the number of bands is not the tiles'.
pub fn normalised(tiles: &Tiles, bands: &[BandCard], draws: &[(usize, Symmetry)], missing: f32) -> Vec<f32> {
    let [_, channels, side, _] = tiles.shape;
    assert_eq!(channels, bands.len());
    let plane = side * side;
    let mut out = Vec::with_capacity(draws.len() * tiles.tile_len());
    for &(index, symmetry) in draws {
        for (channel, band) in bands.iter().enumerate() {
            let start = index * tiles.tile_len() + channel * plane;
            for row in 0..side {
                for column in 0..side {
                    let v = value(&tiles.pixels, start + source(symmetry, side, row, column));
                    let known = v.is_finite() && Some(v) != band.no_data;
                    out.push(if known { (v - band.mean) / band.std } else { missing });
                }
            }
        }
    }
    out
}

/// The tensor that the encoder reads: [`normalised`] with missing pixels at 0, the mean.
pub fn input(tiles: &Tiles, bands: &[BandCard], draws: &[(usize, Symmetry)], device: &Device) -> Result<Tensor> {
    let [_, channels, side, _] = tiles.shape;
    let values = normalised(tiles, bands, draws, 0.0);
    Ok(Tensor::from_vec(values, (draws.len(), channels, side, side), device)?)
}

/// Draws the tiles of each batch. A batch depends on nothing but the seed and its number, so that a resumed run goes on
/// as an uninterrupted one.
#[derive(Clone, Debug)]
pub struct Sampler {
    tiles: usize,
    batch: usize,
    seed: u64,
    flips: bool,
    accumulate: usize,
    order: Option<(u64, Vec<usize>)>,
}

impl Sampler {
    /// A sampler over `tiles` tiles (at least 1), `batch` of them a batch, under random symmetries if `flips`.
    pub fn new(tiles: usize, batch: usize, seed: u64, flips: bool) -> Self {
        Self { tiles, batch: batch.min(tiles), seed, flips, accumulate: 1, order: None }
    }

    /// The same with `accumulate` batches a step (at least 1), and a whole number of steps in an epoch.
    ///
    /// Fails if there are too few tiles for a step.
    pub fn in_steps_of(self, accumulate: usize) -> Result<Self> {
        let (tiles, batch) = (self.tiles, self.batch);
        ensure!(
            tiles / batch >= accumulate,
            "{tiles} tiles are too few for a step of {accumulate} batches of {batch}; see --accumulate and --batch"
        );
        Ok(Self { accumulate, ..self })
    }

    /// Batches in a step.
    pub fn accumulate(&self) -> u64 {
        self.accumulate as u64
    }

    /// Steps in an epoch; the tiles that do not fill a step sit out, others each epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.tiles / self.batch / self.accumulate) as u64
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.steps_per_epoch() * self.accumulate()
    }

    /// Tiles in a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The tiles of batch `number` (from 0, over all epochs) with their symmetries.
    pub fn draw(&mut self, number: u64) -> Vec<(usize, Symmetry)> {
        let epoch = number / self.batches_per_epoch();
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut order: Vec<usize> = (0..self.tiles).collect();
            order.shuffle(&mut generator(self.seed, Stream::Order, epoch));
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().map_or(&[][..], |(_, order)| order);
        let start = (number % self.batches_per_epoch()) as usize * self.batch;
        let mut random = generator(self.seed, Stream::Symmetries, number);
        let symmetry = |_| if self.flips { (rand::Rng::next_u32(&mut random) >> 29) as Symmetry } else { AS_IS };
        let symmetries = (0..self.batch).map(symmetry).collect::<Vec<_>>();
        order[start..start + self.batch].iter().copied().zip(symmetries).collect()
    }
}

/// What a random generator is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The weights at the start.
    Weights,
    /// The order of the tiles in an epoch.
    Order,
    /// The symmetries of a step's tiles.
    Symmetries,
    /// The first projection of a distillation.
    Projection,
    /// The masks of a step.
    Masks,
    /// Where the crops of a step are cut.
    Crops,
    /// The bands that are hidden in a step.
    Bands,
    /// Turns and light of the views in a step.
    Views,
    /// Which branches of which samples a step of fine-tuning leaves out.
    Paths,
    /// Which labels a probe with few of them sees.
    Labels,
    /// The patches that random features are made with.
    Filters,
}

/// The random generator for `stream` at its `index`-th use.
pub fn generator(seed: u64, stream: Stream, index: u64) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    bytes[16] = stream as u8 + 1;
    StdRng::from_seed(bytes)
}

/// 16 hexadecimal digits that name the pixels of `tiles`.
pub fn fingerprint(tiles: &Tiles) -> String {
    let mut hash = Sha256::new();
    for d in tiles.shape {
        hash.update((d as u64).to_le_bytes());
    }
    match &tiles.pixels {
        Pixels::U8(v) => hash.update(v),
        Pixels::U16(v) => v.iter().for_each(|v| hash.update(v.to_le_bytes())),
        Pixels::F32(v) => v.iter().for_each(|v| hash.update(v.to_le_bytes())),
    }
    short(hash)
}

/// 16 hexadecimal digits that name what is in a file.
pub fn fingerprint_of_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(std::fs::read(path).with_context(|| path.display().to_string())?);
    Ok(short(hash))
}

/// 16 hexadecimal digits that name a choice of rows.
pub fn fingerprint_of_rows(rows: &[usize]) -> String {
    let mut hash = Sha256::new();
    rows.iter().for_each(|row| hash.update((*row as u64).to_le_bytes()));
    short(hash)
}

/// The first 16 hexadecimal digits.
fn short(hash: Sha256) -> String {
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// Splits `A,B,C` at the commas; fails on an empty name, naming the option.
pub fn names(option: &str, list: &str) -> Result<Vec<String>> {
    let names: Vec<String> = list.split(',').map(|n| n.trim().to_owned()).collect();
    if names.iter().any(String::is_empty) {
        bail!("--{option} {list}: a name is empty");
    }
    Ok(names)
}

fn join(values: &[i64]) -> String {
    values.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(no_data: Option<f32>) -> BandMeaning {
        BandMeaning { unit: "grey level".into(), no_data, saturation: None }
    }

    #[test]
    fn statistics_leave_out_what_is_missing() {
        let band0 = [1.0, 3.0, f32::NAN, f32::INFINITY];
        let band1 = [-9.0, 10.0, 20.0, 30.0];
        let tiles = Tiles { shape: [1, 2, 2, 2], pixels: Pixels::F32([band0, band1].concat()) };
        let names = ["B04".to_owned(), "B3".to_owned()];
        let cards = band_cards(&tiles, &names, &meaning(Some(-9.0))).unwrap();
        assert_eq!((cards[0].name.as_str(), cards[0].mean, cards[0].std), ("B4", 2.0, 1.0));
        assert_eq!((cards[1].mean, cards[1].std), (20.0, (200.0f64 / 3.0).sqrt() as f32));
        let values = normalised(&tiles, &cards, &[(0, AS_IS)], 0.0);
        assert_eq!(values[..4], [-1.0, 1.0, 0.0, 0.0]);
        assert_eq!(values[4], 0.0);
        let empty = Tiles { shape: [1, 1, 2, 2], pixels: Pixels::F32(vec![f32::NAN; 4]) };
        let error = format!("{:#}", band_cards(&empty, &names[..1], &meaning(None)).unwrap_err());
        assert!(error.contains("band B4") && error.contains("not finite"), "{error}");
    }

    #[test]
    fn the_eight_symmetries_are_those_of_the_square() {
        let side = 3;
        let image = |s| -> Vec<usize> { (0..9).map(|at| source(s, side, at / side, at % side)).collect() };
        assert_eq!(image(0), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(image(1), [2, 1, 0, 5, 4, 3, 8, 7, 6]);
        assert_eq!(image(2), [6, 7, 8, 3, 4, 5, 0, 1, 2]);
        assert_eq!(image(4), [0, 3, 6, 1, 4, 7, 2, 5, 8]);
        let all: std::collections::BTreeSet<_> = (0..8).map(image).collect();
        assert_eq!(all.len(), 8, "two of them are equal");
        let near = |a: usize, b: usize| (a / side).abs_diff(b / side) + (a % side).abs_diff(b % side) == 1;
        for image in all {
            assert!(near(image[0], image[1]) && near(image[4], image[7]), "{image:?} tears neighbours apart");
        }
    }

    #[test]
    fn a_step_is_the_same_whenever_it_is_drawn() {
        let mut first = Sampler::new(10, 4, 7, true);
        let run: Vec<_> = (0..6).map(|step| first.draw(step)).collect();
        let mut resumed = Sampler::new(10, 4, 7, true);
        assert_eq!(resumed.draw(3), run[3]);
        assert_eq!(resumed.draw(5), run[5]);
        let mut of_epoch: Vec<_> = run[0].iter().chain(&run[1]).map(|d| d.0).collect();
        of_epoch.sort_unstable();
        of_epoch.dedup();
        assert_eq!(of_epoch.len(), 8, "a tile was drawn twice in an epoch");
        assert_ne!(run[0], run[2]);
        assert_ne!(Sampler::new(10, 4, 8, true).draw(0), run[0]);
        assert!(Sampler::new(10, 4, 7, false).draw(0).iter().all(|d| d.1 == AS_IS));
        // Three batches of 3 fit into 10 tiles, but only one step of two; the third batch starts the next epoch.
        let mut pairs = Sampler::new(10, 3, 7, false).in_steps_of(2).unwrap();
        assert_eq!((pairs.steps_per_epoch(), pairs.batches_per_epoch()), (1, 2));
        assert_eq!(pairs.draw(2), Sampler::new(10, 3, 7, false).draw(3));
        let few = Sampler::new(10, 3, 7, false).in_steps_of(4).unwrap_err().to_string();
        assert!(few.contains("10 tiles are too few for a step of 4 batches of 3"), "{few}");
    }
}
