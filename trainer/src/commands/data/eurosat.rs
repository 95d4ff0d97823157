//! `trainer data eurosat`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::data::{eurosat, folder};

/// Turn EuroSAT's folders of images into tiles, labels and a split
///
/// DIR holds a folder a class with its images: JPEG of three bands (red, green, blue) or GeoTIFF of thirteen, of one size. Classes are
/// numbered in the order of their names. EuroSAT has no split of its own: without --lists one is drawn from each class alike, so that
/// neighbouring tiles may fall into different parts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  trainer data eurosat --folder EuroSAT_RGB --out eurosat\n  \
    trainer data eurosat --folder EuroSAT_MS --lists train.txt,val.txt,test.txt --out eurosat13")]
pub struct Eurosat {
    /// The folder of class folders
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,

    /// Lists of file names, one a line, that train, validate and test, in place of a drawn split; the ending does not count
    #[arg(long, value_name = "TRAIN,VAL,TEST", value_delimiter = ',')]
    lists: Vec<PathBuf>,

    /// Seed of the drawn split: 70 % train, 10 % validate, 20 % test
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The dataset folder to write
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
}

impl Eurosat {
    pub(super) fn run(self) -> Result<()> {
        let given = self.lists.len();
        ensure!(given == 0 || given == 3, "--lists: takes three files, not {given}");
        folder::prepare(&self.out)?;
        let images = eurosat::find(&self.folder)?;
        let split = match self.lists.as_slice() {
            [] => eurosat::draw_split(&images, self.seed),
            lists => eurosat::listed_split(&images, lists)?,
        };
        let tiles = eurosat::read(&images)?;
        let about = eurosat::describe(&images, &tiles);
        let labels = folder::Stored::Classes(images.files.iter().map(|(class, _)| *class as i64).collect());
        folder::write(&self.out, &about, &tiles, &labels, &split)?;
        let count = |code: i64| split.iter().filter(|c| **c == code).count();
        println!(
            "{}: {} tiles of {} classes and {} bands; train {}, validation {}, test {}, not used {}",
            self.out.display(),
            tiles.len(),
            images.classes.len(),
            tiles.shape[1],
            count(0),
            count(1),
            count(2),
            count(-1)
        );
        Ok(())
    }
}
