//! Keys of Ed25519 as openssl writes them: `openssl genpkey -algorithm ed25519 -out key.pem`, `openssl pkey -in key.pem -pubout -out pub.pem`.

use std::path::Path;

use anyhow::{Context, Result};
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{SigningKey, VerifyingKey};

/// Reads a private key: PEM, PKCS#8 (`BEGIN PRIVATE KEY`).
///
/// # Errors
/// If the file cannot be read, or holds no such key.
pub fn read_private(path: &Path) -> Result<SigningKey> {
    let text = read(path)?;
    let no_key = || format!("{}: no private key of Ed25519 in PEM (BEGIN PRIVATE KEY)", path.display());
    SigningKey::from_pkcs8_pem(&text).with_context(no_key)
}

/// Reads a public key: PEM, SubjectPublicKeyInfo (`BEGIN PUBLIC KEY`).
///
/// # Errors
/// If the file cannot be read, or holds no such key.
pub fn read_public(path: &Path) -> Result<[u8; 32]> {
    let text = read(path)?;
    let no_key = || format!("{}: no public key of Ed25519 in PEM (BEGIN PUBLIC KEY)", path.display());
    Ok(VerifyingKey::from_public_key_pem(&text).with_context(no_key)?.to_bytes())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
