//! The options of `convert` that concern int8: calibration, and what is done about rounding errors.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nadir_formats::Encoder;
use nadir_quantize::int8::methods::Method;
use nadir_quantize::int8::{self, Choice, Correction, Mixable, Options, Rounding, coverage};

use crate::mixing::Mixed;
use crate::{progress, read_tiles};

#[derive(Args)]
pub struct CalibrationArgs {
    /// Tiles [tiles, bands, height, width] that set the scales of an int8 model, best 128 or more from the training data; at most 512 are
    /// used, evenly spaced. Not used for f32 and f16
    #[arg(long, value_name = "TILES.npy")]
    calibrate: Option<PathBuf>,
    /// Bands of the calibration tiles in their order, if not the model's: B4,B3,B2
    #[arg(long, value_delimiter = ',')]
    bands: Option<Vec<String>>,
    /// What decides how far the range of an int8 scale reaches
    #[arg(long, default_value = "minmax")]
    calibration: CalibrationArg,
    /// Share of the values that the range holds, for --calibration percentile
    #[arg(long, value_name = "PERCENT", default_value_t = 99.99, value_parser = percentile)]
    percentile: f64,
    /// How the weights of dense layers are rounded
    #[arg(long, default_value = "gptq")]
    rounding: RoundingArg,
    /// Whether biases take up the mean error of rounded weights
    #[arg(long, default_value = "on")]
    bias_correction: Switch,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum CalibrationArg {
    /// Place by place the method whose layer has the best signal-to-noise ratio on tiles that did not set its scale
    Auto,
    /// All values seen
    Minmax,
    /// All but a small share of the values
    Percentile,
    /// Least information lost
    Entropy,
    /// Least squared error, clipped values counting more
    Mse,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum RoundingArg {
    /// Each weight to the nearest integer
    Nearest,
    /// Together, so that the errors of one take back those of another
    Gptq,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn percentile(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (50.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("{text} is not a number from 50 to 100")),
    }
}

impl CalibrationArgs {
    fn options(&self) -> Options {
        let calibration = match self.calibration {
            CalibrationArg::Auto => Choice::Auto,
            CalibrationArg::Minmax => Choice::Fixed(Method::MinMax),
            CalibrationArg::Percentile => Choice::Fixed(Method::Percentile(self.percentile)),
            CalibrationArg::Entropy => Choice::Fixed(Method::Entropy),
            CalibrationArg::Mse => Choice::Fixed(Method::MeanSquare),
        };
        let rounding = match self.rounding {
            RoundingArg::Nearest => Rounding::Nearest,
            RoundingArg::Gptq => Rounding::Gptq,
        };
        Options { calibration, correction: Correction { rounding, bias: self.bias_correction == Switch::On } }
    }

    /// The file of the calibration tiles, if one was given.
    pub fn tiles(&self) -> Option<&Path> {
        self.calibrate.as_deref()
    }

    /// An int8 model from `encoder`, with the layers raised that `mixed` says; `equip` makes a file what it is in the end. What speaks against the
    /// calibration tiles, and what was chosen for which place, goes to standard error.
    pub fn int8(&self, encoder: &Encoder, mixed: &Mixed, equip: &dyn Fn(&[u8]) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.calibrate.as_deref().context("an int8 model needs --calibrate TILES.npy")?;
        let card = &encoder.card;
        let side = usize::from(card.architecture.tile_size);
        let read = |path: &Path| read_tiles(path, self.bands.as_deref(), &card.band_names(), side);
        let tiles = read(path)?;
        let asked = mixed.read(&read)?;
        let named = |path: &Path| path.display().to_string();
        for warning in
            coverage::warnings(&tiles, &card.bands).map_err(anyhow::Error::msg).with_context(|| named(path))?
        {
            eprintln!("quantize: warning: {}: {warning}", path.display());
        }
        let bar = progress(int8::steps(encoder, tiles.len()), "calibrate", "steps");
        let mixable = Mixable::convert(encoder, &tiles, self.options(), mixed.is_asked(), &|| bar.inc(1))?;
        bar.finish_and_clear();
        for chosen in mixable.chosen.iter().filter(|chosen| !chosen.decibels.is_empty()) {
            let ratio = |(method, decibels): (&Method, &f64)| format!("{} {decibels:.1}", method.name());
            let ratios: Vec<String> = Method::ALL.iter().zip(&chosen.decibels).map(ratio).collect();
            eprintln!("{:<20} {:<16} dB: {}", chosen.place, chosen.method.name(), ratios.join(", "));
        }
        mixed.int8(encoder, &mixable, &asked, equip)
    }
}
