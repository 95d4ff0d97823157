//! Total parsing: any bytes give a [`Model`] or a [`ModelError`].
//!
//! Time is bounded: every byte is read at most four times (its CRC, the CRC of the file, a check that floats are finite, its parity).

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
    let model = head(bytes)?;
    model.check_contents()?;
    Ok(model)
}

/// Checks prefix, header and table, and that the file has the length and the sections that they call for; not what these hold.
pub(crate) fn head(bytes: &[u8]) -> Result<Model<'_>, ModelError> {
    let address = bytes.as_ptr() as usize;
    if !address.is_multiple_of(ALIGNMENT) {
        return Err(ModelError::Misaligned { address });
    }
    let length = bytes.len();
    let truncated = |needed| ModelError::Truncated { length, needed };
    let Some(prefix) = bytes.get(..PREFIX_BYTES) else {
        return Err(truncated(PREFIX_BYTES as u64));
    };
    let mut magic = [0; 8];
    magic.copy_from_slice(&prefix[..8]);
    match magic {
        MAGIC => {}
        MAGIC_DRAFT => return Err(ModelError::Draft),
        found => return Err(ModelError::Magic { found }),
    }
    let (major, minor) = (u16_at(prefix, 8), u16_at(prefix, 10));
    if !(VERSION_MAJOR..=VERSION_MAJOR_PATCHIFY).contains(&major) {
        return Err(ModelError::Version { major, minor });
    }
    let file_bytes = u64_at(prefix, 24);
    if (length as u64) < file_bytes {
        return Err(truncated(file_bytes));
    }
    if length as u64 > file_bytes {
        return Err(ModelError::TooLong { length, expected: file_bytes });
    }
    let (data_bytes, unit) = match u32_at(prefix, 20) {
        0 => (length.is_multiple_of(ALIGNMENT).then_some(length), ALIGNMENT),
        u32::MAX => (parity::data_bytes(length), ALIGNMENT + ALIGNMENT / parity::WORD_BYTES),
        found => return Err(ModelError::ParityField { found }),
    };
    let Some(data) = data_bytes.and_then(|n| bytes.get(..n)) else {
        return Err(ModelError::Unit { length, unit });
    };

    // Head: prefix, header, section table. All sums fit u64: the header is limited, the number of sections is a u32.
    let header_bytes = u32_at(prefix, 12);
    if header_bytes as usize > MAX_HEADER {
        return Err(ModelError::HeaderLength { length: header_bytes, limit: MAX_HEADER });
    }
    let header_bytes = header_bytes as usize;
    let header_end = PREFIX_BYTES + header_bytes;
    let sections = u32_at(prefix, 16);
    let table_start = align(header_end as u64);
    let table_end = table_start + u64::from(sections) * ENTRY_BYTES as u64;
    let first = align(table_end + HEAD_CRC_BYTES as u64);
    if (data.len() as u64) < first + END_BYTES as u64 {
        return Err(truncated(first + END_BYTES as u64));
    }
    // From here the positions fit the file, hence usize.
    let (table_start, table_end, first) = (table_start as usize, table_end as usize, first as usize);
    let expected = u32_at(data, table_end + 4);
    let (Some(head), Some(header), Some(table)) =
        (data.get(..table_end), data.get(PREFIX_BYTES..header_end), data.get(table_start..table_end))
    else {
        return Err(truncated(first as u64));
    };
    let found = crc32c(head);
    if found != expected {
        return Err(ModelError::Crc { part: Part::Head, found, expected });
    }
    check_zero(data, header_end, table_start)?;
    check_zero(data, table_end, table_end + 4)?;
    check_zero(data, table_end + HEAD_CRC_BYTES, first)?;
    let (header, tail) = postcard::take_from_bytes::<Header<'_>>(header).map_err(ModelError::HeaderEncoding)?;
    // A later minor version may have appended fields.
    if minor <= VERSION_MINOR && !tail.is_empty() {
        return Err(ModelError::HeaderTail(tail.len()));
    }
    header.validate()?;
    let patchify = header.architecture.is_patchify();
    let fits = match major {
        // Only integers have layers that can be raised.
        VERSION_MAJOR_RAISED => !patchify && header.precision == Precision::Int8,
        _ => patchify == (major == VERSION_MAJOR_PATCHIFY),
    };
    if !fits {
        let expected = if patchify { VERSION_MAJOR_PATCHIFY } else { VERSION_MAJOR };
        return Err(ModelError::VersionContent { major, expected });
    }

    let mut model = Model { bytes, data, header, header_bytes, table, tensors: 0, tensor_range: first..first };
    model.check_rows()?;
    if model.expected(model.tensors).is_some() {
        let expected = (0..).take_while(|&i| model.expected(i).is_some()).count();
        return Err(ModelError::TensorCount { found: model.tensors, expected });
    }
    Ok(model)
}

impl Model<'_> {
    /// Checks each row of the table but for its CRC; counts the tensors and finds where they end.
    fn check_rows(&mut self) -> Result<(), ModelError> {
        let end_of_sections = (self.data.len() - END_BYTES) as u64;
        let mut offset = self.tensor_range.start as u64;
        // The least kind that may come.
        let mut least = KIND_TENSOR;
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
            if row.kind < least || (KIND_TENSOR + 1..KIND_ANCILLARY).contains(&row.kind) {
                return Err(wrong("kind", row.kind.into(), least.max(KIND_ANCILLARY).into()));
            }
            if row.kind == KIND_TENSOR {
                let Some(spec) = self.expected(index) else {
                    let found = (index..self.section_count()).take_while(|&i| self::row(self.table, i).kind == 0);
                    return Err(ModelError::TensorCount { found: index + found.count(), expected: index });
                };
                if dtype != spec.dtype || row.elements != spec.elements as u64 {
                    return Err(ModelError::Section { index, spec, elements: row.elements, dtype });
                }
                self.tensors = index + 1;
            } else {
                let tensor_bytes = self.tensor_range.len();
                if let Some((expected, elements)) = ancillary::expected(row.kind, row.elements, self, tensor_bytes) {
                    if dtype != expected {
                        return Err(wrong("type", dtype as u64, expected as u64));
                    }
                    if row.elements != elements as u64 {
                        return Err(wrong("elements", row.elements, elements as u64));
                    }
                }
                // Nothing comes after a signature.
                let Some(next) = row.kind.checked_add(1).or((index + 1 == self.section_count()).then_some(row.kind))
                else {
                    return Err(wrong("kind", row.kind.into(), u64::from(row.kind) - 1));
                };
                least = next;
            }
            let end = row.elements.checked_mul(dtype.bytes() as u64).and_then(|n| n.checked_add(offset));
            // The next section, or the last line, begins at the next multiple of the alignment.
            let Some(end) = end.filter(|&end| align(end) <= end_of_sections) else {
                return Err(wrong(
                    "elements",
                    row.elements,
                    end_of_sections.saturating_sub(offset) / dtype.bytes() as u64,
                ));
            };
            offset = align(end);
            if row.kind == KIND_TENSOR {
                self.tensor_range.end = offset as usize;
            }
        }
        if offset != end_of_sections {
            return Err(ModelError::TooLong { length: self.data.len(), expected: offset + END_BYTES as u64 });
        }
        Ok(())
    }

    /// Checks what the sections hold, and the end of the file.
    fn check_contents(&self) -> Result<(), ModelError> {
        for index in 0..self.section_count() {
            let row = row(self.table, index);
            let bytes = self.section_bytes(index);
            let found = crc32c(bytes);
            if found != row.crc {
                let spec = self.section_name(index);
                return Err(ModelError::SectionCrc { index, spec, found, expected: row.crc });
            }
            let end = row.offset + bytes.len() as u64;
            check_zero(self.data, end as usize, align(end) as usize)?;
            if let Some(spec) = self.expected(index)
                && let Some(element) = self.first_not_finite(index, spec.dtype)
            {
                return Err(ModelError::NotFinite { index, spec, element });
            }
        }
        if self.precision() == Precision::Int8 {
            int8_layout::check(self)?;
        }
        crate::guard::SelfTest::check(self)?;
        self.read_products()?;
        let end = self.data.len() - END_BYTES;
        let (found, expected) = (crc32c(self.data.get(..end).unwrap_or_default()), self.file_crc());
        if found != expected {
            return Err(ModelError::Crc { part: Part::File, found, expected });
        }
        check_zero(self.data, end + 4, self.data.len())?;
        let parity = self.bytes.get(self.data.len()..).unwrap_or_default();
        match parity::first_unfit(self.data, parity) {
            Some(word) => Err(ModelError::Parity { offset: word * parity::WORD_BYTES }),
            None => Ok(()),
        }
    }

    fn first_not_finite(&self, index: usize, dtype: Dtype) -> Option<usize> {
        match dtype {
            Dtype::F32 => self.section::<f32>(index).iter().position(|v| !v.is_finite()),
            Dtype::F16 => self.section::<u16>(index).iter().position(|v| v & 0x7c00 == 0x7c00),
            _ => None,
        }
    }
}
