//! Set `neon`, and what the other aarch64 sets share with it: all but the matrix products, which are in `neon_gemm.rs`.
//!
//! ## Requantization
//! Eight accumulators in two registers: `sshl` by the negative shift (rounds down), `sqxtn` to 16 bits, `sqrdmulh` by the multiplier.
//! `sqrdmulh` is `(2 t m + 2^15) >> 16`, which is `(t m + 2^14) >> 15`, and saturates only for -32768 times -32768: no multiplier is
//! negative here, and those of `activate` are at least -32767.
//!
//! ## Tables
//! A table of 256 16-bit values is two planes of 256 bytes, sixteen registers each; `tbl` and three `tbx` find sixteen bytes at a
//! time. Both planes do not fit the 32 registers, so that up to [`BATCH`] vectors of indices go through the lower plane, then through
//! the upper; their bytes wait on the stack. Squares of |h| <= 4095 are summed over a strip of 64 in 32-bit lanes
//! (`smlal`) and widened once.
//!
//! ## Depthwise
//! Values have 16 bits, so that each channel needs its own multiply: `smlal`, four products. A tile is 8 pixels of a row times 8
//! channels: 16 accumulators, the 7 weights of a kernel row (widened once a call and block of channels), and one of the 14 input
//! vectors, which serves up to 7 taps: 24 of 32 registers. That is 112 `smlal` for 21 loads, where a tile of 4 pixels has 56 for 17.
//! At the border the columns outside are skipped, not multiplied by zero: on a map of 7 that is half of the work.
//!
//! ## Measured
//! No board was at hand: correct under QEMU (`-cpu cortex-a53`, `cortex-a76`, `max`), speed unknown. Instructions of the loops of a
//! release build (rustc 1.95), by disassembly: depthwise 161 for the 448 multiply-adds of a kernel row (0.36) within the map, 95 for
//! 224 (0.42) in the tile of 4 pixels; initial convolution 84 for 256 (0.33); tables 11 for sixteen indices and plane.
#![allow(unsafe_code)]

use super::neon_gemm::{self, Pairs};
use super::neon_simd::*;
use super::*;
use crate::kernels::fixed::*;
use core::arch::asm;

/// ARMv8.0 with vectors.
pub(super) static NEON: Int8Kernels = SET;

pub(super) const SET: Int8Kernels = Int8Kernels {
    name: "neon",
    prepare: scalar::prepare,
    input: |values, band, output, stride| scalar::input(values, band, output, stride),
    initial,
    stem,
    layer_norm_i16,
    affine,
    lookup,
    depthwise,
    layer_norm,
    expand,
    activate,
    activate_split: |values, table, multipliers, low| scalar::activate_split::<0>(values, table, multipliers, low),
    project,
    square_roots,
};

fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    // SAFETY: every processor that this module is compiled for has what `Pairs` needs.
    unsafe { neon_gemm::expand::<Pairs, 4, 2>(input, layer, gelu, output, squares) }
}

fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    // SAFETY: as `expand`.
    unsafe { neon_gemm::project::<Pairs, 4, 2>(input, layer, residual) }
}

#[inline(always)]
pub(super) fn load_i8(from: &[i8; 8]) -> int8x8_t {
    // SAFETY: reads the array; a vector load needs the alignment of an element.
    unsafe { vld1_s8(from.as_ptr()) }
}

#[inline(always)]
pub(super) fn load_i16(from: &[i16; 8]) -> int16x8_t {
    // SAFETY: as `load_i8`.
    unsafe { vld1q_s16(from.as_ptr()) }
}

/// Eight values in two registers.
#[inline(always)]
pub(super) fn load_i32(from: &[i32; 8]) -> [int32x4_t; 2] {
    // SAFETY: as `load_i8`; the second half is four values further.
    unsafe { [vld1q_s32(from.as_ptr()), vld1q_s32(from.as_ptr().add(4))] }
}

/// Sixteen values in two registers.
#[inline(always)]
fn load_both(from: &[i16; 16]) -> [int16x8_t; 2] {
    // SAFETY: as `load_i8`; the second half is eight values further.
    unsafe { [vld1q_s16(from.as_ptr()), vld1q_s16(from.as_ptr().add(8))] }
}

#[inline(always)]
pub(super) fn store_i8(to: &mut [i8; 8], value: int8x8_t) {
    // SAFETY: writes the array; a vector store needs the alignment of an element.
    unsafe { vst1_s8(to.as_mut_ptr(), value) }
}

#[inline(always)]
pub(super) fn store_i16(to: &mut [i16; 8], value: int16x8_t) {
    // SAFETY: as `store_i8`.
    unsafe { vst1q_s16(to.as_mut_ptr(), value) }
}

/// Sixteen values, saturated.
#[inline(always)]
fn store_both(to: &mut [i8; 16], [low, high]: [int16x8_t; 2]) {
    // SAFETY: as `store_i8`.
    unsafe { vst1q_s8(to.as_mut_ptr(), vcombine_s8(vqmovn_s16(low), vqmovn_s16(high))) };
}

/// Eight values from index `at` on; zeros if they are not there.
#[inline(always)]
pub(super) fn eight<T: Copy + Default>(values: &[T], at: usize) -> [T; 8] {
    values.get(at..).and_then(|values| values.first_chunk()).copied().unwrap_or_default()
}

/// The places of eight values from index `at` on.
#[inline(always)]
pub(super) fn eight_mut<T>(values: &mut [T], at: usize) -> Option<&mut [T; 8]> {
    values.get_mut(at..)?.first_chunk_mut()
}

/// `sat16(acc >> shift)` for eight accumulators; `shift` holds minus the shift.
#[inline(always)]
fn narrow(acc: [int32x4_t; 2], shift: int32x4_t) -> int16x8_t {
    vqmovn_high_s32(vqmovn_s32(vshlq_s32(acc[0], shift)), vshlq_s32(acc[1], shift))
}

/// A shift to the right, as `vshlq` wants it.
#[inline(always)]
pub(super) fn right(shift: u32) -> int32x4_t {
    vdupq_n_s32(-((shift & 31) as i32))
}

/// [`crate::kernels::fixed::requantize`] of eight accumulators.
#[inline(always)]
pub(super) fn requantize(acc: [int32x4_t; 2], multiplier: int16x8_t, shift: int32x4_t) -> int16x8_t {
    vqrdmulhq_s16(narrow(acc, shift), multiplier)
}

/// `acc + value * weight` for eight channels.
#[inline(always)]
fn multiply_add(acc: [int32x4_t; 2], value: int16x8_t, weight: int16x8_t) -> [int32x4_t; 2] {
    [vmlal_s16(acc[0], vget_low_s16(value), vget_low_s16(weight)), vmlal_high_s16(acc[1], value, weight)]
}

/// Vectors of sixteen indices that go through one plane of a table before the other.
pub(super) const BATCH: usize = 64;

/// A table as two planes of bytes, and what was last found in them.
pub(super) struct Lookup {
    planes: [[u8; TABLE]; 2],
    found: [[[u8; 16]; BATCH]; 2],
}

impl Lookup {
    pub(super) fn new(table: &Table) -> Self {
        let mut planes = [[0; TABLE]; 2];
        for (i, value) in table.iter().enumerate() {
            [planes[0][i], planes[1][i]] = value.to_le_bytes();
        }
        Self { planes, found: [[[0; 16]; BATCH]; 2] }
    }

    /// The values of `count` vectors of sixteen indices, at most [`BATCH`], each `stride` bytes behind the one before.
    ///
    /// # Safety
    /// The indices can be read.
    #[inline(always)]
    pub(super) unsafe fn find(
        &mut self,
        indices: *const i8,
        stride: usize,
        count: usize,
    ) -> impl Iterator<Item = [int16x8_t; 2]> {
        for (plane, found) in self.planes.iter().zip(&mut self.found) {
            // SAFETY: as the caller promised.
            unsafe { find_bytes(plane, indices, stride, found.get_mut(..count).unwrap_or_default()) };
        }
        let [lower, upper] = &self.found;
        lower.get(..count).unwrap_or_default().iter().zip(upper).map(|(lower, upper)| {
            // SAFETY: reads the arrays.
            let (lower, upper) = unsafe { (vld1q_u8(lower.as_ptr()), vld1q_u8(upper.as_ptr())) };
            [vzip1q_u8(lower, upper), vzip2q_u8(lower, upper)].map(vreinterpretq_s16_u8)
        })
    }
}

/// The bytes of a plane for as many vectors of sixteen indices as `found` has places for.
///
/// The index -128 is the first of 256 places, so that the four quarters begin at -128, -64, 0 and 64. A place beyond the 64 of a quarter
/// finds zero with `tbl`, and leaves what is there with `tbx`. The loop is in assembly because a quarter has to stand in four
/// consecutive registers, for which the compiler copies or loads them anew in every round.
///
/// # Safety
/// Sixteen indices can be read at each of `found.len()` places that are `stride` apart.
#[inline(never)]
unsafe fn find_bytes(plane: &[u8; TABLE], indices: *const i8, stride: usize, found: &mut [[u8; 16]]) {
    if found.is_empty() {
        return;
    }
    // SAFETY: reads the plane and the indices, which the caller promised, writes `found`, and names the registers that it changes.
    unsafe {
        asm!(
            "ld1 {{v16.16b, v17.16b, v18.16b, v19.16b}}, [{plane}], #64",
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{plane}], #64",
            "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{plane}], #64",
            "ld1 {{v28.16b, v29.16b, v30.16b, v31.16b}}, [{plane}]",
            "movi v0.16b, #128",
            "movi v1.16b, #64",
            "2:",
            "ld1 {{v2.16b}}, [{indices}], {stride}",
            "add v3.16b, v2.16b, v0.16b",
            "add v4.16b, v2.16b, v1.16b",
            "sub v5.16b, v2.16b, v1.16b",
            "tbl v6.16b, {{v16.16b, v17.16b, v18.16b, v19.16b}}, v3.16b",
            "tbx v6.16b, {{v20.16b, v21.16b, v22.16b, v23.16b}}, v4.16b",
            "tbx v6.16b, {{v24.16b, v25.16b, v26.16b, v27.16b}}, v2.16b",
            "tbx v6.16b, {{v28.16b, v29.16b, v30.16b, v31.16b}}, v5.16b",
            "subs {count}, {count}, #1",
            "st1 {{v6.16b}}, [{found}], #16",
            "b.ne 2b",
            plane = inout(reg) plane.as_ptr() => _,
            indices = inout(reg) indices => _,
            stride = in(reg) stride,
            found = inout(reg) found.as_mut_ptr() => _,
            count = inout(reg) found.len() => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            options(nostack),
        );
    }
}

/// Sum and sum of squares of one position.
#[inline(always)]
fn moments(values: &[i16]) -> (i32, u64) {
    let (mut sum, mut squares) = (vdupq_n_s32(0), vdupq_n_u64(0));
    for values in values.as_chunks().0 {
        let v = load_i16(values);
        sum = vpadalq_s16(sum, v);
        // Two squares are at most 2^31, and so fit without a sign.
        let two = vmlal_high_s16(vmull_s16(vget_low_s16(v), vget_low_s16(v)), v, v);
        squares = vpadalq_u32(squares, vreinterpretq_u32_s32(two));
    }
    (vaddvq_s32(sum), vaddvq_u64(squares))
}

/// A [`Normalizer`] in registers. The factor is at most 2^14 and fits 16 bits.
struct Normal {
    factor: int16x8_t,
    offset: int32x4_t,
    shift: int32x4_t,
}

impl Normal {
    #[inline(always)]
    fn of(values: &[i16], norm: &Norm, reciprocal: u32) -> Self {
        let (sum, squares) = moments(values);
        let Normalizer { factor, offset, shift } = norm.constants.normalizer(sum, squares, norm.count, reciprocal);
        Self { factor: vdupq_n_s16(factor as i16), offset: vdupq_n_s32(offset), shift: right(shift) }
    }

    /// Saturated to 16 bits.
    #[inline(always)]
    fn apply(&self, value: int16x8_t) -> int16x8_t {
        narrow(multiply_add([self.offset; 2], value, self.factor), self.shift)
    }
}

fn layer_norm_i16(values: &mut [i16], norm: &Norm) {
    let reciprocal = reciprocal(norm.count);
    let (min, max) = (vdupq_n_s16(-8192), vdupq_n_s16(8191));
    for pixel in values.chunks_exact_mut(norm.channels.max(1)) {
        let normal = Normal::of(pixel, norm, reciprocal);
        for values in pixel.as_chunks_mut().0 {
            let value = normal.apply(load_i16(values));
            store_i16(values, vminq_s16(vmaxq_s16(value, min), max));
        }
    }
}

fn layer_norm(values: &[i16], norm: &Norm, output: &mut [i8]) {
    let (reciprocal, channels) = (reciprocal(norm.count), norm.channels.max(1));
    for (pixel, output) in values.chunks_exact(channels).zip(output.chunks_exact_mut(channels)) {
        let normal = Normal::of(pixel, norm, reciprocal);
        for (values, output) in pixel.as_chunks().0.iter().zip(output.as_chunks_mut().0) {
            store_i8(output, vqmovn_s16(normal.apply(load_i16(values))));
        }
    }
}

fn affine(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32) {
    let shift = right(shift);
    let constants = || gain.as_chunks().0.iter().zip(offset.as_chunks().0);
    for pixel in values.chunks_exact_mut(gain.len().max(1)) {
        for (values, (gain, offset)) in pixel.as_chunks_mut().0.iter_mut().zip(constants()) {
            let (value, [gain0, gain1], [offset0, offset1]) = (load_i16(values), load_i32(gain), load_i32(offset));
            let low = vmlaq_s32(offset0, vmovl_s16(vget_low_s16(value)), gain0);
            let high = vmlaq_s32(offset1, vmovl_high_s16(value), gain1);
            store_i16(values, narrow([low, high], shift));
        }
    }
}

fn lookup(values: &mut [i16], table: &Table) {
    let (mut lookup, mut indices) = (Lookup::new(table), [[0i8; 16]; BATCH]);
    let (vectors, rest) = values.as_chunks_mut::<16>();
    for vectors in vectors.chunks_mut(BATCH) {
        for (values, indices) in vectors.iter().zip(&mut indices) {
            store_both(indices, load_both(values));
        }
        // SAFETY: there are as many arrays of indices as vectors, or more.
        let found = unsafe { lookup.find(indices.as_ptr().cast(), 16, vectors.len()) };
        for (values, [low, high]) in vectors.iter_mut().zip(found) {
            // SAFETY: writes the array, the second half eight values further.
            unsafe { (vst1q_s16(values.as_mut_ptr(), low), vst1q_s16(values.as_mut_ptr().add(8), high)) };
        }
    }
    scalar::lookup(rest, table);
}

fn activate(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    let (by_channel, rest) = multipliers.as_chunks::<16>();
    if !rest.is_empty() {
        // Never so in a model: four times a multiple of 8.
        return scalar::activate(values, table, multipliers);
    }
    let mut lookup = Lookup::new(table);
    let mut multipliers = by_channel.iter().cycle();
    for vectors in values.as_chunks_mut::<16>().0.chunks_mut(BATCH) {
        // SAFETY: the vectors stand one behind the other.
        let found = unsafe { lookup.find(vectors.as_ptr().cast(), 16, vectors.len()) };
        for ((values, [low, high]), multiplier) in vectors.iter_mut().zip(found).zip(&mut multipliers) {
            let [by_low, by_high] = load_both(multiplier);
            store_both(values, [vqrdmulhq_s16(low, by_low), vqrdmulhq_s16(high, by_high)]);
        }
    }
}

/// Four values at a time, as [`isqrt32`]; no processor has a faster one without floating point.
fn square_roots(values: &mut [u32]) {
    let (vectors, rest) = values.as_chunks_mut::<4>();
    for values in vectors {
        // SAFETY: reads the array.
        let mut remainder = unsafe { vld1q_u32(values.as_ptr()) };
        let mut root = vdupq_n_u32(0);
        for round in 0..16 {
            let bit = vdupq_n_u32(1 << (30 - 2 * round));
            let trial = vaddq_u32(root, bit);
            let fits = vcgeq_u32(remainder, trial);
            remainder = vsubq_u32(remainder, vandq_u32(trial, fits));
            root = vaddq_u32(vshrq_n_u32::<1>(root), vandq_u32(bit, fits));
        }
        // SAFETY: writes the array.
        unsafe { vst1q_u32(values.as_mut_ptr(), root) };
    }
    scalar::square_roots(rest);
}

fn stem(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]) {
    let (channels, shift) = (layer.bias.len().max(1), right(layer.shift));
    let weights = side.checked_mul(side).and_then(|taps| taps.checked_mul(channels));
    if weights.is_none_or(|weights| layer.weight.len() < weights) {
        return;
    }
    let width = rows.len() / (side * channels).max(1);
    for (x, output) in output.chunks_exact_mut(channels).enumerate() {
        // The first of the window's columns that stands in the map, and the one behind the last.
        let left = x.saturating_mul(side);
        let first = padding.saturating_sub(left).min(side);
        let end = width.saturating_add(padding).saturating_sub(left).min(side);
        for (block, output) in output.as_chunks_mut().0.iter_mut().enumerate() {
            let c = 8 * block;
            let mut acc = load_i32(&eight(layer.bias, c));
            for row in 0..if first < end { side } else { 0 } {
                // SAFETY: column `left + first - padding` of the map's row, which has `width` columns.
                let values = unsafe { rows.as_ptr().add((row * width + left + first - padding) * channels + c) };
                // SAFETY: one of `side * side` taps; all are there.
                let weights = unsafe { layer.weight.as_ptr().add((row * side + first) * channels + c) };
                for at in (0..(end - first) * channels).step_by(channels) {
                    // SAFETY: a column and a tap up to `end`, which stand in the map and in the kernel; these eight are among the channels.
                    let (value, weight) = unsafe { (vld1q_s16(values.add(at)), vld1_s8(weights.add(at))) };
                    acc = multiply_add(acc, value, vmovl_s8(weight));
                }
            }
            store_i16(output, requantize(acc, load_i16(&eight(layer.multiplier, c)), shift));
        }
    }
}

/// `len` values from index `at` on; none if not all are there.
#[inline(always)]
fn part<T>(values: &[T], at: usize, len: usize) -> &[T] {
    values.get(at..).and_then(|values| values.get(..len)).unwrap_or_default()
}

/// The window's taps in one row.
const SIDE: usize = DEPTHWISE_SIDE;
const HALF: usize = SIDE / 2;

/// Eight channels of a depthwise layer, in registers and widened.
struct Channels {
    weight: [[int16x8_t; SIDE]; SIDE],
    bias: [int32x4_t; 2],
    multiplier: int16x8_t,
    shift: int32x4_t,
}

impl Channels {
    fn of(layer: &Depthwise<'_>, channels: usize, c: usize) -> Self {
        let mut weight = [[vdupq_n_s16(0); SIDE]; SIDE];
        for (tap, weight) in weight.as_flattened_mut().iter_mut().enumerate() {
            *weight = vmovl_s8(load_i8(&eight(layer.weight, tap * channels + c)));
        }
        let (bias, multiplier) = (load_i32(&eight(layer.bias, c)), load_i16(&eight(layer.multiplier, c)));
        Self { weight, bias, multiplier, shift: right(layer.shift) }
    }
}

fn depthwise(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    let channels = rows.channels;
    if !channels.is_multiple_of(8) || !rows.complete(&area.y) {
        return;
    }
    let line = (area.x.len() * channels).max(1);
    for c in (0..channels).step_by(8) {
        let constants = Channels::of(layer, channels, c);
        for (y, output) in area.y.clone().zip(output.chunks_exact_mut(line)) {
            for x in area.x.clone().step_by(8) {
                let output = output.get_mut((x - area.x.start) * channels..).unwrap_or_default();
                let left = area.x.end - x;
                let inside = |pixels| x >= HALF && rows.side.checked_sub(pixels + HALF).is_some_and(|last| x <= last);
                // SAFETY: rows and channels were checked above, the columns here.
                unsafe {
                    match (left > 4, inside(if left > 4 { 8 } else { 4 })) {
                        (true, true) => depthwise_tile::<8, true>(rows, &constants, c, y, x, output),
                        (true, false) => depthwise_tile::<8, false>(rows, &constants, c, y, x, output),
                        (false, true) => depthwise_tile::<4, true>(rows, &constants, c, y, x, output),
                        (false, false) => depthwise_tile::<4, false>(rows, &constants, c, y, x, output),
                    }
                }
            }
        }
    }
}

/// The body once for each number. The compiler leaves loops of this size as they are, and the accumulators in memory.
macro_rules! unrolled {
    ($i:ident in $($number:literal)* => $body:block) => {
        $({
            let $i: usize = $number;
            $body
        })*
    };
}

/// `P` pixels of row `y` from column `x` on, 8 channels from `c` on; as many as `output` has places for are written. `INSIDE`: all
/// columns of all windows stand in the map.
///
/// # Safety
/// The rows of the windows are complete; the eight channels exist; `INSIDE` is true.
#[inline(always)]
unsafe fn depthwise_tile<const P: usize, const INSIDE: bool>(
    rows: &Rows<'_>,
    constants: &Channels,
    c: usize,
    y: usize,
    x: usize,
    output: &mut [i16],
) {
    let mut acc = [constants.bias; P];
    for row in y.saturating_sub(HALF)..(y + HALF + 1).min(rows.side) {
        // SAFETY: one of the seven rows of the window.
        let weight = unsafe { *constants.weight.get_unchecked(row + HALF - y) };
        let values = rows.row(row);
        unrolled!(column in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 => {
            let at = x.wrapping_add(column).wrapping_sub(HALF);
            if column < P + SIDE - 1 && (INSIDE || at < rows.side) {
                debug_assert!(at < rows.side);
                // SAFETY: a row has `side * channels` values, as the caller promised, and `at < side`: if `INSIDE`, by its promise too.
                let value = unsafe { vld1q_s16(values.as_ptr().add(at * rows.channels + c)) };
                unrolled!(pixel in 0 1 2 3 4 5 6 7 => {
                    if pixel < P && (pixel..pixel + SIDE).contains(&column) {
                        acc[pixel] = multiply_add(acc[pixel], value, weight[column - pixel]);
                    }
                });
            }
        });
    }
    for (acc, output) in acc.into_iter().zip(output.chunks_exact_mut(rows.channels.max(1))) {
        if let Some(output) = eight_mut(output, c) {
            store_i16(output, requantize(acc, constants.multiplier, constants.shift));
        }
    }
}

/// The same pointer, of which the compiler forgets how it was computed: it would compute it again in every round of a loop.
#[inline(always)]
fn opaque(mut pointer: *const i16) -> *const i16 {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {0} */", inout(reg) pointer, options(readonly, nostack, preserves_flags)) };
    pointer
}

/// The initial convolution, 8 pixels times 8 outputs: the weights of four inputs come apart by `ld4`, are widened, and multiply one
/// input of each pixel by element. 16 accumulators, 4 weights, one register of inputs a pixel.
fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let windows = layer.windows(&rows, bands, output.len()).filter(|_| layer.complete());
    let Some((segment, pixels)) = windows else { return };
    let shift = right(layer.shift);
    for c in (0..layer.outputs).step_by(8) {
        let (bias, multiplier) = (load_i32(&eight(layer.bias, c)), load_i16(&eight(layer.multiplier, c)));
        let weight = part(layer.weight, c / PANEL * PANEL * layer.inputs, PANEL * layer.inputs);
        for first in (0..pixels).step_by(8) {
            let mut acc = [bias; 8];
            // Pixels beyond the last are computed as the last, and not written.
            let at = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| (first + i).min(pixels - 1) * bands);
            let mut groups = weight.as_chunks::<{ PANEL * GROUP }>().0.iter();
            for row in rows {
                // SAFETY: all rows have `segment` values from the last pixel on, as was checked.
                let inputs = at.map(|at| opaque(unsafe { row.as_ptr().add(at) }));
                for (k, group) in (0..segment).step_by(GROUP).zip(&mut groups) {
                    // SAFETY: the 32 bytes of 8 outputs in the 64 of a panel.
                    let weight = unsafe { vld4_s8(group.as_ptr().add(c % PANEL * GROUP)) };
                    let weight = [weight.0, weight.1, weight.2, weight.3].map(vmovl_s8);
                    for (acc, input) in acc.iter_mut().zip(inputs) {
                        // SAFETY: `k + 4 <= segment`, of which there are so many from the pixel on.
                        let input = unsafe { vld1_s16(input.add(k)) };
                        let [low, high] = acc;
                        *low = vmlal_lane_s16::<0>(*low, vget_low_s16(weight[0]), input);
                        *high = vmlal_high_lane_s16::<0>(*high, weight[0], input);
                        *low = vmlal_lane_s16::<1>(*low, vget_low_s16(weight[1]), input);
                        *high = vmlal_high_lane_s16::<1>(*high, weight[1], input);
                        *low = vmlal_lane_s16::<2>(*low, vget_low_s16(weight[2]), input);
                        *high = vmlal_high_lane_s16::<2>(*high, weight[2], input);
                        *low = vmlal_lane_s16::<3>(*low, vget_low_s16(weight[3]), input);
                        *high = vmlal_high_lane_s16::<3>(*high, weight[3], input);
                    }
                }
            }
            let output = output.get_mut(first * layer.outputs..).unwrap_or_default();
            for (acc, output) in acc.into_iter().zip(output.chunks_exact_mut(layer.outputs.max(1))) {
                if let Some(output) = eight_mut(output, c) {
                    store_i16(output, requantize(acc, multiplier, shift));
                }
            }
        }
    }
}
