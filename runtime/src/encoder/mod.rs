//! A tile, a model and an arena in; an embedding out.
//!
//! The engine is chosen by the model's precision: `float.rs` for f32 and f16,
//! `int8.rs` for int8.

mod arena;
mod buffer;
mod cursor;
#[cfg(feature = "float")]
mod float;
mod int8;

use crate::Tile;
#[cfg(feature = "float")]
use crate::kernels::float::FloatKernels;
use crate::kernels::int8::Int8Kernels;
use crate::model::int8_layout::stored;
use crate::model::{Model, Place, Precision, STAGES};
use crate::plan::int8::{Passes, StagePasses, int8_passes};
use crate::plan::padded;
pub use buffer::{ArenaBuffer, StaticPlan};
pub(crate) use cursor::Cursor;

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
    /// The model is of f32 or f16, and this build has no engine for it.
    #[error("the model has floating-point weights, this build runs int8 models only (feature float is off)")]
    NoFloat,
    /// The place for the embedding has another length than the embedding.
    #[error("embedding has {expected} values, there is place for {found}")]
    EmbeddingLength {
        /// Values that fit.
        found: usize,
        /// Values of an embedding.
        expected: usize,
    },
}

/// Why an encoder cannot be had as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// No schedule fits the memory.
    #[error("the smallest arena of this model has {needed} bytes, {budget} are allowed")]
    Budget {
        /// Bytes allowed.
        budget: usize,
        /// Bytes that the most frugal schedule needs.
        needed: usize,
    },
    /// This processor has no kernels of that name, or there are none.
    #[error("no such kernels on this processor")]
    Kernels,
}

/// Executes one model. Neither allocates nor starts threads; a copy is a few words, and any number of threads may embed with the same one
/// at once, each with its own arena:
///
/// ```
/// # use nadir::{Tile, encoder::{EmbedError, Encoder}};
/// /// `arenas` hold [`Encoder::arena_bytes`] each, `embeddings` an embedding for each tile.
/// fn embed_on_threads(
///     encoder: &Encoder<'_>,
///     tiles: &[&[u8]],
///     arenas: &mut [&mut [u8]],
///     embeddings: &mut [Vec<f32>],
/// ) -> Result<(), EmbedError> {
///     let share = tiles.len().div_ceil(arenas.len());
///     std::thread::scope(|scope| {
///         let work = tiles.chunks(share).zip(embeddings.chunks_mut(share)).zip(arenas);
///         let threads: Vec<_> = work
///             .map(|((tiles, embeddings), arena)| {
///                 scope.spawn(move || {
///                     tiles.iter().zip(embeddings).try_for_each(|(tile, to)| encoder.embed(Tile::U8(tile), arena, to))
///                 })
///             })
///             .collect();
///         threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
///     })
/// }
/// ```
///
/// `nadir_quantize::batch` does so for the tiles of a file.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'m> {
    model: &'m Model<'m>,
    passes: StagePasses,
    int8: &'static Int8Kernels,
    #[cfg(feature = "float")]
    float: &'static FloatKernels,
}

impl<'m> Encoder<'m> {
    /// An encoder over a checked model: the fastest kernels that this processor runs, every hidden map computed once.
    pub fn new(model: &'m Model<'m>) -> Self {
        Self {
            model,
            passes: [Passes::One; STAGES],
            int8: Int8Kernels::detect(),
            #[cfg(feature = "float")]
            float: FloatKernels::detect(),
        }
    }

    /// The same with stages in one pass or two ([`crate::plan::int8`]); embeddings do not change. f32 and f16 models keep to one.
    pub fn with_passes(mut self, passes: StagePasses) -> Self {
        self.passes = passes;
        self
    }

    /// The same with the passes that fit an arena of `budget` bytes at the fewest multiply-adds.
    ///
    /// # Errors
    /// [`ConfigureError::Budget`] if even two passes everywhere need more.
    pub fn within(self, budget: usize) -> Result<Self, ConfigureError> {
        let passes = match self.model.precision() {
            Precision::Int8 => int8_passes(self.model.architecture(), self.model.bands().len(), budget),
            Precision::F32 | Precision::F16 => (self.arena_bytes() <= budget).then_some([Passes::One; STAGES]),
        };
        let needed = self.with_passes([Passes::Two; STAGES]).arena_bytes();
        passes.map(|passes| self.with_passes(passes)).ok_or(ConfigureError::Budget { budget, needed })
    }

    /// The same with the kernels of this name, for instance `scalar`.
    ///
    /// # Errors
    /// [`ConfigureError::Kernels`] if the model's precision has no such set, or this processor does not run it.
    pub fn with_kernels(mut self, name: &str) -> Result<Self, ConfigureError> {
        match self.model.precision() {
            Precision::Int8 => self.int8 = Int8Kernels::by_name(name).ok_or(ConfigureError::Kernels)?,
            #[cfg(not(feature = "float"))]
            Precision::F32 | Precision::F16 => return Err(ConfigureError::Kernels),
            #[cfg(feature = "float")]
            Precision::F32 | Precision::F16 => {
                self.float = FloatKernels::by_name(name).ok_or(ConfigureError::Kernels)?;
            }
        }
        Ok(self)
    }

    /// Name of the kernels.
    pub fn kernels(&self) -> &'static str {
        match self.model.precision() {
            Precision::Int8 => self.int8.name,
            #[cfg(not(feature = "float"))]
            Precision::F32 | Precision::F16 => "none",
            #[cfg(feature = "float")]
            Precision::F32 | Precision::F16 => self.float.name,
        }
    }

    /// The model.
    pub fn model(&self) -> &'m Model<'m> {
        self.model
    }

    /// The passes of each stage.
    pub fn passes(&self) -> StagePasses {
        self.passes
    }

    fn int8(&self) -> int8::Engine<'m> {
        int8::Engine { model: self.model, passes: self.passes, kernels: self.int8 }
    }

    /// Bytes of the arena that a run needs, fixed by the model's architecture, bands and precision, and the passes.
    pub fn arena_bytes(&self) -> usize {
        match self.model.precision() {
            #[cfg(not(feature = "float"))]
            Precision::F32 | Precision::F16 => 0,
            #[cfg(feature = "float")]
            Precision::F32 | Precision::F16 => float::arena_bytes(self.model),
            Precision::Int8 => self.int8().arena_bytes(),
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
        let mut run = self.start(tile, arena, embedding)?;
        while run.step()? == Step::More {}
        Ok(())
    }

    /// Prepares a run that the caller carries on step by step; the arguments are those of [`Encoder::embed`].
    ///
    /// # Errors
    /// As [`Encoder::embed`].
    pub fn start<'r>(
        &self,
        tile: Tile<'r>,
        arena: &'r mut [u8],
        embedding: &'r mut [f32],
    ) -> Result<Run<'m, 'r>, EmbedError> {
        if cfg!(not(feature = "float")) && self.model.precision() != Precision::Int8 {
            return Err(EmbedError::NoFloat);
        }
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
        Ok(Run { encoder: *self, tile, arena, embedding, at: Some(Cursor::START) })
    }

    /// Takes up a run where another with the same tile and arena stood ([`Run::cursor`]).
    ///
    /// # Errors
    /// As [`Encoder::start`].
    #[cfg(feature = "capi")]
    pub(crate) fn resume<'r>(
        &self,
        tile: Tile<'r>,
        arena: &'r mut [u8],
        embedding: &'r mut [f32],
        at: Cursor,
    ) -> Result<Run<'m, 'r>, EmbedError> {
        self.start(tile, arena, embedding).map(|run| Run { at: Some(at), ..run })
    }
}

/// Whether a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// The embedding is written.
    Done,
}

/// One tile on its way through the encoder, in steps of bounded work: a strip of at most 64 pixels of one layer group.
///
/// A run may rest between steps for as long as it likes, and splitting it changes no bit of the embedding.
#[derive(Debug)]
pub struct Run<'m, 'r> {
    encoder: Encoder<'m>,
    tile: Tile<'r>,
    arena: &'r mut [u8],
    embedding: &'r mut [f32],
    at: Option<Cursor>,
}

impl Run<'_, '_> {
    /// Does the next step; after the last nothing more.
    ///
    /// # Errors
    /// Never for an arena that [`Encoder::start`] accepted.
    pub fn step(&mut self) -> Result<Step, EmbedError> {
        if let Some(at) = self.at {
            self.at = match self.encoder.model.precision() {
                Precision::Int8 => self.encoder.int8().step(&self.tile, self.arena, at, self.embedding)?,
                #[cfg(not(feature = "float"))]
                Precision::F32 | Precision::F16 => return Err(EmbedError::NoFloat),
                #[cfg(feature = "float")]
                Precision::F32 | Precision::F16 => {
                    let Encoder { model, float, .. } = self.encoder;
                    float::step(model, float, &self.tile, self.arena, at, self.embedding)?
                }
            };
        }
        Ok(if self.at.is_some() { Step::More } else { Step::Done })
    }

    /// What [`Encoder::resume`] needs to go on; `None` after the last step.
    #[cfg(feature = "capi")]
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        self.at
    }

    /// Where the next step works, and `None` after the last.
    pub fn place(&self) -> Option<Place> {
        self.at.map(|at| at.place)
    }

    /// The residual map of an int8 model after the last whole layer group, `[height, width, stored channels]`; only between two places, that is
    /// when [`Run::place`] has just changed, is it that of one of them.
    pub fn residual(&self) -> Option<&[i16]> {
        let (arch, stage) = (self.encoder.model.architecture(), self.stage()?);
        let len = arch.grid(stage).pow(2) * stored(arch.dim(stage));
        let bytes = self.arena.get(..2 * len).filter(|_| self.encoder.model.precision() == Precision::Int8)?;
        bytemuck::try_cast_slice(bytes).ok()
    }

    /// The same of an f32 or f16 model, `[panels, height, width, 16]`; what is left of the last panel of channels means nothing.
    pub fn float_residual(&self) -> Option<&[f32]> {
        let (arch, stage) = (self.encoder.model.architecture(), self.stage()?);
        let len = arch.grid(stage).pow(2) * padded(arch.dim(stage));
        let bytes = self.arena.get(..4 * len).filter(|_| self.encoder.model.precision() != Precision::Int8)?;
        bytemuck::try_cast_slice(bytes).ok()
    }

    /// The stage to which the residual map before the next step belongs.
    fn stage(&self) -> Option<usize> {
        Some(match self.at?.place {
            Place::Stem | Place::Block { stage: 0, .. } => 0,
            Place::Downsample { stage } => usize::from(stage) - 1,
            Place::Block { stage, .. } => stage.into(),
            Place::Head => STAGES - 1,
        })
    }
}
