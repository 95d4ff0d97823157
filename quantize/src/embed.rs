//! Embeds many tiles with the runtime, on all threads; each thread has its own arena.

use anyhow::{Context, Result};
use nadir::encoder::Encoder;
use nadir::model::Model;
use nadir_formats::{AlignedBytes, Matrix, Tiles};
use rayon::prelude::*;

/// The embeddings `[tiles, dimension]` of `tiles`, whose bands are in the model's order. `done` is called after each tile, from any
/// thread.
///
/// # Errors
/// If the tiles do not have the model's shape; the message names the first such tile.
pub fn embed(model: &Model<'_>, tiles: &Tiles, done: impl Fn() + Sync) -> Result<Matrix> {
    check_shape(model, tiles)?;
    let encoder = Encoder::new(model);
    let columns = model.embedding_dimension();
    let mut data = vec![0.0; tiles.len() * columns];
    data.par_chunks_mut(columns).enumerate().try_for_each_init(
        || AlignedBytes::zeroed(encoder.arena_bytes()),
        |arena, (index, embedding)| {
            encoder.embed(tiles.tile(index), arena, embedding).with_context(|| format!("tile {index}"))?;
            done();
            anyhow::Ok(())
        },
    )?;
    Ok(Matrix { rows: tiles.len(), columns, data })
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
