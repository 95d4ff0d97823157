//! Hashes of every map of five int8 models on 64 tiles, against which any set of kernels can be held on any processor.
//!
//! `tests/conformance/kernels.csv` is the table; `docs/integer-arithmetic.md`, section 9, says what is hashed. The models:
//!
//! | name | model | tiles |
//! | --- | --- | --- |
//! | `yocto`, `zepto` | `models/*-rgb-int8.nadir` | of `samples/eurosat-rgb` every sixth, 64 x 64 pixels, 3 bands |
//! | `raised` | `yocto` with the second pointwise layer of every block [raised](raise) | as `yocto` |
//! | `atto` | [`random_int8_model`], patch 8 | of `samples/eurosat-ms` all, their inner 56 x 56 pixels of 12 bands, then mirrored |
//! | `patchify` | [`random_int8_model`] of yocto's size, patch 32, patchify stem | of `samples/eurosat-ms` all, B2, B3, B4 and B8, then mirrored |
//!
//! The table names the CRC of each model: other models need another table (`quantize verify-kernels --update`).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nadir::encoder::{Encoder, Run, Step};
use nadir::model::{Architecture, Model, Place, StemPadding};
use nadir::plan::regions::places;
use nadir_formats::{AlignedBytes, Pixels, Tiles};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::testing::{raise, random_int8_model};

/// Models of the table.
pub const MODELS: [&str; 5] = ["yocto", "zepto", "atto", "raised", "patchify"];
/// Tiles of each.
pub const TILES: usize = 64;
/// Tiles of the table's other column, for machines that are slow or emulated.
pub const FIRST: usize = 4;
/// The table, from the repository's root.
pub const TABLE: &str = "tests/conformance/kernels.csv";

/// SHA-256 of one place's map of one tile.
pub type TileDigest = [u8; 32];

/// A model and its tiles.
pub struct Case {
    /// One of [`MODELS`].
    pub name: &'static str,
    file: AlignedBytes,
    /// In the order of the model's bands.
    pub tiles: Tiles,
}

impl Case {
    /// Reads or makes a model of [`MODELS`] and its tiles; `root` is the repository's.
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    pub fn load(root: &Path, name: &'static str) -> Result<Self> {
        match name {
            // As MMEarth's models: all bands but the cirrus band.
            "atto" => return Self::random(root, name, Architecture::named(name, 56, 8), 3, |band| band != "B10"),
            "patchify" => {
                let yocto = Architecture::named("yocto", 64, 32);
                let architecture = yocto.map(|a| Architecture { stem_padding: StemPadding::Patchify, ..a });
                return Self::random(root, name, architecture, 4, |band| ["B4", "B3", "B2", "B8"].contains(&band));
            }
            _ => {}
        }
        let path = root.join(format!("models/{}-rgb-int8.nadir", if name == "raised" { "yocto" } else { name }));
        let mut file = AlignedBytes::read(&path)?;
        let model = Model::parse(&file).with_context(|| path.display().to_string())?;
        if name == "raised" {
            let blocks: Vec<Place> =
                places(model.architecture()).filter(|place| matches!(place, Place::Block { .. })).collect();
            file = AlignedBytes::copy_of(&raise(&file, &blocks));
        }
        let all = Tiles::read(&root.join("samples/eurosat-rgb/tiles.npy"))?;
        let picked: Vec<usize> = (0..TILES).map(|i| i * all.len() / TILES).collect();
        Ok(Self { name, file, tiles: all.pick(&picked) })
    }

    /// A random model, and the inner pixels of multispectral tiles.
    fn random(
        root: &Path,
        name: &'static str,
        architecture: Option<Architecture>,
        seed: u64,
        takes: fn(&str) -> bool,
    ) -> Result<Self> {
        let architecture = architecture.context("a named size")?;
        let side = usize::from(architecture.tile_size);
        let folder = root.join("samples/eurosat-ms");
        let names = std::fs::read_to_string(folder.join("bands.txt")).context("samples/eurosat-ms/bands.txt")?;
        let present: Vec<&str> = names.trim().split(',').collect();
        let wanted: Vec<&str> = present.iter().copied().filter(|band| takes(band)).collect();
        let all = Tiles::read(&folder.join("tiles.npy"))?.select_bands(&present, &wanted)?;
        let [count, bands, height, width] = all.shape;
        let Pixels::U16(pixels) = &all.pixels else { bail!("samples/eurosat-ms/tiles.npy does not hold u16") };
        ensure!(count > 0 && height >= side && width >= side, "samples/eurosat-ms/tiles.npy: {:?}", all.shape);
        let (top, left) = ((height - side) / 2, (width - side) / 2);
        let mut cut = Vec::with_capacity(TILES * bands * side * side);
        for tile in 0..TILES {
            let mirrored = tile / count % 4;
            let turn = |i: usize, flip: bool| if flip { side - 1 - i } else { i };
            for band in 0..bands {
                for (y, x) in (0..side * side).map(|i| (i / side, i % side)) {
                    let (y, x) = (top + turn(y, mirrored & 2 != 0), left + turn(x, mirrored & 1 != 0));
                    cut.push(pixels[((tile % count * bands + band) * height + y) * width + x]);
                }
            }
        }
        let file = random_int8_model(&format!("conformance-{name}"), architecture, &wanted, seed);
        let tiles = Tiles { shape: [TILES, bands, side, side], pixels: Pixels::U16(cut) };
        Ok(Self { name, file: AlignedBytes::copy_of(&file), tiles })
    }

    /// The bytes of the model file.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// The model.
    ///
    /// # Errors
    /// Never: it was parsed before.
    pub fn model(&self) -> Result<Model<'_>> {
        Model::parse(&self.file).context(self.name)
    }
}

/// Notes the map of each place as a run leaves it.
#[derive(Default)]
pub struct Recorder {
    place: Option<Place>,
    /// One digest a place, in the order of the run.
    pub digests: Vec<(Place, TileDigest)>,
}

impl Recorder {
    /// Does one step of `run` and looks whether it ended a place.
    ///
    /// # Errors
    /// As [`Run::step`]; and if the run shows no residual map.
    pub fn step(&mut self, run: &mut Run<'_, '_>) -> Result<Step> {
        self.place = run.place();
        let step = run.step()?;
        if let Some(place) = self.place.filter(|_| run.place().is_some() && run.place() != self.place) {
            let map = run.residual().with_context(|| format!("no residual map after {place}"))?;
            let bytes: Vec<u8> = map.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.digests.push((place, Sha256::digest(bytes).into()));
        }
        Ok(step)
    }

    /// Notes the embedding once the run is over.
    pub fn finish(mut self, embedding: &[f32]) -> Vec<(Place, TileDigest)> {
        let bytes: Vec<u8> = embedding.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.digests.push((Place::Head, Sha256::digest(bytes).into()));
        self.digests
    }
}

/// Digests of one tile, a place after the other.
///
/// # Errors
/// If the tile or the model is not one that can be embedded, or not int8.
pub fn digests(encoder: &Encoder<'_>, tile: nadir::Tile<'_>) -> Result<Vec<(Place, TileDigest)>> {
    let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
    let mut embedding = vec![0.0; encoder.model().embedding_dimension()];
    let mut recorder = Recorder::default();
    let mut run = encoder.start(tile, &mut arena, &mut embedding)?;
    while recorder.step(&mut run)? == Step::More {}
    Ok(recorder.finish(&embedding))
}

/// The hashes of every place over the first `count` tiles: SHA-256 of the tiles' digests, cut to 16 bytes, in hexadecimal.
///
/// # Errors
/// As [`digests`].
pub fn hashes(encoder: &Encoder<'_>, tiles: &Tiles, count: usize) -> Result<Vec<(Place, String)>> {
    let each: Vec<_> =
        (0..count).into_par_iter().map(|i| digests(encoder, tiles.tile(i))).collect::<Result<Vec<_>>>()?;
    Ok(chain(&each))
}

/// The hashes of tiles whose digests are known.
pub fn chain(tiles: &[Vec<(Place, TileDigest)>]) -> Vec<(Place, String)> {
    let places = tiles.first().map_or(&[][..], |first| first);
    let chained = |index: usize| {
        let mut hash = Sha256::new();
        tiles.iter().for_each(|tile| hash.update(tile[index].1));
        hash.finalize()[..16].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    places.iter().enumerate().map(|(i, &(place, _))| (place, chained(i))).collect()
}

/// The committed hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    model: String,
    crc: String,
    place: String,
    first: String,
    all: String,
}

const COLUMNS: &str = "model,file_crc,place,first_4,all_64";

impl Table {
    /// Reads the table.
    ///
    /// # Errors
    /// If it is missing or malformed; the message names the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut lines = text.lines();
        ensure!(lines.next() == Some(COLUMNS), "{}: the first line must be {COLUMNS}", path.display());
        let row = |(i, line): (usize, &str)| {
            let fields: Vec<String> = line.split(',').map(str::to_owned).collect();
            let [model, crc, place, first, all] = fields.try_into().map_err(|fields: Vec<_>| {
                anyhow::anyhow!("{}: line {} has {} fields, 5 expected", path.display(), i + 2, fields.len())
            })?;
            Ok(Row { model, crc, place, first, all })
        };
        Ok(Self { rows: lines.enumerate().map(row).collect::<Result<_>>()? })
    }

    /// The table as text.
    pub fn text(&self) -> String {
        let mut out = format!("{COLUMNS}\n");
        for Row { model, crc, place, first, all } in &self.rows {
            let _ = writeln!(out, "{model},{crc},{place},{first},{all}");
        }
        out
    }

    /// The rows of `case`, computed with `encoder` over all tiles.
    ///
    /// # Errors
    /// As [`digests`].
    pub fn add(&mut self, case: &Case, encoder: &Encoder<'_>) -> Result<()> {
        let first: BTreeMap<String, String> =
            hashes(encoder, &case.tiles, FIRST)?.into_iter().map(|(place, hash)| (place.to_string(), hash)).collect();
        let crc = format!("{:08x}", encoder.model().file_crc());
        for (place, all) in hashes(encoder, &case.tiles, TILES)? {
            let place = place.to_string();
            let (model, crc) = (case.name.to_owned(), crc.clone());
            self.rows.push(Row { model, crc, first: first[&place].clone(), place, all });
        }
        Ok(())
    }

    /// Compares hashes of `case` over [`FIRST`] or all [`TILES`] tiles with the table.
    ///
    /// # Errors
    /// The first place at which they differ; or that the table was made for another model.
    pub fn check(&self, case: &Case, count: usize, found: &[(impl Display, String)]) -> Result<()> {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.model == case.name).collect();
        let crc = format!("{:08x}", case.model()?.file_crc());
        let known = rows.first().map_or("none", |row| &row.crc);
        ensure!(
            known == crc,
            "{}: the table was made for a model of CRC {known}, this one has {crc}: quantize verify-kernels --update",
            case.name
        );
        ensure!(rows.len() == found.len(), "{}: {} places, the table has {}", case.name, found.len(), rows.len());
        for (row, (place, hash)) in rows.iter().zip(found) {
            let expected = if count == FIRST { &row.first } else { &row.all };
            ensure!(
                row.place == place.to_string() && expected == hash,
                "{}: {place} is the first place that differs: {hash} over {count} tiles, {expected} in the table",
                case.name
            );
        }
        Ok(())
    }
}
