//! Class of interest: how much nearer a tile is to what is wanted than to anything else.
//!
//! Each class has several prototypes, vectors in the embedding space after the table's centre (the mean embedding) was
//! subtracted. The margin of a tile is the cosine to its nearest wanted prototype less the cosine to its nearest other
//! one, in -2 to 2; a logistic curve turns it into a probability. J. Snell et al., Prototypical Networks for Few-shot
//! Learning, NeurIPS 2017, with several prototypes a class because classes of land cover have several faces.
//!
//! The file, little-endian, read in place at any alignment:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `NADIRPRO` |
//! | 2 | version, 1 |
//! | 2 | length H of the header |
//! | H | [`Header`] in postcard: space, dimension D, prototypes P, bank B, midpoint, temperature, novelty threshold |
//! | 4 D | centre, f32 |
//! | 2 P | class label of each prototype, u16 |
//! | P | 1 if it is wanted, else 0 |
//! | P D | prototypes, i8 each, of any length but 0 |
//! | B D | bank for [`super::novelty`], i8 each, of any length but 0 |
//! | 4 | CRC-32C of everything before |

use core::slice::ChunksExact;

use serde::{Deserialize, Serialize};

use crate::model::crc32c;

pub use super::prototype_writer::{Table, WriteError, quantize_direction};

/// First bytes of a prototype file.
pub const MAGIC: [u8; 8] = *b"NADIRPRO";
/// Version of the file.
pub const VERSION: u16 = 1;

/// The counts of a prototype file and what its numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header<'a> {
    /// Embedding space of the model that made it; no other model's embeddings may be compared with it.
    pub embedding_space: &'a str,
    /// Dimension of the embeddings.
    pub dimension: u16,
    /// Number of prototypes, at least 1.
    pub prototypes: u16,
    /// Number of embeddings in the bank.
    pub bank: u16,
    /// Margin at which a tile is as probably wanted as not, within 100 of 0 (beyond 2 no margin reaches it).
    pub midpoint: f32,
    /// Change of the margin that changes the log-odds by 1; 1e-4 to 100.
    pub temperature: f32,
    /// Novelty from which a tile is called novel; 1e-4 to 2.
    pub novel_from: f32,
}

/// Why bytes are not a prototype file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not begin as one.
    #[error("not a prototype file")]
    Magic,
    /// A version that this code does not know.
    #[error("version {0} of the prototype file is not known, only {VERSION}")]
    Version(u16),
    /// The length is not what the header asks for.
    #[error("prototype file has {found} bytes, expected {expected}")]
    Length {
        /// Bytes found.
        found: usize,
        /// Bytes that the header asks for, or the least that a file has.
        expected: usize,
    },
    /// The CRC differs: the file is damaged.
    #[error("CRC of the prototype file is wrong")]
    Crc,
    /// The header does not decode, or a field of it is out of range.
    #[error("{0} of the prototype file's header is not possible")]
    Header(&'static str),
    /// A vector is zero, or a value is out of range.
    #[error("{what} {index} of the prototype file is not possible")]
    Value {
        /// `centre`, `wanted flag`, `prototype` or `bank vector`.
        what: &'static str,
        /// Its index.
        index: usize,
    },
    /// Nothing is wanted.
    #[error("no prototype is marked as wanted")]
    NothingWanted,
}

/// An embedding cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Wrong dimension.
    #[error("embedding has dimension {found}, the prototypes {expected}")]
    Dimension {
        /// Of the embedding.
        found: usize,
        /// Of the table.
        expected: usize,
    },
    /// NaN or infinite.
    #[error("the embedding is not finite")]
    NotFinite,
}

/// A checked prototype file, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prototypes<'a> {
    header: Header<'a>,
    centre: &'a [u8],
    labels: &'a [u8],
    wanted: &'a [u8],
    vectors: &'a [u8],
    bank: &'a [u8],
    crc: u32,
}

/// Vectors of i8, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    bytes: &'a [u8],
    dimension: usize,
}

impl<'a> Vectors<'a> {
    /// Rows of `dimension` i8; bytes left over are passed over.
    pub fn new(bytes: &'a [u8], dimension: usize) -> Self {
        Self { bytes, dimension: dimension.max(1) }
    }

    /// The rows.
    pub fn iter(&self) -> ChunksExact<'a, u8> {
        self.bytes.chunks_exact(self.dimension.max(1))
    }
}

/// An embedding to be compared with vectors about a centre.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    embedding: &'a [f32],
    centre: &'a [u8],
    norm: f32,
}

impl<'a> Query<'a> {
    /// `centre` holds the embedding's length in little-endian f32.
    pub fn new(embedding: &'a [f32], centre: &'a [u8]) -> Result<Self, QueryError> {
        if centre.len() != embedding.len() * 4 {
            return Err(QueryError::Dimension { found: embedding.len(), expected: centre.len() / 4 });
        }
        let mut query = Self { embedding, centre, norm: 0.0 };
        query.norm = libm::sqrtf(query.values().map(|v| v * v).sum());
        if query.norm.is_finite() { Ok(query) } else { Err(QueryError::NotFinite) }
    }

    fn values(&self) -> impl Iterator<Item = f32> {
        self.embedding.iter().zip(floats(self.centre)).map(|(e, c)| e - c)
    }

    /// Cosine to one vector of i8, in -1 to 1; 0 if either is the zero vector.
    ///
    /// Summed in f32 in the order of the dimensions: within D x 2^-23 of the exact cosine.
    pub fn cosine(&self, vector: &[u8]) -> f32 {
        let (mut dot, mut square) = (0f32, 0i64);
        for (v, w) in self.values().zip(vector) {
            let w = w.cast_signed();
            dot += v * f32::from(w);
            square += i64::from(w) * i64::from(w);
        }
        let cosine = dot / self.norm / libm::sqrtf(square as f32);
        if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { 0.0 }
    }
}

/// How one embedding stands to the prototypes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Cosine to the nearest wanted prototype less that to the nearest other one (0 if there is none): -2 to 2.
    pub margin: f32,
    /// Class label of the nearest prototype of all.
    pub nearest: u16,
}

impl<'a> Prototypes<'a> {
    /// Checks everything; any bytes give a table or an error.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(ParseError::Magic)?;
        if *magic != MAGIC {
            return Err(ParseError::Magic);
        }
        let short = ParseError::Length { found: bytes.len(), expected: 16 };
        let (version, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
        match u16::from_le_bytes(*version) {
            VERSION => {}
            other => return Err(ParseError::Version(other)),
        }
        let (before, crc) = bytes.split_last_chunk::<4>().ok_or(short)?;
        let crc = u32::from_le_bytes(*crc);
        if crc32c(before) != crc {
            return Err(ParseError::Crc);
        }
        let (len, rest) = rest.split_first_chunk::<2>().ok_or(short)?;
        let (header, rest) =
            rest.split_at_checked(usize::from(u16::from_le_bytes(*len))).ok_or(ParseError::Header("length"))?;
        let header: Header<'a> = super::frame::parse(header).ok_or(ParseError::Header("encoding"))?;
        check_header(&header)?;

        let (d, p, b) = (usize::from(header.dimension), usize::from(header.prototypes), usize::from(header.bank));
        // Counts of 16 bits: their products overflow a 32-bit usize, which no file's length equals.
        let rows = (p + b).saturating_mul(d);
        let expected = rows.saturating_add(bytes.len() - rest.len() + 4 * d + 3 * p + 4);
        let wrong = ParseError::Length { found: bytes.len(), expected };
        if bytes.len() != expected {
            return Err(wrong);
        }
        let (centre, rest) = rest.split_at_checked(4 * d).ok_or(wrong)?;
        let (labels, rest) = rest.split_at_checked(2 * p).ok_or(wrong)?;
        let (wanted, rest) = rest.split_at_checked(p).ok_or(wrong)?;
        let (vectors, rest) = rest.split_at_checked(p * d).ok_or(wrong)?;
        let (bank, _) = rest.split_at_checked(b * d).ok_or(wrong)?;
        let table = Self { header, centre, labels, wanted, vectors, bank, crc };
        table.check_values()?;
        Ok(table)
    }

    fn check_values(&self) -> Result<(), ParseError> {
        let refuse = |what, bad: Option<usize>| bad.map_or(Ok(()), |index| Err(ParseError::Value { what, index }));
        refuse("centre", floats(self.centre).position(|v| !v.is_finite()))?;
        refuse("wanted flag", self.wanted.iter().position(|&w| w > 1))?;
        let zero = |v: &[u8]| v.iter().all(|&v| v == 0);
        refuse("prototype", self.vectors().iter().position(zero))?;
        refuse("bank vector", self.bank().iter().position(zero))?;
        if self.wanted.contains(&1) { Ok(()) } else { Err(ParseError::NothingWanted) }
    }

    /// The header.
    pub fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// CRC-32C of the file, by which an outbox names it.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// The centre, one value a dimension.
    pub fn centre(&self) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        floats(self.centre)
    }

    /// Class label of each prototype, and whether it is wanted.
    pub fn labels(&self) -> impl Iterator<Item = (u16, bool)> + use<'a> {
        let labels = self.labels.as_chunks::<2>().0.iter().map(|l| u16::from_le_bytes(*l));
        labels.zip(self.wanted.iter().map(|&w| w == 1))
    }

    /// The prototypes.
    pub fn vectors(&self) -> Vectors<'a> {
        Vectors::new(self.vectors, self.header.dimension.into())
    }

    /// The bank for novelty.
    pub fn bank(&self) -> Vectors<'a> {
        Vectors::new(self.bank, self.header.dimension.into())
    }

    /// An embedding, ready to be compared with this table.
    pub fn query<'q>(&self, embedding: &'q [f32]) -> Result<Query<'q>, QueryError>
    where
        'a: 'q,
    {
        Query::new(embedding, self.centre)
    }

    /// Compares `query` with every prototype. Of equally near ones the first counts. O(P x D).
    pub fn score(&self, query: &Query<'_>) -> Score {
        let (mut wanted, mut other, mut best) = (f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY);
        let mut nearest = 0;
        for (vector, (label, is_wanted)) in self.vectors().iter().zip(self.labels()) {
            let cosine = query.cosine(vector);
            if cosine > best {
                (best, nearest) = (cosine, label);
            }
            let side = if is_wanted { &mut wanted } else { &mut other };
            *side = side.max(cosine);
        }
        let other = if other.is_finite() { other } else { 0.0 };
        Score { margin: wanted - other, nearest }
    }

    /// Probability, by the table's midpoint and temperature, that a tile of this margin is wanted.
    pub fn probability(&self, margin: f32) -> f32 {
        1.0 / (1.0 + libm::expf((self.header.midpoint - margin) / self.header.temperature))
    }
}

pub(super) fn check_header(header: &Header<'_>) -> Result<(), ParseError> {
    if header.embedding_space.is_empty() || header.embedding_space.len() > 32 {
        return Err(ParseError::Header("embedding space"));
    }
    if header.dimension == 0 {
        return Err(ParseError::Header("dimension"));
    }
    if header.prototypes == 0 {
        return Err(ParseError::NothingWanted);
    }
    if !(-100.0..=100.0).contains(&header.midpoint) {
        return Err(ParseError::Header("midpoint"));
    }
    if !(1e-4..=100.0).contains(&header.temperature) {
        return Err(ParseError::Header("temperature"));
    }
    if !(1e-4..=2.0).contains(&header.novel_from) {
        return Err(ParseError::Header("novelty threshold"));
    }
    Ok(())
}

fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + use<'_> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}
