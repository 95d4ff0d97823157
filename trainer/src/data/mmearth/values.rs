//! From stored bytes to what a model reads: normalised numbers with NaN, and classes with -1, where nothing is known.

use crate::data::{Symmetry, source};

use super::array::Element;
use super::modality::{Kind, Missing, Modality};
use super::statistics::BandStatistics;

/// How missing values are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// Whatever is no data becomes NaN or class -1, and so is ignored.
    #[default]
    Masked,
    /// As the loader did with which the released checkpoints were trained: Sentinel-2's 0 and the canopy's 127 count as values,
    /// missing Sentinel-1 becomes 0 (the mean), WorldCover's 0 becomes class 0, a row without a one its class 0. Only ERA5 keeps NaN.
    AsReleased,
}

/// Values of some tiles, one modality.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Normalised numbers, NaN where missing.
    Numbers(Vec<f32>),
    /// Classes from 0, -1 where missing.
    Classes(Vec<i64>),
}

impl Values {
    /// Nothing yet, of the kind that `modality` has.
    pub fn empty(modality: Modality) -> Self {
        match modality.kind() {
            Kind::Numbers => Self::Numbers(Vec::new()),
            _ => Self::Classes(Vec::new()),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(v) => v.len(),
            Self::Classes(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any value from `start` on is known.
    pub(super) fn any_known(&self, start: usize) -> bool {
        match self {
            Self::Numbers(v) => v[start..].iter().any(|v| !v.is_nan()),
            Self::Classes(v) => v[start..].iter().any(|v| *v >= 0),
        }
    }
}

/// A square cut out of a tile, turned by a symmetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Pixels a side.
    pub side: usize,
    /// How the cut is turned.
    pub symmetry: Symmetry,
}

/// Appends one tile's values to `out`: the given stored channels (all for one-hot), the window of each.
///
/// `raw` is the stored row, `stored_side` the tile's side. Numbers are computed as numpy does: in f64, then rounded to f32.
///
/// # Panics
/// If `raw` is shorter than the modality's row or the window leaves the tile.
pub(super) fn append(
    modality: Modality,
    raw: &[u8],
    stored_side: usize,
    channels: &[usize],
    window: Window,
    statistics: Option<&BandStatistics>,
    rules: Rules,
    out: &mut Values,
) {
    match out {
        Values::Classes(out) => match modality.kind() {
            Kind::OneHot { .. } => out.push(one_hot(modality, raw, rules)),
            _ => {
                let mut table = [-1i64; 256];
                (0..=255u8).for_each(|v| table[usize::from(v)] = modality.class(v));
                if rules == Rules::AsReleased && modality == Modality::EsaWorldcover {
                    table[0] = 0;
                }
                for_each_line(raw, 1, modality.per_pixel(), stored_side, channels, window, |_, values| {
                    out.extend(values.iter().map(|v| table[usize::from(*v)]));
                });
            }
        },
        Values::Numbers(out) => {
            let (missing, instead) = match rules {
                Rules::Masked => (modality.missing(), f32::NAN),
                Rules::AsReleased => as_released(modality),
            };
            let (mean, std): (&[f64], &[f64]) = statistics.map_or((&[], &[]), |s| (&s.mean, &s.std));
            let element = modality.element();
            for_each_line(raw, element.size(), modality.per_pixel(), stored_side, channels, window, |channel, line| {
                let (mean, std) = (mean[channel], std[channel]);
                macro_rules! line {
                    ($type:ty) => {
                        out.extend(line.as_chunks().0.iter().map(|bytes| {
                            let value = f64::from(<$type>::from_le_bytes(*bytes));
                            if missing.holds(value) { instead } else { ((value - mean) / std) as f32 }
                        }))
                    };
                }
                match element {
                    Element::U8 => line!(u8),
                    Element::I8 => line!(i8),
                    Element::U16 => line!(u16),
                    Element::I16 => line!(i16),
                    Element::F32 => line!(f32),
                    Element::Record { .. } => {}
                }
            });
        }
    }
}

/// What the released loader took for missing, and what it put there.
fn as_released(modality: Modality) -> (Missing, f32) {
    match modality {
        Modality::Sentinel2 | Modality::CanopyHeightEth => (Missing::Never, 0.0),
        Modality::Sentinel1 => (Missing::NotFinite, 0.0),
        _ => (modality.missing(), f32::NAN),
    }
}

/// The class whose channel is 1; if none is, or the row is filled with the marker of no data, -1.
fn one_hot(modality: Modality, raw: &[u8], rules: Rules) -> i64 {
    let size = modality.element().size();
    let value = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let values = || raw.chunks_exact(size).map(value);
    match rules {
        Rules::Masked => values().position(|v| v == 1).map_or(-1, |class| class as i64),
        Rules::AsReleased => {
            let most = values().max().unwrap_or(0);
            values().position(|v| v == most).map_or(-1, |class| class as i64)
        }
    }
}

/// Calls `each` with the channel and bytes of every line of the window, turned; a modality without pixels has lines of one value.
fn for_each_line(
    raw: &[u8],
    size: usize,
    per_pixel: bool,
    stored_side: usize,
    channels: &[usize],
    window: Window,
    mut each: impl FnMut(usize, &[u8]),
) {
    if !per_pixel {
        channels.iter().for_each(|&c| each(c, &raw[c * size..(c + 1) * size]));
        return;
    }
    let plane = stored_side * stored_side * size;
    let mut turned = vec![0; window.side * size];
    for &channel in channels {
        let pixels = &raw[channel * plane..(channel + 1) * plane];
        for row in 0..window.side {
            if window.symmetry == crate::data::AS_IS {
                let start = ((window.top + row) * stored_side + window.left) * size;
                each(channel, &pixels[start..start + window.side * size]);
                continue;
            }
            for (column, to) in turned.chunks_exact_mut(size).enumerate() {
                let from = source(window.symmetry, window.side, row, column);
                let (y, x) = (window.top + from / window.side, window.left + from % window.side);
                to.copy_from_slice(&pixels[(y * stored_side + x) * size..][..size]);
            }
            each(channel, &turned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::AS_IS;

    fn numbers(modality: Modality, raw: &[u8], side: usize, window: Window, rules: Rules) -> Vec<f32> {
        let n = modality.channels();
        let s = BandStatistics { mean: vec![1.0; n], std: vec![2.0; n], min: vec![0.0; n], max: vec![0.0; n] };
        let mut out = Values::empty(modality);
        let channels: Vec<usize> = (0..n).collect();
        append(modality, raw, side, &channels, window, Some(&s), rules, &mut out);
        let Values::Numbers(out) = out else { panic!() };
        out
    }

    const WHOLE: Window = Window { top: 0, left: 0, side: 2, symmetry: AS_IS };

    #[test]
    fn each_modality_has_its_own_no_data() {
        let nan = |v: &[f32]| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
        let canopy = [3i8 as u8, 127, 0, 0xff, 1, 2, 127, 5];
        let v = numbers(Modality::CanopyHeightEth, &canopy, 2, WHOLE, Rules::Masked);
        assert_eq!((v[0], v[3], v[2]), (1.0, -1.0, -0.5));
        assert_eq!(nan(&v), [false, true, false, false, false, false, true, false]);
        assert_eq!(numbers(Modality::CanopyHeightEth, &canopy, 2, WHOLE, Rules::AsReleased)[1], 63.0);
        let lat: Vec<u8> = [f32::NEG_INFINITY, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(nan(&numbers(Modality::Lat, &lat, 2, WHOLE, Rules::Masked)), [true, false]);
        let s1: Vec<u8> = (0..32).flat_map(|i| [3.0, f32::NEG_INFINITY][i % 2].to_le_bytes()).collect();
        let v = numbers(Modality::Sentinel1, &s1, 2, WHOLE, Rules::Masked);
        assert_eq!((v[0], v[1].is_nan()), (1.0, true));
        assert_eq!(numbers(Modality::Sentinel1, &s1, 2, WHOLE, Rules::AsReleased)[..2], [1.0, 0.0]);
        let s2: Vec<u8> = (0..52u16).flat_map(|i| (i % 2 * 3).to_le_bytes()).collect();
        assert!(numbers(Modality::Sentinel2, &s2, 2, WHOLE, Rules::Masked)[0].is_nan());
        assert_eq!(numbers(Modality::Sentinel2, &s2, 2, WHOLE, Rules::AsReleased)[..2], [-0.5, 1.0]);
    }

    #[test]
    fn classes_and_one_hot() {
        let classes = |modality, raw: &[u8], rules| {
            let mut out = Values::empty(modality);
            append(modality, raw, 2, &[0], WHOLE, None, rules, &mut out);
            let Values::Classes(out) = out else { panic!() };
            out
        };
        assert_eq!(classes(Modality::EsaWorldcover, &[0, 10, 100, 7], Rules::Masked), [-1, 0, 10, -1]);
        assert_eq!(classes(Modality::EsaWorldcover, &[0, 10, 100, 7], Rules::AsReleased), [0, 0, 10, -1]);
        assert_eq!(classes(Modality::DynamicWorld, &[0, 1, 9, 10], Rules::Masked), [-1, 0, 8, -1]);
        let mut biome = [0; 14];
        assert_eq!(classes(Modality::Biome, &biome, Rules::Masked), [-1]);
        assert_eq!(classes(Modality::Biome, &biome, Rules::AsReleased), [0]);
        assert_eq!(classes(Modality::Biome, &[255; 14], Rules::Masked), [-1]);
        biome[5] = 1;
        assert_eq!(classes(Modality::Biome, &biome, Rules::Masked), [5]);
        let mut region = vec![0; 846 * 2];
        region[2 * 700] = 1;
        assert_eq!(classes(Modality::EcoRegion, &region, Rules::Masked), [700]);
    }

    #[test]
    fn windows_are_cut_and_turned() {
        let raw: Vec<u8> = (0..9).flat_map(|i: i16| (2 * i + 1).to_le_bytes()).collect::<Vec<_>>().repeat(2);
        let cut = |symmetry| {
            let window = Window { top: 1, left: 0, side: 2, symmetry };
            numbers(Modality::Aster, &raw, 3, window, Rules::Masked)[..4].to_vec()
        };
        assert_eq!(cut(AS_IS), [3.0, 4.0, 6.0, 7.0]);
        assert_eq!(cut(1), [4.0, 3.0, 7.0, 6.0]);
        assert_eq!(cut(4), [3.0, 6.0, 4.0, 7.0]);
    }
}
