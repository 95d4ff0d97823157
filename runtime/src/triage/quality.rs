//! Is a tile worth encoding at all? Shares of pixels without data and of saturated pixels.
//!
//! Saturated pixels are counted apart from pixels without data: cloud and sun glint saturate, and are still something seen.

use crate::Tile;
use crate::model::Band;

/// Counts over the pixels of one tile; a pixel counts once, whatever the number of its bands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    /// Rows x columns.
    pub pixels: u32,
    /// Pixels of which any band is the band's no-data value, NaN or infinite.
    pub no_data: u32,
    /// Pixels with data of which any band is at or above the band's saturation.
    pub saturated: u32,
}

/// Limits of the veto, as shares in 1/1000 of the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A tile is vetoed if more of it is without data.
    pub no_data: u16,
    /// A tile is vetoed if more of it is saturated.
    pub saturated: u16,
}

impl Default for Limits {
    /// Half without data, as MMEarth's tiles are refused; 30 % saturated.
    fn default() -> Self {
        Self { no_data: 500, saturated: 300 }
    }
}

/// Whether a tile goes on to the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    #[default]
    Pass,
    /// Too much is without data.
    NoData,
    /// Too much is saturated.
    Saturated,
}

/// The values of a tile are not a whole number of pixels for its bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tile of {values} values does not hold whole pixels of {bands} bands")]
pub struct TileLength {
    /// Values in the tile.
    pub values: usize,
    /// Bands.
    pub bands: usize,
}

impl Quality {
    /// Looks at every pixel of `tile`, `[bands, height, width]` in the order of `bands`.
    pub fn assess(tile: Tile<'_>, bands: &[Band]) -> Result<Self, TileLength> {
        let values = tile.len();
        let wrong = TileLength { values, bands: bands.len() };
        let pixels = match values.checked_rem(bands.len()) {
            Some(0) => values / bands.len(),
            _ => return Err(wrong),
        };
        let mut quality = Self { pixels: u32::try_from(pixels).map_err(|_| wrong)?, no_data: 0, saturated: 0 };
        for pixel in 0..pixels {
            let (mut no_data, mut saturated) = (false, false);
            for (band, description) in bands.iter().enumerate() {
                let value = tile.value(band * pixels + pixel).unwrap_or(f32::NAN);
                no_data |= !value.is_finite() || description.no_data == Some(value);
                saturated |= description.saturation.is_some_and(|limit| value >= limit);
            }
            quality.no_data += u32::from(no_data);
            quality.saturated += u32::from(saturated && !no_data);
        }
        Ok(quality)
    }

    /// Share without data in 1/1000, rounded down, but at least 1 if there is any.
    pub fn no_data_permille(&self) -> u16 {
        permille(self.no_data, self.pixels)
    }

    /// Share saturated in 1/1000, rounded down, but at least 1 if there is any.
    pub fn saturated_permille(&self) -> u16 {
        permille(self.saturated, self.pixels)
    }

    /// Holds the exact shares against `limits`. A tile without pixels has no data.
    pub fn verdict(&self, limits: &Limits) -> Verdict {
        let over = |count: u32, limit: u16| u64::from(count) * 1000 > u64::from(self.pixels) * u64::from(limit);
        if self.pixels == 0 || over(self.no_data, limits.no_data) {
            Verdict::NoData
        } else if over(self.saturated, limits.saturated) {
            Verdict::Saturated
        } else {
            Verdict::Pass
        }
    }
}

fn permille(count: u32, pixels: u32) -> u16 {
    let share = (u64::from(count) * 1000).checked_div(u64::from(pixels)).unwrap_or(0);
    let share = u16::try_from(share).unwrap_or(u16::MAX);
    if count > 0 { share.max(1) } else { share }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::triage::test_random::Random;

    fn band(no_data: Option<f32>, saturation: Option<f32>) -> Band {
        Band {
            name: "B4".try_into().unwrap(),
            unit: "DN".try_into().unwrap(),
            mean: 1.0,
            std: 1.0,
            no_data,
            saturation,
        }
    }

    #[test]
    fn pixels_are_counted_once() {
        let bands = [band(Some(0.0), Some(255.0)), band(Some(0.0), None)];
        //            no data in one, both; saturated; saturated and no data; fine; fine (255 is no limit of band 1)
        let tile = [0, 0, 255, 255, 9, 9, /* band 1 */ 7, 0, 7, 0, 7, 255];
        let quality = Quality::assess(Tile::U8(&tile), &bands).unwrap();
        assert_eq!(quality, Quality { pixels: 6, no_data: 3, saturated: 1 });
        assert_eq!((quality.no_data_permille(), quality.saturated_permille()), (500, 166));
        assert_eq!(quality.verdict(&Limits::default()), Verdict::Pass);
        assert_eq!(quality.verdict(&Limits { no_data: 499, saturated: 0 }), Verdict::NoData);
        assert_eq!(quality.verdict(&Limits { no_data: 500, saturated: 166 }), Verdict::Saturated);
        assert_eq!(quality.verdict(&Limits { no_data: 500, saturated: 167 }), Verdict::Pass);
    }

    #[test]
    fn values_that_are_not_numbers_are_no_data() {
        let tile = [f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, 9.0];
        let quality = Quality::assess(Tile::F32(&tile), &[band(None, Some(9.0))]).unwrap();
        assert_eq!(quality, Quality { pixels: 5, no_data: 3, saturated: 1 });
    }

    /// Against sets of pixel indices, gathered band by band.
    #[test]
    fn counts_match_sets() {
        let mut random = Random(11);
        for _ in 0..if cfg!(miri) { 10 } else { 200 } {
            let (n, pixels) = (1 + random.below(4) as usize, 1 + random.below(50) as usize);
            let tile: Vec<u16> = (0..n * pixels).map(|_| random.below(6) as u16).collect();
            let bands: Vec<Band> = (0..n).map(|i| band((i % 2 == 0).then_some(0.0), (i != 1).then_some(5.0))).collect();
            let (mut empty, mut full) = (vec![false; pixels], vec![false; pixels]);
            for (i, v) in tile.iter().enumerate() {
                empty[i % pixels] |= (i / pixels) % 2 == 0 && *v == 0;
                full[i % pixels] |= i / pixels != 1 && *v == 5;
            }
            let quality = Quality::assess(Tile::U16(&tile), &bands).unwrap();
            assert_eq!(quality.no_data as usize, empty.iter().filter(|e| **e).count());
            assert_eq!(quality.saturated as usize, (0..pixels).filter(|&i| full[i] && !empty[i]).count());
        }
    }

    #[test]
    fn odd_tiles_are_refused() {
        let bands = [band(None, None), band(None, None)];
        assert_eq!(Quality::assess(Tile::U8(&[1, 2, 3]), &bands), Err(TileLength { values: 3, bands: 2 }));
        assert!(Quality::assess(Tile::U8(&[1]), &[]).is_err());
        assert!(Quality::assess(Tile::U8(&[]), &[]).is_err());
        let empty = Quality::assess(Tile::U8(&[]), &bands).unwrap();
        assert_eq!(empty.verdict(&Limits::default()), Verdict::NoData);
        assert_eq!(empty.no_data_permille(), 0);
        let one = Quality { pixels: 100_000, no_data: 1, saturated: 0 };
        assert_eq!(one.no_data_permille(), 1);
    }
}
