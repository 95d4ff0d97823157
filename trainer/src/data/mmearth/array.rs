//! What an array holds a row: element type and shape, for the HDF5 file and for packed shards alike.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Type of an array's elements, stored little-endian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// Unsigned, 1 byte.
    U8,
    /// Signed, 1 byte.
    I8,
    /// Unsigned, 2 bytes.
    U16,
    /// Signed, 2 bytes.
    I16,
    /// IEEE 754 single precision.
    F32,
    /// A record, of which byte strings of fixed length, padded with zeros, are read.
    Record {
        /// Bytes of the whole record.
        size: usize,
        /// Its byte strings.
        strings: Vec<RecordField>,
    },
}

/// A byte string inside a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordField {
    /// Name of the field.
    pub name: String,
    /// Its first byte in the record.
    pub offset: usize,
    /// Its length in bytes.
    pub size: usize,
}

impl Element {
    /// Bytes of one element.
    pub fn size(&self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::F32 => 4,
            Self::Record { size, .. } => *size,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8 => f.write_str("u8"),
            Self::I8 => f.write_str("i8"),
            Self::U16 => f.write_str("u16"),
            Self::I16 => f.write_str("i16"),
            Self::F32 => f.write_str("f32"),
            Self::Record { strings, .. } => {
                let names: Vec<_> = strings.iter().map(|field| format!("{}: S{}", field.name, field.size)).collect();
                write!(f, "record {{{}}}", names.join(", "))
            }
        }
    }
}

/// An array of a release: `rows` rows of equal size, one a tile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayInfo {
    /// Type of the elements.
    pub element: Element,
    /// Number of rows.
    pub rows: usize,
    /// Shape of one row: empty for one element a row.
    pub row_shape: Vec<usize>,
}

impl ArrayInfo {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_shape.iter().product::<usize>() * self.element.size()
    }

    /// The whole array's shape, rows first.
    pub fn shape(&self) -> Vec<usize> {
        [&[self.rows][..], &self.row_shape].concat()
    }
}

impl fmt::Display for ArrayInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.element, self.shape())
    }
}
