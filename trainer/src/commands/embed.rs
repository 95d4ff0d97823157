//! `trainer embed`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use nadir_formats::{Pixels, Tiles};

use super::device::DeviceArgs;
use super::{fit_tiles, read_model};
use crate::data::AS_IS;
use crate::run::embed_tiles;

/// Write the embeddings of tiles
///
/// The output is a .npy of f32 [tiles, dimension]. A tile's embedding does not depend on the other tiles.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer embed --model zepto.safetensors --tiles tiles.npy --out embeddings.npy")]
pub struct Embed {
    /// The encoder
    #[arg(long, value_name = "MODEL.safetensors")]
    model: PathBuf,

    /// The tiles: .npy [tiles, bands, side, side] of type u8, u16 or f32, values as the sensor stores them
    #[arg(long, value_name = "T.npy")]
    tiles: PathBuf,

    /// Names of the tiles' bands, in their order [default: the model's]
    #[arg(long, value_name = "NAMES")]
    bands: Option<String>,

    /// Where to write the embeddings
    #[arg(long, value_name = "E.npy")]
    out: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,
}

impl Embed {
    pub(super) fn run(self) -> Result<()> {
        let folder = self.out.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder {
            ensure!(folder.is_dir(), "{}: {} is not a folder", self.out.display(), folder.display());
        }
        let (card, encoder) = read_model(&self.model, &self.device.open(None)?)?;
        let tiles = fit_tiles(Tiles::read(&self.tiles)?, &self.tiles, self.bands.as_deref(), &card)?;
        let empty = without_data(&tiles, &card.bands);
        if empty > 0 {
            eprintln!("trainer: {empty} of {} tiles hold no data; they are embedded as the mean", tiles.len());
        }
        let embeddings = embed_tiles(&encoder, &tiles, &card.bands, AS_IS, "embedding")?;
        embeddings.write(&self.out)?;
        println!("{}: {} embeddings of {} dimensions", self.out.display(), embeddings.rows, embeddings.columns);
        Ok(())
    }
}

/// Number of tiles in which no pixel of any band holds data.
fn without_data(tiles: &Tiles, bands: &[nadir_formats::BandCard]) -> usize {
    if !matches!(tiles.pixels, Pixels::F32(_)) && bands.iter().all(|b| b.no_data.is_none()) {
        return 0;
    }
    let plane = tiles.tile_len() / bands.len();
    let known = |index: usize| {
        let tile = tiles.tile(index);
        (0..tiles.tile_len()).any(|at| {
            let no_data = bands[at / plane].no_data;
            tile.value(at).is_some_and(|v| v.is_finite() && Some(v) != no_data)
        })
    };
    (0..tiles.len()).filter(|&i| !known(i)).count()
}
