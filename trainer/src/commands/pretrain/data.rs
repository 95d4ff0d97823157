//! What a pretraining learns from: arrays with their tables, or a release of MMEarth.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use nadir_formats::BandCard;
use serde_json::{Value, json};

use super::super::table::TableArgs;
use super::super::{TilesArgs, extend};
use crate::data::mmearth::feed::{self, Feed};
use crate::data::mmearth::loader::Options;
use crate::data::mmearth::split::Split;
use crate::data::mmearth::{Level, Release, Rules};
use crate::data::{BandMeaning, PixelTarget, Pretext, Symmetry, band_cards, check_shape, fingerprint, names};
use crate::encoder::Encoder;
use crate::mpmae::{Target, Task};
use crate::run::{fit_norm, fit_norm_to};

/// Tiles of a release over which the final LayerNorm is fitted, at most.
const FITTED: usize = 4096;

/// Where the tiles come from, and what is predicted.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// A release folder of MMEarth, as published or packed by `trainer data pack`
    #[arg(long, value_name = "DIR", required_unless_present = "tiles", conflicts_with_all = ["tiles", "table"])]
    data: Option<PathBuf>,

    /// Tiles from anywhere: .npy [tiles, bands, side, side] of type u8, u16 or f32, values as the sensor stores them
    #[arg(long, value_name = "T.npy", requires = "bands")]
    tiles: Option<PathBuf>,

    /// A split: for --data the file of `trainer data split`, for --tiles .npy of one integer a tile (0 train, 1
    /// validation, 2 test) [default: all tiles]
    #[arg(long, value_name = "SPLIT")]
    split: Option<PathBuf>,

    /// Which parts of the split to train on: train, val, test, or the integers of an .npy [default: train]
    #[arg(long = "use", value_name = "PARTS", value_delimiter = ',', requires = "split")]
    used: Vec<String>,

    /// What the tiles are, for the model's provenance, for instance "EuroSAT RGB" [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    data_name: Option<String>,

    /// Names of the bands: with --tiles those of the tiles in their order, with --data the Sentinel-2 bands to read
    /// [default: all but B10]
    #[arg(long, value_name = "NAMES")]
    bands: Option<String>,

    /// With --data, what to predict: modalities by name, and the sets all, s2, pixel and image
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all", conflicts_with = "tiles")]
    modalities: Vec<String>,

    /// With --data, side of the random crops in pixels [default: seven eighths of the tile]
    #[arg(long, value_name = "PIXELS", conflicts_with = "tiles")]
    crop: Option<usize>,

    /// With --data, whose statistics the finished model's card carries; each training tile is normalised by those of its
    /// own level
    #[arg(long, value_name = "LEVEL", default_value = "l2a", conflicts_with = "tiles")]
    level: Level,

    /// With --data, treat missing values as MMEarth's released checkpoints were trained: docs/data.md says how
    #[arg(long, conflicts_with = "tiles")]
    as_released: bool,

    /// Bring each patch of the tiles' own target to zero mean and unit variance, as MMEarth does. Always so with --data
    #[arg(long)]
    norm_pix: bool,

    /// With --data, predict absolute values: colour and brightness tell land covers apart
    #[arg(long, conflicts_with_all = ["norm_pix", "tiles"])]
    no_norm_pix: bool,

    /// With --tiles, what a stored value counts
    #[arg(long, default_value = "stored value", conflicts_with = "data")]
    unit: String,

    /// With --tiles, the stored value that means "no data"
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true, conflicts_with = "data")]
    no_data: Option<f32>,

    /// With --tiles, the stored value at and above which the sensor is saturated
    #[arg(long, value_name = "VALUE", conflicts_with = "data")]
    saturation: Option<f32>,

    #[command(flatten)]
    table: TableArgs,

    /// With --tiles, a further pixel array to predict, aligned with the tiles; may be given several times
    #[arg(long, value_name = "NAME=F.npy:regress|NAME=F.npy:classify:K", conflicts_with = "data")]
    pixel_target: Vec<PixelTarget>,
}

/// How a run draws its tiles.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    /// Tiles in a batch.
    pub batch: usize,
    /// Batches in a step.
    pub accumulate: usize,
    /// Whether tiles are turned and mirrored.
    pub flips: bool,
    /// The seed.
    pub seed: u64,
    /// Which equal part of each batch this process does, and of how many.
    pub part: [usize; 2],
}

impl DataArgs {
    /// Opens the data and checks all that is asked of it.
    pub fn open(&self, draws: Draws) -> Result<Source> {
        match (&self.data, &self.tiles) {
            (Some(folder), _) => self.release(folder, draws),
            (None, Some(tiles)) => self.arrays(tiles),
            (None, None) => bail!("neither --data nor --tiles is given"),
        }
    }

    fn release(&self, folder: &Path, draws: Draws) -> Result<Source> {
        let release = Arc::new(Release::open(folder)?);
        let rows = match &self.split {
            None => (0..release.rows()).collect(),
            Some(path) => {
                let split = Split::read(path, release.rows())?;
                let mut rows = Vec::new();
                for part in self.parts() {
                    rows.extend(match part {
                        "train" => &split.train,
                        "val" => &split.val,
                        "test" => &split.test,
                        _ => bail!("--use {part}: is none of train, val and test"),
                    });
                }
                ensure!(!rows.is_empty(), "{}: no tile is in {}", path.display(), self.parts().join(","));
                rows.sort_unstable();
                rows.dedup();
                rows
            }
        };
        let options = Options {
            modalities: feed::modalities(&self.modalities).context("--modalities")?,
            rows,
            batch: draws.batch,
            accumulate: draws.accumulate,
            crop: self.crop.unwrap_or(release.side() * 7 / 8),
            flips: draws.flips,
            bands: self.bands.as_deref().map(|list| names("bands", list)).transpose()?,
            rules: if self.as_released { Rules::AsReleased } else { Rules::Masked },
            seed: draws.seed,
            part: draws.part,
            ..Options::of(&release)
        };
        let tiles = options.rows.len();
        let feed = Feed::new(release.clone(), options, !self.no_norm_pix)?;
        let bands = feed.band_cards(self.level)?;
        let fingerprint = feed.fingerprint();
        let what = self.data_name.clone().unwrap_or_else(|| format!("MMEarth {}", release.stem()));
        let described = format!("{what}, {tiles} tiles, rows {fingerprint}");
        let settings = json!({
            "release": release.stem(),
            "rows": fingerprint,
            "use": self.parts(),
            "modalities": feed.tasks().iter().map(|t| t.name.clone()).collect::<Vec<_>>(),
            "crop": feed.loader().options().crop,
            "level": self.level.name(),
            "as_released": self.as_released,
            "norm_pix": !self.no_norm_pix,
        });
        Ok(Source { bands, described, settings, kind: Kind::Release(RefCell::new(feed)) })
    }

    fn arrays(&self, path: &Path) -> Result<Source> {
        let code = |part: &str| match part {
            "train" => Ok(0),
            "val" => Ok(1),
            "test" => Ok(2),
            code => code.parse().with_context(|| format!("--use {code}: is no integer, train, val or test")),
        };
        let used = self.parts().iter().map(|part| code(part)).collect::<Result<Vec<i64>>>()?;
        let tiles = TilesArgs {
            tiles: path.to_owned(),
            split: self.split.clone(),
            used: used.clone(),
            data_name: self.data_name.clone(),
        };
        let (array, rows) = tiles.read()?;
        let all = array.len();
        let band_names = names("bands", self.bands.as_deref().unwrap_or_default())?;
        check_shape(&array, path, &band_names)?;
        let array = if rows.len() == all { array } else { array.pick(&rows) };
        let meaning = BandMeaning { unit: self.unit.clone(), no_data: self.no_data, saturation: self.saturation };
        let bands = band_cards(&array, &band_names, &meaning).map_err(|e| e.context(path.display().to_string()))?;
        let mut pretext = Pretext::new(array, bands.clone(), self.norm_pix);
        for target in &self.pixel_target {
            pretext.add_pixels(target, all, &rows)?;
        }
        pretext.add_images(self.table.targets(all, &rows)?)?;
        let pixels = fingerprint(pretext.tiles());
        let targets: Vec<_> =
            self.pixel_target.iter().map(|t| format!("{}={}:{:?}", t.name, t.path.display(), t.kind)).collect();
        let mut settings = json!({
            "unit": self.unit,
            "no_data": self.no_data,
            "saturation": self.saturation,
            "tiles": path,
            "pixels": pixels,
            "split": self.split,
            "use": used,
            "pixel_target": targets,
            "norm_pix": self.norm_pix,
        });
        extend(&mut settings, &self.table.settings()?);
        let described = tiles.described(rows.len(), &pixels);
        Ok(Source { bands, described, settings, kind: Kind::Arrays(pretext, rows) })
    }

    fn parts(&self) -> Vec<&str> {
        if self.used.is_empty() { vec!["train"] } else { self.used.iter().map(String::as_str).collect() }
    }

    /// The options that say what is learned, as they would be typed, files left out.
    pub fn recipe(&self) -> String {
        let mut recipe = String::new();
        if self.data.is_some() {
            recipe.push_str(&format!(" --modalities {} --level {}", self.modalities.join(","), self.level.name()));
        }
        recipe.push_str(&self.table.recipe());
        for target in &self.pixel_target {
            recipe.push_str(&format!(" --pixel-target {}", target.name));
        }
        for (option, on) in
            [("as-released", self.as_released), ("norm-pix", self.norm_pix), ("no-norm-pix", self.no_norm_pix)]
        {
            if on {
                recipe.push_str(&format!(" --{option}"));
            }
        }
        recipe
    }

    /// Whether a release is trained on.
    pub fn is_release(&self) -> bool {
        self.data.is_some()
    }
}

/// Opened data.
pub struct Source {
    /// The input bands as the model's card has them.
    pub bands: Vec<BandCard>,
    /// The data in words.
    pub described: String,
    /// What a resumed run must share.
    pub settings: Value,
    kind: Kind,
}

enum Kind {
    /// The tiles in use, and the rows of the file that they are.
    Arrays(Pretext, Vec<usize>),
    Release(RefCell<Feed>),
}

impl Source {
    /// What is predicted.
    pub fn tasks(&self) -> Vec<Task> {
        match &self.kind {
            Kind::Arrays(pretext, _) => pretext.tasks(),
            Kind::Release(feed) => feed.borrow().tasks(),
        }
    }

    /// Pixels a side of what the encoder sees.
    pub fn side(&self) -> usize {
        match &self.kind {
            Kind::Arrays(pretext, _) => pretext.tiles().shape[2],
            Kind::Release(feed) => feed.borrow().loader().options().crop,
        }
    }

    /// Tiles in use.
    pub fn tiles(&self) -> usize {
        match &self.kind {
            Kind::Arrays(_, rows) => rows.len(),
            Kind::Release(feed) => feed.borrow().loader().options().rows.len(),
        }
    }

    /// A tile in use in words.
    pub fn tile(&self, index: usize) -> String {
        match &self.kind {
            Kind::Arrays(_, rows) => rows[index].to_string(),
            Kind::Release(feed) => feed.borrow().tile(index),
        }
    }

    /// Whether the first task is to predict the input.
    pub fn predicts_input(&self) -> bool {
        match &self.kind {
            Kind::Arrays(..) => true,
            Kind::Release(feed) => feed.borrow().predicts_input(),
        }
    }

    /// Adds the task of telling `width` random features of the visible patches, of `patch` pixels a side.
    pub fn add_random_features(&mut self, patch: usize, width: usize) -> Result<()> {
        match &mut self.kind {
            Kind::Arrays(pretext, _) => pretext.add_random_features(patch, width),
            Kind::Release(_) => bail!("--random-features is for --tiles"),
        }
    }

    /// Computes what takes time, before the first batch.
    pub fn compute(&self, seed: u64) -> Result<()> {
        match &self.kind {
            Kind::Arrays(pretext, _) => pretext.compute(seed),
            Kind::Release(_) => Ok(()),
        }
    }

    /// Input and targets of this process's part of batch `number`, which consists of `draws`.
    pub fn batch(&self, number: u64, draws: &[(usize, Symmetry)], device: &Device) -> Result<(Tensor, Vec<Target>)> {
        match &self.kind {
            Kind::Arrays(pretext, _) => pretext.batch(draws, device),
            Kind::Release(feed) => {
                let mut feed = feed.borrow_mut();
                let (rows, x, targets) = feed.batch(number, device)?;
                let expected = draws.iter().map(|(index, _)| &feed.loader().options().rows[*index]);
                ensure!(rows.iter().eq(expected), "batch {number} holds other tiles than were drawn");
                Ok((x, targets))
            }
        }
    }

    /// Fits the final LayerNorm to tiles in use: all of arrays, at most 4096 of a release, spread evenly, their middles.
    pub fn fit_norm(&self, encoder: &Encoder) -> Result<()> {
        match &self.kind {
            Kind::Arrays(pretext, _) => fit_norm(encoder, pretext.tiles(), pretext.bands()),
            Kind::Release(feed) => {
                let loader = feed.borrow().loader().clone();
                let (tiles, side, bands) = (self.tiles(), self.side(), self.bands.len());
                let n = tiles.min(FITTED);
                let chosen: Vec<usize> = (0..n).map(|i| i * tiles / n).collect();
                fit_norm_to(encoder, &chosen, |chosen| {
                    let mut values = loader.middles(chosen)?;
                    values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.0);
                    Ok(Tensor::from_vec(values, (chosen.len(), bands, side, side), encoder.device())?)
                })
            }
        }
    }
}
