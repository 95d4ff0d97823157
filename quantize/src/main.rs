//! `quantize`: safetensors or ONNX in, `.nadir` out; embedding on the host, comparison with the float encoder. What only looks at a model is in
//! `examine.rs`, what reads float encoders and runs them beside it in `floats.rs`, what compares in `reports.rs`, what makes and checks
//! files for flight in `secure.rs`, what makes embeddings smaller in `coding.rs`, what turns one file
//! into another in `updates.rs`.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use nadir::encoder::Encoder as Engine;
use nadir::model::{Model, Precision};
use nadir_formats::{AlignedBytes, Encoder, Tiles, write_atomic};
use nadir_quantize::compare::Agreement;
use nadir_quantize::inspect::{self, thousands};
use nadir_quantize::options::with_kernels;
use nadir_quantize::reference::{Blind, Reference};
use nadir_quantize::{batch, float};
use rayon::prelude::*;

mod calibrate;
mod coding;
mod examine;
mod floats;
mod mixing;
mod reports;
mod secure;
mod updates;

use calibrate::CalibrationArgs;
use mixing::Mixed;

/// What a newcomer types first.
const EXAMPLE: &str = "\
Example:
  quantize convert --model yocto.safetensors --precision int8 --calibrate train.npy --out yocto.nadir
  quantize compare --model yocto.nadir --float yocto.safetensors --tiles test.npy
  quantize report yocto.nadir --float yocto.safetensors --tiles test.npy --html report.html
  quantize verify yocto.nadir --float yocto.safetensors --tiles test.npy
  quantize embed --model yocto.nadir --tiles test.npy --out embeddings.npy
  quantize check yocto.nadir
  quantize delta on-board.nadir yocto.nadir --out d.delta
  quantize plan yocto.nadir --budget 100000 --png arena.png
  quantize profile yocto.nadir test.npy

Tiles are .npy arrays [tiles, bands, height, width] of u8, u16 or f32, with the values that the sensor stores: the model knows how to
normalise them. Errors are one line on standard error and exit code 2.";

/// Turns a float encoder into one model file for the runtime, and shows what was lost.
#[derive(Parser)]
#[command(name = "quantize", version, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a .nadir file from an encoder's .safetensors or .onnx
    Convert {
        /// The float encoder: .safetensors with its model card, or an .onnx of this family (ConvNeXt V2 with MMEarth's stem or a patchify stem).
        /// PyTorch checkpoints go through `trainer import`
        #[arg(long, value_name = "X.safetensors|X.onnx")]
        model: PathBuf,
        /// Model card of an .onnx that has none in its metadata: name, bands with mean and std, provenance, as JSON (docs/onnx.md)
        #[arg(long, value_name = "CARD.json")]
        card: Option<PathBuf>,
        #[command(flatten)]
        calibration: CalibrationArgs,
        /// Form of the weights and of the arithmetic
        #[arg(long)]
        precision: PrecisionArg,
        /// The file to write
        #[arg(long, value_name = "X.nadir")]
        out: PathBuf,
        /// Name of the model (1 to 32 bytes), if not the card's
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        equipment: secure::Equip,
        #[command(flatten)]
        mixed: Mixed,
    },
    /// Show what a .nadir file holds
    Inspect {
        /// The model
        model: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Embed tiles with the runtime
    Embed {
        /// The model
        #[arg(long, value_name = "X.nadir")]
        model: PathBuf,
        /// Tiles [tiles, bands, height, width]
        #[arg(long, value_name = "T.npy")]
        tiles: PathBuf,
        /// Embeddings [tiles, dimension], f32
        #[arg(long, value_name = "E.npy")]
        out: PathBuf,
        /// Bands of the tiles in their order, if not the model's: B4,B3,B2
        #[arg(long, value_delimiter = ',')]
        bands: Option<Vec<String>>,
        /// Kernels by name, if not the fastest: see `quantize kernels`
        #[arg(long, value_name = "NAME")]
        kernels: Option<String>,
        /// Threads, if not as many as the machine has
        #[arg(long, value_name = "N")]
        threads: Option<NonZeroUsize>,
    },
    /// Compare a model's embeddings with the float encoder's, computed in float64
    Compare {
        /// The model
        #[arg(long, value_name = "X.nadir")]
        model: PathBuf,
        /// The encoder from which it was made
        #[arg(long, value_name = "X.safetensors|X.onnx")]
        float: PathBuf,
        /// Model card of an .onnx that has none in its metadata
        #[arg(long, value_name = "CARD.json")]
        card: Option<PathBuf>,
        /// Tiles [tiles, bands, height, width], best not those of the calibration
        #[arg(long, value_name = "T.npy")]
        tiles: PathBuf,
        /// Bands of the tiles in their order, if not the model's: B4,B3,B2
        #[arg(long, value_delimiter = ',')]
        bands: Option<Vec<String>>,
        /// Kernels by name, if not the fastest: see `quantize kernels`
        #[arg(long, value_name = "NAME")]
        kernels: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Secure(secure::Command),
    #[command(flatten)]
    Updates(updates::Command),
    #[command(flatten)]
    Floats(floats::Command),
    #[command(flatten)]
    Examine(examine::Command),
    #[command(flatten)]
    Reports(reports::Command),
    #[command(flatten)]
    Coding(coding::Command),
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// Integers throughout
    Int8,
    /// Weights in f16, arithmetic in f32
    F16,
    /// Everything in f32
    F32,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Int8 => Precision::Int8,
            PrecisionArg::F16 => Precision::F16,
            PrecisionArg::F32 => Precision::F32,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quantize: {}", format!("{error:#}").replace(char::is_control, " "));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Convert { model, card, calibration, precision, out, name, equipment, mixed } => {
            convert(&model, card.as_deref(), &calibration, &mixed, precision, &out, name, &equipment)
        }
        Command::Inspect { model, json } => {
            let bytes = AlignedBytes::read(&model)?;
            let model = parse(&bytes, &model)?;
            print(&if json { format!("{:#}\n", inspect::json(&model)) } else { inspect::text(&model) })
        }
        Command::Embed { model, tiles, out, bands, kernels, threads } => {
            embed_tiles(&model, &tiles, &out, bands.as_deref(), kernels.as_deref(), threads)
        }
        Command::Compare { model, float, card, tiles, bands, kernels, json } => compare(
            &model,
            &floats::read_float(&float, card.as_deref())?,
            &float,
            &tiles,
            bands.as_deref(),
            kernels.as_deref(),
            json,
        ),
        Command::Floats(command) => floats::run(command),
        Command::Secure(command) => secure::run(command),
        Command::Updates(command) => updates::run(command),
        Command::Examine(command) => examine::run(command),
        Command::Reports(command) => reports::run(command),
        Command::Coding(command) => coding::run(command),
    }
}

fn convert(
    model: &Path,
    card: Option<&Path>,
    calibration: &CalibrationArgs,
    mixed: &Mixed,
    precision: PrecisionArg,
    out: &Path,
    name: Option<String>,
    equipment: &secure::Equip,
) -> Result<()> {
    let key = equipment.key()?;
    let mut encoder = floats::read_float(model, card)?;
    if let Some(name) = name {
        encoder.card.name = name;
        encoder.card.validate().map_err(anyhow::Error::msg).context("--name")?;
    }
    writable(out)?;
    let precision = precision.into();
    mixed.check(precision, calibration.tiles())?;
    let equip = |tensors: &[u8]| equipment.equip(&parse(&AlignedBytes::copy_of(tensors), out)?, key.as_ref());
    let bytes = match precision {
        Precision::F32 | Precision::F16 => float::convert(&encoder, precision),
        Precision::Int8 => calibration.int8(&encoder, mixed, &equip),
    }
    .with_context(|| model.display().to_string())?;
    let bytes = equip(&bytes)?;
    write_atomic(out, &bytes)?;
    let aligned = AlignedBytes::copy_of(&bytes);
    let model = parse(&aligned, out)?;
    print(&format!(
        "{}: {} {}, {} parameters, {} bytes, arena {} bytes\n",
        out.display(),
        model.name(),
        model.precision().name(),
        thousands(model.architecture().parameters(model.bands().len())),
        thousands(bytes.len() as u64),
        thousands(Engine::new(&model).arena_bytes() as u64)
    ))
}

fn embed_tiles(
    model: &Path,
    tiles: &Path,
    out: &Path,
    bands: Option<&[String]>,
    kernels: Option<&str>,
    threads: Option<NonZeroUsize>,
) -> Result<()> {
    let bytes = AlignedBytes::read(model)?;
    let model = parse(&bytes, model)?;
    let encoder = with_kernels(&model, kernels)?;
    let tiles = read_tiles(tiles, bands, &band_names(&model), usize::from(model.architecture().tile_size))?;
    writable(out)?;
    let bar = progress(tiles.len(), "embed", "tiles");
    let threads = threads.map_or_else(batch::available_threads, NonZeroUsize::get);
    let embeddings = batch::embed_all(&encoder, &tiles, threads, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(embeddings.write(out)?)
}

fn compare(
    path: &Path,
    encoder: &Encoder,
    float: &Path,
    tiles: &Path,
    bands: Option<&[String]>,
    kernels: Option<&str>,
    json: bool,
) -> Result<()> {
    let bytes = AlignedBytes::read(path)?;
    let model = parse(&bytes, path)?;
    let engine = with_kernels(&model, kernels)?;
    same_encoder(&model, path, encoder, float)?;
    let tiles = read_tiles(tiles, bands, &band_names(&model), usize::from(model.architecture().tile_size))?;
    let bar = progress(2 * tiles.len(), "compare", "tiles");
    let found = batch::embed_all(&engine, &tiles, batch::available_threads(), || bar.inc(1))?;
    let reference = Reference::new(encoder);
    let expected: Vec<_> = (0..tiles.len())
        .into_par_iter()
        .map(|i| {
            let embedding = reference.embed(tiles.tile(i), &mut Blind);
            bar.inc(1);
            embedding
        })
        .collect();
    bar.finish_and_clear();
    let found: Vec<Vec<f64>> = (0..found.rows).map(|i| found.row(i).iter().map(|&v| f64::from(v)).collect()).collect();
    let agreement = Agreement::of(&found, &expected);
    if json {
        let mut value = agreement.json();
        value["model"] = model.name().into();
        value["precision"] = model.precision().name().into();
        return print(&format!("{value:#}\n"));
    }
    print(&format!(
        "{} {} against float64, {} tiles\n\
         cosine          mean {:.6}  min {:.6} (tile {})  1 % {:.6}  5 % {:.6}  50 % {:.6}\n\
         signal to noise {:.1} dB\n\
         relative error  {:.2e}\n",
        model.name(),
        model.precision().name(),
        tiles.len(),
        agreement.mean(),
        agreement.percentile(0.0),
        agreement.worst(),
        agreement.percentile(1.0),
        agreement.percentile(5.0),
        agreement.percentile(50.0),
        agreement.signal_to_noise_db,
        agreement.relative_error
    ))
}

/// Whether `model` may have been made from `encoder`.
fn same_encoder(model: &Model<'_>, path: &Path, encoder: &Encoder, float: &Path) -> Result<()> {
    let card = &encoder.card;
    let differ = |what: &str| format!("{} and {} differ in {what}", path.display(), float.display());
    ensure!(card.architecture == *model.architecture(), differ("architecture"));
    ensure!(card.bands().is_ok_and(|b| b == model.bands()), differ("bands"));
    ensure!(card.embedding_space == model.embedding_space(), differ("embedding space"));
    Ok(())
}

fn parse<'a>(bytes: &'a AlignedBytes, path: &Path) -> Result<Model<'a>> {
    Model::parse(bytes).with_context(|| path.display().to_string())
}

fn band_names<'a>(model: &'a Model<'_>) -> Vec<&'a str> {
    model.bands().iter().map(|b| b.name.as_str()).collect()
}

/// Tiles in the order `wanted` of bands, `side` pixels square. Without `present` they must be in that order already.
fn read_tiles(path: &Path, present: Option<&[String]>, wanted: &[&str], side: usize) -> Result<Tiles> {
    let mut tiles = Tiles::read(path)?;
    if let Some(present) = present {
        let present: Vec<_> = present.iter().map(String::as_str).collect();
        tiles = tiles.select_bands(&present, wanted).with_context(|| path.display().to_string())?;
    }
    let [_, c, h, w] = tiles.shape;
    ensure!(
        [c, h, w] == [wanted.len(), side, side],
        "{}: has shape {:?}, the model takes [tiles, {}, {side}, {side}] with bands {} (name other orders with --bands)",
        path.display(),
        tiles.shape,
        wanted.len(),
        wanted.join(",")
    );
    Ok(tiles)
}

/// Finds out before the work, not after it, whether `out` can be written.
fn writable(out: &Path) -> Result<()> {
    let mut probe = out.as_os_str().to_owned();
    probe.push(format!(".{}.probe", std::process::id()));
    ensure!(!out.is_dir(), "{}: is a folder", out.display());
    std::fs::File::create_new(&probe).with_context(|| format!("{}: cannot be written", out.display()))?;
    std::fs::remove_file(&probe).with_context(|| format!("{}: cannot be written", out.display()))
}

/// A bar on the terminal; none elsewhere.
fn progress(count: usize, what: &'static str, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template(&format!("{{msg}} {{bar:40}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left"));
    ProgressBar::new(count as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

/// Writes to standard output; a reader that has gone away is not an error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
