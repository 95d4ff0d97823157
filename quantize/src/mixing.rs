//! The options of `convert` for mixed precision: which layers of an int8 model are raised to inputs of 14 bits.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nadir::model::{Model, Place, Precision};
use nadir_formats::{AlignedBytes, Encoder, Tiles, write_atomic};
use nadir_quantize::float;
use nadir_quantize::inspect::thousands;
use nadir_quantize::int8::Mixable;
use nadir_quantize::mixed::{
    Closeness, Judge, Line, Sensitivities, Table, choose, measure, raised_by, read_table, runs,
};

use crate::{print, progress, writable};

#[derive(Args)]
#[command(next_help_heading = "Mixed precision (docs/quantization.md)")]
pub struct Mixed {
    /// Raise as few layers of an int8 model to inputs of 14 bits as bring the mean cosine to the float encoder to X, the most sensitive first
    #[arg(long, value_name = "X", value_parser = cosine, requires = "judge", conflicts_with = "table")]
    min_cosine: Option<f64>,
    /// The most bytes of the file: without --min-cosine every layer is raised that brings 0.1 dB, as raised layers cost time and no bytes
    #[arg(long, value_name = "N", requires = "judge", conflicts_with = "table")]
    max_bytes: Option<u64>,
    /// Tiles [tiles, bands, height, width] on which layers are judged: from the training data, but not those that calibrate
    #[arg(long, value_name = "TILES.npy")]
    judge: Option<PathBuf>,
    /// Raise the layers that this table says, as --table-out wrote it and a person may have edited it
    #[arg(long, value_name = "LAYERS.csv")]
    table: Option<PathBuf>,
    /// Write a line a layer: its precision, those that it can have, what raising it alone brings, bytes and multiply-adds
    #[arg(long, value_name = "LAYERS.csv", requires = "judge")]
    table_out: Option<PathBuf>,
}

fn cosine(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cosine) if (0.0..1.0).contains(&cosine) => Ok(cosine),
        _ => Err(format!("{text} is not a number from 0 to below 1")),
    }
}

/// The files that were named, read.
pub struct Asked {
    judge: Option<Tiles>,
    table: Option<Vec<Line>>,
}

/// What may have been found out about the models that could be written.
struct Measured {
    sensitivities: Sensitivities,
    chosen: Closeness,
}

impl Mixed {
    /// Whether layers may be raised.
    pub fn is_asked(&self) -> bool {
        self.judge.is_some() || self.table.is_some()
    }

    /// Finds out what can be known before the work.
    pub fn check(&self, precision: Precision, calibrate: Option<&Path>) -> Result<()> {
        ensure!(
            precision == Precision::Int8 || !self.is_asked(),
            "--judge and --table choose layers of an int8 model, this one is to be {}",
            precision.name()
        );
        if let Some(judge) = &self.judge {
            let same =
                |path: &Path| path.canonicalize().is_ok_and(|path| judge.canonicalize().is_ok_and(|j| path == j));
            ensure!(
                !calibrate.is_some_and(same),
                "--judge: {} are the tiles that calibrate, on which every layer looks better than it is",
                judge.display()
            );
        }
        self.table_out.as_deref().map_or(Ok(()), writable)
    }

    /// Reads the files that are named, `tiles` those of tiles: before the work, so that it is not lost to a bad one.
    pub fn read(&self, tiles: &dyn Fn(&Path) -> Result<Tiles>) -> Result<Asked> {
        let table = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).map_err(anyhow::Error::from);
            text.and_then(|text| read_table(&text)).with_context(|| path.display().to_string())
        };
        Ok(Asked {
            judge: self.judge.as_deref().map(tiles).transpose()?,
            table: self.table.as_ref().map(table).transpose()?,
        })
    }

    /// The model with the layers raised that were asked for; the table goes to standard output. `equip` makes a file what it is in the end.
    pub fn int8(
        &self,
        encoder: &Encoder,
        mixable: &Mixable<'_>,
        asked: &Asked,
        equip: &dyn Fn(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let plain = mixable.file(&[])?;
        if !self.is_asked() {
            return Ok(plain);
        }
        let raised = self.table_choice(asked, &plain, mixable)?;
        let f16 = float::convert(encoder, Precision::F16)?;
        let [int8_bytes, f16_bytes] = [equip(&plain)?.len() as u64, equip(&f16)?.len() as u64];
        if let Some(bound) = self.max_bytes.filter(|&bound| int8_bytes > bound) {
            let [bound, int8, f16] = [bound, int8_bytes, f16_bytes].map(thousands);
            bail!("--max-bytes: the int8 file has {int8} bytes, the f16 file {f16}: none has {bound} or fewer");
        }
        let tiles = asked.judge.as_ref();
        let bar = progress(tiles.map_or(0, |tiles| tiles.len() * runs(mixable)), "judge", "tiles");
        let done = || bar.inc(1);
        let judge = tiles.map(|tiles| Judge::new(encoder, tiles, &done)).transpose()?;
        let (raised, measured) = match &judge {
            None => (raised.unwrap_or_default(), None),
            Some(judge) => {
                let sensitivities = measure(mixable, &f16, judge)?;
                let (chosen, raised) = match raised {
                    Some(raised) => (judge.closeness(&mixable.file(&raised)?)?, raised),
                    None if self.min_cosine.is_some() || self.max_bytes.is_some() => {
                        choose(mixable, &sensitivities, judge, self.min_cosine).context("--min-cosine")?
                    }
                    None => (sensitivities.int8, Vec::new()),
                };
                (raised, Some(Measured { sensitivities, chosen }))
            }
        };
        bar.finish_and_clear();
        let file = mixable.file(&raised)?;
        let aligned = AlignedBytes::copy_of(&file);
        let sensitivities = measured.as_ref().map(|measured| &measured.sensitivities);
        let table = Table::of(&Model::parse(&aligned)?, mixable, sensitivities);
        let footer = footer(&raised, measured.as_ref(), int8_bytes, f16_bytes);
        if let Some(out) = &self.table_out {
            write_atomic(out, table.csv(&footer).as_bytes())?;
        }
        print(&table.text(&footer))?;
        Ok(file)
    }

    /// What the edited table raises, if there is one.
    fn table_choice(&self, asked: &Asked, plain: &[u8], mixable: &Mixable<'_>) -> Result<Option<Vec<Place>>> {
        let (Some(path), Some(lines)) = (&self.table, &asked.table) else { return Ok(None) };
        let plain = AlignedBytes::copy_of(plain);
        let layers = Table::of(&Model::parse(&plain)?, mixable, None);
        raised_by(lines, mixable, &layers).map(Some).with_context(|| path.display().to_string())
    }
}

/// What stands below the table.
fn footer(raised: &[Place], measured: Option<&Measured>, int8_bytes: u64, f16_bytes: u64) -> String {
    let line = |what: &str, closeness: Option<&Closeness>, bytes: u64| {
        let near = closeness.map_or(String::new(), |c| format!("cosine {:.6}, {:.1} dB, ", c.cosine, c.decibels));
        format!("{what:<28} {near}{} bytes\n", thousands(bytes))
    };
    let of = |of: fn(&Measured) -> &Closeness| measured.map(of);
    line("int8", of(|m| &m.sensitivities.int8), int8_bytes)
        + &line(&format!("as chosen, {} raised", raised.len()), of(|m| &m.chosen), int8_bytes)
        + &line("f16, another engine", of(|m| &m.sensitivities.f16), f16_bytes)
}
