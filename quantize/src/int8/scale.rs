//! From real numbers to the integers of `docs/integer-arithmetic.md`: weights, multipliers, LayerNorm constants, clips.

use nadir::kernels::int8::{GROUP, PANEL};
use nadir::model::int8_layout::{TABLE_MAX, panels};
use rayon::prelude::*;

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

/// What the squared error of a clipped value counts, against that of a rounded one. Rounding errors differ from position to position and
/// mostly vanish in the mean over the map; the values that a clip cuts off come together in a few tiles, always with the same sign, and
/// turn the embeddings of those. On a random atto with 12 bands, calibrated on 32 tiles, 1 gave a mean cosine of 0.9984 and
/// a least of 0.988, 8 gave 0.9993 and 0.998, 64 gave 0.9994 and 0.9986 (nearest rounding).
const CLIPPED: f64 = 64.0;

/// The scale of symmetric int8 with the least squared error over `samples`, that of clipped values counted 64-fold.
pub fn clip(samples: &[f32]) -> f64 {
    let largest = samples.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return 1.0 / 127.0;
    }
    let error = |scale: f32| -> f64 {
        let squared = |&v: &f32| {
            let whole = (v / scale).round();
            let kept = whole.clamp(-128.0, 127.0);
            f64::from(v - kept * scale).powi(2) * if whole == kept { 1.0 } else { CLIPPED }
        };
        samples.iter().map(squared).sum()
    };
    best((6..=40).map(|i| largest * i as f32 / 40.0 / 127.0), error)
}

/// Samples that decide a GELU table's index.
const MAX_GELU_SAMPLES: usize = 100_000;

/// Scale and zero point of a GELU table's index with the least squared error after GELU: `real = (index - zero_point) * scale`.
pub fn gelu_clip(samples: &[f32]) -> (f64, i32) {
    let (low, high) = samples.iter().fold((-0.5f32, 0.5f32), |(l, h), &v| (l.min(v), h.max(v)));
    let samples: Vec<f32> = samples.iter().step_by(samples.len().div_ceil(MAX_GELU_SAMPLES).max(1)).copied().collect();
    let exact: Vec<f32> = samples.iter().map(|&v| gelu(f64::from(v)) as f32).collect();
    let mut found = (f64::INFINITY, 1.0, 0);
    for low in [-6.0f32, -5.0, -4.0, -3.5, -3.0, -2.5, -2.0].map(|clip| low.max(clip)) {
        for step in 8..=24 {
            let high = high * step as f32 / 24.0;
            let scale = (high - low) / 255.0;
            let zero_point = (-128.0 - low / scale).round().clamp(-128.0, 127.0);
            let table: Vec<f32> =
                (-128..128).map(|i| gelu(f64::from((i as f32 - zero_point) * scale)) as f32).collect();
            let error: f64 = samples
                .iter()
                .zip(&exact)
                .map(|(&v, &exact)| {
                    let raw = (v / scale).round() + zero_point;
                    let index = raw.clamp(-128.0, 127.0) as i32;
                    f64::from(exact - table[(index + 128) as usize]).powi(2) * if raw > 127.0 { CLIPPED } else { 1.0 }
                })
                .sum();
            if error < found.0 {
                found = (error, f64::from(scale), zero_point as i32);
            }
        }
    }
    (found.1, found.2)
}

/// The GELU table for an index of `scale` and `zero_point`, and the scale of its i16 values.
pub fn gelu_table(scale: f64, zero_point: i32) -> (Vec<i16>, f64) {
    let values: Vec<f64> = (-128..128).map(|i| gelu(f64::from(i - zero_point) * scale)).collect();
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let unit = largest / f64::from(TABLE_MAX);
    (values.iter().map(|v| (v / unit).round() as i16).collect(), unit)
}

/// Exact GELU.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn best(scales: impl Iterator<Item = f32>, error: impl Fn(f32) -> f64 + Sync) -> f64 {
    let scales: Vec<f32> = scales.collect();
    let candidates: Vec<(f64, f32)> = scales.into_par_iter().map(|scale| (error(scale), scale)).collect();
    f64::from(candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, scale)| scale))
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

    #[test]
    fn a_far_outlier_is_clipped() {
        let mut samples: Vec<f32> = (0..1_000_000).map(|i| (i as f32 * 0.618).sin()).collect();
        let plain = clip(&samples);
        assert!((plain - 1.0 / 127.0).abs() < 1e-3 / 127.0);
        samples.push(3.0);
        assert!(clip(&samples) < 2.9 / 127.0);
    }

    #[test]
    fn gelu_tables_are_exact_at_their_points() {
        let samples: Vec<f32> = (0..1000).map(|i| i as f32 * 0.01 - 4.0).collect();
        let (scale, zero_point) = gelu_clip(&samples);
        let (table, unit) = gelu_table(scale, zero_point);
        for &x in &samples {
            let index = ((f64::from(x) / scale).round() as i32 + zero_point).clamp(-128, 127);
            let error = (f64::from(table[(index + 128) as usize]) * unit - gelu(f64::from(x))).abs();
            assert!(error < 0.6 * scale, "{x}: {error}");
        }
    }
}
