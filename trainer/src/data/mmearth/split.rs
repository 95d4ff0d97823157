//! Train, validation and test rows, parted by place. The release's own split has everything in `train`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nadir_formats::write_atomic;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::modality::Modality;
use super::release::Release;
use super::values::{Rules, Values};

/// What stays together in a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum By {
    /// The tiles of an ecoregion.
    Ecoregion,
    /// The tiles of a cell of a grid in latitude and longitude, of this many degrees a side.
    Grid {
        /// Degrees a side, above 0.
        degrees: f64,
    },
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ecoregion => f.write_str("ecoregion"),
            Self::Grid { degrees } => write!(f, "grid of {degrees} degrees"),
        }
    }
}

/// Rows of a release for training, validation and testing: `splits.json` as released, with how it was made if we made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// How it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// Rows to train on, ascending if made here.
    pub train: Vec<usize>,
    /// Rows to choose by.
    pub val: Vec<usize>,
    /// Rows to report on.
    pub test: Vec<usize>,
}

/// How a split was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Name of the release.
    pub release: String,
    /// What stays together, in words.
    pub by: String,
    /// Seed of the draw.
    pub seed: u64,
    /// Number of places.
    pub places: usize,
}

impl Split {
    /// Parts the tiles of a release by place, so that no place is in two parts. About `val` and `test` of the tiles (shares, 0 to 1)
    /// go there, never more. Tiles whose place is unknown are left out.
    ///
    /// The draw depends on nothing but the places, the number of tiles in each and the seed.
    ///
    /// # Errors
    /// If the release cannot be read, or a wanted part would stay empty.
    pub fn make(release: &Release, by: By, seed: u64, val: f64, test: f64) -> Result<Self> {
        let places: Vec<Option<String>> =
            (0..release.rows()).into_par_iter().map(|row| place(release, row, by)).collect::<Result<_>>()?;
        let mut members: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (row, place) in places.into_iter().enumerate() {
            if let Some(place) = place {
                members.entry(place).or_default().push(row);
            }
        }
        let made = Made { release: release.stem().to_owned(), by: by.to_string(), seed, places: members.len() };
        let tiles: usize = members.values().map(Vec::len).sum();
        let mut drawn: Vec<_> = members.into_iter().collect();
        drawn.sort_by_cached_key(|(place, _)| Sha256::digest(format!("{seed} {place}")).to_vec());
        let mut split = Self { made: Some(made), ..Self::default() };
        let room = |share: f64| (share * tiles as f64).round() as usize;
        for (_, rows) in drawn {
            let part = if split.test.len() + rows.len() <= room(test) {
                &mut split.test
            } else if split.val.len() + rows.len() <= room(val) {
                &mut split.val
            } else {
                &mut split.train
            };
            part.extend(rows);
        }
        for (name, share, part) in [("val", val, &split.val), ("test", test, &split.test)] {
            ensure!(
                share == 0.0 || !part.is_empty(),
                "{}: by {by} no place is small enough for {name}: {share} of {tiles} tiles",
                release.folder().display()
            );
        }
        ensure!(!split.train.is_empty(), "{}: no tile is left to train on", release.folder().display());
        for part in [&mut split.train, &mut split.val, &mut split.test] {
            part.sort_unstable();
        }
        Ok(split)
    }

    /// Reads a split file, the release's or one written here.
    ///
    /// # Errors
    /// If the file cannot be read, or names a row that a release of `rows` tiles does not have, or one twice.
    pub fn read(path: &Path, rows: usize) -> Result<Self> {
        let shown = path.display();
        let bytes = std::fs::read(path).with_context(|| shown.to_string())?;
        let split: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("{shown}: expected an object with lists of rows train, val and test"))?;
        let mut seen = vec![false; rows];
        for &row in split.train.iter().chain(&split.val).chain(&split.test) {
            let known = seen.get_mut(row);
            let known = known.with_context(|| format!("{shown}: names row {row} of a release of {rows} tiles"))?;
            ensure!(!std::mem::replace(known, true), "{shown}: names row {row} twice");
        }
        Ok(split)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(write_atomic(path, serde_json::to_string(self)?.as_bytes())?)
    }
}

/// Latitude and longitude of a tile in degrees, if known.
pub(super) fn coordinates(release: &Release, row: usize) -> Result<Option<(f64, f64)>> {
    let angle = |modality: Modality| -> Result<Option<f64>> {
        let mut bytes = Vec::new();
        release.read_bytes(modality.name(), row, &mut bytes)?;
        let (pairs, _) = bytes.as_chunks::<4>();
        let [sine, cosine] = [pairs[0], pairs[1]].map(|b| f64::from(f32::from_le_bytes(b)));
        Ok((sine.is_finite() && cosine.is_finite()).then(|| libm::atan2(sine, cosine).to_degrees()))
    };
    Ok(angle(Modality::Lat)?.zip(angle(Modality::Lon)?))
}

/// Name of the place of a tile, if known.
fn place(release: &Release, row: usize, by: By) -> Result<Option<String>> {
    Ok(match by {
        By::Ecoregion => match release.values(row, Modality::EcoRegion, Rules::Masked)? {
            Values::Classes(class) => class.first().filter(|c| **c >= 0).map(|c| format!("ecoregion {c}")),
            Values::Numbers(_) => None,
        },
        By::Grid { degrees } => coordinates(release, row)?.map(|(latitude, longitude)| {
            let cell = |angle: f64| (angle / degrees).floor() as i64;
            format!("cell {} {}", cell(latitude), cell(longitude))
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_and_bad_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("splits.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Split::read(&path, 3).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(read(r#"{"train": [2, 0, 1], "val": [], "test": []}"#).unwrap().train, [2, 0, 1]);
        assert!(
            read(r#"{"train": [3], "val": [], "test": []}"#).unwrap_err().contains("names row 3 of a release of 3")
        );
        assert!(read(r#"{"train": [1], "val": [1], "test": []}"#).unwrap_err().contains("names row 1 twice"));
        assert!(read(r#"{"train": [-1], "val": [], "test": []}"#).unwrap_err().contains("lists of rows train"));
        assert!(read(r#"{"train": []}"#).unwrap_err().contains("splits.json: expected an object"));
    }
}
