//! AVX2 with FMA and F16C: 8 lanes, 16 registers.
//!
//! **Dense.** One panel (2 registers) by up to 6 pixels: 12 accumulators, 2 registers of weights, 1 input; 8 loads for 12
//! multiply-adds.
//!
//! **Depthwise.** Half a panel, one row, up to 7 outputs: 7 accumulators, 7 weights and 1 input.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::vector::Vector;
use super::{Dense, Depthwise, FloatKernels, LayerNorm, PANEL, Stem, shared, widen_f16};

/// Kernels for AVX2, FMA and F16C.
pub(super) static AVX2: FloatKernels = shared::set!("avx2");

/// One ymm register.
#[derive(Clone, Copy)]
struct Ymm(__m256);

/// An operation on registers alone.
macro_rules! registers {
    ($operation:expr) => {
        // SAFETY: a value of this type exists only where the instructions do (see `Vector::load`), and no memory is touched.
        unsafe { $operation }
    };
}

// SAFETY: load and store are unaligned and of 8 values.
unsafe impl Vector for Ymm {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for 8 values and the instructions.
        Ymm(unsafe { _mm256_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the instructions.
        Ymm(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for 8 values.
        unsafe { _mm256_storeu_ps(at, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Ymm(registers!(_mm256_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Ymm(registers!(_mm256_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Ymm(registers!(_mm256_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Ymm(registers!(_mm256_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Ymm(registers!(_mm256_fmadd_ps(self.0, factor.0, term.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Ymm(registers!(_mm256_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Ymm(registers!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)))
    }

    #[inline(always)]
    fn where_less(self, of: Self, limit: Self, other: Self) -> Self {
        Ymm(registers!(_mm256_blendv_ps(other.0, self.0, _mm256_cmp_ps::<_CMP_LT_OQ>(of.0, limit.0))))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        registers!({
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
}

#[target_feature(enable = "avx2,fma")]
fn dense(job: &Dense<'_>, output: &mut [f32]) {
    shared::tiles!(Ymm, 2, 1: [1, 2, 3, 4, 5, 6], job, output);
}

#[target_feature(enable = "avx2,fma")]
fn depthwise(job: &Depthwise<'_>, output: &mut [f32]) {
    shared::blocks!(Ymm, 1: [1, 2, 3, 4, 5, 6, 7], job, output);
}

#[target_feature(enable = "avx2,fma")]
fn stem(job: &Stem<'_>, output: &mut [f32]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::stem::<Ymm>(job, output) }
}

#[target_feature(enable = "avx2,fma")]
fn layer_norm(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    // SAFETY: this function has the instructions.
    unsafe { shared::layer_norm::<Ymm>(norm, values, pixels, stride) }
}

#[target_feature(enable = "avx2,fma")]
fn gelu(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::gelu::<Ymm>(values, row, sums) }
}

#[target_feature(enable = "avx2,fma")]
fn grn(squares: &mut [f32], gamma: &[f32], eps: f32) {
    // SAFETY: this function has the instructions.
    unsafe { shared::grn::<Ymm>(squares, gamma, eps) }
}

#[target_feature(enable = "avx2,fma")]
fn scale(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    // SAFETY: this function has the instructions.
    unsafe { shared::scale::<Ymm>(values, multiplier, offset) }
}

#[target_feature(enable = "avx2,f16c")]
fn widen(bits: &[u16], values: &mut [f32]) {
    let (bits, odd_bits) = bits.as_chunks::<8>();
    let (values, odd_values) = values.as_chunks_mut::<8>();
    for (bits, values) in bits.iter().zip(values) {
        // SAFETY: 16 bytes are read from `bits` and 32 written to `values`, which have them.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast()))) }
    }
    widen_f16(odd_bits, odd_values);
}
