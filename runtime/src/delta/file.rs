//! The delta's own file: checked once, then read in place.

use core::ops::Range;

use super::DeltaError;
use super::bits::{Bits, GAP_BITS, varint};
use crate::model::{SIGNATURE_BYTES, crc32c};

/// First bytes of a delta; see [`crate::model::MAGIC`].
pub const MAGIC: [u8; 8] = *b"\x89NDL\r\n\x1a\n";
/// Deltas of another version are refused.
pub const VERSION: u16 = 1;
/// Bytes of the head.
pub const HEAD_BYTES: usize = 128;
/// Bytes of the body that have a CRC of their own, and can be sent again by themselves.
pub const BLOCK_BYTES: usize = 1024;
/// Bytes that moves are counted in: all sections begin at a multiple.
pub const LINE_BYTES: usize = 64;
/// Bytes of a signature with its CRC.
pub const SEAL_BYTES: usize = SIGNATURE_BYTES + 4;

/// A checked delta, borrowed from the bytes of its file, which may lie anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    bytes: &'a [u8],
    head: Head,
    /// Rows of moves and regions.
    rows: &'a [u8],
    payload: &'a [u8],
}

/// The numbers of the head.
#[derive(Clone, Copy, Debug)]
struct Head {
    signed: bool,
    delta_bytes: usize,
    model_version: u32,
    old_bytes: usize,
    new_bytes: usize,
    data_bytes: usize,
    moves: u32,
    regions: u32,
    body_bytes: usize,
    rows_bytes: usize,
    old_hash: [u8; 32],
    new_hash: [u8; 32],
    table_crc: u32,
    crc: u32,
}

/// Lines of the old file that are lines of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// First byte in the new file.
    pub new: usize,
    /// First byte in the old file.
    pub old: usize,
    pub bytes: usize,
}

/// Elements that follow each other in the new file, and what is done to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region<'a> {
    /// First byte in the new file.
    pub start: usize,
    pub elements: usize,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub size: usize,
    pub change: Change<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// These are the bytes.
    Whole(&'a [u8]),
    /// Some elements differ from those moved here: gaps and differences in Rice codes.
    Patch { gap: u32, value: u32, bits: &'a [u8] },
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn hash_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; 32])
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, DeltaError> {
        let length = |needed| DeltaError::Length { found: bytes.len(), needed };
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk().ok_or(length(HEAD_BYTES))?;
        if let Some(found) = head.first_chunk().filter(|magic| **magic != MAGIC) {
            return Err(DeltaError::Magic { found: *found });
        }
        let number = |at| u32_at(head, at);
        let (version, flags) = (number(8) as u16, number(8) >> 16);
        if version != VERSION {
            return Err(DeltaError::Version { found: version });
        }
        let (found, expected) = (crc32c(head.get(..HEAD_BYTES - 4).unwrap_or_default()), number(HEAD_BYTES - 4));
        if found != expected {
            return Err(DeltaError::Head { found, expected });
        }
        let size = |at| number(at) as usize;
        let head = Self {
            signed: flags & 1 == 1,
            delta_bytes: size(12),
            model_version: number(16),
            old_bytes: size(20),
            new_bytes: size(24),
            data_bytes: size(28),
            moves: number(32),
            regions: number(36),
            body_bytes: size(40),
            rows_bytes: size(44),
            old_hash: hash_at(head, 48),
            new_hash: hash_at(head, 80),
            table_crc: number(120),
            crc: expected,
        };
        let reserved = number(112) | number(116) | flags >> 1;
        head.check(reserved)?;
        if bytes.len() != head.delta_bytes {
            return Err(length(head.delta_bytes));
        }
        Ok(head)
    }

    /// Checks what the numbers say of each other.
    fn check(&self, reserved: u32) -> Result<(), DeltaError> {
        let field = |field, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(DeltaError::Field { field, found: found as u64, expected: expected as u64 }),
        };
        field("reserved", reserved as usize, 0)?;
        let seal = if self.signed { SEAL_BYTES } else { 0 };
        field("delta_bytes", self.delta_bytes, self.body().end.saturating_add(seal))?;
        field("rows_bytes", self.rows_bytes, self.rows_bytes.min(self.body_bytes))?;
        let parity = if self.new_bytes == self.data_bytes { 0 } else { self.data_bytes / 8 };
        field("new_bytes", self.new_bytes, self.data_bytes.saturating_add(parity))?;
        field("data_bytes modulo 64", self.data_bytes % LINE_BYTES, 0)?;
        field("data_bytes", self.data_bytes, self.data_bytes.max(2 * LINE_BYTES))
    }

    fn blocks(&self) -> usize {
        self.body_bytes.div_ceil(BLOCK_BYTES)
    }

    fn table(&self) -> Range<usize> {
        HEAD_BYTES..self.blocks().saturating_mul(4).saturating_add(HEAD_BYTES)
    }

    fn body(&self) -> Range<usize> {
        let start = self.table().end;
        start..start.saturating_add(self.body_bytes)
    }

    /// The damaged blocks.
    fn damaged<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = DeltaError> + use<'a> {
        let crcs = bytes.get(self.table()).unwrap_or_default().as_chunks::<4>().0;
        let (start, body) = (self.body().start, bytes.get(self.body()).unwrap_or_default());
        body.chunks(BLOCK_BYTES).zip(crcs).enumerate().filter_map(move |(index, (block, crc))| {
            let (found, expected) = (crc32c(block), u32::from_le_bytes(*crc));
            let offset = start + index * BLOCK_BYTES;
            let damaged = DeltaError::Block { index, offset, bytes: block.len(), found, expected };
            (found != expected).then_some(damaged)
        })
    }

    /// Checks everything that has a CRC, but for the blocks.
    fn check_table(&self, bytes: &[u8]) -> Result<(), DeltaError> {
        let (found, expected) = (crc32c(bytes.get(self.table()).unwrap_or_default()), self.table_crc);
        if found != expected {
            return Err(DeltaError::Table { offset: HEAD_BYTES, bytes: self.table().len(), found, expected });
        }
        let seal = bytes.get(self.body().end..).unwrap_or_default();
        match seal.split_last_chunk::<4>() {
            Some((signature, crc)) if crc32c(signature) != u32::from_le_bytes(*crc) => {
                Err(DeltaError::Seal { offset: self.body().end, bytes: SEAL_BYTES })
            }
            _ => Ok(()),
        }
    }
}

/// The damaged blocks of a delta, each as [`DeltaError::Block`]: only these need be sent again.
///
/// # Errors
/// If head, table of CRCs or signature are damaged, or the length is wrong: then nothing can be said of blocks.
pub fn damaged_blocks(bytes: &[u8]) -> Result<impl Iterator<Item = DeltaError> + use<'_>, DeltaError> {
    let head = Head::parse(bytes)?;
    head.check_table(bytes)?;
    Ok(head.damaged(bytes))
}

impl<'a> Delta<'a> {
    /// Checks `bytes`, a whole delta, at any alignment: lengths, CRCs, and that every row and every patch stays within the new file.
    ///
    /// Total: any bytes give a delta or an error, without panic, in time linear in the length. Whether it makes a model, only applying it
    /// shows.
    ///
    /// # Errors
    /// The first of [`DeltaError`]'s conditions that holds.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DeltaError> {
        let head = Head::parse(bytes)?;
        head.check_table(bytes)?;
        if let Some(error) = head.damaged(bytes).next() {
            return Err(error);
        }
        let body = bytes.get(head.body()).unwrap_or_default();
        let (rows, payload) = body.split_at_checked(head.rows_bytes).unwrap_or((&[], &[]));
        let delta = Self { bytes, head, rows, payload };
        delta.check_rows()?;
        Ok(delta)
    }

    fn check_rows(&self) -> Result<(), DeltaError> {
        let (mut rows, count) = (Moves::of(self), self.head.moves);
        for index in 0..count {
            let row = rows.next().ok_or(DeltaError::Row { what: "move", index })?;
            let fits = |start: usize, limit: usize| start.checked_add(row.bytes).is_some_and(|end| end <= limit);
            if row.bytes == 0 || !fits(row.new, self.head.data_bytes) || !fits(row.old, self.head.old_bytes) {
                return Err(DeltaError::Row { what: "move", index });
            }
        }
        let mut regions = Regions { rows: rows.rows, payload: self.payload, left: self.head.regions, at: 0 };
        for index in 0..self.head.regions {
            let wrong = DeltaError::Row { what: "region", index };
            let region = regions.next().ok_or(wrong)?;
            let end = region.elements.checked_mul(region.size).and_then(|n| n.checked_add(region.start));
            let fits = end.is_some_and(|end| end <= self.head.data_bytes);
            if region.elements == 0 || !fits || !region.start.is_multiple_of(region.size) || !region.is_whole() {
                return Err(wrong);
            }
        }
        match (regions.rows.len(), regions.payload.len()) {
            (0, 0) => Ok(()),
            (rows, payload) => Err(DeltaError::Field {
                field: "bytes after the last row",
                found: (rows + payload) as u64,
                expected: 0,
            }),
        }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of the old file.
    pub fn old_bytes(&self) -> usize {
        self.head.old_bytes
    }

    /// Length of the new file.
    pub fn new_bytes(&self) -> usize {
        self.head.new_bytes
    }

    /// Length of the new file without its parity.
    pub(super) fn data_bytes(&self) -> usize {
        self.head.data_bytes
    }

    /// SHA-256 of the old file.
    pub fn old_hash(&self) -> &[u8; 32] {
        &self.head.old_hash
    }

    /// SHA-256 of the new file.
    pub fn new_hash(&self) -> &[u8; 32] {
        &self.head.new_hash
    }

    /// Version of the new model, as the delta says.
    pub fn model_version(&self) -> u32 {
        self.head.model_version
    }

    /// Names the delta: the CRCs of its head and of the CRCs of its blocks.
    pub(super) fn id(&self) -> u64 {
        u64::from(self.head.crc) << 32 | u64::from(self.head.table_crc)
    }

    /// What is signed, and the signature's section; `None` if the delta is not signed.
    #[cfg(feature = "signature")]
    pub(super) fn seal(&self) -> Option<(&'a [u8], &'a [u8])> {
        let end = self.head.body().end;
        let (signed, seal) = self.bytes.split_at_checked(end).filter(|_| self.head.signed)?;
        Some((signed, seal.get(..SIGNATURE_BYTES)?))
    }

    /// Whether the delta is signed.
    pub fn is_signed(&self) -> bool {
        self.head.signed
    }

    pub(super) fn moves(&self) -> impl Iterator<Item = Move> + use<'a> {
        Moves::of(self).take(self.head.moves as usize)
    }

    pub(super) fn regions(&self) -> Regions<'a> {
        let mut rows = Moves::of(self);
        (0..self.head.moves).for_each(|_| _ = rows.next());
        Regions { rows: rows.rows, payload: self.payload, left: self.head.regions, at: 0 }
    }
}

struct Moves<'a> {
    rows: &'a [u8],
    new: usize,
    old: usize,
}

impl<'a> Moves<'a> {
    fn of(delta: &Delta<'a>) -> Self {
        Self { rows: delta.rows, new: 0, old: 0 }
    }
}

impl Iterator for Moves<'_> {
    type Item = Move;

    fn next(&mut self) -> Option<Move> {
        let mut lines = || Some((varint(&mut self.rows)? as usize).saturating_mul(LINE_BYTES));
        let [gap_new, gap_old, bytes] = [lines()?, lines()?, lines()?];
        let (new, old) = (self.new.saturating_add(gap_new), self.old.saturating_add(gap_old));
        (self.new, self.old) = (new.saturating_add(bytes), old.saturating_add(bytes));
        Some(Move { new, old, bytes })
    }
}

/// The regions of a delta, in the order of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions<'a> {
    rows: &'a [u8],
    payload: &'a [u8],
    left: u32,
    /// End of the last one.
    at: usize,
}

impl<'a> Iterator for Regions<'a> {
    type Item = Region<'a>;

    fn next(&mut self) -> Option<Region<'a>> {
        self.left = self.left.checked_sub(1)?;
        let start = self.at.saturating_add(varint(&mut self.rows)? as usize);
        let elements = varint(&mut self.rows)? as usize;
        let (tag, rest) = self.rows.split_first_chunk::<2>()?;
        self.rows = rest;
        let tag = u32::from(u16::from_le_bytes(*tag));
        let size = 1usize << (tag & 3);
        let bytes = elements.saturating_mul(size);
        let (is_patch, gap, value) = (tag >> 2 & 1 == 1, tag >> 3 & 31, tag >> 8 & 63);
        if tag >> 14 != 0 || !is_patch && tag >> 3 != 0 {
            return None;
        }
        let length = if is_patch { varint(&mut self.rows)? as usize } else { bytes };
        let (bits, rest) = self.payload.split_at_checked(length)?;
        self.payload = rest;
        self.at = start.saturating_add(bytes);
        let change = if is_patch { Change::Patch { gap, value, bits } } else { Change::Whole(bits) };
        Some(Region { start, elements, size, change })
    }
}

/// Where the reading of a patch stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The element after the one changed last.
    pub element: usize,
    /// The next bit.
    pub bit: usize,
}

impl Region<'_> {
    /// The next element that the patch changes from `place` on, and what is added to it; `None` after the last.
    pub fn next_change(&self, place: &mut Place) -> Result<Option<(usize, u64)>, DeltaError> {
        let Change::Patch { gap, value, bits } = self.change else { return Ok(None) };
        let wrong = DeltaError::Field { field: "patch at byte", found: self.start as u64, expected: 0 };
        let mut reader = Bits::new(bits, place.bit);
        let gap = reader.rice(gap, GAP_BITS).ok_or(wrong)?;
        let element = usize::try_from(gap).ok().and_then(|gap| place.element.checked_add(gap)).ok_or(wrong)?;
        if element >= self.elements {
            place.bit = reader.at;
            // The gap that ends a patch leads right behind the last element.
            return if element == self.elements && reader.is_over() { Ok(None) } else { Err(wrong) };
        }
        let code = reader.rice(value, 8 * self.size as u32).and_then(|v| v.checked_add(1)).ok_or(wrong)?;
        *place = Place { element: element + 1, bit: reader.at };
        // 1, 2, 3, 4, ... stand for -1, 1, -2, 2, ...
        Ok(Some((element, code >> 1 ^ 0u64.wrapping_sub(code & 1))))
    }

    /// Whether the patch ends where its bits do, and not beyond the elements.
    fn is_whole(&self) -> bool {
        let mut place = Place::default();
        loop {
            match self.next_change(&mut place) {
                Ok(Some(_)) => {}
                end => return end.is_ok(),
            }
        }
    }
}
