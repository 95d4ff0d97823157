//! `trainer pretrain`.

mod data;
mod start;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::Args;
use nadir::model::{Architecture, SIZES};
use nadir_formats::ModelCard;
use serde_json::{Value, json};

use self::data::{DataArgs, Draws, Source};
use self::start::Start;
use super::device::{DeviceArgs, Precision};
use super::info::thousands;
use super::{End, ScheduleArgs, SizeArgs, already_finished, end, extend, provenance, write_encoder};
use crate::contrast::{Contrast, Views};
use crate::data::{Sampler, Stream, Symmetry, generator};
use crate::mask::Mask;
use crate::mpmae::{Losses, MpMae, MpMaeConfig};
use crate::ops::Grn;
use crate::parallel::{Group, Place};
use crate::params::{Init, Params};
use crate::run::{Objective, Outcome, Run, Schedule, clock, measure, stop_on_signals, train};

/// Steps that `--dry-run` measures.
const MEASURED: u64 = 3;

/// Pretrain an encoder by MP-MAE on tiles without labels
///
/// The encoder sees part of each tile; from that the hidden part and further modalities are predicted. With --data a
/// release of MMEarth is read as it is: Sentinel-2 goes in, its twelve modalities are predicted from random crops. With
/// --tiles any array will do, with values per tile from a table (place, environment) or further pixel arrays. After the last
/// epoch the final LayerNorm is fitted so that embeddings have zero mean and unit variance per dimension.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer pretrain --data data_100k_v001 --split split.json --size atto --epochs 100 \\\n    \
    --batch 64 --accumulate 4 --base-lr 1.5e-4 --out runs/atto\n  \
    trainer pretrain --tiles tiles.npy --bands B4,B3,B2 --split split.npy --use 0,1 \\\n    \
    --table table.csv --geolocation lat,lon --regress elevation_m,log1p:night_lights --classify country_id \\\n    \
    --size zepto --patch 16 --epochs 30 --flips --out runs/zepto\n  \
    trainer pretrain --config runs/zepto/run.toml --seed 2 --out runs/zepto-2\n\n\
    docs/training.md explains the choices and gives MMEarth's own recipe."
)]
pub struct Pretrain {
    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    size: SizeArgs,

    /// Start from a model: an encoder, or a whole pretraining model of `trainer import --whole`. Its size and patch are taken
    #[arg(long, value_name = "MODEL.safetensors", conflicts_with_all = ["size", "dims", "depths", "patch"])]
    init: Option<PathBuf>,

    /// How new weights are drawn
    #[arg(long, value_name = "HOW", default_value = "fan-in")]
    init_std: Init,

    /// Side of a patch in pixels (8, 16 or 32): the total stride of the encoder [default: with --data 8 for crops below
    /// 112 pixels; otherwise 16]
    #[arg(long)]
    patch: Option<u8>,

    /// Share of the patches that is hidden
    #[arg(long, default_value_t = 0.6, value_name = "SHARE")]
    mask_ratio: f64,

    /// Channels of the decoder block [default: with --data MMEarth's 512, with --tiles 256; with --init the model's]
    #[arg(long, value_name = "N")]
    decoder_dim: Option<usize>,

    /// Over what the encoder's Global Response Normalization takes its norms while training
    #[arg(long, value_name = "OVER", default_value = "sample")]
    grn: Grn,

    /// Add the tasks' losses as they are, instead of weighting them by learned uncertainties
    #[arg(long)]
    no_uncertainty: bool,

    /// Weight of a contrastive loss beside MP-MAE's: two views of each tile, each in part hidden and in a light of its own (and
    /// turned, with --flips), are to be told from those of the other tiles of a batch (--accumulate and further processes add none).
    /// 0 for none; a step then costs half as much
    #[arg(long, default_value_t = 0.0, value_name = "WEIGHT", value_parser = super::not_negative)]
    contrast: f64,

    /// Temperature of the contrastive loss
    #[arg(long, default_value_t = 0.2, value_name = "T", value_parser = super::positive, requires = "contrast")]
    temperature: f64,

    /// Light of the contrastive loss's views: gains up to exp(+-J) and offsets up to +-J standard deviations, and half as much for each band
    #[arg(long, default_value_t = 0.3, value_name = "J", value_parser = super::not_negative, requires = "contrast")]
    jitter: f64,

    /// With --tiles, predict so many random features too (principal components, 1 to 96): how strongly what is visible answers to
    /// patches of other tiles. They keep colour and texture in the embedding; with --contrast they are those of the tile in its own light. 0 for none
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "data")]
    random_features: usize,

    /// Batches whose gradients are averaged for a step: the effective batch is --batch times this
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    accumulate: u32,

    /// In place of --lr: the learning rate at an effective batch of 256, in proportion to which it grows
    #[arg(long, value_name = "LR", value_parser = super::positive, conflicts_with = "lr")]
    base_lr: Option<f64>,

    /// Print sizes, parameters, memory and time, measured over a few steps, and write nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    device: DeviceArgs,

    /// How activations are stored on the GPU; weights, gradients of weights, losses and the optimiser are f32 in both
    #[arg(long, value_name = "KIND", default_value = "f32")]
    precision: Precision,

    #[command(flatten)]
    pub(super) schedule: ScheduleArgs,
}

impl Pretrain {
    pub(super) fn run(self) -> Result<End> {
        let place = Place::of_process()?;
        let device = self.device.open(place.as_ref())?;
        let group = Group::join(place.as_ref(), &device)?;
        group.together(|| self.run_in(&group, device))
    }

    fn run_in(&self, group: &Group, device: Device) -> Result<End> {
        ensure!(group.size() == 1 || !self.dry_run, "--dry-run is for one process, these are {}", group.size());
        group.part(self.schedule.batch as usize)?;
        let draws = Draws {
            batch: self.schedule.batch as usize,
            accumulate: self.accumulate as usize,
            flips: self.schedule.flips,
            seed: self.schedule.seed,
            part: [group.rank(), group.size()],
        };
        let mut source = self.data.open(draws)?;
        let start = self.init.as_deref().map(|path| Start::read(path, &source.bands)).transpose()?;
        let architecture = self.architecture(&source, start.as_ref())?;
        let config = self.mpmae_config(start.as_ref())?;
        if self.random_features > 0 {
            let patch = usize::from(architecture.patch_size);
            source.add_random_features(patch, self.random_features).context("--random-features")?;
        }
        let named = |(_, depths, dims): &(_, _, _)| (*depths, *dims) == (architecture.depths, architecture.dims);
        let size = SIZES.iter().find(|size| named(size)).map_or("custom", |(name, ..)| name);
        let card = ModelCard {
            name: self.schedule.name.clone().unwrap_or_else(|| format!("{size}-{}", source.bands.len())),
            architecture,
            bands: source.bands.clone(),
            embedding_space: "unnamed".into(),
            provenance: provenance(source.described.clone(), self.recipe(&config, start.as_ref())),
        };
        if let Err(reason) = card.validate() {
            bail!("{reason}");
        }
        let mut sampler =
            Sampler::new(source.tiles(), draws.batch, draws.seed, draws.flips).in_steps_of(draws.accumulate)?;
        let schedule = Schedule { lr: self.lr(&sampler), ..self.schedule.schedule() };
        let mut random = generator(draws.seed, Stream::Weights, 0);
        let (bands, tasks) = (source.bands.len(), source.tasks());
        let model = MpMae::init(&architecture, bands, &tasks, config, &mut random, &device)?;
        let fresh = start.as_ref().map_or(Ok(Vec::new()), |start| start.load(&model))?;
        let views = Views { turn: draws.flips, jitter: self.jitter as f32, seed: draws.seed };
        let views = config.contrast.map(|_| views);
        let precision = self.precision.on(&device)?;
        let pretraining =
            Pretraining { model: &model, source: &source, views, seed: draws.seed, device, precision, group };
        if self.dry_run {
            source.compute(draws.seed)?;
            return self.describe(&card, &schedule, &mut sampler, &pretraining);
        }
        // The first process makes the folder, then the others look at it.
        let run = match group.leads() {
            true => {
                let settings = self.settings(&card, &config, &schedule, &source.settings, group.size());
                Some(self.schedule.open(&settings)?)
            }
            false => None,
        };
        group.sum(&mut [0.0])?;
        let run = run.map_or_else(|| Run::look(&self.schedule.out), Ok)?;
        if already_finished(&run) {
            return Ok(End::Done);
        }
        if !fresh.is_empty() && !self.schedule.resume {
            eprintln!("trainer: --init: not in the model, so drawn anew: {}", fresh.join(", "));
        }
        stop_on_signals()?;
        source.compute(draws.seed)?;
        let outcome = train(&run, &schedule, &mut sampler, &pretraining)?;
        if !group.leads() {
            return Ok(if outcome == Outcome::Complete { End::Done } else { End::Interrupted });
        }
        end(&run, outcome, || {
            source.fit_norm(model.encoder())?;
            write_encoder(&run, model.encoder(), card)
        })
    }

    /// The encoder's shape for the data's tiles.
    fn architecture(&self, source: &Source, start: Option<&Start>) -> Result<Architecture> {
        let side = source.side();
        match start {
            Some(start) => start.architecture(side),
            None => {
                let usual = if self.data.is_release() && side < 112 { 8 } else { 16 };
                self.size.architecture("zepto", side, self.patch.unwrap_or(usual))
            }
        }
    }

    fn mpmae_config(&self, start: Option<&Start>) -> Result<MpMaeConfig> {
        let ratio = self.mask_ratio;
        ensure!((0.0..1.0).contains(&ratio) && ratio > 0.0, "--mask-ratio {ratio}: must be above 0 and below 1");
        let usual = if self.data.is_release() { 512 } else { 256 };
        let of_start = start.and_then(Start::decoder_dim);
        let decoder_dim = self.decoder_dim.or(of_start).unwrap_or(usual);
        ensure!((1..=4096).contains(&decoder_dim), "--decoder-dim {decoder_dim}: must be 1 to 4096");
        Ok(MpMaeConfig {
            decoder_dim,
            mask_ratio: ratio,
            uncertainty: !self.no_uncertainty,
            grn: self.grn,
            init: self.init_std,
            contrast: (self.contrast > 0.0)
                .then_some(Contrast { weight: self.contrast, temperature: self.temperature }),
            ..MpMaeConfig::default()
        })
    }

    /// The highest learning rate.
    fn lr(&self, sampler: &Sampler) -> f64 {
        let effective = sampler.batch() as f64 * f64::from(self.accumulate);
        self.base_lr.map_or(self.schedule.lr, |base| base * effective / 256.0)
    }

    /// What `config.json` holds: all that a resumed run must share.
    fn settings(
        &self,
        card: &ModelCard,
        config: &MpMaeConfig,
        schedule: &Schedule,
        data: &Value,
        processes: usize,
    ) -> Value {
        let s = &self.schedule;
        let mut settings = json!({
            "command": "pretrain",
            "name": card.name,
            "architecture": card.architecture,
            "bands": card.band_names(),
            "data": card.provenance.data,
            "init": self.init,
            "init_std": format!("{:?}", config.init),
            "mask_ratio": config.mask_ratio,
            "decoder_dim": config.decoder_dim,
            "grn": format!("{:?}", config.grn),
            "uncertainty": config.uncertainty,
            "contrast": self.contrast,
            "temperature": self.temperature,
            "jitter": self.jitter,
            "random_features": self.random_features,
            // Where the tiles of a process are looked at together, the number of processes tells.
            "processes": (self.contrast > 0.0 || config.grn == Grn::Batch).then_some(processes),
            "precision": format!("{:?}", self.precision),
            "epochs": schedule.epochs,
            "batch": s.batch,
            "accumulate": self.accumulate,
            "lr": schedule.lr,
            "warmup": schedule.warmup,
            "weight_decay": schedule.weight_decay,
            "flips": s.flips,
            "seed": s.seed,
            "logs_per_epoch": s.logs_per_epoch,
        });
        extend(&mut settings, data);
        settings
    }

    /// The command line's essentials.
    fn recipe(&self, config: &MpMaeConfig, start: Option<&Start>) -> String {
        let mut recipe = format!("pretrain {}", self.schedule.recipe());
        if let Some(base) = self.base_lr {
            recipe.push_str(&format!(" --base-lr {base}"));
        }
        if self.accumulate > 1 {
            recipe.push_str(&format!(" --accumulate {}", self.accumulate));
        }
        recipe.push_str(&self.data.recipe());
        recipe.push_str(&format!(" --mask-ratio {} --decoder-dim {}", config.mask_ratio, config.decoder_dim));
        if config.grn == Grn::Batch {
            recipe.push_str(" --grn batch");
        }
        match start {
            Some(start) => recipe.push_str(&format!(" --init, from {}", start.name())),
            None if config.init != Init::FanIn => recipe.push_str(&format!(" --init-std {}", config.init.name())),
            None => {}
        }
        if self.no_uncertainty {
            recipe.push_str(" --no-uncertainty");
        }
        if self.random_features > 0 {
            recipe.push_str(&format!(" --random-features {}", self.random_features));
        }
        if let Some(Contrast { weight, temperature }) = config.contrast {
            recipe.push_str(&format!(" --contrast {weight} --temperature {temperature} --jitter {}", self.jitter));
        }
        recipe
    }

    /// What `--dry-run` says.
    fn describe(
        &self,
        card: &ModelCard,
        schedule: &Schedule,
        sampler: &mut Sampler,
        pretraining: &Pretraining,
    ) -> Result<End> {
        let (a, model) = (&card.architecture, pretraining.model);
        let mask = pretraining.mask(0, 1);
        let patches = mask.side() * mask.side();
        let parameters = model.params().count() as u64;
        println!("model       {}: {} bands of {2} x {2} pixels", card.name, card.bands.len(), a.tile_size);
        println!("            patches of {0} x {0}: {1} of {patches} are visible", a.patch_size, mask.kept());
        println!(
            "parameters  {} of the encoder, {} in training",
            thousands(a.parameters(card.bands.len())),
            thousands(parameters)
        );
        let tasks: Vec<_> = model.tasks().iter().map(|t| t.name.as_str()).collect();
        println!("predicts    {}", tasks.join(", "));
        println!("data        {}", card.provenance.data);
        let (batch, accumulate, per_epoch) = (sampler.batch(), sampler.accumulate(), sampler.steps_per_epoch());
        println!(
            "steps       {per_epoch} an epoch, {} in all, each of {accumulate} x {batch} tiles",
            per_epoch * schedule.epochs
        );
        println!("rate        {:e} at its highest", schedule.lr);
        // Parameters, their gradients and the optimiser's two moments; the checkpoint has no gradients.
        println!("checkpoint  {:.0} MB", parameters as f64 * 12.0 / 1e6);
        let seconds = measure(schedule, sampler, pretraining, MEASURED)?;
        let total = seconds * (per_epoch * schedule.epochs) as f64;
        let rate = (batch as u64 * accumulate) as f64 / seconds;
        println!(
            "measured    {seconds:.3} s a step, {rate:.0} tiles/s over {MEASURED} steps; all epochs take about {}",
            clock(total)
        );
        if let Some(bytes) = peak_memory() {
            println!("memory      {:.0} MB at most so far", bytes as f64 / 1e6);
        }
        println!("nothing was written");
        Ok(End::Done)
    }
}

/// The most memory that this process has held, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// MP-MAE as something to train.
struct Pretraining<'a> {
    model: &'a MpMae,
    source: &'a Source,
    /// How a tile becomes two, if it does.
    views: Option<Views>,
    seed: u64,
    device: Device,
    precision: DType,
    group: &'a Group,
}

impl Pretraining<'_> {
    /// The mask of batch `number`, which has `tiles` tiles.
    fn mask(&self, number: u64, tiles: usize) -> Mask {
        let architecture = self.model.encoder().architecture();
        let side = usize::from(architecture.tile_size) / usize::from(architecture.patch_size);
        let mut random = generator(self.seed, Stream::Masks, number);
        Mask::random(tiles, side, self.model.config().mask_ratio, &mut random)
    }
}

impl Objective for Pretraining<'_> {
    fn params(&self) -> &Params {
        self.model.params()
    }

    fn loss(&self, number: u64, draws: &[(usize, Symmetry)]) -> Result<Losses> {
        let part = self.group.part(draws.len())?;
        let (mut x, mut targets) = self.source.batch(number, &draws[part.clone()], &self.device)?;
        let mask = match &self.views {
            None => self.mask(number, draws.len()).part(part),
            Some(views) => {
                // Each process has views and masks of its own.
                let own = number * self.group.size() as u64 + self.group.rank() as u64;
                (x, targets) = views.of(&x, &targets, self.source.predicts_input(), own)?;
                self.mask(own, x.dim(0)?)
            }
        };
        Ok(self.model.loss_among(&x.to_dtype(self.precision)?, &mask, &targets, self.group)?)
    }

    fn group(&self) -> &Group {
        self.group
    }

    fn tile(&self, index: usize) -> String {
        self.source.tile(index)
    }
}
