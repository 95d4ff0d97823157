//! The float engine.

use super::EmbedError;
use crate::Tile;
use crate::model::Model;

/// Bytes of the arena.
pub(crate) fn arena_bytes(_model: &Model<'_>) -> usize {
    0
}

/// Embeds one tile; lengths and alignment were checked by [`super::Encoder::embed`], and `arena` has exactly [`arena_bytes`] bytes.
pub(crate) fn embed(
    _model: &Model<'_>,
    _tile: &Tile<'_>,
    _arena: &mut [u8],
    _out: &mut [f32],
) -> Result<(), EmbedError> {
    Err(EmbedError::ArenaTooSmall { found: 0, needed: 0 })
}
