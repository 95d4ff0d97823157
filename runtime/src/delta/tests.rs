//! Deltas put together by hand; `quantize/tests/delta.rs` has those that `quantize delta` makes, and cuts the power.
extern crate std;

use std::vec;
use std::vec::Vec;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};
use sha2::{Digest, Sha256};

use super::*;
use crate::guard::Progress;
use crate::model::crc32c;

/// A delta with these moves (`[gap in the new file, gap in the old file, lines]`), rows of regions and payload.
pub(crate) fn delta_of(
    old: &[u8],
    new: &[u8],
    data: usize,
    moves: &[[u8; 3]],
    regions: (u32, &[u8], &[u8]),
) -> Vec<u8> {
    let (count, rows, payload) = regions;
    let body = [moves.as_flattened(), rows, payload].concat();
    let table: Vec<u8> = body.chunks(BLOCK_BYTES).flat_map(|block| crc32c(block).to_le_bytes()).collect();
    let mut file = Vec::from(MAGIC);
    file.extend(u32::from(VERSION).to_le_bytes());
    let rows = moves.as_flattened().len() + rows.len();
    let length = HEAD_BYTES + table.len() + body.len();
    let lengths = [length, 3, old.len(), new.len(), data, moves.len(), count as usize, body.len(), rows];
    file.extend(lengths.into_iter().flat_map(|n| (n as u32).to_le_bytes()));
    file.extend(Sha256::digest(old));
    file.extend(Sha256::digest(new));
    file.extend([0; 8]);
    file.extend(crc32c(&table).to_le_bytes());
    file.extend(crc32c(&file).to_le_bytes());
    [file, table, body].concat()
}

/// A delta that sends the whole new file, whose data are `data` bytes.
pub(crate) fn whole(old: &[u8], new: &[u8], data: usize) -> Vec<u8> {
    let mut rows = vec![0];
    let mut left = data;
    while left >= 128 {
        rows.push(left as u8 | 128);
        left >>= 7;
    }
    rows.extend([left as u8, 0, 0]);
    delta_of(old, new, data, &[], (1, &rows, &new[..data]))
}

/// The smallest file that the update takes for a model: a prefix, an empty table, its CRC, the CRC of the file.
fn file(mark: u8, lines: u8) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[0] = mark;
    file.extend([0; 64]);
    let head = crc32c(&file[..64]);
    file[68..72].copy_from_slice(&head.to_le_bytes());
    file.extend((0..64 * usize::from(lines)).map(|i| mark.wrapping_mul(i as u8)));
    let all = crc32c(&file);
    file.extend(all.to_le_bytes());
    file.extend([0; 60]);
    file
}

fn apply(delta: &[u8], old: &[u8], slot: usize) -> Result<Vec<u8>, UpdateError> {
    let mut memory = vec![0; slot];
    memory[..old.len()].copy_from_slice(old);
    let (mut journal, mut page) = ([0; 3 * 128], [0; 128]);
    let delta = Delta::parse(delta)?;
    let mut update = Update::new(delta, Memory::new(&mut memory, 128), Memory::new(&mut journal, 128), &mut page)?;
    while update.step()? == Progress::More {}
    drop(update);
    memory.truncate(delta.new_bytes());
    Ok(memory)
}

#[test]
fn moves_patches_and_whole_regions_make_the_new_file() {
    let old = file(3, 3);
    let mut new = file(3, 3);
    // Bytes 200 and 203 of the old file, less and more; the new file has a line more in front of them.
    new.splice(128..128, [7; 64]);
    (new[264], new[267]) = (new[264].wrapping_sub(1), new[267].wrapping_add(2));
    let end = new.len() - 64;
    let all = crc32c(&new[..end]);
    new[end..end + 4].copy_from_slice(&all.to_le_bytes());
    // Gap 8 with k = 3: 10, then 000. Code of -1: 0 with k = 1: 0, then 0. Gap 2: 0, then 010. Code of 2: 3: 10, then 1. To the end of 64: gap 52:
    // 1111110, then 001 from the lowest bit on.
    let bits = ["10", "000", "0", "0", "0", "010", "10", "1", "1111110", "001"].concat();
    let patch: Vec<u8> =
        bits.as_bytes().chunks(8).map(|b| b.iter().rev().fold(0, |v, b| v << 1 | (b - b'0'))).collect();
    // A whole region of 64 bytes at 128; a patch of 64 bytes behind a gap of 64.
    let tag = 4u16 | 3 << 3 | 1 << 8;
    let rows = [128 | 128, 1, 64, 0, 0, 64, 64, tag as u8, (tag >> 8) as u8, patch.len() as u8];
    let delta = delta_of(&old, &new, new.len(), &[[0, 0, 2], [1, 0, 3]], (2, &rows, &[&[7; 64][..], &patch].concat()));
    assert_eq!(apply(&delta, &old, 512).unwrap(), new);
    assert_eq!(apply(&delta, &old, 384), Err(UpdateError::Capacity { place: Where::Slot, found: 384, needed: 512 }));
    assert!(matches!(apply(&delta, &new[..old.len()], 512), Err(UpdateError::OtherModel { .. })));
}

#[test]
fn a_delta_that_makes_another_file_says_so() {
    let (old, new) = (file(3, 1), file(5, 2));
    let mut other = new.clone();
    other[1] = 1;
    assert_eq!(apply(&whole(&old, &new, new.len()), &old, 384).unwrap(), new);
    assert!(matches!(apply(&whole(&old, &other, new.len()), &old, 384), Err(UpdateError::Broken { .. })));
    // A prefix that calls for more rows than there are bytes.
    other[16] = 9;
    let field = "end of the table";
    let refused = UpdateError::NewModel { field, found: 384, expected: 256 };
    assert_eq!(apply(&whole(&old, &other, new.len()), &old, 384), Err(refused));
}

#[test]
fn rows_beyond_the_files_are_refused() {
    let (old, new) = (file(3, 1), file(5, 1));
    let refused = |moves: &[[u8; 3]], rows: &[u8], payload: &[u8]| {
        Delta::parse(&delta_of(&old, &new, new.len(), moves, (1, rows, payload))).unwrap_err()
    };
    let whole_row = [0, 8, 0, 0];
    for moves in [[0, 0, 5], [1, 0, 4], [0, 1, 4], [0, 0, 0]] {
        assert_eq!(refused(&[moves], &whole_row, &[0; 8]), DeltaError::Row { what: "move", index: 0 }, "{moves:?}");
    }
    let region = DeltaError::Row { what: "region", index: 0 };
    // Cut off; no elements; beyond the end; unknown bits; not at a multiple; a patch without its end; one with bits left.
    let rows: [(&[u8], &[u8]); 7] = [
        (&[0, 8, 0], &[0; 8]),
        (&[0, 0, 0, 0], &[]),
        (&[128, 2, 8, 0, 0], &[0; 8]),
        (&[0, 8, 0, 64], &[0; 8]),
        (&[2, 2, 2, 0], &[0; 8]),
        (&[0, 8, 4, 0, 1], &[0xff]),
        (&[0, 1, 4, 0, 2], &[1, 0]),
    ];
    for (row, payload) in rows {
        assert_eq!(refused(&[], row, payload), region, "{row:?}");
    }
    assert!(Delta::parse(&delta_of(&old, &new, new.len(), &[], (1, &[0, 1, 4, 0, 1], &[1]))).is_ok());
    let left = DeltaError::Field { field: "bytes after the last row", found: 1, expected: 0 };
    assert_eq!(refused(&[], &whole_row, &[0; 9]), left);
}

/// A flash of 2 KiB.
struct Mock([u8; 2048]);

#[derive(Debug)]
struct MockError;

impl NorFlashError for MockError {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::OutOfBounds
    }
}

impl ErrorType for Mock {
    type Error = MockError;
}

impl ReadNorFlash for Mock {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), MockError> {
        let at = offset as usize;
        bytes.copy_from_slice(self.0.get(at..at + bytes.len()).ok_or(MockError)?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        2048
    }
}

impl NorFlash for Mock {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = 256;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), MockError> {
        self.0.get_mut(from as usize..to as usize).ok_or(MockError)?.fill(0xff);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), MockError> {
        let at = offset as usize;
        let place = self.0.get_mut(at..at + bytes.len()).ok_or(MockError)?;
        place.iter_mut().zip(bytes).for_each(|(to, from)| *to &= from);
        Ok(())
    }
}

#[test]
fn drivers_of_embedded_storage_serve() {
    let (old, new) = (file(3, 2), file(5, 4));
    let delta = whole(&old, &new, new.len());
    let (mut slot, mut page) = (Mock([0; 2048]), [0; 256]);
    slot.0[512..512 + old.len()].copy_from_slice(&old);
    let (slot, journal) = (Nor::new(slot, 512, 512), Nor::new(Mock([0; 2048]), 1024, 768));
    let mut update = Update::new(Delta::parse(&delta).unwrap(), slot, journal, &mut page).unwrap();
    while update.step().unwrap() == Progress::More {}
    let mut made = vec![0; new.len()];
    update.slot().read(0, &mut made).unwrap();
    assert_eq!(made, new);
    let mut beyond = Nor::new(Mock([0; 2048]), 1792, 512);
    assert_eq!(beyond.read(200, &mut [0; 64]), Err(StorageError(-1)));
}
