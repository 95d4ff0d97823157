//! Tiles as arrays: `[tiles, bands, height, width]`, values as the sensor stores them.

use std::path::Path;

use nadir::Tile;
use npyz::TypeChar;

use crate::arrays::{open, scalar, write_npy};
use crate::npz::read_bytes;
use crate::{Error, Result, invalid, io};

/// Pixel values in the type in which the sensor stores them.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// For instance the grey levels of a JPEG.
    U8(Vec<u8>),
    /// For instance reflectance x 10000.
    U16(Vec<u16>),
    /// Anything else. NaN and infinities count as no data.
    F32(Vec<f32>),
}

/// An array of tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiles {
    /// `[tiles, bands, height, width]`.
    pub shape: [usize; 4],
    /// All values, row-major.
    pub pixels: Pixels,
}

impl Tiles {
    /// Reads a `.npy` of type u8, u16 or f32 and shape `[tiles, bands, height, width]`, none of which is 0.
    ///
    /// # Errors
    /// If the file cannot be read, or holds another type or shape.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path)?;
        let npy = open(path, &bytes)?;
        let &[n, c, h, w] = npy.shape() else {
            return Err(invalid(path, format!("has shape {:?}, expected [tiles, bands, height, width]", npy.shape())));
        };
        let shape = [n, c, h, w].map(|d| d as usize);
        let pixels = match scalar(&npy) {
            Some((TypeChar::Uint, 1)) => Pixels::U8(npy.into_vec().map_err(io(path))?),
            Some((TypeChar::Uint, 2)) => Pixels::U16(npy.into_vec().map_err(io(path))?),
            Some((TypeChar::Float, 4)) => Pixels::F32(npy.into_vec().map_err(io(path))?),
            _ => return Err(invalid(path, format!("has type {}, expected u8, u16 or f32", npy.dtype().descr()))),
        };
        if shape.contains(&0) {
            return Err(invalid(path, format!("has shape {shape:?}: it holds no pixel")));
        }
        Ok(Self { shape, pixels })
    }

    /// Writes the array as `.npy`, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let shape = self.shape.map(|d| d as u64);
        match &self.pixels {
            Pixels::U8(v) => write_npy(path, &shape, v),
            Pixels::U16(v) => write_npy(path, &shape, v),
            Pixels::F32(v) => write_npy(path, &shape, v),
        }
    }

    /// Number of tiles.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// Whether there is no tile.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values in one tile.
    pub fn tile_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Tile `index`.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile(&self, index: usize) -> Tile<'_> {
        let range = index * self.tile_len()..(index + 1) * self.tile_len();
        match &self.pixels {
            Pixels::U8(v) => Tile::U8(&v[range]),
            Pixels::U16(v) => Tile::U16(&v[range]),
            Pixels::F32(v) => Tile::F32(&v[range]),
        }
    }

    /// The tiles at `indices`, in that order.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn pick(&self, indices: &[usize]) -> Self {
        fn pick<T: Copy>(values: &[T], len: usize, indices: &[usize]) -> Vec<T> {
            indices.iter().flat_map(|&i| &values[i * len..(i + 1) * len]).copied().collect()
        }
        let len = self.tile_len();
        let pixels = match &self.pixels {
            Pixels::U8(v) => Pixels::U8(pick(v, len, indices)),
            Pixels::U16(v) => Pixels::U16(pick(v, len, indices)),
            Pixels::F32(v) => Pixels::F32(pick(v, len, indices)),
        };
        let [_, c, h, w] = self.shape;
        Self { shape: [indices.len(), c, h, w], pixels }
    }

    /// Puts the bands in the order `wanted`, dropping others; `present` names the bands of this array in their order.
    ///
    /// # Errors
    /// If `present` does not have one name for each band, or one twice, or lacks one of `wanted`.
    pub fn select_bands(self, present: &[&str], wanted: &[&str]) -> Result<Self> {
        let [n, c, h, w] = self.shape;
        if present.len() != c {
            return Err(Error::Bands(format!("{} names given for {c} bands", present.len())));
        }
        let names: Vec<_> = present.iter().map(|b| canonical_band(b)).collect();
        if let Some(twice) = (1..c).find(|&i| names[..i].contains(&names[i])) {
            return Err(Error::Bands(format!("{} is named twice", names[twice])));
        }
        let order = wanted
            .iter()
            .map(|b| {
                let name = canonical_band(b);
                names
                    .iter()
                    .position(|have| *have == name)
                    .ok_or_else(|| Error::Bands(format!("the model needs {name}; the tiles have {}", names.join(","))))
            })
            .collect::<Result<Vec<_>>>()?;
        if order.iter().copied().eq(0..c) {
            return Ok(self);
        }
        fn reorder<T: Copy>(values: &[T], n: usize, c: usize, plane: usize, order: &[usize]) -> Vec<T> {
            (0..n)
                .flat_map(|tile| order.iter().map(move |band| (tile * c + band) * plane))
                .flat_map(|start| &values[start..start + plane])
                .copied()
                .collect()
        }
        let plane = h * w;
        let pixels = match &self.pixels {
            Pixels::U8(v) => Pixels::U8(reorder(v, n, c, plane, &order)),
            Pixels::U16(v) => Pixels::U16(reorder(v, n, c, plane, &order)),
            Pixels::F32(v) => Pixels::F32(reorder(v, n, c, plane, &order)),
        };
        Ok(Self { shape: [n, order.len(), h, w], pixels })
    }
}

/// Sentinel-2 band names in one spelling: `b02`, `B02` and `B2` are all `B2`, `b8a` is `B8A`; of other names only the spaces around
/// them go. What a model may hold is laid down by [`nadir::model::is_canonical_band`].
pub fn canonical_band(name: &str) -> String {
    let name = name.trim();
    let digit = |at: usize| name.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    if !(name.starts_with(['B', 'b']) && digit(1)) {
        return name.to_owned();
    }
    // A zero stays where no digit follows: some number their bands from B0.
    let zeros = (1..name.len()).take_while(|&at| name.as_bytes()[at] == b'0' && digit(at + 1)).count();
    format!("B{}", name[1 + zeros..].to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles() -> Tiles {
        Tiles { shape: [2, 3, 1, 2], pixels: Pixels::U16((0..12).collect()) }
    }

    #[test]
    fn tiles_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npy");
        tiles().write(&path).unwrap();
        assert_eq!(Tiles::read(&path).unwrap(), tiles());
    }

    #[test]
    fn bands_go_by_name() {
        let picked = tiles().select_bands(&["B02", "B03", "B8A"], &["B8A", "B2"]).unwrap();
        assert_eq!(picked, Tiles { shape: [2, 2, 1, 2], pixels: Pixels::U16(vec![4, 5, 0, 1, 10, 11, 6, 7]) });
        let error = |present: &[&str], wanted: &[&str]| tiles().select_bands(present, wanted).unwrap_err().to_string();
        assert!(error(&["B2", "B3", "B8"], &["B4"]).contains("needs B4"));
        assert!(error(&["B2", "B3"], &["B2"]).contains("2 names given for 3 bands"));
        assert!(error(&["B2", "B02", "B8"], &["B2"]).contains("twice"));
    }

    #[test]
    fn band_names_get_one_spelling() {
        for (name, expected) in [
            ("b02", "B2"),
            (" B04 ", "B4"),
            ("B8a", "B8A"),
            ("B10", "B10"),
            ("B0", "B0"),
            ("b00", "B0"),
            ("nir", "nir"),
        ] {
            assert_eq!(canonical_band(name), expected);
            assert!(nadir::model::is_canonical_band(&canonical_band(name)));
        }
    }

    #[test]
    fn tiles_are_picked() {
        assert_eq!(tiles().pick(&[1]).pixels, Pixels::U16((6..12).collect()));
        assert_eq!(tiles().tile(1).value(2), Some(8.0));
    }

    #[test]
    fn wrong_shapes_and_types_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.npy");
        write_npy(&path, &[4], &[1i64, 2, 3, 4]).unwrap();
        assert!(Tiles::read(&path).unwrap_err().to_string().contains("[tiles, bands, height, width]"));
        write_npy(&path, &[1, 1, 2, 2], &[1i64, 2, 3, 4]).unwrap();
        assert!(Tiles::read(&path).unwrap_err().to_string().contains("expected u8, u16 or f32"));
        write_npy::<u8>(&path, &[0, 1, 2, 2], &[]).unwrap();
        assert!(Tiles::read(&path).unwrap_err().to_string().contains("no pixel"));
    }
}
