//! Set `i8mm`: `neon` with `smmla` in the matrix products.
//!
//! `smmla` multiplies a 2x8 by an 8x2 matrix of bytes and adds the four sums to a register: 32 products, twice those of `sdot`, for
//! operands that each hold 8 inputs of two pixels or of two outputs. The panels hold 4 inputs of 4 outputs a register: `zip1` and
//! `zip2` of the same outputs in two groups, as 32-bit lanes, give the operands of outputs (0, 1) and (2, 3). Two pixels' 16 inputs
//! become two operands by `zip1` and `zip2` of 64-bit lanes. Tile: 8 pixels by 8 outputs, as 4 by 4 pairs: 16 accumulators, 8 registers
//! of inputs for 16 of them, 4 of weights at a time. For 16 inputs: 32 `smmla`, 16 zips, 16 loads. `sdot` needs 64 instructions of
//! the vector units where this needs 48: the zips leave a gain of a third, on a processor that does as many of all three in a cycle.
//!
//! The intrinsics are not stable in Rust 1.95; see `neon_dot.rs`.
//!
//! No board was at hand: correct under QEMU, speed unknown. Instructions of the loop of a release build (rustc 1.95), by
//! disassembly: 64 for 1024 multiply-adds (0.0625), of which 32 are `smmla`; 40 for 512 (0.078) in the tile of 4 pixels.
#![allow(unsafe_code)]

use super::neon_gemm::{self, Core, STEP};
use super::neon_simd::*;
use super::*;
use core::arch::asm;

/// ARMv8.6, or before with FEAT_I8MM.
pub(super) static I8MM: Int8Kernels = Int8Kernels {
    name: "i8mm",
    expand: |input, layer, gelu, output, squares| {
        // SAFETY: the set is handed out only where the processor has `smmla`.
        unsafe { expand(input, layer, gelu, output, squares) }
    },
    project: |input, layer, residual| {
        // SAFETY: as above.
        unsafe { project(input, layer, residual) }
    },
    ..neon::SET
};

#[target_feature(enable = "i8mm")]
fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    // SAFETY: the function has the feature.
    unsafe { neon_gemm::expand::<Matrix, 8, 4>(input, layer, gelu, output, squares) }
}

#[target_feature(enable = "i8mm")]
fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    // SAFETY: the function has the feature.
    unsafe { neon_gemm::project::<Matrix, 8, 4>(input, layer, residual) }
}

/// Adds the products of two pixels with two outputs: lanes (pixel, output) 00, 01, 10, 11.
///
/// # Safety
/// The processor has `smmla`.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, pixels: int8x16_t, outputs: int8x16_t) -> int32x4_t {
    // SAFETY: works on registers alone.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {pixels:v}.16b, {outputs:v}.16b",
            acc = inout(vreg) acc,
            pixels = in(vreg) pixels,
            outputs = in(vreg) outputs,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// The 32-bit lanes of two registers, those of the lower and those of the upper halves in turns.
#[inline(always)]
fn zip_words(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
    [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))]
}

/// The lower halves of two registers, and the upper.
#[inline(always)]
fn zip_halves(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
    [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))]
}

/// The inner loop.
#[derive(Clone, Copy)]
struct Matrix;

impl Matrix {
    /// Adds the products of 8 inputs. `acc[2 p..2 p + 2]` are the four accumulators of pixels `2 p` and `2 p + 1`, `input[2 p + half]`
    /// their inputs.
    ///
    /// # Safety
    /// The processor has `smmla`; two groups of 32 bytes of weights can be read.
    #[inline(always)]
    unsafe fn groups<const P: usize>(
        acc: &mut [[int32x4_t; 2]; P],
        weight: *const i8,
        input: &[int8x16_t; P],
        half: usize,
    ) {
        // SAFETY: as the caller promised.
        unsafe {
            let [w0, w1] = zip_words(vld1q_s8(weight), vld1q_s8(weight.add(STEP)));
            let [w2, w3] = zip_words(vld1q_s8(weight.add(16)), vld1q_s8(weight.add(STEP + 16)));
            for pair in 0..P / 2 {
                let x = input[2 * pair + half];
                acc[2 * pair][0] = smmla(acc[2 * pair][0], x, w0);
                acc[2 * pair][1] = smmla(acc[2 * pair][1], x, w1);
                acc[2 * pair + 1][0] = smmla(acc[2 * pair + 1][0], x, w2);
                acc[2 * pair + 1][1] = smmla(acc[2 * pair + 1][1], x, w3);
            }
        }
    }
}

impl Core for Matrix {
    #[inline(always)]
    fn new(_: &[i8]) -> Self {
        Self
    }

    #[inline(always)]
    unsafe fn tile<const P: usize>(
        self,
        mut weight: *const i8,
        bias: [int32x4_t; 2],
        input: [*const i8; P],
        inputs: usize,
    ) -> [[int32x4_t; 2]; P] {
        let mut acc = [[vdupq_n_s32(0); 2]; P];
        let mut x = [vdupq_n_s8(0); P];
        let sixteens = inputs / 16 * 16;
        for k in (0..sixteens).step_by(16) {
            // SAFETY: `k + 16` inputs and as many groups' weights are there, as the caller promised.
            unsafe {
                for pair in 0..P / 2 {
                    let [low, high] =
                        zip_halves(vld1q_s8(input[2 * pair].add(k)), vld1q_s8(input[2 * pair + 1].add(k)));
                    (x[2 * pair], x[2 * pair + 1]) = (low, high);
                }
                Self::groups(&mut acc, weight, &x, 0);
                Self::groups(&mut acc, weight.add(2 * STEP), &x, 1);
                weight = weight.add(4 * STEP);
            }
        }
        if sixteens < inputs {
            // SAFETY: eight more inputs, two more groups.
            unsafe {
                for pair in 0..P / 2 {
                    let (first, second) = (input[2 * pair].add(sixteens), input[2 * pair + 1].add(sixteens));
                    x[2 * pair] = vcombine_s8(vld1_s8(first), vld1_s8(second));
                }
                Self::groups(&mut acc, weight, &x, 0);
            }
        }
        let mut sums = [bias; P];
        for pair in 0..P / 2 {
            for half in 0..2 {
                let [a, b] = acc[2 * pair + half].map(vreinterpretq_s64_s32);
                let (even, odd) = (vzip1q_s64(a, b), vzip2q_s64(a, b));
                sums[2 * pair][half] = vaddq_s32(bias[half], vreinterpretq_s32_s64(even));
                sums[2 * pair + 1][half] = vaddq_s32(bias[half], vreinterpretq_s32_s64(odd));
            }
        }
        sums
    }
}
