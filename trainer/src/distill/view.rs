//! What the student sees of a teacher's tile: some of its bands, at its own size.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use nadir_formats::{BandCard, Pixels, Tiles};
use rand::RngExt;

use super::Options;
use crate::data::{Stream, Symmetry, generator, normalised, value};

/// How a tile comes to a smaller size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fit {
    /// The same ground in fewer pixels, each the mean of the area that it covers
    Resize,
    /// A part of the ground: a random window in training, the middle one to end with
    Crop,
}

/// The student's tiles.
pub struct View {
    /// Tiles from which windows are cut in training; `None` if the student sees them whole.
    whole: Option<Tiles>,
    tiles: Tiles,
    bands: Vec<BandCard>,
}

impl View {
    /// The bands `bands` (some of `all`, which are those of `tiles`, in the student's order) at `side` pixels.
    ///
    /// # Errors
    /// If a band is not among `all` or named twice, or if `side` is 0 or larger than the tiles'.
    pub fn new(tiles: &Tiles, all: &[BandCard], bands: &[BandCard], side: usize, fit: Fit) -> Result<Self> {
        let names = |bands: &'_ [BandCard]| bands.iter().map(|b| b.name.clone()).collect::<Vec<_>>();
        let (present, wanted) = (names(all), names(bands));
        for (at, band) in wanted.iter().enumerate() {
            ensure!(!wanted[..at].contains(band), "band {band} is named twice");
        }
        let text = |names: &'_ Vec<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let order = wanted.iter().map(|band| present.iter().position(|have| have == band)).collect::<Option<Vec<_>>>();
        let Some(order) = order else {
            anyhow::bail!("the student's bands {} are not all among the teacher's {}", text(&wanted), text(&present));
        };
        let whole = tiles.shape[2];
        ensure!((1..=whole).contains(&side), "tiles of {side} pixels cannot be made of tiles of {whole}");
        let seen = choose(tiles, &order);
        let (whole, tiles) = match fit {
            _ if side == whole => (None, seen),
            Fit::Resize => (None, resized(&seen, bands, side)),
            Fit::Crop => {
                let tiles = cut(&seen, side);
                (Some(seen), tiles)
            }
        };
        Ok(Self { whole, tiles, bands: bands.to_vec() })
    }

    /// The tiles in the student's bands and size, as its sensor would store them.
    pub fn tiles(&self) -> &Tiles {
        &self.tiles
    }

    /// The student's bands.
    pub fn bands(&self) -> &[BandCard] {
        &self.bands
    }

    /// What the student reads of the drawn tiles at step `step`, `[batch, bands, side, side]`: missing pixels and hidden bands at 0,
    /// the mean.
    pub(super) fn input(
        &self,
        draws: &[(usize, Symmetry)],
        step: u64,
        options: &Options,
        device: &Device,
    ) -> Result<Tensor> {
        let (channels, side) = (self.bands.len(), self.tiles.shape[2]);
        let source = self.whole.as_ref().unwrap_or(&self.tiles);
        let mut values = normalised(source, &self.bands, draws, 0.0);
        if self.whole.is_some() {
            values = windows(&values, source.shape[2], side, draws.len(), channels, options.seed, step);
        }
        if options.band_dropout > 0.0 {
            let mut random = generator(options.seed, Stream::Bands, step);
            for tile in values.chunks_exact_mut(channels * side * side) {
                let kept = random.random_range(0..channels);
                for (band, plane) in tile.chunks_exact_mut(side * side).enumerate() {
                    if random.random_bool(options.band_dropout) && band != kept {
                        plane.fill(0.0);
                    }
                }
            }
        }
        Ok(Tensor::from_vec(values, (draws.len(), channels, side, side), device)?)
    }
}

/// A random window of `side` pixels of each tile of `whole` pixels, all its bands alike.
fn windows(values: &[f32], whole: usize, side: usize, batch: usize, channels: usize, seed: u64, step: u64) -> Vec<f32> {
    let mut random = generator(seed, Stream::Crops, step);
    let mut out = Vec::with_capacity(batch * channels * side * side);
    for tile in values.chunks_exact(channels * whole * whole) {
        let [top, left] = [(); 2].map(|()| random.random_range(0..=(whole - side) as u32) as usize);
        for plane in tile.chunks_exact(whole * whole) {
            for row in plane.chunks_exact(whole).skip(top).take(side) {
                out.extend_from_slice(&row[left..left + side]);
            }
        }
    }
    out
}

/// Tiles of another shape, of whose values each is computed from its place: tile, band, row, column.
fn map(tiles: &Tiles, bands: usize, side: usize, f: impl Fn(usize, usize, usize, usize) -> f32) -> Tiles {
    let n = tiles.len();
    let places = move || {
        let at = move |i: usize| (i / (bands * side * side), i / (side * side) % bands, i / side % side, i % side);
        (0..n * bands * side * side).map(at)
    };
    let values = || places().map(|(tile, band, row, column)| f(tile, band, row, column));
    // A cast from f32 to an integer saturates.
    let pixels = match &tiles.pixels {
        Pixels::U8(_) => Pixels::U8(values().map(|v| v.round() as u8).collect()),
        Pixels::U16(_) => Pixels::U16(values().map(|v| v.round() as u16).collect()),
        Pixels::F32(_) => Pixels::F32(values().collect()),
    };
    Tiles { shape: [n, bands, side, side], pixels }
}

/// The bands at `order`.
fn choose(tiles: &Tiles, order: &[usize]) -> Tiles {
    let [_, channels, side, _] = tiles.shape;
    map(tiles, order.len(), side, |tile, band, row, column| {
        value(&tiles.pixels, ((tile * channels + order[band]) * side + row) * side + column)
    })
}

/// The middle of every tile.
fn cut(tiles: &Tiles, side: usize) -> Tiles {
    let [_, channels, whole, _] = tiles.shape;
    let start = (whole - side) / 2;
    map(tiles, channels, side, |tile, band, row, column| {
        value(&tiles.pixels, ((tile * channels + band) * whole + start + row) * whole + start + column)
    })
}

/// Every tile in fewer pixels, each the mean over the known part of its area; where none is known the band's no-data value, or NaN.
fn resized(tiles: &Tiles, bands: &[BandCard], side: usize) -> Tiles {
    let [_, channels, whole, _] = tiles.shape;
    // Source pixels under each pixel, with the length of their overlap.
    let step = whole as f64 / side as f64;
    let spans: Vec<Vec<(usize, f64)>> = (0..side)
        .map(|i| {
            let (from, to) = (i as f64 * step, (i + 1) as f64 * step);
            let overlap = |p: usize| to.min(p as f64 + 1.0) - from.max(p as f64);
            (from as usize..whole).map(|p| (p, overlap(p))).take_while(|(_, overlap)| *overlap > 1e-9).collect()
        })
        .collect();
    map(tiles, channels, side, |tile, band, row, column| {
        let plane = (tile * channels + band) * whole * whole;
        let (mut sum, mut area) = (0.0, 0.0);
        for (y, height) in &spans[row] {
            for (x, width) in &spans[column] {
                let v = value(&tiles.pixels, plane + y * whole + x);
                if v.is_finite() && Some(v) != bands[band].no_data {
                    sum += height * width * f64::from(v);
                    area += height * width;
                }
            }
        }
        if area > 0.0 { (sum / area) as f32 } else { bands[band].no_data.unwrap_or(f32::NAN) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distill::Weights;

    fn band(name: &str, no_data: Option<f32>) -> BandCard {
        BandCard { name: name.into(), unit: String::new(), mean: 0.0, std: 1.0, no_data, saturation: None }
    }

    fn tiles(n: usize, bands: usize, side: usize) -> Tiles {
        let values = (0..n * bands * side * side).map(|i| (i * 37 % 251 + 1) as f32).collect();
        Tiles { shape: [n, bands, side, side], pixels: Pixels::F32(values) }
    }

    fn options(band_dropout: f64) -> Options {
        let weights = Weights { feature: 1.0, relation: 1.0 };
        Options { weights, prefixes: Vec::new(), keep_space: false, band_dropout, seed: 3 }
    }

    fn floats(tiles: &Tiles) -> &[f32] {
        let Pixels::F32(values) = &tiles.pixels else { panic!() };
        values
    }

    #[test]
    fn a_larger_pixel_is_the_mean_of_its_area() {
        let plane = vec![1.0, 3.0, 5.0, 7.0, 9.0, 11.0, f32::NAN, 2.0, 4.0];
        let all = [band("B4", None)];
        let source = Tiles { shape: [1, 1, 3, 3], pixels: Pixels::F32(plane) };
        let two = View::new(&source, &all, &all, 2, Fit::Resize).unwrap();
        // Areas of 1.5 x 1.5 pixels; the missing pixel has no part in the third.
        let expected = [
            (1.0 + 0.5 * 3.0 + 0.5 * 7.0 + 0.25 * 9.0) / 2.25,
            (5.0 + 0.5 * 3.0 + 0.5 * 11.0 + 0.25 * 9.0) / 2.25,
            (0.5 * 7.0 + 0.25 * 9.0 + 0.5 * 2.0) / 1.25,
            (4.0 + 0.5 * 11.0 + 0.5 * 2.0 + 0.25 * 9.0) / 2.25,
        ];
        for (is, should) in floats(two.tiles()).iter().zip(expected) {
            assert!((is - should).abs() < 1e-6, "{:?}", two.tiles());
        }
        let whole = Tiles { shape: [1, 1, 2, 2], pixels: Pixels::U8(vec![0, 0, 0, 0]) };
        let all = [band("B4", Some(0.0))];
        assert_eq!(View::new(&whole, &all, &all, 1, Fit::Resize).unwrap().tiles().pixels, Pixels::U8(vec![0]));
        let whole = Tiles { shape: [1, 1, 2, 2], pixels: Pixels::U8(vec![0, 2, 3, 3]) };
        assert_eq!(View::new(&whole, &all, &all, 1, Fit::Resize).unwrap().tiles().pixels, Pixels::U8(vec![3]));
    }

    #[test]
    fn crops_are_windows_of_the_tile_in_the_bands_wanted() {
        let (source, all) = (tiles(2, 3, 6), ["B4", "B3", "B2"].map(|name| band(name, None)));
        let view = View::new(&source, &all, &[all[2].clone(), all[0].clone()], 4, Fit::Crop).unwrap();
        let at = |tile: usize, band: usize, row: usize, column: usize| {
            floats(&source)[((tile * 3 + band) * 6 + row) * 6 + column]
        };
        assert_eq!(floats(view.tiles())[0], at(0, 2, 1, 1));
        let x = |step| -> Vec<f32> {
            let x = view.input(&[(1, 0), (0, 0)], step, &options(0.0), &Device::Cpu).unwrap();
            x.flatten_all().unwrap().to_vec1().unwrap()
        };
        let mut corners = std::collections::BTreeSet::new();
        for step in 0..40 {
            let x = x(step);
            let (top, left) = (0..9).map(|i| (i / 3, i % 3)).find(|(t, l)| at(1, 2, *t, *l) == x[0]).unwrap();
            corners.insert((top, left));
            for i in 0..32 {
                let (band, row, column) = ([2, 0][i / 16], i / 4 % 4, i % 4);
                assert_eq!(x[i], at(1, band, top + row, left + column));
            }
        }
        assert!(corners.len() > 5, "{corners:?}");
        assert_eq!(x(7), x(7));
    }

    #[test]
    fn hidden_bands_are_the_mean_and_one_stays() {
        let (source, all) = (tiles(1, 3, 2), ["B4", "B3", "B2"].map(|name| band(name, None)));
        let view = View::new(&source, &all, &all, 2, Fit::Resize).unwrap();
        let mut hidden = [0; 3];
        for step in 0..200 {
            let x = view.input(&[(0, 0)], step, &options(0.5), &Device::Cpu).unwrap();
            let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
            let gone: Vec<bool> = x.chunks(4).map(|plane| plane.iter().all(|v| *v == 0.0)).collect();
            assert!(gone.contains(&false), "step {step}: all bands are hidden");
            hidden.iter_mut().zip(gone).for_each(|(n, gone)| *n += i32::from(gone));
        }
        // A third of the time a band is the one that stays.
        assert!(hidden.iter().all(|n| (40..95).contains(n)), "{hidden:?}");
    }

    #[test]
    fn what_cannot_be_seen_is_named() {
        let (source, all) = (tiles(1, 2, 4), ["B4", "B3"].map(|name| band(name, None)));
        let error = |bands: &[BandCard], side| match View::new(&source, &all, bands, side, Fit::Crop) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("was taken"),
        };
        assert!(error(&[band("B8", None)], 4).contains("B8 are not all among the teacher's B4,B3"));
        assert!(error(&[all[0].clone(), all[0].clone()], 4).contains("band B4 is named twice"));
        assert!(error(&all, 5).contains("tiles of 5 pixels cannot be made of tiles of 4"));
    }
}
