//! Rounding the weights of a layer so that its outputs, not its weights, stay near.
//!
//! Inputs of a layer go up and down together. If a weight had to be rounded up, the next ones can be rounded so that they take back
//! much of what this does to the output. With H the covariance of the inputs ([`Hessian`]) the error of a row is
//! `(w - q)^T H (w - q)`; finding the best integers q is a hard lattice problem, for which two cheap methods are put in line:
//!
//! 1. **One column after the other**, each rounded to the best value given the errors of those before, as if all later columns could
//!    still take any real value. This is GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
//!    Transformers", ICLR 2023), which makes Optimal Brain Quantization (Frantar and Alistarh, 2022) fast. With H = L L^T and the
//!    last column first, the correction of column j is the sum over the columns k done of `L[k][j] (w[k] - q[k])`, over `L[j][j]`:
//!    no inverse is needed (this form is Babai's nearest plane). The columns with the most variance go first.
//! 2. **Coordinate descent**: every weight in turn is moved to its best integer with all others fixed, until none moves.
//!
//! H gets a little on its diagonal, since it comes from few samples. A row keeps the nearest integers if they do better, so that
//! no row's error on the samples is larger than theirs.

use rayon::prelude::*;

use super::hessian::Hessian;

/// What the diagonal of a Hessian gains, as a part of its mean.
const DAMPING: f64 = 0.01;
/// Most rounds of coordinate descent.
const ROUNDS: usize = 32;
/// Largest weight.
const MAX: f64 = 127.0;

/// `weight` `[outputs, columns]` as integers -127..=127 of `scale`, one a row, with small errors in the outputs.
///
/// Not worse than the nearest integers in any row: the error `(w - q)^T H (w - q)` is at most theirs. Columns whose inputs never change
/// (zeros on the diagonal of the Hessian) get the nearest integers. The result does not depend on the number of threads.
///
/// # Panics
/// If the lengths do not fit.
pub fn round_rows(weight: &[f64], columns: usize, scale: &[f64], hessian: &Hessian) -> Vec<i8> {
    assert_eq!((weight.len(), hessian.columns), (scale.len() * columns, columns));
    let Some(problem) = Problem::of(hessian) else {
        let rows = weight.chunks_exact(columns).zip(scale);
        return rows.flat_map(|(row, scale)| row.iter().map(move |w| nearest(w / scale) as i8)).collect();
    };
    let mut rounded = vec![0; weight.len()];
    let rows = rounded.par_chunks_mut(columns).zip(weight.par_chunks_exact(columns)).zip(scale);
    rows.for_each(|((rounded, row), scale)| {
        let row: Vec<f64> = problem.order.iter().map(|&column| row[column] / scale).collect();
        let best = problem.solve(&row);
        problem.order.iter().zip(best).for_each(|(&column, q)| rounded[column] = q as i8);
    });
    rounded
}

fn nearest(value: f64) -> f64 {
    value.round().clamp(-MAX, MAX)
}

/// A Hessian made ready.
struct Problem {
    /// The column that stands at each place, the one with the most variance last.
    order: Vec<usize>,
    /// The damped Hessian in that order.
    hessian: Vec<f64>,
    /// Its Cholesky factor, lower triangular, row-major.
    factor: Vec<f64>,
}

impl Problem {
    /// None if no input ever changes.
    fn of(hessian: &Hessian) -> Option<Self> {
        let n = hessian.columns;
        let variance = |column: usize| hessian.covariance[column * n + column];
        let damping = DAMPING * (0..n).map(variance).sum::<f64>() / n as f64;
        if damping.is_nan() || damping <= 0.0 {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| variance(a).total_cmp(&variance(b)));
        let mut ordered = Vec::with_capacity(n * n);
        for (place, &row) in order.iter().enumerate() {
            ordered.extend(order.iter().map(|&column| hessian.covariance[row * n + column]));
            ordered[place * n + place] += damping;
        }
        let factor = cholesky(&ordered, n)?;
        Some(Self { order, hessian: ordered, factor })
    }

    /// The integers for one row in units of its scale, in the problem's order.
    fn solve(&self, row: &[f64]) -> Vec<f64> {
        let plain: Vec<f64> = row.iter().map(|&w| nearest(w)).collect();
        let from_plain = self.descend(row, plain);
        let from_columns = self.descend(row, self.column_by_column(row));
        if from_columns.1 < from_plain.1 { from_columns.0 } else { from_plain.0 }
    }

    fn column_by_column(&self, row: &[f64]) -> Vec<f64> {
        let n = row.len();
        let (mut rounded, mut carried) = (vec![0.0; n], vec![0.0; n]);
        for k in (0..n).rev() {
            let factor = &self.factor[k * n..][..=k];
            rounded[k] = nearest(row[k] + carried[k] / factor[k]);
            let error = row[k] - rounded[k];
            carried.iter_mut().zip(factor).for_each(|(carried, l)| *carried += l * error);
        }
        rounded
    }

    /// Coordinate descent from `rounded`; the integers found and their error.
    fn descend(&self, row: &[f64], mut rounded: Vec<f64>) -> (Vec<f64>, f64) {
        let n = row.len();
        // H (w - q), kept up to date.
        let mut gradient = vec![0.0; n];
        for (j, hessian) in self.hessian.chunks_exact(n).enumerate() {
            let error = row[j] - rounded[j];
            gradient.iter_mut().zip(hessian).for_each(|(g, h)| *g += h * error);
        }
        for _ in 0..ROUNDS {
            let mut moved = false;
            for j in 0..n {
                let hessian = &self.hessian[j * n..][..n];
                // Half a step and a little more, so that rounding errors of the gradient cannot make it go to and fro.
                let wanted = gradient[j] / hessian[j];
                if wanted.abs() <= 0.5 + 1e-6 {
                    continue;
                }
                let to = (rounded[j] + wanted.round()).clamp(-MAX, MAX);
                let step = to - rounded[j];
                if step != 0.0 {
                    rounded[j] = to;
                    gradient.iter_mut().zip(hessian).for_each(|(g, h)| *g -= h * step);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        let error = row.iter().zip(&rounded).zip(&gradient).map(|((w, q), g)| (w - q) * g).sum();
        (rounded, error)
    }
}

/// The lower triangular L with L L^T = `matrix`, row-major; None if it is not positive definite.
fn cholesky(matrix: &[f64], n: usize) -> Option<Vec<f64>> {
    let mut factor = vec![0.0; n * n];
    for i in 0..n {
        let (done, rest) = factor.split_at_mut(i * n);
        let row = &mut rest[..n];
        for j in 0..i {
            row[j] = (matrix[i * n + j] - dot(&row[..j], &done[j * n..][..j])) / done[j * n + j];
        }
        let pivot = matrix[i * n + i] - dot(&row[..i], &row[..i]);
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        row[i] = pivot.sqrt();
    }
    Some(factor)
}

/// Eight sums side by side, so that they fill vector registers.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::super::hessian::Inputs;
    use super::*;
    use crate::testing::Random;

    /// Samples `[rows, columns]` of which the last channel never changes, and neighbours go together by `common`.
    fn inputs(rows: usize, columns: usize, common: f64, seed: u64) -> Inputs {
        let mut random = Random::new(seed);
        let mut samples = vec![0.0f32; rows * columns];
        for row in samples.chunks_exact_mut(columns) {
            let mut last = random.normal();
            for value in &mut row[..columns - 1] {
                last = common * last + (1.0 - common * common).sqrt() * random.normal();
                *value = last as f32 + 0.5;
            }
        }
        Inputs::int8(&samples, columns, 3.0 / 127.0)
    }

    fn error(weight: &[f64], rounded: &[i8], scale: f64, hessian: &Hessian) -> f64 {
        let error: Vec<f64> = weight.iter().zip(rounded).map(|(w, &q)| w / scale - f64::from(q)).collect();
        let row =
            |i: usize| -> f64 { (0..error.len()).map(|j| hessian.covariance[i * error.len() + j] * error[j]).sum() };
        (0..error.len()).map(|i| error[i] * row(i)).sum()
    }

    fn nearest_row(weight: &[f64], scale: f64) -> Vec<i8> {
        weight.iter().map(|w| nearest(w / scale) as i8).collect()
    }

    #[test]
    fn no_row_is_worse_than_nearest_and_all_together_are_much_better() {
        for (columns, common) in [(1, 0.0), (2, 0.9), (7, 0.0), (40, 0.95), (160, 0.8)] {
            let inputs = inputs(1000, columns, common, 5);
            let mut random = Random::new(9);
            let outputs = 12;
            let weight: Vec<f64> = (0..outputs * columns).map(|_| random.normal()).collect();
            let scale: Vec<f64> = (0..outputs).map(|_| 0.02 + 0.02 * random.uniform()).collect();
            let rounded = round_rows(&weight, columns, &scale, &inputs.hessian);
            let (mut found, mut plain) = (0.0, 0.0);
            for ((weight, rounded), &scale) in weight.chunks(columns).zip(rounded.chunks(columns)).zip(&scale) {
                let of_row = error(weight, rounded, scale, &inputs.hessian);
                let of_nearest = error(weight, &nearest_row(weight, scale), scale, &inputs.hessian);
                assert!(of_row <= of_nearest * (1.0 + 1e-9) + 1e-9, "{columns} columns: {of_row} {of_nearest}");
                (found, plain) = (found + of_row, plain + of_nearest);
                // The input that never changes.
                assert_eq!(rounded[columns - 1], nearest_row(weight, scale)[columns - 1]);
            }
            if columns >= 40 {
                assert!(found < 0.5 * plain, "{columns} columns: {found} {plain}");
            }
        }
    }

    #[test]
    fn tiny_layers_are_nearly_as_good_as_trying_everything() {
        let columns = 6;
        let (mut found, mut least, mut plain) = (0.0, 0.0, 0.0);
        for seed in 0..40 {
            let inputs = inputs(300, columns, 0.9, seed);
            let mut random = Random::new(seed);
            let weight: Vec<f64> = (0..columns).map(|_| 5.0 * random.normal()).collect();
            let rounded = round_rows(&weight, columns, &[1.0], &inputs.hessian);
            found += error(&weight, &rounded, 1.0, &inputs.hessian);
            let nearest = nearest_row(&weight, 1.0);
            plain += error(&weight, &nearest, 1.0, &inputs.hessian);
            // All steps of -2..=2 from the nearest integers of the five columns that count.
            let all = (0..5usize.pow(5)).map(|code| {
                let steps = (0..5).map(|i| (code / 5usize.pow(i) % 5) as i8 - 2).chain([0]);
                let tried: Vec<i8> = nearest.iter().zip(steps).map(|(q, step)| q + step).collect();
                error(&weight, &tried, 1.0, &inputs.hessian)
            });
            least += all.fold(f64::INFINITY, f64::min);
        }
        println!("errors: found {found:.1}, least {least:.1}, nearest {plain:.1}");
        assert!(found <= 1.15 * least && found < 0.6 * plain, "{found} {least} {plain}");
    }

    #[test]
    fn integers_stay_in_range_and_do_not_depend_on_threads() {
        let columns = 50;
        let inputs = inputs(500, columns, 0.95, 1);
        let mut random = Random::new(2);
        let weight: Vec<f64> = (0..8 * columns).map(|_| random.normal()).collect();
        // Too small a scale: many weights are at the limit.
        let scale = [0.01; 8];
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let one = pool(1).install(|| round_rows(&weight, columns, &scale, &inputs.hessian));
        let many = pool(3).install(|| round_rows(&weight, columns, &scale, &inputs.hessian));
        assert!(one == many && one.iter().all(|&q| q >= -127) && one.iter().any(|&q| q.abs() == 127));
    }

    #[test]
    fn inputs_that_never_change_leave_the_nearest_integers() {
        let hessian = Hessian { columns: 3, covariance: vec![0.0; 9] };
        assert_eq!(
            round_rows(&[0.4, -1.6, 0.0, 500.0, -500.0, 2.5], 3, &[1.0, 1.0], &hessian),
            [0, -2, 0, 127, -127, 3]
        );
    }

    #[test]
    fn the_factor_is_a_cholesky_factor() {
        let matrix = [4.0, 2.0, -2.0, 2.0, 10.0, 4.0, -2.0, 4.0, 9.0];
        let factor = cholesky(&matrix, 3).unwrap();
        let expected = [2.0, 0.0, 0.0, 1.0, 3.0, 0.0, -1.0, 5.0 / 3.0, (8.0f64 - 25.0 / 9.0).sqrt()];
        assert!(factor.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{factor:?}");
        assert!(cholesky(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
