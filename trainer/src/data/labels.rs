//! What is known of tiles: a class, several, a class a pixel, numbers, or a number a pixel.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use nadir_formats::{Values, read_values};
use sha2::{Digest, Sha256};

/// Stands for "no class" in a map of classes.
pub const NO_CLASS: u8 = 255;

/// Labels of tiles. The kind follows from type and shape of the array.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// Integers `[tiles]`: a class a tile, as an index into `names`.
    Classes {
        /// The classes.
        names: Vec<String>,
        /// One a tile.
        of: Vec<usize>,
    },
    /// Zeros and ones `[tiles, classes]`: any number of classes a tile.
    Multi {
        /// The classes.
        names: Vec<String>,
        /// Row-major.
        of: Vec<bool>,
    },
    /// Integers `[tiles, side, side]`: a class a pixel, or [`NO_CLASS`].
    Map {
        /// The classes.
        names: Vec<String>,
        /// Row-major.
        of: Vec<u8>,
    },
    /// Floats `[tiles]` or `[tiles, numbers]`; NaN is missing.
    Numbers {
        /// The columns.
        names: Vec<String>,
        /// Row-major.
        of: Vec<f32>,
    },
    /// Floats `[tiles, side, side]`: a number a pixel; NaN is missing.
    NumberMap {
        /// Row-major.
        of: Vec<f32>,
    },
}

impl Labels {
    /// Reads the `.npy` of labels of `tiles` tiles of `side` by `side` pixels.
    ///
    /// `names` are the classes (or columns) in order. Without them the classes of tiles are the distinct integers, and those
    /// of pixels 0 to the greatest. `ignore` is the integer in a map of classes that means "no class".
    ///
    /// # Errors
    /// If the file cannot be read, has another shape or type, or holds an infinite number or a class that is out of range.
    pub fn read(path: &Path, names: Option<&[String]>, ignore: Option<i64>, tiles: usize, side: usize) -> Result<Self> {
        let (shape, values) = read_values(path)?;
        let shown = path.display();
        let rows = shape.first().copied().unwrap_or(0);
        ensure!(rows == tiles, "{shown}: has {rows} labels for {tiles} tiles");
        if let &[_, height, width] = &shape[..] {
            ensure!(
                (height, width) == (side, side),
                "{shown}: maps of {height} x {width} pixels, the tiles have {side} x {side}"
            );
        }
        ensure!(
            shape.len() <= 3,
            "{shown}: has shape {shape:?}, expected [tiles], [tiles, classes] or [tiles, side, side]"
        );
        ensure!(!shape.contains(&0), "{shown}: has shape {shape:?}, which holds nothing");
        let given = |n: usize, what: &str| -> Result<Vec<String>> {
            match names {
                Some(names) if names.len() == n => Ok(names.to_vec()),
                Some(names) => bail!("{shown}: has {n} {what}, {} are named", names.len()),
                None => Ok((0..n).map(|i| i.to_string()).collect()),
            }
        };
        match (values, shape.len()) {
            (Values::Integers(raw), 1) => Self::classes(&raw, names, &shown.to_string()),
            (Values::Integers(raw), 2) => {
                if let Some(at) = raw.iter().position(|v| !(0..=1).contains(v)) {
                    bail!("{shown}: tile {} has {}, expected 0 or 1 for each class", at / shape[1], raw[at]);
                }
                Ok(Self::Multi { names: given(shape[1], "classes")?, of: raw.iter().map(|v| *v == 1).collect() })
            }
            (Values::Integers(raw), _) => Self::map(&raw, names, ignore, side, &shown.to_string()),
            (Values::Floats(of), dimensions) => {
                let each = of.len() / rows.max(1);
                if let Some(at) = of.iter().position(|v| v.is_infinite()) {
                    bail!("{shown}: tile {} has {}; missing values are NaN", at / each, of[at]);
                }
                ensure!(of.iter().any(|v| !v.is_nan()), "{shown}: all values are missing");
                Ok(match dimensions {
                    3 => Self::NumberMap { of },
                    _ => Self::Numbers { names: given(each, "columns")?, of },
                })
            }
        }
    }

    /// Classes from integers; `shown` is what errors call them.
    pub(crate) fn classes(raw: &[i64], names: Option<&[String]>, shown: &str) -> Result<Self> {
        let mut distinct = raw.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(distinct.len() > 1, "{shown}: all labels are {}", distinct.first().unwrap_or(&0));
        // Names count from 0, whether or not a tile of each class is there.
        if let Some(names) = names
            && let Some(of) = raw.iter().map(|v| usize::try_from(*v).ok()).collect::<Option<Vec<_>>>()
            && of.iter().all(|class| *class < names.len())
        {
            return Ok(Self::Classes { names: names.to_vec(), of });
        }
        let names = match names {
            Some(names) => {
                let (n, k) = (names.len(), distinct.len());
                ensure!(n == k, "{shown}: {n} names given for {k} classes ({} to {})", distinct[0], distinct[k - 1]);
                names.to_vec()
            }
            None => distinct.iter().map(i64::to_string).collect(),
        };
        Ok(Self::Classes { names, of: raw.iter().map(|l| distinct.binary_search(l).unwrap_or(0)).collect() })
    }

    /// A map of classes from integers.
    fn map(raw: &[i64], names: Option<&[String]>, ignore: Option<i64>, side: usize, shown: &str) -> Result<Self> {
        let known = || raw.iter().filter(|v| Some(**v) != ignore);
        let Some(greatest) = known().max() else { bail!("{shown}: no pixel has a class") };
        let classes = names.map_or(greatest.saturating_add(1), |names| names.len() as i64);
        ensure!(
            (2..=i64::from(NO_CLASS)).contains(&classes),
            "{shown}: has {classes} classes, expected 2 to {NO_CLASS}"
        );
        let class = |v: &i64| match Some(*v) == ignore {
            true => Some(NO_CLASS),
            false => (0..classes).contains(v).then_some(*v as u8),
        };
        let of: Vec<u8> = raw.iter().map_while(class).collect();
        if of.len() < raw.len() {
            let (tile, value) = (of.len() / (side * side), raw[of.len()]);
            bail!(
                "{shown}: tile {tile} has a pixel of class {value}, expected 0 to {}; see --ignore-label",
                classes - 1
            );
        }
        let names = names.map_or_else(|| (0..classes).map(|i| i.to_string()).collect(), <[String]>::to_vec);
        Ok(Self::Map { names, of })
    }

    /// 16 hexadecimal digits that name all values and classes.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        self.names().iter().for_each(|name| hash.update(format!("{name}\n")));
        match self {
            Self::Classes { of, .. } => of.iter().for_each(|v| hash.update((*v as u64).to_le_bytes())),
            Self::Multi { of, .. } => of.iter().for_each(|v| hash.update([u8::from(*v)])),
            Self::Map { of, .. } => hash.update(of),
            Self::Numbers { of, .. } | Self::NumberMap { of } => {
                of.iter().for_each(|v| hash.update(v.to_bits().to_le_bytes()));
            }
        }
        super::short(hash)
    }

    /// Number of outputs of a head that predicts these labels.
    pub fn outputs(&self) -> usize {
        self.names().len().max(1)
    }

    /// The classes or columns; none for numbers of pixels.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Classes { names, .. }
            | Self::Multi { names, .. }
            | Self::Map { names, .. }
            | Self::Numbers { names, .. } => names,
            Self::NumberMap { .. } => &[],
        }
    }

    /// What they are, in a few words.
    pub fn described(&self) -> String {
        let n = self.outputs();
        match self {
            Self::Classes { .. } => format!("one of {n} classes a tile"),
            Self::Multi { .. } => format!("any of {n} classes a tile"),
            Self::Map { .. } => format!("one of {n} classes a pixel"),
            Self::Numbers { .. } => format!("{n} numbers a tile"),
            Self::NumberMap { .. } => "a number a pixel".into(),
        }
    }

    /// The values of tile `row` among `all` of `tiles` tiles.
    pub(crate) fn row<T>(all: &[T], tiles: usize, row: usize) -> &[T] {
        let each = all.len() / tiles;
        &all[row * each..][..each]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nadir_formats::write_npy;

    fn read<T: npyz::AutoSerialize + npyz::Serialize + Copy>(shape: &[u64], values: &[T]) -> Result<Labels> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("labels.npy");
        write_npy(&path, shape, values)?;
        Labels::read(&path, None, Some(255), shape[0] as usize, 2)
    }

    #[test]
    fn the_kind_follows_from_type_and_shape() {
        let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let (six, two) = (names(&["3", "6"]), names(&["0", "1"]));
        assert_eq!(read(&[3], &[6i64, 3, 6]).unwrap(), Labels::Classes { names: six, of: vec![1, 0, 1] });
        assert_eq!(
            read(&[2, 2], &[1u8, 0, 1, 1]).unwrap(),
            Labels::Multi { names: two.clone(), of: vec![true, false, true, true] }
        );
        assert_eq!(
            read(&[1, 2, 2], &[0u8, 1, 255, 1]).unwrap(),
            Labels::Map { names: two, of: vec![0, 1, NO_CLASS, 1] }
        );
        assert_eq!(read(&[2], &[0.5f32, 2.0]).unwrap().described(), "1 numbers a tile");
        assert!(matches!(read(&[1, 2, 2], &[0.5f32; 4]).unwrap(), Labels::NumberMap { .. }));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |labels: Result<Labels>| labels.unwrap_err().to_string();
        assert!(error(read(&[2, 2], &[1u8, 0, 2, 1])).contains("tile 1 has 2, expected 0 or 1"));
        assert!(error(read(&[2], &[1u8, 1])).contains("all labels are 1"));
        assert!(error(read(&[1, 2, 2], &[0i16, 1, -3, 1])).contains("a pixel of class -3, expected 0 to 1"));
        assert!(error(read(&[1, 3, 3], &[0u8; 9])).contains("3 x 3 pixels, the tiles have 2 x 2"));
        assert!(error(read(&[2], &[0.5f32, f32::INFINITY])).contains("tile 1 has inf"));
        assert!(error(read(&[1], &[f32::NAN])).contains("all values are missing"));
        assert!(error(read(&[1, 2, 2, 2], &[0u8; 8])).contains("[1, 2, 2, 2]"));
        assert!(error(read(&[1, 2, 2], &[255u8; 4])).contains("no pixel has a class"));
    }
}
