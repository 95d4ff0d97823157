//! One sample of GEO-Bench: an HDF5 file with a dataset a band, and an attribute that is a Python pickle written as text.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use hdf5_reader::{Datatype, Hdf5File};

use crate::import::pickle::{Pickle, Value};

/// What is known of a sample.
pub struct Sample {
    /// The bands in their order, by their names without the date.
    pub bands: Vec<Band>,
    /// Its label.
    pub label: Label,
}

/// One band's pixels.
pub struct Band {
    /// For instance `04 - Red`.
    pub name: String,
    /// Rows of the image.
    pub height: usize,
    /// Columns of the image.
    pub width: usize,
    /// Row-major.
    pub values: Vec<f32>,
    /// Whether the file stores integers.
    pub integers: bool,
}

/// A sample's label.
pub enum Label {
    /// A class.
    Class(i64),
    /// A one or zero a class.
    Several(Vec<i64>),
    /// A class a pixel.
    Map(Band),
}

/// Reads the file at `path`.
pub fn read(path: &Path) -> Result<Sample> {
    let file = Hdf5File::open(path).map_err(|e| anyhow!("is not a whole HDF5 file: {e}"))?;
    let root = file.root_group().map_err(|e| anyhow!("is damaged: {e}"))?;
    let attribute = root.attribute("pickle").map_err(|_| anyhow!("has no attribute pickle"))?;
    let text = attribute.read_string().map_err(|e| anyhow!("attribute pickle: {e}"))?;
    let bytes = python_bytes(&text).context("attribute pickle is no Python byte string")?;
    let pickle = Pickle::read(&bytes).map_err(|e| anyhow!("attribute pickle {e}"))?;
    let order = pickle.entry(pickle.root(), "bands_order").context("the pickle has no bands_order")?;
    let names: Option<Vec<&str>> = pickle.elements(order).iter().map(|id| pickle.text(*id)).collect();
    let names = names.filter(|names| !names.is_empty()).context("the pickle's bands_order is no list of names")?;

    let (mut bands, mut label): (Vec<Band>, _) = (Vec::new(), None);
    for descriptor in names {
        let dataset = file.dataset(descriptor).map_err(|_| anyhow!("has no dataset {descriptor}"))?;
        // Hyperspectral cubes are no bands of a camera.
        if dataset.shape().len() == 3 && dataset.shape()[2] != 1 {
            continue;
        }
        let band = band(&dataset, undated(descriptor)).with_context(|| format!("dataset {descriptor}"))?;
        if band.name == "label" {
            label = Some(Label::Map(band));
        } else {
            let twice = bands.iter().any(|before| before.name == band.name);
            ensure!(!twice, "band {} is there at several dates; series are not read", band.name);
            bands.push(band);
        }
    }
    let label = match label {
        Some(label) => label,
        None => {
            let id = pickle.entry(pickle.root(), "label").context("the pickle has no label")?;
            let numbers = integers(&pickle, id).with_context(|| format!("the label is {}", pickle.describe(id)))?;
            ensure!(!numbers.is_empty(), "the label is an empty list");
            match numbers.as_slice() {
                [class] if !is_list(&pickle, id) => Label::Class(*class),
                _ => Label::Several(numbers),
            }
        }
    };
    ensure!(!bands.is_empty(), "has no band");
    Ok(Sample { bands, label })
}

/// The pixels of a dataset.
fn band(dataset: &hdf5_reader::Dataset, name: &str) -> Result<Band> {
    let shape: Vec<usize> = dataset.shape().iter().map(|d| *d as usize).collect();
    let (height, width) = match shape[..] {
        [height, width] | [height, width, 1] => (height, width),
        _ => bail!("has shape {shape:?}, expected [height, width]"),
    };
    macro_rules! values {
        ($type:ty) => {
            dataset.read_array::<$type>()?.iter().map(|v| *v as f32).collect::<Vec<f32>>()
        };
    }
    let (integers, values) = match dataset.dtype() {
        Datatype::FixedPoint { size: 1, signed: false, .. } => (true, values!(u8)),
        Datatype::FixedPoint { size: 1, signed: true, .. } => (true, values!(i8)),
        Datatype::FixedPoint { size: 2, signed: false, .. } => (true, values!(u16)),
        Datatype::FixedPoint { size: 2, signed: true, .. } => (true, values!(i16)),
        Datatype::FixedPoint { size: 4, signed: false, .. } => (true, values!(u32)),
        Datatype::FixedPoint { size: 4, signed: true, .. } => (true, values!(i32)),
        Datatype::FixedPoint { size: 8, signed: true, .. } => (true, values!(i64)),
        Datatype::FloatingPoint { size: 4, .. } => (false, values!(f32)),
        Datatype::FloatingPoint { size: 8, .. } => (false, values!(f64)),
        other => bail!("has type {other:?}, expected integers or floats"),
    };
    ensure!(values.len() == height * width, "holds {} values, expected {}", values.len(), height * width);
    Ok(Band { name: name.to_owned(), height, width, values, integers })
}

/// A descriptor without the date that may follow its name: `04 - Red_2017-06-13` is `04 - Red`.
fn undated(descriptor: &str) -> &str {
    match descriptor.rsplit_once('_') {
        Some((name, date)) if date.len() >= 8 && date.starts_with(|c: char| c.is_ascii_digit()) => name,
        _ => descriptor,
    }
}

/// The bytes that a Python byte string such as `b'\x80\x04K\x01.'` stands for.
pub(super) fn python_bytes(text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix('b')?;
    let quote = body.chars().next().filter(|c| "'\"".contains(*c))?;
    let body = body[1..].strip_suffix(quote)?;
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'x' => {
                    let digits = [rest.next()?, rest.next()?].map(|d| (d as char).to_digit(16));
                    (digits[0]? * 16 + digits[1]?) as u8
                }
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                same @ (b'\\' | b'\'' | b'"') => same,
                _ => return None,
            },
            byte if byte.is_ascii() => byte,
            _ => return None,
        });
    }
    Some(bytes)
}

fn is_list(pickle: &Pickle, id: u32) -> bool {
    matches!(pickle.get(id), Value::List(_) | Value::Tuple(_))
        || pickle.call(id).is_some_and(|(name, _)| name.ends_with("_reconstruct"))
}

/// The integers of a number, a list, or numpy's number or array.
fn integers(pickle: &Pickle, id: u32) -> Option<Vec<i64>> {
    match pickle.get(id) {
        Value::Int(v) => return Some(vec![*v]),
        Value::Bool(v) => return Some(vec![i64::from(*v)]),
        Value::Float(v) if v.fract() == 0.0 => return Some(vec![*v as i64]),
        Value::List(ids) | Value::Tuple(ids) => {
            // A list in the list would be none of ours, and might hold itself.
            let flat = |id: &&u32| !matches!(pickle.get(**id), Value::List(_) | Value::Tuple(_));
            let each = ids.iter().map(|id| integers(pickle, *Some(id).filter(flat)?).filter(|v| v.len() == 1));
            return Some(each.collect::<Option<Vec<_>>>()?.concat());
        }
        _ => {}
    }
    let (name, arguments) = pickle.call(id)?;
    let (kind, bytes) = if name.ends_with("multiarray.scalar") {
        (*arguments.first()?, *arguments.get(1)?)
    } else if name.ends_with("multiarray._reconstruct") {
        // Version, shape, type, Fortran order, data.
        let state = pickle.elements(pickle.state(id)?);
        (*state.get(2)?, *state.get(4)?)
    } else {
        return None;
    };
    let Value::Bytes(bytes) = pickle.get(bytes) else { return None };
    let (_, arguments) = pickle.call(kind)?;
    let code = pickle.text(*arguments.first()?)?.trim_start_matches(['<', '|', '=']);
    let number = |b: &[u8]| -> Option<i64> {
        let raw = b.iter().rev().fold(0u64, |v, byte| v << 8 | u64::from(*byte));
        let unused = 64 - 8 * b.len() as u32;
        let float = |v: f64| (v.fract() == 0.0).then_some(v as i64);
        match code.as_bytes().first()? {
            b'i' => Some((raw << unused) as i64 >> unused),
            b'u' | b'b' => i64::try_from(raw).ok(),
            b'f' if b.len() == 8 => float(f64::from_bits(raw)),
            b'f' if b.len() == 4 => float(f32::from_bits(raw as u32).into()),
            _ => None,
        }
    };
    let size: usize = code.get(1..)?.parse().ok().filter(|size| matches!(size, 1 | 2 | 4 | 8))?;
    bytes.len().is_multiple_of(size).then(|| bytes.chunks_exact(size).map(number).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_are_pythons() {
        assert_eq!(python_bytes(r"b'\x80\x04a\n\\\'\xff'").unwrap(), b"\x80\x04a\n\\'\xff");
        assert_eq!(python_bytes("b\"it's\"").unwrap(), b"it's");
        for bad in ["", "b", "b'", "'a'", r"b'\x8'", r"b'\q'", "b'é'", r"b'\"] {
            assert_eq!(python_bytes(bad), None, "{bad}");
        }
        assert_eq!(undated("04 - Red_2017-06-13"), "04 - Red");
        assert_eq!(undated("TCI_R"), "TCI_R");
    }
}
