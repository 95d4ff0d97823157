//! Large tiles cut into small ones.

use anyhow::{Result, ensure};
use nadir_formats::{Pixels, Tiles};

use super::Dataset;
use crate::data::folder::Stored;

impl Dataset {
    /// The same with every tile cut into whole squares of `side` pixels, row by row; what is left at the right and at the bottom
    /// is dropped. Each square has its tile's split, and its label or the part of it that lies there.
    ///
    /// # Errors
    /// If the tiles are smaller than `side`.
    pub fn cut(self, side: usize) -> Result<Self> {
        let [n, bands, whole, _] = self.tiles.shape;
        ensure!((1..=whole).contains(&side), "--cut {side}: the tiles have {whole} pixels a side");
        let each = whole / side;
        let shape = [n * each * each, bands, side, side];
        let pixels = match &self.tiles.pixels {
            Pixels::U8(v) => Pixels::U8(squares(v, bands, whole, side)),
            Pixels::U16(v) => Pixels::U16(squares(v, bands, whole, side)),
            Pixels::F32(v) => Pixels::F32(squares(v, bands, whole, side)),
        };
        fn repeat<T: Copy>(values: &[T], length: usize, times: usize) -> Vec<T> {
            values.chunks_exact(length).flat_map(|row| row.repeat(times)).collect()
        }
        let labels = match self.labels {
            Stored::Classes(of) => Stored::Classes(repeat(&of, 1, each * each)),
            Stored::Multi(of, classes) => Stored::Multi(repeat(&of, classes, each * each), classes),
            Stored::Map(of) => Stored::Map(squares(&of, 1, whole, side)),
        };
        let split = repeat(&self.split, 1, each * each);
        Ok(Self { about: self.about, tiles: Tiles { shape, pixels }, labels, split })
    }
}

/// The squares of every tile `[bands, whole, whole]`, one tile after the other.
fn squares<T: Copy>(values: &[T], bands: usize, whole: usize, side: usize) -> Vec<T> {
    let each = whole / side;
    let mut out = Vec::with_capacity(values.len());
    for tile in values.chunks_exact(bands * whole * whole) {
        for square in 0..each * each {
            let (top, left) = (square / each * side, square % each * side);
            for plane in tile.chunks_exact(whole * whole) {
                for row in top..top + side {
                    out.extend_from_slice(&plane[row * whole + left..][..side]);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_keep_their_place() {
        // Two bands of 3 x 3, cut to 2: one square a tile; cut to 1: nine.
        let tile: Vec<u8> = (0..18).collect();
        assert_eq!(squares(&tile, 2, 3, 2), [0, 1, 3, 4, 9, 10, 12, 13]);
        assert_eq!(squares(&tile, 2, 3, 1)[..4], [0, 9, 1, 10]);
    }
}
