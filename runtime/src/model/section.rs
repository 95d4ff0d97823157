//! Sections: the arrays of a model file, read in place.

use core::fmt;

use super::{Architecture, Precision, float_layout, int8_layout};

/// Type of a section's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// Signed 8 bits.
    I8 = 2,
    /// Signed 16 bits.
    I16 = 3,
    /// Signed 32 bits.
    I32 = 4,
    /// Signed 64 bits.
    I64 = 5,
}

impl Dtype {
    /// The type with this number in the section table.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::I8,
            3 => Dtype::I16,
            4 => Dtype::I32,
            5 => Dtype::I64,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::I8 => 1,
            Dtype::F16 | Dtype::I16 => 2,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::I64 => 8,
        }
    }

    /// `f32`, `f16`, `i8`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::I8 => "i8",
            Dtype::I16 => "i16",
            Dtype::I32 => "i32",
            Dtype::I64 => "i64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that views the elements of a section in place.
pub trait Element: bytemuck::AnyBitPattern {
    /// The section type that it views.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; })* };
}
// u16 holds the bits of an f16; see `kernels::float::widen_f16`.
elements!(f32 => F32, u16 => F16, i8 => I8, i16 => I16, i32 => I32, i64 => I64);

/// The part of the encoder to which a section belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Input, initial convolution and stem.
    Stem,
    /// The downsampling before stage 1, 2 or 3.
    Downsample {
        /// The stage that follows.
        stage: u8,
    },
    /// A block.
    Block {
        /// Its stage, from 0.
        stage: u8,
        /// Its index in the stage, from 0.
        block: u8,
    },
    /// The LayerNorm after the global mean.
    Head,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Stem => f.write_str("stem"),
            Place::Downsample { stage } => write!(f, "downsample {stage}"),
            Place::Block { stage, block } => write!(f, "block {stage}.{block}"),
            Place::Head => f.write_str("head"),
        }
    }
}

/// What a section must be, given the model's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionSpec {
    /// Where it is used.
    pub place: Place,
    /// What it holds, for instance `pointwise 1 weight`.
    pub name: &'static str,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Number of its elements.
    pub elements: usize,
}

impl fmt::Display for SectionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.name)
    }
}

/// What tensor section `index` of a model must be, or `None` past the last. The architecture must be valid.
///
/// The order is canonical: stem, then per stage its downsampling and its blocks, then the head. f32 and f16 models follow
/// [`float_layout`], int8 models follow [`int8_layout`].
pub fn expected_section(arch: &Architecture, bands: usize, precision: Precision, index: usize) -> Option<SectionSpec> {
    match precision {
        Precision::F32 => float_layout::expected_section(arch, bands, Dtype::F32, index),
        Precision::F16 => float_layout::expected_section(arch, bands, Dtype::F16, index),
        Precision::Int8 => int8_layout::expected_section(arch, bands, index),
    }
}

/// One row of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// 0 for a tensor; 0x80 and above for what a reader may ignore.
    pub kind: u8,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Position in the table.
    pub index: u32,
    /// First byte in the file, a multiple of 64.
    pub offset: usize,
    /// Number of elements.
    pub elements: usize,
    /// CRC-32C of the elements' bytes.
    pub crc: u32,
}

impl SectionEntry {
    /// Bytes of all elements. Cannot overflow in a parsed model.
    pub const fn bytes(&self) -> usize {
        self.elements.saturating_mul(self.dtype.bytes())
    }
}
