//! Repair, scrub, self-test and signature.

use super::encoder::{Handle, idle, model, scrub, span};
use super::memory::{Span, array_mut, one, put};
use super::{ErrorDetail, Failure, Status, finish};
use crate::guard::{self, Damage, Progress, RepairError, SelfTest, SelfTestError};

/// Bytes of a public key for nadir_verify_signature.
pub const NADIR_KEY_BYTES: usize = 32;

/// What nadir_repair has set right.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RepairSum {
    /// Bits that were flipped and are no longer.
    pub bits: u64,
    /// Offset in the file of the byte of the first of them, if there is one.
    pub offset: u64,
    /// Its number in the byte, 0 the lowest.
    pub bit: u32,
}

impl From<guard::Repaired> for RepairSum {
    fn from(repaired: guard::Repaired) -> Self {
        let (offset, bit) = repaired.first.map_or((0, 0), |first| (first.offset as u64, first.bit.into()));
        Self { bits: repaired.bits as u64, offset, bit }
    }
}

/// Sets right every word of a model file with parity in which one bit is flipped, in place. Do it before nadir_open, never between that and
/// nadir_close: an open encoder reads these bytes.
///
/// Returns NADIR_STATUS_UNREPAIRABLE if some word has more; the others are set right all the same. Whether the file is whole only
/// nadir_open says. `sum`: may be null; written in either case. `error`: may be null.
///
/// # Safety
/// `model` points to `model_bytes` readable and writable bytes; `sum` and `error`, if not null, to writable places elsewhere.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_repair(
    model: *mut u8,
    model_bytes: usize,
    sum: *mut RepairSum,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        let repaired = || {
            if !sum.is_null() {
                Span::of(sum, 1, "sum")?.apart_from(&Span::of(model, model_bytes, "model")?)?;
            }
            let result = guard::repair(array_mut(model, model_bytes, "model")?);
            let (found, result) = match result {
                Ok(found) => (found, Ok(Status::Ok)),
                Err(RepairError::Lost { words, offset, repaired }) => {
                    (repaired, Err(Failure::new(Status::Unrepairable, "word", words as u64, offset as u64)))
                }
                Err(RepairError::NoParity) => return Err(Failure::new(Status::NoParity, "model", 0, 0)),
                Err(RepairError::Length { length }) => {
                    return Err(Failure::new(Status::ModelLength, "model", length as u64, 72));
                }
            };
            if !sum.is_null() {
                put(sum, found.into(), "sum")?;
            }
            result
        };
        finish(error, repaired())
    }
}

/// Compares the next 4096 bytes at most of the model's memory with the CRCs and the parity of the file.
///
/// Returns NADIR_STATUS_MORE, NADIR_STATUS_OK when the whole file was looked at once (the next call begins anew), or
/// NADIR_STATUS_MODEL_DAMAGED, and then goes on behind the damage: `error->what` says what is wrong; of a block of the tensors
/// `error->section` is the section where it begins. A run is not disturbed. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_scrub(encoder: *mut Handle, error: *mut ErrorDetail) -> Status {
    // SAFETY: the handle is checked; nothing else uses the scrub.
    unsafe {
        let scrubbed = || {
            let model = model(encoder)?;
            match scrub(encoder)?.step(model.bytes()) {
                Ok(Progress::More) => Ok(Status::More),
                Ok(Progress::Done) => Ok(Status::Ok),
                Err(damage) => {
                    let damaged = |what, found, expected| Failure::new(Status::ModelDamaged, what, found, expected);
                    Err(match damage {
                        Damage::Block { offset, found, expected, .. } => {
                            let failure = damaged("block", found.into(), expected.into());
                            model.section_at(offset).map_or(failure, |(index, _)| failure.section(index))
                        }
                        Damage::File { found, expected } => damaged("CRC of the file", found.into(), expected.into()),
                        Damage::NotZero { offset } => damaged("byte that must be zero", offset as u64, 0),
                        Damage::Parity { offset } => damaged("parity of a word", offset as u64, 0),
                    })
                }
            }
        };
        finish(error, scrubbed())
    }
}

/// Bytes of the memory that nadir_self_test needs for a tile.
///
/// # Safety
/// `encoder` comes from nadir_open; `bytes`, if not null, points to a writable place outside the arena.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_self_test_bytes(encoder: *const Handle, bytes: *mut usize) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let told = || {
            let model = model(encoder)?;
            Span::of(bytes, 1, "bytes")?.apart_from(&span(encoder)?)?;
            put(bytes, self_test(model)?.tile_bytes(model), "bytes").map(|()| Status::Ok)
        };
        finish(core::ptr::null_mut(), told())
    }
}

/// Embeds the tiles of the model's self-test and compares the hash of their embeddings with the one in the file. Ends a run.
///
/// Takes the time of as many embeddings as the test has tiles, at most 16. `tile`: memory for a tile, nadir_self_test_bytes at a multiple of
/// 4. `embedding`: memory for an embedding, `dimension` values, exactly the model's. What they hold after is undefined. `error`:
/// may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable and writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_self_test(
    encoder: *mut Handle,
    tile: *mut u8,
    tile_bytes: usize,
    embedding: *mut f32,
    dimension: usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the spans of tile, embedding, arena and model do not overlap; an f32 may have any bits.
    unsafe {
        let tested = || {
            let model = model(encoder)?;
            let (tile_span, embedding_span) =
                (Span::of(tile, tile_bytes, "tile")?, Span::of(embedding, dimension, "embedding")?);
            let (arena, file) = (span(encoder)?, model.bytes());
            let file = Span::of(file.as_ptr(), file.len(), "model")?;
            tile_span.apart_from(&embedding_span)?;
            for span in [tile_span, embedding_span] {
                span.apart_from(&arena)?;
                span.apart_from(&file)?;
            }
            let test = self_test(model)?;
            let (engine, scratch) = idle(encoder)?;
            let (tile, embedding) =
                (array_mut(tile, tile_bytes, "tile")?, array_mut(embedding, dimension, "embedding")?);
            test.run(&engine, tile, scratch, embedding).map_err(|error| match error {
                SelfTestError::TileMemory { found, needed, .. } if found < needed => {
                    Failure::new(Status::Length, "tile", found as u64, needed as u64)
                }
                SelfTestError::TileMemory { address, alignment, .. } => {
                    Failure::new(Status::Misaligned, "tile", address as u64, alignment as u64)
                }
                SelfTestError::Embed(error) => error.into(),
                SelfTestError::Different { found, expected } => {
                    Failure::new(Status::SelfTestFailed, "hash of the embeddings", found, expected)
                }
            })?;
            Ok(Status::Ok)
        };
        finish(error, tested())
    }
}

fn self_test(model: &crate::model::Model<'_>) -> Result<SelfTest, Failure> {
    SelfTest::of(model).ok_or(Failure::new(Status::NoSelfTest, "model", 0, 0))
}

/// Checks that the model was signed with the private half of a public key (Ed25519), and that its version is at least `least_version`.
///
/// `public_key`: NADIR_KEY_BYTES bytes. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; `public_key`, if not null, points to so many readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_verify_signature(
    encoder: *const Handle,
    public_key: *const u8,
    least_version: u32,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let verified = || {
            let model = model(encoder)?;
            let key: &[u8; NADIR_KEY_BYTES] = one(public_key.cast(), "public_key")?;
            verify(model, key, least_version).map(|()| Status::Ok)
        };
        finish(error, verified())
    }
}

#[cfg(feature = "signature")]
fn verify(model: &crate::model::Model<'_>, key: &[u8; NADIR_KEY_BYTES], least: u32) -> Result<(), Failure> {
    guard::verify_signature(model, key, least).map_err(|error| signature_failure(error, "model"))
}

/// Why a file, `what`, is not trusted.
#[cfg(feature = "signature")]
pub(super) fn signature_failure(error: guard::SignatureError, what: &'static str) -> Failure {
    use guard::SignatureError;
    let new = Failure::new;
    match error {
        SignatureError::Missing => new(Status::NotSigned, what, 0, 0),
        SignatureError::OtherKey { found, expected } => {
            new(Status::OtherKey, "key id", u64::from_be_bytes(found), u64::from_be_bytes(expected))
        }
        SignatureError::BadKey => new(Status::BadKey, "public_key", 0, 0),
        SignatureError::Wrong => new(Status::BadSignature, "signature", 0, 0),
        SignatureError::RolledBack { found, least } => {
            new(Status::RolledBack, "model_version", found.into(), least.into())
        }
    }
}

#[cfg(not(feature = "signature"))]
fn verify(_: &crate::model::Model<'_>, _: &[u8; NADIR_KEY_BYTES], _: u32) -> Result<(), Failure> {
    Err(Failure::new(Status::NoVerification, "library", 0, 0))
}
