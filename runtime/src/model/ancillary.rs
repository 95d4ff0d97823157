//! Sections that are not tensors: a reader may pass over them, and computes the same embeddings.

use core::ops::Range;

use super::int8_layout::stored;
use super::{Architecture, Dtype, Model, Precision, STAGES, SectionEntry, SectionName, products};

/// Kind of a section that is a tensor of the encoder.
pub const KIND_TENSOR: u8 = 0;
/// Kinds from here on may be ignored by readers that do not know them. A file has at most one section of each, in ascending order.
pub const KIND_ANCILLARY: u8 = 0x80;
/// CRC-32C of each block of [`BLOCK_BYTES`] of the tensors, padding included, as they lie in the file; the last may be shorter.
pub const KIND_BLOCKS: u8 = 0x80;
/// What [`crate::guard::SelfTest`] reads: tiles from a seed, and the hash of their embeddings. Only int8 models have one.
pub const KIND_SELF_TEST: u8 = 0x81;
/// Checksum columns of the pointwise layers ([`Model::checksum_columns`]). Only int8 models have them.
pub const KIND_COLUMNS: u8 = 0x82;
/// Centre, scales and principal components by which an embedding becomes one of its [products](crate::triage::products); from version 1.1.
pub const KIND_PRODUCTS: u8 = 0x83;
/// Key id and Ed25519 signature ([`crate::guard`]); always the last section.
pub const KIND_SIGNATURE: u8 = 0xff;

/// Bytes of a block that has a CRC of its own.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of the self-test's section.
pub const SELF_TEST_BYTES: usize = 48;
/// The most tiles of a self-test.
pub const MAX_SELF_TEST_TILES: u32 = 16;
/// Bytes that name a public key: the first of its SHA-256.
pub const KEY_ID_BYTES: usize = 8;
/// Bytes of the signature's section: key id and signature.
pub const SIGNATURE_BYTES: usize = KEY_ID_BYTES + 64;

/// What an ancillary section of a known kind, of which `found` elements are in the table, must be in a model whose tensors take `tensor_bytes`;
/// `None` for other kinds.
pub(super) fn expected(kind: u8, found: u64, model: &Model<'_>, tensor_bytes: usize) -> Option<(Dtype, usize)> {
    let dimension = model.embedding_dimension();
    let int8 = |elements| if model.precision() == Precision::Int8 { elements } else { 0 };
    Some(match kind {
        KIND_BLOCKS => (Dtype::I32, tensor_bytes.div_ceil(BLOCK_BYTES)),
        KIND_SELF_TEST => (Dtype::I8, int8(SELF_TEST_BYTES)),
        KIND_COLUMNS => (Dtype::I32, int8(column_elements(model.architecture()))),
        // The length says how many components there are.
        KIND_PRODUCTS => (Dtype::I8, products::section_bytes(dimension, products::components_in(found, dimension))),
        KIND_SIGNATURE => (Dtype::I8, SIGNATURE_BYTES),
        _ => return None,
    })
}

/// The name of an ancillary kind.
pub(super) const fn name(kind: u8) -> &'static str {
    match kind {
        KIND_BLOCKS => "block CRCs",
        KIND_SELF_TEST => "self-test",
        KIND_COLUMNS => "checksum columns",
        KIND_PRODUCTS => "products",
        KIND_SIGNATURE => "signature",
        _ => "ancillary",
    }
}

/// Elements of the checksum columns of all blocks: the inputs of their pointwise layers.
fn column_elements(arch: &Architecture) -> usize {
    (0..STAGES).map(|stage| arch.depth(stage) * 5 * stored(arch.dim(stage))).sum()
}

/// Checksum columns of a block: for each input, the sum of its weights over all computed outputs.
///
/// The sum of a layer's accumulators before bias over its outputs is the inner product of its inputs with this column, exactly, modulo
/// 2^32: what differs was computed wrongly, or with a weight that flipped (K.-H. Huang and J. A. Abraham, "Algorithm-based
/// fault tolerance for matrix operations", IEEE Trans. Comput. C-33, 1984).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns<'a> {
    /// One value for each stored channel of the stage, as the first pointwise layer reads them.
    pub pointwise_1: &'a [i32],
    /// One value for each of the four times as many hidden channels, as the second reads them.
    pub pointwise_2: &'a [i32],
}

impl<'a> Model<'a> {
    /// The section of an ancillary kind, if the file has one.
    pub fn ancillary(&self, kind: u8) -> Option<SectionEntry> {
        (self.tensors..self.section_count()).filter_map(|i| self.section_entry(i)).find(|entry| entry.kind == kind)
    }

    /// Where the tensors lie in the file, padding included.
    pub fn tensor_range(&self) -> Range<usize> {
        self.tensor_range.clone()
    }

    /// CRC-32C of each block of [`BLOCK_BYTES`] of the tensors; empty if the file has none.
    pub fn block_crcs(&self) -> &'a [i32] {
        self.ancillary(KIND_BLOCKS).map_or(&[], |entry| self.section(entry.index as usize))
    }

    /// The checksum columns of a block; `None` if the file has none, or the model no such block.
    pub fn checksum_columns(&self, stage: usize, block: usize) -> Option<Columns<'a>> {
        let arch = self.architecture();
        if stage >= STAGES || block >= arch.depth(stage) {
            return None;
        }
        let all: &[i32] = self.section(self.ancillary(KIND_COLUMNS)?.index as usize);
        let before: usize = (0..stage).map(|s| arch.depth(s) * 5 * stored(arch.dim(s))).sum();
        let channels = stored(arch.dim(stage));
        let (pointwise_1, rest) = all.get(before + block * 5 * channels..)?.split_at_checked(channels)?;
        Some(Columns { pointwise_1, pointwise_2: rest.get(..4 * channels)? })
    }

    /// The section in whose bytes or padding a byte of the file lies, and what it is; `None` for head, end and parity.
    pub fn section_at(&self, offset: usize) -> Option<(usize, SectionName)> {
        (0..self.section_count()).find_map(|index| {
            let entry = self.section_entry(index)?;
            let end = (entry.offset + entry.bytes()).next_multiple_of(super::ALIGNMENT);
            (entry.offset..end).contains(&offset).then(|| (index, self.section_name(index)))
        })
    }
}
