//! Embeds many tiles with the runtime, on all threads of the machine.

use anyhow::Result;
use nadir::encoder::Encoder;
use nadir::model::Model;
use nadir_formats::{Matrix, Tiles};

use crate::batch::{available_threads, embed_all};

/// The embeddings `[tiles, dimension]` of `tiles`, whose bands are in the model's order, with the fastest kernels. `done` is called after
/// each tile, from any thread.
///
/// # Errors
/// If the tiles do not have the model's shape; the message names both.
pub fn embed(model: &Model<'_>, tiles: &Tiles, done: impl Fn() + Sync) -> Result<Matrix> {
    embed_all(&Encoder::new(model), tiles, available_threads(), done)
}

/// Whether tiles `[tiles, bands, height, width]` fit the model.
///
/// # Errors
/// If not; the message names both shapes.
pub fn check_shape(model: &Model<'_>, tiles: &Tiles) -> Result<()> {
    let (bands, side) = (model.bands().len(), usize::from(model.architecture().tile_size));
    let [_, c, h, w] = tiles.shape;
    anyhow::ensure!(
        [c, h, w] == [bands, side, side],
        "tiles have shape {:?}, the model takes [tiles, {bands}, {side}, {side}]",
        tiles.shape
    );
    Ok(())
}
