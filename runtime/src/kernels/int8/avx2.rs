//! x86-64 with AVX2, and with the VNNI of 256-bit registers (AVX-VNNI) where AVX-512 is missing.
//!
//! ## Matrix products without VNNI
//! `vpmaddubsw` saturates at 16 bits, so that it cannot promise the same bits; `vpmaddwd` of bytes widened to 16 bits is exact. A group
//! of the packed weights is 64 bytes: four registers of four outputs by four inputs, whose products come in two parts an
//! output that are added at the end. One tile is three pixels by one panel: twelve accumulators, an input, weights and a product of 16 registers.
//! The inputs of three pixels are widened once for all panels, in 6 KiB of the stack.
//!
//! ## With VNNI
//! `vpdpbusd` on unsigned inputs as in `avx512.rs`: six pixels by one panel, twelve accumulators.
//!
//! ## The rest
//! The table is gathered, widened to 32 bits; for GRN's sums a table of squares is. The depthwise convolution interleaves two rows as in
//! `avx512.rs`, four outputs by sixteen channels at a time. LayerNorm and the stem are the scalar text, vectorised by the compiler, with the
//! processor's square root of binary64, which is exact for 32-bit numbers.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::*;
use crate::kernels::fixed::isqrt32;

/// AVX2.
pub static AVX2: Int8Kernels = Int8Kernels {
    name: "avx2",
    // SAFETY, for each, here and below: a set is handed out only where the processor has the instructions.
    prepare: scalar::prepare,
    layer_norm: |values, norm, output| unsafe { layer_norm::<0>(values, norm, output) },
    expand: |input, layer, gelu, output, squares| unsafe { expand::<false>(input, layer, gelu, output, squares) },
    activate: |values, table, multipliers| unsafe { activate::<0>(values, table, multipliers) },
    activate_split: |values, table, multipliers, low| unsafe { activate_split::<0>(values, table, multipliers, low) },
    project: |input, layer, residual| unsafe { project::<false>(input, layer, residual) },
    ..SHARED
};

/// AVX2 with AVX-VNNI.
pub static AVX_VNNI: Int8Kernels = Int8Kernels {
    name: "avx-vnni",
    prepare: |layer, bias| unsafe { prepare(layer, bias) },
    layer_norm: |values, norm, output| unsafe { layer_norm::<-128>(values, norm, output) },
    expand: |input, layer, gelu, output, squares| unsafe { expand::<true>(input, layer, gelu, output, squares) },
    activate: |values, table, multipliers| unsafe { activate::<-128>(values, table, multipliers) },
    activate_split: |values, table, multipliers, low| unsafe {
        activate_split::<-128>(values, table, multipliers, low)
    },
    project: |input, layer, residual| unsafe { project::<true>(input, layer, residual) },
    ..SHARED
};

const SHARED: Int8Kernels = Int8Kernels {
    input: |values, band, output, stride| unsafe { input(values, band, output, stride) },
    initial: |rows, bands, layer, output| unsafe { initial(rows, bands, layer, output) },
    stem: |rows, side, padding, layer, output| unsafe { stem(rows, side, padding, layer, output) },
    layer_norm_i16: |values, norm| unsafe { layer_norm_i16(values, norm) },
    affine: |values, gain, offset, shift| unsafe { affine(values, gain, offset, shift) },
    depthwise: |rows, area, layer, output| unsafe { depthwise(rows, area, layer, output) },
    square_roots: |values| unsafe { square_roots(values) },
    ..scalar::SCALAR
};

macro_rules! avx2 {
    ($(fn $name:ident$(<const $flip:ident: i8>)?($($arg:ident: $type:ty),*) $body:block)*) => {
        $(#[target_feature(enable = "avx2")]
        fn $name$(<const $flip: i8>)?($($arg: $type),*) $body)*
    };
}

avx2! {
    fn input(values: &[f32], band: &FloatBand, output: &mut [i16], stride: usize) {
        scalar::input(values, band, output, stride);
    }

    fn stem(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]) {
        scalar::stem(rows, side, padding, layer, output);
    }

    fn affine(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32) {
        scalar::affine(values, gain, offset, shift);
    }

    fn layer_norm_i16(values: &mut [i16], norm: &Norm) {
        scalar::layer_norm_i16(values, norm, root);
    }

    fn layer_norm<const FLIP: i8>(values: &[i16], norm: &Norm, output: &mut [i8]) {
        scalar::layer_norm::<FLIP>(values, norm, output, root);
    }

    fn activate_split<const FLIP: i8>(values: &mut [i8], table: &Table, multipliers: &[i16], low: &mut [i8]) {
        scalar::activate_split::<FLIP>(values, table, multipliers, low);
    }

    fn square_roots(values: &mut [u32]) {
        for value in values {
            *value = isqrt32(*value);
        }
    }
}

/// The integer square root: binary64's is rounded, but never up to an integer that the root of a smaller one does not reach.
#[inline(always)]
fn root(value: u32) -> u32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let value = _mm_cvtsi64_sd(_mm_setzero_pd(), i64::from(value));
        _mm_cvttsd_si64(_mm_sqrt_sd(value, value)) as u32
    }
}

/// The bias without 128 times the sum of the weights.
#[target_feature(enable = "avx2")]
fn prepare(layer: &Dense<'_>, bias: &mut [i32]) {
    let weights = layer.weight.chunks_exact(layer.inputs.saturating_mul(PANEL).max(1));
    for ((weights, from), to) in weights.zip(layer.bias.as_chunks::<PANEL>().0).zip(bias.as_chunks_mut::<PANEL>().0) {
        let mut sums = [0i32; PANEL];
        for group in weights.as_chunks::<{ PANEL * GROUP }>().0 {
            for o in 0..PANEL {
                for i in 0..GROUP {
                    sums[o] += i32::from(group[o * GROUP + i]);
                }
            }
        }
        for o in 0..PANEL {
            to[o] = from[o].wrapping_sub(sums[o] << 7);
        }
    }
}

/// The most inputs that are widened at once.
const WIDE: usize = 1024;

/// Three rows of inputs, widened to 16 bits.
#[repr(align(32))]
struct Wide([[i16; WIDE]; PIXELS]);

/// Pixels of a tile without VNNI.
const PIXELS: usize = 3;

/// Adds products of `inputs` inputs of three pixels and one panel to accumulators of four outputs in two parts each.
///
/// # Safety
/// `weight` points at `inputs / 4` groups, `inputs` is at most [`WIDE`] and a multiple of 4.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn tile(wide: &Wide, weight: *const i8, inputs: usize, acc: &mut [[__m256i; 4]; PIXELS]) {
    // SAFETY: as the caller promises; every offset stays within the rows and the panel.
    unsafe {
        let mut sums = *acc;
        let x = wide.0.as_ptr().cast::<i16>();
        for group in 0..inputs / GROUP {
            for q in 0..4 {
                let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(weight.add(group * 64 + q * 16).cast()));
                for p in 0..PIXELS {
                    let x = _mm256_set1_epi64x(x.add(p * WIDE + group * GROUP).cast::<i64>().read());
                    sums[p][q] = _mm256_add_epi32(sums[p][q], _mm256_madd_epi16(x, w));
                }
            }
        }
        *acc = sums;
    }
}

/// The sums of the two parts of sixteen outputs, and the bias.
///
/// # Safety
/// `bias` points at 16 values.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn join(acc: [__m256i; 4], bias: *const i32) -> [__m256i; 2] {
    let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(acc[0], acc[1]));
    let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(acc[2], acc[3]));
    // SAFETY: as the caller promises.
    unsafe {
        [
            _mm256_add_epi32(low, _mm256_loadu_si256(bias.cast())),
            _mm256_add_epi32(high, _mm256_loadu_si256(bias.add(8).cast())),
        ]
    }
}

/// Accumulators of `P` pixels by one panel with AVX-VNNI, for unsigned inputs: outputs 0 to 7, 8 to 15.
///
/// # Safety
/// `input` points at `P` rows of `inputs` bytes, `weight` at a panel, `bias` at 16 values; the processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn tile_vnni<const P: usize>(
    input: *const i8,
    weight: *const i8,
    inputs: usize,
    bias: *const i32,
) -> [[__m256i; 2]; P] {
    // SAFETY: as the caller promises; the instruction reads and writes the named registers only.
    unsafe {
        let start = [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.add(8).cast())];
        let mut acc = [start; P];
        for group in 0..inputs / GROUP {
            let a = _mm256_loadu_si256(weight.add(group * 64).cast());
            let b = _mm256_loadu_si256(weight.add(group * 64 + 32).cast());
            for p in 0..P {
                let x = _mm256_set1_epi32(input.add(p * inputs + group * GROUP).cast::<i32>().read_unaligned());
                let [mut low, mut high] = acc[p];
                core::arch::asm!("{{vex}} vpdpbusd {0}, {2}, {3}", "{{vex}} vpdpbusd {1}, {2}, {4}",
                    inout(ymm_reg) low, inout(ymm_reg) high, in(ymm_reg) x, in(ymm_reg) a, in(ymm_reg) b,
                    options(pure, nomem, nostack, preserves_flags));
                acc[p] = [low, high];
            }
        }
        acc
    }
}

/// Sixteen requantized values in their order.
#[inline]
#[target_feature(enable = "avx2")]
fn requantize(acc: [__m256i; 2], shift: __m128i, multiplier: __m256i) -> __m256i {
    let narrow = _mm256_packs_epi32(_mm256_sra_epi32(acc[0], shift), _mm256_sra_epi32(acc[1], shift));
    _mm256_mulhrs_epi16(_mm256_permute4x64_epi64::<0b11_01_10_00>(narrow), multiplier)
}

/// Calls `finish(pixel, first output, sixteen requantized values)` for all pixels and panels.
///
/// # Safety
/// `layer` is sound; with `VNNI` the processor has AVX-VNNI.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn matrix<const VNNI: bool>(input: &[i8], layer: &Dense<'_>, mut finish: impl FnMut(usize, usize, __m256i)) {
    let inputs = layer.inputs;
    let pixels = input.len() / inputs;
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    // SAFETY: pixels, panels, biases and multipliers exist, as the caller promises.
    unsafe {
        let panel = |o: usize| {
            let multiplier = _mm256_loadu_si256(layer.multiplier.as_ptr().add(o).cast());
            (layer.weight.as_ptr().add(o * inputs), layer.bias.as_ptr().add(o), multiplier)
        };
        if VNNI {
            for o in (0..layer.outputs).step_by(PANEL) {
                let (weight, bias, multiplier) = panel(o);
                let mut p = 0;
                macro_rules! run {
                    ($n:literal) => {
                        while pixels - p >= $n {
                            let acc = tile_vnni::<$n>(input.as_ptr().add(p * inputs), weight, inputs, bias);
                            for i in 0..$n {
                                finish(p + i, o, requantize(acc[i], shift, multiplier));
                            }
                            p += $n;
                        }
                    };
                }
                run!(6);
                run!(3);
                run!(1);
            }
            return;
        }
        let mut wide = Wide([[0; WIDE]; PIXELS]);
        for first in (0..pixels).step_by(PIXELS) {
            let count = PIXELS.min(pixels - first);
            for o in (0..layer.outputs).step_by(PANEL) {
                let (weight, bias, multiplier) = panel(o);
                let mut acc = [[_mm256_setzero_si256(); 4]; PIXELS];
                for from in (0..inputs).step_by(WIDE) {
                    let len = WIDE.min(inputs - from);
                    if o == 0 || inputs > WIDE {
                        for p in 0..count {
                            let row = input.as_ptr().add((first + p) * inputs + from);
                            for (i, to) in wide.0[p].iter_mut().enumerate().take(len) {
                                *to = i16::from(*row.add(i));
                            }
                        }
                    }
                    tile(&wide, weight.add(from * PANEL), len, &mut acc);
                }
                for (p, acc) in acc.into_iter().enumerate().take(count) {
                    finish(first + p, o, requantize(join(acc, bias), shift, multiplier));
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn expand<const VNNI: bool>(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let outputs = layer.outputs;
    let pixels = input.len() / layer.inputs.max(1);
    let fits = output.len() == pixels * outputs && squares.len() == outputs && pixels <= MAX_STRIP;
    if !layer.sound() || !outputs.is_multiple_of(PANEL) || !fits {
        return;
    }
    let zero_point = _mm256_set1_epi16(gelu.zero_point as i16);
    // The square of the entry of index 0, 1, ... 127, -128, ... -1: of the index taken as unsigned.
    let mut table = [0i32; TABLE];
    for i in 0..TABLE {
        let value = i32::from(gelu.table[i ^ 0x80]);
        table[i] = value * value;
    }
    // SAFETY: sixteen values of each pixel's `outputs`, a multiple of 16, are written; eight indices at a time are read.
    unsafe {
        matrix::<VNNI>(input, layer, |p, o, value| {
            let value = _mm256_adds_epi16(value, zero_point);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value));
            _mm_storeu_si128(output.as_mut_ptr().add(p * outputs + o).cast(), bytes);
        });
        for o in (0..outputs).step_by(8) {
            let mut sum = _mm256_setzero_si256();
            for p in 0..pixels {
                let index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(output.as_ptr().add(p * outputs + o).cast()));
                sum = _mm256_add_epi32(sum, _mm256_i32gather_epi32::<4>(table.as_ptr(), index));
            }
            let mut sums = [0u32; 8];
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
            for (total, &sum) in squares.iter_mut().skip(o).zip(&sums) {
                *total += u64::from(sum);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn activate<const FLIP: i8>(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    let channels = multipliers.len();
    let mut wide = [0i32; TABLE];
    for i in 0..TABLE {
        wide[i] = i32::from(table[i ^ 0x80]);
    }
    let whole = channels / 16 * 16;
    for pixel in values.chunks_exact_mut(channels.max(1)) {
        // SAFETY: sixteen values and multipliers from `c` on exist; indices are bytes.
        unsafe {
            for c in (0..whole).step_by(16) {
                let at = pixel.as_mut_ptr().add(c);
                let index = _mm_loadu_si128(at.cast());
                let low = _mm256_i32gather_epi32::<4>(wide.as_ptr(), _mm256_cvtepu8_epi32(index));
                let high = _mm256_i32gather_epi32::<4>(wide.as_ptr(), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(index)));
                let h = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                let p = _mm256_mulhrs_epi16(h, _mm256_loadu_si256(multipliers.as_ptr().add(c).cast()));
                let bytes = _mm_packs_epi16(_mm256_castsi256_si128(p), _mm256_extracti128_si256::<1>(p));
                _mm_storeu_si128(at.cast(), _mm_xor_si128(bytes, _mm_set1_epi8(FLIP)));
            }
        }
        for (value, &multiplier) in pixel.iter_mut().zip(multipliers).skip(whole) {
            *value = crate::kernels::fixed::saturate_i8(crate::kernels::fixed::multiply_q15(
                scalar::gelu(table, *value),
                multiplier,
            )) ^ FLIP;
        }
    }
}

#[target_feature(enable = "avx2")]
fn project<const VNNI: bool>(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let outputs = layer.outputs;
    let pixels = input.len() / layer.inputs.max(1);
    if !layer.sound() || residual.len() != pixels * outputs {
        return;
    }
    // SAFETY: sixteen outputs from `o` on exist, or eight.
    unsafe {
        matrix::<VNNI>(input, layer, |p, o, value| {
            let at = residual.as_mut_ptr().add(p * outputs + o);
            if outputs - o >= PANEL {
                _mm256_storeu_si256(at.cast(), _mm256_adds_epi16(_mm256_loadu_si256(at.cast()), value));
            } else {
                let value = _mm256_castsi256_si128(value);
                _mm_storeu_si128(at.cast(), _mm_adds_epi16(_mm_loadu_si128(at.cast()), value));
            }
        });
    }
}

#[target_feature(enable = "avx2")]
fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let outputs = layer.outputs;
    let Some((segment, pixels)) = layer.windows(&rows, bands, output.len()).filter(|_| layer.sound()) else { return };
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    for o in (0..outputs).step_by(PANEL) {
        let mut first = 0;
        while first < pixels {
            // SAFETY: the second pixel of a tile is the first again if there is none; `windows` allows four values from each
            // pixel's groups on; sixteen outputs from `o` on exist, or eight.
            unsafe {
                let second = (first + 1).min(pixels - 1);
                let mut acc = [[_mm256_setzero_si256(); 4]; 2];
                let mut weight = layer.weight.as_ptr().add(o * layer.inputs);
                for row in rows {
                    for group in 0..segment / GROUP {
                        let load = |p: usize| {
                            let four = row.as_ptr().add(p * bands + group * GROUP).cast::<i64>();
                            _mm256_set1_epi64x(four.read_unaligned())
                        };
                        let x = [load(first), load(second)];
                        for q in 0..4 {
                            let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(weight.add(q * 16).cast()));
                            for p in 0..2 {
                                acc[p][q] = _mm256_add_epi32(acc[p][q], _mm256_madd_epi16(x[p], w));
                            }
                        }
                        weight = weight.add(64);
                    }
                }
                let multiplier = _mm256_loadu_si256(layer.multiplier.as_ptr().add(o).cast());
                for (p, acc) in [first, second].into_iter().zip(acc) {
                    let value = requantize(join(acc, layer.bias.as_ptr().add(o)), shift, multiplier);
                    let at = output.as_mut_ptr().add(p * outputs + o);
                    if outputs - o >= PANEL {
                        _mm256_storeu_si256(at.cast(), value);
                    } else {
                        _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(value));
                    }
                }
                first += 2;
            }
        }
    }
}

/// Outputs of a row that are computed side by side.
const COLUMNS: usize = 4;
/// Pairs of kernel rows.
const PAIRS: usize = 4;
/// What stands outside the map.
static ZERO: [i16; 16] = [0; 16];

#[target_feature(enable = "avx2")]
fn depthwise(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    let channels = rows.channels;
    let sound = channels.is_multiple_of(8)
        && layer.weight.len() >= 49 * channels
        && layer.bias.len() >= channels
        && layer.multiplier.len() >= channels
        && output.len() == area.y.len() * area.x.len() * channels
        && area.x.end <= rows.side
        && area.y.end <= rows.side
        && rows.complete(&area.y);
    if !sound {
        return;
    }
    for c in (0..channels).step_by(16) {
        // SAFETY: the lengths were checked; `block` touches 16 channels, or 8, from `c` on.
        unsafe {
            if channels - c >= 16 {
                block::<2>(rows, area, layer, output, c);
            } else {
                block::<1>(rows, area, layer, output, c);
            }
        }
    }
}

/// The values of 8 `V` channels of two rows, interleaved.
///
/// # Safety
/// 8 `V` values can be read at `a` and `b`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn interleave<const V: usize>(a: *const i16, b: *const i16) -> [__m256i; V] {
    let mut pair = [_mm256_setzero_si256(); V];
    // SAFETY: as the caller promises.
    unsafe {
        if V == 2 {
            let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
            pair[0] = _mm256_unpacklo_epi16(a, b);
            pair[V - 1] = _mm256_unpackhi_epi16(a, b);
        } else {
            let (a, b) = (_mm_loadu_si128(a.cast()), _mm_loadu_si128(b.cast()));
            pair[0] = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
        }
    }
    pair
}

/// All of `area` for 8 `V` channels from `c` on.
///
/// # Safety
/// The slices have the lengths that [`depthwise`] checks, and the channels exist.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn block<const V: usize>(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16], c: usize) {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let (channels, side) = (rows.channels, rows.side);
    // SAFETY: as the caller promises; columns are checked against the row.
    unsafe {
        let mut taps = [[[_mm256_setzero_si256(); V]; DEPTHWISE_SIDE]; PAIRS];
        for (pair, taps) in taps.iter_mut().enumerate() {
            for (kx, tap) in taps.iter_mut().enumerate() {
                let (mut a, mut b) = (ZERO, ZERO);
                for (ky, wide) in [(2 * pair, &mut a), (2 * pair + 1, &mut b)] {
                    let at = (ky * DEPTHWISE_SIDE + kx) * channels + c;
                    for (to, &w) in wide.iter_mut().zip(layer.weight.get(at..at + 8 * V).unwrap_or_default()) {
                        *to = if ky < DEPTHWISE_SIDE { i16::from(w) } else { 0 };
                    }
                }
                *tap = interleave::<V>(a.as_ptr(), b.as_ptr());
            }
        }
        let mut bias = [_mm256_setzero_si256(); V];
        let load = |i: usize| _mm256_loadu_si256(layer.bias.as_ptr().add(c + i).cast());
        if V == 2 {
            // In the order of the interleaved values.
            bias[0] = _mm256_permute2x128_si256::<0x20>(load(0), load(8));
            bias[V - 1] = _mm256_permute2x128_si256::<0x31>(load(0), load(8));
        } else {
            bias[0] = load(0);
        }
        let shift = _mm_cvtsi32_si128(layer.shift as i32);
        let width = area.x.len();
        for (row, y) in area.y.clone().enumerate() {
            let line = |ky: usize| match (y + ky).checked_sub(HALF) {
                Some(at) if at < side && ky < DEPTHWISE_SIDE => (rows.row(at).as_ptr().add(c), channels),
                _ => (ZERO.as_ptr(), 0),
            };
            let mut first = 0;
            while first < width {
                let count = COLUMNS.min(width - first);
                let x = area.x.start + first;
                let mut acc = [bias; COLUMNS];
                for (pair, taps) in taps.iter().enumerate() {
                    let ((a, step_a), (b, step_b)) = (line(2 * pair), line(2 * pair + 1));
                    if step_a == 0 && step_b == 0 {
                        continue;
                    }
                    for j in 0..COLUMNS + DEPTHWISE_SIDE - 1 {
                        let column = (x + j).wrapping_sub(HALF);
                        if column >= side {
                            continue;
                        }
                        let values = interleave::<V>(a.add(column * step_a), b.add(column * step_b));
                        for i in 0..COLUMNS {
                            if j >= i && j - i < DEPTHWISE_SIDE {
                                for v in 0..V {
                                    let product = _mm256_madd_epi16(values[v], taps[j - i][v]);
                                    acc[i][v] = _mm256_add_epi32(acc[i][v], product);
                                }
                            }
                        }
                    }
                }
                for (i, acc) in acc.iter().enumerate().take(count) {
                    let to = output.as_mut_ptr().add((row * width + first + i) * channels + c);
                    let multiplier = layer.multiplier.as_ptr().add(c);
                    if V == 2 {
                        let narrow =
                            _mm256_packs_epi32(_mm256_sra_epi32(acc[0], shift), _mm256_sra_epi32(acc[V - 1], shift));
                        let value = _mm256_mulhrs_epi16(narrow, _mm256_loadu_si256(multiplier.cast()));
                        _mm256_storeu_si256(to.cast(), value);
                    } else {
                        let wide = _mm256_sra_epi32(acc[0], shift);
                        let narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
                        _mm_storeu_si128(to.cast(), _mm_mulhrs_epi16(narrow, _mm_loadu_si128(multiplier.cast())));
                    }
                }
                first += count;
            }
        }
    }
}
