//! Float encoders as input, from safetensors or ONNX; and the subcommand `verify`, which runs them beside the model file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use nadir_formats::Encoder;
#[cfg(feature = "onnx")]
use {
    crate::{band_names, parse, print, progress, read_tiles},
    anyhow::Context,
    nadir_formats::AlignedBytes,
    nadir_quantize::{onnx, options::with_kernels, verify},
};

/// The subcommands of this file.
#[derive(Subcommand)]
pub enum Command {
    /// Run the float encoder, its ONNX file and the model file on the same tiles, and say where they part, place by place
    ///
    /// The float encoder runs in float64 and in candle (f32), the ONNX file in tract, the model in the runtime. A line for each place (stem,
    /// downsampling, block, head) gives cosine and signal-to-noise ratio of every two engines, and the relative error that the
    /// place itself adds in each engine, measured against float64 from that engine's own input to the place. The first place that adds more than
    /// its precision explains (f32 2e-5, f16 3e-3, int8 0.15) is named, and the exit code is 2.
    #[cfg(feature = "onnx")]
    Verify(Verify),
    /// Not there: built without the feature onnx
    #[cfg(not(feature = "onnx"))]
    #[command(hide = true)]
    Verify(Verify),
}

/// Arguments of `verify`.
#[derive(Args)]
pub struct Verify {
    /// The model
    #[arg(value_name = "X.nadir")]
    model: PathBuf,
    /// The encoder from which it was made
    #[arg(long, value_name = "X.safetensors|X.onnx")]
    float: PathBuf,
    /// The same encoder as ONNX, if --float is not
    #[arg(long, value_name = "X.onnx")]
    onnx: Option<PathBuf>,
    /// Model card of ONNX files that hold none
    #[arg(long, value_name = "CARD.json")]
    card: Option<PathBuf>,
    /// Tiles [tiles, bands, height, width]
    #[arg(long, value_name = "T.npy")]
    tiles: PathBuf,
    /// Tiles to run, evenly spaced
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Bands of the tiles in their order, if not the model's: B4,B3,B2
    #[arg(long, value_delimiter = ',')]
    bands: Option<Vec<String>>,
    /// The largest relative error that a place of the model may add, if not its precision's
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// Kernels by name, if not the fastest: see `quantize kernels`
    #[arg(long, value_name = "NAME")]
    kernels: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs a subcommand.
pub fn run(command: Command) -> Result<()> {
    let Command::Verify(arguments) = command;
    arguments.run()
}

/// Reads a float encoder by the end of its name; `card` is for ONNX files without one.
pub fn read_float(path: &Path, card: Option<&Path>) -> Result<Encoder> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("pth" | "pt" | "bin" | "ckpt") => bail!(
            "{}: is a PyTorch checkpoint; make a .safetensors of it: trainer import --checkpoint {} --out encoder.safetensors",
            path.display(),
            path.display()
        ),
        #[cfg(feature = "onnx")]
        Some("onnx") => Ok(onnx::read(path, card)?.encoder),
        #[cfg(not(feature = "onnx"))]
        Some("onnx") => bail!("{}: this build reads no ONNX (feature onnx is off)", path.display()),
        _ => {
            ensure!(card.is_none(), "--card: a .safetensors has its card inside or beside it as NAME.card.json");
            Ok(Encoder::read(path)?)
        }
    }
}

#[cfg(not(feature = "onnx"))]
impl Verify {
    fn run(self) -> Result<()> {
        bail!("this build has no verify (feature onnx is off)")
    }
}

#[cfg(feature = "onnx")]
impl Verify {
    fn run(self) -> Result<()> {
        if let Some(tolerance) = self.tolerance {
            ensure!(tolerance > 0.0, "--tolerance {tolerance} must be above 0");
        }
        let bytes = AlignedBytes::read(&self.model)?;
        let model = parse(&bytes, &self.model)?;
        let engine = with_kernels(&model, self.kernels.as_deref())?;
        let is_onnx = |path: &Path| path.extension().is_some_and(|e| e == "onnx");
        ensure!(self.onnx.is_none() || !is_onnx(&self.float), "--onnx: --float is an ONNX file already");
        let path = self.onnx.as_deref().or(Some(&self.float).filter(|path| is_onnx(path)).map(PathBuf::as_path));
        let graph = path.map(|path| onnx::read(path, self.card.as_deref())).transpose()?;
        let read = if is_onnx(&self.float) { None } else { Some(read_float(&self.float, None)?) };
        let encoder = read.as_ref().or(graph.as_ref().map(|g| &g.encoder)).context("no float encoder")?;
        let others = [(encoder, &self.float)]
            .into_iter()
            .chain(graph.iter().zip(&self.onnx).map(|(g, path)| (&g.encoder, path)));
        for (other, path) in others {
            let differ = |what: &str| format!("{} and {} differ in {what}", self.model.display(), path.display());
            ensure!(other.card.architecture == *model.architecture(), differ("architecture"));
            ensure!(other.card.bands().is_ok_and(|bands| bands == model.bands()), differ("bands"));
        }
        let side = usize::from(model.architecture().tile_size);
        let all = read_tiles(&self.tiles, self.bands.as_deref(), &band_names(&model), side)?;
        let count = all.len().min(self.count as usize);
        let tiles = all.pick(&(0..count).map(|i| i * all.len() / count).collect::<Vec<_>>());
        let bar = progress(count, "verify", "tiles");
        let report = verify::verify(encoder, graph.as_ref(), &engine, &tiles, self.tolerance, || bar.inc(1))?;
        bar.finish_and_clear();
        print(&if self.json { format!("{:#}\n", report.json()) } else { report.text() })?;
        match report.parting() {
            None => Ok(()),
            Some(verify::Parting { engine, place, error, limit }) => bail!(
                "{} parts from the float64 reference at {place}, which adds a relative error of {error:.2e}; {limit:.2e} is explained",
                report.engines[engine]
            ),
        }
    }
}
