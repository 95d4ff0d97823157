//! NEON of AArch64: 4 lanes, 32 registers; part of the base architecture.
//!
//! **Dense.** One panel (4 registers) by up to 6 pixels: 24 accumulators, 4 registers of weights, 1 input; 10 loads for 24
//! multiply-adds.
//!
//! **Depthwise.** A quarter of a panel, two rows by up to 7 outputs: 14 accumulators, 14 weights and 1 input.
#![allow(unsafe_code)]

use core::arch::aarch64::*;

use super::vector::Vector;
use super::{Dense, Depthwise, FloatKernels, LayerNorm, PANEL, Stem, shared, widen_f16};

/// Kernels for NEON.
pub(super) static NEON: FloatKernels =
    FloatKernels { name: "neon", dense, depthwise, stem, layer_norm, gelu, grn, scale, widen: widen_f16 };

/// One q register.
#[derive(Clone, Copy)]
struct Q(float32x4_t);

/// An operation on registers alone.
macro_rules! registers {
    ($operation:expr) => {
        // SAFETY: this module is compiled only where NEON is part of the base architecture, and no memory is touched.
        unsafe { $operation }
    };
}

// SAFETY: load and store are unaligned and of 4 values.
unsafe impl Vector for Q {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for 4 values.
        Q(unsafe { vld1q_f32(at) })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Q(registers!(vdupq_n_f32(value)))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for 4 values.
        unsafe { vst1q_f32(at, self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Q(registers!(vaddq_f32(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Q(registers!(vsubq_f32(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Q(registers!(vmulq_f32(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Q(registers!(vdivq_f32(self.0, other.0)))
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Q(registers!(vfmaq_f32(term.0, self.0, factor.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Q(registers!(vsqrtq_f32(self.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Q(registers!(vabsq_f32(self.0)))
    }

    #[inline(always)]
    fn where_less(self, of: Self, limit: Self, other: Self) -> Self {
        Q(registers!(vbslq_f32(vcltq_f32(of.0, limit.0), self.0, other.0)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        registers!(vaddvq_f32(self.0))
    }
}

fn dense(job: &Dense<'_>, output: &mut [f32]) {
    shared::tiles!(Q, 4, 1: [1, 2, 3, 4, 5, 6], job, output);
}

fn depthwise(job: &Depthwise<'_>, output: &mut [f32]) {
    shared::blocks!(Q, 2: [1, 2, 3, 4, 5, 6, 7], job, output);
}

fn stem(job: &Stem<'_>, output: &mut [f32]) {
    // SAFETY: NEON is part of the base architecture.
    unsafe { shared::stem::<Q>(job, output) }
}

fn layer_norm(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    // SAFETY: NEON is part of the base architecture.
    unsafe { shared::layer_norm::<Q>(norm, values, pixels, stride) }
}

fn gelu(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    // SAFETY: NEON is part of the base architecture.
    unsafe { shared::gelu::<Q>(values, row, sums) }
}

fn grn(squares: &mut [f32], gamma: &[f32], eps: f32) {
    // SAFETY: NEON is part of the base architecture.
    unsafe { shared::grn::<Q>(squares, gamma, eps) }
}

fn scale(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    // SAFETY: NEON is part of the base architecture.
    unsafe { shared::scale::<Q>(values, multiplier, offset) }
}
