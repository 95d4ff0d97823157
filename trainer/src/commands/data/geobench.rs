//! `trainer data geobench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::data::{folder, geobench};

/// Turn a dataset of GEO-Bench 1.0 into tiles, labels and a split
///
/// DIR is one dataset's folder as published, for instance classification_v1.0/m-eurosat, and keeps that name: known faults of the
/// published files are corrected by it (wrong band names of m-eurosat and m-brick-kiln, the scale and the absent bands of m-so2sat).
/// What was corrected stands in dataset.json.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer data geobench --folder classification_v1.0/m-eurosat --out m-eurosat\n  \
    trainer probe --model zepto.safetensors --data m-eurosat --normalise data")]
pub struct Geobench {
    /// The dataset's folder
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,

    /// The partition: default, or one with few labels such as 0.01x_train
    #[arg(long, value_name = "NAME", default_value = "default")]
    partition: String,

    /// Keep band names and values as they are in the files, wrong as some are: what MMEarth's published figures rest on
    #[arg(long)]
    as_released: bool,

    /// Cut tiles into squares of so many pixels; what is left over is dropped. Models take at most 256
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..))]
    cut: Option<u16>,

    /// The dataset folder to write
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
}

impl Geobench {
    pub(super) fn run(self) -> Result<()> {
        folder::prepare(&self.out)?;
        let mut data = geobench::read(&self.folder, &self.partition, self.as_released)?;
        if let Some(side) = self.cut {
            data = data.cut(side.into())?;
        }
        folder::write(&self.out, &data.about, &data.tiles, &data.labels, &data.split)?;
        let count = |code: i64| data.split.iter().filter(|c| **c == code).count();
        println!(
            "{}: {} tiles of {} bands and {} pixels a side; train {}, validation {}, test {}",
            self.out.display(),
            data.tiles.len(),
            data.tiles.shape[1],
            data.tiles.shape[2],
            count(0),
            count(1),
            count(2)
        );
        for correction in &data.about.corrections {
            println!("{correction}");
        }
        Ok(())
    }
}
