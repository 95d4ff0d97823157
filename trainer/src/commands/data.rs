//! `trainer data`: releases of MMEarth, looked at, dumped, split and packed; labelled datasets made ready for probes.

mod dump;
mod eurosat;
mod geobench;
mod inspect;
mod pack;
mod split;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, anyhow, ensure};
use clap::{Args, Subcommand};

use crate::data::mmearth::Release;

/// Look at, dump, split and pack a release of MMEarth; make EuroSAT and GEO-Bench ready for probes
///
/// For a release of MMEarth, DIR is a release folder as published (data_*.h5 with its three .json files; 1M, 64 and 100k; v000 and v001), or a folder that
/// `trainer data pack` wrote.
#[derive(Debug, Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Dump(dump::Dump),
    Split(split::Split),
    Pack(pack::Pack),
    Eurosat(eurosat::Eurosat),
    Geobench(geobench::Geobench),
}

impl Data {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Command::Inspect(command) => command.run(),
            Command::Dump(command) => command.run(),
            Command::Split(command) => command.run(),
            Command::Pack(command) => command.run(),
            Command::Eurosat(command) => command.run(),
            Command::Geobench(command) => command.run(),
        }
    }
}

/// Chosen rows: `all`, or numbers and ranges as in `0,5,10-19`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rows {
    All,
    /// First and last row of each range.
    Ranges(Vec<(usize, usize)>),
}

impl FromStr for Rows {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let range = |part: &str| -> Option<(usize, usize)> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some((first, last))
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        Ok(Self::Ranges(ranges.ok_or_else(|| anyhow!("expected all, or rows as in 0,5,10-19"))?))
    }
}

impl Rows {
    /// The rows in the order given; fails if the release lacks one.
    fn of(&self, release: &Release) -> Result<Vec<usize>> {
        let Self::Ranges(ranges) = self else {
            return Ok((0..release.rows()).collect());
        };
        ranges.iter().try_for_each(|(_, last)| release.check_row(*last))?;
        Ok(ranges.iter().flat_map(|&(first, last)| first..=last).collect())
    }
}

/// `wanted` rows spread evenly over a release; all if it has no more.
fn spread(rows: usize, wanted: usize) -> Vec<usize> {
    let n = wanted.min(rows);
    (0..n).map(|i| i * rows / n).collect()
}

/// Fails if the folder for a new file does not exist, before anything is computed.
fn check_out(path: &Path) -> Result<()> {
    let folder = path.parent().map_or(PathBuf::new(), Path::to_owned);
    let there = folder.as_os_str().is_empty() || folder.is_dir();
    ensure!(there, "{}: {} is not a folder", path.display(), folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_text() {
        assert_eq!("all".parse::<Rows>().unwrap(), Rows::All);
        assert_eq!("0,5,10-19".parse::<Rows>().unwrap(), Rows::Ranges(vec![(0, 0), (5, 5), (10, 19)]));
        for bad in ["", "x", "3-1", "1,,2", "-1", "1-2-3"] {
            assert!(bad.parse::<Rows>().unwrap_err().to_string().contains("0,5,10-19"), "{bad}");
        }
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(2, 3), [0, 1]);
    }
}
