//! x86-64 with AMX (Sapphire Rapids and later), on Linux: the AVX-512 set with matrix products in tiles.
//!
//! A tile register holds sixteen rows of 64 bytes, and one instruction multiplies sixteen pixels of 64 inputs by 64 inputs of sixteen
//! outputs: 16384 products of signed bytes. The packed weights have the layout that it wants: sixteen groups of a panel, one after the
//! other, are a tile. Inputs stay signed, so that nothing has to be corrected. Two accumulator tiles (one pixel tile by two panels), one
//! of inputs and two of weights are in use; three more have the shape of what is left of the inputs beyond a multiple of 64, because a
//! register's shape cannot change without losing all of them. Loads take 24 cycles where products take 32.
//!
//! Accumulators go through a buffer of at most 8 KiB on the stack, and end as in the AVX-512 set.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::*;

use super::avx512::{
    Planes, activate, add_squares, affine, initial, input, lookup, requantize, sound, square_roots, stem,
};
use super::avx512_spatial::{depthwise, layer_norm, layer_norm_i16};
use super::*;

/// AMX for the matrix products, AVX-512 for the rest.
pub static AMX: Int8Kernels = Int8Kernels {
    name: "amx",
    prepare: scalar::prepare,
    input: |values, band, output, stride| unsafe { input(values, band, output, stride) },
    initial: |rows, bands, layer, output| unsafe { initial(rows, bands, layer, output) },
    stem: |rows, side, padding, layer, output| unsafe { stem(rows, side, padding, layer, output) },
    layer_norm_i16: |values, norm| unsafe { layer_norm_i16(values, norm) },
    affine: |values, gain, offset, shift| unsafe { affine(values, gain, offset, shift) },
    lookup: |values, table| unsafe { lookup(values, table) },
    depthwise: |rows, area, layer, output| unsafe { depthwise(rows, area, layer, output) },
    layer_norm: |values, norm, output| unsafe { layer_norm::<SIGNED>(values, norm, output) },
    expand: |input, layer, gelu, output, squares| unsafe { expand(input, layer, gelu, output, squares) },
    activate: |values, table, multipliers| unsafe { activate::<SIGNED>(values, table, multipliers) },
    project: |input, layer, residual| unsafe { project(input, layer, residual) },
    square_roots: |values| unsafe { square_roots(values) },
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
    /// For `pixels` pixels and `rest` inputs beyond a multiple of 64: registers 0 and 1 accumulate, 2 holds inputs, 3 and 4 weights, 5 the
    /// rest of the inputs, 6 and 7 their weights.
    fn load(pixels: usize, rest: usize) {
        let (pixels, groups) = (pixels as u8, (rest / GROUP) as u8);
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.rows[..8].copy_from_slice(&[pixels, pixels, pixels, 16, 16, pixels, groups, groups]);
        shapes.row_bytes[..8].fill(ROW_BYTES as u16);
        if rest == 0 {
            shapes.rows[5..8].fill(0);
            shapes.row_bytes[5..8].fill(0);
        } else {
            shapes.row_bytes[5] = rest as u16;
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

/// Products of `pixels` pixels (the number that the shapes were loaded for) and one or two panels.
///
/// # Safety
/// `input` points at `pixels` rows of `inputs` bytes, `weight` at `panels` panels, `to` at `pixels` rows of 32 values.
#[inline]
unsafe fn multiply(input: *const i8, weight: *const i8, inputs: usize, panels: usize, to: *mut i32) {
    // SAFETY: as the caller promises; the tiles' shapes are those of `Shapes::load`.
    unsafe {
        let (full, rest) = (inputs / ROW_BYTES, inputs % ROW_BYTES);
        let second = weight.add(if panels > 1 { inputs * PANEL } else { 0 });
        asm!("tilezero tmm0", "tilezero tmm1", options(nomem, nostack, preserves_flags));
        for block in 0..full {
            let at = block * ROW_BYTES * PANEL;
            asm!(
                "tileloadd tmm2, [{x} + {stride}]",
                "tileloadd tmm3, [{a} + {row}]",
                "tileloadd tmm4, [{b} + {row}]",
                "tdpbssd tmm0, tmm2, tmm3",
                "tdpbssd tmm1, tmm2, tmm4",
                x = in(reg) input.add(block * ROW_BYTES), stride = in(reg) inputs,
                a = in(reg) weight.add(at), b = in(reg) second.add(at), row = in(reg) ROW_BYTES,
                options(readonly, nostack, preserves_flags)
            );
        }
        if rest > 0 {
            let at = full * ROW_BYTES * PANEL;
            asm!(
                "tileloadd tmm5, [{x} + {stride}]",
                "tileloadd tmm6, [{a} + {row}]",
                "tileloadd tmm7, [{b} + {row}]",
                "tdpbssd tmm0, tmm5, tmm6",
                "tdpbssd tmm1, tmm5, tmm7",
                x = in(reg) input.add(full * ROW_BYTES), stride = in(reg) inputs,
                a = in(reg) weight.add(at), b = in(reg) second.add(at), row = in(reg) ROW_BYTES,
                options(readonly, nostack, preserves_flags)
            );
        }
        asm!(
            "tilestored [{to} + {stride}], tmm0",
            "tilestored [{to} + {stride} + 64], tmm1",
            to = in(reg) to, stride = in(reg) 2 * PANEL * size_of::<i32>(),
            options(nostack, preserves_flags)
        );
    }
}

/// All products of a strip: calls `finish(first output, first pixel, accumulators)` for every two panels, twice if the strip is not whole
/// tiles.
///
/// # Safety
/// `layer` is sound, `input` has whole rows of its inputs, at most [`MAX_STRIP`].
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn matrix(input: &[i8], layer: &Dense<'_>, mut finish: impl FnMut(usize, usize, &[[i32; 2 * PANEL]])) {
    let inputs = layer.inputs;
    let pixels = input.len() / inputs;
    let whole = pixels / ROWS * ROWS;
    let mut buffer = Buffer([[0; 2 * PANEL]; MAX_STRIP]);
    for (first, last, rows) in [(0, whole, ROWS), (whole, pixels, pixels - whole)] {
        if first == last {
            continue;
        }
        Shapes::load(rows, inputs % ROW_BYTES);
        for o in (0..layer.outputs).step_by(2 * PANEL) {
            let panels = if layer.outputs - o > PANEL { 2 } else { 1 };
            // SAFETY: rows `first` to `last` of the input, panels from `o / 16` on, rows of the buffer.
            unsafe {
                let weight = layer.weight.as_ptr().add(o * inputs);
                for at in (first..last).step_by(rows.max(1)) {
                    let to = buffer.0.as_mut_ptr().add(at).cast();
                    multiply(input.as_ptr().add(at * inputs), weight, inputs, panels, to);
                }
            }
            finish(o, first, buffer.0.get(first..last).unwrap_or_default());
        }
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

/// Requantized values of one pixel's 32 accumulators.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn finish(acc: &[i32; 2 * PANEL], bias: [__m512i; 2], shift: __m128i, multiplier: __m512i) -> __m512i {
    // SAFETY: 32 values of 32 bits are two registers.
    unsafe {
        let low = _mm512_add_epi32(_mm512_loadu_si512(acc.as_ptr().cast()), bias[0]);
        let high = _mm512_add_epi32(_mm512_loadu_si512(acc.as_ptr().add(PANEL).cast()), bias[1]);
        requantize([low, high], shift, multiplier)
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let pixels = input.len() / inputs.max(1);
    let fits = output.len() == pixels * outputs && squares.len() == outputs && pixels <= MAX_STRIP;
    if !sound(layer) || !outputs.is_multiple_of(2 * PANEL) || !fits {
        return;
    }
    let (shift, zero_point) = (_mm_cvtsi32_si128(layer.shift as i32), _mm512_set1_epi16(gelu.zero_point as i16));
    let planes = Planes::new(gelu.table);
    // SAFETY: the lengths were checked: `pixels` rows of `inputs` and of `outputs`, whole pairs of panels.
    unsafe {
        matrix(input, layer, |o, first, acc| {
            let (bias, multiplier) = constants(layer, o);
            for (p, acc) in acc.iter().enumerate() {
                let value = _mm512_adds_epi16(finish(acc, bias, shift, multiplier), zero_point);
                let to = output.as_mut_ptr().add((first + p) * outputs + o).cast();
                _mm256_storeu_si256(to, _mm512_cvtsepi16_epi8(value));
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
    if !sound(layer) || residual.len() != pixels * outputs || pixels > MAX_STRIP {
        return;
    }
    let shift = _mm_cvtsi32_si128(layer.shift as i32);
    // SAFETY: the lengths were checked; masked loads and stores touch `outputs - o` values only.
    unsafe {
        matrix(input, layer, |o, first, acc| {
            let (bias, multiplier) = constants(layer, o);
            let mask = u32::MAX >> (32 - (outputs - o).min(32));
            for (p, acc) in acc.iter().enumerate() {
                let at = residual.as_mut_ptr().add((first + p) * outputs + o);
                let sum = _mm512_adds_epi16(_mm512_maskz_loadu_epi16(mask, at), finish(acc, bias, shift, multiplier));
                _mm512_mask_storeu_epi16(at, mask, sum);
            }
        });
    }
}
