//! From real numbers to the integers of `docs/integer-arithmetic.md`: weights, multipliers, LayerNorm constants.

use nadir::kernels::int8::{GROUP, PANEL};
use nadir::model::int8_layout::panels;

/// `[rows, columns]` to `[columns, rows]`.
pub fn transpose<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| values.iter().skip(c).step_by(columns).copied()).collect()
}

/// Real values to saturated i32.
pub fn to_i32(value: f64) -> i32 {
    value.round() as i32
}

/// Multipliers that share one shift: `real = multiplier * 2^-shift`, the largest with 31 bits.
pub fn multipliers(real: &[f64]) -> (Vec<i32>, i32) {
    let largest = real.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let shift = if largest > 0.0 { (30 - largest.log2().floor() as i32).clamp(1, 62) } else { 1 };
    (real.iter().map(|v| to_i32(v * 2f64.powi(shift))).collect(), shift)
}

/// `[rows, inputs]` to panels `[rows / 16, inputs / 4, 16, 4]`, the last panel filled up with zeros; `inputs` is a multiple of 4.
pub fn pack(weight: &[i8], inputs: usize) -> Vec<i8> {
    let mut packed = vec![0; panels(weight.len() / inputs) * inputs];
    for (row, weight) in weight.chunks_exact(inputs).enumerate() {
        for (i, &w) in weight.iter().enumerate() {
            packed[row / PANEL * PANEL * inputs + i / GROUP * PANEL * GROUP + row % PANEL * GROUP + i % GROUP] = w;
        }
    }
    packed
}

/// Each run of `len` values of every row made `padded` long, with zeros.
pub fn pad(weight: &[i8], len: usize, padded: usize) -> Vec<i8> {
    let zeros = vec![0; padded - len];
    weight.chunks_exact(len).flat_map(|run| run.iter().chain(&zeros).copied()).collect()
}

/// A 64-bit constant as two words, low first; at least 1, below 2^62.
pub fn wide(value: f64) -> [i32; 2] {
    let value = (value.round().max(1.0) as u64).min((1 << 62) - 1);
    [value as u32 as i32, (value >> 32) as i32]
}

/// The four constants of an integer LayerNorm over `channels` values of scale `input`, giving values of scale `output`.
pub fn layer_norm(channels: usize, input: f64, output: f64, eps: f32) -> [i32; 4] {
    let gain = channels as f64 / output;
    let exponent = 28 - gain.log2().floor() as i32;
    let mantissa = to_i32(gain * 2f64.powi(exponent)).clamp(1 << 28, (1 << 29) - 1);
    let [low, high] = wide((channels as f64 / input).powi(2) * f64::from(eps));
    [mantissa, exponent, low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_keep_their_value() {
        let real = [0.75, 1e-4, -0.3, 0.0];
        let (m, shift) = multipliers(&real);
        for (m, real) in m.iter().zip(real) {
            assert!((f64::from(*m) * 2f64.powi(-shift) - real).abs() < 1e-9);
        }
        assert!(m[0] >= 1 << 30);
        assert_eq!(multipliers(&[0.0]), (vec![0], 1));
        assert!(multipliers(&[3e9]).1 >= 1);
    }

    #[test]
    fn panels_hold_four_inputs_of_sixteen_outputs() {
        let weight: Vec<i8> = (0..18 * 8).map(|i| (i % 127) as i8).collect();
        let packed = pack(&weight, 8);
        assert_eq!(packed.len(), 32 * 8);
        for (row, input) in (0..18).flat_map(|r| (0..8).map(move |i| (r, i))) {
            let panel = &packed[row / 16 * 128..];
            assert_eq!(panel[input / 4 * 64 + row % 16 * 4 + input % 4], weight[row * 8 + input]);
        }
        assert_eq!(
            packed.iter().map(|&w| i32::from(w)).sum::<i32>(),
            weight.iter().map(|&w| i32::from(w)).sum::<i32>()
        );
        assert_eq!(pad(&[1, 2, 3, 4], 2, 3), [1, 2, 0, 3, 4, 0]);
    }
}
