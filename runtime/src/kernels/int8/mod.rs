//! The integer inner loops: the seam behind which an instruction set's own versions stand.
//!
//! `scalar.rs` is the specification (`docs/integer-arithmetic.md`); every other set must give the same bits. Accumulators are i32 and,
//! for weights that the quantizer wrote, never overflow; for hostile weights they wrap.
//!
//! ## Layouts
//! Maps are `[height, width, channels]`. Stored channel counts are multiples of 8 ([`crate::model::int8_layout::stored`]).
//! Dense weights are packed once, by the quantizer, in a form that every instruction set reads well: panels of [`PANEL`] outputs,
//! `[panels, inputs / 4, 16, 4]`, so that 64 consecutive bytes hold four consecutive inputs of sixteen outputs. That is one register of
//! AVX-512 VNNI, two of AVX2, four of NEON's `sdot`, and for a Cortex-M a word of four inputs of one output. The last
//! panel may have only 8 outputs that count; its other weights are zero. Depthwise weights are `[taps, channels]`.
//!
//! ## What may differ between sets
//! The bytes that [`Int8Kernels::layer_norm`] and [`Int8Kernels::activate`] hand to [`Int8Kernels::expand`] and
//! [`Int8Kernels::project`] belong to the set: VNNI multiplies unsigned by signed bytes, so that its set stores `value ^ 0x80` and
//! corrects the bias in [`Int8Kernels::prepare`]. [`Int8Kernels::activate_split`] is one of them. What they leave in the residual map may not.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod arm;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_spatial;
#[cfg(test)]
mod conformance;
#[cfg(nadir_dsp)]
pub mod cortex_m;
#[cfg(nadir_helium)]
pub mod helium;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon_dot;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon_gemm;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon_i8mm;
#[cfg(all(target_arch = "aarch64", target_feature = "neon", target_endian = "little"))]
mod neon_simd;
pub mod scalar;

use crate::kernels::fixed::LayerNorm;
use crate::model::int8_layout::TABLE;
use core::ops::Range;

/// Side of the depthwise kernel.
pub const DEPTHWISE_SIDE: usize = 7;
/// Output channels that stand side by side in a dense weight.
pub const PANEL: usize = 16;
/// Inputs of one output that stand side by side in a dense weight.
pub const GROUP: usize = 4;
/// The most pixels of one call: 64 squares of 12-bit values stay below 2^31.
pub const MAX_STRIP: usize = 64;
/// Lower bits of an input of 14 bits, which [`Int8Kernels::activate_split`] splits off.
pub const LOW_BITS: u32 = 6;
/// Power of two by which it divides: with the multipliers of inputs of 8 bits, so that 14 bits reach twice as far.
const SPLIT_SHIFT: u32 = 16 - LOW_BITS;
/// Rows of the map that [`Rows::ring`] holds.
pub const RING_ROWS: usize = 4;

/// A matrix layer.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// `[panels, inputs / 4, 16, 4]`.
    pub weight: &'a [i8],
    /// A value for each output, whole panels; for [`Int8Kernels::expand`] and [`Int8Kernels::project`] as the set prepared it.
    pub bias: &'a [i32],
    /// Q15 multiplier for each output, 0..=32767, whole panels.
    pub multiplier: &'a [i16],
    /// Power of two by which the accumulators are divided first, 0..=31.
    pub shift: u32,
    /// Inputs: a multiple of 8 (of 4 for [`Int8Kernels::initial`]).
    pub inputs: usize,
    /// Outputs: a multiple of 8.
    pub outputs: usize,
}

impl Dense<'_> {
    /// Whether there is an input, and a weight for each input of each output, in whole groups and panels. What follows pointers into the
    /// weights asks this first.
    pub fn complete(&self) -> bool {
        let outputs = self.outputs.checked_next_multiple_of(PANEL);
        let weights = outputs.and_then(|outputs| outputs.checked_mul(self.inputs));
        let groups = self.inputs > 0 && self.inputs.is_multiple_of(GROUP);
        groups && weights.is_some_and(|weights| self.weight.len() >= weights)
    }

    /// Whether it is [complete](Self::complete), has outputs by eight, and a bias and a multiplier for each output of its panels.
    pub fn sound(&self) -> bool {
        let outputs = self.outputs.checked_next_multiple_of(PANEL);
        let constants = self.bias.len().min(self.multiplier.len());
        self.complete() && self.outputs.is_multiple_of(8) && outputs.is_some_and(|outputs| constants >= outputs)
    }

    /// For an initial convolution that gives `values` values: inputs a row of the window (or a third of a patch), and pixels; `None` if there are no pixels, or a
    /// row lacks what the last of them looks at.
    pub fn windows(&self, rows: &[&[i16]; 3], bands: usize, values: usize) -> Option<(usize, usize)> {
        let (segment, pixels) = (self.inputs / 3, values / self.outputs.max(1));
        let reach = pixels.checked_sub(1)?.checked_mul(bands)?.checked_add(segment)?;
        (segment.is_multiple_of(GROUP) && rows.iter().all(|row| row.len() >= reach)).then_some((segment, pixels))
    }
}

/// A depthwise layer.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// `[taps, channels]`.
    pub weight: &'a [i8],
    /// One a channel.
    pub bias: &'a [i32],
    /// One a channel, 0..=32767.
    pub multiplier: &'a [i16],
    /// 0..=31.
    pub shift: u32,
}

/// The rows of a square residual map, some of which were overwritten and are kept aside.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[side, side, channels]`.
    pub map: &'a [i16],
    /// Row `y` before `first`, and not older than [`RING_ROWS`] rows, stands at `y % RING_ROWS`.
    pub ring: &'a [i16],
    /// Rows from here on stand in the map.
    pub first: usize,
    /// Height and width.
    pub side: usize,
    /// Channels.
    pub channels: usize,
}

impl<'a> Rows<'a> {
    /// Row `y` of the map, `[side, channels]`.
    #[inline(always)]
    pub fn row(&self, y: usize) -> &'a [i16] {
        let len = self.side * self.channels;
        let (from, start) = if y < self.first { (self.ring, y % RING_ROWS * len) } else { (self.map, y * len) };
        from.get(start..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    /// Whether all rows that the windows of the rows `y` look at are there, each with `side * channels` values. What follows pointers into
    /// a row asks this first.
    pub fn complete(&self, y: &Range<usize>) -> bool {
        const HALF: usize = DEPTHWISE_SIDE / 2;
        let windows = y.start.saturating_sub(HALF)..y.end.saturating_add(HALF).min(self.side);
        let of = |rows: usize| self.side.checked_mul(self.channels).and_then(|len| len.checked_mul(rows));
        // Rows before `first` stand in the ring, the others in the map.
        (windows.start >= self.first || of(RING_ROWS).is_some_and(|len| self.ring.len() >= len))
            && (windows.end <= self.first || of(windows.end).is_some_and(|len| self.map.len() >= len))
    }
}

/// A rectangle of pixels of a map.
#[derive(Clone, Debug)]
pub struct Area {
    /// Rows.
    pub y: Range<usize>,
    /// Columns.
    pub x: Range<usize>,
}

/// The constants of a LayerNorm, and how many channels count.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Gain, exponent and epsilon.
    pub constants: LayerNorm,
    /// Channels that count: the mean divides by it.
    pub count: u32,
    /// Stored channels: `count` rounded up to a multiple of 8, the rest zero.
    pub channels: usize,
}

/// How the values of a band of an f32 tile are normalised.
#[derive(Clone, Copy, Debug)]
pub struct FloatBand {
    /// Taken off.
    pub mean: f32,
    /// Multiplied: 2048 over the standard deviation.
    pub scale: f32,
    /// The value that says "no data".
    pub no_data: Option<f32>,
}

/// GELU of every index -128..=127, the index plus 128 its place.
pub type Table = [i16; TABLE];

/// One set of integer kernels. Slices have the lengths that the shapes say; no function looks at more than that.
#[derive(Clone, Copy)]
pub struct Int8Kernels {
    /// Name, for instance `scalar`.
    pub name: &'static str,
    /// The bias that this set wants for a layer with i8 inputs, from the one in the model file.
    pub prepare: fn(layer: &Dense<'_>, bias: &mut [i32]),
    /// Values of one band of an f32 tile to i16 with 11 fractional bits, every `stride`th of `output`.
    pub input: fn(values: &[f32], band: &FloatBand, output: &mut [i16], stride: usize),
    /// Initial 3x3 convolution of one row of pixels: `rows` are three input rows `[width + 2, bands]` and at least 3 values beyond;
    /// the layer's inputs are ordered (row, column, band), each row rounded up to a multiple of 4. Output `[pixels, outputs]`. For a patchify stem
    /// the rows are the thirds of patches, and `bands` is the length of a patch: pixel `x` reads from value `bands x` on.
    pub initial: fn(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]),
    /// Depthwise stem of one output row: kernel and stride `side`, `rows` `[side, width, channels]`, `padding` columns of zeros.
    pub stem: fn(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]),
    /// LayerNorm without affine in place, saturated to 14 bits: `[pixels, channels]`.
    pub layer_norm_i16: fn(values: &mut [i16], norm: &Norm),
    /// `sat16((value * gain + offset) >> shift)` in place.
    pub affine: fn(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32),
    /// `table[sat8(value) + 128]` in place.
    pub lookup: fn(values: &mut [i16], table: &Table),
    /// 7x7 depthwise convolution, padding 3, of an area: output `[rows, columns, channels]`, at most [`MAX_STRIP`] pixels.
    pub depthwise: fn(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]),
    /// LayerNorm without affine to the set's 8-bit inputs.
    pub layer_norm: fn(values: &[i16], norm: &Norm, output: &mut [i8]),
    /// First pointwise layer: GELU indices `[pixels, outputs]` from `[pixels, inputs]`, outputs a multiple of 32; adds the squares of the table's values to
    /// the channels' sums. At most [`MAX_STRIP`] pixels.
    pub expand: fn(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]),
    /// GELU indices to the set's 8-bit inputs, in place: `sat8((table[index + 128] * multiplier + 2^14) >> 15)`.
    pub activate: fn(values: &mut [i8], table: &Table, multipliers: &[i16]),
    /// The same with 14 bits, in two halves of the set's 8-bit inputs: of `p = sat14((table[index + 128] * multiplier + 2^9) >> 10)` the upper 8
    /// bits, `p >> 6`, in place, the lower 6, `p & 63`, to `low`, as long as `values`.
    pub activate_split: fn(values: &mut [i8], table: &Table, multipliers: &[i16], low: &mut [i8]),
    /// A layer whose result is added to the residual map with saturation: `[pixels, inputs]` to `[pixels, outputs]`. At most
    /// [`MAX_STRIP`] pixels.
    pub project: fn(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]),
    /// Integer square root of each value, in place.
    pub square_roots: fn(values: &mut [u32]),
}

/// How the first pointwise layer ends.
#[derive(Clone, Copy, Debug)]
pub struct Gelu<'a> {
    /// Added to the requantized value, -128..=127.
    pub zero_point: i32,
    /// -4095..=4095.
    pub table: &'a Table,
}

impl Int8Kernels {
    /// The fastest set that this processor runs.
    pub fn detect() -> &'static Self {
        Self::available().last().unwrap_or(&scalar::SCALAR)
    }

    /// The sets that this processor runs, slowest first.
    pub fn available() -> impl Iterator<Item = &'static Self> {
        [&scalar::SCALAR].into_iter().chain(arch_sets())
    }

    /// The set of this name, if this processor runs it.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::available().find(|set| set.name == name)
    }
}

cfg_select! {
    all(target_arch = "x86_64", not(miri)) => {
        /// The sets of this architecture that this processor runs, slowest first.
        fn arch_sets() -> impl Iterator<Item = &'static Int8Kernels> {
            let has = crate::kernels::cpu::features();
            let vnni = has.vnni && has.vbmi;
            let sets = [
                (has.avx2, &avx2::AVX2),
                (has.avx2 && has.avx_vnni, &avx2::AVX_VNNI),
                (vnni, &avx512::AVX512_VNNI),
                (vnni && has.amx, &amx::AMX),
            ];
            sets.into_iter().filter(|(here, _)| *here).map(|(_, set)| set)
        }
    }
    all(target_arch = "aarch64", target_feature = "neon", target_endian = "little", not(miri)) => {
        /// The sets of this architecture that this processor runs, slowest first.
        fn arch_sets() -> impl Iterator<Item = &'static Int8Kernels> {
            arm::sets().iter().copied()
        }
    }
    nadir_helium => {
        /// The sets of this processor, slowest first.
        fn arch_sets() -> impl Iterator<Item = &'static Int8Kernels> {
            [&cortex_m::DSP, &helium::HELIUM].into_iter()
        }
    }
    nadir_dsp => {
        /// The sets of this processor, slowest first.
        fn arch_sets() -> impl Iterator<Item = &'static Int8Kernels> {
            core::iter::once(&cortex_m::DSP)
        }
    }
    _ => {
        /// There is none beside the scalar set.
        fn arch_sets() -> impl Iterator<Item = &'static Int8Kernels> {
            core::iter::empty()
        }
    }
}

impl core::fmt::Debug for Int8Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Int8Kernels({})", self.name)
    }
}
