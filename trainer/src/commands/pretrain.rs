//! `trainer pretrain`.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use candle_core::Device;
use clap::Args;
use nadir_formats::ModelCard;
use serde_json::json;

use super::{End, ScheduleArgs, SizeArgs, TilesArgs, already_finished, device, end, provenance, write_encoder};
use crate::data::{
    BandMeaning, PixelTarget, Pretext, Sampler, Stream, Symmetry, Table, band_cards, check_shape, fingerprint,
    generator, names,
};
use crate::mask::Mask;
use crate::mpmae::{Losses, MpMae, MpMaeConfig};
use crate::params::Params;
use crate::run::{Objective, Run, fit_norm, stop_on_signals, train};

/// Pretrain an encoder by MP-MAE on tiles without labels
///
/// The encoder sees part of each tile; from that the hidden part and any further targets are predicted: values per
/// tile from a table (place, environment) or further pixel arrays. After the last epoch the final LayerNorm is fitted so
/// that embeddings have zero mean and unit variance per dimension.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trainer pretrain --tiles tiles.npy --bands B4,B3,B2 --split split.npy --use 0,1 \\\n    \
    --table table.csv --geolocation lat,lon --regress elevation_m,log1p:night_lights --classify country_id \\\n    \
    --size zepto --patch 16 --epochs 30 --flips --out runs/zepto"
)]
pub struct Pretrain {
    #[command(flatten)]
    tiles: TilesArgs,

    /// Names of the tiles' bands, in their order, for instance B4,B3,B2
    #[arg(long, value_name = "NAMES")]
    bands: String,

    /// What a stored value counts
    #[arg(long, default_value = "stored value")]
    unit: String,

    /// Stored value that means "no data"
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    no_data: Option<f32>,

    /// Stored value at and above which the sensor is saturated
    #[arg(long, value_name = "VALUE")]
    saturation: Option<f32>,

    /// A table (CSV with header) with one row a tile
    #[arg(long, value_name = "T.csv")]
    table: Option<PathBuf>,

    /// Columns of latitude and longitude in degrees; sine and cosine of each are predicted
    #[arg(long, value_name = "LAT,LON", requires = "table")]
    geolocation: Option<String>,

    /// Columns of numbers to predict; log1p:COLUMN takes the logarithm of 1 + value first. Empty fields are ignored
    #[arg(long, value_name = "COLUMNS", requires = "table")]
    regress: Option<String>,

    /// Columns whose distinct fields are classes to predict. Empty fields are ignored
    #[arg(long, value_name = "COLUMNS", requires = "table")]
    classify: Option<String>,

    /// A further pixel array to predict, aligned with the tiles; may be given several times
    #[arg(long, value_name = "NAME=F.npy:regress|NAME=F.npy:classify:K")]
    pixel_target: Vec<PixelTarget>,

    #[command(flatten)]
    size: SizeArgs,

    /// Side of a patch in pixels (8, 16 or 32): the total stride of the encoder
    #[arg(long, default_value_t = 16)]
    patch: u8,

    /// Share of the patches that is hidden
    #[arg(long, default_value_t = 0.6, value_name = "SHARE")]
    mask_ratio: f64,

    /// Channels of the decoder block
    #[arg(long, default_value_t = 256, value_name = "N")]
    decoder_dim: usize,

    /// Bring each patch of the pixel target to zero mean and unit variance, as MMEarth does. Off by default: absolute
    /// colour and brightness tell land covers apart, and a target without them need not keep them
    #[arg(long)]
    norm_pix: bool,

    /// Add the tasks' losses as they are, instead of weighting them by learned uncertainties
    #[arg(long)]
    no_uncertainty: bool,

    #[command(flatten)]
    schedule: ScheduleArgs,
}

impl Pretrain {
    pub(super) fn run(self) -> Result<End> {
        let (pretext, rows) = self.pretext()?;
        let side = pretext.tiles().shape[2];
        let architecture = self.size.architecture("zepto", side, self.patch)?;
        let config = self.mpmae_config()?;
        let bands = pretext.bands().to_vec();
        let name = self.schedule.name.clone().unwrap_or_else(|| format!("{}-{}", self.size.name("zepto"), bands.len()));
        let pixels = fingerprint(pretext.tiles());
        let card = ModelCard {
            name,
            architecture,
            bands: bands.clone(),
            embedding_space: "unnamed".into(),
            provenance: provenance(self.tiles.described(rows, &pixels), self.recipe()),
        };
        if let Err(reason) = card.validate() {
            bail!("{reason}");
        }
        let run = Run::open(&self.schedule.out, &self.settings(&card, &pixels), self.schedule.resume)?;
        if already_finished(&run) {
            return Ok(End::Done);
        }
        stop_on_signals()?;
        let device = device()?;
        let mut random = generator(self.schedule.seed, Stream::Weights, 0);
        let model = MpMae::init(&architecture, bands.len(), &pretext.tasks(), config, &mut random, &device)?;
        let batch = self.schedule.batch as usize;
        let mut sampler = Sampler::new(rows, batch, self.schedule.seed, self.schedule.flips);
        let pretraining = Pretraining { model: &model, pretext: &pretext, seed: self.schedule.seed, device };
        let outcome = train(&run, &self.schedule.schedule(), &mut sampler, &pretraining)?;
        end(&run, outcome, || {
            fit_norm(model.encoder(), pretext.tiles(), pretext.bands())?;
            write_encoder(&run, model.encoder(), card)
        })
    }

    /// The tiles in use with all targets, and their number.
    fn pretext(&self) -> Result<(Pretext, usize)> {
        let (tiles, rows) = self.tiles.read()?;
        let all = tiles.len();
        let path = &self.tiles.tiles;
        let band_names = names("bands", &self.bands)?;
        check_shape(&tiles, path, &band_names)?;
        let tiles = if rows.len() == all { tiles } else { tiles.pick(&rows) };
        let meaning = BandMeaning { unit: self.unit.clone(), no_data: self.no_data, saturation: self.saturation };
        let bands = band_cards(&tiles, &band_names, &meaning).map_err(|e| e.context(path.display().to_string()))?;
        let mut pretext = Pretext::new(tiles, bands, self.norm_pix);
        for target in &self.pixel_target {
            pretext.add_pixels(target, all, &rows)?;
        }
        if let Some(path) = &self.table {
            let table = Table::read(path, all)?;
            let list = |option, text: &Option<String>| text.as_ref().map_or(Ok(Vec::new()), |text| names(option, text));
            if self.geolocation.is_some() {
                pretext.add_images(table.geolocation(&list("geolocation", &self.geolocation)?, &rows)?)?;
            }
            for column in list("regress", &self.regress)? {
                pretext.add_images([table.regression(&column, &rows)?])?;
            }
            for column in list("classify", &self.classify)? {
                pretext.add_images([table.classification(&column, &rows)?])?;
            }
        }
        Ok((pretext, rows.len()))
    }

    fn mpmae_config(&self) -> Result<MpMaeConfig> {
        let ratio = self.mask_ratio;
        ensure!((0.0..1.0).contains(&ratio) && ratio > 0.0, "--mask-ratio {ratio}: must be above 0 and below 1");
        ensure!((1..=4096).contains(&self.decoder_dim), "--decoder-dim {}: must be 1 to 4096", self.decoder_dim);
        Ok(MpMaeConfig {
            decoder_dim: self.decoder_dim,
            mask_ratio: ratio,
            uncertainty: !self.no_uncertainty,
            ..MpMaeConfig::default()
        })
    }

    /// What `config.json` holds: all that a resumed run must share.
    fn settings(&self, card: &ModelCard, pixels: &str) -> serde_json::Value {
        let s = &self.schedule;
        let targets: Vec<_> =
            self.pixel_target.iter().map(|t| format!("{}={}:{:?}", t.name, t.path.display(), t.kind)).collect();
        json!({
            "command": "pretrain",
            "name": card.name,
            "architecture": card.architecture,
            "bands": card.band_names(),
            "unit": self.unit,
            "no_data": self.no_data,
            "saturation": self.saturation,
            "data": card.provenance.data,
            "tiles": self.tiles.tiles,
            "pixels": pixels,
            "split": self.tiles.split,
            "use": self.tiles.codes(),
            "table": self.table,
            "geolocation": self.geolocation,
            "regress": self.regress,
            "classify": self.classify,
            "pixel_target": targets,
            "mask_ratio": self.mask_ratio,
            "decoder_dim": self.decoder_dim,
            "norm_pix": self.norm_pix,
            "uncertainty": !self.no_uncertainty,
            "epochs": s.epochs,
            "batch": s.batch,
            "lr": s.lr,
            "warmup": s.warmup(),
            "weight_decay": s.weight_decay,
            "flips": s.flips,
            "seed": s.seed,
            "logs_per_epoch": s.logs_per_epoch,
        })
    }

    /// The command line's essentials.
    fn recipe(&self) -> String {
        let mut recipe = format!("pretrain {}", self.schedule.recipe());
        for (option, list) in
            [("geolocation", &self.geolocation), ("regress", &self.regress), ("classify", &self.classify)]
        {
            if let Some(list) = list {
                recipe.push_str(&format!(" --{option} {list}"));
            }
        }
        for target in &self.pixel_target {
            recipe.push_str(&format!(" --pixel-target {}", target.name));
        }
        recipe.push_str(&format!(" --mask-ratio {} --decoder-dim {}", self.mask_ratio, self.decoder_dim));
        for (option, on) in [("norm-pix", self.norm_pix), ("no-uncertainty", self.no_uncertainty)] {
            if on {
                recipe.push_str(&format!(" --{option}"));
            }
        }
        recipe
    }
}

/// MP-MAE as something to train.
struct Pretraining<'a> {
    model: &'a MpMae,
    pretext: &'a Pretext,
    seed: u64,
    device: Device,
}

impl Objective for Pretraining<'_> {
    fn params(&self) -> &Params {
        self.model.params()
    }

    fn loss(&self, step: u64, draws: &[(usize, Symmetry)]) -> Result<Losses> {
        let architecture = self.model.encoder().architecture();
        let side = usize::from(architecture.tile_size) / usize::from(architecture.patch_size);
        let mut random = generator(self.seed, Stream::Masks, step);
        let mask = Mask::random(draws.len(), side, self.model.config().mask_ratio, &mut random);
        let (x, targets) = self.pretext.batch(draws, &self.device)?;
        Ok(self.model.loss(&x, &mask, &targets)?)
    }
}
