//! AVX-512F: 16 lanes, 32 registers, fused multiply-add.
//!
//! **Dense.** 2 panels by up to 14 pixels: 28 accumulators, 2 registers of weights, 1 input; for 28 multiply-adds there are
//! 16 loads, so the two multiply-add ports are the limit (two loads a cycle would do 28). Three panels at once by up to 9
//! pixels where their number is odd: a lone panel by 14 would load 15 times for 14 multiply-adds.
//!
//! **Depthwise.** Two rows by up to 8 outputs: 16 accumulators and 2 x 7 weights, 14 loads of inputs for up to 112
//! multiply-adds.
//!
//! **LayerNorm.** 16 pixels at a time: their 16 sums are brought into one register by a tree of 15 additions, so that the
//! root and the division are done once for all.
//!
//! **GELU.** `F(|x|) - 1/2` by a cubic for each of 32 intervals of width [`STEP`]; the coefficients of an interval are
//! picked from two registers by one permutation each. No division, 14 instructions.
//!
//! **Measured** (benches/runs/2026-11-22-float-kernels.md) on one core of a shared Xeon (family 6, model 207), against a
//! loop of multiply-adds in registers: dense layers of the atto encoder undisturbed 88 % (40 inputs) to 97 % (160 and more)
//! with their data in the second cache, 89 to 98 % where the weights come from the third; GELU 4.9 G values a second; the
//! whole 12-band atto at 56x56 1.34 times the time of its multiply-adds alone.
#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::vector::Vector;
use super::{Dense, Depthwise, FloatKernels, LayerNorm, PANEL, Stem, shared, widen_f16};

/// Kernels for AVX-512F.
pub(super) static AVX512: FloatKernels = shared::set!("avx512");

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
    fn prefetch(at: *const f32) {
        // SAFETY: a prefetch never faults, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
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

/// Pixels whose statistics share a register.
const PIXELS: usize = 16;

#[target_feature(enable = "avx512f")]
fn layer_norm(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    norm.check(values, pixels, stride);
    for first in (0..pixels).step_by(PIXELS) {
        let values = &mut values[first * PANEL..];
        match PIXELS.min(pixels - first) {
            // SAFETY: these pixels exist and were checked; this function has the instructions.
            PIXELS => unsafe { layer_norm_of(norm, values, stride, PIXELS) },
            // SAFETY: as above.
            count => unsafe { layer_norm_of(norm, values, stride, count) },
        }
    }
}

/// LayerNorm of the first `count` pixels, at most [`PIXELS`]. Where there are fewer, the last one's statistics are computed
/// several times.
///
/// # Safety
/// `values` has `count` pixels, at least one, and was checked; the processor has AVX-512F.
#[inline(always)]
unsafe fn layer_norm_of(norm: &LayerNorm<'_>, values: &mut [f32], stride: usize, count: usize) {
    let channels = norm.weight.len();
    let panels = channels.div_ceil(PANEL);
    let last = 0xffff >> (panels * PANEL - channels);
    // SAFETY: panels of pixels below `count` were checked, weight and bias are read under the mask of their channels; the
    // caller vouches for the instructions.
    unsafe {
        let at = values.as_mut_ptr();
        let (n, eps) = (_mm512_set1_ps(channels as f32), _mm512_set1_ps(norm.eps));
        let mask = |panel: usize| if panel + 1 < panels { 0xffff } else { last };
        let pixel = |p: usize| p.min(count - 1) * PANEL;

        let mut sums = [_mm512_setzero_ps(); PIXELS];
        for panel in 0..panels {
            for p in 0..PIXELS {
                sums[p] = _mm512_add_ps(sums[p], _mm512_loadu_ps(at.add(panel * stride + pixel(p))));
            }
        }
        let mut mean = [0.0; PIXELS];
        _mm512_storeu_ps(mean.as_mut_ptr(), _mm512_div_ps(sum_each(sums), n));

        let mut squares = [_mm512_setzero_ps(); PIXELS];
        for panel in 0..panels {
            for p in 0..PIXELS {
                let v = _mm512_loadu_ps(at.add(panel * stride + pixel(p)));
                let deviation = _mm512_maskz_sub_ps(mask(panel), v, _mm512_set1_ps(mean[p]));
                squares[p] = _mm512_fmadd_ps(deviation, deviation, squares[p]);
            }
        }
        let variance = _mm512_div_ps(sum_each(squares), n);
        let mut scale = [0.0; PIXELS];
        let root = _mm512_sqrt_ps(_mm512_add_ps(variance, eps));
        _mm512_storeu_ps(scale.as_mut_ptr(), _mm512_div_ps(_mm512_set1_ps(1.0), root));

        for panel in 0..panels {
            let weight = _mm512_maskz_loadu_ps(mask(panel), norm.weight.as_ptr().add(panel * PANEL));
            let bias = _mm512_maskz_loadu_ps(mask(panel), norm.bias.as_ptr().add(panel * PANEL));
            for p in 0..count {
                let at = at.add(panel * stride + p * PANEL);
                let deviation = _mm512_sub_ps(_mm512_loadu_ps(at), _mm512_set1_ps(mean[p]));
                let scaled = _mm512_mul_ps(deviation, _mm512_set1_ps(scale[p]));
                _mm512_storeu_ps(at, _mm512_fmadd_ps(scaled, weight, bias));
            }
        }
    }
}

/// The sum of each of 16 registers: that of register `i` in lane `i`.
///
/// # Safety
/// The processor has AVX-512F.
#[inline(always)]
unsafe fn sum_each(v: [__m512; PIXELS]) -> __m512 {
    // SAFETY: no memory is touched; the caller vouches for the instructions.
    unsafe {
        // Macros, since a closure would be compiled without the instructions. Two registers a and b: in each quarter
        // a0 + a2, b0 + b2, a1 + a3, b1 + b3.
        macro_rules! pair {
            ($i:expr) => {
                _mm512_castps_pd(_mm512_add_ps(
                    _mm512_unpacklo_ps(v[$i], v[$i + 1]),
                    _mm512_unpackhi_ps(v[$i], v[$i + 1]),
                ))
            };
        }
        // Four: in each quarter the quarter's sum of each.
        macro_rules! four {
            ($i:expr) => {{
                let (a, b) = (pair!($i), pair!($i + 2));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
            }};
        }
        // Eight: the first four in the first half, in two quarters to be added; the second four in the second.
        macro_rules! eight {
            ($i:expr) => {{
                let (a, b) = (four!($i), four!($i + 4));
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
            }};
        }
        let (a, b) = (eight!(0), eight!(8));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    }
}

/// Width of an interval; interval `i` is centred at `i * STEP`, and the last one is the tail, where the distribution
/// function is 1.
const STEP: f32 = 0.18;
/// Coefficients, from the constant upward, of the cubics in `|x| - i * STEP`, fitted for this project to the normal
/// distribution function less 1/2.
#[rustfmt::skip]
const CUBICS: [[f32; 32]; 4] = [
    [
        -2.535_896_2e-9, 0.071_423_66, 0.140_576_3, 0.205_401_32,
        0.264_237_3, 0.315_939_7, 0.359_928_76, 0.396_165_22,
        0.425_066_23, 0.447_383_85, 0.464_069_7, 0.476_148_28,
        0.484_613_72, 0.490_358_17, 0.494_132_3, 0.496_533_07,
        0.498_011_65, 0.498_893_35, 0.499_402_37, 0.499_686_9,
        0.499_840_9, 0.499_921_6, 0.499_962_54, 0.499_982_63,
        0.499_992_2, 0.499_996_6, 0.499_998_57, 0.499_999_4,
        0.499_999_76, 0.499_999_9, 0.499_999_97, 0.5,
    ],
    [
        0.398_942_92, 0.392_529_96, 0.373_909_26, 0.344_816_92,
        0.307_850_45, 0.266_084_73, 0.222_653_24, 0.180_371_1,
        0.141_460_03, 0.107_406_21, 0.078_950_3, 0.056_183_275,
        0.038_706_955, 0.025_816_64, 0.016_670_134, 0.010_420_945_5,
        0.006_306_722_8, 0.003_695_123_1, 0.002_095_958, 0.001_150_971_9,
        0.000_611_892_6, 0.000_314_93, 0.000_156_921_03, 0.000_075_696_62,
        0.000_035_350_86, 0.000_015_982_749, 6.995_696_4e-6, 2.964_410_7e-6,
        1.216_112_1e-6, 4.829_883e-7, 1.857_065_5e-7, 0.0e0,
    ],
    [
        -0.000_024_381_641, -0.035_261_534, -0.067_175_426, -0.092_931_82,
        -0.110_641_57, -0.119_561_836, -0.120_084_345, -0.113_525_61,
        -0.101_787_49, -0.086_976_82, -0.071_066_5, -0.055_655_748,
        -0.041_850_31, -0.030_255_8, -0.021_051_789, -0.014_108_982,
        -0.009_114_139, -0.005_677_846, -0.003_412_667_2, -0.001_979_746_4,
        -0.001_108_838_2, -0.000_599_773_8, -0.000_313_378_03, -0.000_158_197_3,
        -0.000_077_171_25, -0.000_036_383_546, -0.000_016_580_849, -7.304_881_4e-6,
        -3.111_509e-6, -1.281_510_7e-6, -5.103_925e-7, 0.0e0,
    ],
    [
        -0.066_212_89, -0.062_979_01, -0.053_973_455, -0.040_506_52,
        -0.024_576_047, -0.008_359_983, 0.006_184_468_5, 0.017_634_321,
        0.025_260_506, 0.029_021_638, 0.029_424_226, 0.027_308_21,
        0.023_623_792, 0.019_246_979, 0.014_864_657, 0.010_930_136,
        0.007_675_714, 0.005_159_694_7, 0.003_325_777_6, 0.002_058_319,
        0.001_224_471, 0.000_700_774_8, 0.000_386_112_54, 0.000_204_933_98,
        0.000_104_832_565, 0.000_051_707_073, 0.000_024_600_098, 0.000_011_292_517,
        5.003_054e-6, 2.139_817e-6, 8.837_090_5e-7, 0.0e0,
    ],
];

#[target_feature(enable = "avx512f")]
fn gelu(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    // SAFETY: the coefficients are two registers each; pixels and sums are one register each.
    unsafe {
        let table = |i: usize| (_mm512_loadu_ps(CUBICS[i].as_ptr()), _mm512_loadu_ps(CUBICS[i].as_ptr().add(16)));
        let tables = [table(0), table(1), table(2), table(3)];
        // Adding 2^23 rounds to an integer, which then stands in the lowest bits.
        let integer = _mm512_set1_ps(8_388_608.0);
        let (step, per_step) = (_mm512_set1_ps(STEP), _mm512_set1_ps(1.0 / STEP));
        let (limit, half) = (_mm512_set1_ps(31.0 * STEP), _mm512_set1_ps(0.5));
        for row in values.chunks_mut((row * PANEL).max(PANEL)) {
            let mut squares = _mm512_setzero_ps();
            for pixel in row.as_chunks_mut::<PANEL>().0 {
                let x = _mm512_loadu_ps(pixel.as_ptr());
                let a = _mm512_abs_ps(x);
                let inside = _mm512_min_ps(a, limit);
                let rounded = _mm512_fmadd_ps(inside, per_step, integer);
                let r = _mm512_fnmadd_ps(_mm512_sub_ps(rounded, integer), step, inside);
                let interval = _mm512_castps_si512(rounded);
                macro_rules! pick {
                    ($i:literal) => {
                        _mm512_permutex2var_ps(tables[$i].0, interval, tables[$i].1)
                    };
                }
                let p = _mm512_fmadd_ps(pick!(3), r, pick!(2));
                let p = _mm512_fmadd_ps(p, r, pick!(1));
                let p = _mm512_fmadd_ps(p, r, pick!(0));
                let y = _mm512_fmadd_ps(a, p, _mm512_mul_ps(x, half));
                squares = _mm512_fmadd_ps(y, y, squares);
                _mm512_storeu_ps(pixel.as_mut_ptr(), y);
            }
            let sum = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), squares);
            _mm512_storeu_ps(sums.as_mut_ptr(), sum);
        }
    }
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
