//! The depthwise convolution and LayerNorm of the AVX-512 set; `avx512.rs` says how they work.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::*;
use crate::kernels::fixed::{self, Normalizer};

/// Outputs of a row that are computed side by side.
const COLUMNS: usize = 8;
/// Pairs of kernel rows.
const PAIRS: usize = 4;
/// What stands outside the map.
static ZERO: [i16; 32] = [0; 32];

/// Weights of a block of channels: for each pair of kernel rows and each column, the interleaved weights of both rows.
type Taps<const V: usize> = [[[__m512i; V]; DEPTHWISE_SIDE]; PAIRS];

/// A row of the map from some channel on; the stride is 0 if there is no such row.
#[derive(Clone, Copy)]
struct Line {
    at: *const i16,
    stride: usize,
}

/// `acc` plus two products of 16 bits in each lane.
///
/// The intrinsic would do, but the compiler splits it into a product and a sum where it does not know the processor (LLVM's tuning for
/// generic x86-64), which takes a third longer.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the instruction reads and writes the named registers only.
    unsafe {
        core::arch::asm!("vpdpwssd {0}, {1}, {2}", inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// See [`Int8Kernels::depthwise`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn depthwise(rows: &Rows<'_>, area: &Area, layer: &Depthwise<'_>, output: &mut [i16]) {
    let channels = rows.channels;
    let sound = layer.weight.len() >= 49 * channels
        && layer.bias.len() >= channels
        && layer.multiplier.len() >= channels
        && output.len() == area.y.len() * area.x.len() * channels
        && area.x.end <= rows.side
        && area.y.end <= rows.side
        && rows.complete(&area.y);
    if !sound {
        return;
    }
    let mut c = 0;
    while c < channels {
        // SAFETY: the lengths were checked; `block` touches `count` channels from `c` on, and columns and rows of the map.
        unsafe {
            let count = (channels - c).min(32);
            if count > 16 {
                block::<2>(rows, area, layer, output, c, count);
            } else {
                block::<1>(rows, area, layer, output, c, count);
            }
            c += count;
        }
    }
}

/// The values of up to 16 `V` channels of two rows, interleaved. For two registers: lower halves of each lane of eight, upper halves.
///
/// # Safety
/// `mask` channels can be read at `a` and `b`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn interleave<const V: usize>(a: *const i16, b: *const i16, mask: u32) -> [__m512i; V] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut pair = [_mm512_setzero_si512(); V];
        if V == 2 {
            let (a, b) = (_mm512_maskz_loadu_epi16(mask, a), _mm512_maskz_loadu_epi16(mask, b));
            pair[0] = _mm512_unpacklo_epi16(a, b);
            pair[V - 1] = _mm512_unpackhi_epi16(a, b);
        } else {
            let load = |at| _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask as u16, at));
            pair[0] = _mm512_or_si512(load(a), _mm512_slli_epi32::<16>(load(b)));
        }
        pair
    }
}

/// Weights of one tap with 16 bits, zeros if there is none.
///
/// # Safety
/// `mask` weights can be read at `at`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn widen(at: Option<*const i8>, mask: u32) -> [i16; 32] {
    let mut wide = ZERO;
    if let Some(at) = at {
        // SAFETY: as the caller promises; 32 values of 16 bits are one register.
        unsafe {
            let bytes = _mm256_maskz_loadu_epi8(mask, at);
            _mm512_storeu_si512(wide.as_mut_ptr().cast(), _mm512_cvtepi8_epi16(bytes));
        }
    }
    wide
}

/// Biases in the order of the interleaved values.
///
/// # Safety
/// `mask` values can be read at `at`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn interleaved_bias<const V: usize>(at: *const i32, mask: u32) -> [__m512i; V] {
    let mut bias = [_mm512_setzero_si512(); V];
    // SAFETY: as the caller promises.
    unsafe {
        if V == 2 {
            let [a, b] = [0, 16].map(|i| _mm512_maskz_loadu_epi32((mask >> i) as u16, at.wrapping_add(i)));
            bias[0] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), b);
            bias[V - 1] = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), b);
        } else {
            bias[0] = _mm512_maskz_loadu_epi32(mask as u16, at);
        }
    }
    bias
}

/// All of `area` for `count` channels from `c` on.
///
/// # Safety
/// The slices have the lengths that [`depthwise`] checks, and `c + count` is at most the number of channels.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn block<const V: usize>(
    rows: &Rows<'_>,
    area: &Area,
    layer: &Depthwise<'_>,
    output: &mut [i16],
    c: usize,
    count: usize,
) {
    let (channels, side) = (rows.channels, rows.side);
    let mask = u32::MAX >> (32 - count);
    // SAFETY: as the caller promises.
    unsafe {
        let mut taps: Taps<V> = [[[_mm512_setzero_si512(); V]; DEPTHWISE_SIDE]; PAIRS];
        for (pair, taps) in taps.iter_mut().enumerate() {
            for (kx, tap) in taps.iter_mut().enumerate() {
                let row = |ky: usize| {
                    let tap = ky < DEPTHWISE_SIDE;
                    widen(tap.then(|| layer.weight.as_ptr().add((ky * DEPTHWISE_SIDE + kx) * channels + c)), mask)
                };
                let (a, b) = (row(2 * pair), row(2 * pair + 1));
                *tap = interleave::<V>(a.as_ptr(), b.as_ptr(), mask);
            }
        }
        let bias = interleaved_bias::<V>(layer.bias.as_ptr().add(c), mask);
        let multiplier = _mm512_maskz_loadu_epi16(mask, layer.multiplier.as_ptr().add(c));
        let shift = _mm_cvtsi32_si128(layer.shift as i32);
        let width = area.x.len();
        for (row, y) in area.y.clone().enumerate() {
            let lines: [Line; 2 * PAIRS] = core::array::from_fn(|ky| match (y + ky).checked_sub(DEPTHWISE_SIDE / 2) {
                Some(at) if at < side && ky < DEPTHWISE_SIDE => {
                    Line { at: rows.row(at).as_ptr().add(c), stride: channels }
                }
                _ => Line { at: ZERO.as_ptr(), stride: 0 },
            });
            let parts = width.div_ceil(COLUMNS);
            let mut done = 0;
            for part in 0..parts {
                let size = (width - done) / (parts - part);
                let to = output.as_mut_ptr().add((row * width + done) * channels + c);
                let x = area.x.start + done;
                // No output of the tile reaches beyond the row.
                let inner = x >= DEPTHWISE_SIDE / 2 && x + size + DEPTHWISE_SIDE / 2 <= side;
                macro_rules! run {
                    ($n:literal) => {{
                        let finish = |i: usize, acc: [__m512i; V]| {
                            let to = to.add(i * channels);
                            if V == 2 {
                                store([acc[0], acc[V - 1]], shift, multiplier, mask, to);
                            } else {
                                let narrow = _mm512_cvtsepi32_epi16(_mm512_sra_epi32(acc[0], shift));
                                let value = _mm256_mulhrs_epi16(narrow, _mm512_castsi512_si256(multiplier));
                                _mm256_mask_storeu_epi16(to, mask as u16, value);
                            }
                        };
                        if inner {
                            columns::<V, $n, true>(&lines, &taps, bias, x, side, mask, finish)
                        } else {
                            columns::<V, $n, false>(&lines, &taps, bias, x, side, mask, finish)
                        }
                    }};
                }
                match size {
                    1 => run!(1),
                    2 => run!(2),
                    3 => run!(3),
                    4 => run!(4),
                    5 => run!(5),
                    6 => run!(6),
                    7 => run!(7),
                    8 => run!(8),
                    _ => {}
                }
                done += size;
            }
        }
    }
}

/// Requantizes and writes up to 32 channels of accumulators in the order of the interleaved values.
///
/// # Safety
/// `mask` values can be written at `to`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn store(acc: [__m512i; 2], shift: __m128i, multiplier: __m512i, mask: u32, to: *mut i16) {
    let narrow = _mm512_packs_epi32(_mm512_sra_epi32(acc[0], shift), _mm512_sra_epi32(acc[1], shift));
    // SAFETY: as the caller promises.
    unsafe { _mm512_mask_storeu_epi16(to, mask, _mm512_mulhrs_epi16(narrow, multiplier)) }
}

/// Accumulators of `N` neighbouring outputs from column `x` on, each handed to `finish`.
///
/// # Safety
/// With `INNER` all outputs and what they look at lie within the row. Each line is a row of `side` pixels, of each of which the channels of `mask` can be read, or has stride 0.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn columns<const V: usize, const N: usize, const INNER: bool>(
    lines: &[Line; 2 * PAIRS],
    taps: &Taps<V>,
    bias: [__m512i; V],
    x: usize,
    side: usize,
    mask: u32,
    mut finish: impl FnMut(usize, [__m512i; V]),
) {
    const HALF: usize = DEPTHWISE_SIDE / 2;
    let mut acc = [bias; N];
    for (pair, taps) in lines.as_chunks::<2>().0.iter().zip(taps) {
        let [a, b] = pair;
        if a.stride == 0 && b.stride == 0 {
            continue;
        }
        let first = x.wrapping_sub(HALF);
        let (mut at_a, mut at_b) =
            (a.at.wrapping_add(first.wrapping_mul(a.stride)), b.at.wrapping_add(first.wrapping_mul(b.stride)));
        for j in 0..N + DEPTHWISE_SIDE - 1 {
            let (here_a, here_b) = (at_a, at_b);
            (at_a, at_b) = (at_a.wrapping_add(a.stride), at_b.wrapping_add(b.stride));
            if !INNER && first.wrapping_add(j) >= side {
                continue;
            }
            // SAFETY: the column is one of the row's.
            let values = unsafe { interleave::<V>(here_a, here_b, mask) };
            for i in 0..N {
                if j >= i && j - i < DEPTHWISE_SIDE {
                    for v in 0..V {
                        acc[i][v] = dpwssd(acc[i][v], values[v], taps[j - i][v]);
                    }
                }
            }
        }
    }
    for i in 0..N {
        finish(i, acc[i]);
    }
}

/// Positions whose normalisers are computed side by side.
const POSITIONS: usize = 8;

/// The normalisers of up to eight positions of `[positions, channels]`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn normalizers(values: &[i16], norm: &Norm, reciprocal: u32) -> [Normalizer; POSITIONS] {
    let (low, ones) = (_mm512_set1_epi64(0xffff_ffff), _mm512_set1_epi16(1));
    let (mut sums, mut squares) = ([_mm512_setzero_si512(); POSITIONS], [_mm512_setzero_si512(); POSITIONS]);
    for ((pixel, total), squares) in values.chunks_exact(norm.channels.max(1)).zip(&mut sums).zip(&mut squares) {
        for block in pixel.chunks(32) {
            let mask = u32::MAX >> (32 - block.len());
            // SAFETY: the mask has a bit for each value of `block`.
            let v = unsafe { _mm512_maskz_loadu_epi16(mask, block.as_ptr()) };
            *total = dpwssd(*total, v, ones);
            // Two squares sum to at most 2^31, which is taken as unsigned.
            let pair = _mm512_madd_epi16(v, v);
            let both = _mm512_add_epi64(_mm512_and_si512(pair, low), _mm512_srli_epi64::<32>(pair));
            *squares = _mm512_add_epi64(*squares, both);
        }
    }
    // Eight registers of eight parts to one register of eight sums.
    let merge = |a, b| _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let s = squares;
    let [a, b, c, d] = [merge(s[0], s[1]), merge(s[2], s[3]), merge(s[4], s[5]), merge(s[6], s[7])];
    let fold = |a, b| _mm512_add_epi64(_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b));
    // Lanes: 0 1 | 0 1 | 2 3 | 2 3, then 0 1 | 2 3 | 4 5 | 6 7.
    let squares = fold(fold(a, b), fold(c, d));
    // The same for sixteen parts of 32 bits.
    let merge = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let s = sums;
    let [a, b, c, d] = [merge(s[0], s[1]), merge(s[2], s[3]), merge(s[4], s[5]), merge(s[6], s[7])];
    let fold = |a, b| _mm512_add_epi32(_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b));
    let halves = fold(pairs(a, b), pairs(c, d));
    let sums = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(fold(halves, halves)));

    let set = |v: i64| _mm512_set1_epi64(v);
    let zero = _mm512_setzero_si512();
    let constants = &norm.constants;
    let square = _mm512_mul_epi32(sums, sums);
    let raw = _mm512_mullo_epi64(set(i64::from(norm.count)), squares);
    // Saturating at zero, as the scalar text does; only hostile padding gets there.
    let spread = _mm512_sub_epi64(_mm512_max_epu64(raw, square), square);
    let spread = _mm512_max_epu64(_mm512_add_epi64(spread, set(constants.epsilon as i64)), set(1));
    // The exponent of the number rounded towards zero is the place of its highest bit.
    let real = _mm512_cvt_roundepu64_pd::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(spread);
    let top = _mm512_sub_epi64(_mm512_srli_epi64::<52>(_mm512_castpd_si512(real)), set(1023));
    let scale = _mm512_and_si512(_mm512_sub_epi64(top, set(30)), set(!1));
    let (right, left) = (_mm512_max_epi64(scale, zero), _mm512_max_epi64(_mm512_sub_epi64(zero, scale), zero));
    let mantissa = _mm512_srlv_epi64(_mm512_sllv_epi64(spread, left), right);
    let root = _mm512_cvttpd_epu64(_mm512_sqrt_pd(_mm512_cvtepu64_pd(mantissa)));
    let numerator = _mm512_add_epi64(set(i64::from(constants.gain)), _mm512_srli_epi64::<1>(root));
    let factor = _mm512_cvttpd_epu64(_mm512_div_pd(_mm512_cvtepu64_pd(numerator), _mm512_cvtepu64_pd(root)));
    let shift = _mm512_add_epi64(set(i64::from(constants.exponent)), _mm512_srai_epi64::<1>(scale));
    let shift = _mm512_min_epi64(_mm512_max_epi64(shift, set(1)), set(30));
    // Both fit 32 bits with a sign, except the reciprocal of 1.
    let product =
        if norm.count > 1 { _mm512_mul_epi32(sums, set(i64::from(reciprocal))) } else { _mm512_slli_epi64::<31>(sums) };
    let mean = _mm512_srai_epi64::<16>(product);
    let half = _mm512_sllv_epi64(set(1), _mm512_sub_epi64(shift, set(1)));
    let offset = _mm512_sub_epi64(half, _mm512_srai_epi64::<15>(_mm512_mullo_epi64(mean, factor)));
    let unpack = |v| {
        let mut lanes = [0i32; POSITIONS];
        // SAFETY: eight values of 32 bits.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm512_cvtepi64_epi32(v)) };
        lanes
    };
    let (factor, offset, shift) = (unpack(factor), unpack(offset), unpack(shift));
    core::array::from_fn(|i| Normalizer { factor: factor[i], offset: offset[i], shift: shift[i] as u32 })
}

/// `(value * factor + offset) >> shift` of 32 values, saturated to i16.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn normalize(v: __m512i, by: &Normalizer) -> __m512i {
    let (factor, offset) = (_mm512_set1_epi32(by.factor), _mm512_set1_epi32(by.offset));
    let (shift, zero) = (_mm_cvtsi32_si128(by.shift as i32), _mm512_setzero_si512());
    // Next to a zero, a product of two i16 is exact; packing restores the order.
    let scaled = |half| _mm512_sra_epi32(_mm512_add_epi32(_mm512_madd_epi16(half, factor), offset), shift);
    _mm512_packs_epi32(scaled(_mm512_unpacklo_epi16(v, zero)), scaled(_mm512_unpackhi_epi16(v, zero)))
}

/// See [`Int8Kernels::layer_norm`]; bits of `FLIP` are flipped in each byte.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn layer_norm<const FLIP: i8>(values: &[i16], norm: &Norm, output: &mut [i8]) {
    let channels = norm.channels.max(1);
    let (group, reciprocal) = (POSITIONS.saturating_mul(channels).max(1), fixed::reciprocal(norm.count));
    let mut groups = values.chunks(group);
    let mut next = groups.next().map(|values| (values, normalizers(values, norm, reciprocal)));
    for output in output.chunks_mut(group) {
        let Some((values, normalizers_here)) = next else { return };
        // The normalisers of the next group are under way while this one is written: they take long, one after the other.
        next = groups.next().map(|values| (values, normalizers(values, norm, reciprocal)));
        let pixels = values.chunks_exact(channels).zip(output.chunks_exact_mut(channels));
        for ((values, output), by) in pixels.zip(&normalizers_here) {
            for (values, output) in values.chunks(32).zip(output.chunks_mut(32)) {
                let mask = u32::MAX >> (32 - values.len().min(output.len()));
                // SAFETY: the mask has a bit for each value of both slices.
                unsafe {
                    let v = normalize(_mm512_maskz_loadu_epi16(mask, values.as_ptr()), by);
                    let bytes = _mm256_xor_si256(_mm512_cvtsepi16_epi8(v), _mm256_set1_epi8(FLIP));
                    _mm256_mask_storeu_epi8(output.as_mut_ptr(), mask, bytes);
                }
            }
        }
    }
}

/// See [`Int8Kernels::layer_norm_i16`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn layer_norm_i16(values: &mut [i16], norm: &Norm) {
    let channels = norm.channels.max(1);
    let (group, reciprocal) = (POSITIONS.saturating_mul(channels).max(1), fixed::reciprocal(norm.count));
    let mut rest = values;
    let mut here = normalizers(rest.get(..group.min(rest.len())).unwrap_or_default(), norm, reciprocal);
    while !rest.is_empty() {
        let size = group.min(rest.len());
        let (values, behind) = rest.split_at_mut_checked(size).unwrap_or_default();
        // As in `layer_norm`.
        let next = normalizers(behind.get(..group.min(behind.len())).unwrap_or_default(), norm, reciprocal);
        for (values, by) in values.chunks_exact_mut(channels).zip(&here) {
            for values in values.chunks_mut(32) {
                let mask = u32::MAX >> (32 - values.len());
                // SAFETY: the mask has a bit for each value.
                unsafe {
                    let v = normalize(_mm512_maskz_loadu_epi16(mask, values.as_ptr()), by);
                    let v = _mm512_min_epi16(_mm512_max_epi16(v, _mm512_set1_epi16(-8192)), _mm512_set1_epi16(8191));
                    _mm512_mask_storeu_epi16(values.as_mut_ptr(), mask, v);
                }
            }
        }
        (rest, here) = (behind, next);
    }
}

/// See [`Int8Kernels::stem`]. Two taps at a time, as the depthwise convolution.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn stem(rows: &[i16], side: usize, padding: usize, layer: &Depthwise<'_>, output: &mut [i16]) {
    let channels = layer.bias.len();
    // No model has another stride, nor other channels.
    let sound = (1..=4).contains(&side)
        && channels.is_multiple_of(8)
        && layer.weight.len() >= side * side * channels
        && layer.multiplier.len() >= channels;
    if !sound {
        return scalar::stem(rows, side, padding, layer, output);
    }
    for c in (0..channels).step_by(32) {
        // SAFETY: the lengths were checked, and at most 32 channels from `c` on are touched.
        unsafe {
            match side {
                1 => stem_block::<1>(rows, padding, layer, output, c),
                2 => stem_block::<2>(rows, padding, layer, output, c),
                3 => stem_block::<3>(rows, padding, layer, output, c),
                4 => stem_block::<4>(rows, padding, layer, output, c),
                _ => {}
            }
        }
    }
}

/// All pixels of `output` for up to 32 channels from `c` on.
///
/// # Safety
/// `layer` has weights for `S * S` taps and a multiplier for each channel, and `c` is one of them.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn stem_block<const S: usize>(
    rows: &[i16],
    padding: usize,
    layer: &Depthwise<'_>,
    output: &mut [i16],
    c: usize,
) {
    let channels = layer.bias.len().max(1);
    let (width, taps) = (rows.len() / S / channels, S * S);
    let mask = u32::MAX >> (32 - (channels - c).min(32));
    // SAFETY: as the caller promises; columns outside the map are not read.
    unsafe {
        let weight = |tap: usize| widen((tap < taps).then(|| layer.weight.as_ptr().add(tap * channels + c)), mask);
        let mut weights = [[_mm512_setzero_si512(); 2]; 8];
        for (pair, weights) in weights.iter_mut().enumerate() {
            *weights = interleave::<2>(weight(2 * pair).as_ptr(), weight(2 * pair + 1).as_ptr(), mask);
        }
        let bias = interleaved_bias::<2>(layer.bias.as_ptr().add(c), mask);
        let (shift, multiplier) =
            (_mm_cvtsi32_si128(layer.shift as i32), _mm512_maskz_loadu_epi16(mask, layer.multiplier.as_ptr().add(c)));
        for (x, output) in output.chunks_exact_mut(channels).enumerate() {
            let tap = |tap: usize| {
                let column = (x * S + tap % S).wrapping_sub(padding);
                let inside = tap < taps && column < width;
                if inside { rows.as_ptr().add((tap / S * width + column) * channels + c) } else { ZERO.as_ptr() }
            };
            let mut acc = bias;
            for pair in 0..taps.div_ceil(2) {
                let values = interleave::<2>(tap(2 * pair), tap(2 * pair + 1), mask);
                for v in 0..2 {
                    acc[v] = dpwssd(acc[v], values[v], weights[pair][v]);
                }
            }
            store(acc, shift, multiplier, mask, output.as_mut_ptr().add(c));
        }
    }
}

/// See [`Int8Kernels::input`]. The row below the one read is fetched ahead: it stands right behind, and is the next to be read.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn input(values: &[f32], band: &FloatBand, output: &mut [i16], stride: usize) {
    const LANES: usize = 16;
    let stride = stride.max(1);
    let (mean, scale) = (_mm512_set1_ps(band.mean), _mm512_set1_ps(band.scale));
    // If there is none, a value that is missing anyhow.
    let no_data = _mm512_set1_ps(band.no_data.unwrap_or(f32::NAN));
    let (lowest, highest) = (_mm512_set1_ps(-32768.0), _mm512_set1_ps(32767.0));
    for (block, output) in values.chunks(LANES).zip(output.chunks_mut(LANES.saturating_mul(stride).max(1))) {
        let mask = u16::MAX >> (LANES - block.len());
        let mut integers = [0i16; LANES];
        // SAFETY: the mask has a bit for each value of `block`; 16 values of 16 bits are one register; what is fetched ahead may stand
        // anywhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(values.len()).cast());
            let stored = _mm512_maskz_loadu_ps(mask, block.as_ptr());
            let value = _mm512_mul_ps(_mm512_sub_ps(stored, mean), scale);
            // Neither infinite nor NaN: the difference with itself is zero.
            let finite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_sub_ps(stored, stored), _mm512_setzero_ps());
            let there = finite
                & _mm512_cmp_ps_mask::<_CMP_ORD_Q>(value, value)
                & _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(stored, no_data);
            let value = _mm512_min_ps(_mm512_max_ps(value, lowest), highest);
            let rounded = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            let short = _mm512_cvtepi32_epi16(_mm512_maskz_mov_epi32(there, rounded));
            _mm256_storeu_si256(integers.as_mut_ptr().cast(), short);
            if block.len() == LANES && output.len() > (LANES - 1).saturating_mul(stride) {
                for (i, &v) in integers.iter().enumerate() {
                    *output.as_mut_ptr().add(i * stride) = v;
                }
                continue;
            }
        }
        for (to, &v) in output.iter_mut().step_by(stride).zip(&integers).take(block.len()) {
            *to = v;
        }
    }
}
