//! Why bytes are not a model.

use super::{ArchitectureError, Dtype, MAX_BANDS, SectionSpec, VERSION_MAJOR, VERSION_MAJOR_PATCHIFY};

/// Why bytes are not a model. Each variant names the field, what was found and what was expected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The first byte does not lie at a multiple of 64.
    #[error("model starts at address {address:#x}, must be a multiple of {}", super::ALIGNMENT)]
    Misaligned {
        /// Address of the first byte.
        address: usize,
    },
    /// The file does not begin with the magic number.
    #[error("not a .nadir model: the magic number is {found:02x?}")]
    Magic {
        /// The first 8 bytes.
        found: [u8; 8],
    },
    /// The file was written in a draft of the format.
    #[error("this is a .nadir file of a draft of the format: convert the model again from its .safetensors")]
    Draft,
    /// The file was written in another major version of the format.
    #[error(
        "model file version is {major}.{minor}, this runtime reads {VERSION_MAJOR}.x to {VERSION_MAJOR_PATCHIFY}.x"
    )]
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// The model is of another kind than the file's version is for.
    #[error(
        "model file version is {major}, which such a model does not have, but {expected}: 3 has a patchify stem, 1 and 2 have none, and 2 is int8"
    )]
    VersionContent {
        /// Major version found.
        major: u16,
        /// The lowest that such a model may have.
        expected: u16,
    },
    /// The file is shorter than it says.
    #[error("model is truncated: {length} bytes, {needed} needed")]
    Truncated {
        /// Bytes given.
        length: usize,
        /// Bytes needed.
        needed: u64,
    },
    /// The file goes on after its end.
    #[error("model has {length} bytes, its prefix says {expected}")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes expected.
        expected: u64,
    },
    /// The field that says whether there is parity has neither of its values.
    #[error("parity field is {found:08x}, must be 00000000 (none) or ffffffff")]
    ParityField {
        /// The field.
        found: u32,
    },
    /// No file has this length: the data are a multiple of 64 bytes, with parity of 72.
    #[error("model has {length} bytes, must be a multiple of {unit}")]
    Unit {
        /// Bytes given.
        length: usize,
        /// 64, or 72 with parity.
        unit: usize,
    },
    /// A word does not fit its parity byte.
    #[error("the word at byte {offset} and its parity do not fit each other")]
    Parity {
        /// Offset of the word in the file.
        offset: usize,
    },
    /// The header's length is beyond the limit.
    #[error("header has {length} bytes, the limit is {limit}")]
    HeaderLength {
        /// Bytes of the header.
        length: u32,
        /// The limit.
        limit: usize,
    },
    /// CRC-32C of a part does not match.
    #[error("{part} is damaged: CRC is {found:08x}, {expected:08x} is on record")]
    Crc {
        /// Prefix, header and table, or the whole file.
        part: Part,
        /// Computed from the bytes.
        found: u32,
        /// Written in the file.
        expected: u32,
    },
    /// CRC-32C of a section does not match.
    #[error("section {index} ({spec}) is damaged: CRC is {found:08x}, {expected:08x} is on record")]
    SectionCrc {
        /// Index of the section.
        index: usize,
        /// What the section is.
        spec: SectionName,
        /// Computed from the bytes.
        found: u32,
        /// Written in the table.
        expected: u32,
    },
    /// A byte that must be zero is not.
    #[error("byte {offset} is {found:#04x}, must be zero (padding or reserved)")]
    NotZero {
        /// Offset in the file.
        offset: usize,
        /// The byte.
        found: u8,
    },
    /// The header does not decode.
    #[error("header does not decode: {0}")]
    HeaderEncoding(postcard::Error),
    /// Bytes are left after the header's last field.
    #[error("header has {0} bytes after its last field")]
    HeaderTail(usize),
    /// The architecture is beyond a limit.
    #[error("architecture: {0}")]
    Architecture(#[from] ArchitectureError),
    /// A text is too long, or empty.
    #[error("{field} has {length} bytes, limits are {min} to {max}")]
    TextLength {
        /// Name of the field.
        field: &'static str,
        /// Its bytes.
        length: usize,
        /// The fewest allowed.
        min: usize,
        /// The most allowed.
        max: usize,
    },
    /// The embedding's length is not the channels of the last stage.
    #[error("embedding_dimension is {found}, the architecture gives {expected}")]
    EmbeddingDimension {
        /// Length in the header.
        found: u16,
        /// Channels of the last stage.
        expected: usize,
    },
    /// The model takes no band.
    #[error("model has no band, limits are 1 to {MAX_BANDS}")]
    NoBand,
    /// A band has no name, or the name of another.
    #[error("band {index} has no name or the name of an earlier band")]
    BandName {
        /// Index of the band.
        index: usize,
    },
    /// A band's name is not in its canonical spelling ([`super::is_canonical_band`]).
    #[error(
        "band {index} has a name that is not canonical: visible ASCII without comma, and B4 or B8A, not B04, b4 or B8a"
    )]
    BandSpelling {
        /// Index of the band.
        index: usize,
    },
    /// A number of a band is not finite, or its standard deviation is not positive.
    #[error("band {index}: {field} is {value}, must be finite (std also positive)")]
    BandNumber {
        /// Index of the band.
        index: usize,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: f32,
    },
    /// The number of tensors is not the architecture's.
    #[error("model has {found} tensors, the architecture needs {expected}")]
    TensorCount {
        /// Tensors in the table.
        found: usize,
        /// Tensors that the architecture has.
        expected: usize,
    },
    /// A field of a row in the section table is not what it must be.
    #[error("section {index}: {field} is {found}, expected {expected}")]
    Entry {
        /// Index of the section.
        index: usize,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value expected, or the limit.
        expected: u64,
    },
    /// A section's type or length is not the architecture's.
    #[error("section {index} ({spec}) holds {elements} {dtype}, expected {} {}", .spec.elements, .spec.dtype)]
    Section {
        /// Index of the section.
        index: usize,
        /// What was expected.
        spec: SectionSpec,
        /// Elements found.
        elements: u64,
        /// Type found.
        dtype: Dtype,
    },
    /// A weight is infinite or not a number.
    #[error("section {index} ({spec}) holds a value that is not finite at element {element}")]
    NotFinite {
        /// Index of the section.
        index: usize,
        /// What the section is.
        spec: SectionSpec,
        /// Index of the element.
        element: usize,
    },
    /// A number of the self-test is beyond its limits.
    #[error("self-test: {field} is {found}, the limit is {limit}")]
    SelfTest {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: u32,
        /// The largest value allowed.
        limit: u32,
    },
    /// A number of the products is beyond its limits.
    #[error("products: {0}")]
    Products(#[from] super::products::ProductsError),
    /// A constant of the integer arithmetic is beyond its limits.
    #[error("section {index} ({spec}) holds a constant beyond its limits at element {element}")]
    OutOfRange {
        /// Index of the section.
        index: usize,
        /// What the section is.
        spec: SectionSpec,
        /// Index of the element.
        element: usize,
    },
}

/// A part of the file with its own CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Prefix, header and section table.
    Head,
    /// All bytes before the last 64 of the data.
    File,
}

impl core::fmt::Display for Part {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Part::Head => "head (prefix, header and section table)",
            Part::File => "file",
        })
    }
}

/// What a section is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionName {
    /// A tensor of the encoder.
    Tensor(SectionSpec),
    /// Not a tensor: its kind.
    Ancillary(u8),
}

impl SectionName {
    /// What it holds, for instance `pointwise 1 weight` or `block CRCs`.
    pub const fn name(&self) -> &'static str {
        match self {
            SectionName::Tensor(spec) => spec.name,
            SectionName::Ancillary(kind) => super::ancillary::name(*kind),
        }
    }
}

impl core::fmt::Display for SectionName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            SectionName::Tensor(spec) => spec.fmt(f),
            SectionName::Ancillary(_) => f.write_str(self.name()),
        }
    }
}
