//! From pointers and lengths to slices: everything that can be checked is.

use core::ffi::{c_char, c_void};

use super::{Failure, Status};
use crate::Tile;

/// The address range of an argument, for finding overlaps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    what: &'static str,
    start: usize,
    end: usize,
}

impl Span {
    /// `length` values of `T` at `pointer`, which is not null (unless nothing is there) and aligned, and whose end has an address.
    pub(super) fn of<T>(pointer: *const T, length: usize, what: &'static str) -> Result<Self, Failure> {
        let start = pointer.addr();
        if pointer.is_null() && length > 0 {
            return Err(Failure::new(Status::NullPointer, what, 0, 0));
        }
        if !start.is_multiple_of(align_of::<T>()) {
            return Err(Failure::new(Status::Misaligned, what, start as u64, align_of::<T>() as u64));
        }
        let end = length.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize);
        match end.and_then(|bytes| start.checked_add(bytes)) {
            Some(end) => Ok(Self { what, start, end }),
            None => Err(Failure::new(Status::Length, what, length as u64, isize::MAX as u64)),
        }
    }

    /// Refuses memory that the two share.
    pub(super) fn apart_from(&self, other: &Self) -> Result<(), Failure> {
        if self.start < other.end && other.start < self.end {
            return Err(Failure::new(Status::Overlap, self.what, self.start as u64, other.start as u64));
        }
        Ok(())
    }
}

/// An array to read.
///
/// # Safety
/// If `pointer` is not null, `length` values can be read there and do not change during `'a`.
pub(super) unsafe fn array<'a, T>(pointer: *const T, length: usize, what: &'static str) -> Result<&'a [T], Failure> {
    Span::of(pointer, length, what)?;
    if length == 0 {
        return Ok(&[]);
    }
    // SAFETY: not null, aligned, at most isize::MAX bytes; that they are readable is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(pointer, length) })
}

/// An array to write; what it holds must be values of `T`.
///
/// # Safety
/// If `pointer` is not null, `length` values can be read and written there, and by nobody else during `'a`.
pub(super) unsafe fn array_mut<'a, T>(
    pointer: *mut T,
    length: usize,
    what: &'static str,
) -> Result<&'a mut [T], Failure> {
    Span::of(pointer, length, what)?;
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not null, aligned, at most isize::MAX bytes; that they are the caller's alone is its promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, length) })
}

/// Something to read.
///
/// # Safety
/// If `pointer` is not null, a `T` can be read there and does not change during `'a`.
pub(super) unsafe fn one<'a, T>(pointer: *const T, what: &'static str) -> Result<&'a T, Failure> {
    Span::of(pointer, 1, what)?;
    // SAFETY: not null and aligned; the rest is the caller's promise.
    Ok(unsafe { &*pointer })
}

/// Writes a result.
///
/// # Safety
/// If `pointer` is not null, a `T` can be written there.
pub(super) unsafe fn put<T>(pointer: *mut T, value: T, what: &'static str) -> Result<(), Failure> {
    Span::of(pointer, 1, what)?;
    // SAFETY: not null and aligned; the rest is the caller's promise.
    unsafe { pointer.write(value) };
    Ok(())
}

/// A tile as C gives it, its span already checked against the other arguments.
///
/// # Safety
/// If `pointer` is not null, `values` values of that type can be read there and do not change during `'a`.
pub(super) unsafe fn tile<'a>(tile_type: u32, pointer: *const c_void, values: usize) -> Result<Tile<'a>, Failure> {
    // SAFETY: the promise of this function is that of `array`, for the type that the number names.
    unsafe {
        match tile_type {
            0 => array(pointer.cast(), values, TILE).map(Tile::U8),
            1 => array(pointer.cast(), values, TILE).map(Tile::U16),
            2 => array(pointer.cast(), values, TILE).map(Tile::F32),
            other => Err(Failure::new(Status::UnknownValue, "tile_type", other.into(), 2)),
        }
    }
}

/// The span of a tile.
pub(super) fn tile_span(tile_type: u32, pointer: *const c_void, values: usize) -> Result<Span, Failure> {
    match tile_type {
        0 => Span::of(pointer.cast::<u8>(), values, TILE),
        1 => Span::of(pointer.cast::<u16>(), values, TILE),
        2 => Span::of(pointer.cast::<f32>(), values, TILE),
        other => Err(Failure::new(Status::UnknownValue, "tile_type", other.into(), 2)),
    }
}

const TILE: &str = "tile";

/// A text for C: as much as fits before the final zero, the rest zeros.
pub(super) fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, &from) in out.iter_mut().take(N.saturating_sub(1)).zip(text.as_bytes()) {
        *to = from as c_char;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_pointers_are_refused() {
        let values = [0u32; 4];
        let at = values.as_ptr();
        let status = |pointer: *const u32, length| Span::of(pointer, length, "x").map(|_| ()).map_err(|f| f.status);
        assert_eq!(status(at, 4), Ok(()));
        assert_eq!(status(core::ptr::null(), 0), Ok(()));
        assert_eq!(status(core::ptr::null(), 1), Err(Status::NullPointer));
        assert_eq!(status(at.wrapping_byte_add(2), 1), Err(Status::Misaligned));
        assert_eq!(status(at, usize::MAX), Err(Status::Length));
        assert_eq!(status(at, usize::MAX / 7), Err(Status::Length));
        assert_eq!(status(core::ptr::without_provenance(usize::MAX - 3), 1), Err(Status::Length));
    }

    #[test]
    fn overlaps_are_found() {
        let span = |start, end| Span { what: "x", start, end };
        for (a, b, apart) in [
            ((0, 4), (4, 8), true),
            ((4, 8), (0, 4), true),
            ((0, 5), (4, 8), false),
            ((0, 9), (4, 5), false),
            ((4, 4), (4, 4), true),
            ((4, 5), (4, 5), false),
        ] {
            assert_eq!(span(a.0, a.1).apart_from(&span(b.0, b.1)).is_ok(), apart, "{a:?} {b:?}");
        }
    }

    #[test]
    fn texts_end_with_zero() {
        assert_eq!(text::<4>("ab"), [97, 98, 0, 0]);
        assert_eq!(text::<3>("abc"), [97, 98, 0]);
    }
}
