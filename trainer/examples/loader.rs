//! How many tiles a second the loader feeds: `loader DIR THREADS EPOCHS ROWS.json`.
//!
//! Prints one number, and writes the rows that were read, in their order, for `benches/loader.py` to read the same with h5py.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use nadir_trainer::data::mmearth::Release;
use nadir_trainer::data::mmearth::loader::{Loader, Options};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, epochs, rows_out] = &arguments[..] else {
        anyhow::bail!("usage: loader DIR THREADS EPOCHS ROWS.json");
    };
    let release = Arc::new(Release::open(Path::new(folder))?);
    let options = Options { threads: threads.parse()?, ..Options::of(&release) };
    let loader = Loader::new(release, options)?;
    let steps = epochs.parse::<usize>()? * loader.batches_per_epoch() as usize;
    let mut rows = Vec::new();
    let start = Instant::now();
    for batch in loader.prefetch(0)?.take(steps) {
        rows.extend(batch?.rows);
    }
    println!("{:.1}", rows.len() as f64 / start.elapsed().as_secs_f64());
    std::fs::write(rows_out, serde_json::to_string(&rows)?).with_context(|| rows_out.clone())
}
