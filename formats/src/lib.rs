//! What the rooms of Nadir exchange on a host.
//!
//! | file | here |
//! | --- | --- |
//! | `.npy` tiles `[tiles, bands, height, width]`, u8, u16 or f32, values as the sensor stores them | [`Tiles`] |
//! | `.npy` embeddings, f32 `[tiles, dimension]` | [`Matrix`] |
//! | `.npy` labels and splits, any integer type, `[tiles]` | [`read_integers`] |
//! | `.npz` archives of such arrays | a path `FILE.npz:NAME`, or `FILE.npz` with a single array, wherever a `.npy` is read |
//! | the model card inside an encoder's `.safetensors` | [`ModelCard`] |
//! | a `.nadir` model, loaded where its sections can be read in place | [`AlignedBytes`] |
//!
//! And by which scales a float encoder becomes integers ([`scales`]), and how well classes can be read from embeddings ([`probe`]).
//!
//! Every error is one line that names the file, what was found and what was expected.

mod arrays;
mod bytes;
mod card;
mod npz;
pub mod probe;
pub mod scales;
mod tiles;

pub use arrays::{Matrix, Values, read_integers, read_values, write_integers, write_npy};
pub use bytes::{AlignedBytes, write_atomic};
pub use card::{BandCard, CARD_KEY, Encoder, ModelCard, Provenance, Tensor, expected_shapes};
pub use tiles::{Pixels, Tiles, canonical_band};

use std::path::PathBuf;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not what the file claims to be.
    #[error("{}: {reason}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        reason: String,
    },
    /// Bands asked for and bands present do not fit.
    #[error("bands: {0}")]
    Bands(String),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}

pub(crate) fn invalid(path: &std::path::Path, reason: impl Into<String>) -> Error {
    Error::Invalid { path: path.to_owned(), reason: reason.into() }
}
