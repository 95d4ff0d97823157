//! A tile as the sensor gives it.

/// Pixels of one tile, `[bands, height, width]`, row-major, in the order of the model's bands.
///
/// Values are what the sensor stores; the model file holds the normalisation. A value that is not finite, or equals its
/// band's no-data value, enters the encoder as the band's mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tile<'a> {
    /// For instance the grey levels of a JPEG.
    U8(&'a [u8]),
    /// For instance reflectance x 10000.
    U16(&'a [u16]),
    /// Anything else.
    F32(&'a [f32]),
}

impl Tile<'_> {
    /// Value `index` as f32 (exact), or `None` past the end.
    pub fn value(&self, index: usize) -> Option<f32> {
        match self {
            Tile::U8(v) => v.get(index).map(|&v| f32::from(v)),
            Tile::U16(v) => v.get(index).map(|&v| f32::from(v)),
            Tile::F32(v) => v.get(index).copied(),
        }
    }

    /// Values `start` and following as f32 (exact) into `values`; those past the end are left as they are.
    #[cfg(feature = "float")]
    pub(crate) fn read(&self, start: usize, values: &mut [f32]) {
        fn copy<T: Copy + Into<f32>>(from: &[T], start: usize, values: &mut [f32]) {
            for (value, &v) in values.iter_mut().zip(from.get(start..).unwrap_or(&[])) {
                *value = v.into();
            }
        }
        match self {
            Tile::U8(v) => copy(v, start, values),
            Tile::U16(v) => copy(v, start, values),
            Tile::F32(v) => copy(v, start, values),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Tile::U8(v) => v.len(),
            Tile::U16(v) => v.len(),
            Tile::F32(v) => v.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one stored value: 1, 2 or 4.
    pub fn value_bytes(&self) -> usize {
        match self {
            Tile::U8(_) => 1,
            Tile::U16(_) => 2,
            Tile::F32(_) => 4,
        }
    }
}
