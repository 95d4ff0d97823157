//! What MMEarth's modalities are: datasets, channels, units and what marks a missing value.

use std::fmt;
use std::str::FromStr;

use anyhow::{anyhow, ensure};

use super::array::{ArrayInfo, Element};

/// A modality, named as its dataset. The first twelve are MMEarth's tasks in their order; the last three describe clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Modality {
    /// Reflectance x 10000, 13 bands, L1C or L2A.
    Sentinel2,
    /// Backscatter in dB: VV, VH, HH, HV of the ascending, then of the descending pass.
    Sentinel1,
    /// Elevation in metres, slope in degrees.
    Aster,
    /// Temperatures in kelvin and precipitation in metres of the previous month, this month and the year.
    Era5,
    /// Land cover of Dynamic World, 9 classes.
    DynamicWorld,
    /// Canopy height and its standard deviation in metres.
    CanopyHeightEth,
    /// Sine and cosine of the latitude.
    Lat,
    /// Sine and cosine of the longitude.
    Lon,
    /// Biome, 14 classes, one-hot.
    Biome,
    /// Ecoregion, 846 classes, one-hot.
    EcoRegion,
    /// Sine and cosine of 2 pi month / 12, month from 1.
    Month,
    /// Land cover of ESA WorldCover, 11 classes.
    EsaWorldcover,
    /// The cloud bits QA60.
    Sentinel2Cloudmask,
    /// Cloud probability in per cent (L2A only). The name is the release's.
    Sentinel2Cloudprod,
    /// Scene classification, 12 classes (L2A only).
    Sentinel2Scl,
}

/// How a stored value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Numbers, normalised to `(value - mean) / std`.
    Numbers,
    /// A class a pixel, 0 to `classes - 1`.
    PixelClasses {
        /// Number of classes.
        classes: usize,
    },
    /// One class a tile, stored one-hot.
    OneHot {
        /// Number of classes.
        classes: usize,
    },
}

/// Which stored value means "no data".
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missing {
    /// None: every value counts.
    Never,
    /// This one.
    Value(f64),
    /// NaN and the infinities.
    NotFinite,
}

impl Missing {
    /// Whether `value` is missing.
    #[inline]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::Never => false,
            Self::Value(marker) => value == marker,
            Self::NotFinite => !value.is_finite(),
        }
    }
}

const S2: [&str; 13] = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B8", "B9", "B10", "B11", "B12"];
const S1: [&str; 8] = ["asc_VV", "asc_VH", "asc_HH", "asc_HV", "desc_VV", "desc_VH", "desc_HH", "desc_HV"];
const ERA5: [&str; 12] = [
    "prev_month_avg_temp",
    "prev_month_min_temp",
    "prev_month_max_temp",
    "prev_month_total_precip",
    "curr_month_avg_temp",
    "curr_month_min_temp",
    "curr_month_max_temp",
    "curr_month_total_precip",
    "year_avg_temp",
    "year_min_temp",
    "year_max_temp",
    "year_total_precip",
];
/// The classes of ESA WorldCover and the values that mean them.
const ESA: [(u8, &str); 11] = [
    (10, "tree cover"),
    (20, "shrubland"),
    (30, "grassland"),
    (40, "cropland"),
    (50, "built-up"),
    (60, "bare or sparse"),
    (70, "snow and ice"),
    (80, "permanent water"),
    (90, "herbaceous wetland"),
    (95, "mangroves"),
    (100, "moss and lichen"),
];
const DYNAMIC_WORLD: [&str; 9] =
    ["water", "trees", "grass", "flooded vegetation", "crops", "shrub and scrub", "built", "bare", "snow and ice"];
const BIOMES: [&str; 14] = [
    "tundra",
    "tropical moist broadleaf",
    "mediterranean",
    "deserts",
    "temperate grasslands",
    "boreal forest",
    "temperate conifer",
    "temperate broadleaf",
    "montane grasslands",
    "mangroves",
    "flooded grasslands",
    "tropical grasslands",
    "tropical dry broadleaf",
    "tropical conifer",
];

impl Modality {
    /// All modalities.
    pub const ALL: [Self; 15] = [
        Self::Sentinel2,
        Self::Sentinel1,
        Self::Aster,
        Self::Era5,
        Self::DynamicWorld,
        Self::CanopyHeightEth,
        Self::Lat,
        Self::Lon,
        Self::Biome,
        Self::EcoRegion,
        Self::Month,
        Self::EsaWorldcover,
        Self::Sentinel2Cloudmask,
        Self::Sentinel2Cloudprod,
        Self::Sentinel2Scl,
    ];

    /// MMEarth's twelve tasks, which every release must hold.
    pub const TASKS: usize = 12;

    /// The dataset's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sentinel2 => "sentinel2",
            Self::Sentinel1 => "sentinel1",
            Self::Aster => "aster",
            Self::Era5 => "era5",
            Self::DynamicWorld => "dynamic_world",
            Self::CanopyHeightEth => "canopy_height_eth",
            Self::Lat => "lat",
            Self::Lon => "lon",
            Self::Biome => "biome",
            Self::EcoRegion => "eco_region",
            Self::Month => "month",
            Self::EsaWorldcover => "esa_worldcover",
            Self::Sentinel2Cloudmask => "sentinel2_cloudmask",
            Self::Sentinel2Cloudprod => "sentinel2_cloudprod",
            Self::Sentinel2Scl => "sentinel2_scl",
        }
    }

    /// Type of the stored values.
    pub fn element(self) -> Element {
        match self {
            Self::Sentinel2 | Self::Sentinel2Cloudmask | Self::Sentinel2Cloudprod | Self::EcoRegion => Element::U16,
            Self::Sentinel1 | Self::Era5 | Self::Lat | Self::Lon | Self::Month => Element::F32,
            Self::Aster => Element::I16,
            Self::CanopyHeightEth => Element::I8,
            Self::DynamicWorld | Self::Biome | Self::EsaWorldcover | Self::Sentinel2Scl => Element::U8,
        }
    }

    /// Names of the stored channels; empty for one-hot modalities, whose channels are classes.
    pub fn channel_names(self) -> &'static [&'static str] {
        match self {
            Self::Sentinel2 => &S2,
            Self::Sentinel1 => &S1,
            Self::Aster => &["elevation", "slope"],
            Self::Era5 => &ERA5,
            Self::DynamicWorld => &["label"],
            Self::CanopyHeightEth => &["height", "std"],
            Self::Lat | Self::Lon | Self::Month => &["sin", "cos"],
            Self::Biome | Self::EcoRegion => &[],
            Self::EsaWorldcover => &["Map"],
            Self::Sentinel2Cloudmask => &["QA60"],
            Self::Sentinel2Cloudprod => &["MSK_CLDPRB"],
            Self::Sentinel2Scl => &["SCL"],
        }
    }

    /// Number of stored channels.
    pub fn channels(self) -> usize {
        match self.kind() {
            Kind::OneHot { classes } => classes,
            _ => self.channel_names().len(),
        }
    }

    /// How the values are read.
    pub fn kind(self) -> Kind {
        match self {
            Self::DynamicWorld => Kind::PixelClasses { classes: DYNAMIC_WORLD.len() },
            Self::EsaWorldcover => Kind::PixelClasses { classes: ESA.len() },
            Self::Sentinel2Scl => Kind::PixelClasses { classes: 12 },
            Self::Biome => Kind::OneHot { classes: BIOMES.len() },
            Self::EcoRegion => Kind::OneHot { classes: 846 },
            _ => Kind::Numbers,
        }
    }

    /// Whether there is a value a pixel rather than a tile.
    pub fn per_pixel(self) -> bool {
        !matches!(self, Self::Era5 | Self::Lat | Self::Lon | Self::Biome | Self::EcoRegion | Self::Month)
    }

    /// The stored number that means "no data", for [`Kind::Numbers`].
    ///
    /// Canopy height: the source's 255 does not fit into the release's i8 and was saturated to 127.
    pub fn missing(self) -> Missing {
        match self {
            Self::Sentinel2 => Missing::Value(0.0),
            Self::Sentinel1 | Self::Era5 | Self::Lat | Self::Lon | Self::Month => Missing::NotFinite,
            Self::CanopyHeightEth => Missing::Value(127.0),
            Self::Sentinel2Cloudmask | Self::Sentinel2Cloudprod => Missing::Value(65535.0),
            _ => Missing::Never,
        }
    }

    /// The class that a stored value of a [`Kind::PixelClasses`] modality means, -1 if none.
    pub fn class(self, stored: u8) -> i64 {
        match self {
            Self::DynamicWorld if (1..=9).contains(&stored) => i64::from(stored) - 1,
            Self::EsaWorldcover => ESA.iter().position(|(code, _)| *code == stored).map_or(-1, |class| class as i64),
            Self::Sentinel2Scl if stored < 12 => i64::from(stored),
            _ => -1,
        }
    }

    /// Name of a class, where classes have names.
    pub fn class_name(self, class: usize) -> Option<&'static str> {
        match self {
            Self::DynamicWorld => DYNAMIC_WORLD.get(class).copied(),
            Self::EsaWorldcover => ESA.get(class).map(|(_, name)| *name),
            Self::Biome => BIOMES.get(class).copied(),
            _ => None,
        }
    }

    /// The statistics' name in `band_stats.json`, for tiles of this level.
    pub fn statistics_name(self, level: Level) -> String {
        match self {
            Self::Sentinel2 | Self::Sentinel2Cloudmask | Self::Sentinel2Cloudprod => {
                format!("{}_{}", self.name(), level.name())
            }
            _ => self.name().to_owned(),
        }
    }

    /// The array that a release of `rows` tiles of `side` x `side` pixels holds.
    pub fn expected(self, rows: usize, side: usize) -> ArrayInfo {
        let row_shape = if self.per_pixel() { vec![self.channels(), side, side] } else { vec![self.channels()] };
        ArrayInfo { element: self.element(), rows, row_shape }
    }
}

impl fmt::Display for Modality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Modality {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let known = Self::ALL.into_iter().find(|m| m.name() == text);
        known.ok_or_else(|| anyhow!("{text:?} is no modality; there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Processing level of a tile's Sentinel-2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// Top of the atmosphere
    L1c,
    /// At the surface, without band B10
    L2a,
}

impl Level {
    /// As in `S2_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::L1c => "l1c",
            Self::L2a => "l2a",
        }
    }
}

impl FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let level = [Self::L1c, Self::L2a].into_iter().find(|l| l.name() == text);
        ensure!(level.is_some(), "S2_type is {text:?}, expected \"l1c\" or \"l2a\"");
        Ok(level.unwrap_or(Self::L1c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_classes() {
        for modality in Modality::ALL {
            assert_eq!(modality.name().parse::<Modality>().unwrap(), modality);
        }
        assert!("sentinel3".parse::<Modality>().unwrap_err().to_string().contains("sentinel2, sentinel1"));
        let dw: Vec<i64> = (0..=10).map(|v| Modality::DynamicWorld.class(v)).collect();
        assert_eq!(dw, [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, -1]);
        let esa: Vec<i64> = [0, 10, 15, 90, 95, 100, 255].map(|v| Modality::EsaWorldcover.class(v)).into();
        assert_eq!(esa, [-1, 0, -1, 8, 9, 10, -1]);
        assert_eq!(Modality::Sentinel2.channel_names()[7..9], ["B8A", "B8"]);
        assert_eq!(Modality::Sentinel2.statistics_name(Level::L2a), "sentinel2_l2a");
    }
}
