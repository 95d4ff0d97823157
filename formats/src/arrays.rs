//! Two-dimensional f32 arrays and one-dimensional integer arrays in `.npy`.

use std::path::Path;

use npyz::{NpyFile, Order, TypeChar, WriterBuilder};

use crate::npz::read_bytes;
use crate::{Result, invalid, io, write_atomic};

/// Rows of equal length, row-major: embeddings, one row a tile.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub columns: usize,
    /// `rows * columns` values.
    pub data: Vec<f32>,
}

impl Matrix {
    /// Row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.columns..][..self.columns]
    }

    /// Reads an f32 (or f64, rounded) `.npy` of shape `[rows, columns]`.
    ///
    /// # Errors
    /// If the file cannot be read, or holds another type or shape.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let npy = open(path, &bytes)?;
        let &[rows, columns] = npy.shape() else {
            return Err(invalid(path, format!("has shape {:?}, expected [tiles, dimension]", npy.shape())));
        };
        if columns == 0 {
            return Err(invalid(path, format!("has shape [{rows}, 0], expected at least one dimension")));
        }
        let (rows, columns) = (rows as usize, columns as usize);
        let data = match scalar(&npy) {
            Some((TypeChar::Float, 4)) => npy.into_vec::<f32>().map_err(io(path))?,
            Some((TypeChar::Float, 8)) => {
                npy.into_vec::<f64>().map_err(io(path))?.into_iter().map(|v| v as f32).collect()
            }
            _ => return Err(invalid(path, format!("has type {}, expected f32", npy.dtype().descr()))),
        };
        Ok(Self { rows, columns, data })
    }

    /// Writes an f32 `.npy` of shape `[rows, columns]`, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_npy(path, &[self.rows as u64, self.columns as u64], &self.data)
    }
}

/// Reads a one-dimensional `.npy` of any integer type but u64, or of booleans: labels, or a split (0 train, 1 validation, 2 test).
///
/// # Errors
/// If the file cannot be read, or holds another type or shape.
pub fn read_integers(path: &Path) -> Result<Vec<i64>> {
    let bytes = read_bytes(path)?;
    let npy = open(path, &bytes)?;
    if npy.shape().len() != 1 {
        return Err(invalid(path, format!("has shape {:?}, expected [tiles]", npy.shape())));
    }
    let kind = npy.dtype().descr();
    integers(path, npy)?.ok_or_else(|| invalid(path, format!("has type {kind}, expected integers")))
}

/// All values as i64; nothing if they are no integers.
fn integers(path: &Path, npy: NpyFile<&[u8]>) -> Result<Option<Vec<i64>>> {
    macro_rules! widen {
        ($type:ty) => {
            npy.into_vec::<$type>().map_err(io(path))?.into_iter().map(i64::from).collect()
        };
    }
    Ok(Some(match scalar(&npy) {
        Some((TypeChar::Bool, 1)) => widen!(bool),
        Some((TypeChar::Int, 1)) => widen!(i8),
        Some((TypeChar::Int, 2)) => widen!(i16),
        Some((TypeChar::Int, 4)) => widen!(i32),
        Some((TypeChar::Int, 8)) => widen!(i64),
        Some((TypeChar::Uint, 1)) => widen!(u8),
        Some((TypeChar::Uint, 2)) => widen!(u16),
        Some((TypeChar::Uint, 4)) => widen!(u32),
        _ => return Ok(None),
    }))
}

/// The values of an array of any shape.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Integers of any type but u64, or booleans.
    Integers(Vec<i64>),
    /// f32, or f64 rounded to it.
    Floats(Vec<f32>),
}

/// Reads a `.npy` of any shape, of integers, booleans or floats: its shape, and its values row-major.
///
/// # Errors
/// If the file cannot be read or holds another type.
pub fn read_values(path: &Path) -> Result<(Vec<usize>, Values)> {
    let bytes = read_bytes(path)?;
    let npy = open(path, &bytes)?;
    let shape = npy.shape().iter().map(|&d| d as usize).collect();
    let kind = npy.dtype().descr();
    let values = match scalar(&npy) {
        Some((TypeChar::Float, 4)) => Values::Floats(npy.into_vec().map_err(io(path))?),
        Some((TypeChar::Float, 8)) => {
            Values::Floats(npy.into_vec::<f64>().map_err(io(path))?.into_iter().map(|v| v as f32).collect())
        }
        _ => match integers(path, npy)? {
            Some(values) => Values::Integers(values),
            None => return Err(invalid(path, format!("has type {kind}, expected integers, f32 or f64"))),
        },
    };
    Ok((shape, values))
}

/// Writes a one-dimensional i64 `.npy`, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_integers(path: &Path, values: &[i64]) -> Result<()> {
    write_npy(path, &[values.len() as u64], values)
}

/// Writes numbers as a `.npy` in C order, whole or not at all; the product of `shape` must be their count.
///
/// # Errors
/// If the count is another or the file cannot be written.
pub fn write_npy<T: npyz::AutoSerialize + npyz::Serialize + Copy>(
    path: &Path,
    shape: &[u64],
    values: &[T],
) -> Result<()> {
    let mut bytes = Vec::new();
    let write = |bytes: &mut Vec<u8>| -> std::io::Result<()> {
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(bytes).begin_nd()?;
        writer.extend(values.iter().copied())?;
        writer.finish()
    };
    write(&mut bytes).map_err(io(path))?;
    write_atomic(path, &bytes)
}

/// Opens a C-ordered `.npy` whose length fits its shape.
pub(crate) fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<NpyFile<&'a [u8]>> {
    let npy = NpyFile::new(bytes).map_err(|e| invalid(path, format!("is not a .npy file: {e}")))?;
    if npy.order() != Order::C {
        return Err(invalid(path, "is in Fortran order, expected C order (numpy.ascontiguousarray)"));
    }
    let item = scalar(&npy).map_or(0, |(_, size)| size);
    let length = npy.shape().iter().try_fold(item, |n, &d| n.checked_mul(d));
    let header = npy_header_len(bytes);
    if item > 0 && length != Some((bytes.len() - header) as u64) {
        let held = bytes.len() - header;
        return Err(invalid(path, format!("holds {held} data bytes, its shape {:?} does not fit them", npy.shape())));
    }
    Ok(npy)
}

/// Kind and size in bytes, of a plain scalar type.
pub(crate) fn scalar<R: std::io::Read>(npy: &NpyFile<R>) -> Option<(TypeChar, u64)> {
    match npy.dtype() {
        npyz::DType::Plain(t) => Some((t.type_char(), t.size_field())),
        _ => None,
    }
}

/// Bytes before the data; the header was parsed before.
fn npy_header_len(bytes: &[u8]) -> usize {
    let long = bytes[6] > 1;
    let len = if long {
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
    } else {
        usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))
    };
    len + if long { 12 } else { 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.npy");
        let matrix = Matrix { rows: 2, columns: 3, data: vec![1.0, -2.5, 3.0, 0.0, f32::MIN_POSITIVE, 9.0] };
        matrix.write(&path).unwrap();
        assert_eq!(Matrix::read(&path).unwrap(), matrix);
        let error = read_integers(&path).unwrap_err().to_string();
        assert!(error.contains("e.npy") && error.contains("[2, 3]"), "{error}");
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.npy");
        write_integers(&path, &[1, 2, 3]).unwrap();
        assert_eq!(read_integers(&path).unwrap(), [1, 2, 3]);
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 5, 11, 60, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let error = read_integers(&path).unwrap_err().to_string();
            assert!(error.contains("labels.npy"), "{error}");
        }
    }
}
