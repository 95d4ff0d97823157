//! Writes a `.nadir` file (`docs/model-file.md`); the same for every precision.

use anyhow::{Context, Result, ensure};
use nadir::model::{
    ALIGNMENT, Dtype, Header, KIND_TENSOR, MAGIC, Model, PREFIX_BYTES, Precision, Provenance, VERSION_MAJOR,
    VERSION_MINOR, crc32c,
};
use nadir_formats::{AlignedBytes, ModelCard};

/// Elements of one section.
#[derive(Clone, Debug, PartialEq)]
pub enum SectionData {
    /// IEEE 754 binary32.
    F32(Vec<f32>),
    /// Bits of IEEE 754 binary16.
    F16(Vec<u16>),
    /// Signed 8 bits.
    I8(Vec<i8>),
    /// Signed 16 bits.
    I16(Vec<i16>),
    /// Signed 32 bits.
    I32(Vec<i32>),
    /// Signed 64 bits.
    I64(Vec<i64>),
}

impl SectionData {
    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        match self {
            SectionData::F32(_) => Dtype::F32,
            SectionData::F16(_) => Dtype::F16,
            SectionData::I8(_) => Dtype::I8,
            SectionData::I16(_) => Dtype::I16,
            SectionData::I32(_) => Dtype::I32,
            SectionData::I64(_) => Dtype::I64,
        }
    }

    /// The elements, little-endian.
    fn bytes(&self) -> Vec<u8> {
        match self {
            SectionData::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SectionData::F16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SectionData::I8(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SectionData::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SectionData::I32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            SectionData::I64(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// The header of a model made from `card`, in `precision`.
///
/// # Errors
/// If the card holds a text that is too long, or bands that are not possible.
pub fn header(card: &ModelCard, precision: Precision) -> Result<Header<'_>> {
    Ok(Header {
        name: &card.name,
        embedding_space: &card.embedding_space,
        precision,
        architecture: card.architecture,
        embedding_dimension: card.architecture.dims[3],
        bands: card.bands().map_err(anyhow::Error::msg)?,
        provenance: Provenance {
            made_by: &card.provenance.made_by,
            data: &card.provenance.data,
            recipe: &card.provenance.recipe,
            licence: &card.provenance.licence,
        },
    })
}

/// The whole file: `sections` are the tensors in the order of [`nadir::model::expected_section`]. The result was read back by the
/// runtime's own parser.
///
/// # Errors
/// If the header or a section is not what the format asks for.
pub fn write_model(header: &Header<'_>, sections: &[SectionData]) -> Result<Vec<u8>> {
    header.validate()?;
    let bytes = encode(header, sections)?;
    Model::parse(&AlignedBytes::copy_of(&bytes)).context("the model just written does not read back")?;
    Ok(bytes)
}

/// As [`write_model`], without reading back: for tests that need wrong files with right checksums.
///
/// # Errors
/// If the header does not encode.
pub fn encode(header: &Header<'_>, sections: &[SectionData]) -> Result<Vec<u8>> {
    let header = postcard::to_stdvec(header).context("header")?;
    ensure!(header.len() <= nadir::model::MAX_HEADER, "header has {} bytes, too many", header.len());
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION_MAJOR.to_le_bytes());
    out.extend(VERSION_MINOR.to_le_bytes());
    out.extend((header.len() as u32).to_le_bytes());
    out.extend((sections.len() as u32).to_le_bytes());
    out.resize(PREFIX_BYTES, 0);
    out.extend(header);
    pad(&mut out);

    let data: Vec<_> = sections.iter().map(SectionData::bytes).collect();
    let table_end = out.len() + sections.len() * nadir::model::ENTRY_BYTES;
    let mut offset = (table_end + 4).next_multiple_of(ALIGNMENT);
    let mut table = Vec::new();
    for (index, (section, data)) in sections.iter().zip(&data).enumerate() {
        table.extend([KIND_TENSOR, section.dtype() as u8, 0, 0]);
        table.extend((index as u32).to_le_bytes());
        table.extend((offset as u64).to_le_bytes());
        table.extend(((data.len() / section.dtype().bytes()) as u64).to_le_bytes());
        table.extend(crc32c(data).to_le_bytes());
        table.extend([0; 4]);
        offset = (offset + data.len()).next_multiple_of(ALIGNMENT);
    }
    out.extend(table);
    out[24..32].copy_from_slice(&(offset as u64 + 4).to_le_bytes());
    out.extend(crc32c(&out).to_le_bytes());
    pad(&mut out);
    for data in data {
        out.extend(data);
        pad(&mut out);
    }
    out.extend(crc32c(&out).to_le_bytes());
    Ok(out)
}

/// Zeros up to the next multiple of [`ALIGNMENT`].
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}
