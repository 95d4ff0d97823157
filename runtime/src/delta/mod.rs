//! Deltas: a small file that turns one model into another, applied where the old one lies. The format is laid down in `docs/delta.md`.
//!
//! A delta names the old and the new file by SHA-256 and holds what cannot be computed: where old sections lie in the new file, and which
//! elements differ. CRCs and parity are computed again on board. The slot is changed a page at a time, in steps of bounded work; a journal of
//! a few pages makes the work go on after the power was cut at any moment.
//!
//! ```no_run
//! use nadir::delta::{Delta, Memory, Update};
//! use nadir::guard::Progress;
//!
//! # fn run(delta: &[u8], slot: &mut [u8], journal: &mut [u8], page: &mut [u8; 4096]) -> Result<(), Box<dyn std::error::Error>> {
//! let delta = Delta::parse(delta)?;
//! let mut update = Update::new(delta, Memory::new(slot, 4096), Memory::new(journal, 4096), page)?;
//! while update.step()? == Progress::More {}
//! drop(update);
//! let file = &slot[..delta.new_bytes()]; // now: Model::parse, guard::verify_signature, the self-test
//! # Ok(())
//! # }
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | `file.rs`, `bits.rs` | [`Delta`]: the delta's file, checked and read in place |
//! | `storage.rs` | [`Storage`]: memory by pages; [`Memory`], [`Nor`] |
//! | `journal.rs` | what survives a loss of power |
//! | `order.rs` | in which order pages are replaced |
//! | `update.rs`, `derive.rs` | [`Update`]: the work, step by step; CRCs and parity |

mod bits;
mod derive;
mod file;
mod journal;
mod order;
mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod update;

pub use bits::{ESCAPE, GAP_BITS};
pub use file::{BLOCK_BYTES, Delta, HEAD_BYTES, LINE_BYTES, MAGIC, SEAL_BYTES, VERSION, damaged_blocks};
pub use storage::{Memory, Nor, Storage, StorageError};
pub use update::Update;

/// Why bytes are not a delta, or not one that may be applied. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// The file does not begin with the magic number.
    #[error("not a delta: the magic number is {found:02x?}")]
    Magic {
        /// The first 8 bytes.
        found: [u8; 8],
    },
    /// The delta was written in another version of the format.
    #[error("delta version is {found}, this runtime reads {VERSION}")]
    Version {
        /// Version found.
        found: u16,
    },
    /// The file is shorter or longer than it says.
    #[error("delta has {found} bytes, {needed} needed")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The head is damaged.
    #[error(
        "head of the delta ({HEAD_BYTES} bytes from 0) is damaged: CRC is {found:08x}, {expected:08x} is on record"
    )]
    Head {
        /// Computed from the bytes.
        found: u32,
        /// Written in the delta.
        expected: u32,
    },
    /// The table of CRCs is damaged.
    #[error(
        "table of the delta's CRCs ({bytes} bytes from {offset}) is damaged: CRC is {found:08x}, {expected:08x} is on record"
    )]
    Table {
        /// First byte in the delta.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// Computed from the bytes.
        found: u32,
        /// Written in the delta.
        expected: u32,
    },
    /// A block is damaged; only this one need be sent again.
    #[error(
        "block {index} of the delta ({bytes} bytes from {offset}) is damaged: CRC is {found:08x}, {expected:08x} is on record"
    )]
    Block {
        /// Number of the block.
        index: usize,
        /// First byte in the delta.
        offset: usize,
        /// Its length.
        bytes: usize,
        /// Computed from the bytes.
        found: u32,
        /// Written in the delta.
        expected: u32,
    },
    /// The signature is damaged.
    #[error("signature of the delta ({bytes} bytes from {offset}) is damaged: its CRC does not fit")]
    Seal {
        /// First byte in the delta.
        offset: usize,
        /// Its length.
        bytes: usize,
    },
    /// A number is not what it must be. No delta that `quantize delta` wrote has one.
    #[error("delta: {field} is {found}, expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value expected.
        expected: u64,
    },
    /// A row of the body does not decode, or leads beyond the files.
    #[error("delta: {what} {index} is cut off, or leads beyond the files")]
    Row {
        /// `move` or `region`.
        what: &'static str,
        /// Its number.
        index: u32,
    },
    /// The new model is older than what is allowed.
    #[error("the delta makes version {found} of the model, at least {least} is required")]
    RolledBack {
        /// Version of the new model.
        found: u32,
        /// The least version allowed.
        least: u32,
    },
}

/// Which memory an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The memory that holds the model.
    Slot,
    /// The memory that holds the journal.
    Journal,
}

impl core::fmt::Display for Where {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Where::Slot => "slot",
            Where::Journal => "journal",
        })
    }
}

/// Why a delta was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// A memory has too few bytes. Nothing was written.
    #[error("the {place} has {found} bytes, {needed} needed")]
    Capacity {
        /// Which memory.
        place: Where,
        /// Its bytes.
        found: usize,
        /// Bytes needed, in whole pages.
        needed: usize,
    },
    /// Pages are not a multiple of 64 bytes. Nothing was written.
    #[error("pages of the {place} have {found} bytes, must be a multiple of 64")]
    PageBytes {
        /// Which memory.
        place: Where,
        /// Bytes of a page.
        found: usize,
    },
    /// The memory for a page does not have a page's length. Nothing was written.
    #[error("memory for a page has {found} bytes, {needed} needed")]
    PageMemory {
        /// Bytes given.
        found: usize,
        /// Bytes of a page of the slot.
        needed: usize,
    },
    /// The slot holds neither the old file nor the new one, and the journal does not know this delta. Nothing was written.
    #[error(
        "the slot holds a file with SHA-256 {found:016x}..., the delta is for {expected:016x}...: nothing was written"
    )]
    OtherModel {
        /// First 8 bytes of the hash of what the slot holds.
        found: u64,
        /// First 8 bytes of the old file's hash.
        expected: u64,
    },
    /// The device failed. Another step, or another update after a restart, goes on from here.
    #[error("the {place} failed at byte {offset}: {error}")]
    Device {
        /// Which memory.
        place: Where,
        /// Offset in it.
        offset: usize,
        /// What it said.
        error: StorageError,
    },
    /// What was made is not the new file, and is no longer the old one: send the old file again, whole.
    #[error(
        "the slot holds SHA-256 {found:016x}..., not {expected:016x}... of the new model: send the old model again, whole"
    )]
    Broken {
        /// First 8 bytes of the hash of what the slot holds.
        found: u64,
        /// First 8 bytes of the new file's hash.
        expected: u64,
    },
    /// The head of the new file has a number that cannot be: send the old file again, whole.
    #[error("new model: {field} is {found}, expected {expected}: send the old model again, whole")]
    NewModel {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value expected, or the limit.
        expected: u64,
    },
    /// The delta is not what it was when it was parsed.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

impl StorageError {
    const fn at(self, place: Where, offset: usize) -> UpdateError {
        UpdateError::Device { place, offset, error: self }
    }
}

/// First 8 bytes of a hash.
fn start(hash: &[u8; 32]) -> u64 {
    hash.first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
}

impl Delta<'_> {
    /// Checks before anything is written that the new model is not older than `least`; the file that comes out is held against the hash
    /// in the delta, and shows its version itself.
    ///
    /// # Errors
    /// [`DeltaError::RolledBack`].
    pub fn check_version(&self, least: u32) -> Result<(), DeltaError> {
        match self.model_version() {
            found if found < least => Err(DeltaError::RolledBack { found, least }),
            _ => Ok(()),
        }
    }

    /// Checks before anything is written that the delta was signed with the private half of `public_key`; strict, as
    /// [`crate::guard::verify_signature`].
    ///
    /// # Errors
    /// One for each reason, but for the version.
    #[cfg(feature = "signature")]
    pub fn verify_signature(&self, public_key: &[u8; 32]) -> Result<(), crate::guard::SignatureError> {
        let (signed, seal) = self.seal().ok_or(crate::guard::SignatureError::Missing)?;
        crate::guard::verify_seal(seal, &signed_message(signed), public_key)
    }
}

/// What the signed message of a delta begins with.
#[cfg(feature = "signature")]
pub const DOMAIN: [u8; 24] = *b"Nadir delta file Ed25519";

/// The message that is signed: [`DOMAIN`] and the SHA-256 of all bytes before the signature.
#[cfg(feature = "signature")]
pub fn signed_message(bytes: &[u8]) -> [u8; crate::guard::MESSAGE_BYTES] {
    use sha2::{Digest, Sha256};
    let mut message = [0; crate::guard::MESSAGE_BYTES];
    let parts = DOMAIN.into_iter().chain(Sha256::digest(bytes));
    message.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    message
}
