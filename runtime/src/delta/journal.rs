//! What survives a loss of power: the page that is being replaced, and where the work stands.
//!
//! Layout: the new page, in as many pages of the journal as it takes; then two pages, each beginning with a record of 64 bytes. A page of the
//! slot is replaced in this order: erase and write the copy; erase the older record and write a new one there; erase and write the page. So the
//! newest whole record names the page last begun. If its copy still has the CRC in the record, the page is written once more;
//! if not, the next copy was begun, which is only done when the page stood.

use super::storage::{Storage, copy};
use super::{UpdateError, Where};
use crate::model::{crc32c, crc32c_extend};

const MAGIC: [u8; 4] = *b"NDJ1";
const RECORD_BYTES: usize = 64;
/// Bytes that go through the stack at once.
pub(super) const CHUNK: usize = 256;

/// Where the work stands: a pass, and in it the number of the step that replaced a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub pass: u32,
    pub step: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub position: Position,
    /// Page of the slot.
    pub page: u32,
    crc: u32,
    /// Which of the two pages holds it.
    half: u32,
}

#[derive(Debug)]
pub(super) struct Journal<J> {
    storage: J,
    /// Names the delta.
    id: u64,
    /// Bytes before the first record.
    copy_bytes: usize,
    /// Where the next record goes: 0 or 1.
    half: u32,
}

impl<J: Storage> Journal<J> {
    /// A journal for the delta `id` and pages of `slot_page` bytes.
    pub fn new(storage: J, id: u64, slot_page: usize) -> Result<Self, UpdateError> {
        let page = storage.page_bytes();
        if page == 0 || !page.is_multiple_of(64) {
            return Err(UpdateError::PageBytes { place: Where::Journal, found: page });
        }
        let copy_bytes = slot_page.div_ceil(page).saturating_mul(page);
        let needed = copy_bytes.saturating_add(page.saturating_mul(2));
        match storage.bytes() {
            found if found < needed => Err(UpdateError::Capacity { place: Where::Journal, found, needed }),
            _ => Ok(Self { storage, id, copy_bytes, half: 0 }),
        }
    }

    fn record_at(&self, half: u32) -> usize {
        self.copy_bytes + self.storage.page_bytes() * half as usize
    }

    /// The newest whole record of this delta; the next one goes to the other page.
    pub fn newest(&mut self) -> Result<Option<Record>, UpdateError> {
        let mut newest: Option<Record> = None;
        for half in [0, 1] {
            let at = self.record_at(half);
            let mut bytes = [0; RECORD_BYTES];
            self.storage.read(at, &mut bytes).map_err(|e| e.at(Where::Journal, at))?;
            let Some(found) = decode(&bytes, self.id, half) else { continue };
            if newest.is_none_or(|other| other.position < found.position) {
                newest = Some(found);
            }
        }
        self.half = newest.map_or(0, |record| 1 - record.half);
        Ok(newest)
    }

    /// Forgets everything; the copy is left, and means nothing without a record.
    pub fn clear(&mut self) -> Result<(), UpdateError> {
        for half in [0, 1] {
            let at = self.record_at(half);
            self.storage.erase(at).map_err(|e| e.at(Where::Journal, at))?;
        }
        self.half = 0;
        Ok(())
    }

    /// Keeps the new bytes of a page, then the record.
    pub fn store(&mut self, position: Position, page: u32, bytes: &[u8]) -> Result<(), UpdateError> {
        let mut at = 0;
        while at < self.copy_bytes {
            self.storage.erase(at).map_err(|e| e.at(Where::Journal, at))?;
            at += self.storage.page_bytes();
        }
        self.storage.write(0, bytes).map_err(|e| e.at(Where::Journal, 0))?;
        let at = self.record_at(self.half);
        self.storage.erase(at).map_err(|e| e.at(Where::Journal, at))?;
        let record = encode(self.id, position, page, crc32c(bytes));
        self.storage.write(at, &record).map_err(|e| e.at(Where::Journal, at))?;
        self.half = 1 - self.half;
        Ok(())
    }

    /// Reads the copy into `page`; `false` if it is no longer the one of the record.
    pub fn restore(&mut self, record: &Record, page: &mut [u8]) -> Result<bool, UpdateError> {
        let (mut at, mut crc) = (0, 0);
        for chunk in page.chunks_mut(CHUNK) {
            self.storage.read(at, chunk).map_err(|e| e.at(Where::Journal, at))?;
            crc = crc32c_extend(crc, chunk);
            at += chunk.len();
        }
        Ok(crc == record.crc)
    }
}

fn encode(id: u64, position: Position, page: u32, crc: u32) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    let numbers = [position.pass, position.step, page, crc].map(u32::to_le_bytes);
    let fields = MAGIC.iter().chain(numbers.as_flattened()).copied().chain(id.to_le_bytes());
    record.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    if let Some((fields, end)) = record.split_last_chunk_mut::<4>() {
        *end = crc32c(fields).to_le_bytes();
    }
    record
}

fn decode(bytes: &[u8; RECORD_BYTES], id: u64, half: u32) -> Option<Record> {
    let (fields, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c(fields) != u32::from_le_bytes(*crc) {
        return None;
    }
    let words = fields.as_chunks::<4>().0;
    let number = |i: usize| words.get(i).map(|word| u32::from_le_bytes(*word));
    let mut name = [0; 8];
    copy(&mut name, fields.get(20..28)?);
    if *words.first()? != MAGIC || u64::from_le_bytes(name) != id {
        return None;
    }
    let position = Position { pass: number(1)?, step: number(2)? };
    Some(Record { position, page: number(3)?, crc: number(4)?, half })
}
