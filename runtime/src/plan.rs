//! How many bytes of arena a model needs, and where in the arena what lies.
//!
//! ## f32 and f16 models
//!
//! The arena is used by one part of the encoder at a time (stem, downsampling, block); its size is the largest part's. In a
//! part, regions follow each other in this order, each rounded up to 16 bytes; sizes are in f32 values. `g` side of the map,
//! `d` channels, `b` bands, `t` tile side with the padding of the initial convolution, `k` the stem's stride, `w` the side
//! after the initial convolution, `s` rows of a strip (an even number that holds 54 pixels or more; the last may be
//! shorter); values before a downsampling are marked with a prime. `[x]` is `x` rounded up to whole panels of 16 channels,
//! and `n` the panels of outputs that a kernel takes at once: 1 if there is one, 2 if their number is even, else 3.
//!
//! | region | stem | downsampling | block |
//! | --- | --- | --- | --- |
//! | map | `g g [d]` (result) | `g' g' [d']` (input) | `g g [d]` (in place) |
//! | hidden | | `g g [d]` (result, then copied onto map) | `g g [4d]` |
//! | strip | `k w [d]` | `s g 4 [d']` | `s g [d]` |
//! | aside | `(k + 2) t [b]` | | `[4d]` |
//! | wide, only f16 | `16 n min(9 b, 256)` | `16 n min(4 d', 256)` | `16 n min(4 d, 256)` and the like |
//!
//! A patchify stem has a strip of `k k g [b]`, aside `t [b]`, and wide `16 n min(k k b, 256)`.
//!
//! The head writes into the caller's embedding and needs nothing but the map. All kernels read fastest if the arena begins
//! at a multiple of 64 bytes.
//!
//! ## int8 models
//!
//! [`int8`] has them. The largest architecture that the limits allow needs 1.1e9 bytes, so that its sizes fit 32 bits; those of the float
//! layouts need not, and saturate.

pub mod cost;
pub mod int8;
pub mod regions;

use crate::kernels::float::{CHUNK, group};
use crate::model::float_layout::PANEL;
use crate::model::{Architecture, STAGES};

/// Pixels that a strip should have: enough that the weights, which are read once a strip, cost little beside using them; few
/// enough that a strip of every layer stays in the second cache.
const STRIP_PIXELS: usize = 54;

/// Lengths of the regions of a part of the encoder, in f32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatRegions {
    /// The map that stays.
    pub map: usize,
    /// The block's hidden map, or the result of a downsampling.
    pub hidden: usize,
    /// A few rows on which work is done.
    pub strip: usize,
    /// What does not fit elsewhere: rows of the tile, channel sums.
    pub aside: usize,
    /// Widened weights of one job of a kernel.
    pub wide: usize,
}

/// The product, or `usize::MAX`: such an arena cannot be had, which [`crate::encoder::Encoder::embed`] reports.
const fn product(a: usize, b: usize, c: usize) -> usize {
    a.saturating_mul(b).saturating_mul(c)
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// Rounds up to whole 16 bytes.
pub(crate) const fn round(floats: usize) -> usize {
    floats.div_ceil(4).saturating_mul(4)
}

/// Rounds channels up to whole panels.
pub(crate) const fn padded(channels: usize) -> usize {
    channels.div_ceil(PANEL).saturating_mul(PANEL)
}

/// Rows of a strip of a map of this side: an even number, as the depthwise kernels take two rows at once, but for a last strip.
pub(crate) const fn strip_rows(side: usize) -> usize {
    let rows = STRIP_PIXELS.div_ceil(larger(side, 1)).next_multiple_of(2);
    if rows > side { side } else { rows }
}

/// Values of the widened weights that one job of a dense layer needs.
const fn wide_dense(inputs: usize, outputs: usize) -> usize {
    group(outputs.div_ceil(PANEL)) * PANEL * if inputs < CHUNK { inputs } else { CHUNK }
}

impl FloatRegions {
    /// The stem; `half` if weights are f16.
    pub const fn stem(arch: &Architecture, bands: usize, half: bool) -> Self {
        let (grid, d, k, w) = (arch.grids()[0], padded(arch.dim(0)), arch.stem_stride(), arch.initial_grid());
        let side = arch.tile_size as usize + 2 * arch.initial_padding();
        if arch.is_patchify() {
            return Self {
                map: product(grid, grid, d),
                hidden: 0,
                strip: product(k * k, grid, padded(bands)),
                aside: product(1, side, padded(bands)),
                wide: if half { wide_dense(arch.patchify_inputs(bands), d) } else { 0 },
            };
        }
        Self {
            map: product(grid, grid, d),
            hidden: 0,
            strip: product(k, w, d),
            aside: product(k + 2, side, padded(bands)),
            wide: if half { larger(wide_dense(9 * bands, d), PANEL * k * k) } else { 0 },
        }
    }

    /// The downsampling before `stage`, 1 to 3.
    pub const fn downsample(arch: &Architecture, stage: usize, half: bool) -> Self {
        let (grids, before) = (arch.grids(), arch.dim(stage - 1));
        let (side, grid) = (grids[stage - 1], grids[stage]);
        Self {
            map: product(side, side, padded(before)),
            hidden: product(grid, grid, padded(arch.dim(stage))),
            strip: product(strip_rows(grid), grid, 4 * padded(before)),
            aside: 0,
            wide: if half { wide_dense(4 * before, arch.dim(stage)) } else { 0 },
        }
    }

    /// A block of `stage`.
    pub const fn block(arch: &Architecture, stage: usize, half: bool) -> Self {
        let (grid, d) = (arch.grids()[stage], arch.dim(stage));
        Self {
            map: product(grid, grid, padded(d)),
            hidden: product(grid, grid, padded(4 * d)),
            strip: product(strip_rows(grid), grid, padded(d)),
            aside: padded(4 * d),
            wide: if half { larger(larger(wide_dense(d, 4 * d), wide_dense(4 * d, d)), PANEL * 49) } else { 0 },
        }
    }

    /// Sum of all regions, each rounded up to 16 bytes.
    pub const fn total(&self) -> usize {
        let regions = [self.map, self.hidden, self.strip, self.aside, self.wide];
        let (mut sum, mut i) = (0usize, 0);
        while i < regions.len() {
            sum = sum.saturating_add(round(regions[i]));
            i += 1;
        }
        sum
    }
}

/// Bytes of the arena of an f32 model, or with `half` of an f16 model. Saturates at `usize::MAX`. A constant if the
/// architecture is, so that a program can reserve the arena when it is built.
pub const fn float_arena_bytes(arch: &Architecture, bands: usize, half: bool) -> usize {
    let mut floats = FloatRegions::stem(arch, bands, half).total();
    let mut stage = 0;
    while stage < STAGES {
        floats = larger(floats, FloatRegions::block(arch, stage, half).total());
        if stage > 0 {
            floats = larger(floats, FloatRegions::downsample(arch, stage, half).total());
        }
        stage += 1;
    }
    floats.saturating_mul(size_of::<f32>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StemPadding;

    #[test]
    fn the_hidden_map_of_stage_0_rules() {
        let yocto = Architecture::named("yocto", 64, 16).unwrap();
        // 32 x 32 pixels: 16 channels, 64 hidden, a strip of two rows, one sum of each hidden channel.
        let floats = 32 * 32 * 16 + 32 * 32 * 64 + 2 * 32 * 16 + 64;
        assert_eq!(float_arena_bytes(&yocto, 3, false), 4 * floats);
        assert_eq!(float_arena_bytes(&yocto, 3, true), 4 * (floats + 16 * 64));
    }

    #[test]
    fn the_size_is_a_constant() {
        const SMALL: Architecture = Architecture {
            tile_size: 32,
            patch_size: 16,
            stem_padding: StemPadding::Same,
            depths: [1; 4],
            dims: [8, 16, 32, 64],
            grn_eps: 1e-6,
            ln_eps: 1e-6,
        };
        static ARENA: [u8; float_arena_bytes(&SMALL, 3, false)] = [0; float_arena_bytes(&SMALL, 3, false)];
        assert!(ARENA.len() > 4 * 16 * 16 * 8 * 5);
    }

    #[test]
    fn impossible_sizes_saturate() {
        assert_eq!(product(usize::MAX, 2, 3), usize::MAX);
        let regions = FloatRegions { map: usize::MAX, hidden: 5, strip: 0, aside: 0, wide: 0 };
        assert!(regions.total() > usize::MAX - 8);
    }
}
