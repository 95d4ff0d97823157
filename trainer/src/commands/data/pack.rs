//! `trainer data pack`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::data::mmearth::{Release, packed};

/// Write a release as uncompressed shards, from which a tile is one read
///
/// Everything is kept: all datasets bit for bit, and the .json files. The packed folder is taken wherever a release folder is. It
/// is larger than the HDF5 file by what gzip saved. A packing that was killed goes on with the same command. On a complete folder
/// the command verifies all checksums (SHA-256, in manifest.json) and writes shards again that are missing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer data pack --data data_100k_v001 --out data_100k_v001_packed")]
pub struct Pack {
    /// A release folder of MMEarth, as published
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// The folder to write, new or begun before
    #[arg(long, value_name = "PACKED")]
    out: PathBuf,

    /// Largest shard in KiB; a shard holds at least one tile
    #[arg(long, value_name = "KIB", default_value_t = 1 << 18, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    shard_kib: u64,
}

impl Pack {
    pub(super) fn run(self) -> Result<()> {
        let release = Release::open(&self.data)?;
        let report = packed::pack(&release, &self.out, self.shard_kib << 10)?;
        let kept = report.shards - report.written;
        println!(
            "{}: {} tiles in {} shards, {:.1} MB; {} written, {kept} there before",
            self.out.display(),
            release.rows(),
            report.shards,
            report.bytes as f64 / 1e6,
            report.written
        );
        Ok(())
    }
}
