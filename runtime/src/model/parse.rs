//! Total parsing: any bytes give a [`Model`] or a [`ModelError`].
//!
//! Time is bounded: every byte is read at most three times (its CRC, the CRC of the file, and a check that floats are finite).

use super::*;

/// Reads little-endian integers; a read past the end gives zero, which the length checks before make impossible.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Rounds up to a multiple of [`ALIGNMENT`].
const fn align(n: u64) -> u64 {
    n.saturating_add(ALIGNMENT as u64 - 1) / ALIGNMENT as u64 * ALIGNMENT as u64
}

/// One row of the table, unchecked.
struct Row {
    kind: u8,
    dtype: u8,
    reserved: u16,
    index: u32,
    offset: u64,
    elements: u64,
    crc: u32,
    reserved_end: u32,
}

fn row(table: &[u8], index: usize) -> Row {
    let b = table.get(index * ENTRY_BYTES..(index + 1) * ENTRY_BYTES).unwrap_or(&[0; ENTRY_BYTES]);
    Row {
        kind: b[0],
        dtype: b[1],
        reserved: u16_at(b, 2),
        index: u32_at(b, 4),
        offset: u64_at(b, 8),
        elements: u64_at(b, 16),
        crc: u32_at(b, 24),
        reserved_end: u32_at(b, 28),
    }
}

/// The row as callers see it; `None` past the end or if the type is unknown.
pub(super) fn entry(table: &[u8], index: usize) -> Option<SectionEntry> {
    if index >= table.len() / ENTRY_BYTES {
        return None;
    }
    let row = row(table, index);
    Some(SectionEntry {
        kind: row.kind,
        dtype: Dtype::from_number(row.dtype)?,
        index: row.index,
        offset: usize::try_from(row.offset).ok()?,
        elements: usize::try_from(row.elements).ok()?,
        crc: row.crc,
    })
}

/// Every byte of `bytes[from..to]` must be zero.
fn check_zero(bytes: &[u8], from: usize, to: usize) -> Result<(), ModelError> {
    let range = bytes.get(from..to).unwrap_or(&[]);
    match range.iter().zip(from..).find(|(byte, _)| **byte != 0) {
        Some((&found, offset)) => Err(ModelError::NotZero { offset, found }),
        None => Ok(()),
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Model<'_>, ModelError> {
    let address = bytes.as_ptr() as usize;
    if !address.is_multiple_of(ALIGNMENT) {
        return Err(ModelError::Misaligned { address });
    }
    let length = bytes.len();
    let truncated = |needed| ModelError::Truncated { length, needed };
    let Some(prefix) = bytes.get(..PREFIX_BYTES) else {
        return Err(truncated(PREFIX_BYTES as u64));
    };
    if prefix[..8] != MAGIC {
        let mut found = [0; 8];
        found.copy_from_slice(&prefix[..8]);
        return Err(ModelError::Magic { found });
    }
    let (major, minor) = (u16_at(prefix, 8), u16_at(prefix, 10));
    if major != VERSION_MAJOR {
        return Err(ModelError::Version { major, minor });
    }
    let file_bytes = u64_at(prefix, 24);
    if (length as u64) < file_bytes {
        return Err(truncated(file_bytes));
    }
    if length as u64 > file_bytes {
        return Err(ModelError::TooLong { length, expected: file_bytes });
    }

    // Head: prefix, header, section table. All sums fit u64: the header is limited, the number of sections is a u32.
    let header_bytes = u32_at(prefix, 12);
    if header_bytes as usize > MAX_HEADER {
        return Err(ModelError::HeaderLength { length: header_bytes, limit: MAX_HEADER });
    }
    let header_end = PREFIX_BYTES + header_bytes as usize;
    let sections = u32_at(prefix, 16);
    let table_start = align(header_end as u64);
    let table_end = table_start + u64::from(sections) * ENTRY_BYTES as u64;
    let first = align(table_end + 4);
    if length as u64 <= first {
        return Err(truncated(first + 4));
    }
    // From here the positions fit the file, hence usize.
    let (table_start, table_end) = (table_start as usize, table_end as usize);
    let expected = u32_at(bytes, table_end);
    let (Some(head), Some(header), Some(table)) =
        (bytes.get(..table_end), bytes.get(PREFIX_BYTES..header_end), bytes.get(table_start..table_end))
    else {
        return Err(truncated(first));
    };
    let found = crc32c(head);
    if found != expected {
        return Err(ModelError::Crc { part: Part::Head, found, expected });
    }
    check_zero(bytes, 20, 24)?;
    check_zero(bytes, header_end, table_start)?;
    check_zero(bytes, table_end + 4, first as usize)?;
    let (header, tail) = postcard::take_from_bytes::<Header<'_>>(header).map_err(ModelError::HeaderEncoding)?;
    // A later minor version may have appended fields.
    if minor == VERSION_MINOR && !tail.is_empty() {
        return Err(ModelError::HeaderTail(tail.len()));
    }
    header.validate()?;

    let model = Model { bytes, header, table };
    let tensors = model.check_sections(first)?;
    if expected_section(&model.header.architecture, model.header.bands.len(), model.header.precision, tensors).is_some()
    {
        let expected = model.expected_tensors();
        return Err(ModelError::TensorCount { found: tensors, expected });
    }
    if model.precision() == Precision::Int8 {
        int8_layout::check(&model)?;
    }
    let expected = u32_at(bytes, length - 4);
    let found = crc32c(bytes.get(..length - 4).unwrap_or_default());
    if found != expected {
        return Err(ModelError::Crc { part: Part::File, found, expected });
    }
    Ok(model)
}

impl Model<'_> {
    /// Tensors that the header asks for.
    fn expected_tensors(&self) -> usize {
        (0..).take_while(|&i| self.expected(i).is_some()).count()
    }

    /// Checks each section; returns the number of tensors. `offset` is where the first section must lie.
    fn check_sections(&self, mut offset: u64) -> Result<usize, ModelError> {
        let bytes = self.bytes;
        let end_of_file = bytes.len() as u64;
        let mut tensors = 0;
        for index in 0..self.section_count() {
            let row = row(self.table, index);
            let wrong = |field, found, expected| ModelError::Entry { index, field, found, expected };
            if u64::from(row.index) != index as u64 {
                return Err(wrong("index", u64::from(row.index), index as u64));
            }
            if row.reserved != 0 || row.reserved_end != 0 {
                return Err(wrong("reserved", u64::from(row.reserved) | u64::from(row.reserved_end) << 16, 0));
            }
            let Some(dtype) = Dtype::from_number(row.dtype) else {
                return Err(wrong("type", u64::from(row.dtype), Dtype::I64 as u64));
            };
            if row.offset != offset {
                return Err(wrong("offset", row.offset, offset));
            }
            let spec = match row.kind {
                KIND_TENSOR => {
                    if tensors != index {
                        return Err(wrong("kind", KIND_TENSOR.into(), KIND_ANCILLARY.into()));
                    }
                    let Some(spec) = self.expected(index) else {
                        let found = (index..self.section_count()).take_while(|&i| self::row(self.table, i).kind == 0);
                        return Err(ModelError::TensorCount { found: index + found.count(), expected: index });
                    };
                    if dtype != spec.dtype || row.elements != spec.elements as u64 {
                        return Err(ModelError::Section { index, spec, elements: row.elements, dtype });
                    }
                    tensors += 1;
                    Some(spec)
                }
                KIND_ANCILLARY.. => None,
                other => return Err(wrong("kind", other.into(), KIND_ANCILLARY.into())),
            };
            let end = row.elements.checked_mul(dtype.bytes() as u64).and_then(|n| n.checked_add(offset));
            // The next section, or the file's CRC, begins at the next multiple of the alignment.
            let Some(end) = end.filter(|&end| align(end) <= end_of_file - 4) else {
                return Err(wrong(
                    "elements",
                    row.elements,
                    (end_of_file - 4).saturating_sub(offset) / dtype.bytes() as u64,
                ));
            };
            let found = crc32c(bytes.get(offset as usize..end as usize).unwrap_or_default());
            if found != row.crc {
                return Err(ModelError::SectionCrc { index, spec: SectionName(spec), found, expected: row.crc });
            }
            check_zero(bytes, end as usize, align(end) as usize)?;
            if let Some(spec) = spec
                && let Some(element) = self.first_not_finite(index, dtype)
            {
                return Err(ModelError::NotFinite { index, spec, element });
            }
            offset = align(end);
        }
        if offset != end_of_file - 4 {
            return Err(ModelError::TooLong { length: bytes.len(), expected: offset + 4 });
        }
        Ok(tensors)
    }

    fn first_not_finite(&self, index: usize, dtype: Dtype) -> Option<usize> {
        match dtype {
            Dtype::F32 => self.section::<f32>(index).iter().position(|v| !v.is_finite()),
            Dtype::F16 => self.section::<u16>(index).iter().position(|v| v & 0x7c00 == 0x7c00),
            _ => None,
        }
    }
}
