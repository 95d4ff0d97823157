//! What the inputs of a layer have to do with each other: the matrix that says how errors in its weights add up in its outputs.
//!
//! For inputs x (the integers that the engine will see) and a row of weights w rounded to q, the outputs' mean squared error over the
//! samples, once the bias has taken up its mean, is `(w - q)^T H (w - q)` with H the covariance of x.
//!
//! Samples are small integers, so every sum is exact and no result depends on the order or the number of threads.

use rayon::prelude::*;

/// Largest magnitude of a sample: [`EXACT`] products of two fit an i32.
const SAMPLE_MAX: i16 = 2047;
/// Products that an i32 sums without overflow.
const EXACT: usize = 256;
/// Rows of a matrix of products that one task makes.
const BLOCK: usize = 16;

/// Covariance of the inputs of a layer.
#[derive(Clone, Debug)]
pub struct Hessian {
    /// Inputs of the layer.
    pub columns: usize,
    /// `[columns, columns]`, symmetric, positive semidefinite.
    pub covariance: Vec<f64>,
}

/// Samples of a layer's inputs, as the integer engine will see them and as they were.
pub struct Inputs {
    /// Covariance of the integers.
    pub hessian: Hessian,
    /// Mean of the rounded inputs, in real units.
    pub mean: Vec<f64>,
    /// Mean of the inputs before rounding, in real units.
    pub exact_mean: Vec<f64>,
}

impl Inputs {
    /// From `samples` `[rows, columns]` in real units, rounded to int8 of `scale`.
    pub fn int8(samples: &[f32], columns: usize, scale: f64) -> Self {
        Self::of(samples, columns, scale, 127.0)
    }

    /// As [`Inputs::int8`] for inputs of 14 bits, of which `scale` is the unit of the upper 8; rounded to 12 bits, which an exact sum of products
    /// allows.
    pub fn raised(samples: &[f32], columns: usize, scale: f64) -> Self {
        Self::of(samples, columns, scale / 16.0, f64::from(SAMPLE_MAX))
    }

    /// As [`Inputs::int8`] for inputs that are rounded so finely that it does not matter; `scale` is such that their integers
    /// are at most 2047.
    pub fn fine(samples: &[f32], columns: usize, scale: f64) -> Self {
        let mut inputs = Self::of(samples, columns, scale, f64::from(SAMPLE_MAX));
        inputs.exact_mean.clone_from(&inputs.mean);
        inputs
    }

    fn of(samples: &[f32], columns: usize, scale: f64, largest: f64) -> Self {
        let rows = samples.len() / columns;
        // [columns, rows].
        let mut integers = vec![0i16; samples.len()];
        let channels = integers.par_chunks_mut(rows.max(1)).enumerate();
        let exact_mean: Vec<f64> = channels
            .map(|(column, integers)| {
                let mut sum = 0.0;
                for (row, integer) in integers.iter_mut().enumerate() {
                    let exact = f64::from(samples[row * columns + column]);
                    *integer = (exact / scale).round().clamp(-largest - 1.0, largest) as i16;
                    sum += exact;
                }
                sum / rows as f64
            })
            .collect();
        if rows == 0 {
            let zeros = vec![0.0; columns];
            let hessian = Hessian { columns, covariance: vec![0.0; columns * columns] };
            return Self { hessian, mean: zeros.clone(), exact_mean: zeros };
        }
        let mean = means(&integers, rows);
        let covariance = covariance(&integers, rows, &mean);
        let mean = mean.iter().map(|m| m * scale).collect();
        Self { hessian: Hessian { columns, covariance }, mean, exact_mean }
    }
}

/// Means of `columns` `[columns, rows]`.
fn means(columns: &[i16], rows: usize) -> Vec<f64> {
    let mean = |column: &[i16]| column.iter().map(|&v| i64::from(v)).sum::<i64>() as f64 / rows as f64;
    columns.par_chunks(rows).map(mean).collect()
}

/// Covariance of `values` `[columns, rows]`.
fn covariance(values: &[i16], rows: usize, mean: &[f64]) -> Vec<f64> {
    let columns = mean.len();
    let mut result = vec![0.0; columns * columns];
    result.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, result)| {
        let mut sums = vec![0i64; result.len()];
        // A stretch of the rows at a time stays in the cache.
        for first in (0..rows).step_by(2 * EXACT) {
            let stretch = first..(first + 2 * EXACT).min(rows);
            for (j, b) in values.chunks_exact(rows).enumerate() {
                for (i, sums) in sums.chunks_exact_mut(columns).enumerate() {
                    let a = &values[(block * BLOCK + i) * rows..][stretch.clone()];
                    sums[j] += product(a, &b[stretch.clone()]);
                }
            }
        }
        for (i, (result, sums)) in result.chunks_exact_mut(columns).zip(sums.chunks_exact(columns)).enumerate() {
            let mean_i = mean[block * BLOCK + i];
            for ((result, &sum), mean) in result.iter_mut().zip(sums).zip(mean) {
                *result = sum as f64 / rows as f64 - mean_i * mean;
            }
        }
    });
    result
}

/// Sum of the products, exact.
fn product(a: &[i16], b: &[i16]) -> i64 {
    let stretches = a.chunks(EXACT).zip(b.chunks(EXACT));
    stretches.map(|(a, b)| i64::from(a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum::<i32>())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn moments_are_those_of_the_samples() {
        let (rows, columns) = (700, 21);
        let mut random = Random::new(3);
        let mut samples = vec![0.0f32; rows * columns];
        for row in samples.chunks_exact_mut(columns) {
            let common = random.normal();
            row.iter_mut().for_each(|v| *v = (random.normal() + common + 0.3) as f32);
        }
        let scale = 0.02;
        let inputs = Inputs::int8(&samples, columns, scale);
        let exact = |r: usize, c: usize| f64::from(samples[r * columns + c]) / scale;
        let integer = |r: usize, c: usize| exact(r, c).round().clamp(-128.0, 127.0);
        let mean = |f: &dyn Fn(usize) -> f64| (0..rows).map(f).sum::<f64>() / rows as f64;
        for i in 0..columns {
            let of_i = mean(&|r| integer(r, i));
            assert!((inputs.mean[i] / scale - of_i).abs() < 1e-9);
            assert!((inputs.exact_mean[i] / scale - mean(&|r| exact(r, i))).abs() < 1e-9);
            for j in 0..columns {
                let of_j = mean(&|r| integer(r, j));
                let expected = mean(&|r| integer(r, i) * integer(r, j)) - of_i * of_j;
                let found = inputs.hessian.covariance[i * columns + j];
                assert!((found - expected).abs() < 1e-6, "{i} {j}: {found} {expected}");
            }
        }
    }

    #[test]
    fn no_samples_give_zeros() {
        let inputs = Inputs::int8(&[], 3, 1.0);
        assert!(inputs.hessian.covariance == [0.0; 9] && inputs.mean == [0.0; 3] && inputs.exact_mean == [0.0; 3]);
    }
}
