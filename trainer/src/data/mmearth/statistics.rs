//! Band statistics and the release's other JSON, which is not quite JSON: Python wrote NaN and infinities into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::modality::{Level, Modality};

/// Statistics of one modality, a value a channel.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct BandStatistics {
    /// Means, NaN where no tile has the band.
    #[serde(deserialize_with = "numbers")]
    pub mean: Vec<f64>,
    /// Standard deviations, NaN where no tile has the band.
    #[serde(deserialize_with = "numbers")]
    pub std: Vec<f64>,
    /// Smallest values, infinity where no tile has the band.
    #[serde(deserialize_with = "numbers")]
    pub min: Vec<f64>,
    /// Largest values, minus infinity where no tile has the band.
    #[serde(deserialize_with = "numbers")]
    pub max: Vec<f64>,
}

/// All of a release's band statistics.
#[derive(Clone, Debug)]
pub struct Statistics {
    path: PathBuf,
    modalities: BTreeMap<String, BandStatistics>,
}

impl Statistics {
    /// Reads `band_stats.json`; NaN, Infinity and -Infinity are numbers.
    ///
    /// # Errors
    /// If the file cannot be read or is not such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let modalities = serde_json::from_slice(&with_quoted_numbers(&bytes))
            .with_context(|| format!("{}: expected mean, std, min and max a modality", path.display()))?;
        Ok(Self { path: path.to_owned(), modalities })
    }

    /// Statistics of `modality` for tiles of `level`.
    ///
    /// # Errors
    /// If there are none, or not one value a channel.
    pub fn of(&self, modality: Modality, level: Level) -> Result<&BandStatistics> {
        let name = modality.statistics_name(level);
        let path = self.path.display();
        let one = self.modalities.get(&name).with_context(|| format!("{path}: has no statistics of {name}"))?;
        for (what, values) in [("mean", &one.mean), ("std", &one.std), ("min", &one.min), ("max", &one.max)] {
            let (have, wanted) = (values.len(), modality.channels());
            ensure!(have == wanted, "{path}: {name}: {what} has {have} values, expected {wanted}");
        }
        Ok(one)
    }
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let parse = |text: String| text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a number")));
    Vec::<String>::deserialize(deserializer)?.into_iter().map(parse).collect()
}

/// Python's JSON with every number in quotes, NaN, Infinity and -Infinity too: thus it is JSON, and each number can be parsed to
/// the nearest f64, which `serde_json` does not promise.
pub(super) fn with_quoted_numbers(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let token = match rest[0] {
            b'"' => {
                let mut end = 1;
                while end < rest.len() && rest[end] != b'"' {
                    end += if rest[end] == b'\\' { 2 } else { 1 };
                }
                &rest[..(end + 1).min(rest.len())]
            }
            b'0'..=b'9' | b'-' | b'N' | b'I' => {
                let part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
                &rest[..rest.iter().position(|b| !part(b)).unwrap_or(rest.len())]
            }
            _ => &rest[..1],
        };
        let number = matches!(rest[0], b'0'..=b'9' | b'-' | b'N' | b'I');
        let quote: &[u8] = if number { b"\"" } else { b"" };
        for part in [quote, token, quote] {
            out.extend_from_slice(part);
        }
        at += token.len();
    }
    out
}

/// Each tile's `S2_type` from `tile_info.json`, which may hold a million tiles; the rest is passed over.
pub(super) fn levels(path: &Path) -> Result<BTreeMap<String, Level>> {
    #[derive(Deserialize)]
    struct Tile {
        #[serde(rename = "S2_type")]
        level: String,
    }
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let tiles: BTreeMap<String, Tile> = serde_json::from_slice(&with_quoted_numbers(&bytes))
        .with_context(|| format!("{}: expected an object a tile with S2_type", path.display()))?;
    tiles
        .into_iter()
        .map(|(id, tile)| {
            let level = tile.level.parse().with_context(|| format!("{}: tile {id}", path.display()))?;
            Ok((id, level))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_strings_are_quoted() {
        let quoted = |text: &str| String::from_utf8(with_quoted_numbers(text.as_bytes())).unwrap();
        assert_eq!(quoted("[NaN, -Infinity,Infinity,-1.5e-07]"), r#"["NaN", "-Infinity","Infinity","-1.5e-07"]"#);
        assert_eq!(quoted(r#"{"a\"NaN": "1", "b": NaN, "c": null}"#), r#"{"a\"NaN": "1", "b": "NaN", "c": null}"#);
        assert_eq!(quoted("{}"), "{}");
        assert_eq!(quoted("[\"\\"), "[\"\\");
    }

    #[test]
    fn wrong_statistics_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("band_stats.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Statistics::read(&path)
        };
        let one = r#"{"aster": {"mean": [1, NaN], "std": [2.5, 1], "min": [Infinity, 0], "max": [-Infinity]}}"#;
        let statistics = read(one).unwrap();
        let error = statistics.of(Modality::Aster, Level::L1c).unwrap_err().to_string();
        assert!(error.contains("band_stats.json: aster: max has 1 values, expected 2"), "{error}");
        let error = statistics.of(Modality::Sentinel2, Level::L2a).unwrap_err().to_string();
        assert!(error.contains("no statistics of sentinel2_l2a"), "{error}");
        for bad in ["", "{\"aster\": 1}", &one.replace("2.5", "\"x\""), &one.replace("std", "sd")] {
            let error = format!("{:#}", read(bad).unwrap_err());
            assert!(error.contains("band_stats.json: expected mean, std"), "{error}");
        }
    }
}
