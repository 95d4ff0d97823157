//! Who made a model file: Ed25519 (RFC 8032) over its prefix, header and the hashes of its sections.

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::model::{KEY_ID_BYTES, KIND_SIGNATURE, Model};

/// What the signed message begins with, so that the signature cannot stand for anything else.
pub const DOMAIN: [u8; 24] = *b"Nadir model file Ed25519";
/// Bytes of the signed message: [`DOMAIN`] and a SHA-256.
pub const MESSAGE_BYTES: usize = DOMAIN.len() + 32;

/// Names a public key: the first 8 bytes of its SHA-256.
pub type KeyId = [u8; KEY_ID_BYTES];

/// Why a model, or a delta, is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The file has no signature.
    #[error("the file is not signed")]
    Missing,
    /// The file was signed with another key.
    #[error("the file was signed with key {:016x}, not with {:016x}", u64::from_be_bytes(*.found), u64::from_be_bytes(*.expected))]
    OtherKey {
        /// The key that the file names.
        found: KeyId,
        /// The key given.
        expected: KeyId,
    },
    /// The public key given is none, not in its one form, or a weak one.
    #[error("the public key is not a key of Ed25519, or a weak one")]
    BadKey,
    /// The signature does not belong to this file.
    #[error("the signature is wrong: the file was changed after it was signed")]
    Wrong,
    /// The model is older than what is allowed.
    #[error("the model's version is {found}, at least {least} is required")]
    RolledBack {
        /// Version of the model.
        found: u32,
        /// The least version allowed.
        least: u32,
    },
}

/// Names a public key.
pub fn key_id(public_key: &[u8; 32]) -> KeyId {
    let hash: [u8; 32] = Sha256::digest(public_key).into();
    hash.first_chunk().copied().unwrap_or_default()
}

/// The message that is signed: [`DOMAIN`], then the SHA-256 of prefix, SHA-256 of the header's bytes, and for each section but
/// the signature its kind, type, number of elements (u64, little-endian) and the SHA-256 of its bytes.
///
/// Everything else in the file (table, CRCs, padding, parity) follows from these, and was checked when the model was parsed.
pub fn signed_message(model: &Model<'_>) -> [u8; MESSAGE_BYTES] {
    let mut all = Sha256::new();
    all.update(model.prefix_bytes());
    all.update(Sha256::digest(model.header_bytes()));
    for index in 0..model.section_count() {
        let Some(entry) = model.section_entry(index).filter(|entry| entry.kind != KIND_SIGNATURE) else { continue };
        all.update([entry.kind, entry.dtype as u8]);
        all.update((entry.elements as u64).to_le_bytes());
        all.update(Sha256::digest(model.section_bytes(index)));
    }
    let mut message = [0; MESSAGE_BYTES];
    message.iter_mut().zip(DOMAIN.iter().chain(&all.finalize())).for_each(|(to, from)| *to = *from);
    message
}

/// The key with which a file says that it was signed, unchecked; `None` if it is not signed.
pub fn signed_key(model: &Model<'_>) -> Option<KeyId> {
    split(model.section_bytes(model.ancillary(KIND_SIGNATURE)?.index as usize)).map(|(key, _)| key)
}

/// Key id and signature.
fn split(seal: &[u8]) -> Option<(KeyId, [u8; 64])> {
    Some((*seal.first_chunk()?, *seal.last_chunk()?))
}

/// Checks that `model` was signed with the private half of `public_key`, and that its version is at least `least_version` (0 allows any).
///
/// Verification is strict: weak keys and the several forms of one signature are refused. Time is linear in the length of the file; of the
/// stack it takes a few kilobytes.
///
/// # Errors
/// One for each reason; see [`SignatureError`].
pub fn verify_signature(model: &Model<'_>, public_key: &[u8; 32], least_version: u32) -> Result<(), SignatureError> {
    let entry = model.ancillary(KIND_SIGNATURE).ok_or(SignatureError::Missing)?;
    verify_seal(model.section_bytes(entry.index as usize), &signed_message(model), public_key)?;
    match model.model_version() {
        found if found < least_version => Err(SignatureError::RolledBack { found, least: least_version }),
        _ => Ok(()),
    }
}

/// Checks a key id followed by a signature of `message`.
///
/// # Errors
/// As [`verify_signature`], but for the version.
pub(crate) fn verify_seal(seal: &[u8], message: &[u8], public_key: &[u8; 32]) -> Result<(), SignatureError> {
    let (found, signature) = split(seal).ok_or(SignatureError::Missing)?;
    let key = VerifyingKey::from_bytes(public_key).map_err(|_| SignatureError::BadKey)?;
    // RFC 8032 has one form of each point; a number beyond the field's order is a second one.
    if key.is_weak() || key.to_edwards().compress().to_bytes() != *public_key {
        return Err(SignatureError::BadKey);
    }
    let expected = key_id(public_key);
    if found != expected {
        return Err(SignatureError::OtherKey { found, expected });
    }
    key.verify_strict(message, &Signature::from_bytes(&signature)).map_err(|_| SignatureError::Wrong)
}
