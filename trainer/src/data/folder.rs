//! A dataset in a folder: `tiles.npy`, `labels.npy`, `split.npy`, and `dataset.json`, which says what they are.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nadir_formats::{Tiles, write_integers, write_npy};
use serde::{Deserialize, Serialize};

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What the data are.
    pub name: String,
    /// The bands, in the order of the tiles.
    pub bands: Vec<String>,
    /// The classes, in the order of their labels.
    pub classes: Option<Vec<String>>,
    /// The class of a pixel that means "not known".
    pub ignore_label: Option<i64>,
    /// What the stored values count.
    pub unit: String,
    /// What was corrected on the way from the source, one sentence each.
    pub corrections: Vec<String>,
}

impl Description {
    /// Reads it from the folder.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("dataset.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: no dataset folder; `trainer data eurosat` and `geobench` make one", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// Labels as the folder stores them.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// A class a tile.
    Classes(Vec<i64>),
    /// Zeros and ones, row-major, for so many classes.
    Multi(Vec<u8>, usize),
    /// A class a pixel, row-major.
    Map(Vec<u8>),
}

/// Writes a dataset into `folder`, which must be empty or absent; `dataset.json` last, so that a half-written folder is none.
///
/// # Errors
/// If the folder has content or cannot be written.
pub fn write(folder: &Path, about: &Description, tiles: &Tiles, labels: &Stored, split: &[i64]) -> Result<()> {
    let n = tiles.len() as u64;
    tiles.write(&folder.join("tiles.npy"))?;
    let path = folder.join("labels.npy");
    match labels {
        Stored::Classes(of) => write_integers(&path, of)?,
        Stored::Multi(of, classes) => write_npy(&path, &[n, *classes as u64], of)?,
        Stored::Map(of) => write_npy(&path, &[n, tiles.shape[2] as u64, tiles.shape[3] as u64], of)?,
    }
    write_integers(&folder.join("split.npy"), split)?;
    let text = serde_json::to_string_pretty(about)? + "\n";
    Ok(nadir_formats::write_atomic(&folder.join("dataset.json"), text.as_bytes())?)
}

/// Makes `folder`, or sees that it is empty.
///
/// # Errors
/// If it has content or cannot be made.
pub fn prepare(folder: &Path) -> Result<()> {
    let shown = || folder.display().to_string();
    std::fs::create_dir_all(folder).with_context(shown)?;
    ensure!(std::fs::read_dir(folder).with_context(shown)?.next().is_none(), "{}: is not empty", shown());
    Ok(())
}
