//! x86-64 with AMX (Sapphire Rapids and later), on Linux: the AVX-512 set with matrix products in tiles.
//!
//! A tile register holds sixteen rows of 64 bytes, and one instruction multiplies sixteen pixels of 64 inputs by 64 inputs of sixteen
//! outputs: 16384 products of signed bytes. The packed weights have the layout that it wants: sixteen groups of a panel, one after the
//! other, are a tile. Inputs stay signed, so that nothing has to be corrected. Four registers accumulate: two tiles of pixels by two
//! panels; inputs and weights have one each, and one each of the shape of what is left beyond a multiple of 64 inputs, because a shape
//! cannot change without losing all registers. Five loads for four products.
//!
//! The initial convolution, whose inputs have 16 bits, takes two such products, of their lower and of their upper bytes.
//!
//! The compiler knows nothing of tile registers: no block of assembly names them, values stay in them from one block to the next, and no call
//! may stand in between. That is sound as long as the crate is not compiled with `amx-tile`, whose registers the compiler may use itself.
//!
//! Accumulators go through a buffer of at most 8 KiB on the stack, and end as in the AVX-512 set.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::*;

use super::avx512::{Planes, SHARED, ToIndex, activate, activate_split, add_squares, requantize};
use super::avx512_spatial::layer_norm;
use super::*;

/// AMX for the matrix products, AVX-512 for the rest.
pub static AMX: Int8Kernels = Int8Kernels {
    name: "amx",
    // SAFETY, for each: the set is handed out only where the processor and the system have AMX.
    initial: |rows, bands, layer, output| unsafe { initial(rows, bands, layer, output) },
    layer_norm: |values, norm, output| unsafe { layer_norm::<SIGNED>(values, norm, output) },
    expand: |input, layer, gelu, output, squares| unsafe { expand(input, layer, gelu, output, squares) },
    activate: |values, table, multipliers| unsafe { activate::<SIGNED>(values, table, multipliers) },
    activate_split: |values, table, multipliers, low| unsafe {
        activate_split::<SIGNED>(values, table, multipliers, low)
    },
    project: |input, layer, residual| unsafe { project(input, layer, residual) },
    ..SHARED
};

/// Bytes stay as they are.
const SIGNED: i8 = 0;
/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a row of a tile.
const ROW_BYTES: usize = 64;

/// Accumulators of a strip by two panels.
#[repr(align(64))]
struct Buffer([[i32; 2 * PANEL]; MAX_STRIP]);

/// Shapes of the tile registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// For each register its rows, at most 16, and their bytes, at most 64; 0 and 0 if it is not used.
    fn load(registers: [(usize, usize); 8]) {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for ((rows, bytes), shape) in shapes.rows.iter_mut().zip(&mut shapes.row_bytes).zip(registers) {
            (*rows, *bytes) = (shape.0 as u8, shape.1 as u16);
        }
        // SAFETY: the processor has AMX, the shapes are within its limits of 16 rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(readonly, nostack, preserves_flags)) }
    }

    /// Gives the registers back, so that switching threads costs no more than without.
    fn release() {
        // SAFETY: the processor has AMX.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

/// Products of one or two tiles of pixels and one or two panels. The shapes are those of [`matrix`]: registers 0 to 3 accumulate, 4 holds
/// inputs, 5 weights, 6 and 7 what is left of both beyond a multiple of 64 inputs.
///
/// # Safety
/// `input` points at the rows of `inputs` bytes of `TILES` tiles, `weight` at `panels` panels, `to` at as many rows of 32 values each.
#[inline]
unsafe fn multiply<const TILES: usize>(
    input: [*const i8; TILES],
    weight: *const i8,
    inputs: usize,
    panels: usize,
    to: [*mut i32; TILES],
) {
    let second = weight.wrapping_add(if panels > 1 { inputs * PANEL } else { 0 });
    // One after the other through the same two registers: the processor has more of them than names.
    macro_rules! products {
        ($x:literal, $w:literal, $block:expr) => {
            let (at, of) = ($block * ROW_BYTES * PANEL, $block * ROW_BYTES);
            asm!(
                concat!("tileloadd ", $x, ", [{x} + {stride}]"),
                concat!("tileloadd ", $w, ", [{a} + {row}]"),
                concat!("tdpbssd tmm0, ", $x, ", ", $w),
                concat!("tileloadd ", $w, ", [{b} + {row}]"),
                concat!("tdpbssd tmm1, ", $x, ", ", $w),
                x = in(reg) input[0].add(of), stride = in(reg) inputs,
                a = in(reg) weight.add(at), b = in(reg) second.add(at), row = in(reg) ROW_BYTES,
                options(readonly, nostack, preserves_flags)
            );
            if TILES > 1 {
                asm!(
                    concat!("tileloadd ", $x, ", [{x} + {stride}]"),
                    concat!("tdpbssd tmm3, ", $x, ", ", $w),
                    concat!("tileloadd ", $w, ", [{a} + {row}]"),
                    concat!("tdpbssd tmm2, ", $x, ", ", $w),
                    x = in(reg) input[TILES - 1].add(of), stride = in(reg) inputs,
                    a = in(reg) weight.add(at), row = in(reg) ROW_BYTES,
                    options(readonly, nostack, preserves_flags)
                );
            }
        };
    }
    macro_rules! store {
        ($to:expr, $a:literal, $b:literal) => {
            asm!(
                concat!("tilestored [{to} + {stride}], ", $a),
                concat!("tilestored [{to} + {stride} + 64], ", $b),
                to = in(reg) $to, stride = in(reg) 2 * PANEL * size_of::<i32>(),
                options(nostack, preserves_flags)
            )
        };
    }
    // SAFETY: as the caller promises, of rows and bytes that the shapes say.
    unsafe {
        let (full, rest) = (inputs / ROW_BYTES, inputs % ROW_BYTES);
        asm!("tilezero tmm0", "tilezero tmm1", options(nomem, nostack, preserves_flags));
        if TILES > 1 {
            asm!("tilezero tmm2", "tilezero tmm3", options(nomem, nostack, preserves_flags));
        }
        for block in 0..full {
            products!("tmm4", "tmm5", block);
        }
        if rest > 0 {
            products!("tmm6", "tmm7", full);
        }
        store!(to[0], "tmm0", "tmm1");
        if TILES > 1 {
            store!(to[TILES - 1], "tmm2", "tmm3");
        }
    }
}

/// All products of a strip: calls `finish(first output, accumulators of all pixels)` for every two panels.
///
/// # Safety
/// `layer` is sound, `input` has whole rows of its inputs, at most [`MAX_STRIP`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn matrix(input: &[i8], layer: &Dense<'_>, mut finish: impl FnMut(usize, &[[i32; 2 * PANEL]])) {
    let inputs = layer.inputs;
    let pixels = input.len() / inputs;
    if pixels == 0 {
        return;
    }
    let mut buffer = Buffer([[0; 2 * PANEL]; MAX_STRIP]);
    let (size, rest) = (pixels.min(ROWS), inputs % ROW_BYTES);
    let (all, weights) = ((size, ROW_BYTES), (ROWS, ROW_BYTES));
    let (more, more_weights) = if rest == 0 { ((0, 0), (0, 0)) } else { ((size, rest), (rest / GROUP, ROW_BYTES)) };
    Shapes::load([all, all, all, all, all, weights, more, more_weights]);
    for o in (0..layer.outputs).step_by(2 * PANEL) {
        let panels = if layer.outputs - o > PANEL { 2 } else { 1 };
        // The last tile goes back over pixels that are done, rather than beyond the strip.
        let at = |tile: usize| (tile * ROWS).min(pixels - size);
        // SAFETY: `size` rows of the input from `at` on, panels from `o / 16` on, rows of the buffer.
        unsafe {
            let weight = layer.weight.as_ptr().add(o * inputs);
            let from = |tile| input.as_ptr().add(at(tile) * inputs);
            let start = buffer.0.as_mut_ptr();
            let to = |tile| start.add(at(tile)).cast();
            let tiles = pixels.div_ceil(ROWS);
            for tile in (1..tiles).step_by(2) {
                multiply([from(tile - 1), from(tile)], weight, inputs, panels, [to(tile - 1), to(tile)]);
            }
            if tiles % 2 == 1 {
                multiply([from(tiles - 1)], weight, inputs, panels, [to(tiles - 1)]);
            }
        }
        finish(o, buffer.0.get(..pixels).unwrap_or_default());
    }
    Shapes::release();
}

/// Bias and multipliers of the 32 outputs from `o` on; zeros beyond the layer's panels.
///
/// # Safety
/// `layer` is sound.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn constants(layer: &Dense<'_>, o: usize) -> ([__m512i; 2], __m512i) {
    let mask = u32::MAX >> (32 - (layer.outputs.next_multiple_of(PANEL) - o).min(32));
    // SAFETY: bias and multipliers have whole panels, the rest is masked.
    unsafe {
        let bias = layer.bias.as_ptr().add(o);
        let bias = [
            _mm512_maskz_loadu_epi32(mask as u16, bias),
            _mm512_maskz_loadu_epi32((mask >> 16) as u16, bias.wrapping_add(PANEL)),
        ];
        (bias, _mm512_maskz_loadu_epi16(mask, layer.multiplier.as_ptr().add(o)))
    }
}

/// One pixel's 32 accumulators with their biases.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn biased(acc: &[i32; 2 * PANEL], bias: [__m512i; 2]) -> [__m512i; 2] {
    // SAFETY: 32 values of 32 bits are two registers.
    unsafe {
        [
            _mm512_add_epi32(_mm512_loadu_si512(acc.as_ptr().cast()), bias[0]),
            _mm512_add_epi32(_mm512_loadu_si512(acc.as_ptr().add(PANEL).cast()), bias[1]),
        ]
    }
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
    // SAFETY: the lengths were checked: `pixels` rows of `inputs` and of `outputs`, whole pairs of panels.
    unsafe {
        matrix(input, layer, |o, acc| {
            let (bias, multiplier) = constants(layer, o);
            let to_index = ToIndex::new(layer.shift, multiplier, gelu.zero_point);
            for (pair, acc) in acc.chunks(2).enumerate() {
                // The last of an odd number twice.
                let [Some(a), Some(b)] = [acc.first(), acc.last()] else { continue };
                let indices = to_index.apply(biased(a, bias), biased(b, bias));
                let p = 2 * pair;
                let mut at = |p: usize| output.as_mut_ptr().add(p * outputs + o).cast();
                _mm256_storeu_si256(at(p), indices[0]);
                _mm256_storeu_si256(at(p + acc.len() - 1), indices[1]);
            }
        });
        for o in (0..outputs).step_by(2 * PANEL) {
            add_squares(output.as_ptr().add(o), outputs, pixels, &planes, squares.as_mut_ptr().add(o));
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let pixels = input.len() / inputs.max(1);
    if !layer.sound() || residual.len() != pixels * outputs || pixels > MAX_STRIP {
        return;
    }
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    // SAFETY: the lengths were checked; masked loads and stores touch `outputs - o` values only.
    unsafe {
        matrix(input, layer, |o, acc| {
            let (bias, multiplier) = constants(layer, o);
            let mask = u32::MAX >> (32 - (outputs - o).min(32));
            for (p, acc) in acc.iter().enumerate() {
                let at = residual.as_mut_ptr().add(p * outputs + o);
                let update = requantize(biased(acc, bias), shift, multiplier);
                let sum = _mm512_adds_epi16(_mm512_maskz_loadu_epi16(mask, at), update);
                _mm512_mask_storeu_epi16(at, mask, sum);
            }
        });
    }
}

/// Values of one row that a tile of the initial convolution may need.
const SPAN: usize = 448;
/// Panels of the initial convolution that are computed side by side.
const SIDE_BY_SIDE: usize = 3;

/// The lower and the upper bytes of the values of three rows.
#[repr(align(64))]
struct Bytes([[[u8; SPAN]; 3]; 2]);

/// Accumulators of a tile of pixels for the lower and for the upper bytes.
#[repr(align(64))]
struct Halves([[[[i32; PANEL]; ROWS]; SIDE_BY_SIDE]; 2]);

/// See [`Int8Kernels::initial`]. A value of 16 bits is 256 times its upper byte, signed, plus its lower, unsigned, and there is an instruction for
/// each. Neighbouring pixels' inputs overlap: rows of a tile register may do so too, and begin `bands` bytes apart. Pixels further apart than 24
/// values, as the patches of a patchify stem may be, are left to AVX-512.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn initial(rows: [&[i16]; 3], bands: usize, layer: &Dense<'_>, output: &mut [i16]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let fits =
        |&(segment, _): &(usize, usize)| segment <= ROW_BYTES && bands <= (SPAN - ROW_BYTES) / ROWS && layer.sound();
    let Some((segment, pixels)) = layer.windows(&rows, bands, output.len()).filter(fits) else {
        return super::avx512::initial(rows, bands, layer, output);
    };
    let size = pixels.min(ROWS);
    let sums = (size, ROW_BYTES);
    Shapes::load([sums, sums, sums, sums, sums, sums, (size, segment), (segment / GROUP, ROW_BYTES)]);
    let (mut bytes, mut halves) = (Bytes([[[0; SPAN]; 3]; 2]), Halves([[[[0; PANEL]; ROWS]; SIDE_BY_SIDE]; 2]));
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    for first in (0..pixels).step_by(ROWS) {
        // The last tile goes back over pixels that are done, rather than beyond the row.
        let first = first.min(pixels - size);
        let [low, high] = &mut bytes.0;
        for (row, (low, high)) in rows.iter().zip(low.iter_mut().zip(high)) {
            let values = row.get(first * bands..).unwrap_or_default();
            let blocks = low.as_chunks_mut::<32>().0.iter_mut().zip(high.as_chunks_mut::<32>().0);
            for (values, (low, high)) in values.chunks(32).zip(blocks).take(((size - 1) * bands + segment).div_ceil(32))
            {
                // SAFETY: the mask has a bit for each value, and 32 bytes are one register.
                unsafe {
                    let v = _mm512_maskz_loadu_epi16(u32::MAX >> (32 - values.len()), values.as_ptr());
                    _mm256_storeu_si256(low.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(v));
                    _mm256_storeu_si256(high.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(_mm512_srai_epi16::<8>(v)));
                }
            }
        }
        for o in (0..outputs).step_by(SIDE_BY_SIDE * PANEL) {
            let panels = (outputs - o).div_ceil(PANEL).min(SIDE_BY_SIDE);
            // SAFETY: `panels` panels of weights from `o` on, biases and multipliers of whole panels; of the outputs those beyond the
            // last are masked out.
            unsafe {
                convolve(&bytes, bands, segment, layer.weight.as_ptr().add(o * inputs), inputs, panels, &mut halves);
                for panel in 0..panels {
                    let o = o + panel * PANEL;
                    let bias = _mm512_loadu_si512(layer.bias.as_ptr().add(o).cast());
                    let multiplier = _mm256_loadu_si256(layer.multiplier.as_ptr().add(o).cast());
                    let mask = u16::MAX >> (PANEL - (outputs - o).min(PANEL));
                    let [low, high] = &halves.0;
                    for (p, (low, high)) in low[panel].iter().zip(&high[panel]).enumerate().take(size) {
                        let high = _mm512_slli_epi32::<8>(_mm512_loadu_si512(high.as_ptr().cast()));
                        let low = _mm512_add_epi32(_mm512_loadu_si512(low.as_ptr().cast()), bias);
                        let narrow = _mm512_cvtsepi32_epi16(_mm512_sra_epi32(_mm512_add_epi32(low, high), shift));
                        let to = output.as_mut_ptr().add((first + p) * outputs + o);
                        _mm256_mask_storeu_epi16(to, mask, _mm256_mulhrs_epi16(narrow, multiplier));
                    }
                }
            }
        }
    }
    Shapes::release();
}

/// The accumulators of one tile of pixels by up to three panels. Registers 0 to 2 are for the lower bytes, 3 to 5 for the upper, 6 holds inputs, 7
/// weights.
///
/// # Safety
/// The shapes are loaded; `weight` points at `panels` panels of `inputs`.
#[inline]
unsafe fn convolve(
    bytes: &Bytes,
    bands: usize,
    segment: usize,
    weight: *const i8,
    inputs: usize,
    panels: usize,
    halves: &mut Halves,
) {
    macro_rules! panel {
        ($acc:literal, $multiply:literal, $weight:expr) => {
            asm!(
                "tileloadd tmm7, [{w} + {row}]",
                concat!($multiply, " ", $acc, ", tmm6, tmm7"),
                w = in(reg) $weight, row = in(reg) ROW_BYTES, options(readonly, nostack, preserves_flags)
            )
        };
    }
    macro_rules! half {
        ($half:literal, $multiply:literal, $a:literal, $b:literal, $c:literal) => {
            asm!(
                concat!("tilezero ", $a), concat!("tilezero ", $b), concat!("tilezero ", $c),
                options(nomem, nostack, preserves_flags)
            );
            for (row, bytes) in bytes.0[$half].iter().enumerate() {
                asm!(
                    "tileloadd tmm6, [{x} + {stride}]",
                    x = in(reg) bytes.as_ptr(), stride = in(reg) bands, options(readonly, nostack, preserves_flags)
                );
                let weight = weight.add(row * segment * PANEL);
                panel!($a, $multiply, weight);
                if panels > 1 {
                    panel!($b, $multiply, weight.add(inputs * PANEL));
                }
                if panels > 2 {
                    panel!($c, $multiply, weight.add(2 * inputs * PANEL));
                }
            }
            asm!(
                concat!("tilestored [{to} + {row}], ", $a),
                concat!("tilestored [{to} + {row} + 1024], ", $b),
                concat!("tilestored [{to} + {row} + 2048], ", $c),
                to = in(reg) halves.0[$half].as_mut_ptr(), row = in(reg) ROW_BYTES, options(nostack, preserves_flags)
            );
        };
    }
    // SAFETY: as the caller promises; a tile of inputs has at most 16 rows, `bands` bytes apart, of at most 64 bytes, which are within
    // a row of `Bytes`; accumulators are 16 rows of 64 bytes.
    unsafe {
        half!(0, "tdpbusd", "tmm0", "tmm1", "tmm2");
        half!(1, "tdpbssd", "tmm3", "tmm4", "tmm5");
    }
}
