//! `trainer data split`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::check_out;
use crate::data::mmearth::Release;
use crate::data::mmearth::split::{By, Split as Parts};

/// Part the tiles into train, validation and test by place, so that no place is in two parts
///
/// The release's own split leaves validation and test empty. The file is an object with lists of rows train, val and test, like the
/// release's. The draw depends on the places, the number of tiles in each and the seed alone.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  trainer data split --data data_100k_v001 --by ecoregion --seed 1 --out split.json\n  \
                        trainer data split --data data_100k_v001 --by grid --degrees 5 --seed 1 --out split.json"
)]
pub struct Split {
    /// A release folder of MMEarth, as published or packed
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// What stays together
    #[arg(long, value_enum)]
    by: Kind,

    /// Degrees a side of a grid's cells
    #[arg(long, value_name = "DEGREES", default_value_t = 1.0, value_parser = super::super::positive)]
    degrees: f64,

    /// Seed of the draw
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Share of the tiles for validation, which is never exceeded
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = super::super::not_negative)]
    val: f64,

    /// Share of the tiles for testing, which is never exceeded
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = super::super::not_negative)]
    test: f64,

    /// Where to write the split
    #[arg(long, value_name = "SPLIT.json")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// The tiles of an ecoregion
    Ecoregion,
    /// The tiles of a cell of latitude and longitude
    Grid,
}

impl Split {
    pub(super) fn run(self) -> Result<()> {
        check_out(&self.out)?;
        ensure!(self.val + self.test < 1.0, "--val {} and --test {} leave nothing to train on", self.val, self.test);
        let release = Release::open(&self.data)?;
        let by = match self.by {
            Kind::Ecoregion => By::Ecoregion,
            Kind::Grid => By::Grid { degrees: self.degrees },
        };
        let split = Parts::make(&release, by, self.seed, self.val, self.test)?;
        split.write(&self.out)?;
        let places = split.made.as_ref().map_or(0, |made| made.places);
        let (train, val, test) = (split.train.len(), split.val.len(), split.test.len());
        let out = self.out.display();
        println!("{out}: {train} train, {val} validation, {test} test; {places} places by {by}, seed {}", self.seed);
        let left_out = release.rows() - train - val - test;
        if left_out > 0 {
            println!("{left_out} tiles without a known place are left out");
        }
        Ok(())
    }
}
