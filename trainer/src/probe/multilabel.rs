//! Probes for tiles with any number of classes: each class on its own.

use nadir_formats::Matrix;
use nadir_formats::probe::{dot, lbfgs, neighbours};
use rayon::prelude::*;

/// The share of each class among the `k` nearest rows of `train` in cosine similarity, `[test, classes]`.
pub fn neighbour_shares(
    e: &Matrix,
    labels: &[bool],
    classes: usize,
    train: &[usize],
    test: &[usize],
    k: usize,
) -> Vec<f64> {
    let shares = |near: &Vec<usize>| -> Vec<f64> {
        let count = |class: usize| near.iter().filter(|i| labels[**i * classes + class]).count();
        (0..classes).map(|class| count(class) as f64 / near.len() as f64).collect()
    };
    neighbours(e, train, test, k).par_iter().flat_map_iter(shares).collect()
}

/// One logistic regression a class, `|w|^2 / 2 + c * (sum of cross entropies)` with a free intercept, fitted to convergence.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticEach {
    dimension: usize,
    /// A class's weights and intercept, one after the other.
    weights: Vec<Vec<f64>>,
}

impl LogisticEach {
    /// Fits the rows of `x` (row-major, `dimension` columns) to `labels`, `[rows, classes]`. Starts from `from` if given.
    pub fn fit(x: &[f64], dimension: usize, labels: &[bool], classes: usize, c: f64, from: Option<&Self>) -> Self {
        let rows = x.len() / dimension;
        let one = |class: usize| {
            let start = from.map_or_else(|| vec![0.0; dimension + 1], |from| from.weights[class].clone());
            let truth: Vec<bool> = (0..rows).map(|row| labels[row * classes + class]).collect();
            // A class that all rows have, or none, has no finite intercept.
            match truth.iter().any(|t| *t != truth[0]) {
                true => lbfgs(start, |w| objective(w, x, dimension, &truth, 1.0 / (c * rows as f64))).0,
                false => {
                    let mut constant = vec![0.0; dimension + 1];
                    constant[dimension] = if truth[0] { 30.0 } else { -30.0 };
                    constant
                }
            }
        };
        Self { dimension, weights: (0..classes).into_par_iter().map(one).collect() }
    }

    /// The logits of each row of `x`, `[rows, classes]`; above 0 a class is more likely than not.
    pub fn scores(&self, x: &[f64]) -> Vec<f64> {
        let d = self.dimension;
        let of = |row: &[f64]| self.weights.iter().map(|w| w[d] + dot(row, w)).collect::<Vec<_>>();
        x.par_chunks(d).flat_map_iter(of).collect()
    }
}

/// Mean cross entropy plus penalty, and its gradient.
fn objective(weights: &[f64], x: &[f64], d: usize, truth: &[bool], penalty: f64) -> (f64, Vec<f64>) {
    let n = truth.len() as f64;
    let (mut value, mut gradient) = (0.0, vec![0.0; d + 1]);
    for (row, truth) in x.chunks_exact(d).zip(truth) {
        let score = weights[d] + dot(row, weights);
        let t = f64::from(u8::from(*truth));
        value += (score.max(0.0) - score * t + (-score.abs()).exp().ln_1p()) / n;
        let error = (1.0 / (1.0 + (-score).exp()) - t) / n;
        gradient.iter_mut().zip(row).for_each(|(g, v)| *g += error * v);
        gradient[d] += error;
    }
    for (g, w) in gradient.iter_mut().zip(weights).take(d) {
        value += penalty / 2.0 * w * w;
        *g += penalty * w;
    }
    (value, gradient)
}
