//! The subcommands.

pub mod prototypes;
pub mod run;
pub mod show;
mod table;

use std::io::Write;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nadir::triage::quality::Limits;

/// Limits of the quality check, as options.
#[derive(clap::Args)]
pub struct QualityOptions {
    /// Veto a tile if more than this share of its pixels has no data
    #[arg(long, default_value_t = 0.5, value_name = "SHARE")]
    max_no_data: f32,
    /// Veto a tile if more than this share of its pixels is saturated
    #[arg(long, default_value_t = 0.3, value_name = "SHARE")]
    max_saturated: f32,
}

impl QualityOptions {
    /// As the runtime takes them.
    pub fn limits(&self) -> Result<Limits> {
        let permille = |name: &str, share: f32| {
            ensure!((0.0..=1.0).contains(&share), "--{name} {share} is not a share between 0 and 1");
            Ok((share * 1000.0).round() as u16)
        };
        Ok(Limits {
            no_data: permille("max-no-data", self.max_no_data)?,
            saturated: permille("max-saturated", self.max_saturated)?,
        })
    }
}

/// A bar on stderr with rate and time left; nothing where stderr is no terminal.
fn progress(tiles: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("embedding {bar:30} {pos}/{len} tiles, {per_sec}, {eta} left");
    let bar = ProgressBar::new(tiles as u64);
    style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

/// Writes to stdout; a reader that stopped reading (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}
