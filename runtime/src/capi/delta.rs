//! Deltas: from one model file to another, in place.

use core::ffi::c_void;

use super::guard::NADIR_KEY_BYTES;
use super::memory::{Span, array, array_mut, one, put};
use super::{ErrorDetail, Failure, Status, finish};
use crate::delta::{Delta, DeltaError, Storage, StorageError, Update, UpdateError, Where};
use crate::guard::Progress;

/// What a delta does.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeltaInfo {
    /// Length of the old file.
    pub old_bytes: usize,
    /// Length of the new file; the slot must hold both, in whole pages.
    pub new_bytes: usize,
    /// Version of the new model.
    pub model_version: u32,
    /// 1 if the delta is signed.
    pub is_signed: u32,
    /// SHA-256 of the old file.
    pub old_hash: [u8; 32],
    /// SHA-256 of the new file.
    pub new_hash: [u8; 32],
}

/// Memory by pages. If all three functions are null, `context` points to `bytes` bytes that can be written one by one (RAM, FRAM, MRAM).
///
/// The functions give 0, or a number of their own that says what is wrong. `erase` is given the start of a page and `page_bytes`; `write` a multiple of 64,
/// and multiples of 64 bytes in erased memory; what it has written when it returns must stay. An interrupted erase or
/// write may leave anything in its page, and nothing elsewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StorageDevice {
    /// Given to the functions.
    pub context: *mut c_void,
    /// Length of the memory.
    pub bytes: usize,
    /// Bytes that are erased together: a multiple of 64.
    pub page_bytes: usize,
    /// Reads `length` bytes from `offset` on.
    pub read: Option<unsafe extern "C" fn(context: *mut c_void, offset: usize, bytes: *mut u8, length: usize) -> i32>,
    /// Erases the page at `offset`.
    pub erase: Option<unsafe extern "C" fn(context: *mut c_void, offset: usize, length: usize) -> i32>,
    /// Writes `length` bytes at `offset`.
    pub write:
        Option<unsafe extern "C" fn(context: *mut c_void, offset: usize, bytes: *const u8, length: usize) -> i32>,
}

/// The work of applying a delta: opened by nadir_delta_open, gone on with by nadir_delta_step. Its words are of no use to a program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeltaWork {
    /// Opaque.
    pub words: [u64; 128],
}

/// What lies in a [`DeltaWork`].
struct Work {
    tag: usize,
    update: Update<'static, Device, Device>,
}

const WORK_TAG: usize = 0x4e44_5003;
const _: () = assert!(size_of::<Work>() <= size_of::<DeltaWork>() && align_of::<Work>() <= 8);

/// A [`StorageDevice`] whose functions are all there, or none.
#[derive(Debug)]
struct Device(StorageDevice);

impl StorageDevice {
    fn checked(self, what: &'static str) -> Result<Device, Failure> {
        let there = [self.read.is_some(), self.erase.is_some(), self.write.is_some()];
        match there {
            [true, true, true] | [false, false, false] => Ok(Device(self)),
            _ => Err(Failure::new(Status::NullPointer, what, 0, 0)),
        }
    }
}

impl Device {
    /// The span of memory that is written directly; empty if there are functions.
    fn memory(&self, what: &'static str) -> Result<Span, Failure> {
        let bytes = if self.0.read.is_none() { self.0.bytes } else { 0 };
        Span::of(self.0.context.cast::<u8>().cast_const(), bytes, what)
    }

    /// The address of `length` bytes of memory that is written directly.
    fn part(&self, offset: usize, length: usize) -> Result<*mut u8, StorageError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.0.bytes => Ok(self.0.context.cast::<u8>().wrapping_add(offset)),
            _ => Err(StorageError(-1)),
        }
    }
}

fn told(number: i32) -> Result<(), StorageError> {
    if number == 0 { Ok(()) } else { Err(StorageError(number)) }
}

impl Storage for Device {
    fn bytes(&self) -> usize {
        self.0.bytes
    }

    fn page_bytes(&self) -> usize {
        self.0.page_bytes
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError> {
        let from = self.part(offset, bytes.len())?;
        match self.0.read {
            // SAFETY: what the function may be given is in its description.
            Some(read) => told(unsafe { read(self.0.context, offset, bytes.as_mut_ptr(), bytes.len()) }),
            None => {
                // SAFETY: within the memory that the caller promised; `bytes` lies elsewhere, as nadir_delta_open checked, or on the stack.
                unsafe { core::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
                Ok(())
            }
        }
    }

    fn erase(&mut self, offset: usize) -> Result<(), StorageError> {
        let place = self.part(offset, self.0.page_bytes)?;
        match self.0.erase {
            // SAFETY: as above.
            Some(erase) => told(unsafe { erase(self.0.context, offset, self.0.page_bytes) }),
            None => {
                // SAFETY: within the memory that the caller promised.
                unsafe { core::ptr::write_bytes(place, 0xff, self.0.page_bytes) };
                Ok(())
            }
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let to = self.part(offset, bytes.len())?;
        match self.0.write {
            // SAFETY: as above.
            Some(write) => told(unsafe { write(self.0.context, offset, bytes.as_ptr(), bytes.len()) }),
            None => {
                // SAFETY: as in `read`.
                unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
                Ok(())
            }
        }
    }
}

/// Says what a delta does, without applying it.
///
/// If a block is damaged, `error->found` is its number and `error->expected` the offset of its first byte: these 1024 bytes (or what is
/// left of the body) need be sent again. `error`: may be null.
///
/// # Safety
/// `delta` points to `delta_bytes` readable bytes, `info` to a writable place; `error`, if not null, too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_delta_describe(
    delta: *const u8,
    delta_bytes: usize,
    info: *mut DeltaInfo,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        let read = || {
            Span::of(info, 1, "info")?.apart_from(&Span::of(delta, delta_bytes, "delta")?)?;
            let delta = Delta::parse(array(delta, delta_bytes, "delta")?)?;
            let found = DeltaInfo {
                old_bytes: delta.old_bytes(),
                new_bytes: delta.new_bytes(),
                model_version: delta.model_version(),
                is_signed: delta.is_signed().into(),
                old_hash: *delta.old_hash(),
                new_hash: *delta.new_hash(),
            };
            put(info, found, "info").map(|()| Status::Ok)
        };
        finish(error, read())
    }
}

/// Prepares the work of turning the model in a slot into another; nothing is written yet.
///
/// `slot`: holds the old file at its beginning, and no encoder is open on it. `journal`: as many pages as a page of the slot takes, and two more; it is kept
/// through a loss of power, as the delta is. `page`: memory for a page of the slot. `public_key`: NADIR_KEY_BYTES bytes, with which the
/// delta must be signed; null if it need not be. `least_version`: the least version of the new model. `error`: may be null.
///
/// # Safety
/// The pointers, if not null, point to so much memory, which stays where it is until the work is done; the delta does not change; the
/// functions of slot and journal keep to their description.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_delta_open(
    work: *mut DeltaWork,
    delta: *const u8,
    delta_bytes: usize,
    slot: *const StorageDevice,
    journal: *const StorageDevice,
    page: *mut u8,
    page_bytes: usize,
    public_key: *const u8,
    least_version: u32,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: spans are checked against each other; the rest is the caller's promise.
    unsafe {
        let opened = || {
            let (slot, journal) = (one(slot, "slot")?.checked("slot")?, one(journal, "journal")?.checked("journal")?);
            let spans = [
                Span::of(work, 1, "work")?,
                Span::of(delta, delta_bytes, "delta")?,
                slot.memory("slot")?,
                journal.memory("journal")?,
                Span::of(page, page_bytes, "page")?,
            ];
            for (index, span) in spans.iter().enumerate() {
                for other in spans.iter().take(index) {
                    span.apart_from(other)?;
                }
            }
            put(work, DeltaWork { words: [0; 128] }, "work")?;
            let delta = Delta::parse(array(delta, delta_bytes, "delta")?)?;
            delta.check_version(least_version)?;
            if !public_key.is_null() {
                verify(&delta, one(public_key.cast(), "public_key")?)?;
            }
            let page = array_mut(page, page_bytes, "page")?;
            let update = Update::new(delta, slot, journal, page)?;
            put(work.cast(), Work { tag: WORK_TAG, update }, "work").map(|()| Status::Ok)
        };
        finish(error, opened())
    }
}

#[cfg(feature = "signature")]
fn verify(delta: &Delta<'_>, key: &[u8; NADIR_KEY_BYTES]) -> Result<(), Failure> {
    delta.verify_signature(key).map_err(|error| super::guard::signature_failure(error, "delta"))
}

#[cfg(not(feature = "signature"))]
fn verify(_: &Delta<'_>, _: &[u8; NADIR_KEY_BYTES]) -> Result<(), Failure> {
    Err(Failure::new(Status::NoVerification, "library", 0, 0))
}

/// Does the next bounded piece of work: NADIR_STATUS_MORE, or NADIR_STATUS_OK when the slot holds the new file, byte for byte.
///
/// Then open it with nadir_open, which checks it whole, and before it becomes active call nadir_verify_signature and nadir_self_test.
/// After a loss of power begin again with nadir_delta_open and the same delta and journal. NADIR_STATUS_OTHER_MODEL: the slot does not hold the old file, nothing was written.
/// NADIR_STATUS_UPDATE_FAILED: send the old file again, whole. `error`: may be null.
///
/// # Safety
/// `work` comes from nadir_delta_open, and what was given there still stands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_delta_step(work: *mut DeltaWork, error: *mut ErrorDetail) -> Status {
    // SAFETY: work with the tag was written by `nadir_delta_open`; without it only the tag is read, which any bits can be.
    unsafe {
        let stepped = || {
            Span::of(work, 1, "work")?;
            let work = work.cast::<Work>();
            if core::ptr::addr_of!((*work).tag).read() != WORK_TAG {
                return Err(Failure::new(Status::NotOpen, "work", work.addr() as u64, 0));
            }
            Ok(match (*work).update.step()? {
                Progress::More => Status::More,
                Progress::Done => Status::Ok,
            })
        };
        finish(error, stepped())
    }
}

impl From<DeltaError> for Failure {
    fn from(error: DeltaError) -> Self {
        let new = Self::new;
        match error {
            DeltaError::Magic { found } => new(Status::Delta, "magic number", u64::from_le_bytes(found), 0),
            DeltaError::Version { found } => new(Status::Delta, "version", found.into(), crate::delta::VERSION.into()),
            DeltaError::Length { found, needed } => new(Status::DeltaDamaged, "length", found as u64, needed as u64),
            DeltaError::Head { found, expected } => new(Status::DeltaDamaged, "head", found.into(), expected.into()),
            DeltaError::Table { found, expected, .. } => {
                new(Status::DeltaDamaged, "table of CRCs", found.into(), expected.into())
            }
            DeltaError::Block { index, offset, .. } => new(Status::DeltaDamaged, "block", index as u64, offset as u64),
            DeltaError::Seal { offset, .. } => new(Status::DeltaDamaged, "signature", 0, offset as u64),
            DeltaError::Field { field, found, expected } => new(Status::Delta, field, found, expected),
            DeltaError::Row { what, index } => new(Status::Delta, what, index.into(), 0),
            DeltaError::RolledBack { found, least } => {
                new(Status::RolledBack, "model_version", found.into(), least.into())
            }
        }
    }
}

const fn name(place: Where) -> &'static str {
    match place {
        Where::Slot => "slot",
        Where::Journal => "journal",
    }
}

impl From<UpdateError> for Failure {
    fn from(error: UpdateError) -> Self {
        let new = Self::new;
        match error {
            UpdateError::Capacity { place, found, needed } => {
                new(Status::Length, name(place), found as u64, needed as u64)
            }
            UpdateError::PageBytes { place, found } => new(Status::Misaligned, name(place), found as u64, 64),
            UpdateError::PageMemory { found, needed } => new(Status::Length, "page", found as u64, needed as u64),
            UpdateError::OtherModel { found, expected } => {
                new(Status::OtherModel, "SHA-256 of the slot", found, expected)
            }
            UpdateError::Device { place, offset, error } => {
                new(Status::Device, name(place), u64::from(error.0.unsigned_abs()), offset as u64)
            }
            UpdateError::Broken { found, expected } => {
                new(Status::UpdateFailed, "SHA-256 of the new model", found, expected)
            }
            UpdateError::NewModel { field, found, expected } => new(Status::UpdateFailed, field, found, expected),
            UpdateError::Delta(error) => error.into(),
        }
    }
}
