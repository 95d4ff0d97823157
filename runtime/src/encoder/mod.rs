//! A tile, a model and an arena in; an embedding out.
//!
//! The engine is chosen by the model's precision: `float.rs` for f32 and f16,
//! `int8.rs` for int8.

mod arena;
mod cursor;
mod float;
mod int8;

use crate::Tile;
use crate::kernels::float::FloatKernels;
use crate::model::{Model, Precision};

/// Alignment that the arena needs, in bytes.
pub const ARENA_ALIGNMENT: usize = 16;

/// Why a tile could not be embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// The tile does not have the model's shape.
    #[error("tile has {found} values, the model takes {expected} ({bands} bands of {side}x{side} pixels)")]
    TileLength {
        /// Values given.
        found: usize,
        /// Values that the model takes.
        expected: usize,
        /// Bands of the model.
        bands: usize,
        /// Side of its tile in pixels.
        side: usize,
    },
    /// The arena is too small.
    #[error("arena has {found} bytes, {needed} needed")]
    ArenaTooSmall {
        /// Bytes given.
        found: usize,
        /// Bytes needed: [`Encoder::arena_bytes`].
        needed: usize,
    },
    /// The arena does not start at a multiple of [`ARENA_ALIGNMENT`].
    #[error("arena starts at address {address:#x}, must be a multiple of {ARENA_ALIGNMENT}")]
    ArenaMisaligned {
        /// Address of its first byte.
        address: usize,
    },
    /// The place for the embedding has another length than the embedding.
    #[error("embedding has {expected} values, there is place for {found}")]
    EmbeddingLength {
        /// Values that fit.
        found: usize,
        /// Values of an embedding.
        expected: usize,
    },
}

/// Executes one model.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'m> {
    model: &'m Model<'m>,
    float_kernels: &'static FloatKernels,
}

impl<'m> Encoder<'m> {
    /// An encoder over a checked model, with the fastest kernels that this processor can run. Costs next to nothing.
    pub fn new(model: &'m Model<'m>) -> Self {
        Self { model, float_kernels: FloatKernels::detect() }
    }

    /// The same with another set of f32 kernels; without effect on an int8 model.
    pub fn with_float_kernels(self, float_kernels: &'static FloatKernels) -> Self {
        Self { float_kernels, ..self }
    }

    /// Bytes of the arena that [`Encoder::embed`] needs, fixed by the model's architecture, bands and precision.
    pub fn arena_bytes(&self) -> usize {
        match self.model.precision() {
            Precision::F32 | Precision::F16 => float::arena_bytes(self.model),
            Precision::Int8 => int8::arena_bytes(self.model),
        }
    }

    /// Embeds one tile.
    ///
    /// - `tile`: `[bands, height, width]`, in the order of the model's bands.
    /// - `arena`: at least [`Encoder::arena_bytes`] bytes, starting at a multiple of [`ARENA_ALIGNMENT`]; its content before
    ///   does not matter, and after is undefined.
    /// - `embedding`: exactly [`Model::embedding_dimension`] values.
    ///
    /// # Errors
    /// If one of the three does not have its size or alignment; nothing is written then.
    pub fn embed(&self, tile: Tile<'_>, arena: &mut [u8], embedding: &mut [f32]) -> Result<(), EmbedError> {
        let (found, expected) = (tile.len(), self.model.tile_len());
        if found != expected {
            let side = usize::from(self.model.architecture().tile_size);
            return Err(EmbedError::TileLength { found, expected, bands: self.model.bands().len(), side });
        }
        let (found, expected) = (embedding.len(), self.model.embedding_dimension());
        if found != expected {
            return Err(EmbedError::EmbeddingLength { found, expected });
        }
        let address = arena.as_ptr() as usize;
        if !address.is_multiple_of(ARENA_ALIGNMENT) {
            return Err(EmbedError::ArenaMisaligned { address });
        }
        let (found, needed) = (arena.len(), self.arena_bytes());
        let Some(arena) = arena.get_mut(..needed) else {
            return Err(EmbedError::ArenaTooSmall { found, needed });
        };
        match self.model.precision() {
            Precision::F32 | Precision::F16 => float::embed(self.model, self.float_kernels, &tile, arena, embedding),
            Precision::Int8 => int8::embed(self.model, &tile, arena, embedding),
        }
    }
}
