//! Writes a `.nadir` file (`docs/model-file.md`); the same for every precision. What a file for flight has besides the tensors,
//! [`crate::flight`] adds.

use anyhow::{Context, Result, ensure};
use nadir::model::parity::{WORD_BYTES, parity_of};
use nadir::model::{
    ALIGNMENT, Dtype, END_BYTES, ENTRY_BYTES, HEAD_CRC_BYTES, Header, KIND_PRODUCTS, KIND_TENSOR, MAGIC, Model,
    PREFIX_BYTES, Place, Precision, Provenance, VERSION_MAJOR, VERSION_MAJOR_PATCHIFY, VERSION_MAJOR_RAISED, crc32c,
    int8_layout,
};
use nadir::plan::regions::places;
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

/// A section as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// [`KIND_TENSOR`], or an ancillary kind.
    pub kind: u8,
    /// Type of the elements.
    pub dtype: Dtype,
    /// The elements, little-endian.
    pub bytes: Vec<u8>,
}

impl Section {
    /// A tensor.
    pub fn tensor(data: &SectionData) -> Self {
        Self { kind: KIND_TENSOR, dtype: data.dtype(), bytes: data.bytes() }
    }

    /// The sections of a model, in order.
    pub fn all_of(model: &Model<'_>) -> Vec<Self> {
        let entries = (0..model.section_count()).filter_map(|index| model.section_entry(index));
        let section = |entry: nadir::model::SectionEntry| {
            let bytes = model.section_bytes(entry.index as usize).to_vec();
            Self { kind: entry.kind, dtype: entry.dtype, bytes }
        };
        entries.map(section).collect()
    }
}

/// The header of a model of version 1 made from `card`, in `precision`.
///
/// # Errors
/// If the card holds a text that is too long, or bands that are not possible.
pub fn header(card: &ModelCard, precision: Precision) -> Result<Header<'_>> {
    Ok(Header {
        name: &card.name,
        embedding_space: &card.embedding_space,
        model_version: 1,
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

/// A file of tensors alone: `sections` are those of [`nadir::model::expected_section`], in that order. The result was read back by the runtime's own
/// parser.
///
/// # Errors
/// If the header or a section is not what the format asks for.
pub fn write_model(header: &Header<'_>, sections: &[SectionData]) -> Result<Vec<u8>> {
    let sections: Vec<_> = sections.iter().map(Section::tensor).collect();
    write_file(header, &sections, false)
}

/// A file of any sections, with or without parity, read back by the runtime's own parser.
///
/// # Errors
/// If the header or a section is not what the format asks for.
pub fn write_file(header: &Header<'_>, sections: &[Section], parity: bool) -> Result<Vec<u8>> {
    header.validate()?;
    let bytes = encode(header, sections, parity)?;
    Model::parse(&AlignedBytes::copy_of(&bytes)).context("the model just written does not read back")?;
    Ok(bytes)
}

/// As [`write_file`], without reading back: for tests that need wrong files with right checksums.
///
/// # Errors
/// If the header does not encode.
pub fn encode(header: &Header<'_>, sections: &[Section], parity: bool) -> Result<Vec<u8>> {
    let major = match header.architecture.is_patchify() {
        true => VERSION_MAJOR_PATCHIFY,
        false if has_raised(header, sections) => VERSION_MAJOR_RAISED,
        false => VERSION_MAJOR,
    };
    let header = postcard::to_stdvec(header).context("header")?;
    ensure!(header.len() <= nadir::model::MAX_HEADER, "header has {} bytes, too many", header.len());
    let mut out = Vec::new();
    out.extend(MAGIC);
    // The lowest versions that hold what the file has.
    out.extend(major.to_le_bytes());
    let minor = u16::from(sections.iter().any(|section| section.kind == KIND_PRODUCTS));
    out.extend(minor.to_le_bytes());
    out.extend((header.len() as u32).to_le_bytes());
    out.extend((sections.len() as u32).to_le_bytes());
    out.extend(if parity { [0xff; 4] } else { [0; 4] });
    out.resize(PREFIX_BYTES, 0);
    out.extend(header);
    pad(&mut out);

    let table_end = out.len() + sections.len() * ENTRY_BYTES;
    let mut offset = (table_end + HEAD_CRC_BYTES).next_multiple_of(ALIGNMENT);
    let mut table = Vec::new();
    for (index, Section { kind, dtype, bytes }) in sections.iter().enumerate() {
        table.extend([*kind, *dtype as u8, 0, 0]);
        table.extend((index as u32).to_le_bytes());
        table.extend((offset as u64).to_le_bytes());
        table.extend(((bytes.len() / dtype.bytes()) as u64).to_le_bytes());
        table.extend(crc32c(bytes).to_le_bytes());
        table.extend([0; 4]);
        offset = (offset + bytes.len()).next_multiple_of(ALIGNMENT);
    }
    out.extend(table);
    let data_bytes = offset + END_BYTES;
    let file_bytes = if parity { data_bytes + data_bytes / WORD_BYTES } else { data_bytes };
    out[24..32].copy_from_slice(&(file_bytes as u64).to_le_bytes());
    let head = crc32c(&out);
    out.extend([0; 4]);
    out.extend(head.to_le_bytes());
    pad(&mut out);
    for section in sections {
        out.extend(&section.bytes);
        pad(&mut out);
    }
    out.extend(crc32c(&out).to_le_bytes());
    pad(&mut out);
    if parity {
        out.extend(parity_bytes(&out));
    }
    Ok(out)
}

/// Whether a layer is raised: what the last constant of a block says.
fn has_raised(header: &Header<'_>, sections: &[Section]) -> bool {
    let arch = &header.architecture;
    let raised = |place| {
        let constants = sections.get(int8_layout::start(arch, place) + int8_layout::BLOCK_SECTIONS - 1);
        let last = constants.and_then(|section| section.bytes.last_chunk());
        last.is_some_and(|&shift| i32::from_le_bytes(shift) >= int8_layout::RAISED)
    };
    header.precision == Precision::Int8
        && places(arch).any(|place| matches!(place, Place::Block { .. }) && raised(place))
}

/// The parity bytes of the data of a file.
pub fn parity_bytes(data: &[u8]) -> Vec<u8> {
    data.as_chunks().0.iter().map(|word| parity_of(u64::from_le_bytes(*word))).collect()
}

/// Zeros up to the next multiple of [`ALIGNMENT`].
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}
