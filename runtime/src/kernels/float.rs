//! The f32 inner loops: the seam behind which an instruction set's own versions stand.
//!
//! Every output channel has its own lane and its own accumulator, and a lane adds its products in a fixed order: the width of a
//! vector register does not show in the result. Multiplication and addition round separately (no fused multiply-add).
//! The scalar versions are written so that a compiler turns the loops over [`PANEL`] lanes into vector instructions.
//!
//! Layouts: maps `[height, width, channels]`, weights in panels of [`PANEL`] output channels ([`crate::model::float_layout`]).
//! A kernel that takes a panel computes its output channels alone: at most [`PANEL`], as many as `bias` is long.
//!
//! Why four pixels by one panel: eight accumulators of four lanes, two registers of weights and one of input fit the 16 registers of
//! SSE2 and the 32 of NEON, and each weight that is loaded is used four times.
//!
//! Measured: whole encoders of 64x64 tiles run at 1.9 (yocto) to 2.9 (atto) GMAC/s on one thread of a shared x86-64 server built for
//! SSE2, everything included.
//!
//! Relative to the same sums in float64 each dot product of `n` terms is within `(64 + n / 64) * 2^-24` of the sum of the
//! magnitudes of its terms: 64 products are summed on their own, then added to the rest.

use crate::model::float_layout::PANEL;

/// Products that are summed before they are added to the accumulator.
const RUN: usize = 64;
/// Partial sums of a reduction over channels.
const LANES: usize = 16;
/// Pixels computed side by side.
const PIXELS: usize = 4;
/// Side of the depthwise kernel of a block.
pub const DEPTHWISE_SIDE: usize = 7;

/// A square map `[side, side, channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// Its values.
    pub values: &'a [f32],
    /// Height and width.
    pub side: usize,
    /// Channels.
    pub channels: usize,
}

/// One set of f32 kernels.
#[derive(Clone, Copy)]
pub struct FloatKernels {
    /// Name, for instance `scalar`.
    pub name: &'static str,
    /// Dense layer for one panel: `output[p * outputs + o] = bias[o] + sum_i input[p, i] * panel[i, o]`. `input` is
    /// `[pixels, inputs]`; `output` begins at the panel's first channel, and a pixel of it has `outputs` values.
    pub dense: fn(input: &[f32], inputs: usize, panel: &[f32], bias: &[f32], output: &mut [f32], outputs: usize),
    /// 7x7 depthwise convolution, padding 3, of one row of a map, for one panel `[49, 8]`. `first` is the panel's first
    /// channel; `output` is the row `[side, channels]`.
    pub depthwise: fn(map: Map<'_>, y: usize, first: usize, panel: &[f32], bias: &[f32], output: &mut [f32]),
    /// LayerNorm in place over `[pixels, channels]`; `weight` is as long as there are channels.
    pub layer_norm: fn(values: &mut [f32], weight: &[f32], bias: &[f32], eps: f32),
    /// GELU (by the error function) in place.
    pub gelu: fn(values: &mut [f32]),
    /// Adds the square of each value of `[pixels, channels]` to its channel's sum.
    pub add_squares: fn(values: &[f32], sums: &mut [f32]),
    /// `value * multiplier[channel] + offset[channel]` in place over `[pixels, channels]`.
    pub scale: fn(values: &mut [f32], multiplier: &[f32], offset: &[f32]),
}

impl FloatKernels {
    /// The fastest set that this processor runs.
    pub fn detect() -> &'static Self {
        &SCALAR
    }

    /// The set of this name, if this processor runs it.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        (name == SCALAR.name).then_some(&SCALAR)
    }
}

impl core::fmt::Debug for FloatKernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FloatKernels({})", self.name)
    }
}

/// Plain Rust, on every processor.
pub static SCALAR: FloatKernels =
    FloatKernels { name: "scalar", dense, depthwise, layer_norm, gelu, add_squares, scale };

fn dense(input: &[f32], inputs: usize, panel: &[f32], bias: &[f32], output: &mut [f32], outputs: usize) {
    let mut pixels = input.chunks_exact(PIXELS * inputs);
    let mut at = 0;
    for input in &mut pixels {
        store(&dense_tile::<PIXELS>(input, inputs, panel), bias, &mut output[at * outputs..], outputs);
        at += PIXELS;
    }
    for input in pixels.remainder().chunks_exact(inputs) {
        store(&dense_tile::<1>(input, inputs, panel), bias, &mut output[at * outputs..], outputs);
        at += 1;
    }
}

/// `P` pixels by one panel.
#[inline(always)]
fn dense_tile<const P: usize>(input: &[f32], inputs: usize, panel: &[f32]) -> [[f32; PANEL]; P] {
    let rows: [&[f32]; P] = core::array::from_fn(|p| &input[p * inputs..(p + 1) * inputs]);
    let weights = &panel.as_chunks::<PANEL>().0[..inputs];
    let mut total = [[0.0; PANEL]; P];
    let mut start = 0;
    while start < inputs {
        let end = (start + RUN).min(inputs);
        let runs: [&[f32]; P] = rows.map(|row| &row[start..end]);
        let mut acc = [[0.0; PANEL]; P];
        for (i, weights) in weights[start..end].iter().enumerate() {
            for p in 0..P {
                let v = runs[p][i];
                for o in 0..PANEL {
                    acc[p][o] += v * weights[o];
                }
            }
        }
        for p in 0..P {
            for o in 0..PANEL {
                total[p][o] += acc[p][o];
            }
        }
        start = end;
    }
    total
}

/// Adds the bias and writes the panel's channels of each pixel.
#[inline(always)]
fn store(tile: &[[f32; PANEL]], bias: &[f32], output: &mut [f32], outputs: usize) {
    for (pixel, output) in tile.iter().zip(output.chunks_mut(outputs)) {
        for ((output, &v), &bias) in output.iter_mut().zip(pixel).zip(bias) {
            *output = v + bias;
        }
    }
}

fn depthwise(map: Map<'_>, y: usize, first: usize, panel: &[f32], bias: &[f32], output: &mut [f32]) {
    let mut x = 0;
    while x < map.side {
        // Four pixels whose columns all lie in the map, or one pixel with checks.
        let step = if x >= DEPTHWISE_SIDE / 2 && x + PIXELS + DEPTHWISE_SIDE / 2 <= map.side && bias.len() == PANEL {
            let tile = depthwise_tile::<PIXELS>(map, y, x, first, panel);
            store(&tile, bias, &mut output[x * map.channels + first..], map.channels);
            PIXELS
        } else {
            let tile = depthwise_border(map, y, x, first, panel, bias.len());
            store(&[tile], bias, &mut output[x * map.channels + first..], map.channels);
            1
        };
        x += step;
    }
}

/// Rows of the kernel that lie in the map at output row `y`.
fn kernel_rows(y: usize, side: usize) -> core::ops::Range<usize> {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    HALF.saturating_sub(y)..DEPTHWISE_SIDE.min(side + HALF - y)
}

#[inline(always)]
fn depthwise_tile<const P: usize>(map: Map<'_>, y: usize, x: usize, first: usize, panel: &[f32]) -> [[f32; PANEL]; P] {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let taps = panel.as_chunks::<PANEL>().0;
    let mut acc = [[0.0; PANEL]; P];
    for ky in kernel_rows(y, map.side) {
        let row = (y + ky - HALF) * map.side + x - HALF;
        for kx in 0..DEPTHWISE_SIDE {
            let tap = &taps[ky * DEPTHWISE_SIDE + kx];
            for p in 0..P {
                let at = (row + p + kx) * map.channels + first;
                let input = &map.values[at..at + PANEL];
                for c in 0..PANEL {
                    acc[p][c] += input[c] * tap[c];
                }
            }
        }
    }
    acc
}

fn depthwise_border(map: Map<'_>, y: usize, x: usize, first: usize, panel: &[f32], channels: usize) -> [f32; PANEL] {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let taps = panel.as_chunks::<PANEL>().0;
    let mut acc = [0.0; PANEL];
    for ky in kernel_rows(y, map.side) {
        for kx in kernel_rows(x, map.side) {
            let at = ((y + ky - HALF) * map.side + x + kx - HALF) * map.channels + first;
            let tap = &taps[ky * DEPTHWISE_SIDE + kx];
            for (c, &v) in map.values[at..at + channels].iter().enumerate() {
                acc[c] += v * tap[c];
            }
        }
    }
    acc
}

/// Sum of `f` of each value, in [`LANES`] partial sums that are then added pairwise.
#[inline(always)]
pub(crate) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (runs, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for run in runs {
        for l in 0..LANES {
            lanes[l] += f(run[l]);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f(v);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

fn layer_norm(values: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = weight.len() as f32;
    for pixel in values.chunks_exact_mut(weight.len()) {
        let mean = sum(pixel, |v| v) / n;
        let variance = sum(pixel, |v| (v - mean) * (v - mean)) / n;
        let scale = 1.0 / libm::sqrtf(variance + eps);
        for ((v, &w), &b) in pixel.iter_mut().zip(weight).zip(bias) {
            *v = (*v - mean) * scale * w + b;
        }
    }
}

fn gelu(values: &mut [f32]) {
    for v in values {
        *v = 0.5 * *v * (1.0 + libm::erff(*v * core::f32::consts::FRAC_1_SQRT_2));
    }
}

fn add_squares(values: &[f32], sums: &mut [f32]) {
    for pixel in values.chunks_exact(sums.len()) {
        for (sum, &v) in sums.iter_mut().zip(pixel) {
            *sum += v * v;
        }
    }
}

fn scale(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    for pixel in values.chunks_exact_mut(multiplier.len()) {
        for ((v, &m), &b) in pixel.iter_mut().zip(multiplier).zip(offset) {
            *v = *v * m + b;
        }
    }
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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Numbers in [-1, 1) from a seed.
    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn dense_is_within_its_bound() {
        for (pixels, inputs, outputs) in [(1, 1, 1), (9, 27, 5), (6, 200, 8), (4, 1280, 3)] {
            let (x, w, b) = (numbers(pixels * inputs, 1), numbers(inputs * PANEL, 2), numbers(outputs, 3));
            let stride = outputs + 2;
            let mut out = vec![7.0; pixels * stride];
            dense(&x, inputs, &w, &b, &mut out, stride);
            for p in 0..pixels {
                for o in 0..stride {
                    let found = f64::from(out[p * stride + o]);
                    if o >= outputs {
                        assert_eq!(found, 7.0, "beyond the panel's channels nothing is written");
                        continue;
                    }
                    let product = |i: usize| f64::from(x[p * inputs + i]) * f64::from(w[i * PANEL + o]);
                    let expected = (0..inputs).map(product).sum::<f64>() + f64::from(b[o]);
                    let magnitude = (0..inputs).map(|i| product(i).abs()).sum::<f64>() + f64::from(b[o].abs());
                    let bound = (64.0 + inputs as f64 / 64.0 + 2.0) * 2f64.powi(-24) * magnitude;
                    assert!((found - expected).abs() <= bound, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn depthwise_is_a_padded_convolution() {
        for (side, channels) in [(1, 8), (2, 3), (5, 8), (13, 16), (11, 20)] {
            let values = numbers(side * side * channels, 4);
            let map = Map { values: &values, side, channels };
            for first in (0..channels).step_by(PANEL) {
                let n = PANEL.min(channels - first);
                let (panel, bias) = (numbers(49 * PANEL, first as u32), numbers(n, 6));
                for y in 0..side {
                    let mut row = vec![0.0; side * channels];
                    depthwise(map, y, first, &panel, &bias, &mut row);
                    for x in 0..side {
                        for c in 0..n {
                            let mut expected = f64::from(bias[c]);
                            for (ky, kx) in (0..49).map(|t| (t / 7, t % 7)) {
                                let (iy, ix) = (y + ky, x + kx);
                                if (3..side + 3).contains(&iy) && (3..side + 3).contains(&ix) {
                                    let v = values[((iy - 3) * side + ix - 3) * channels + first + c];
                                    expected += f64::from(v) * f64::from(panel[(ky * 7 + kx) * PANEL + c]);
                                }
                            }
                            let found = f64::from(row[x * channels + first + c]);
                            assert!((found - expected).abs() < 1e-5, "{side} {y} {x} {c}: {found} {expected}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn layer_norm_centres_and_scales() {
        for channels in [1, 16, 37, 128] {
            let original = numbers(3 * channels, 9);
            let (weight, bias) = (numbers(channels, 10), numbers(channels, 11));
            let mut values = original.clone();
            layer_norm(&mut values, &weight, &bias, 1e-6);
            for (pixel, found) in original.chunks(channels).zip(values.chunks(channels)) {
                let n = channels as f64;
                let mean = pixel.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
                let variance = pixel.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
                for c in 0..channels {
                    let x = (f64::from(pixel[c]) - mean) / (variance + 1e-6).sqrt();
                    let expected = x * f64::from(weight[c]) + f64::from(bias[c]);
                    assert!((f64::from(found[c]) - expected).abs() < 1e-5, "{} {expected}", found[c]);
                }
            }
        }
    }

    #[test]
    fn gelu_has_known_values() {
        // Computed with Python's math.erf.
        let mut values = [-3.0, -1.0, 0.0, 0.5, 2.0];
        gelu(&mut values);
        let expected = [-0.004_049_694, -0.158_655_25, 0.0, 0.345_731_23, 1.954_499_7];
        for (v, e) in values.into_iter().zip(expected) {
            assert!((v - e as f32).abs() <= 3e-7, "{v} {e}");
        }
    }

    #[test]
    fn every_finite_f16_widens_exactly() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00) {
            let mut value = [0.0];
            widen_f16(&[bits], &mut value);
            assert_eq!(value[0].to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:#06x}");
        }
    }
}
