//! Whether tiles can calibrate a model: are there enough, and do their bands hold what the model card says?

use nadir_formats::{BandCard, Tiles};

/// Fewer tiles than this do not calibrate.
pub const REFUSED_BELOW: usize = 4;
/// With fewer tiles than this a warning is due; `docs/quantization.md` shows how the error falls.
pub const WARNED_BELOW: usize = 128;

/// Distance of means, in the card's standard deviations, from which on tiles are of other scenes than the card's.
const FAR: f64 = 1.5;
/// Parts of the card's standard deviation below and above which a band's spread is another.
const SPREAD: [f64; 2] = [0.4, 2.5];
/// Share of values without data from which on it is told.
const MUCH: f64 = 0.5;

/// One band of the tiles, in stored units.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BandStatistics {
    /// Values with data.
    pub values: u64,
    /// Values that are "no data" or not finite.
    pub missing: u64,
    /// Least value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean of the values.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
}

/// The statistics of every band of `tiles`, which are in the order of `bands`.
pub fn statistics(tiles: &Tiles, bands: &[BandCard]) -> Vec<BandStatistics> {
    let area = tiles.shape[2] * tiles.shape[3];
    let of_band = |(band, card): (usize, &BandCard)| {
        let mut found = BandStatistics { min: f64::INFINITY, max: f64::NEG_INFINITY, ..BandStatistics::default() };
        let (mut sum, mut squares) = (0.0, 0.0);
        for tile in (0..tiles.len()).map(|i| tiles.tile(i)) {
            for stored in (band * area..(band + 1) * area).filter_map(|i| tile.value(i)) {
                if !stored.is_finite() || card.no_data == Some(stored) {
                    found.missing += 1;
                    continue;
                }
                let value = f64::from(stored);
                // Sums of what differs from the card's mean lose no digits.
                let far = value - f64::from(card.mean);
                (sum, squares) = (sum + far, squares + far * far);
                (found.min, found.max) = (found.min.min(value), found.max.max(value));
                found.values += 1;
            }
        }
        let n = found.values.max(1) as f64;
        found.mean = f64::from(card.mean) + sum / n;
        found.std = (squares / n - (sum / n).powi(2)).max(0.0).sqrt();
        found
    };
    bands.iter().enumerate().map(of_band).collect()
}

/// What speaks against `tiles`, whose bands are in the order of `bands`, as calibration of a model with that card: one line each.
///
/// # Errors
/// If they cannot calibrate at all: too few, or a band without any data.
pub fn warnings(tiles: &Tiles, bands: &[BandCard]) -> Result<Vec<String>, String> {
    let count = tiles.len();
    if count < REFUSED_BELOW {
        return Err(format!("{count} tiles are too few to calibrate: at least {REFUSED_BELOW}, better {WARNED_BELOW}"));
    }
    let mut warnings = Vec::new();
    if count < WARNED_BELOW {
        warnings.push(format!("{count} calibration tiles are few: {WARNED_BELOW} or more are advised"));
    }
    let found = statistics(tiles, bands);
    for (band, card) in found.iter().zip(bands) {
        if band.values == 0 {
            return Err(format!("band {} holds no data in any calibration tile", card.name));
        }
        let missing = band.missing as f64 / (band.missing + band.values) as f64;
        if missing > MUCH {
            warnings.push(format!(
                "band {}: {:.0} % of the calibration values are no data",
                card.name,
                100.0 * missing
            ));
        }
        if band.min == band.max {
            warnings.push(format!("band {} is {} everywhere in the calibration tiles", card.name, band.min));
        } else if let Some(what) = strange(band, card) {
            let BandStatistics { min, max, mean, std, .. } = band;
            warnings.push(format!(
                "band {}: {what}: calibration tiles hold {min} to {max}, mean {mean:.4}, deviation {std:.4}; the model card \
                 says mean {}, deviation {} ({})",
                card.name, card.mean, card.std, card.unit
            ));
        }
    }
    warnings.extend(swapped(&found, bands));
    Ok(warnings)
}

/// What is wrong with the values of one band.
fn strange(band: &BandStatistics, card: &BandCard) -> Option<&'static str> {
    let (mean, std) = (f64::from(card.mean), f64::from(card.std));
    let (far, spread) = ((band.mean - mean).abs() / std, band.std / std);
    // A factor of ten or more in both: reflectance as 0 to 1 against counts of 1 / 10000, for instance.
    let factor = [(band.mean / mean).abs(), spread].map(f64::log10);
    if factor[0].abs() > 0.9 && factor[1].abs() > 0.9 && factor[0].signum() == factor[1].signum() {
        return Some("seems to be in another unit");
    }
    if far > FAR {
        return Some("lies far from what the model was trained on");
    }
    if spread < SPREAD[0] {
        return Some("covers little of the range that the model was trained on");
    }
    (spread > SPREAD[1]).then_some("spreads wider than what the model was trained on")
}

/// A pair of bands that would each fit the other's card much better.
fn swapped(found: &[BandStatistics], bands: &[BandCard]) -> Option<String> {
    let misfit = |i: usize, j: usize| {
        let (mean, std) = (f64::from(bands[j].mean), f64::from(bands[j].std));
        ((found[i].mean - mean) / std).powi(2) + (found[i].std.max(1e-9 * std) / std).ln().powi(2)
    };
    let pairs = (0..bands.len()).flat_map(|i| (i + 1..bands.len()).map(move |j| (i, j)));
    let gain = |(i, j): (usize, usize)| (misfit(i, i) + misfit(j, j), misfit(i, j) + misfit(j, i));
    let better = pairs.map(|pair| (gain(pair), pair)).filter(|((is, other), _)| *is > 0.25 && *other < 0.25 * is);
    let (_, (i, j)) = better.max_by(|(a, _), (b, _)| (a.0 - a.1).total_cmp(&(b.0 - b.1)))?;
    Some(format!(
        "bands {} and {} look exchanged: name the order of the tiles with --bands",
        bands[i].name, bands[j].name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use nadir_formats::Pixels;

    /// Three bands like Sentinel-2's, in counts of 1 / 10000.
    fn bands() -> Vec<BandCard> {
        let band = |(name, mean, std): (&str, f32, f32)| BandCard {
            name: name.into(),
            unit: "reflectance x 10000".into(),
            mean,
            std,
            no_data: Some(0.0),
            saturation: None,
        };
        [("B4", 950.0, 400.0), ("B8", 2500.0, 900.0), ("B11", 1800.0, 700.0)].map(band).into()
    }

    /// Tiles of 8 x 8 pixels with these means and deviations.
    fn tiles(count: usize, bands: [(f64, f64); 3]) -> Tiles {
        let mut random = Random::new(7);
        let mut pixels = Vec::new();
        for (mean, std) in (0..count).flat_map(|_| bands) {
            pixels.extend((0..64).map(|_| (mean + std * random.normal()) as f32));
        }
        Tiles { shape: [count, 3, 8, 8], pixels: Pixels::F32(pixels) }
    }

    const GOOD: [(f64, f64); 3] = [(950.0, 400.0), (2500.0, 900.0), (1800.0, 700.0)];

    fn one(tiles: &Tiles, parts: &[&str]) {
        let warnings = warnings(tiles, &bands()).unwrap();
        assert!(warnings.len() == 1 && parts.iter().all(|part| warnings[0].contains(part)), "{warnings:?}");
    }

    #[test]
    fn tiles_like_the_card_are_silent() {
        assert_eq!(warnings(&tiles(WARNED_BELOW, GOOD), &bands()), Ok(vec![]));
        let found = statistics(&tiles(WARNED_BELOW, GOOD), &bands());
        assert!((found[1].mean - 2500.0).abs() < 60.0 && (found[1].std - 900.0).abs() < 40.0, "{found:?}");
        one(&tiles(WARNED_BELOW - 1, GOOD), &["127", "few"]);
        assert!(warnings(&tiles(REFUSED_BELOW - 1, GOOD), &bands()).unwrap_err().contains("too few"));
    }

    #[test]
    fn strange_tiles_are_named() {
        let with = |band: usize, value: (f64, f64)| {
            let mut bands = GOOD;
            bands[band] = value;
            tiles(WARNED_BELOW, bands)
        };
        one(&with(1, (2500.0, 0.0)), &["B8", "2500 everywhere"]);
        one(&with(0, (0.095, 0.04)), &["B4", "another unit"]);
        one(&with(2, (1800.0, 100.0)), &["B11", "little of the range", "deviation 700"]);
        one(&with(2, (6000.0, 700.0)), &["B11", "far from"]);
        one(&with(0, (950.0, 2000.0)), &["B4", "wider"]);
        // Vegetation: the near infrared where the red should be.
        let exchanged = tiles(WARNED_BELOW, [GOOD[1], GOOD[0], GOOD[2]]);
        assert!(warnings(&exchanged, &bands()).unwrap().iter().any(|w| w.contains("B4 and B8 look exchanged")));
    }

    #[test]
    fn missing_data_is_told() {
        let mut holes = tiles(WARNED_BELOW, GOOD);
        let Pixels::F32(pixels) = &mut holes.pixels else { unreachable!("made of f32") };
        for tile in pixels.chunks_exact_mut(3 * 64) {
            tile[..30].fill(f32::NAN);
            tile[30..48].fill(0.0);
        }
        one(&holes, &["B4", "75 %", "no data"]);
        let Pixels::F32(pixels) = &mut holes.pixels else { unreachable!("made of f32") };
        pixels.chunks_exact_mut(3 * 64).for_each(|tile| tile[64..128].fill(f32::NAN));
        assert!(warnings(&holes, &bands()).unwrap_err().contains("B8 holds no data"));
    }
}
