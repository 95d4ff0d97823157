//! An arena whose size is checked when the program is built.

use core::ops::{Deref, DerefMut};

use crate::model::{Architecture, Precision, STAGES};
use crate::plan::int8::{Passes, StagePasses};
use crate::plan::regions::arena_bytes;

/// A model whose shape is known when the program is built.
///
/// Only the shape: at run time [`super::Encoder::start`] still compares the arena with the model that it is given.
pub trait StaticPlan {
    /// Shape of the encoder.
    const ARCHITECTURE: Architecture;
    /// Number of its bands.
    const BANDS: usize;
    /// Form of its weights.
    const PRECISION: Precision = Precision::Int8;
    /// Passes of each stage, for int8.
    const PASSES: StagePasses = [Passes::One; STAGES];
    /// Bytes of the arena.
    const ARENA_BYTES: usize = arena_bytes(&Self::ARCHITECTURE, Self::BANDS, Self::PRECISION, Self::PASSES);
}

/// `BYTES` of arena, aligned to 64 bytes, which is more than [`super::ARENA_ALIGNMENT`] and what vector kernels like best.
///
/// One of exactly the size of the plan builds:
///
/// ```
/// use nadir::encoder::{ArenaBuffer, StaticPlan};
/// use nadir::model::Architecture;
/// # use nadir::model::StemPadding;
///
/// struct Yocto;
/// impl StaticPlan for Yocto {
///     const ARCHITECTURE: Architecture = Architecture {
///         // ...
/// #       tile_size: 64, patch_size: 16, stem_padding: StemPadding::Same, depths: [1, 1, 3, 1], dims: [16, 32, 64, 128],
/// #       grn_eps: 1e-6, ln_eps: 1e-6,
///     };
///     const BANDS: usize = 3;
/// }
///
/// let mut arena = ArenaBuffer::<{ Yocto::ARENA_BYTES }>::holding::<Yocto>();
/// assert_eq!(arena.len(), Yocto::ARENA_BYTES);
/// ```
///
/// One byte less does not:
///
/// ```compile_fail
/// # use nadir::encoder::{ArenaBuffer, StaticPlan};
/// # use nadir::model::{Architecture, StemPadding};
/// # struct Yocto;
/// # impl StaticPlan for Yocto {
/// #     const ARCHITECTURE: Architecture = Architecture {
/// #       tile_size: 64, patch_size: 16, stem_padding: StemPadding::Same, depths: [1, 1, 3, 1], dims: [16, 32, 64, 128],
/// #       grn_eps: 1e-6, ln_eps: 1e-6,
/// #     };
/// #     const BANDS: usize = 3;
/// # }
/// let mut arena = ArenaBuffer::<{ Yocto::ARENA_BYTES - 1 }>::holding::<Yocto>();
/// # assert!(arena.len() > 0);
/// ```
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct ArenaBuffer<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> ArenaBuffer<BYTES> {
    /// An arena for any model: whether it is large enough shows when a run starts.
    pub const fn new() -> Self {
        Self([0; BYTES])
    }

    /// An arena for models of the shape `P`: too small a one is an error when the program is built.
    pub const fn holding<P: StaticPlan>() -> Self {
        const { assert!(BYTES >= P::ARENA_BYTES, "the arena is smaller than the plan of its model") };
        Self::new()
    }
}

impl<const BYTES: usize> Default for ArenaBuffer<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const BYTES: usize> Deref for ArenaBuffer<BYTES> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const BYTES: usize> DerefMut for ArenaBuffer<BYTES> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StemPadding;

    struct Small;

    impl StaticPlan for Small {
        const ARCHITECTURE: Architecture = Architecture {
            tile_size: 32,
            patch_size: 16,
            stem_padding: StemPadding::Same,
            depths: [1; 4],
            dims: [8, 16, 32, 64],
            grn_eps: 1e-6,
            ln_eps: 1e-6,
        };
        const BANDS: usize = 3;
        const PASSES: StagePasses = [Passes::Two; STAGES];
    }

    #[test]
    fn buffers_are_static_and_aligned() {
        static ARENA: ArenaBuffer<{ Small::ARENA_BYTES }> = ArenaBuffer::holding::<Small>();
        assert_eq!(ARENA.len(), Small::ARENA_BYTES);
        assert!(ARENA.as_ptr().addr().is_multiple_of(64));
        // A larger one for a smaller plan, and its bytes beyond the plan stay the caller's.
        let mut larger = ArenaBuffer::<{ Small::ARENA_BYTES + 100 }>::holding::<Small>();
        larger[Small::ARENA_BYTES] = 7;
        assert_eq!(larger.len(), Small::ARENA_BYTES + 100);
    }

    /// Several threads may embed with one encoder, each with its own arena.
    #[test]
    fn encoders_are_shared_between_threads() {
        const fn shared<T: Send + Sync + Copy>() {}
        const fn moved<T: Send>() {}
        const _: () = {
            shared::<crate::encoder::Encoder<'static>>();
            shared::<crate::Tile<'static>>();
            moved::<crate::encoder::Run<'static, 'static>>();
        };
    }
}
