//! Set `dotprod`: `neon` with `sdot` in the matrix products.
//!
//! `sdot` by element takes four inputs of one pixel from a lane and multiplies them with four times four weights, which is how a panel
//! stores them: one instruction, 16 products, four outputs. Tile: 8 pixels by 8 outputs, 16 accumulators; for 16 inputs 8 registers of
//! inputs (one a pixel) and 2 of weights at a time, 26 of 32, and 64 `sdot` for 16 loads. A tile of 4 pixels by 16 outputs would need 20
//! loads for as many. Eight inputs may be left over.
//!
//! The intrinsics are not stable in Rust 1.95, so that each `sdot` is an `asm!` of its own and the compiler places and schedules them.
//! They assemble only in functions that have the target feature: all between [`expand`], [`project`] and them is inlined.
//!
//! No board was at hand: correct under QEMU, speed unknown. Instructions of the loop of a release build (rustc 1.95), by
//! disassembly: 80 for 1024 multiply-adds (0.078), of which 64 are `sdot`; 44 for 512 (0.086) in the tile of 4 pixels.
#![allow(unsafe_code)]

use super::neon_gemm::{self, Core, STEP};
use super::neon_simd::*;
use super::*;
use core::arch::asm;

/// ARMv8.2 with FEAT_DotProd.
pub(super) static DOTPROD: Int8Kernels = Int8Kernels {
    name: "dotprod",
    expand: |input, layer, gelu, output, squares| {
        // SAFETY: the set is handed out only where the processor has `sdot`.
        unsafe { expand(input, layer, gelu, output, squares) }
    },
    project: |input, layer, residual| {
        // SAFETY: as above.
        unsafe { project(input, layer, residual) }
    },
    ..neon::SET
};

#[target_feature(enable = "dotprod")]
fn expand(input: &[i8], layer: &Dense<'_>, gelu: &Gelu<'_>, output: &mut [i8], squares: &mut [u64]) {
    // SAFETY: the function has the feature.
    unsafe { neon_gemm::expand::<Dot, 8, 4>(input, layer, gelu, output, squares) }
}

#[target_feature(enable = "dotprod")]
fn project(input: &[i8], layer: &Dense<'_>, residual: &mut [i16]) {
    // SAFETY: the function has the feature.
    unsafe { neon_gemm::project::<Dot, 8, 4>(input, layer, residual) }
}

/// Adds to each lane of `acc` the products of four weights with the four inputs of lane `LANE`.
///
/// # Safety
/// The processor has `sdot`.
#[inline(always)]
unsafe fn sdot<const LANE: u32>(mut acc: int32x4_t, weight: int8x16_t, input: int8x16_t) -> int32x4_t {
    // SAFETY: works on registers alone.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {weight:v}.16b, {input:v}.4b[{lane}]",
            acc = inout(vreg) acc,
            weight = in(vreg) weight,
            input = in(vreg) input,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// The inner loop.
#[derive(Clone, Copy)]
struct Dot;

impl Dot {
    /// Adds the products of the four inputs of lane `LANE`.
    ///
    /// # Safety
    /// The processor has `sdot`; 32 bytes of weights can be read.
    #[inline(always)]
    unsafe fn group<const LANE: u32, const P: usize>(
        acc: &mut [[int32x4_t; 2]; P],
        weight: *const i8,
        input: &[int8x16_t; P],
    ) {
        // SAFETY: as the caller promised.
        unsafe {
            let weight = [vld1q_s8(weight), vld1q_s8(weight.add(16))];
            for pixel in 0..P {
                acc[pixel][0] = sdot::<LANE>(acc[pixel][0], weight[0], input[pixel]);
                acc[pixel][1] = sdot::<LANE>(acc[pixel][1], weight[1], input[pixel]);
            }
        }
    }
}

impl Core for Dot {
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
        let mut acc = [bias; P];
        let mut x = [vdupq_n_s8(0); P];
        let sixteens = inputs / 16 * 16;
        for k in (0..sixteens).step_by(16) {
            // SAFETY: `k + 16` inputs and as many groups' weights are there, as the caller promised.
            unsafe {
                for pixel in 0..P {
                    x[pixel] = vld1q_s8(input[pixel].add(k));
                }
                Self::group::<0, P>(&mut acc, weight, &x);
                Self::group::<1, P>(&mut acc, weight.add(STEP), &x);
                Self::group::<2, P>(&mut acc, weight.add(2 * STEP), &x);
                Self::group::<3, P>(&mut acc, weight.add(3 * STEP), &x);
                weight = weight.add(4 * STEP);
            }
        }
        if sixteens < inputs {
            // SAFETY: eight more inputs, two more groups.
            unsafe {
                for pixel in 0..P {
                    let last = vld1_s8(input[pixel].add(sixteens));
                    x[pixel] = vcombine_s8(last, last);
                }
                Self::group::<0, P>(&mut acc, weight, &x);
                Self::group::<1, P>(&mut acc, weight.add(STEP), &x);
            }
        }
        acc
    }
}
