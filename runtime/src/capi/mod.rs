//! The runtime for C: `include/nadir.h` is made from this module (`cargo xtask header`), `docs/c-abi.md` tells how to use it.
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | status codes, the error that names what is wrong |
//! | `memory.rs` | pointers and lengths into checked slices: null, misaligned, too long, overlapping |
//! | `encoder.rs` | the handle; opening a model, embedding at once and in steps, what a model is |
//! | `delta.rs` | from one model file to another, in place |
//! | `guard.rs` | repair, scrub, self-test, signature |
//! | `products.rs` | smaller forms of an embedding |
//! | `triage.rs` | quality, prototypes and novelty, the choice under a budget, records |
//!
//! Every function checks what it can: null and misaligned pointers, lengths, overlaps, handles that were never opened or were
//! moved. What no function can check is the caller's promise, as for any C function: a pointer that is given with a length points to so
//! many readable (and for results writable) values, the model's bytes stay where and what they are until the encoder is closed, and one
//! encoder is used by one thread at a time. Nothing here panics or allocates; `cargo xtask capi --check` looks.
#![allow(unsafe_code)]

mod delta;
mod encoder;
mod guard;
mod memory;
mod products;
mod triage;

pub use delta::*;
pub use encoder::*;
pub use guard::*;
pub use products::*;
pub use triage::*;

use core::ffi::{CStr, c_char};

use crate::encoder::{ConfigureError, EmbedError};
use crate::model::products::ProductsError;
use crate::model::{Dtype, ModelError};

/// Version of this interface: major * 65536 + minor. Programs built for another major version do not fit.
pub const NADIR_ABI_VERSION: u32 = 0x0001_0000;
/// `nadir_error.section` where no section of the model file is concerned.
pub const NADIR_NO_SECTION: u32 = 0xffff_ffff;

/// What a function has to say: 0 and above is good, below 0 is an error.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The run goes on: call nadir_step again.
    More = 1,
    /// A pointer is null that must not be.
    NullPointer = -1,
    /// A pointer is not aligned: `expected` is the alignment, `found` the address.
    Misaligned = -2,
    /// An array does not have its length: `expected` and `found` count values.
    Length = -3,
    /// Two arrays overlap that must not.
    Overlap = -4,
    /// The arena is too small: `expected` bytes are needed.
    ArenaTooSmall = -5,
    /// The handle was not opened, was closed, or lies elsewhere than where it was opened.
    NotOpen = -6,
    /// nadir_step without nadir_start before it, or after the last step.
    NotStarted = -7,
    /// A number is none of those that are listed for it.
    UnknownValue = -8,
    /// An index lies beyond the last.
    Index = -9,
    /// This processor has no kernels of that name.
    NoSuchKernels = -10,
    /// The model's weights are f32 or f16, and this library was built without the engine for them.
    NoFloat = -11,
    /// The bytes are no .nadir file.
    ModelMagic = -20,
    /// The model file is of a version that this library does not read, or that is not for such a model.
    ModelVersion = -21,
    /// The model file is cut off, or goes on after its end.
    ModelLength = -22,
    /// A CRC of the model file does not match: the file is damaged.
    ModelDamaged = -23,
    /// The header of the model file does not decode, or a field of it is not possible.
    ModelHeader = -24,
    /// The architecture is beyond a limit.
    ModelArchitecture = -25,
    /// A band of the model is not possible; `found` is its index.
    ModelBand = -26,
    /// The table of sections does not fit the architecture.
    ModelSection = -27,
    /// A weight or constant of the model is not possible; `found` is its index in the section.
    ModelValue = -28,
    /// The bytes are no intact prototype file.
    Prototypes = -40,
    /// The prototypes were made for another embedding space or dimension.
    PrototypesMismatch = -41,
    /// An embedding is NaN or infinite.
    NotFinite = -42,
    /// The model file has no parity: it cannot be repaired.
    NoParity = -50,
    /// Words of the model file have more than one flipped bit: `found` of them, the first at byte `expected`.
    Unrepairable = -51,
    /// The model file has no self-test.
    NoSelfTest = -52,
    /// The self-test gave other embeddings than those on record.
    SelfTestFailed = -53,
    /// The model, or the delta, is not signed.
    NotSigned = -54,
    /// It was signed with another key.
    OtherKey = -55,
    /// The public key is none.
    BadKey = -56,
    /// The signature is wrong: the file was changed after it was signed.
    BadSignature = -57,
    /// The model's version, `found`, is less than the least allowed, `expected`.
    RolledBack = -58,
    /// This library was built without the verification of signatures.
    NoVerification = -59,
    /// The model file holds no products.
    NoProducts = -60,
    /// The bytes are no delta that this library reads.
    Delta = -61,
    /// A part of the delta is damaged: `what` names it; of a block `found` is the number, `expected` the offset of its first byte.
    DeltaDamaged = -62,
    /// The slot does not hold the model for which the delta was made; nothing was written.
    OtherModel = -63,
    /// The delta did not make the new model: send the old one again, whole.
    UpdateFailed = -64,
    /// A function of the slot or the journal failed: its number, without sign, in `found`, the offset in `expected`.
    Device = -65,
}

impl Status {
    const ALL: [Self; 41] = [
        Self::Ok,
        Self::More,
        Self::NullPointer,
        Self::Misaligned,
        Self::Length,
        Self::Overlap,
        Self::ArenaTooSmall,
        Self::NotOpen,
        Self::NotStarted,
        Self::UnknownValue,
        Self::Index,
        Self::NoSuchKernels,
        Self::NoFloat,
        Self::ModelMagic,
        Self::ModelVersion,
        Self::ModelLength,
        Self::ModelDamaged,
        Self::ModelHeader,
        Self::ModelArchitecture,
        Self::ModelBand,
        Self::ModelSection,
        Self::ModelValue,
        Self::Prototypes,
        Self::PrototypesMismatch,
        Self::NotFinite,
        Self::NoParity,
        Self::Unrepairable,
        Self::NoSelfTest,
        Self::SelfTestFailed,
        Self::NotSigned,
        Self::OtherKey,
        Self::BadKey,
        Self::BadSignature,
        Self::RolledBack,
        Self::NoVerification,
        Self::NoProducts,
        Self::Delta,
        Self::DeltaDamaged,
        Self::OtherModel,
        Self::UpdateFailed,
        Self::Device,
    ];

    const fn message(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::More => c"more steps to do",
            Self::NullPointer => c"a pointer is null",
            Self::Misaligned => c"a pointer is not aligned",
            Self::Length => c"an array has the wrong length",
            Self::Overlap => c"two arrays overlap",
            Self::ArenaTooSmall => c"the arena is too small",
            Self::NotOpen => c"the handle is not open, or was moved",
            Self::NotStarted => c"no run was started",
            Self::UnknownValue => c"a number is none of those possible",
            Self::Index => c"an index lies beyond the last",
            Self::NoSuchKernels => c"this processor has no kernels of that name",
            Self::NoFloat => c"this library runs int8 models only",
            Self::ModelMagic => c"not a .nadir model",
            Self::ModelVersion => c"a model file of a version that is not known, or not for such a model",
            Self::ModelLength => c"the model file is cut off or too long",
            Self::ModelDamaged => c"the model file is damaged",
            Self::ModelHeader => c"the header of the model file is not possible",
            Self::ModelArchitecture => c"the model's architecture is beyond a limit",
            Self::ModelBand => c"a band of the model is not possible",
            Self::ModelSection => c"the model's sections do not fit its architecture",
            Self::ModelValue => c"a value in the model is not possible",
            Self::Prototypes => c"not an intact prototype file",
            Self::PrototypesMismatch => c"the prototypes belong to another embedding space",
            Self::NotFinite => c"the embedding is not finite",
            Self::NoParity => c"the model file has no parity",
            Self::Unrepairable => c"words of the model file have more than one flipped bit",
            Self::NoSelfTest => c"the model file has no self-test",
            Self::SelfTestFailed => c"the self-test gave other embeddings",
            Self::NotSigned => c"the file is not signed",
            Self::OtherKey => c"the file was signed with another key",
            Self::BadKey => c"the public key is none",
            Self::BadSignature => c"the file was changed after it was signed",
            Self::RolledBack => c"the model is older than allowed",
            Self::NoVerification => c"this library verifies no signatures",
            Self::NoProducts => c"the model file holds no products",
            Self::Delta => c"not a delta that this library reads",
            Self::DeltaDamaged => c"the delta is damaged",
            Self::OtherModel => c"the slot holds another model than the delta is for",
            Self::UpdateFailed => c"the delta did not make the new model",
            Self::Device => c"a function of the slot or the journal failed",
        }
    }
}

/// What went wrong, more closely than the status says it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ErrorDetail {
    /// What the function returned.
    pub status: Status,
    /// Index of the model's section concerned, or NADIR_NO_SECTION.
    pub section: u32,
    /// What was found: a length, an address, a version, a CRC, an index; which of them, the status says.
    pub found: u64,
    /// What was expected, in the same unit; 0 if there is no one such value.
    pub expected: u64,
    /// The argument, field or tensor concerned, in ASCII, ended by a zero.
    pub what: [c_char; 48],
}

/// A short English sentence about a status, ended by a zero; for a number that is no status too. Never null.
#[unsafe(no_mangle)]
pub extern "C" fn nadir_status_message(status: i32) -> *const c_char {
    let known = Status::ALL.into_iter().find(|&known| known as i32 == status);
    known.map_or(c"not a status of this library", Status::message).as_ptr()
}

/// NADIR_ABI_VERSION of the library, to be compared with that of the header: the major version (upper 16 bits) must be equal.
#[unsafe(no_mangle)]
pub extern "C" fn nadir_abi_version() -> u32 {
    NADIR_ABI_VERSION
}

/// An error on its way to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    status: Status,
    section: u32,
    found: u64,
    expected: u64,
    what: &'static str,
}

impl Failure {
    const fn new(status: Status, what: &'static str, found: u64, expected: u64) -> Self {
        Self { status, section: NADIR_NO_SECTION, found, expected, what }
    }

    fn section(self, index: usize) -> Self {
        Self { section: u32::try_from(index).unwrap_or(NADIR_NO_SECTION), ..self }
    }

    fn detail(&self) -> ErrorDetail {
        ErrorDetail {
            status: self.status,
            section: self.section,
            found: self.found,
            expected: self.expected,
            what: memory::text(self.what),
        }
    }
}

/// Ends a function: writes the details to `error`, unless it is null, and gives the status.
///
/// # Safety
/// `error` is null, or points to a writable [`ErrorDetail`].
unsafe fn finish(error: *mut ErrorDetail, result: Result<Status, Failure>) -> Status {
    let failure = match result {
        Ok(status) => Failure::new(status, "", 0, 0),
        Err(failure) => failure,
    };
    if !error.is_null() && error.is_aligned() {
        // SAFETY: not null and aligned; that it is writable is the caller's promise.
        unsafe { error.write(failure.detail()) };
    }
    failure.status
}

impl From<ConfigureError> for Failure {
    fn from(error: ConfigureError) -> Self {
        match error {
            ConfigureError::Budget { budget, needed } => {
                Self::new(Status::ArenaTooSmall, "arena", budget as u64, needed as u64)
            }
            _ => Self::new(Status::NoSuchKernels, "kernels", 0, 0),
        }
    }
}

impl From<EmbedError> for Failure {
    fn from(error: EmbedError) -> Self {
        let (status, what, found, expected) = match error {
            EmbedError::TileLength { found, expected, .. } => (Status::Length, "tile", found, expected),
            EmbedError::ArenaTooSmall { found, needed } => (Status::ArenaTooSmall, "arena", found, needed),
            EmbedError::ArenaMisaligned { address } => {
                (Status::Misaligned, "arena", address, crate::encoder::ARENA_ALIGNMENT)
            }
            EmbedError::EmbeddingLength { found, expected } => (Status::Length, "embedding", found, expected),
            EmbedError::NoFloat => (Status::NoFloat, "model", 0, 0),
        };
        Self::new(status, what, found as u64, expected as u64)
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        use crate::model::{
            ALIGNMENT, ArchitectureError, MAX_BANDS, MAX_CHANNELS, MAX_DEPTH, MAX_PATCHIFY_INPUTS, MAX_TILE_SIZE, Part,
        };
        let new = Self::new;
        match error {
            ModelError::Misaligned { address } => new(Status::Misaligned, "model", address as u64, ALIGNMENT as u64),
            ModelError::Magic { found } => new(Status::ModelMagic, "magic number", u64::from_le_bytes(found), 0),
            ModelError::Draft => new(Status::ModelVersion, "draft of the format", 0, 0),
            ModelError::ParityField { found } => new(Status::ModelValue, "parity field", found.into(), 0),
            ModelError::Unit { length, unit } => new(Status::ModelLength, "model", length as u64, unit as u64),
            ModelError::Parity { offset } => new(Status::ModelDamaged, "parity of a word", offset as u64, 0),
            ModelError::Products(ProductsError { field, found, most, .. }) => {
                new(Status::ModelValue, field, found, most)
            }
            ModelError::SelfTest { field, found, limit } => new(Status::ModelValue, field, found.into(), limit.into()),
            ModelError::Version { major, .. } => {
                new(Status::ModelVersion, "major version", major.into(), crate::model::VERSION_MAJOR_PATCHIFY.into())
            }
            ModelError::VersionContent { major, expected } => {
                new(Status::ModelVersion, "major version", major.into(), expected.into())
            }
            ModelError::Truncated { length, needed } => new(Status::ModelLength, "model", length as u64, needed),
            ModelError::TooLong { length, expected } => new(Status::ModelLength, "model", length as u64, expected),
            ModelError::HeaderLength { length, limit } => {
                new(Status::ModelHeader, "header length", length.into(), limit as u64)
            }
            ModelError::Crc { part, found, expected } => {
                let what = match part {
                    Part::Head => "CRC of prefix, header and table",
                    Part::File => "CRC of the file",
                };
                new(Status::ModelDamaged, what, found.into(), expected.into())
            }
            ModelError::SectionCrc { index, spec, found, expected } => {
                new(Status::ModelDamaged, spec.name(), found.into(), expected.into()).section(index)
            }
            ModelError::NotZero { offset, .. } => new(Status::ModelValue, "byte that must be zero", offset as u64, 0),
            ModelError::HeaderEncoding(_) => new(Status::ModelHeader, "header encoding", 0, 0),
            ModelError::HeaderTail(bytes) => new(Status::ModelHeader, "bytes after the header", bytes as u64, 0),
            ModelError::Architecture(error) => {
                let (what, found, limit) = match error {
                    ArchitectureError::TileSize(found) => ("tile_size", found.into(), MAX_TILE_SIZE),
                    ArchitectureError::PatchSize(found) => ("patch_size", found.into(), 0),
                    ArchitectureError::Depth { depth, .. } => ("depths", depth.into(), MAX_DEPTH),
                    ArchitectureError::Dim { dim, .. } => ("dims", dim.into(), MAX_CHANNELS),
                    ArchitectureError::Epsilon { name, value } => (name, value.to_bits().into(), 0),
                    ArchitectureError::PatchifyInputs { kernel, bands } => {
                        ("inputs of the stem", (kernel * kernel * bands) as u64, MAX_PATCHIFY_INPUTS)
                    }
                };
                new(Status::ModelArchitecture, what, found, limit as u64)
            }
            ModelError::TextLength { field, length, max, .. } => {
                new(Status::ModelHeader, field, length as u64, max as u64)
            }
            ModelError::EmbeddingDimension { found, expected } => {
                new(Status::ModelHeader, "embedding_dimension", found.into(), expected as u64)
            }
            ModelError::NoBand => new(Status::ModelBand, "bands", 0, MAX_BANDS as u64),
            ModelError::BandName { index } => new(Status::ModelBand, "name", index as u64, 0),
            ModelError::BandSpelling { index } => new(Status::ModelBand, "spelling of the name", index as u64, 0),
            ModelError::BandNumber { index, field, .. } => new(Status::ModelBand, field, index as u64, 0),
            ModelError::TensorCount { found, expected } => {
                new(Status::ModelSection, "number of tensors", found as u64, expected as u64)
            }
            ModelError::Entry { index, field, found, expected } => {
                new(Status::ModelSection, field, found, expected).section(index)
            }
            ModelError::Section { index, spec, elements, dtype } if dtype == spec.dtype => {
                new(Status::ModelSection, spec.name, elements, spec.elements as u64).section(index)
            }
            ModelError::Section { index, spec, dtype, .. } => {
                new(Status::ModelSection, dtype_of(spec.dtype), dtype as u64, spec.dtype as u64).section(index)
            }
            ModelError::NotFinite { index, spec, element } => {
                new(Status::ModelValue, spec.name, element as u64, 0).section(index)
            }
            ModelError::OutOfRange { index, spec, element } => {
                new(Status::ModelValue, spec.name, element as u64, 0).section(index)
            }
        }
    }
}

/// What to say of a section of another type.
const fn dtype_of(expected: Dtype) -> &'static str {
    match expected {
        Dtype::F32 => "type of a section of f32",
        Dtype::F16 => "type of a section of f16",
        Dtype::I8 => "type of a section of i8",
        Dtype::I16 => "type of a section of i16",
        Dtype::I32 => "type of a section of i32",
        Dtype::I64 => "type of a section of i64",
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod status_tests {
    use super::*;

    #[test]
    fn every_status_has_a_message_of_its_own() {
        for (i, status) in Status::ALL.into_iter().enumerate() {
            let message = |status: Status| {
                // SAFETY: static and ended by a zero.
                unsafe { CStr::from_ptr(nadir_status_message(status as i32)) }
            };
            assert_eq!(message(status), status.message());
            assert!(Status::ALL[..i].iter().all(|&other| message(other) != message(status) && other != status));
        }
        for unknown in [2, -12, -29, i32::MIN, i32::MAX] {
            // SAFETY: as above.
            let message = unsafe { CStr::from_ptr(nadir_status_message(unknown)) };
            assert_eq!(message, c"not a status of this library");
        }
    }

    #[test]
    fn details_name_what_is_wrong() {
        let mut detail = Failure::new(Status::Ok, "", 0, 0).detail();
        let failure = ModelError::Entry { index: 7, field: "offset", found: 64, expected: 128 }.into();
        // SAFETY: the place is a local variable.
        assert_eq!(unsafe { finish(&mut detail, Err(failure)) }, Status::ModelSection);
        // SAFETY: the text is ended by a zero.
        let what = unsafe { CStr::from_ptr(detail.what.as_ptr()) };
        assert_eq!((detail.section, detail.found, detail.expected, what), (7, 64, 128, c"offset"));
        // SAFETY: null is allowed.
        assert_eq!(unsafe { finish(core::ptr::null_mut(), Err(failure)) }, Status::ModelSection);
    }
}
