//! Fixed-point arithmetic shared by the integer kernels: rescaling, integer square root, the LayerNorm of one position.
//!
//! `docs/integer-arithmetic.md` is the normative text; the functions here are its reference. Nothing in this file depends on
//! the processor, and every loop has a fixed number of rounds.

/// `value * multiplier / 2^15`, rounded half up: at most 2^15 in magnitude.
#[inline(always)]
pub fn multiply_q15(value: i16, multiplier: i16) -> i32 {
    (i32::from(value) * i32::from(multiplier) + (1 << 14)) >> 15
}

/// An accumulator in another scale: `acc >> shift` (which rounds down; the bias holds the half), saturated to i16, times a Q15
/// multiplier. For multipliers of 0..=32767 the result fits i16.
#[inline(always)]
pub fn requantize(acc: i32, multiplier: i16, shift: u32) -> i32 {
    multiply_q15(saturate_i16(acc >> (shift & 31)), multiplier)
}

/// Saturates to i16.
#[inline(always)]
pub fn saturate_i16(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// Saturates to i8.
#[inline(always)]
pub fn saturate_i8(value: i32) -> i8 {
    value.clamp(i32::from(i8::MIN), i32::from(i8::MAX)) as i8
}

/// Largest `r` with `r * r <= value`; 16 rounds.
pub fn isqrt32(value: u32) -> u32 {
    let (mut rest, mut root, mut bit) = (value, 0u32, 1u32 << 30);
    for _ in 0..16 {
        let trial = root + bit;
        // All ones or zero, so that no branch depends on the value.
        let fits = u32::from(rest >= trial).wrapping_neg();
        rest -= trial & fits;
        root = (root >> 1) + (bit & fits);
        bit >>= 2;
    }
    root
}

/// Largest `r` with `r * r <= value`; 32 rounds.
pub fn isqrt64(value: u64) -> u64 {
    let (mut rest, mut root, mut bit) = (value, 0u64, 1u64 << 62);
    for _ in 0..32 {
        let trial = root + bit;
        let fits = u64::from(rest >= trial).wrapping_neg();
        rest -= trial & fits;
        root = (root >> 1) + (bit & fits);
        bit >>= 2;
    }
    root
}

/// The even `t` for which `value >> t` (or `value << -t`) lies in `2^30..2^32`; for 0 as for 1.
#[inline(always)]
pub fn even_scale(value: u64) -> i32 {
    (33 - (value | 1).leading_zeros() as i32) & !1
}

/// `value >> shift`, or to the left if `shift` is negative; magnitudes up to 63.
#[inline(always)]
pub fn shift_by(value: u64, shift: i32) -> u64 {
    // One of the two shifts is by nothing.
    value << ((-shift).max(0) as u32 & 63) >> (shift.max(0) as u32 & 63)
}

/// `(2^63 - 1) / divisor` for a divisor of at least 2^31; 32 rounds.
pub fn reciprocal_q63(divisor: u32) -> u32 {
    let (mut rest, mut quotient) = (u64::from(u32::MAX >> 1), 0u32);
    for _ in 0..32 {
        // The numerator's lower half is all ones.
        rest = rest << 1 | 1;
        let fits = rest >= u64::from(divisor);
        rest -= u64::from(divisor) & u64::from(fits).wrapping_neg();
        quotient = quotient << 1 | u32::from(fits);
    }
    quotient
}

/// `value / divisor`, rounded towards zero, for a quotient below 2^24 in magnitude; 24 rounds, where the division of a processor without
/// one of 64 bits takes a number of rounds that depends on the values.
pub fn divide_q24(value: i64, divisor: u32) -> i32 {
    let sign = value >> 63;
    let (mut rest, mut quotient) = (((value ^ sign) - sign) as u64, 0i32);
    for bit in (0..24).rev() {
        let part = u64::from(divisor) << bit;
        let fits = u64::from(rest >= part);
        rest -= part & fits.wrapping_neg();
        quotient = quotient << 1 | fits as i32;
    }
    (quotient ^ sign as i32) - sign as i32
}

/// The constants of one integer LayerNorm without affine.
///
/// With `C` channels, input scale `s` and output scale `q`: `C / q = gain * 2^-exponent` and `epsilon = C^2 * eps / s^2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorm {
    /// In `2^28..2^29`.
    pub gain: u32,
    /// Power of two that goes with `gain`.
    pub exponent: i32,
    /// Below 2^62; what it is added to counts as at least 1.
    pub epsilon: u64,
}

/// The multiply-add that normalises every channel of one position: `(x * factor + offset) >> shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalizer {
    /// At most 2^14.
    pub factor: i32,
    /// Minus the mean, times `factor`, plus half a unit of the result.
    pub offset: i32,
    /// 1..=30.
    pub shift: u32,
}

impl LayerNorm {
    /// The normaliser for a position whose `channels` values sum to `sum` and whose squares sum to `squares`.
    ///
    /// `reciprocal` is [`reciprocal`] of `channels`. For i16 inputs and at most 2816 channels nothing overflows.
    /// Relative error of `factor`: at most 2^-12.
    #[inline(always)]
    pub fn normalizer(&self, sum: i32, squares: u64, channels: u32, reciprocal: u32) -> Normalizer {
        self.normalizer_with(sum, squares, channels, reciprocal, isqrt32)
    }

    /// The same with another way to the integer square root of a number of at least 2^30.
    #[inline(always)]
    pub fn normalizer_with(
        &self,
        sum: i32,
        squares: u64,
        channels: u32,
        reciprocal: u32,
        root: impl Fn(u32) -> u32,
    ) -> Normalizer {
        let sum64 = i64::from(sum);
        // C^2 times the variance, exact.
        let spread = (u64::from(channels) * squares).saturating_sub((sum64 * sum64) as u64);
        let spread = spread.saturating_add(self.epsilon).max(1);
        let scale = even_scale(spread);
        let mantissa = shift_by(spread, scale) as u32;
        let root = root(mantissa).max(1); // in 2^15..2^16
        let factor = ((self.gain + root / 2) / root) as i32;
        let shift = (self.exponent + scale / 2).clamp(1, 30) as u32;
        let mean_q15 = (sum64 * i64::from(reciprocal)) >> 16;
        let offset = (1i64 << (shift - 1)) - ((mean_q15 * i64::from(factor)) >> 15);
        Normalizer { factor, offset: offset as i32, shift }
    }
}

/// `2^31 / channels`, rounded: makes the mean of a position a multiplication.
pub fn reciprocal(channels: u32) -> u32 {
    let channels = u64::from(channels.max(1));
    (((1u64 << 31) + channels / 2) / channels) as u32
}

impl Normalizer {
    /// Normalises one value; the caller saturates to its type.
    #[inline(always)]
    pub fn apply(&self, value: i16) -> i32 {
        (i32::from(value).wrapping_mul(self.factor).wrapping_add(self.offset)) >> self.shift
    }
}

/// Fractional bits of the normalised channel values of [`pooled_layer_norm`].
pub const POOLED_FRACTION_BITS: u32 = 16;

/// LayerNorm without affine over the pooled channels, in place: `values` in, normalised values with 16 fractional bits out.
///
/// Inputs are at most 2^20 in magnitude, at most 2816 of them; `epsilon` is `C^2 * eps / s^2` for input scale `s`.
/// Error: at most 2^-15 absolute for |result| <= sqrt(2816).
pub fn pooled_layer_norm(values: &mut [i32], epsilon: u64) {
    let channels = values.len() as i64;
    let sum: i64 = values.iter().map(|&v| i64::from(v)).sum();
    let squares: u64 = values.iter().map(|&v| (i64::from(v) * i64::from(v)) as u64).sum();
    let spread =
        (channels as u64).saturating_mul(squares).saturating_sub(sum.unsigned_abs().saturating_mul(sum.unsigned_abs()));
    let spread = spread.saturating_add(epsilon).max(1);
    let scale = spread.leading_zeros() & !1;
    let root = (isqrt64(spread << scale) as u32).max(1); // from 2^31 on
    for v in values {
        let deviation = channels * i64::from(*v) - sum;
        // |deviation| <= sqrt(C * spread), so that the shifted value stays below 2^55.
        let scaled = deviation.wrapping_shl(POOLED_FRACTION_BITS + scale / 2);
        *v = divide_q24(scaled, root);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Random cases; Miri has no time for more.
    const ROUNDS: usize = if cfg!(miri) { 200 } else { 100_000 };

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn requantization_rounds_half_up_and_saturates() {
        assert_eq!([1, 2, -1, -2, -3].map(|v| multiply_q15(v, 1 << 14)), [1, 1, 0, -1, -1]);
        assert_eq!(requantize(i32::MAX, 32767, 0), 32766);
        assert_eq!(requantize(i32::MIN, 32767, 31), -1);
        assert_eq!(requantize(i32::MIN, 32767, 0), -32767);
        let mut state = 1;
        for _ in 0..ROUNDS {
            let (v, m) = (random(&mut state) as i32, random(&mut state) as i16 & i16::MAX);
            let shift = (random(&mut state) % 32) as u32;
            let narrow = f64::from(v >> shift).clamp(-32768.0, 32767.0);
            let exact = (narrow * f64::from(m) / 32768.0 + 0.5).floor();
            assert_eq!(f64::from(requantize(v, m, shift)), exact);
            assert!(exact.abs() <= 32767.0);
        }
    }

    #[test]
    fn reciprocals_are_exact() {
        let mut state = 3;
        for i in 0..ROUNDS {
            let divisor = match i {
                0 => 1 << 31,
                1 => u32::MAX,
                _ => random(&mut state) as u32 | 1 << 31,
            };
            assert_eq!(u64::from(reciprocal_q63(divisor)), (u64::MAX >> 1) / u64::from(divisor));
        }
    }

    #[test]
    fn quotients_are_exact() {
        let mut state = 11;
        for _ in 0..100_000 {
            let divisor = random(&mut state) as u32 | 1 << 31;
            let value = (random(&mut state) as i64 >> (8 + random(&mut state) % 40)).clamp(-(1 << 54), 1 << 54);
            assert_eq!(i64::from(divide_q24(value, divisor)), value / i64::from(divisor));
        }
        assert_eq!(divide_q24(0, 1 << 31), 0);
    }

    #[test]
    fn square_roots_are_exact() {
        let check = |v: u64| {
            let r = u128::from(isqrt64(v));
            assert!(r * r <= u128::from(v) && (r + 1) * (r + 1) > u128::from(v), "{v}");
            let v = v as u32;
            let r = u64::from(isqrt32(v));
            assert!(r * r <= u64::from(v) && (r + 1) * (r + 1) > u64::from(v), "{v}");
        };
        let mut state = 7;
        for i in 0..64 {
            for v in [0u64, 1, 2, 3, 4, 15, 16, 17] {
                check(v << i);
            }
            check(u64::MAX >> i);
        }
        for _ in 0..ROUNDS {
            let v = random(&mut state);
            check(v >> (random(&mut state) % 64));
        }
    }

    /// The bound is the one stated: factor within 2^-12, so an int8 result is within half a unit plus 127 * 2^-12, and the mean's part.
    #[test]
    fn layer_norm_is_within_its_bound() {
        let mut state = 99;
        for channels in [1usize, 7, 16, 40, 128, 320, 2816] {
            for round in 0..if cfg!(miri) { 2 } else { 200 } {
                let spread = 1 + random(&mut state) % 32768;
                let centre = random(&mut state) as i64 % 20_000;
                let x: Vec<i16> = (0..channels)
                    .map(|_| {
                        (centre + (random(&mut state) % (2 * spread)) as i64 - spread as i64).clamp(-32768, 32767)
                            as i16
                    })
                    .collect();
                let (eps_real, output_scale) = (1e-6 * 4000.0f64 * 4000.0, 1.0 / 16.0);
                let c = channels as f64;
                let exponent = 28 - (c / output_scale).log2().floor() as i32;
                let norm = LayerNorm {
                    gain: (c / output_scale * 2f64.powi(exponent)) as u32,
                    exponent,
                    epsilon: (c * c * eps_real) as u64,
                };
                let sum: i32 = x.iter().map(|&v| i32::from(v)).sum();
                let squares = x.iter().map(|&v| u64::from(v.unsigned_abs()).pow(2)).sum();
                let normalizer = norm.normalizer(sum, squares, channels as u32, reciprocal(channels as u32));
                let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / c;
                let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / c;
                for &v in &x {
                    let exact = (f64::from(v) - mean) / (variance + eps_real).sqrt() / output_scale;
                    let got = f64::from(normalizer.apply(v));
                    let bound = 0.51 + exact.abs() * 2f64.powi(-12) + 0.01;
                    assert!((got - exact).abs() <= bound, "C {channels} round {round}: {got} {exact}");
                }
            }
        }
    }

    #[test]
    fn pooled_layer_norm_is_within_its_bound() {
        let mut state = 5;
        for channels in [2usize, 16, 128, 2816] {
            for magnitude in [3u64, 1000, 1 << 19] {
                let x: Vec<i32> =
                    (0..channels).map(|_| (random(&mut state) % (2 * magnitude)) as i32 - magnitude as i32).collect();
                let c = channels as f64;
                let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / c;
                let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / c;
                let mut got = x.clone();
                pooled_layer_norm(&mut got, 1);
                for (v, g) in x.iter().zip(&got) {
                    let exact = (f64::from(*v) - mean) / (variance + 1.0 / (c * c)).sqrt();
                    let got = f64::from(*g) / 65536.0;
                    assert!((got - exact).abs() <= 2f64.powi(-15), "{got} {exact}");
                }
            }
        }
    }
}
