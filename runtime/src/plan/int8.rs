//! What lies where in the arena of an int8 model, and how much of it is computed twice.
//!
//! Global Response Normalization needs the whole hidden map before any of it can be projected back. A stage in one pass keeps
//! that map (one byte a value); a stage in two passes computes it twice, strip by strip, and keeps only the four rows of the
//! residual map that its depthwise convolution still needs after they were overwritten. The embedding is the same to the bit.
//!
//! The residual map lies at the beginning; behind it one region after the other, each rounded up to 16 bytes. `g` is the side of the
//! map, `d` its stored channels, `s` the pixels of a strip, `b` bands, `t` the tile's side, `w` the side after the initial
//! convolution, `k` the stem's stride, and a prime marks what comes before a downsampling.
//!
//! | region | stem | downsampling | block |
//! | --- | --- | --- | --- |
//! | map, i16 | `g g d` | `g' g' d'`, then `g g d` in place | `g g d`, in place |
//! | rows, i16 | `(k + 2) ((t + 2 padding) b + 4)` | | two passes: `4 g d` |
//! | values, i16 | `k w d` | only if `d > 4 d'`: `g g d` | `s d` |
//! | bytes, i8 | | `2 g d' + s 4d'` | `s d` |
//! | hidden, i8 | | | one pass `g g 4d`, two passes `s 4d` |
//! | bias, i32 | | `d`, whole panels | `4d + d`, whole panels |
//! | squares, u64 | | | `4d` |
//! | multipliers, i16 | | | `4d` |
//!
//! The head needs `d` of i32. A patchify stem has rows `t b + 4`, values `g p`, with the `p` inputs of a patch.
//!
//! A raised layer needs no more: the lower halves of its inputs stand in `values`, of as many pixels at a time as fit, once the depthwise
//! convolution's results there are used up.

use crate::encoder::ARENA_ALIGNMENT;
use crate::kernels::int8::{GROUP, MAX_STRIP, RING_ROWS};
use crate::model::int8_layout::{panels, patchify_inputs, stored};
use crate::model::{Architecture, STAGES};

/// How a stage computes its hidden maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Once, and keeps them.
    One,
    /// Twice, and keeps a strip.
    Two,
}

/// Passes of each stage.
pub type StagePasses = [Passes; STAGES];

/// The most pixels of a strip of a stage in two passes.
const SHORT_STRIP: usize = 32;

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// How a map is cut into strips: whole rows, or parts of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strips {
    /// Side of the map.
    pub grid: usize,
    /// Rows of a strip; the last may have fewer.
    pub rows: usize,
    /// Columns of a strip; the last of a row may have fewer.
    pub columns: usize,
}

impl Strips {
    /// Strips of at most `limit` pixels.
    pub const fn new(grid: usize, limit: usize) -> Self {
        if grid > limit {
            Self { grid, rows: 1, columns: grid.div_ceil(larger(grid.div_ceil(limit), 1)) }
        } else {
            let rows = limit / larger(grid, 1);
            Self { grid, rows: if rows > grid { grid } else { rows }, columns: grid }
        }
    }

    /// Those of a stage's blocks.
    pub const fn of(grid: usize, passes: Passes) -> Self {
        match passes {
            Passes::One => Self::new(grid, MAX_STRIP),
            // A ring of rows can be kept only row by row.
            Passes::Two => Self { rows: 1, ..Self::new(grid, SHORT_STRIP) },
        }
    }

    /// The most pixels of a strip.
    pub const fn pixels(&self) -> usize {
        self.rows * self.columns
    }

    /// Number of strips.
    pub const fn count(&self) -> usize {
        self.grid.div_ceil(larger(self.rows, 1)) * self.grid.div_ceil(larger(self.columns, 1))
    }

    /// Rows and columns of strip `index`.
    pub fn area(&self, index: usize) -> crate::kernels::int8::Area {
        let across = self.grid.div_ceil(self.columns.max(1)).max(1);
        let (y, x) = (index / across * self.rows, index % across * self.columns);
        crate::kernels::int8::Area { y: y..(y + self.rows).min(self.grid), x: x..(x + self.columns).min(self.grid) }
    }
}

/// Elements of the regions of one step; the map comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Int8Regions {
    /// i16.
    pub map: usize,
    /// i16.
    pub rows: usize,
    /// i16.
    pub values: usize,
    /// i8.
    pub bytes: usize,
    /// i8.
    pub hidden: usize,
    /// i32.
    pub bias: usize,
    /// u64.
    pub squares: usize,
    /// i16.
    pub multipliers: usize,
}

const NOTHING: Int8Regions =
    Int8Regions { map: 0, rows: 0, values: 0, bytes: 0, hidden: 0, bias: 0, squares: 0, multipliers: 0 };

impl Int8Regions {
    /// Input, initial convolution and stem.
    pub const fn stem(arch: &Architecture, bands: usize) -> Self {
        let (grid, d, k) = (arch.grids()[0], stored(arch.dim(0)), arch.stem_stride());
        let map = grid * grid * d;
        if arch.is_patchify() {
            return Self { map, rows: input_row(arch, bands), values: grid * patchify_inputs(arch, bands), ..NOTHING };
        }
        Self { map, rows: (k + 2) * input_row(arch, bands), values: k * arch.initial_grid() * d, ..NOTHING }
    }

    /// The downsampling before `stage`, 1 to 3.
    pub const fn downsample(arch: &Architecture, stage: usize) -> Self {
        let (before, d) = (stored(arch.dim(stage - 1)), stored(arch.dim(stage)));
        let (from, grid) = (arch.grid(stage - 1), arch.grid(stage));
        Self {
            map: larger(from * from * before, grid * grid * d),
            values: if Self::in_place(arch, stage) { 0 } else { grid * grid * d },
            bytes: 2 * grid * before + downsample_strips(grid).pixels() * 4 * before,
            bias: panels(d),
            ..NOTHING
        }
    }

    /// Whether the downsampling before `stage` never writes where it still has to read: a row of the result is not longer than
    /// the two rows that it is made of.
    pub const fn in_place(arch: &Architecture, stage: usize) -> bool {
        let (before, d) = (stored(arch.dim(stage - 1)), stored(arch.dim(stage)));
        arch.grid(stage) * d <= 2 * arch.grid(stage - 1) * before
    }

    /// A block of `stage`.
    pub const fn block(arch: &Architecture, stage: usize, passes: Passes) -> Self {
        let (grid, d) = (arch.grid(stage), stored(arch.dim(stage)));
        let pixels = Strips::of(grid, passes).pixels();
        Self {
            map: grid * grid * d,
            rows: match passes {
                Passes::One => 0,
                Passes::Two => RING_ROWS * grid * d,
            },
            values: pixels * d,
            bytes: pixels * d,
            hidden: 4
                * d
                * match passes {
                    Passes::One => grid * grid,
                    Passes::Two => pixels,
                },
            bias: 4 * d + panels(d),
            squares: 4 * d,
            multipliers: 4 * d,
        }
    }

    /// Mean and LayerNorm.
    pub const fn head(arch: &Architecture) -> Self {
        let (grid, d) = (arch.grids()[STAGES - 1], stored(arch.dim(STAGES - 1)));
        Self { map: grid * grid * d, bias: d, ..NOTHING }
    }

    /// Bytes of all regions.
    pub const fn total(&self) -> usize {
        let bytes = [
            2 * self.map,
            2 * self.rows,
            2 * self.values,
            self.bytes,
            self.hidden,
            4 * self.bias,
            8 * self.squares,
            2 * self.multipliers,
        ];
        let (mut sum, mut i) = (0, 0);
        while i < bytes.len() {
            sum += bytes[i].next_multiple_of(ARENA_ALIGNMENT);
            i += 1;
        }
        sum
    }
}

/// Values of one input row: the tile's with its padding, and what the last pixel's weights of zero look at.
pub const fn input_row(arch: &Architecture, bands: usize) -> usize {
    (arch.tile_size as usize + 2 * arch.initial_padding()) * bands + GROUP
}

/// Strips of a downsampling's result: whole rows, because it happens in place.
pub const fn downsample_strips(grid: usize) -> Strips {
    let strips = Strips::new(grid, SHORT_STRIP);
    Strips { columns: grid, ..strips }
}

/// Bytes of the arena of an int8 model. A constant if the architecture is, so that a program can reserve the arena when it is built.
pub const fn int8_arena_bytes(arch: &Architecture, bands: usize, passes: StagePasses) -> usize {
    let mut bytes = larger(Int8Regions::stem(arch, bands).total(), Int8Regions::head(arch).total());
    let mut stage = 0;
    while stage < STAGES {
        bytes = larger(bytes, Int8Regions::block(arch, stage, passes[stage]).total());
        if stage > 0 {
            bytes = larger(bytes, Int8Regions::downsample(arch, stage).total());
        }
        stage += 1;
    }
    bytes
}

/// Multiply-adds that a stage in two passes does once more.
pub const fn recomputed(arch: &Architecture, stage: usize) -> u64 {
    let (grid, d) = (arch.grid(stage) as u64, stored(arch.dim(stage)) as u64);
    arch.depth(stage) as u64 * grid * grid * d * (49 + 4 * d)
}

/// The passes that fit `budget` bytes with the fewest multiply-adds, or `None` if nothing fits.
pub const fn int8_passes(arch: &Architecture, bands: usize, budget: usize) -> Option<StagePasses> {
    let (mut best, mut least, mut choice) = (None, u64::MAX, 0u32);
    while choice < 1 << STAGES {
        let (mut passes, mut extra, mut stage) = ([Passes::One; STAGES], 0, 0);
        while stage < STAGES {
            if choice >> stage & 1 == 1 {
                passes[stage] = Passes::Two;
                extra += recomputed(arch, stage);
            }
            stage += 1;
        }
        if extra < least && int8_arena_bytes(arch, bands, passes) <= budget {
            (best, least) = (Some(passes), extra);
        }
        choice += 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MAX_BANDS, MAX_CHANNELS, MAX_TILE_SIZE, StemPadding};
    use Passes::{One, Two};

    #[test]
    fn strips_cover_the_map_once() {
        // Miri has time for a few sides only.
        for grid in (1..=256).step_by(if cfg!(miri) { 51 } else { 1 }) {
            for strips in [Strips::of(grid, One), Strips::of(grid, Two), downsample_strips(grid)] {
                let mut next = 0;
                for index in 0..strips.count() {
                    let area = strips.area(index);
                    assert_eq!(area.y.start * grid + area.x.start, next);
                    assert!(area.x.len() * area.y.len() <= strips.pixels());
                    next += area.x.len() * area.y.len();
                }
                assert_eq!(next, grid * grid);
            }
            assert!(Strips::of(grid, One).pixels() <= MAX_STRIP && Strips::of(grid, Two).pixels() <= SHORT_STRIP);
        }
    }

    #[test]
    fn the_atto_fits_a_quarter_of_a_megabyte() {
        let mut atto = Architecture::named("atto", 56, 8).unwrap();
        assert!(int8_arena_bytes(&atto, 12, [Two, Two, One, One]) <= 280_000);
        assert_eq!(int8_passes(&atto, 12, 280_000), Some([Two, Two, One, One]));
        assert_eq!(int8_passes(&atto, 12, 1 << 20), Some([One; 4]));
        assert_eq!(int8_passes(&atto, 12, 200_000), None);
        atto.stem_padding = StemPadding::None;
        assert!(int8_arena_bytes(&atto, 12, [Two, Two, One, One]) <= 262_144);
    }

    #[test]
    fn the_size_is_a_constant() {
        const YOCTO: Architecture = Architecture {
            tile_size: 32,
            patch_size: 16,
            stem_padding: StemPadding::Same,
            depths: [1, 1, 3, 1],
            dims: [16, 32, 64, 128],
            grn_eps: 1e-6,
            ln_eps: 1e-6,
        };
        static ARENA: [u8; int8_arena_bytes(&YOCTO, 3, [One; 4])] = [0; int8_arena_bytes(&YOCTO, 3, [One; 4])];
        assert!(ARENA.len() > 16 * 16 * 16 * 6);
    }

    /// On a 32-bit processor no size may wrap around.
    #[test]
    fn the_largest_arena_fits_32_bits() {
        let named = Architecture::named("atto", MAX_TILE_SIZE as u16, 8).unwrap();
        let largest = Architecture { dims: [MAX_CHANNELS as u16; STAGES], ..named };
        largest.validate().unwrap();
        let bytes = int8_arena_bytes(&largest, MAX_BANDS, [One; 4]);
        // Map (i16) and hidden map (i8, 4 times as wide) of 256 x 256 pixels, and less than two mebibytes besides.
        let maps = 256 * 256 * 2816 * 6;
        assert!(bytes > maps && bytes < maps + (2 << 20) && bytes <= i32::MAX as usize, "{bytes}");
    }
}
