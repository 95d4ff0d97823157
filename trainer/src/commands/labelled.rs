//! Tiles with labels, as `probe` and `finetune` take them.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nadir_formats::{BandCard, ModelCard, Tiles, canonical_band, read_integers};
use serde::Serialize;

use crate::data::folder::Description;
use crate::data::{BandMeaning, Labels, band_cards, names};
use crate::encoder::Encoder;
use crate::finetune::net::for_side;
use crate::probe::Split;

/// Where tiles, labels and split are.
#[derive(Debug, Args)]
pub(super) struct LabelledArgs {
    /// A folder with tiles.npy, labels.npy, split.npy and dataset.json, as `trainer data eurosat` and `geobench` write it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tiles", "labels", "split", "bands", "names"])]
    pub data: Option<PathBuf>,

    /// The tiles: .npy [tiles, bands, side, side] of type u8, u16 or f32, values as the sensor stores them
    #[arg(long, value_name = "T.npy")]
    pub tiles: Option<PathBuf>,

    /// Labels: .npy; integers [tiles] are a class a tile, zeros and ones [tiles, classes] several, integers
    /// [tiles, side, side] a class a pixel, floats of these shapes numbers (NaN is missing)
    #[arg(long, value_name = "L.npy")]
    pub labels: Option<PathBuf>,

    /// The split: .npy of one integer a tile (0 train, 1 validation, 2 test, -1 not used)
    #[arg(long, value_name = "S.npy")]
    pub split: Option<PathBuf>,

    /// Names of the tiles' bands, in their order [default: the model's]
    #[arg(long, value_name = "NAMES")]
    pub bands: Option<String>,

    /// Names of the classes, in the order of their labels
    #[arg(long, value_name = "NAMES")]
    pub names: Option<String>,

    /// The class of pixels that means "not known"
    #[arg(long, value_name = "N")]
    pub ignore_label: Option<i64>,

    /// Which statistics bring the bands to zero mean and unit variance
    #[arg(long, value_enum, default_value = "model")]
    pub normalise: Normalise,
}

/// Whose band statistics apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Normalise {
    /// The model's own, as it was pretrained: for tiles in the same unit
    Model,
    /// Those of the training tiles: for tiles in another unit, and what MMEarth does with GEO-Bench
    Data,
}

/// Tiles with labels.
pub(super) struct Labelled {
    pub name: String,
    pub path: PathBuf,
    pub tiles: Tiles,
    pub bands: Option<Vec<String>>,
    pub labels: Labels,
    pub split: Split,
    normalise: Normalise,
}

impl LabelledArgs {
    /// The path of an option, or of its file in the folder.
    pub fn path(&self, option: &str, own: &Option<PathBuf>) -> Result<PathBuf> {
        match (own, &self.data) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(folder)) => Ok(folder.join(format!("{option}.npy"))),
            (None, None) => bail!("--{option} is missing; give --tiles, --labels and --split, or --data"),
        }
    }

    /// The split, for `tiles` tiles.
    pub fn read_split(&self, tiles: usize) -> Result<Split> {
        let path = self.path("split", &self.split)?;
        let codes = read_integers(&path)?;
        let shown = path.display();
        ensure!(codes.len() == tiles, "{shown}: has {} entries for {tiles} tiles", codes.len());
        Split::new(&codes).map_err(anyhow::Error::msg).with_context(|| shown.to_string())
    }

    /// Reads all.
    pub fn read(&self) -> Result<Labelled> {
        let path = self.path("tiles", &self.tiles)?;
        let tiles = Tiles::read(&path)?;
        let [n, _, height, width] = tiles.shape;
        ensure!(height == width, "{}: tiles of {height} x {width} pixels are not square", path.display());
        let about = self.data.as_deref().map(Description::read).transpose()?;
        let listed = |option: &str, list: &Option<String>| list.as_deref().map(|list| names(option, list)).transpose();
        let (bands, classes, ignore, name) = match about {
            Some(about) => (Some(about.bands), about.classes, about.ignore_label, about.name),
            None => {
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                (listed("bands", &self.bands)?, listed("names", &self.names)?, None, name)
            }
        };
        let labels = self.path("labels", &self.labels)?;
        let labels = Labels::read(&labels, classes.as_deref(), self.ignore_label.or(ignore), n, height)?;
        let split = self.read_split(n)?;
        Ok(Labelled { name, path, tiles, bands, labels, split, normalise: self.normalise })
    }
}

impl Labelled {
    /// The tiles with the model's bands in its order, the statistics that normalise them, and the encoder for tiles of this
    /// size.
    ///
    /// # Errors
    /// If a band is missing, or the size does not suit the encoder.
    pub fn for_model(&self, card: &ModelCard, encoder: &Encoder) -> Result<(Cow<'_, Tiles>, Vec<BandCard>, Encoder)> {
        let (shown, wanted) = (self.path.display(), card.band_names());
        let tiles = match &self.bands {
            Some(present) if present.iter().map(|b| canonical_band(b)).ne(wanted.iter().map(|b| b.to_string())) => {
                let present: Vec<&str> = present.iter().map(String::as_str).collect();
                let picked = self.tiles.clone().select_bands(&present, &wanted);
                Cow::Owned(picked.with_context(|| format!("{shown}, model {}", card.name))?)
            }
            _ => Cow::Borrowed(&self.tiles),
        };
        let (bands, model) = (tiles.shape[1], &card.name);
        ensure!(
            bands == wanted.len(),
            "{shown}: has {bands} bands, {model} takes {} ({}); name the tiles' bands with --bands",
            wanted.len(),
            wanted.join(",")
        );
        let cards = match self.normalise {
            Normalise::Model => card.bands.clone(),
            Normalise::Data => self.statistics(&tiles, &wanted)?,
        };
        let side = tiles.shape[2];
        let encoder = for_side(encoder, side, encoder.architecture().stem_padding)
            .with_context(|| format!("{shown}: tiles of {side} pixels"))?;
        Ok((tiles, cards, encoder))
    }

    /// Statistics of the training tiles.
    fn statistics(&self, tiles: &Tiles, names: &[&str]) -> Result<Vec<BandCard>> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let meaning = BandMeaning { unit: "as stored".into(), no_data: None, saturation: None };
        band_cards(&tiles.pick(&self.split.train), &names, &meaning).with_context(|| self.path.display().to_string())
    }
}

/// The name and path of `NAME=PATH`, or of a bare path.
pub(super) fn named(text: &str) -> (Option<&str>, &Path) {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => (Some(name), Path::new(path)),
        _ => (None, Path::new(text)),
    }
}
