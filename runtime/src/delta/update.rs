//! Turns the old model in a slot into the new one, a page at a time.

use sha2::{Digest, Sha256};

use super::derive::{self, Geometry, Job, pass};
use super::file::{Change, Delta, Place};
use super::journal::{CHUNK, Journal, Position};
use super::order::Order;
use super::storage::{Storage, copy};
use super::{UpdateError, Where, start};
use crate::guard::Progress;
use crate::model::crc32c_extend;

/// Bytes that a step gives to a CRC at most.
const CRC_BYTES: usize = 4096;

/// The work of applying a delta.
///
/// Each [`Update::step`] reads at most ten pages of the slot (but for the table of sections, which is read once as a whole), looks for its place in the
/// delta in time linear in the delta, and replaces at most one page. After a restart another update of the same delta goes on where
/// this one was; the page that was being written is written again from the journal.
///
/// While the work goes on the slot holds no model: the CRC of the file and its parity are made last, and do not fit before.
#[derive(Debug)]
pub struct Update<'a, S, J> {
    delta: Delta<'a>,
    slot: S,
    journal: Journal<J>,
    page: &'a mut [u8],
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What the slot holds is hashed.
    Identify(Hashing),
    /// The slot holds the old file: the journal is cleared.
    Begin,
    Content(Order, Reader),
    Derive(Derive),
    /// The new file is hashed.
    Verify(Hashing),
    /// The slot holds the new file: the journal is cleared.
    Finish,
    Done,
}

#[derive(Clone, Debug, Default)]
struct Hashing {
    at: usize,
    hash: Sha256,
    /// Hash of the shorter of the two files.
    shorter: Option<[u8; 32]>,
}

/// Where the reading of patches stands, so that it does not begin anew for each page.
#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// First byte of the region.
    region: usize,
    place: Place,
}

#[derive(Clone, Debug)]
struct Derive {
    geometry: Geometry,
    pass: u32,
    /// Number of the CRC in its pass; in the pass of the parity the page.
    index: u32,
    /// Pages of this pass that stand already: those before this one.
    from: u32,
    /// The page in memory.
    loaded: Option<u32>,
    /// Bytes of the CRC that is being computed, and its value so far.
    covered: usize,
    crc: u32,
}

impl Derive {
    fn new(geometry: Geometry, pass: u32, from: u32) -> Self {
        Self { geometry, pass, index: 0, from, loaded: None, covered: 0, crc: 0 }
    }
}

impl<'a, S: Storage, J: Storage> Update<'a, S, J> {
    /// Prepares the work; nothing is read or written yet.
    ///
    /// - `slot`: holds the old file at its beginning. It must be large enough for both files, in whole pages.
    /// - `journal`: as many pages as a page of the slot takes, and two more. What it holds at first does not matter.
    /// - `page`: memory for a page of the slot.
    ///
    /// # Errors
    /// If a length does not fit; see [`UpdateError`].
    pub fn new(delta: Delta<'a>, slot: S, journal: J, page: &'a mut [u8]) -> Result<Self, UpdateError> {
        let page_bytes = slot.page_bytes();
        if page_bytes == 0 || !page_bytes.is_multiple_of(64) {
            return Err(UpdateError::PageBytes { place: Where::Slot, found: page_bytes });
        }
        if page.len() != page_bytes {
            return Err(UpdateError::PageMemory { found: page.len(), needed: page_bytes });
        }
        let longest = delta.old_bytes().max(delta.new_bytes());
        let needed = longest.div_ceil(page_bytes).saturating_mul(page_bytes);
        let found = slot.bytes();
        if found < needed {
            return Err(UpdateError::Capacity { place: Where::Slot, found, needed });
        }
        let journal = Journal::new(journal, delta.id(), page_bytes)?;
        Ok(Self { delta, slot, journal, page, stage: Stage::Identify(Hashing::default()) })
    }

    /// Does the next bounded piece of work. After [`Progress::Done`] the slot holds the new file, byte for byte.
    ///
    /// # Errors
    /// See [`UpdateError`]. After an error the next step begins by looking at what the slot holds, as after a restart.
    pub fn step(&mut self) -> Result<Progress, UpdateError> {
        // Whatever fails begins anew.
        let stage = core::mem::replace(&mut self.stage, Stage::Identify(Hashing::default()));
        self.stage = match stage {
            Stage::Identify(hashing) => self.identify(hashing)?,
            Stage::Begin => {
                self.journal.clear()?;
                Stage::Content(Order::of(&self.delta, self.page.len()), Reader::default())
            }
            Stage::Content(order, reader) => self.content(order, reader)?,
            Stage::Derive(work) if work.pass == pass::PARITY => self.parity(work)?,
            Stage::Derive(work) => self.derive(work)?,
            Stage::Verify(hashing) => self.verify(hashing)?,
            Stage::Finish => {
                self.journal.clear()?;
                Stage::Done
            }
            Stage::Done => Stage::Done,
        };
        Ok(if matches!(self.stage, Stage::Done) { Progress::Done } else { Progress::More })
    }

    /// Bytes of a page, as a divisor.
    fn page_bytes(&self) -> usize {
        self.page.len().max(1)
    }

    /// The slot: to read what it holds, once the work is done.
    pub fn slot(&mut self) -> &mut S {
        &mut self.slot
    }

    fn read(&mut self, at: usize, bytes: &mut [u8]) -> Result<(), UpdateError> {
        self.slot.read(at, bytes).map_err(|error| error.at(Where::Slot, at))
    }

    /// Hashes the next bytes before `end`, at most a page.
    fn hash(&mut self, hashing: &mut Hashing, end: usize) -> Result<(), UpdateError> {
        let length = self.page.len().min(end.saturating_sub(hashing.at));
        let page = self.page.get_mut(..length).unwrap_or_default();
        self.slot.read(hashing.at, page).map_err(|error| error.at(Where::Slot, hashing.at))?;
        hashing.hash.update(page);
        hashing.at += length;
        Ok(())
    }

    fn identify(&mut self, mut hashing: Hashing) -> Result<Stage, UpdateError> {
        let (old, new) = (self.delta.old_bytes(), self.delta.new_bytes());
        let end = if hashing.shorter.is_none() { old.min(new) } else { old.max(new) };
        self.hash(&mut hashing, end)?;
        if hashing.at < end {
            return Ok(Stage::Identify(hashing));
        }
        let hash: [u8; 32] = hashing.hash.clone().finalize().into();
        let Some(shorter) = hashing.shorter else {
            return Ok(Stage::Identify(Hashing { shorter: Some(hash), ..hashing }));
        };
        let (of_old, of_new) = if old <= new { (shorter, hash) } else { (hash, shorter) };
        if of_old == *self.delta.old_hash() {
            return Ok(Stage::Begin);
        }
        if of_new == *self.delta.new_hash() {
            return Ok(Stage::Finish);
        }
        let other = UpdateError::OtherModel { found: start(&of_old), expected: start(self.delta.old_hash()) };
        let record = self.journal.newest()?.ok_or(other)?;
        if self.journal.restore(&record, self.page)? {
            self.write_page(record.page)?;
        }
        self.resume(record.position)
    }

    /// Goes on behind a page that stands.
    fn resume(&mut self, after: Position) -> Result<Stage, UpdateError> {
        if after.pass == pass::CONTENT {
            let mut order = Order::of(&self.delta, self.page.len());
            while order.step < after.step && order.next(&self.delta).is_some() {}
            return Ok(Stage::Content(order, Reader::default()));
        }
        let geometry = Geometry::read(&mut self.slot, self.delta.data_bytes())?;
        Ok(Stage::Derive(Derive::new(geometry, after.pass, after.step.saturating_add(1))))
    }

    /// Replaces a page of the slot by the one in memory, by way of the journal, unless it is the same already.
    fn commit(&mut self, position: Position, page: u32) -> Result<(), UpdateError> {
        let at = page as usize * self.page.len();
        let mut same = true;
        for (index, part) in self.page.chunks(CHUNK).enumerate() {
            let mut found = [0; CHUNK];
            let found = found.get_mut(..part.len()).unwrap_or_default();
            let offset = at + index * CHUNK;
            self.slot.read(offset, found).map_err(|error| error.at(Where::Slot, offset))?;
            same &= *found == *part;
        }
        if same {
            return Ok(());
        }
        self.journal.store(position, page, self.page)?;
        self.write_page(page)
    }

    fn write_page(&mut self, page: u32) -> Result<(), UpdateError> {
        let at = (page as usize).saturating_mul(self.page.len());
        let written = self.slot.erase(at).and_then(|()| self.slot.write(at, self.page));
        written.map_err(|error| error.at(Where::Slot, at))
    }

    fn content(&mut self, mut order: Order, mut reader: Reader) -> Result<Stage, UpdateError> {
        let Some((step, page)) = order.next(&self.delta) else {
            let geometry = Geometry::read(&mut self.slot, self.delta.data_bytes())?;
            return Ok(Stage::Derive(Derive::new(geometry, pass::BLOCKS, 0)));
        };
        self.fill(page, &mut reader)?;
        self.commit(Position { pass: pass::CONTENT, step }, page)?;
        Ok(Stage::Content(order, reader))
    }

    /// Makes the bytes of a page from the old file and the delta; what derives from others is made later.
    fn fill(&mut self, page: u32, reader: &mut Reader) -> Result<(), UpdateError> {
        let delta = self.delta;
        let from = page as usize * self.page.len();
        let to = from + self.page.len();
        self.page.fill(0);
        // The part of the page between two bytes of the file.
        let within = |start: usize, end: usize| (start.max(from), end.min(to));
        for row in delta.moves() {
            let (start, end) = within(row.new, row.new + row.bytes);
            if let Some(part) =
                self.page.get_mut(start.saturating_sub(from)..end.saturating_sub(from)).filter(|_| start < end)
            {
                let at = row.old + (start - row.new);
                self.slot.read(at, part).map_err(|error| error.at(Where::Slot, at))?;
            }
        }
        // What lies behind the data stays.
        let behind = delta.data_bytes().max(from);
        if let Some(part) = self.page.get_mut(behind - from..) {
            self.slot.read(behind, part).map_err(|error| error.at(Where::Slot, behind))?;
        }
        for region in delta.regions() {
            let (start, end) = within(region.start, region.start + region.elements * region.size);
            if start >= end {
                continue;
            }
            match region.change {
                Change::Whole(bytes) => {
                    let bytes = bytes.get(start - region.start..end - region.start).unwrap_or_default();
                    copy(self.page.get_mut(start - from..end - from).unwrap_or_default(), bytes);
                }
                Change::Patch { .. } => {
                    let first = (start - region.start) / region.size.max(1);
                    if reader.region != region.start || reader.place.element > first {
                        *reader = Reader { region: region.start, place: Place::default() };
                    }
                    loop {
                        let mut ahead = reader.place;
                        let Some((element, difference)) = region.next_change(&mut ahead)? else { break };
                        let at = region.start + element * region.size;
                        if at >= end {
                            break;
                        }
                        reader.place = ahead;
                        if let Some(place) = at.checked_sub(from).and_then(|at| self.page.get_mut(at..at + region.size))
                        {
                            add(place, difference);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The next part of a CRC, or the next page that holds some.
    fn derive(&mut self, mut work: Derive) -> Result<Stage, UpdateError> {
        let job = work.geometry.job(&mut self.slot, work.pass, work.index)?;
        let page = job.as_ref().map(|job| (job.target / self.page_bytes()) as u32);
        match (work.loaded, job) {
            // A page is complete.
            (Some(loaded), _) if page != Some(loaded) => {
                self.commit(Position { pass: work.pass, step: loaded }, loaded)?;
                work.loaded = None;
            }
            (_, None) => {
                let next = work.pass + 1;
                // Parity begins in the page where the data end.
                let first = (self.delta.data_bytes() / self.page_bytes()) as u32;
                work = Derive::new(work.geometry, next, if next == pass::PARITY { first } else { 0 });
            }
            (_, Some(_)) if page.is_some_and(|page| page < work.from) => work.index += 1,
            (None, Some(_)) => self.load(&mut work, page)?,
            (Some(_), Some(job)) => self.advance(&mut work, &job)?,
        }
        Ok(Stage::Derive(work))
    }

    fn load(&mut self, work: &mut Derive, page: Option<u32>) -> Result<(), UpdateError> {
        let at = page.unwrap_or(0) as usize * self.page.len();
        self.slot.read(at, self.page).map_err(|error| error.at(Where::Slot, at))?;
        work.loaded = page;
        Ok(())
    }

    /// Computes a CRC further; puts it where it belongs when it is complete.
    fn advance(&mut self, work: &mut Derive, job: &Job) -> Result<(), UpdateError> {
        let mut left = CRC_BYTES.min(job.covered.len() - work.covered);
        while left > 0 {
            let mut chunk = [0; CHUNK];
            let chunk = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            self.read(job.covered.start + work.covered, chunk)?;
            work.crc = crc32c_extend(work.crc, chunk);
            work.covered += chunk.len();
            left -= chunk.len();
        }
        if work.covered == job.covered.len() {
            let at = job.target % self.page_bytes();
            copy(self.page.get_mut(at..at + 4).unwrap_or_default(), &work.crc.to_le_bytes());
            (work.index, work.covered, work.crc) = (work.index + 1, 0, 0);
        }
        Ok(())
    }

    fn parity(&mut self, mut work: Derive) -> Result<Stage, UpdateError> {
        let (data, file) = (self.delta.data_bytes(), self.delta.new_bytes());
        let page = work.index.max(work.from);
        let at = page as usize * self.page.len();
        if at >= file || data == file {
            return Ok(Stage::Verify(Hashing::default()));
        }
        self.load(&mut work, Some(page))?;
        derive::parity(&mut self.slot, self.page, at, data, file)?;
        self.commit(Position { pass: pass::PARITY, step: page }, page)?;
        work.index = page + 1;
        Ok(Stage::Derive(work))
    }

    fn verify(&mut self, mut hashing: Hashing) -> Result<Stage, UpdateError> {
        let end = self.delta.new_bytes();
        self.hash(&mut hashing, end)?;
        if hashing.at < end {
            return Ok(Stage::Verify(hashing));
        }
        let hash: [u8; 32] = hashing.hash.finalize().into();
        if hash != *self.delta.new_hash() {
            return Err(UpdateError::Broken { found: start(&hash), expected: start(self.delta.new_hash()) });
        }
        Ok(Stage::Finish)
    }
}

/// Adds to an element, little-endian, modulo its size.
fn add(element: &mut [u8], difference: u64) {
    let mut wide = [0; 8];
    copy(&mut wide, element);
    copy(element, &u64::from_le_bytes(wide).wrapping_add(difference).to_le_bytes());
}
