//! Bytes in, a checked and borrowed [`Model`] out. The format is laid down in `docs/model-file.md`.
//!
//! | file | holds |
//! | --- | --- |
//! | `architecture.rs` | the numbers that fix every shape, bands |
//! | `header.rs` | the postcard header |
//! | `section.rs` | types of sections, [`expected_section`] |
//! | `ancillary.rs` | sections beside the tensors: block CRCs, self-test, checksum columns, products, signature |
//! | `products.rs` | the section of the products |
//! | `parity.rs` | the code that corrects a flipped bit |
//! | `float_layout.rs`, `int8_layout.rs` | which sections a model of that precision has, in which order |
//! | `parse.rs` | the checks |
//! | `error.rs` | what they say |

mod ancillary;
mod architecture;
mod error;
pub mod float_layout;
mod header;
pub mod int8_layout;
pub mod parity;
mod parse;
pub mod products;
mod section;
#[cfg(all(test, feature = "capi"))]
pub(crate) mod synthetic;

pub use ancillary::{
    BLOCK_BYTES, Columns, KEY_ID_BYTES, KIND_ANCILLARY, KIND_BLOCKS, KIND_COLUMNS, KIND_PRODUCTS, KIND_SELF_TEST,
    KIND_SIGNATURE, KIND_TENSOR, MAX_SELF_TEST_TILES, SELF_TEST_BYTES, SIGNATURE_BYTES,
};
pub use architecture::*;
pub use error::{ModelError, Part, SectionName};
pub use header::{Header, MAX_NAME, MAX_PROVENANCE, Precision, Provenance};
pub(crate) use parse::head as parse_head;
pub use section::{Dtype, Element, Place, SectionEntry, SectionSpec, expected_section};

use core::ops::Range;

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and read in place: big-endian processors are not supported");
#[cfg(target_pointer_width = "16")]
compile_error!("model files are larger than the address space of a 16-bit processor");

/// First bytes of a model file. The high bit, the two line ends and the end-of-file character reveal transfers that are
/// not 8-bit clean or that translate line ends (as in PNG).
pub const MAGIC: [u8; 8] = *b"\x89NAD\r\n\x1a\n";
/// First bytes of files in drafts of the format, which are refused.
pub const MAGIC_DRAFT: [u8; 8] = *b"\x89NDR\r\n\x1a\n";
/// Files of another major version than this, [`VERSION_MAJOR_RAISED`] and [`VERSION_MAJOR_PATCHIFY`] are refused.
pub const VERSION_MAJOR: u16 = 1;
/// Major version of int8 models with raised layers, whose inputs have 14 bits; in all else as [`VERSION_MAJOR`].
pub const VERSION_MAJOR_RAISED: u16 = 2;
/// Major version of models with a patchify stem, with or without raised layers; in all else as [`VERSION_MAJOR`].
pub const VERSION_MAJOR_PATCHIFY: u16 = 3;
/// A later minor version may append header fields and ancillary sections, which are ignored.
pub const VERSION_MINOR: u16 = 1;
/// Alignment of the file in memory, of the section table, and of each section in the file.
pub const ALIGNMENT: usize = 64;
/// Bytes before the header.
pub const PREFIX_BYTES: usize = 32;
/// Bytes of one row of the section table.
pub const ENTRY_BYTES: usize = 32;
/// The most bytes of the header.
pub const MAX_HEADER: usize = 8192;
/// Bytes behind the table: four zeros, then the CRC of the head. Right behind its bytes the CRC would take them out of the file's CRC, which then could
/// not tell files with other headers apart.
pub const HEAD_CRC_BYTES: usize = 8;
/// Bytes of the last line of a file's data: its CRC, then zeros.
pub const END_BYTES: usize = 64;

pub use crate::kernels::crc::{crc32c, crc32c_extend};

/// A checked model, borrowed from the bytes of its file.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    bytes: &'a [u8],
    /// The bytes without the parity.
    data: &'a [u8],
    header: Header<'a>,
    header_bytes: usize,
    table: &'a [u8],
    /// Sections that are tensors; they come first.
    tensors: usize,
    tensor_range: Range<usize>,
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

    /// Version of the model: a later one replaces an earlier one, never the other way round.
    pub fn model_version(&self) -> u32 {
        self.header.model_version
    }

    /// Major version of the format: [`VERSION_MAJOR`], [`VERSION_MAJOR_RAISED`] or [`VERSION_MAJOR_PATCHIFY`].
    pub fn version_major(&self) -> u16 {
        self.data.get(8..10).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
    }

    /// Whether a layer at `place` is raised: the second pointwise layer of a block of an int8 model, with inputs of 14 bits.
    pub fn is_raised(&self, place: Place) -> bool {
        match place {
            Place::Block { stage, block } if self.precision() == Precision::Int8 => {
                int8_layout::Block::of(self, stage.into(), block.into()).is_raised()
            }
            _ => false,
        }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes of the file without its parity.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Whether the file has parity, by which [`crate::guard::repair`] corrects flipped bits.
    pub fn has_parity(&self) -> bool {
        self.data.len() < self.bytes.len()
    }

    /// The prefix: the first [`PREFIX_BYTES`] of the file.
    pub fn prefix_bytes(&self) -> &'a [u8] {
        self.data.get(..PREFIX_BYTES).unwrap_or(&[])
    }

    /// The encoded header.
    pub fn header_bytes(&self) -> &'a [u8] {
        self.data.get(PREFIX_BYTES..PREFIX_BYTES + self.header_bytes).unwrap_or(&[])
    }

    /// CRC-32C of the file, at the beginning of its last line: names these very bytes.
    pub fn file_crc(&self) -> u32 {
        let end = self.data.last_chunk::<END_BYTES>().and_then(|line| line.first_chunk());
        end.map_or(0, |b| u32::from_le_bytes(*b))
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

    /// What section `index` is called.
    pub fn section_name(&self, index: usize) -> SectionName {
        match self.expected(index) {
            Some(spec) => SectionName::Tensor(spec),
            None => SectionName::Ancillary(self.section_entry(index).map_or(KIND_ANCILLARY, |entry| entry.kind)),
        }
    }

    /// The bytes of section `index`, without padding; none past the last.
    pub fn section_bytes(&self, index: usize) -> &'a [u8] {
        self.section_entry(index).map_or(&[], |entry| self.bytes_of(&entry))
    }

    fn bytes_of(&self, entry: &SectionEntry) -> &'a [u8] {
        let end = entry.offset.checked_add(entry.bytes());
        end.and_then(|end| self.data.get(entry.offset..end)).unwrap_or(&[])
    }

    /// Section `index`, in place. The type of each tensor is fixed by the model's precision ([`expected_section`]) and was
    /// checked by [`Model::parse`]; asking for another type, or past the end, gives an empty slice.
    pub fn section<T: Element>(&self, index: usize) -> &'a [T] {
        match self.section_entry(index) {
            Some(entry) if entry.dtype == T::DTYPE => {
                bytemuck::try_cast_slice(self.bytes_of(&entry)).unwrap_or_default()
            }
            _ => &[],
        }
    }
}
