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
        let part = part.get_mut(..elements * size_of::<T>()).ok_or(short)?;
        bytemuck::try_cast_slice_mut(part).map_err(|_| short)
    }
}

/// `slice[from..from + len]`. The shapes guarantee that it is there; so does the error, without a panic.
#[inline(always)]
pub(crate) fn part<T>(slice: &[T], from: usize, len: usize) -> Result<&[T], EmbedError> {
    slice.get(from..).and_then(|rest| rest.get(..len)).ok_or(short::<T>(slice.len(), from, len))
}

/// See [`part`].
#[inline(always)]
pub(crate) fn part_mut<T>(slice: &mut [T], from: usize, len: usize) -> Result<&mut [T], EmbedError> {
    let found = slice.len();
    slice.get_mut(from..).and_then(|rest| rest.get_mut(..len)).ok_or(short::<T>(found, from, len))
}

const fn short<T>(found: usize, from: usize, len: usize) -> EmbedError {
    let needed = from.saturating_add(len).saturating_mul(size_of::<T>());
    EmbedError::ArenaTooSmall { found: found * size_of::<T>(), needed }
}
