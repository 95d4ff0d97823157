//! Models, prototype tables and tiles from files. Errors name the file, what was found and what was expected.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nadir::model::Model;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::record::ValueType;
use nadir_formats::{Pixels, Tiles};

/// The model in `bytes`, which were read from `path`.
pub fn parse_model<'a>(path: &Path, bytes: &'a [u8]) -> Result<Model<'a>> {
    Model::parse(bytes).with_context(|| path.display().to_string())
}

/// The prototype table in `bytes`, read from `path`; it must be of the model's embedding space.
pub fn parse_prototypes<'a>(path: &Path, bytes: &'a [u8], model: &Model<'_>) -> Result<Prototypes<'a>> {
    let table = Prototypes::parse(bytes).with_context(|| path.display().to_string())?;
    let header = table.header();
    ensure!(
        header.embedding_space == model.embedding_space(),
        "{}: prototypes of embedding space {}, the model {} has space {}",
        path.display(),
        header.embedding_space,
        model.name(),
        model.embedding_space()
    );
    ensure!(
        usize::from(header.dimension) == model.embedding_dimension(),
        "{}: prototypes of dimension {}, the model's embeddings have {}",
        path.display(),
        header.dimension,
        model.embedding_dimension()
    );
    Ok(table)
}

/// Names of the model's bands, in its order.
pub fn band_names<'a>(model: &'a Model<'_>) -> Vec<&'a str> {
    model.bands().iter().map(|band| band.name.as_str()).collect()
}

/// Tiles from a `.npy` file, or from all `.npy` files of a folder in the order of their names, in the model's band order.
///
/// `bands` names the bands in the files, separated by commas; without it they are taken to be the model's.
pub fn read_tiles(path: &Path, model: &Model<'_>, bands: Option<&str>) -> Result<Tiles> {
    let files = if path.is_dir() { npy_files(path)? } else { vec![path.to_owned()] };
    let mut all: Option<Tiles> = None;
    for file in files {
        let tiles = read_file(&file, model, bands)?;
        match &mut all {
            None => all = Some(tiles),
            Some(all) => append(all, tiles).with_context(|| file.display().to_string())?,
        }
    }
    let all = all.with_context(|| format!("{}: no .npy file in this folder", path.display()))?;
    ensure!(u32::try_from(all.len()).is_ok(), "{}: more than {} tiles", path.display(), u32::MAX);
    Ok(all)
}

fn npy_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.extension().is_some_and(|e| e == "npy") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, model: &Model<'_>, bands: Option<&str>) -> Result<Tiles> {
    let mut tiles = Tiles::read(path)?;
    let wanted = band_names(model);
    if let Some(bands) = bands {
        let present: Vec<&str> = bands.split(',').collect();
        tiles = tiles.select_bands(&present, &wanted).with_context(|| path.display().to_string())?;
    }
    let [n, c, h, w] = tiles.shape;
    let side = usize::from(model.architecture().tile_size);
    ensure!(
        [c, h, w] == [wanted.len(), side, side],
        "{}: tiles of shape [{n}, {c}, {h}, {w}], the model takes [tiles, {}, {side}, {side}] (bands {})",
        path.display(),
        wanted.len(),
        wanted.join(",")
    );
    Ok(tiles)
}

fn append(all: &mut Tiles, more: Tiles) -> Result<()> {
    let found = more.value_type();
    match (&mut all.pixels, more.pixels) {
        (Pixels::U8(all), Pixels::U8(more)) => all.extend(more),
        (Pixels::U16(all), Pixels::U16(more)) => all.extend(more),
        (Pixels::F32(all), Pixels::F32(more)) => all.extend(more),
        _ => anyhow::bail!("pixels of type {found:?}, those of the files before have another"),
    }
    all.shape[0] += more.shape[0];
    Ok(())
}

/// The type of the pixels, as an outbox names it.
pub trait HasValueType {
    /// See [`ValueType`].
    fn value_type(&self) -> ValueType;
}

impl HasValueType for Tiles {
    fn value_type(&self) -> ValueType {
        match self.pixels {
            Pixels::U8(_) => ValueType::U8,
            Pixels::U16(_) => ValueType::U16,
            Pixels::F32(_) => ValueType::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_folder_come_in_order_and_of_one_type() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.npy", "a.npy", "c.txt", "a10.npy"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let files = npy_files(dir.path()).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.npy", "a10.npy", "b.npy"]);
        let mut all = Tiles { shape: [1, 1, 1, 2], pixels: Pixels::U8(vec![1, 2]) };
        append(&mut all, Tiles { shape: [2, 1, 1, 2], pixels: Pixels::U8(vec![3, 4, 5, 6]) }).unwrap();
        assert_eq!(all, Tiles { shape: [3, 1, 1, 2], pixels: Pixels::U8(vec![1, 2, 3, 4, 5, 6]) });
        assert!(append(&mut all, Tiles { shape: [1, 1, 1, 2], pixels: Pixels::U16(vec![1, 2]) }).is_err());
    }
}
