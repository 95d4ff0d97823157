//! Bytes in, a checked and borrowed [`Model`] out. The format is laid down in `docs/model-file.md`.
//!
//! | file | holds |
//! | --- | --- |
//! | `architecture.rs` | the numbers that fix every shape, bands |
//! | `header.rs` | the postcard header |
//! | `section.rs` | types of sections, [`expected_section`] |
//! | `float_layout.rs`, `int8_layout.rs` | which sections a model of that precision has, in which order |
//! | `parse.rs` | the checks |
//! | `error.rs` | what they say |

mod architecture;
mod error;
pub mod float_layout;
mod header;
pub mod int8_layout;
mod parse;
mod section;
#[cfg(all(test, feature = "capi"))]
pub(crate) mod synthetic;

pub use architecture::*;
pub use error::{ModelError, Part, SectionName};
pub use header::{Header, MAX_NAME, MAX_PROVENANCE, Precision, Provenance};
pub use section::{Dtype, Element, Place, SectionEntry, SectionSpec, expected_section};

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and read in place: big-endian processors are not supported");
#[cfg(target_pointer_width = "16")]
compile_error!("model files are larger than the address space of a 16-bit processor");

/// First bytes of a model file. The high bit, the two line ends and the end-of-file character reveal transfers that are
/// not 8-bit clean or that translate line ends (as in PNG).
pub const MAGIC: [u8; 8] = *b"\x89NDR\r\n\x1a\n";
/// Files of another major version are refused.
pub const VERSION_MAJOR: u16 = 2;
/// A later minor version may append header fields and ancillary sections, which are ignored.
pub const VERSION_MINOR: u16 = 0;
/// Alignment of the file in memory, of the section table, and of each section in the file.
pub const ALIGNMENT: usize = 64;
/// Bytes before the header.
pub const PREFIX_BYTES: usize = 32;
/// Bytes of one row of the section table.
pub const ENTRY_BYTES: usize = 32;
/// The most bytes of the header.
pub const MAX_HEADER: usize = 8192;
/// Kind of a section that is a tensor of the encoder.
pub const KIND_TENSOR: u8 = 0;
/// Kinds from here on may be ignored by readers that do not know them.
pub const KIND_ANCILLARY: u8 = 0x80;

pub use crate::kernels::crc::crc32c;

/// A checked model, borrowed from the bytes of its file.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    bytes: &'a [u8],
    header: Header<'a>,
    table: &'a [u8],
}

impl<'a> Model<'a> {
    /// Checks `bytes`, which must be a whole `.nadir` file and begin at a multiple of [`ALIGNMENT`] (64) bytes.
    ///
    /// Total: any bytes give a model or an error, without panic, in time linear in the length. After success every access
    /// below is to checked data.
    ///
    /// # Errors
    /// The first of [`ModelError`]'s conditions that holds, in the order of the file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ModelError> {
        parse::parse(bytes)
    }

    /// The whole header.
    pub fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// Name of the model.
    pub fn name(&self) -> &'a str {
        self.header.name
    }

    /// Name of the embedding space: embeddings may be compared only within one.
    pub fn embedding_space(&self) -> &'a str {
        self.header.embedding_space
    }

    /// Shape of the encoder.
    pub fn architecture(&self) -> &Architecture {
        &self.header.architecture
    }

    /// Input bands in order.
    pub fn bands(&self) -> &[Band] {
        &self.header.bands
    }

    /// Form of the weights.
    pub fn precision(&self) -> Precision {
        self.header.precision
    }

    /// Length of the embedding.
    pub fn embedding_dimension(&self) -> usize {
        self.header.architecture.embedding_dimension()
    }

    /// Values of a tile: bands x height x width.
    pub fn tile_len(&self) -> usize {
        let side = usize::from(self.header.architecture.tile_size);
        self.header.bands.len() * side * side
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// CRC-32C at the end of the file: names these very bytes.
    pub fn file_crc(&self) -> u32 {
        self.bytes.last_chunk().map_or(0, |b| u32::from_le_bytes(*b))
    }

    /// Rows of the section table.
    pub fn section_count(&self) -> usize {
        self.table.len() / ENTRY_BYTES
    }

    /// Row `index` of the section table.
    pub fn section_entry(&self, index: usize) -> Option<SectionEntry> {
        parse::entry(self.table, index)
    }

    /// What tensor `index` is, or `None` past the last.
    pub fn expected(&self, index: usize) -> Option<SectionSpec> {
        expected_section(&self.header.architecture, self.header.bands.len(), self.header.precision, index)
    }

    /// Section `index`, in place. The type of each index is fixed by the model's precision ([`expected_section`]) and was
    /// checked by [`Model::parse`]; asking for another type, or past the end, gives an empty slice.
    pub fn section<T: Element>(&self, index: usize) -> &'a [T] {
        self.section_entry(index)
            .filter(|entry| entry.dtype == T::DTYPE)
            .and_then(|entry| self.bytes.get(entry.offset..entry.offset.checked_add(entry.bytes())?))
            .and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
            .unwrap_or(&[])
    }
}
