//! Change quality: whether a product tells a tile that changed from the same tile seen again.
//!
//! There are no repeated passes in most data, so that both are made: an *unchanged* pair is a tile and itself altered as another pass alters it
//! (light, noise, a pixel's misregistration, orientation), a *changed* pair is the tile and another tile altered the same way. What is not
//! in it: seasons, clouds, haze, the sun's angle, another sensor, real change of part of a tile.

use nadir::model::Band;
use nadir_formats::{Pixels, Tiles};

use crate::testing::Random;

/// How a tile looks when it is seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alteration {
    /// Every value times 0.85 or 1.15, in turn.
    Light,
    /// Gaussian noise of a tenth of the band's standard deviation.
    Noise,
    /// One pixel to the right, its edge repeated.
    Shift1,
    /// Two pixels to the right and down, their edges repeated.
    Shift2,
    /// Mirrored from left to right.
    Flip,
}

impl Alteration {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Light, Self::Noise, Self::Shift1, Self::Shift2, Self::Flip];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Noise => "noise",
            Self::Shift1 => "shift 1",
            Self::Shift2 => "shift 2",
            Self::Flip => "flip",
        }
    }

    /// `tiles` altered, values saturated to their type; pixels without data stay as they are.
    pub fn of(self, tiles: &Tiles, bands: &[Band]) -> Tiles {
        macro_rules! altered {
            ($kind:ident, $values:expr) => {
                Pixels::$kind(self.values($values, tiles.shape, bands, |v| v as f32, |v| v as _))
            };
        }
        let pixels = match &tiles.pixels {
            Pixels::U8(v) => altered!(U8, v),
            Pixels::U16(v) => altered!(U16, v),
            Pixels::F32(v) => altered!(F32, v),
        };
        Tiles { shape: tiles.shape, pixels }
    }

    fn values<T: Copy>(
        self,
        values: &[T],
        [_, c, h, w]: [usize; 4],
        bands: &[Band],
        real: fn(T) -> f32,
        stored: fn(f32) -> T,
    ) -> Vec<T> {
        // One sequence for all tiles.
        let mut random = Random::new(5);
        let integers = size_of::<T>() < 4;
        let mut out = Vec::with_capacity(values.len());
        for (index, plane) in values.chunks_exact((h * w).max(1)).enumerate() {
            let (tile, band) = (index / c, &bands[index % c]);
            let from =
                |down: usize, right: usize, y: usize, x: usize| y.saturating_sub(down) * w + x.saturating_sub(right);
            for (y, x) in (0..h * w).map(|i| (i / w, i % w)) {
                let here = plane[y * w + x];
                let change = |changed: f32| {
                    let no_data = band.no_data == Some(real(here)) || !real(here).is_finite();
                    if no_data { here } else { stored(if integers { changed.round() } else { changed }) }
                };
                out.push(match self {
                    Self::Light => change(real(here) * if tile % 2 == 0 { 0.85 } else { 1.15 }),
                    Self::Noise => change(real(here) + 0.1 * band.std * random.normal() as f32),
                    Self::Shift1 => plane[from(0, 1, y, x)],
                    Self::Shift2 => plane[from(2, 2, y, x)],
                    Self::Flip => plane[y * w + w - 1 - x],
                });
            }
        }
        out
    }
}

/// For each tile another one: with classes another of its class, drawn at random (a class of one tile takes any); without, any other.
///
/// # Panics
/// If there is only one tile.
pub fn partners(tiles: usize, classes: Option<&[usize]>) -> Vec<usize> {
    let mut random = Random::new(6);
    (0..tiles)
        .map(|tile| {
            let alike = |&other: &usize| other != tile && classes.is_none_or(|c| c[other] == c[tile]);
            let mut others: Vec<usize> = (0..tiles).filter(alike).collect();
            if others.is_empty() {
                others = (0..tiles).filter(|&other| other != tile).collect();
            }
            others[random.below(others.len())]
        })
        .collect()
}

/// Average precision, the area under the precision-recall curve as steps: the sum over distinct scores, from the largest on, of precision
/// times the recall gained. Higher scores are for `true`.
pub fn average_precision(scored: &[(f64, bool)]) -> f64 {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = sorted.iter().filter(|(_, changed)| *changed).count() as f64;
    let (mut hits, mut seen, mut area) = (0.0, 0.0, 0.0);
    for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
        let gained = equal.iter().filter(|(_, changed)| *changed).count() as f64;
        hits += gained;
        seen += equal.len() as f64;
        area += hits / seen * gained / positives;
    }
    area
}
