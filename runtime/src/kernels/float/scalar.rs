//! The set that runs everywhere: plain Rust.
//!
//! A "register" is an array of four values, which the compiler turns into one register where it has one (SSE2 on every
//! x86-64) and into four scalar operations where it has none (Cortex-M). Multiplication and addition round separately.
//!
//! Tile: 2 pixels by one panel, eight accumulators of four lanes beside four registers of weights and one input: what the 16
//! registers of SSE2 hold. The depthwise kernel keeps the 7 weights of a kernel row and 4 outputs.
#![allow(unsafe_code)]

use super::vector::Vector;
use super::{Dense, Depthwise, FloatKernels, LayerNorm, PANEL, Stem, shared, widen_f16};

/// Plain Rust, on every processor.
pub static SCALAR: FloatKernels =
    FloatKernels { name: "scalar", dense, depthwise, stem, layer_norm, gelu, grn, scale, widen: widen_f16 };

/// Four values.
#[derive(Clone, Copy)]
struct Quad([f32; 4]);

impl Quad {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let (a, b) = (self.0, other.0);
        Quad([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])])
    }
}

// SAFETY: load and store go through pointers to `[f32; 4]`, read and written unaligned.
unsafe impl Vector for Quad {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for four values.
        Quad(unsafe { at.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Quad([value; 4])
    }

    #[inline(always)]
    unsafe fn inverse_root(value: f32) -> Self {
        Quad([1.0 / libm::sqrtf(value); 4])
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for four values.
        unsafe { at.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.each(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        self.mul(factor).add(term)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.each(self, |a, _| libm::sqrtf(a))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.each(self, |a, _| a.abs())
    }

    #[inline(always)]
    fn where_less(self, of: Self, limit: Self, other: Self) -> Self {
        let pick = |l: usize| if of.0[l] < limit.0[l] { self.0[l] } else { other.0[l] };
        Quad([pick(0), pick(1), pick(2), pick(3)])
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        (self.0[0] + self.0[2]) + (self.0[1] + self.0[3])
    }
}

fn dense(job: &Dense<'_>, output: &mut [f32]) {
    shared::tiles!(Quad, 4, 1: [1, 2], job, output);
}

fn depthwise(job: &Depthwise<'_>, output: &mut [f32]) {
    shared::blocks!(Quad, 1: [1, 2, 3, 4], job, output);
}

fn stem(job: &Stem<'_>, output: &mut [f32]) {
    // SAFETY: plain Rust needs no instructions.
    unsafe { shared::stem::<Quad>(job, output) }
}

fn layer_norm(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    // SAFETY: plain Rust needs no instructions.
    unsafe { shared::layer_norm::<Quad>(norm, values, pixels, stride) }
}

fn gelu(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    // SAFETY: plain Rust needs no instructions.
    unsafe { shared::gelu::<Quad>(values, row, sums) }
}

fn grn(squares: &mut [f32], gamma: &[f32], eps: f32) {
    // SAFETY: plain Rust needs no instructions.
    unsafe { shared::grn::<Quad>(squares, gamma, eps) }
}

fn scale(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    // SAFETY: plain Rust needs no instructions.
    unsafe { shared::scale::<Quad>(values, multiplier, offset) }
}
