//! A release folder of MMEarth, as published or packed: which tiles there are, and their values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::array::{ArrayInfo, Element};
use super::hdf5::Hdf5;
use super::modality::{Kind, Level, Modality};
use super::packed::{self, Packed};
use super::statistics::{Statistics, levels};
use super::values::{Rules, Values, Window, append};
use crate::data::AS_IS;

/// The dataset with a tile's name and level.
pub(super) const METADATA: &str = "metadata";
/// What stands beside the pixels in a release folder.
pub(super) const JSON_FILES: [&str; 3] = ["_band_stats.json", "_splits.json", "_tile_info.json"];

/// Tiles of a release folder: `data_*.h5` with its three JSON files (1M, 64 and 100k, v000 and v001), or what `trainer data pack`
/// made of them. Rows can be read from many threads at once.
pub struct Release {
    folder: PathBuf,
    stem: String,
    rows: usize,
    side: usize,
    ids: Vec<String>,
    levels: Vec<Level>,
    statistics: Statistics,
    store: Store,
}

enum Store {
    Hdf5(Hdf5),
    Packed(Packed),
}

impl Store {
    fn path(&self) -> PathBuf {
        match self {
            Self::Hdf5(file) => file.path().to_owned(),
            Self::Packed(packed) => packed.folder().to_owned(),
        }
    }

    fn arrays(&self) -> BTreeMap<String, ArrayInfo> {
        match self {
            Self::Hdf5(file) => file.arrays(),
            Self::Packed(packed) => packed.arrays().clone(),
        }
    }

    fn read_all(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Self::Hdf5(file) => file.read_all(name),
            Self::Packed(packed) => packed.read_all(name),
        }
    }
}

impl Release {
    /// Opens a folder and checks that it holds what a release holds: the three JSON files, twelve modalities and `metadata`, each of
    /// the right type and shape.
    ///
    /// # Errors
    /// If anything is missing, double, cut off or of another type or shape; the error names file, dataset and what was expected.
    pub fn open(folder: &Path) -> Result<Self> {
        ensure!(folder.is_dir(), "{}: is no folder, expected a release of MMEarth or a packed one", folder.display());
        let packed = folder.join(packed::MANIFEST).exists();
        if !packed && folder.join(packed::JOURNAL).exists() {
            bail!("{}: is only partly packed; run trainer data pack again to finish it", folder.display());
        }
        let (stem, store) = if packed {
            let packed = Packed::open(folder)?;
            (packed.stem().to_owned(), Store::Packed(packed))
        } else {
            let path = find_one(folder, ".h5")?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let file = Hdf5::open(&path)?;
            file.check_unread(|name| name == METADATA || Modality::ALL.iter().any(|m| m.name() == name))?;
            (stem, Store::Hdf5(file))
        };
        let [statistics, _, tile_info] = JSON_FILES.map(|suffix| find_one(folder, suffix));
        let (statistics, tile_info) = (Statistics::read(&statistics?)?, tile_info?);
        find_one(folder, JSON_FILES[1])?;

        let path = store.path();
        let arrays = store.arrays();
        let (rows, side) = check_arrays(&path, &arrays)?;
        let Some(Element::Record { strings: fields, .. }) = arrays.get(METADATA).map(|a| &a.element) else {
            bail!("{}: dataset {METADATA} is no record, expected tile_id and S2_type", path.display());
        };
        let id_field = fields
            .first()
            .with_context(|| format!("{}: dataset {METADATA} has no string, expected tile_id", path.display()))?;
        let level_field = fields.iter().find(|f| f.name == "S2_type");
        let metadata = store.read_all(METADATA)?;
        let size = arrays[METADATA].row_bytes();
        let text = |row: usize, at: &super::array::RecordField| -> Result<String> {
            let bytes = &metadata[row * size..][at.offset..at.offset + at.size];
            let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            let text = std::str::from_utf8(&bytes[..end]);
            Ok(text.with_context(|| format!("{}: dataset {METADATA}, row {row}", path.display()))?.to_owned())
        };
        let ids: Vec<String> = (0..rows).map(|row| text(row, id_field)).collect::<Result<_>>()?;
        let levels: Vec<Level> = if let Some(field) = level_field {
            let level = |row| text(row, field)?.parse().with_context(|| format!("dataset {METADATA}, row {row}"));
            (0..rows).map(level).collect::<Result<_>>().with_context(|| path.display().to_string())?
        } else {
            // The older metadata has the name only.
            let known = levels(&tile_info)?;
            let level = |id: &String| {
                let level = known.get(id).copied();
                level.with_context(|| {
                    format!("{}: has no tile {id:?}, which {} names", tile_info.display(), path.display())
                })
            };
            ids.iter().map(level).collect::<Result<_>>()?
        };
        Ok(Self { folder: folder.to_owned(), stem, rows, side, ids, levels, statistics, store })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The release's name, for instance `data_100k_v001`.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// Number of tiles.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Pixels a side of every tile.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Whether this is a packed folder.
    pub fn is_packed(&self) -> bool {
        matches!(self.store, Store::Packed(_))
    }

    /// The tile's name, the key into `tile_info.json`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn id(&self, row: usize) -> &str {
        &self.ids[row]
    }

    /// Level of the tile's Sentinel-2 image.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn level(&self, row: usize) -> Level {
        self.levels[row]
    }

    /// The release's band statistics.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The arrays by name.
    pub fn arrays(&self) -> BTreeMap<String, ArrayInfo> {
        self.store.arrays()
    }

    /// The modalities that the release holds.
    pub fn modalities(&self) -> Vec<Modality> {
        let arrays = self.store.arrays();
        Modality::ALL.into_iter().filter(|m| arrays.contains_key(m.name())).collect()
    }

    /// Fails if there is no such row.
    ///
    /// # Errors
    /// As said; it names the folder and the rows that there are.
    pub fn check_row(&self, row: usize) -> Result<()> {
        let folder = self.folder.display();
        ensure!(row < self.rows, "{folder}: has no row {row}; it has {} tiles, rows 0 to {}", self.rows, self.rows - 1);
        Ok(())
    }

    /// Puts the stored bytes (little-endian) of one row of any array into `out`.
    ///
    /// # Errors
    /// If there is no such row or array, or the bytes are damaged.
    pub fn read_bytes(&self, name: &str, row: usize, out: &mut Vec<u8>) -> Result<()> {
        self.check_row(row)?;
        match &self.store {
            Store::Hdf5(file) => file.read_row(name, row, out),
            Store::Packed(packed) => packed.read_row(name, row, out),
        }
    }

    /// Appends a tile's values to `out`, `[channels, window.side, window.side]` or `[channels]`; `channels` are indices of stored
    /// channels and do not matter for classes. `raw` is room for the stored bytes.
    ///
    /// # Errors
    /// If the row cannot be read or there are no statistics for it.
    ///
    /// # Panics
    /// If the window leaves the tile, there is no such channel, or `out` is of another kind than the modality.
    pub fn append_values(
        &self,
        row: usize,
        modality: Modality,
        channels: &[usize],
        window: Window,
        rules: Rules,
        raw: &mut Vec<u8>,
        out: &mut Values,
    ) -> Result<()> {
        self.read_bytes(modality.name(), row, raw)?;
        let statistics = match modality.kind() {
            Kind::Numbers => Some(self.statistics.of(modality, self.level(row))?),
            _ => None,
        };
        append(modality, raw, self.side, channels, window, statistics, rules, out);
        Ok(())
    }

    /// All of a tile's values: numbers `[channels, side, side]` or `[channels]`; classes `[side, side]` or one.
    ///
    /// # Errors
    /// If the row cannot be read or there are no statistics for it.
    pub fn values(&self, row: usize, modality: Modality, rules: Rules) -> Result<Values> {
        let channels: Vec<usize> = (0..modality.channels()).collect();
        let window = Window { top: 0, left: 0, side: self.side, symmetry: AS_IS };
        let mut out = Values::empty(modality);
        self.append_values(row, modality, &channels, window, rules, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    /// Fails if the HDF5 file holds a dataset that cannot be read as one row a tile, and so cannot be packed.
    pub(super) fn check_all_readable(&self) -> Result<()> {
        match &self.store {
            Store::Hdf5(file) => file.check_unread(|_| true),
            Store::Packed(_) => Ok(()),
        }
    }

    /// Length of the HDF5 file in bytes, if this is not a packed folder.
    pub(super) fn source_bytes(&self) -> Result<u64> {
        let path = self.store.path();
        Ok(std::fs::metadata(&path).with_context(|| path.display().to_string())?.len())
    }
}

/// The one file `data_*SUFFIX` of a folder.
pub(super) fn find_one(folder: &Path, suffix: &str) -> Result<PathBuf> {
    let shown = folder.display();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| shown.to_string())? {
        let name = entry.with_context(|| shown.to_string())?.file_name().to_string_lossy().into_owned();
        if name.starts_with("data_") && name.ends_with(suffix) {
            found.push(name);
        }
    }
    found.sort();
    match &found[..] {
        [one] => Ok(folder.join(one)),
        [] => bail!("{shown}: has no file data_*{suffix}"),
        many => bail!("{shown}: has {} files data_*{suffix} ({}), expected one", many.len(), many.join(", ")),
    }
}

/// Number of tiles and pixels a side, from the arrays, all of which must agree.
fn check_arrays(path: &Path, arrays: &BTreeMap<String, ArrayInfo>) -> Result<(usize, usize)> {
    let shown = path.display();
    let s2 = arrays.get("sentinel2").with_context(|| format!("{shown}: dataset sentinel2 is missing"))?;
    let &[_, height, width] = &s2.row_shape[..] else {
        bail!("{shown}: dataset sentinel2 is {s2}, expected u16 [tiles, 13, side, side]");
    };
    ensure!(s2.rows > 0 && height > 0, "{shown}: dataset sentinel2 is {s2}: it holds no pixel");
    ensure!(height == width, "{shown}: dataset sentinel2 is {s2}, expected square tiles");
    for (index, modality) in Modality::ALL.into_iter().enumerate() {
        let expected = modality.expected(s2.rows, height);
        match arrays.get(modality.name()) {
            Some(found) => {
                ensure!(*found == expected, "{shown}: dataset {modality} is {found}, expected {expected}");
            }
            None if index < Modality::TASKS => {
                bail!("{shown}: dataset {modality} is missing, expected {expected}");
            }
            None => {}
        }
    }
    let metadata = arrays.get(METADATA).with_context(|| format!("{shown}: dataset {METADATA} is missing"))?;
    let fits = metadata.rows == s2.rows && metadata.row_shape.is_empty();
    ensure!(fits, "{shown}: dataset {METADATA} has shape {:?}, expected [{}]", metadata.shape(), s2.rows);
    Ok((s2.rows, height))
}
