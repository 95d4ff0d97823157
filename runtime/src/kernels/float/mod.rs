//! The f32 inner loops: the seam behind which an instruction set's own versions stand.
//!
//! | file | what |
//! | --- | --- |
//! | `vector.rs` | what a register of f32 lanes can do |
//! | `shared.rs` | the kernels, written once over such registers |
//! | `scalar.rs`, `avx2.rs`, `avx512.rs`, `neon.rs` | one set each: its registers, its tiles, and what it does in its own way |
//!
//! Layout: values of several pixels stand *panel by panel*, `[panels, pixels, 16]`: the 16 channels of a panel are one
//! AVX-512 register, two of AVX2 or four of NEON, always from a multiple of 64 bytes if the arena is. Channels that fill up
//! the last panel are zero in maps as in weights ([`crate::model::float_layout`]), and every kernel leaves them zero.
//!
//! **Bits.** Every output channel has its own lane, and a lane adds its products in a fixed order: where a strip or a tile
//! begins does not show in the result, and one set gives the same bits for the same tile always. Different sets may differ
//! in the last bits, because some fuse multiplication and addition and they add up the lanes of a reduction differently.
//! Only the integer engine promises equal bits everywhere.
//!
//! **Error.** Relative to the same sums in float64 each dot product of `n` terms is within `(256 + n / 256 + 3) * 2^-24` of
//! the sum of the magnitudes of its terms, for the engine adds at most [`CHUNK`] products before it adds them to the rest; a
//! few times `sqrt(n) * 2^-24` is what one sees.

mod scalar;
mod shared;
mod vector;

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
#[cfg(test)]
mod tests;

pub use scalar::SCALAR;

use crate::model::float_layout::PANEL;

/// Side of the depthwise kernel of a block.
pub const DEPTHWISE_SIDE: usize = 7;
/// Panels that a dense kernel takes at once, at most.
pub const GROUP: usize = 3;

/// Panels of outputs to take at once where `left` are left: pairs, but three (or the only one) where the number is odd.
pub(crate) const fn group(left: usize) -> usize {
    match left {
        0 | 1 => left,
        _ => 2 + left % 2,
    }
}

/// Runs of inputs that are summed before the sum is added to what is there.
pub const RUNS: usize = 16;
/// Inputs of so many runs, at most.
pub const CHUNK: usize = RUNS * PANEL;

/// Up to [`PANEL`] inputs that stand side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Where the first pixel's begin; the next pixel's begin [`PANEL`] values later.
    pub start: usize,
    /// How many there are.
    pub len: usize,
}

/// Some inputs of a dense layer, for some pixels and some panels of outputs.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// Values in which the runs lie.
    pub input: &'a [f32],
    /// The inputs, in the order of the weights.
    pub runs: &'a [Run],
    /// Pixels.
    pub pixels: usize,
    /// Weights `[inputs, 16]` of each panel.
    pub weights: &'a [f32],
    /// Values from one panel's weights to the next one's.
    pub weight_stride: usize,
    /// Weights that will be needed next, with the same stride, or empty: a hint.
    pub next: &'a [f32],
    /// Panels of outputs, 1 to [`GROUP`].
    pub panels: usize,
    /// What to add to each panel's outputs, or empty.
    pub bias: &'a [[f32; PANEL]],
    /// Values from one panel of outputs to the next.
    pub output_stride: usize,
    /// Whether to add to the output what is there.
    pub add: bool,
}

impl Dense<'_> {
    /// Weights of one panel.
    fn weights_of_a_panel(&self) -> usize {
        self.runs.iter().map(|run| run.len * PANEL).sum()
    }

    /// Panics unless all that the job touches exists: the kernels read and write without looking.
    fn check(&self, output: &[f32]) {
        assert!((1..=GROUP).contains(&self.panels) && self.pixels > 0);
        let mut inputs = 0;
        for run in self.runs {
            assert!(run.len <= PANEL && run.start + (self.pixels - 1) * PANEL + run.len <= self.input.len());
            inputs += run.len;
        }
        assert!((self.panels - 1) * self.weight_stride + inputs * PANEL <= self.weights.len());
        assert!((self.panels - 1) * self.output_stride + self.pixels * PANEL <= output.len());
        assert!(self.bias.is_empty() || self.bias.len() == self.panels);
    }
}

/// Some rows of a block's depthwise convolution, padding 3, for one panel of channels.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// The map `[side, side, 16]`.
    pub input: &'a [f32],
    /// Its side.
    pub side: usize,
    /// First row to compute.
    pub first: usize,
    /// How many rows.
    pub rows: usize,
    /// Weights `[7 * 7, 16]`.
    pub weights: &'a [f32],
    /// Bias.
    pub bias: &'a [f32; PANEL],
}

impl Depthwise<'_> {
    /// As [`Dense::check`].
    fn check(&self, output: &[f32]) {
        assert!(self.first + self.rows <= self.side);
        assert!(self.side * self.side * PANEL <= self.input.len());
        assert!(DEPTHWISE_SIDE * DEPTHWISE_SIDE * PANEL <= self.weights.len());
        assert!(self.rows * self.side * PANEL <= output.len());
    }
}

/// One row of the depthwise stem, whose stride is its kernel's side, for one panel of channels.
#[derive(Clone, Copy, Debug)]
pub struct Stem<'a> {
    /// The rows `[kernel, width, 16]` under the kernel; those in the padding may hold anything.
    pub input: &'a [f32],
    /// Height and width of the whole input.
    pub width: usize,
    /// First row under the kernel, counted with the padding.
    pub first: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Padding.
    pub padding: usize,
    /// Weights `[kernel * kernel, 16]`.
    pub weights: &'a [f32],
    /// Bias.
    pub bias: &'a [f32; PANEL],
}

impl Stem<'_> {
    /// As [`Dense::check`].
    fn check(&self, output: &[f32]) {
        assert!(self.kernel * self.width * PANEL <= self.input.len());
        assert!(self.kernel * self.kernel * PANEL <= self.weights.len());
        assert!(output.len().is_multiple_of(PANEL));
    }
}

/// A LayerNorm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Weight of each channel.
    pub weight: &'a [f32],
    /// Bias of each channel.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// As [`Dense::check`].
    fn check(&self, values: &[f32], pixels: usize, stride: usize) {
        assert!(!self.weight.is_empty() && self.weight.len() == self.bias.len());
        assert!((self.weight.len().div_ceil(PANEL) - 1) * stride + pixels * PANEL <= values.len());
    }
}

/// One set of f32 kernels. A set is handed out only where the processor has its instructions.
#[derive(Clone, Copy)]
pub struct FloatKernels {
    /// Name: `scalar`, `avx2`, `avx512` or `neon`.
    pub name: &'static str,
    /// Dense layer: `output[panel, p, o] = sum_i input[p, i] * weights[panel, i, o]`, plus the bias, plus what was there if
    /// so asked.
    pub(crate) dense: fn(job: &Dense<'_>, output: &mut [f32]),
    /// 7x7 depthwise convolution into `output`, `[rows, side, 16]`.
    pub(crate) depthwise: fn(job: &Depthwise<'_>, output: &mut [f32]),
    /// One row of the depthwise stem into `output`, `[grid, 16]`.
    pub(crate) stem: fn(job: &Stem<'_>, output: &mut [f32]),
    /// LayerNorm in place of `pixels` pixels; from one panel to the next there are `stride` values.
    pub(crate) layer_norm: fn(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize),
    /// GELU (by the normal distribution function) in place of one panel `[pixels, 16]`, within `3e-7 max(1, |x|)`; the
    /// squares of the results are summed row by row (of `row` pixels) and each row's sum is added to `sums`.
    pub(crate) gelu: fn(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]),
    /// Global Response Normalization: replaces the sum of squares of each channel by its multiplier, `1 + gamma norm / (mean
    /// norm + eps)`. As many channels as `gamma` is long, filled up to whole panels by zeros.
    pub(crate) grn: fn(squares: &mut [f32], gamma: &[f32], eps: f32),
    /// `value * multiplier + offset` in place over `[panels, pixels, 16]`; the multiplier is filled up to whole panels, the
    /// offset is not.
    pub(crate) scale: fn(values: &mut [f32], multiplier: &[f32], offset: &[f32]),
    /// Widens finite f16 values, given by their bits. Exact, subnormal values included.
    pub(crate) widen: fn(bits: &[u16], values: &mut [f32]),
}

impl core::fmt::Debug for FloatKernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FloatKernels({})", self.name)
    }
}

impl FloatKernels {
    /// The sets that this processor runs, slowest first, [`SCALAR`] before all.
    pub fn available() -> impl Iterator<Item = &'static FloatKernels> {
        cfg_select! {
            all(target_arch = "x86_64", target_feature = "sse2", not(miri)) => {
                let has = super::cpu::features();
                let avx2 = has.avx2 && has.fma && has.f16c;
                let special = [avx2.then_some(&avx2::AVX2), has.avx512.then_some(&avx512::AVX512)];
            }
            all(target_arch = "aarch64", target_feature = "neon", not(miri)) => {
                let special = [Some(&neon::NEON)];
            }
            _ => {
                let special: [Option<&FloatKernels>; 0] = [];
            }
        }
        [&SCALAR].into_iter().chain(special.into_iter().flatten())
    }

    /// The fastest set that this processor runs.
    pub fn detect() -> &'static FloatKernels {
        Self::available().last().unwrap_or(&SCALAR)
    }

    /// The set of this name, or `None` if there is none or this processor cannot run it.
    pub fn by_name(name: &str) -> Option<&'static FloatKernels> {
        Self::available().find(|set| set.name == name)
    }
}

/// Panel `panel` of a vector that has one value a channel, filled up with zeros.
pub(crate) fn lanes(values: &[f32], panel: usize) -> [f32; PANEL] {
    let rest = values.get(panel * PANEL..).unwrap_or(&[]);
    let mut lanes = [0.0; PANEL];
    let n = rest.len().min(PANEL);
    lanes[..n].copy_from_slice(&rest[..n]);
    lanes
}

/// Widens finite f16 values, given by their bits. Exact, subnormal values included.
pub fn widen_f16(bits: &[u16], values: &mut [f32]) {
    /// 2^112: the difference of the two formats' exponent biases.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    for (value, &bits) in values.iter_mut().zip(bits) {
        let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * REBIAS;
        *value = f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16);
    }
}
