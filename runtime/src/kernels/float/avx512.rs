//! AVX-512F: 16 lanes, 32 registers, fused multiply-add.
//!
//! **Dense.** 2 panels by up to 14 pixels: 28 accumulators, 2 registers of weights, 1 input; for 28 multiply-adds there are 16 loads, so the
//! two multiply-add ports are the limit (two loads a cycle would do 28). Three panels at once by up to 9 pixels where their number is
//! odd: a lone panel by 14 would load 15 times for 14 multiply-adds.
//!
//! **Depthwise.** Two rows by up to 8 outputs: 16 accumulators and 2 x 7 weights, 14 loads of inputs for up to 112 multiply-adds.
//!
//! **LayerNorm.** 16 pixels at a time: their 16 sums are brought into one register by a tree of 15 additions, so that the root and the division
//! are done once for all.
//!
//! **GELU.** `F(|x|) - 1/2` by a cubic for each of 32 intervals of width [`STEP`]; the coefficients of an interval are picked from two registers by one permutation each.
//! No division, 14 instructions.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::vector::Vector;
use super::{Dense, Depthwise, FloatKernels, LayerNorm, PANEL, Stem, shared, widen_f16};

/// Kernels for AVX-512F.
pub(super) static AVX512: FloatKernels = FloatKernels {
    name: "avx512",
    dense: |job, output| {
        // SAFETY: this set is handed out only after its instructions were found.
        unsafe { dense(job, output) }
    },
    depthwise: |job, output| {
        // SAFETY: as above.
        unsafe { depthwise(job, output) }
    },
    stem: |job, output| {
        // SAFETY: as above.
        unsafe { stem(job, output) }
    },
    layer_norm: |norm, values, pixels, stride| {
        // SAFETY: as above.
        unsafe { layer_norm(norm, values, pixels, stride) }
    },
    gelu: |values, row, sums| {
        // SAFETY: as above.
        unsafe { gelu(values, row, sums) }
    },
    grn: |squares, gamma, eps| {
        // SAFETY: as above.
        unsafe { grn(squares, gamma, eps) }
    },
    scale: |values, multiplier, offset| {
        // SAFETY: as above.
        unsafe { scale(values, multiplier, offset) }
    },
    widen: |bits, values| {
        // SAFETY: as above.
        unsafe { widen(bits, values) }
    },
};

/// One zmm register.
#[derive(Clone, Copy)]
struct Zmm(__m512);

/// An operation on registers alone.
macro_rules! registers {
    ($operation:expr) => {
        // SAFETY: a value of this type exists only where the instructions do (see `Vector::load`), and no memory is touched.
        unsafe { $operation }
    };
}

// SAFETY: load and store are unaligned and of 16 values.
unsafe impl Vector for Zmm {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 values and the instructions.
        Zmm(unsafe { _mm512_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the instructions.
        Zmm(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for 16 values.
        unsafe { _mm512_storeu_ps(at, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Zmm(registers!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Zmm(registers!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Zmm(registers!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Zmm(registers!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Zmm(registers!(_mm512_fmadd_ps(self.0, factor.0, term.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Zmm(registers!(_mm512_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Zmm(registers!(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn where_less(self, of: Self, limit: Self, other: Self) -> Self {
        Zmm(registers!(_mm512_mask_blend_ps(_mm512_cmplt_ps_mask(of.0, limit.0), other.0, self.0)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        registers!(_mm512_reduce_add_ps(self.0))
    }
}

#[target_feature(enable = "avx512f")]
fn dense(job: &Dense<'_>, output: &mut [f32]) {
    match job.panels {
        1 => shared::tiles!(Zmm, 1, 1: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], job, output),
        2 => shared::tiles!(Zmm, 2, 2: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], job, output),
        _ => shared::tiles!(Zmm, 3, 3: [1, 2, 3, 4, 5, 6, 7, 8, 9], job, output),
    }
}

#[target_feature(enable = "avx512f")]
fn depthwise(job: &Depthwise<'_>, output: &mut [f32]) {
    shared::blocks!(Zmm, 2: [1, 2, 3, 4, 5, 6, 7, 8], job, output);
}

#[target_feature(enable = "avx512f")]
fn stem(job: &Stem<'_>, output: &mut [f32]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::stem::<Zmm>(job, output) }
}

#[target_feature(enable = "avx512f")]
fn layer_norm(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe { shared::layer_norm::<Zmm>(norm, values, pixels, stride) }
}

#[target_feature(enable = "avx512f")]
fn gelu(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::gelu::<Zmm>(values, row, sums) }
}

#[target_feature(enable = "avx512f")]
fn grn(squares: &mut [f32], gamma: &[f32], eps: f32) {
    // SAFETY: this function has the instructions.
    unsafe { shared::grn::<Zmm>(squares, gamma, eps) }
}

#[target_feature(enable = "avx512f")]
fn scale(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::scale::<Zmm>(values, multiplier, offset) }
}

#[target_feature(enable = "avx512f")]
fn widen(bits: &[u16], values: &mut [f32]) {
    let (bits, odd_bits) = bits.as_chunks::<16>();
    let (values, odd_values) = values.as_chunks_mut::<16>();
    for (bits, values) in bits.iter().zip(values) {
        // SAFETY: 32 bytes are read from `bits` and 64 written to `values`, which have them.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast()))) }
    }
    widen_f16(odd_bits, odd_values);
}
