//! `trainer data inspect`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nadir_formats::write_atomic;

use super::{Rows, check_out, spread};
use crate::data::mmearth::inspect::{Summary, blocks, summarise};
use crate::data::mmearth::{Level, Release, packed, sheet};

/// Tiles looked at, and shown, unless rows are given.
const LOOKED_AT: usize = 256;
const SHOWN: usize = 8;

/// Say what a release holds: counts, shares of no data, ranges, means and histograms of every band
///
/// Values are in stored units; what is no data (docs/data.md) is left out of ranges, means and histograms. Histograms have 16 bins
/// of equal width from the least to the greatest value.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  trainer data inspect --data data_100k_v001\n  \
                        trainer data inspect --data data_100k_v001 --rows 0,5,10-13 --out-png sheet.png")]
pub struct Inspect {
    /// A release folder of MMEarth, as published or packed
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Which tiles to look at: all, or rows as in 0,5,10-19 [default: 256 spread over the release]
    #[arg(long, value_name = "ROWS")]
    rows: Option<Rows>,

    /// Also draw all modalities of the chosen tiles (at most 64; 8 spread over the release if none are chosen)
    #[arg(long, value_name = "SHEET.png")]
    out_png: Option<PathBuf>,

    /// First verify the SHA-256 of every shard of a packed folder
    #[arg(long)]
    verify: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<()> {
        self.out_png.as_deref().map_or(Ok(()), check_out)?;
        let release = Release::open(&self.data)?;
        if self.verify {
            let shards = packed::verify(&self.data)?;
            println!("checksums        {shards} shards as packed");
        }
        let rows = match &self.rows {
            Some(rows) => rows.of(&release)?,
            None => spread(release.rows(), LOOKED_AT),
        };
        let count = |level| (0..release.rows()).filter(|&row| release.level(row) == level).count();
        let store = if release.is_packed() { "packed" } else { "HDF5" };
        println!("{}: {}, {store}", self.data.display(), release.stem());
        println!("tiles            {} of {1} x {1} pixels", release.rows(), release.side());
        println!("sentinel2        {} L1C, {} L2A", count(Level::L1c), count(Level::L2a));
        println!("looked at        {} tiles", rows.len());
        println!("\n{:<44} {:>9} {:>12} {:>12} {:>12}  histogram", "band", "no data", "min", "mean", "max");
        let summaries = summarise(&release, &rows)?;
        summaries.iter().for_each(print_numbers);
        println!("\n{:<44} {:>9}  classes by frequency", "classification", "no data");
        summaries.iter().for_each(print_classes);
        if let Some(path) = &self.out_png {
            let shown = if self.rows.is_some() { rows } else { spread(release.rows(), SHOWN) };
            write_atomic(path, &sheet::sheet(&release, &shown)?.png()?)?;
            println!("\n{}: {} tiles", path.display(), shown.len());
        }
        Ok(())
    }
}

fn share(missing: u64, known: u64) -> String {
    format!("{:.2} %", 100.0 * missing as f64 / (missing + known).max(1) as f64)
}

fn print_numbers(summary: &Summary) {
    for channel in &summary.channels {
        let name = format!("{} {}", summary.modality, channel.name);
        let missing = share(channel.missing, channel.known);
        if channel.known == 0 {
            println!("{name:<44} {missing:>9} {:>12} {:>12} {:>12}", "-", "-", "-");
            continue;
        }
        let bars = blocks(&channel.histogram);
        println!("{name:<44} {missing:>9} {:>12.4} {:>12.4} {:>12.4}  {bars}", channel.min, channel.mean, channel.max);
    }
    if summary.tiles_without > 0 && !summary.channels.is_empty() {
        println!("{:<44} {} tiles hold none of it", summary.modality.name(), summary.tiles_without);
    }
}

fn print_classes(summary: &Summary) {
    if summary.classes.is_empty() {
        return;
    }
    let known: u64 = summary.classes.iter().sum();
    let mut order: Vec<usize> = (0..summary.classes.len()).filter(|&c| summary.classes[c] > 0).collect();
    order.sort_by_key(|&c| std::cmp::Reverse(summary.classes[c]));
    let part = |&class: &usize| {
        let name = summary.modality.class_name(class).map_or(class.to_string(), str::to_owned);
        format!("{name} {:.1} %", 100.0 * summary.classes[class] as f64 / known as f64)
    };
    let most: Vec<String> = order.iter().take(6).map(part).collect();
    let more = if order.len() > 6 { format!(", {} more", order.len() - 6) } else { String::new() };
    let missing = share(summary.unclassified, known);
    println!("{:<44} {missing:>9}  {}{more}", summary.modality.name(), most.join(", "));
}
