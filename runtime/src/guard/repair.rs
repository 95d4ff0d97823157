//! Flipped bits of a file with parity, set right in place.

use super::Progress;
use crate::model::parity::{Decoded, WORD_BYTES, data_bytes, decode, parity_of_line};

/// Lines of eight words that a step looks at: 4096 bytes.
const STEP_LINES: usize = 64;
/// Words of a line.
const WORDS: usize = 8;
/// Bytes of a line.
const LINE: usize = WORDS * WORD_BYTES;
/// Where the prefix says whether there is parity: all bits 1 if so, else all 0.
const FIELD: core::ops::Range<usize> = 20..24;

/// A bit of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    /// Offset of its byte in the file.
    pub offset: usize,
    /// Its number in the byte, 0 the lowest.
    pub bit: u8,
}

/// What was set right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Bits that were flipped, in the data or in the parity.
    pub bits: usize,
    /// The first of them.
    pub first: Option<Bit>,
}

/// Why a file could not be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// The file has no parity.
    #[error("the file has no parity: its bits cannot be repaired")]
    NoParity,
    /// No file with parity has this length.
    #[error("{length} bytes given: a file with parity has a multiple of 72")]
    Length {
        /// Bytes given.
        length: usize,
    },
    /// More than one bit is flipped in a word and its parity. All that could be set right was.
    #[error("{words} words have more than one flipped bit, the first at byte {offset}; {} other bits were repaired", .repaired.bits)]
    Lost {
        /// Words that are lost.
        words: usize,
        /// Offset of the first of them.
        offset: usize,
        /// What was set right in others.
        repaired: Repaired,
    },
}

/// A repair that goes on step by step.
#[derive(Clone, Debug)]
pub struct Repair {
    data: usize,
    next: usize,
    repaired: Repaired,
    lost: usize,
    first_lost: usize,
}

impl Repair {
    /// Prepares the repair of a whole file in memory, of which only the length and four bytes are looked at yet.
    ///
    /// # Errors
    /// [`RepairError::NoParity`] and [`RepairError::Length`]. That there is parity the majority of the 32 bits of its field says, so that
    /// up to 15 flipped bits there do not matter.
    pub fn new(file: &[u8]) -> Result<Self, RepairError> {
        let field = file.get(FIELD).unwrap_or_default();
        if field.iter().map(|byte| byte.count_ones()).sum::<u32>() <= 16 {
            return Err(RepairError::NoParity);
        }
        let data = data_bytes(file.len()).ok_or(RepairError::Length { length: file.len() })?;
        Ok(Self { data, next: 0, repaired: Repaired::default(), lost: 0, first_lost: 0 })
    }

    /// Looks at the next 4096 bytes and their parity. After the last step the next begins anew.
    pub fn step(&mut self, file: &mut [u8]) -> Progress {
        let Some((data, parity)) = file.split_at_mut_checked(self.data) else { return Progress::Done };
        let lines = data.as_chunks_mut::<LINE>().0.iter_mut().zip(parity.as_chunks_mut::<WORDS>().0);
        let mut seen = 0;
        for (index, (line, parity)) in lines.enumerate().skip(self.next).take(STEP_LINES) {
            seen += 1;
            if parity_of_line(line) != *parity {
                self.line(index, line, parity);
            }
        }
        self.next += seen;
        if seen == STEP_LINES && self.next * LINE < self.data {
            return Progress::More;
        }
        self.next = 0;
        Progress::Done
    }

    /// Sets right a line that does not fit its parity.
    fn line(&mut self, index: usize, line: &mut [u8; LINE], parity: &mut [u8; WORDS]) {
        let words = line.as_chunks_mut::<WORD_BYTES>().0.iter_mut().zip(parity);
        for (index, (word, parity)) in (index * WORDS..).zip(words) {
            let (offset, bit) = match decode(u64::from_le_bytes(*word), *parity) {
                Decoded::Clean => continue,
                Decoded::Data(bit) => {
                    *word = (u64::from_le_bytes(*word) ^ 1 << (bit & 63)).to_le_bytes();
                    (index * WORD_BYTES + usize::from(bit / 8), bit % 8)
                }
                Decoded::Parity(bit) => {
                    *parity ^= 1 << (bit & 7);
                    (self.data + index, bit)
                }
                Decoded::Lost => {
                    if self.lost == 0 {
                        self.first_lost = index * WORD_BYTES;
                    }
                    self.lost += 1;
                    continue;
                }
            };
            self.repaired.bits += 1;
            self.repaired.first.get_or_insert(Bit { offset, bit });
        }
    }

    /// What was found in all steps so far.
    ///
    /// # Errors
    /// [`RepairError::Lost`].
    pub fn result(&self) -> Result<Repaired, RepairError> {
        match self.lost {
            0 => Ok(self.repaired),
            words => Err(RepairError::Lost { words, offset: self.first_lost, repaired: self.repaired }),
        }
    }
}

/// Sets right every word of a file with parity in which one bit is flipped, wherever it is: in prefix, header, table, sections,
/// CRCs or the parity itself. Time is linear in the length; [`Repair`] does the same in steps.
///
/// A word with two flipped bits is always noticed. Three and more may look like one: [`crate::model::Model::parse`] has the last word on a repaired
/// file. If nothing is flipped, nothing is written.
///
/// # Errors
/// See [`RepairError`].
pub fn repair(file: &mut [u8]) -> Result<Repaired, RepairError> {
    let mut repair = Repair::new(file)?;
    while repair.step(file) == Progress::More {}
    repair.result()
}
