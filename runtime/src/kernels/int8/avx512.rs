//! x86-64 with AVX-512 (F, BW, VL, DQ), VNNI and VBMI: Ice Lake, Zen 4 and later.
//!
//! ## Matrix products
//! `vpdpbusd` multiplies four unsigned by four signed bytes and adds them to one of sixteen 32-bit lanes. A group of the packed
//! weights is one register; the four inputs of a pixel are broadcast to all lanes. Inputs are stored as `value ^ 0x80`, that is
//! plus 128, and [`prepare`] takes 128 times the sum of an output's weights off its bias, once a layer and map. One tile is up
//! to twelve pixels by two panels: 24 accumulators, two weights, one input of 32 registers; 24 products for 14 loads. Twelve pixels
//! rather than six by four panels, because the weights of the last stage come from the second-level cache and each is then used twice as
//! often. A strip is cut into tiles of nearly the same size, so that none is left with a pixel or two.
//!
//! ## Table
//! The 256 entries are split into two planes of bytes, four registers each; `vpermi2b` looks up 64 bytes in two of the four, and
//! the sign of the index chooses between the halves. For GRN's sums the indices of two pixels are interleaved first, so that `vpdpwssd` of the
//! values with themselves adds the squares of two pixels to the sum of each channel.
//!
//! ## Depthwise convolution
//! `vpdpwssd` adds two products of 16 bits: here of two rows of the map. The values of 32 channels in row `r` and in row `r + 1` are interleaved
//! once, and serve up to eight outputs of seven taps each: four row pairs by seven taps are 28 instructions for 16 channels of an output instead of 49.
//!
//! ## LayerNorm
//! The sums of eight positions are transposed into one register, and their normalisers computed side by side. Square root and division are
//! those of binary64, which are exact here: the root of a 32-bit number and the quotient of a 30-bit by a 16-bit number differ from the next
//! integer by much more than half a unit of 2^-52.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::avx512_spatial::{depthwise, dpwssd, input, layer_norm, layer_norm_i16, stem};
use super::*;

/// AVX-512 with VNNI and VBMI.
pub static AVX512_VNNI: Int8Kernels = Int8Kernels {
    name: "avx512-vnni",
    // SAFETY, for each, here and below: the set is handed out only where the processor has the instructions.
    prepare: |layer, bias| unsafe { prepare(layer, bias) },
    initial: |rows, bands, layer, output| unsafe { initial(rows, bands, layer, output) },
    layer_norm: |values, norm, output| unsafe { layer_norm::<UNSIGNED>(values, norm, output) },
    expand: |input, layer, gelu, output, squares| unsafe { expand(input, layer, gelu, output, squares) },
    activate: |values, table, multipliers| unsafe { activate::<UNSIGNED>(values, table, multipliers) },
    activate_split: |values, table, multipliers, low| unsafe {
        activate_split::<UNSIGNED>(values, table, multipliers, low)
    },
    project: |input, layer, residual| unsafe { project(input, layer, residual) },
    ..SHARED
};

/// What the AMX set has too.
pub(super) const SHARED: Int8Kernels = Int8Kernels {
    input: |values, band, output, stride| unsafe { input(values, band, output, stride) },
    stem: |rows, side, padding, layer, output| unsafe { stem(rows, side, padding, layer, output) },
    layer_norm_i16: |values, norm| unsafe { layer_norm_i16(values, norm) },
    affine: |values, gain, offset, shift| unsafe { affine(values, gain, offset, shift) },
    lookup: |values, table| unsafe { lookup(values, table) },
    depthwise: |rows, area, layer, output| unsafe { depthwise(rows, area, layer, output) },
    square_roots: |values| unsafe { square_roots(values) },
    ..scalar::SCALAR
};

/// What is flipped in a signed byte to add 128 and have it unsigned.
const UNSIGNED: i8 = -128;
/// Pixels of a tile.
const PIXELS: usize = 12;

macro_rules! avx512 {
    ($($(#[$doc:meta])* fn $name:ident$(<const $flip:ident: i8>)?($($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$doc])*
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
        pub(super) fn $name$(<const $flip: i8>)?($($arg: $type),*) $(-> $result)? $body)*
    };
}

avx512! {
    fn affine(values: &mut [i16], gain: &[i32], offset: &[i32], shift: u32) {
        scalar::affine(values, gain, offset, shift);
    }

    fn activate_split<const FLIP: i8>(values: &mut [i8], table: &Table, multipliers: &[i16], low: &mut [i8]) {
        scalar::activate_split::<FLIP>(values, table, multipliers, low);
    }

    fn square_roots(values: &mut [u32]) {
        let (blocks, rest) = values.as_chunks_mut::<16>();
        blocks.iter_mut().for_each(|block| scalar::square_roots(block));
        scalar::square_roots(rest);
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn prepare(layer: &Dense<'_>, bias: &mut [i32]) {
    let ones = _mm512_set1_epi8(1);
    let weights = layer.weight.chunks_exact(layer.inputs.saturating_mul(PANEL).max(1));
    for ((weights, from), to) in weights.zip(layer.bias.as_chunks::<PANEL>().0).zip(bias.as_chunks_mut::<PANEL>().0) {
        let mut sum = _mm512_setzero_si512();
        for group in weights.as_chunks::<64>().0 {
            // SAFETY: 64 bytes are read from an array of 64.
            sum = _mm512_dpbusd_epi32(sum, ones, unsafe { _mm512_loadu_si512(group.as_ptr().cast()) });
        }
        // SAFETY: both arrays have sixteen values.
        unsafe {
            let bias = _mm512_sub_epi32(_mm512_loadu_si512(from.as_ptr().cast()), _mm512_slli_epi32::<7>(sum));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), bias);
        }
    }
}

/// Accumulators of `P` pixels by `V` panels, the bias included.
///
/// # Safety
/// `input` points at `P` rows of `inputs` bytes, `weight` at `V` panels, `bias` at `V * 16` values.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn tile<const P: usize, const V: usize>(
    input: *const i8,
    weight: *const i8,
    inputs: usize,
    bias: *const i32,
) -> [[__m512i; V]; P] {
    // SAFETY: as the caller promises; every offset below stays within the rows and panels.
    unsafe {
        let mut start = [_mm512_setzero_si512(); V];
        for v in 0..V {
            start[v] = _mm512_loadu_si512(bias.add(v * PANEL).cast());
        }
        let mut acc = [start; P];
        for group in 0..inputs / GROUP {
            let mut w = [_mm512_setzero_si512(); V];
            for v in 0..V {
                w[v] = _mm512_loadu_si512(weight.add((v * inputs / GROUP + group) * 64).cast());
            }
            for p in 0..P {
                let x = _mm512_set1_epi32(input.add(p * inputs + group * GROUP).cast::<i32>().read_unaligned());
                for v in 0..V {
                    acc[p][v] = _mm512_dpbusd_epi32(acc[p][v], x, w[v]);
                }
            }
        }
        acc
    }
}

/// Two registers of accumulators to 32 requantized values in their order.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn requantize(acc: [__m512i; 2], shift: __m128i, multiplier: __m512i) -> __m512i {
    let ordered = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), narrow(acc, shift));
    _mm512_mulhrs_epi16(ordered, multiplier)
}

/// Two registers of accumulators, shifted and saturated to 16 bits: four of the first, four of the second, and so on.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn narrow(acc: [__m512i; 2], shift: __m128i) -> __m512i {
    _mm512_packs_epi32(_mm512_sra_epi32(acc[0], shift), _mm512_sra_epi32(acc[1], shift))
}

/// What turns 32 accumulators of the hidden layer into indices of the GELU table.
pub(super) struct ToIndex {
    shift: __m128i,
    /// In the order of [`narrow`].
    multiplier: __m512i,
    zero_point: __m512i,
}

impl ToIndex {
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(shift: u32, multiplier: __m512i, zero_point: i32) -> Self {
        let multiplier = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), multiplier);
        let zero_point = _mm512_set1_epi16(zero_point as i16);
        Self { shift: _mm_cvtsi32_si128(shift as i32), multiplier, zero_point }
    }

    /// The indices of two pixels.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn apply(&self, first: [__m512i; 2], second: [__m512i; 2]) -> [__m256i; 2] {
        let value =
            |acc| _mm512_adds_epi16(_mm512_mulhrs_epi16(narrow(acc, self.shift), self.multiplier), self.zero_point);
        let bytes = _mm512_packs_epi16(value(first), value(second));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        [_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes)]
    }
}

/// Runs `$body` for tiles of `$p` pixels that cover `$pixels` pixels from `$first` on, `$p` a constant of at most twelve.
macro_rules! tiles {
    ($pixels:expr, |$first:ident, $p:ident| $body:expr) => {
        let parts = usize::div_ceil($pixels, PIXELS).max(1);
        let mut $first = 0;
        for part in 0..parts {
            let size = ($pixels - $first) / (parts - part);
            macro_rules! arm {
                ($n:literal) => {{
                    const $p: usize = $n;
                    $body
                }};
            }
            match size {
                1 => arm!(1),
                2 => arm!(2),
                3 => arm!(3),
                4 => arm!(4),
                5 => arm!(5),
                6 => arm!(6),
                7 => arm!(7),
                8 => arm!(8),
                9 => arm!(9),
                10 => arm!(10),
                11 => arm!(11),
                12 => arm!(12),
                _ => {}
            }
            $first += size;
        }
    };
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let pixels = input.len() / inputs.max(1);
    let fits = output.len() == pixels * outputs && squares.len() == outputs && pixels <= MAX_STRIP;
    if !layer.sound() || !outputs.is_multiple_of(2 * PANEL) || !fits {
        return;
    }
    let planes = Planes::new(gelu.table);
    for o in (0..outputs).step_by(2 * PANEL) {
        // SAFETY: the lengths were checked: `pixels` rows of `inputs` and of `outputs`, whole pairs of panels.
        unsafe {
            let multiplier = _mm512_loadu_si512(layer.multiplier.as_ptr().add(o).cast());
            let to_index = ToIndex::new(layer.shift, multiplier, gelu.zero_point);
            let (weight, bias) = (layer.weight.as_ptr().add(o * inputs), layer.bias.as_ptr().add(o));
            tiles!(pixels, |first, P| {
                let acc = tile::<P, 2>(input.as_ptr().add(first * inputs), weight, inputs, bias);
                for p in (0..P).step_by(2) {
                    // The last of an odd number twice.
                    let second = if p + 1 < P { p + 1 } else { p };
                    let indices = to_index.apply(acc[p], acc[second]);
                    let mut at = |p: usize| output.as_mut_ptr().add((first + p) * outputs + o).cast();
                    _mm256_storeu_si256(at(p), indices[0]);
                    _mm256_storeu_si256(at(second), indices[1]);
                }
            });
            add_squares(output.as_ptr().add(o), outputs, pixels, &planes, squares.as_mut_ptr().add(o));
        }
    }
}

/// The GELU table in two planes of bytes.
pub(super) struct Planes {
    low: [__m512i; 4],
    high: [__m512i; 4],
}

impl Planes {
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(super) fn new(table: &Table) -> Self {
        let (mut low, mut high) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for (i, entries) in table.as_chunks::<64>().0.iter().enumerate() {
            // SAFETY: 128 bytes are read from an array of 64 values of 16 bits.
            let (a, b) = unsafe {
                (_mm512_loadu_si512(entries.as_ptr().cast()), _mm512_loadu_si512(entries.as_ptr().add(32).cast()))
            };
            let both = |a: __m512i, b: __m512i| {
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(a)), _mm512_cvtepi16_epi8(b))
            };
            low[i] = both(a, b);
            high[i] = both(_mm512_srli_epi16::<8>(a), _mm512_srli_epi16::<8>(b));
        }
        Self { low, high }
    }

    /// The entries of 64 indices as i16: those of bytes 0 to 7 of each lane of 128 bits, and those of bytes 8 to 15.
    #[inline]
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn look_up(&self, index: __m512i) -> [__m512i; 2] {
        // Entry `index + 128`: the lower half of the table holds the negative indices.
        let negative = _mm512_movepi8_mask(index);
        let entry = |plane: &[__m512i; 4]| {
            let positive = _mm512_permutex2var_epi8(plane[2], index, plane[3]);
            _mm512_mask_blend_epi8(negative, positive, _mm512_permutex2var_epi8(plane[0], index, plane[1]))
        };
        let (low, high) = (entry(&self.low), entry(&self.high));
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// Adds the squares of the table's values for `pixels` pixels of 32 channels.
///
/// # Safety
/// `index` points at `pixels` rows, `stride` apart, of 32 bytes; `squares` at 32 values.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) unsafe fn add_squares(index: *const i8, stride: usize, pixels: usize, planes: &Planes, squares: *mut u64) {
    // SAFETY: as the caller promises.
    unsafe {
        // The values of a channel for two pixels stand side by side, and their squares are added by one instruction. Channels by four:
        // 0, 16, 8, 24 and 4, 20, 12, 28.
        let mut acc = [_mm512_setzero_si512(); 2];
        let look_up = |first: usize, second: usize| {
            let row = |p: usize| _mm256_loadu_si256(index.add(p * stride).cast());
            let (a, b) = (row(first), row(second));
            let low = _mm512_castsi256_si512(_mm256_unpacklo_epi8(a, b));
            planes.look_up(_mm512_inserti64x4::<1>(low, _mm256_unpackhi_epi8(a, b)))
        };
        for pair in 0..pixels / 2 {
            let values = look_up(2 * pair, 2 * pair + 1);
            acc = [dpwssd(acc[0], values[0], values[0]), dpwssd(acc[1], values[1], values[1])];
        }
        if pixels % 2 == 1 {
            let one = _mm512_set1_epi32(0xffff);
            let values = look_up(pixels - 1, pixels - 1).map(|v| _mm512_and_si512(v, one));
            acc = [dpwssd(acc[0], values[0], values[0]), dpwssd(acc[1], values[1], values[1])];
        }
        let lower = _mm512_permutex2var_epi64(acc[0], _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), acc[1]);
        let upper = _mm512_permutex2var_epi64(acc[0], _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), acc[1]);
        for (i, sums) in [lower, upper].into_iter().enumerate() {
            for (j, sums) in
                [_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums)].into_iter().enumerate()
            {
                let at = squares.add(16 * i + 8 * j).cast();
                _mm512_storeu_si512(at, _mm512_add_epi64(_mm512_loadu_si512(at), _mm512_cvtepu32_epi64(sums)));
            }
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn activate<const FLIP: i8>(values: &mut [i8], table: &Table, multipliers: &[i16]) {
    let channels = multipliers.len();
    let pixels = values.len() / channels.max(1);
    let planes = Planes::new(table);
    for c in (0..channels).step_by(64) {
        let count = (channels - c).min(64);
        let mask = u64::MAX >> (64 - count);
        // SAFETY: masked loads and stores touch the first `count` channels from `c` on only, of `pixels` rows of `channels`.
        unsafe {
            let at = |skip: usize| {
                _mm512_maskz_loadu_epi16((mask >> skip) as u32, multipliers.as_ptr().wrapping_add(c + skip))
            };
            let (a, b) = (at(0), at(32));
            let low = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), b);
            let high = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), b);
            for p in 0..pixels {
                let at = values.as_mut_ptr().add(p * channels + c);
                let [x, y] = planes.look_up(_mm512_maskz_loadu_epi8(mask, at));
                let bytes = _mm512_packs_epi16(_mm512_mulhrs_epi16(x, low), _mm512_mulhrs_epi16(y, high));
                _mm512_mask_storeu_epi8(at, mask, _mm512_xor_si512(bytes, _mm512_set1_epi8(FLIP)));
            }
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn lookup(values: &mut [i16], table: &Table) {
    let planes = Planes::new(table);
    let (blocks, rest) = values.as_chunks_mut::<64>();
    for block in blocks {
        // SAFETY: 64 values of 16 bits are two registers.
        unsafe {
            let at = |i: usize| block.as_ptr().add(i * 32).cast();
            let (a, b) = (_mm512_loadu_si512(at(0)), _mm512_loadu_si512(at(1)));
            // Packing interleaves lanes of 128 bits, and the look-up takes them apart again.
            let [x, y] = planes.look_up(_mm512_packs_epi16(a, b));
            _mm512_storeu_si512(block.as_mut_ptr().cast(), x);
            _mm512_storeu_si512(block.as_mut_ptr().add(32).cast(), y);
        }
    }
    scalar::lookup(rest, table);
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let pixels = input.len() / inputs.max(1);
    if !layer.sound() || residual.len() != pixels * outputs {
        return;
    }
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    let mut o = 0;
    while o < outputs {
        // SAFETY: the lengths were checked; masked loads and stores touch `outputs - o` values only, and weights, bias and
        // multipliers have whole panels.
        unsafe {
            let (weight, bias) = (layer.weight.as_ptr().add(o * inputs), layer.bias.as_ptr().add(o));
            let multiplier = layer.multiplier.as_ptr().add(o);
            if outputs - o > PANEL {
                let mask = u32::MAX >> (32 - (outputs - o).min(32));
                let multiplier = _mm512_maskz_loadu_epi16(mask, multiplier);
                tiles!(pixels, |first, P| {
                    let acc = tile::<P, 2>(input.as_ptr().add(first * inputs), weight, inputs, bias);
                    for p in 0..P {
                        let at = residual.as_mut_ptr().add((first + p) * outputs + o);
                        let sum = _mm512_adds_epi16(
                            _mm512_maskz_loadu_epi16(mask, at),
                            requantize(acc[p], shift, multiplier),
                        );
                        _mm512_mask_storeu_epi16(at, mask, sum);
                    }
                });
            } else {
                let mask = u16::MAX >> (16 - (outputs - o));
                let multiplier = _mm256_loadu_si256(multiplier.cast());
                tiles!(pixels, |first, P| {
                    let acc = tile::<P, 1>(input.as_ptr().add(first * inputs), weight, inputs, bias);
                    for p in 0..P {
                        let at = residual.as_mut_ptr().add((first + p) * outputs + o);
                        let narrow = _mm512_cvtsepi32_epi16(_mm512_sra_epi32(acc[p][0], shift));
                        let update = _mm256_mulhrs_epi16(narrow, multiplier);
                        _mm256_mask_storeu_epi16(
                            at,
                            mask,
                            _mm256_adds_epi16(_mm256_maskz_loadu_epi16(mask, at), update),
                        );
                    }
                });
            }
        }
        o += 2 * PANEL;
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
pub(super) fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let outputs = layer.outputs;
    let Some((_, pixels)) = layer.windows(&rows, bands, output.len()).filter(|_| layer.sound()) else { return };
    let rows = rows.map(|row| row.as_ptr());
    for o in (0..outputs).step_by(PANEL) {
        let mut first = 0;
        while first < pixels {
            // SAFETY: pixel `p` reads `segment` values of each row from `p * bands` on, which `windows` allows; the last tile goes
            // back over pixels that are done, rather than beyond the row; outputs are masked.
            unsafe {
                let size = if pixels >= 12 { 12 } else { 1 };
                let at = first.min(pixels - size);
                if size == 12 {
                    initial_tile::<12>(rows, at, bands, layer, o, output);
                } else {
                    initial_tile::<1>(rows, at, bands, layer, o, output);
                }
                first = at + size;
            }
        }
    }
}

/// `P` pixels from `first` on by the panel of output `o`.
///
/// # Safety
/// The rows hold the values of these pixels, `layer` is sound, and `output` has rows of its outputs for these pixels.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn initial_tile<const P: usize>(
    rows: [*const i16; 3],
    first: usize,
    bands: usize,
    layer: &Dense<'_>,
    o: usize,
    output: &mut [i16],
) {
    let (segment, outputs) = (layer.inputs / 3, layer.outputs);
    let mask = u16::MAX >> (PANEL - (outputs - o).min(PANEL));
    // SAFETY: as the caller promises.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); 2]; P];
        let mut weight = layer.weight.as_ptr().add(o * layer.inputs);
        for row in rows {
            let mut row = row.add(first * bands);
            for _ in 0..segment / GROUP {
                let w = [
                    _mm512_cvtepi8_epi16(_mm256_loadu_si256(weight.cast())),
                    _mm512_cvtepi8_epi16(_mm256_loadu_si256(weight.add(32).cast())),
                ];
                for p in 0..P {
                    let x = _mm512_set1_epi64(row.add(p * bands).cast::<i64>().read_unaligned());
                    acc[p][0] = dpwssd(acc[p][0], x, w[0]);
                    acc[p][1] = dpwssd(acc[p][1], x, w[1]);
                }
                weight = weight.add(64);
                row = row.add(GROUP);
            }
        }
        let shift = _mm_cvtsi32_si128(layer.shift as i32);
        let bias = _mm512_loadu_si512(layer.bias.as_ptr().add(o).cast());
        let multiplier = _mm256_loadu_si256(layer.multiplier.as_ptr().add(o).cast());
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        for (p, acc) in acc.into_iter().enumerate() {
            let low = _mm512_permutex2var_epi32(acc[0], even, acc[1]);
            let high = _mm512_permutex2var_epi32(acc[0], odd, acc[1]);
            let sum = _mm512_add_epi32(_mm512_add_epi32(low, high), bias);
            let narrow = _mm512_cvtsepi32_epi16(_mm512_sra_epi32(sum, shift));
            let to = output.as_mut_ptr().add((first + p) * outputs + o);
            _mm256_mask_storeu_epi16(to, mask, _mm256_mulhrs_epi16(narrow, multiplier));
        }
    }
}
