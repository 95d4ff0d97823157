//! Encoders for elsewhere: ONNX for other engines, safetensors for PyTorch.

mod onnx;
mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use nadir_formats::Encoder as EncoderFile;

use crate::import::Naming;

pub use onnx::{INPUT, OUTPUT, onnx};
pub use verify::{BOUND, Verified, verify};

/// Writes the encoder as ONNX, after [`verify()`] has found that the very bytes give the embeddings of our own encoder.
///
/// With `batch` the number of tiles of a run is fixed, without it is free.
///
/// # Errors
/// If the encoder is too large for one ONNX file (2 GiB), or the check fails; then no file is written.
pub fn write_onnx(file: &EncoderFile, batch: Option<usize>, path: &Path) -> Result<Verified> {
    let bytes = onnx(file, batch)?;
    let verified = verify(&bytes, file, batch)?;
    ensure!(
        verified.error <= BOUND,
        "{}: not written: tract's embeddings differ from ours by {:.1e} relative, the bound is {BOUND:e}",
        path.display(),
        verified.error
    );
    nadir_formats::write_atomic(path, &bytes)?;
    Ok(verified)
}

/// Writes the tensors under the names of MMEarth's dense encoder (Meta's ConvNeXt V2 with MMEarth's stem), or Meta's own where the stem is
/// a patchify stem, f32, with `format: pt` in the metadata, and the card beside them as `NAME.card.json`; returns the card's path.
///
/// The encoder takes normalised tiles in PyTorch: `(value - mean) / std` by the card, and 0 where there is no data.
///
/// # Errors
/// If a file cannot be written.
pub fn write_pytorch(file: &EncoderFile, path: &Path) -> Result<PathBuf> {
    let beside = path.with_extension("card.json");
    if beside == path {
        bail!("{}: is not a name for safetensors", path.display());
    }
    let mut card = serde_json::to_string_pretty(&file.card)?;
    card.push('\n');
    nadir_formats::write_atomic(&beside, card.as_bytes())?;
    // Transformers and others refuse a file without it.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let patchify = file.card.architecture.is_patchify();
    let named = file.tensors.iter().map(|(name, tensor)| (Naming::Meta.name(name, patchify), tensor.clone()));
    crate::import::whole::write_safetensors(path, &named.collect(), metadata)?;
    Ok(beside)
}
