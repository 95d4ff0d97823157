//! The Sentinel-2 bands of MMEarth and their statistics, and the colours of ImageNet.

use anyhow::{Context, Result, bail};
use nadir_formats::{BandCard, canonical_band};

use crate::data::mmearth::Level;

/// MMEarth's twelve bands in its order: B8A stands before B8, and there is no B10.
pub const TWELVE: [&str; 12] = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B11", "B12"];
/// The three bands of its `rgb` checkpoints, in their order: blue, green, red.
pub const THREE: [&str; 3] = ["B2", "B3", "B4"];

/// Mean and standard deviation at level 2A and at level 1C, of reflectance x 10000 without zeros.
///
/// Source: MMEarth's `band_stats.json`, dataset version v001.
#[rustfmt::skip]
#[allow(clippy::excessive_precision, reason = "the figures as published")]
const STATISTICS: [(&str, f64, f64, f64, f64); 12] = [
    ("B1", 1349.3977794889083, 2340.2916479338087, 1864.880176877408, 1520.0684839687428),
    ("B2", 1479.9521800379623, 2375.872101251672, 1656.9923384425733, 1575.4239525583005),
    ("B3", 1720.3688077425966, 2256.8997709659416, 1561.2433627865414, 1474.3747757041376),
    ("B4", 1899.1848715975957, 2354.181051828758, 1633.6041005007844, 1734.9206729983894),
    ("B5", 2253.9309600057886, 2292.99569489449, 1846.642924880421, 1697.1412804437439),
    ("B6", 2808.2001963620132, 2033.2166835293804, 2422.1354550099322, 1584.959816138674),
    ("B7", 3003.424149045887, 1920.1736418230105, 2706.1684786306714, 1577.9910344404889),
    ("B8A", 3149.5364927329806, 1816.6152354201365, 2907.509651871235, 1560.2251591506092),
    ("B8", 3110.840562275062, 1988.1938283738782, 2620.484567631748, 1519.2164490452863),
    ("B9", 3213.7636154015954, 1947.9031620588928, 974.4786592695265, 823.3855623314192),
    ("B11", 2399.086213373806, 1473.224812450967, 2154.0573745085508, 1311.5885770761618),
    ("B12", 1811.7986415136786, 1390.6781165633136, 1464.8020890030184, 1140.1057025823181),
];

/// ImageNet's red, green and blue by the names of Sentinel-2's bands of these colours, with mean and standard deviation of values from
/// 0 to 1, which all models trained on ImageNet share.
pub const IMAGENET: [(&str, f64, f64); 3] = [("B4", 0.485, 0.229), ("B3", 0.456, 0.224), ("B2", 0.406, 0.225)];

/// The cards of ImageNet's colours, in grey levels from 0 to 255; every level is data.
pub(super) fn imagenet() -> Vec<BandCard> {
    let card = |(name, mean, std): (&str, f64, f64)| BandCard {
        name: name.into(),
        unit: "grey level".into(),
        mean: (255.0 * mean) as f32,
        std: (255.0 * std) as f32,
        no_data: None,
        saturation: None,
    };
    IMAGENET.map(card).into()
}

/// The cards of an encoder's bands with MMEarth's statistics: those named, or MMEarth's if it takes 12 or 3.
///
/// # Errors
/// If their number is not the encoder's, or MMEarth has no statistics of one.
pub(super) fn cards(count: usize, named: Option<&[String]>, level: Level) -> Result<Vec<BandCard>> {
    let names: Vec<String> = match (named, count) {
        (Some(names), _) => names.iter().map(|n| canonical_band(n)).collect(),
        (None, 12) => TWELVE.map(str::to_owned).into(),
        (None, 3) => THREE.map(str::to_owned).into(),
        (None, n) => bail!(
            "the encoder takes {n} bands, MMEarth's take 12 ({}) or 3 ({}); name them with --bands if they are others",
            TWELVE.join(","),
            THREE.join(",")
        ),
    };
    if names.len() != count {
        bail!("the encoder takes {count} bands, {} are named ({})", names.len(), names.join(","));
    }
    let card = |name: String| {
        let found = STATISTICS.iter().find(|(band, ..)| *band == name);
        let &(_, mean_2a, std_2a, mean_1c, std_1c) = found.with_context(|| {
            format!("band {name}: is none of those whose statistics MMEarth gives ({})", TWELVE.join(","))
        })?;
        let (mean, std) = match level {
            Level::L2a => (mean_2a, std_2a),
            Level::L1c => (mean_1c, std_1c),
        };
        let unit = "reflectance x 10000".to_owned();
        Ok(BandCard { name, unit, mean: mean as f32, std: std as f32, no_data: Some(0.0), saturation: None })
    };
    names.into_iter().map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_is_red_first() {
        let cards = imagenet();
        assert_eq!(cards.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["B4", "B3", "B2"]);
        // As MMSegmentation and others write them: 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375.
        for (card, (mean, std)) in cards.iter().zip([(123.675, 58.395), (116.28, 57.12), (103.53, 57.375)]) {
            assert_eq!((card.mean, card.std), (mean, std));
        }
    }

    #[test]
    fn bands_and_statistics_stand_in_mmearths_order() {
        assert_eq!(STATISTICS.map(|s| s.0), TWELVE);
        let nine = |level| cards(12, None, level).unwrap()[9].clone();
        assert_eq!(
            (nine(Level::L2a).name.as_str(), nine(Level::L2a).mean, nine(Level::L1c).mean),
            ("B9", 3213.7637, 974.47866)
        );
        assert_eq!(cards(3, None, Level::L1c).unwrap()[0].name, "B2");
        let named = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| n.to_string()).collect();
            cards(2, Some(&names), Level::L2a).map_err(|e| e.to_string())
        };
        assert_eq!(named(&["b08", "B04"]).unwrap()[0].name, "B8");
        assert!(named(&["B4", "B10"]).unwrap_err().contains("band B10"));
        assert!(named(&["B4"]).unwrap_err().contains("takes 2 bands, 1 are named"));
        assert!(cards(13, None, Level::L2a).unwrap_err().to_string().contains("takes 13 bands, MMEarth's take 12"));
    }
}
