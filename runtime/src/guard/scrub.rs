//! The memory of a model, looked at again and again, a block at a time.

use super::Progress;
use crate::model::{
    BLOCK_BYTES, END_BYTES, KIND_BLOCKS, Model, ModelError, SectionName, crc32c, crc32c_extend, parity, parse_head,
};

/// What a scrub found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A block of the tensors, or its CRC, is not what it was.
    #[error("block {index} ({bytes} bytes from {offset}) is damaged: CRC is {found:08x}, {expected:08x} is on record")]
    Block {
        /// Number of the block.
        index: usize,
        /// Its first byte in the file.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// Computed from the bytes.
        found: u32,
        /// Written in the file.
        expected: u32,
    },
    /// Some byte of the file is not what it was.
    #[error("the file is damaged: CRC is {found:08x}, {expected:08x} is on record")]
    File {
        /// Computed from the bytes.
        found: u32,
        /// Written in the file.
        expected: u32,
    },
    /// A byte of the last line that is zero in every file is not.
    #[error("byte {offset} must be zero")]
    NotZero {
        /// Its offset in the file.
        offset: usize,
    },
    /// A word, or its parity, is not what it was.
    #[error("the word at byte {offset} and its parity do not fit each other")]
    Parity {
        /// Offset of the word in the file.
        offset: usize,
    },
}

/// Goes through the memory of a model, 4096 bytes a step, and compares with the CRCs in the file.
///
/// Every byte of the file is looked at in one pass: the tensors block by block where the file has block CRCs, then everything by the CRC
/// of the file, and the parity. A scrub knows beforehand where everything lies, and does not trust the memory that it looks at.
#[derive(Clone, Debug)]
pub struct Scrub {
    data: usize,
    tensors: core::ops::Range<usize>,
    /// Where the block CRCs lie; empty if there are none.
    block_crcs: core::ops::Range<usize>,
    at: usize,
    crc: u32,
}

impl Scrub {
    /// A scrub of the memory of `model`.
    pub fn new(model: &Model<'_>) -> Self {
        let block_crcs = model.ancillary(KIND_BLOCKS).map_or(0..0, |entry| entry.offset..entry.offset + entry.bytes());
        Self { data: model.data().len(), tensors: model.tensor_range(), block_crcs, at: 0, crc: 0 }
    }

    /// Looks at the next 4096 bytes at most of `file`, the bytes of the model. After [`Progress::Done`] the next step begins anew.
    ///
    /// # Errors
    /// What is damaged in these bytes; the next step goes on behind them.
    pub fn step(&mut self, file: &[u8]) -> Result<Progress, Damage> {
        let end_of_sections = self.data.saturating_sub(END_BYTES);
        let from = self.at;
        // Blocks are counted from the first tensor.
        let block = from.checked_sub(self.tensors.start).filter(|_| from < self.tensors.end);
        let limit = match block {
            Some(_) => self.tensors.end,
            None if from < self.tensors.start => self.tensors.start,
            None if from < end_of_sections => end_of_sections,
            None if from < self.data => return self.end(file),
            None => return self.parity(file),
        };
        let to = limit.min(from + BLOCK_BYTES);
        let bytes = file.get(from..to).unwrap_or_default();
        self.crc = crc32c_extend(self.crc, bytes);
        self.at = to;
        let Some(index) = block.map(|offset| offset / BLOCK_BYTES) else { return Ok(Progress::More) };
        let on_record = file.get(self.block_crcs.clone()).unwrap_or_default().as_chunks::<4>().0.get(index);
        let (found, expected) = (crc32c(bytes), on_record.map(|b| u32::from_le_bytes(*b)));
        match expected.filter(|&expected| expected != found) {
            Some(expected) => Err(Damage::Block { index, offset: from, bytes: to - from, found, expected }),
            None => Ok(Progress::More),
        }
    }

    /// The last line: the CRC of all before, and zeros.
    fn end(&mut self, file: &[u8]) -> Result<Progress, Damage> {
        let from = self.at;
        self.at = self.data;
        let (crc, zeros) = file.get(from..self.data).unwrap_or_default().split_first_chunk().unwrap_or((&[0; 4], &[]));
        let (found, expected) = (core::mem::take(&mut self.crc), u32::from_le_bytes(*crc));
        if found != expected {
            return Err(Damage::File { found, expected });
        }
        match zeros.iter().position(|&byte| byte != 0) {
            Some(at) => Err(Damage::NotZero { offset: from + 4 + at }),
            None => Ok(self.progress(file)),
        }
    }

    /// The next words and their parity; `at` counts the parity bytes behind the data.
    fn parity(&mut self, file: &[u8]) -> Result<Progress, Damage> {
        const WORDS: usize = BLOCK_BYTES / parity::WORD_BYTES;
        let first = self.at - self.data;
        let bytes = file.get(self.at..).unwrap_or_default();
        let bytes = bytes.get(..WORDS).unwrap_or(bytes);
        let words = file.get(first * parity::WORD_BYTES..self.data).unwrap_or_default();
        let unfit = parity::first_unfit(words, bytes);
        self.at += WORDS;
        match unfit {
            Some(word) => Err(Damage::Parity { offset: (first + word) * parity::WORD_BYTES }),
            None => Ok(self.progress(file)),
        }
    }

    fn progress(&mut self, file: &[u8]) -> Progress {
        if self.at < file.len() {
            return Progress::More;
        }
        (self.at, self.crc) = (0, 0);
        Progress::Done
    }
}

/// A file whose head is intact, and the rest perhaps not: to say where it is damaged.
#[derive(Clone, Debug)]
pub struct Survey<'a>(Model<'a>);

impl<'a> Survey<'a> {
    /// Checks prefix, header and table.
    ///
    /// # Errors
    /// If these are wrong, nothing can be said of the rest.
    pub fn of(file: &'a [u8]) -> Result<Self, ModelError> {
        parse_head(file).map(Self)
    }

    /// A scrub of the file.
    pub fn scrub(&self) -> Scrub {
        Scrub::new(&self.0)
    }

    /// As [`Model::section_at`].
    pub fn section_at(&self, offset: usize) -> Option<(usize, SectionName)> {
        self.0.section_at(offset)
    }
}
