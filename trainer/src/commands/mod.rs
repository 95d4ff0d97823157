//! What the command line offers; each subcommand is a module.

mod config;
mod data;
mod device;
mod distill;
mod embed;
mod export;
mod finetune;
mod import;
mod info;
mod labelled;
mod pretrain;
mod probe;
mod table;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use nadir::model::{Architecture, SIZES, STAGES};
use nadir_formats::{Encoder as EncoderFile, ModelCard, Provenance, Tiles};
use serde_json::Value;

use crate::data::{check_shape, names, rows_in_split};
use crate::encoder::Encoder;
use crate::run::{Outcome, Run};

/// Pretrains encoders of satellite tiles by MP-MAE, distils them, embeds tiles with them and probes the embeddings.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pretrain(Box<pretrain::Pretrain>),
    Distill(Box<distill::Distill>),
    Embed(embed::Embed),
    Probe(probe::Probe),
    Finetune(finetune::Finetune),
    Import(import::Import),
    Export(export::Export),
    Info(info::Info),
    Data(data::Data),
}

/// Adds the members of one object to another.
fn extend(settings: &mut Value, more: &Value) {
    if let (Some(settings), Some(more)) = (settings.as_object_mut(), more.as_object()) {
        settings.extend(more.clone());
    }
}

/// How a command ended, if not by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It did what it was asked for.
    Done,
    /// A signal stopped it; the run can be resumed.
    Interrupted,
}

impl Cli {
    /// The command line with the options of the file that `--config` names, where a command has it.
    ///
    /// Ends the program where the command line is wrong or only asks for help.
    ///
    /// # Errors
    /// If the file is wrong.
    pub fn read(arguments: Vec<OsString>) -> Result<Self> {
        let mut definition = Self::command();
        definition.build();
        let matches = definition.clone().get_matches_from(config::with_file(&definition, arguments)?);
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let schedule = match &mut cli.command {
            Command::Pretrain(command) => Some(&mut command.schedule),
            Command::Distill(command) => Some(&mut command.schedule),
            _ => None,
        };
        if let (Some(schedule), Some((name, matches))) = (schedule, matches.subcommand()) {
            schedule.toml = definition.find_subcommand(name).map_or(String::new(), |c| config::to_toml(c, matches));
        }
        Ok(cli)
    }

    /// Does what the command line says.
    pub fn run(self) -> Result<End> {
        match self.command {
            Command::Pretrain(command) => command.run(),
            Command::Distill(command) => command.run(),
            Command::Embed(command) => command.run().map(|()| End::Done),
            Command::Probe(command) => command.run().map(|()| End::Done),
            Command::Finetune(command) => command.run(),
            Command::Import(command) => command.run().map(|()| End::Done),
            Command::Export(command) => command.run().map(|()| End::Done),
            Command::Info(command) => command.run().map(|()| End::Done),
            Command::Data(command) => command.run().map(|()| End::Done),
        }
    }
}

/// Which tiles a training uses.
#[derive(Debug, Args)]
struct TilesArgs {
    /// The tiles: .npy [tiles, bands, side, side] of type u8, u16 or f32, values as the sensor stores them
    #[arg(long, value_name = "T.npy")]
    tiles: PathBuf,

    /// A split: .npy of one integer a tile (0 train, 1 validation, 2 test)
    #[arg(long, value_name = "S.npy")]
    split: Option<PathBuf>,

    /// Which entries of the split to train on [default: 0]
    #[arg(long = "use", value_name = "CODES", value_delimiter = ',', requires = "split")]
    used: Vec<i64>,

    /// What the tiles are, for the model's provenance, for instance "EuroSAT RGB" [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    data_name: Option<String>,
}

impl TilesArgs {
    /// All tiles, and the indices of those in use.
    fn read(&self) -> Result<(Tiles, Vec<usize>)> {
        let tiles = Tiles::read(&self.tiles)?;
        let rows = rows_in_split(tiles.len(), self.split.as_deref(), self.codes())?;
        Ok((tiles, rows))
    }

    fn codes(&self) -> &[i64] {
        if self.used.is_empty() { &[0] } else { &self.used }
    }

    /// The data in words.
    fn described(&self, tiles: usize, fingerprint: &str) -> String {
        let file = self.tiles.file_name().map(|n| n.to_string_lossy().into_owned());
        let what = self.data_name.clone().or(file).unwrap_or_default();
        format!("{what}, {tiles} tiles, pixels {fingerprint}")
    }
}

/// The shape of a new encoder.
#[derive(Debug, Args)]
struct SizeArgs {
    /// Named size: yocto (0.3 M parameters), zepto (1.1 M), atto (3.4 M), and ConvNeXt V2's up to huge (657 M)
    #[arg(long, value_parser = PossibleValuesParser::new(SIZES.map(|(name, ..)| name)), conflicts_with_all = ["dims", "depths"])]
    size: Option<String>,

    /// Channels of the four stages, in place of a named size
    #[arg(long, value_name = "A,B,C,D", value_delimiter = ',', requires = "depths")]
    dims: Vec<u16>,

    /// Blocks of the four stages
    #[arg(long, value_name = "A,B,C,D", value_delimiter = ',', requires = "dims")]
    depths: Vec<u8>,
}

impl SizeArgs {
    /// The architecture for these tiles.
    fn architecture(&self, default: &str, tile_size: usize, patch_size: u8) -> Result<Architecture> {
        let tile_size =
            u16::try_from(tile_size).with_context(|| format!("tiles of {tile_size} pixels are too large"))?;
        let name = self.size.as_deref().unwrap_or(default);
        let Some(mut architecture) = Architecture::named(name, tile_size, patch_size) else {
            bail!("--size {name}: is not known");
        };
        if !self.dims.is_empty() {
            architecture.dims = four("dims", &self.dims)?;
            architecture.depths = four("depths", &self.depths)?;
        }
        architecture.validate()?;
        if !tile_size.is_multiple_of(u16::from(patch_size)) {
            bail!(
                "tiles of {tile_size} pixels are not whole patches of {patch_size}; see --patch, and --crop with --data"
            );
        }
        Ok(architecture)
    }
}

fn four<T: Copy>(option: &str, values: &[T]) -> Result<[T; STAGES]> {
    values.try_into().with_context(|| format!("--{option} takes {STAGES} numbers, not {}", values.len()))
}

/// How long and how a training goes.
#[derive(Debug, Args)]
struct ScheduleArgs {
    /// Epochs in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    epochs: u64,

    /// Tiles in a batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Highest learning rate; it rises over the warm-up and falls along half a cosine to 0
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    lr: f64,

    /// Epochs over which the learning rate rises [default: a twentieth of the epochs]
    #[arg(long, value_name = "EPOCHS", value_parser = not_negative)]
    warmup: Option<f64>,

    /// Decoupled weight decay of AdamW
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    weight_decay: f64,

    /// Turn and mirror the tiles at random (the eight symmetries of a square)
    #[arg(long)]
    flips: bool,

    /// Seed of the weights, the order, the crops, the symmetries and the masks
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Logged intervals in an epoch
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    logs_per_epoch: u64,

    /// Minutes between checkpoints within an epoch; there is one at each epoch's end too
    #[arg(long, value_name = "M", default_value_t = 10.0, value_parser = not_negative)]
    checkpoint_minutes: f64,

    /// A file with options as key = value, for instance a run's run.toml; those typed here win (--SWITCH=false switches off)
    #[arg(long, value_name = "RUN.toml")]
    config: Option<PathBuf>,

    /// The run folder: config.json, run.toml, metrics.jsonl, loss.png, checkpoint.safetensors, encoder.safetensors
    #[arg(long, value_name = "RUN")]
    out: PathBuf,

    /// Continue the run in the folder, from its checkpoint; the settings must be the same
    #[arg(long)]
    resume: bool,

    /// Name of the model, at most 32 bytes [default: the size and the number of bands]
    #[arg(long)]
    name: Option<String>,

    /// All options as TOML.
    #[arg(skip)]
    toml: String,
}

impl ScheduleArgs {
    /// Starts or resumes the run with these settings.
    fn open(&self, settings: &serde_json::Value) -> Result<Run> {
        let run = Run::open(&self.out, settings, self.resume)?;
        run.write_options(&self.toml)?;
        Ok(run)
    }

    fn warmup(&self) -> f64 {
        self.warmup.unwrap_or(self.epochs as f64 / 20.0)
    }

    fn schedule(&self) -> crate::run::Schedule {
        crate::run::Schedule {
            epochs: self.epochs,
            warmup: self.warmup(),
            lr: self.lr,
            weight_decay: self.weight_decay,
            logs_per_epoch: self.logs_per_epoch,
            checkpoint_every: Duration::try_from_secs_f64(60.0 * self.checkpoint_minutes).unwrap_or(Duration::MAX),
        }
    }

    /// The settings that matter most, as they would be typed.
    fn recipe(&self) -> String {
        let flips = if self.flips { " --flips" } else { "" };
        format!(
            "--epochs {} --batch {} --lr {} --warmup {} --weight-decay {} --seed {}{flips}",
            self.epochs,
            self.batch,
            self.lr,
            self.warmup(),
            self.weight_decay,
            self.seed
        )
    }
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be above 0".into()) })
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must not be below 0".into()) })
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| "is not a number".into())
}

/// Reads a model and brings it onto `device`.
fn read_model(path: &Path, device: &Device) -> Result<(ModelCard, Encoder)> {
    let file = EncoderFile::read(path)?;
    let encoder = Encoder::from_tensors(&file.card.architecture, file.card.bands.len(), &file.tensors, device)?;
    Ok((file.card, encoder))
}

/// Brings the tiles of `path` into the order of the model's bands, and checks that they fit the model.
fn fit_tiles(tiles: Tiles, path: &Path, given: Option<&str>, card: &ModelCard) -> Result<Tiles> {
    let wanted = card.band_names();
    let tiles = match given {
        Some(list) => {
            let present = names("bands", list)?;
            check_shape(&tiles, path, &present)?;
            let present: Vec<_> = present.iter().map(String::as_str).collect();
            tiles.select_bands(&present, &wanted).with_context(|| path.display().to_string())?
        }
        None => tiles,
    };
    let [_, bands, height, width] = tiles.shape;
    let side = usize::from(card.architecture.tile_size);
    let (path, name) = (path.display(), &card.name);
    if bands != wanted.len() {
        bail!(
            "{path}: has {bands} bands, {name} takes {} ({}); name the tiles' bands with --bands",
            wanted.len(),
            wanted.join(",")
        );
    }
    if height != side || width != side {
        bail!("{path}: tiles are {height} x {width} pixels, {name} takes {side} x {side}");
    }
    Ok(tiles)
}

/// Writes the finished encoder with its card, in a space of its own, and says so.
fn write_encoder(run: &Run, encoder: &Encoder, card: ModelCard) -> Result<()> {
    write_encoder_in(run, encoder, card, None)
}

/// Writes the finished encoder with its card, in the embedding space named or in one of its own, and says so.
fn write_encoder_in(run: &Run, encoder: &Encoder, mut card: ModelCard, space: Option<&str>) -> Result<()> {
    let tensors = encoder.params().export()?;
    card.embedding_space = "unnamed".into();
    let mut file = EncoderFile { card, tensors };
    file.card.embedding_space = space.map_or_else(|| file.space_of_weights(), str::to_owned);
    file.write(&run.encoder_path())?;
    println!("{}: {}, embedding space {}", run.encoder_path().display(), file.card.name, file.card.embedding_space);
    Ok(())
}

/// Where a model trained here comes from.
fn provenance(data: String, recipe: String) -> Provenance {
    Provenance { made_by: crate::run::made_by(), data, recipe, licence: "MIT OR Apache-2.0".into() }
}

/// Says that an interrupted run can go on, or lets `finish` end a complete one.
fn end(run: &Run, outcome: Outcome, finish: impl FnOnce() -> Result<()>) -> Result<End> {
    match outcome {
        Outcome::Interrupted(step) => {
            eprintln!(
                "trainer: stopped after step {step}; continue with --resume ({})",
                run.checkpoint_path().display()
            );
            Ok(End::Interrupted)
        }
        Outcome::Complete => finish().map(|()| End::Done),
    }
}

/// Says that there is nothing left to do, if so.
fn already_finished(run: &Run) -> bool {
    let finished = run.finished();
    if finished {
        println!("the run is finished: {}", run.encoder_path().display());
    }
    finished
}
