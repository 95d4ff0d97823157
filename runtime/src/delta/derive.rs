//! What follows from the other bytes of the new file: CRCs and parity, in the order in which one needs the other.

use core::ops::Range;

use super::UpdateError;
use super::storage::{Storage, copy};
use crate::model::{
    ALIGNMENT, BLOCK_BYTES, Dtype, END_BYTES, ENTRY_BYTES, HEAD_CRC_BYTES, KIND_BLOCKS, KIND_TENSOR, PREFIX_BYTES,
};

/// The passes over the slot, in order; 0 is the content.
pub(super) mod pass {
    pub const CONTENT: u32 = 0;
    /// Block CRCs.
    pub const BLOCKS: u32 = 1;
    /// CRCs of sections, in the table.
    pub const SECTIONS: u32 = 2;
    /// CRC of the head.
    pub const HEAD: u32 = 3;
    /// CRC of the file.
    pub const FILE: u32 = 4;
    pub const PARITY: u32 = 5;
}

/// A CRC: of which bytes, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub covered: Range<usize>,
    pub target: usize,
}

/// Where things lie in the new file, by its own head, which is in the slot by now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Geometry {
    data: usize,
    table: usize,
    rows: u32,
    tensors: (usize, usize),
    /// Where the block CRCs lie, and how many there are.
    blocks: (usize, usize),
}

struct Row {
    kind: u8,
    offset: usize,
    bytes: usize,
}

fn read<S: Storage>(slot: &mut S, at: usize, bytes: &mut [u8]) -> Result<(), UpdateError> {
    slot.read(at, bytes).map_err(|error| error.at(super::Where::Slot, at))
}

fn refuse(field: &'static str, found: usize, expected: usize) -> UpdateError {
    UpdateError::NewModel { field, found: found as u64, expected: expected as u64 }
}

impl Geometry {
    /// Reads the head of a file whose data are `data` bytes.
    pub fn read<S: Storage>(slot: &mut S, data: usize) -> Result<Self, UpdateError> {
        let mut prefix = [0; PREFIX_BYTES];
        read(slot, 0, &mut prefix)?;
        let number =
            |at: usize| prefix.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b)) as usize;
        let (header, rows) = (number(12), number(16));
        let table = header.saturating_add(PREFIX_BYTES).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let table_end = rows.saturating_mul(ENTRY_BYTES).saturating_add(table);
        let first = table_end.saturating_add(HEAD_CRC_BYTES).checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let end = data.saturating_sub(END_BYTES);
        if first > end {
            return Err(refuse("end of the table", first, end));
        }
        let mut found = Self { data, table, rows: rows as u32, tensors: (first, first), blocks: (0, 0) };
        for index in 0..found.rows {
            let row = found.row(slot, index)?;
            if row.kind == KIND_TENSOR {
                found.tensors.1 = (row.offset + row.bytes).next_multiple_of(ALIGNMENT);
            }
            if row.kind == KIND_BLOCKS {
                found.blocks = (row.offset, row.bytes / 4);
            }
        }
        let count = found.tensors.1.saturating_sub(first).div_ceil(BLOCK_BYTES);
        match found.blocks {
            (_, blocks) if blocks > 0 && blocks != count => Err(refuse("number of block CRCs", blocks, count)),
            _ => Ok(found),
        }
    }

    /// A row of the table, within the data.
    fn row<S: Storage>(&self, slot: &mut S, index: u32) -> Result<Row, UpdateError> {
        let mut row = [0; ENTRY_BYTES];
        read(slot, self.table + index as usize * ENTRY_BYTES, &mut row)?;
        let number = |at: usize| {
            let bytes = row.get(at..).and_then(|b| b.first_chunk());
            usize::try_from(bytes.map_or(0, |b| u64::from_le_bytes(*b))).unwrap_or(usize::MAX)
        };
        let [kind, dtype, ..] = row;
        let dtype = Dtype::from_number(dtype).ok_or(refuse("type of a section", dtype.into(), Dtype::I64 as usize))?;
        let (offset, bytes) = (number(8), number(16).saturating_mul(dtype.bytes()));
        let end = self.data.saturating_sub(END_BYTES);
        if offset.saturating_add(bytes) > end || !offset.is_multiple_of(ALIGNMENT) {
            return Err(refuse("end of a section", offset.saturating_add(bytes), end));
        }
        Ok(Row { kind, offset, bytes })
    }

    /// CRC `index` of a pass; `None` after the last.
    pub fn job<S: Storage>(&self, slot: &mut S, pass: u32, index: u32) -> Result<Option<Job>, UpdateError> {
        let at = index as usize;
        let table_end = self.table + self.rows as usize * ENTRY_BYTES;
        let end = self.data - END_BYTES;
        Ok(match pass {
            pass::BLOCKS if at < self.blocks.1 => {
                let start = self.tensors.0 + at * BLOCK_BYTES;
                let covered = start..self.tensors.1.min(start + BLOCK_BYTES);
                Some(Job { covered, target: self.blocks.0 + 4 * at })
            }
            pass::SECTIONS if index < self.rows => {
                let row = self.row(slot, index)?;
                Some(Job { covered: row.offset..row.offset + row.bytes, target: self.table + at * ENTRY_BYTES + 24 })
            }
            pass::HEAD if at == 0 => Some(Job { covered: 0..table_end, target: table_end + 4 }),
            pass::FILE if at == 0 => Some(Job { covered: 0..end, target: end }),
            _ => None,
        })
    }
}

/// Fills `page`, which begins at byte `at` of the file, with the parity that lies there; the file has `data` bytes of data and `file` in all.
pub(super) fn parity<S: Storage>(
    slot: &mut S,
    page: &mut [u8],
    at: usize,
    data: usize,
    file: usize,
) -> Result<(), UpdateError> {
    let mut from = at.max(data);
    let rest = page.get_mut(from - at..).unwrap_or_default();
    for eight in rest.as_chunks_mut::<8>().0 {
        if from >= file {
            break;
        }
        let mut line = [0; 64];
        read(slot, (from - data) * 8, &mut line)?;
        copy(eight, &crate::model::parity::parity_of_line(&line));
        from += 8;
    }
    Ok(())
}
