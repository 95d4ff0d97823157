//! Cuts the caller's arena into typed, aligned parts.

use bytemuck::{AnyBitPattern, NoUninit};

use super::{ARENA_ALIGNMENT, EmbedError};

/// What is left of the arena.
pub(crate) struct Arena<'a> {
    rest: &'a mut [u8],
}

impl<'a> Arena<'a> {
    /// `bytes` starts at a multiple of [`ARENA_ALIGNMENT`].
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that `elements` of `T` take up here.
    pub(crate) const fn padded<T>(elements: usize) -> usize {
        (elements * size_of::<T>()).next_multiple_of(ARENA_ALIGNMENT)
    }

    /// The next `elements` of `T`, with whatever they held before.
    pub(crate) fn take<T: NoUninit + AnyBitPattern>(&mut self, elements: usize) -> Result<&'a mut [T], EmbedError> {
        let (found, needed) = (self.rest.len(), Self::padded::<T>(elements));
        let short = EmbedError::ArenaTooSmall { found, needed };
        let (part, rest) = core::mem::take(&mut self.rest).split_at_mut_checked(needed).ok_or(short)?;
        self.rest = rest;
        bytemuck::try_cast_slice_mut(&mut part[..elements * size_of::<T>()]).map_err(|_| short)
    }
}
