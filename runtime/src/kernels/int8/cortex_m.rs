//! Cortex-M4, M7 and all others with the DSP extension: pairs of 16-bit products.
//!
//! SMLAD multiplies two pairs of 16-bit values and adds both products, in one cycle. Everything that it multiplies must therefore be widened
//! to 16 bits and stand in pairs; `cortex_m/dense.rs` and `cortex_m/depthwise.rs` say how this is done for less than it
//! gains. What is left, norms and tables, is a handful of instructions a value: SMLABB multiplies by a Q15 factor and adds the half, SSAT shifts
//! and saturates at once, the lookup is one LDRSH.
//!
//! Nothing depends on data but the addresses of a table's entries: the counts of a black, a bright and a real tile are the same.
//!
//! **Measured** under QEMU with `-icount` (instructions, not cycles; `cargo xtask qemu`): zepto takes
//! 77.0 M a tile on a Cortex-M7, 1.31 a multiply-add, and 76.3 M on a Cortex-M4F; the scalar set takes about 7.9 a multiply-add.
//!
//! **Stack.** At most 6.5 KiB, in [`dense`].
#![allow(unsafe_code)]

pub(super) mod dense;
pub(super) mod depthwise;
mod instructions;

use super::{Dense, Depthwise, Gelu, Int8Kernels, Norm, Table, scalar};
use crate::kernels::fixed::{Normalizer, reciprocal};
use dense::{Bytes, Source, Sums, Window, sound};
use instructions::*;

/// SMLAD and its kin.
pub static DSP: Int8Kernels = Int8Kernels {
    name: "dsp",
    prepare: scalar::prepare,
    input: |values, band, output, stride| scalar::input(values, band, output, stride),
    initial,
    stem,
    layer_norm_i16,
    affine,
    lookup: |values, table| scalar::lookup(values, table),
    depthwise: |rows, area, layer, output| depthwise::depthwise::<depthwise::Pairs>(rows, area, layer, output),
    layer_norm,
    expand,
    activate,
    activate_split: |values, table, multipliers, low| scalar::activate_split::<0>(values, table, multipliers, low),
    project,
    square_roots: |values| scalar::square_roots(values),
};

/// `sat16(sum >> shift) * multiplier + addend`, to be shifted by 15.
#[inline(always)]
fn scale(sum: i32, shift: u32, multiplier: i32, addend: i32) -> i32 {
    smlabb(ssat16(sum >> (shift & 31)), multiplier, addend)
}

/// Half a unit of a product that is shifted by 15.
const HALF: i32 = 1 << 14;

/// Calls `body` with each pixel of a tile, in code of its own for whole tiles.
#[inline(always)]
fn each_pixel(sums: &Sums, mut body: impl FnMut(usize)) {
    match (sums.pixels, sums.stride) {
        (dense::WIDE, _) => (0..dense::WIDE).for_each(body),
        (dense::NARROW, dense::NARROW) => (0..dense::NARROW).for_each(body),
        (pixels, _) => (0..pixels).for_each(&mut body),
    }
}

fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let pixels = output.len() / layer.outputs.max(1);
    let Some(source) = Window::new(rows, bands, layer, pixels) else {
        debug_assert!(false, "an initial convolution of impossible shape");
        return;
    };
    output.fill(0);
    // SAFETY: `Window::new` checked the rows and the layer.
    unsafe { add_dense(&source, pixels, layer, output) };
}

fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let pixels = residual.len() / layer.outputs.max(1);
    if !sound(layer) || input.len() / layer.inputs < pixels {
        debug_assert!(false, "a projection of impossible shape");
        return;
    }
    // SAFETY: there are inputs for all pixels, as was checked.
    unsafe { add_dense(&Bytes { start: input.as_ptr(), inputs: layer.inputs }, pixels, layer, residual) };
}

/// Two channels at a time; columns beyond the map are left out for a pixel, not for a tap.
fn stem(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]) {
    let channels = layer.bias.len();
    let weights = side.checked_mul(side).and_then(|taps| taps.checked_mul(channels));
    let lengths = weights.is_some_and(|weights| layer.weight.len() >= weights) && layer.multiplier.len() >= channels;
    if !lengths || channels == 0 || !channels.is_multiple_of(2) {
        debug_assert!(false, "a stem of impossible shape");
        return;
    }
    let width = rows.len() / (side * channels).max(1);
    for (x, output) in output.chunks_exact_mut(channels).enumerate() {
        // Columns of the kernel that lie in the map.
        let left = x.saturating_mul(side);
        let first = padding.saturating_sub(left).min(side);
        let last = width.saturating_add(padding).saturating_sub(left).min(side);
        let constants = layer.bias.as_chunks::<2>().0.iter().zip(layer.multiplier.as_chunks::<2>().0);
        for (pair, (output, (bias, multiplier))) in output.as_chunks_mut::<2>().0.iter_mut().zip(constants).enumerate()
        {
            let (c, mut sums) = (2 * pair, *bias);
            for row in 0..side {
                for column in first..last {
                    // SAFETY: `row` and `left + column - padding` lie in the map, `c + 1` is a channel, the tap one of `side * side`.
                    unsafe {
                        let at = (row * width + left + column - padding) * channels + c;
                        let both = rows.as_ptr().add(at).cast::<u32>().read_unaligned() as i32;
                        let weight = layer.weight.as_ptr().add((row * side + column) * channels + c);
                        sums =
                            [smlabb(both, (*weight).into(), sums[0]), smlatb(both, (*weight.add(1)).into(), sums[1])];
                    }
                }
            }
            for ((to, sum), &multiplier) in output.iter_mut().zip(sums).zip(multiplier) {
                *to = (scale(sum, layer.shift, multiplier.into(), HALF) >> 15) as i16;
            }
        }
    }
}

/// Adds a layer's results to `output`, `[pixels, outputs]`.
///
/// # Safety
/// As for [`dense::dense`], and `output` has `pixels` pixels.
#[inline(always)]
unsafe fn add_dense(source: &impl Source, pixels: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let (outputs, shift) = (layer.outputs, layer.shift);
    let output = output.as_mut_ptr();
    // SAFETY: the caller's; `sums` names pixels and outputs that exist.
    unsafe {
        dense::dense(source, pixels, layer, |sums| {
            for j in 0..sums.outputs {
                let multiplier = i32::from(*layer.multiplier.as_ptr().add(sums.output + j));
                let from = sums.start.add(j * sums.stride);
                let to = output.add(sums.pixel * outputs + sums.output + j);
                each_pixel(sums, |pixel| {
                    let value = scale(*from.add(pixel), shift, multiplier, HALF) >> 15;
                    let to = to.add(pixel * outputs);
                    to.write(ssat16(i32::from(*to) + value) as i16);
                });
            }
        });
    }
}

fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let (outputs, shift) = (layer.outputs, layer.shift);
    let pixels = output.len() / outputs.max(1);
    if !sound(layer) || input.len() / layer.inputs < pixels || squares.len() < outputs {
        debug_assert!(false, "an expansion of impossible shape");
        return;
    }
    let (output, squares) = (output.as_mut_ptr(), squares.as_mut_ptr());
    let addend = HALF + (gelu.zero_point << 15);
    // Entry 0.
    let table = gelu.table.as_ptr().wrapping_add(128);
    let source = Bytes { start: input.as_ptr(), inputs: layer.inputs };
    // SAFETY: there are inputs for all pixels, as was checked; `sums` names pixels and outputs that exist; an index of 8 bits
    // finds its entry on either side of entry 0.
    unsafe {
        dense::dense(&source, pixels, layer, |sums| {
            for j in 0..sums.outputs {
                let multiplier = i32::from(*layer.multiplier.as_ptr().add(sums.output + j));
                let from = sums.start.add(j * sums.stride);
                let to = output.add(sums.pixel * outputs + sums.output + j);
                // At most 6 squares of 12-bit values.
                let mut sum = 0;
                each_pixel(sums, |pixel| {
                    let index = ssat8_asr15(scale(*from.add(pixel), shift, multiplier, addend));
                    to.add(pixel * outputs).write(index as i8);
                    let value = i32::from(*table.offset(index as isize));
                    sum = smlabb(value, value, sum);
                });
                *squares.add(sums.output + j) += u64::from(sum as u32);
            }
        });
    }
}

/// The normaliser of one pixel.
#[inline(always)]
fn normalizer(pixel: &[i16], norm: &Norm, reciprocal: u32) -> Normalizer {
    let (mut sum, mut squares) = (0, 0);
    for pair in pixel.as_chunks::<2>().0 {
        let pair = word(pair);
        sum = smlad(pair, 0x0001_0001, sum);
        squares = smlald(pair, pair, squares);
    }
    norm.constants.normalizer(sum, squares as u64, norm.count, reciprocal)
}

/// Both values in a register.
#[inline(always)]
fn word(pair: &[i16; 2]) -> u32 {
    u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16
}

/// Both values normalised, not yet saturated.
#[inline(always)]
fn normalize(normalizer: &Normalizer, pair: &[i16; 2]) -> [i32; 2] {
    let pair = word(pair) as i32;
    // The factor is at most 2^14.
    [smlabb, smlatb].map(|multiply| multiply(pair, normalizer.factor, normalizer.offset) >> (normalizer.shift & 31))
}

fn layer_norm(values: &[i16], norm: &Norm, output: &mut [i8]) {
    let (reciprocal, channels) = (reciprocal(norm.count), norm.channels.max(1));
    for (pixel, output) in values.chunks_exact(channels).zip(output.chunks_exact_mut(channels)) {
        let normalizer = normalizer(pixel, norm, reciprocal);
        let pairs = pixel.as_chunks::<2>().0.iter().zip(output.as_chunks_mut::<2>().0);
        pairs.for_each(|(pair, to)| *to = normalize(&normalizer, pair).map(|value| ssat8(value) as i8));
    }
}

fn layer_norm_i16(values: &mut [i16], norm: &Norm) {
    let reciprocal = reciprocal(norm.count);
    for pixel in values.chunks_exact_mut(norm.channels.max(1)) {
        let normalizer = normalizer(pixel, norm, reciprocal);
        for pair in pixel.as_chunks_mut::<2>().0 {
            *pair = normalize(&normalizer, pair).map(|value| ssat14(value) as i16);
        }
    }
}

fn affine(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32) {
    for pixel in values.chunks_exact_mut(gain.len().max(1)) {
        for ((value, &gain), &offset) in pixel.iter_mut().zip(gain).zip(offset) {
            *value = ssat16(i32::from(*value).wrapping_mul(gain).wrapping_add(offset) >> (shift & 31)) as i16;
        }
    }
}

fn activate(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    // Entry 0.
    let table = table.as_ptr().wrapping_add(128);
    for pixel in values.chunks_exact_mut(multipliers.len().max(1)) {
        for (four, multipliers) in pixel.as_chunks_mut::<4>().0.iter_mut().zip(multipliers.as_chunks::<4>().0) {
            for (value, &multiplier) in four.iter_mut().zip(multipliers) {
                // SAFETY: an index of 8 bits finds its entry on either side of entry 0.
                let gelu = unsafe { *table.offset(isize::from(*value)) };
                *value = ssat8_asr15(smlabb(gelu.into(), multiplier.into(), HALF)) as i8;
            }
        }
    }
}
