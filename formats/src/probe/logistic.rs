//! Multinomial logistic regression with an L2 penalty, fitted to convergence by L-BFGS in f64.

use std::collections::VecDeque;

use rayon::prelude::*;

use crate::Matrix;

/// Pairs of steps and gradient changes that L-BFGS remembers.
const MEMORY: usize = 12;
/// The fit ends when no component of the mean loss's gradient is larger.
const TOLERANCE: f64 = 1e-6;
/// The fit ends after this many steps at the latest.
const MAX_STEPS: usize = 3000;
/// Rows in one partial sum; fixed, so that the result does not depend on the number of threads.
const CHUNK: usize = 256;

/// The strengths C of the penalty to try, weakest fit first: the one given, or those that validation chooses among (of equally good ones the
/// first), or without a validation split 1.
pub fn strengths(given: Option<f64>, validation: bool) -> Vec<f64> {
    match given {
        Some(c) => vec![c],
        None if validation => vec![0.001, 0.01, 0.1, 1.0, 10.0],
        None => vec![1.0],
    }
}

/// Brings each dimension to zero mean and unit variance, as measured on the training rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Standardiser {
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl Standardiser {
    /// Measures the rows `rows`; a dimension that does not vary there will be 0.
    pub fn fit(e: &Matrix, rows: &[usize]) -> Self {
        let n = rows.len() as f64;
        let mut mean = vec![0.0; e.columns];
        for &row in rows {
            mean.iter_mut().zip(e.row(row)).for_each(|(m, v)| *m += f64::from(*v) / n);
        }
        let mut variance = vec![0.0; e.columns];
        for &row in rows {
            for ((s, m), v) in variance.iter_mut().zip(&mean).zip(e.row(row)) {
                *s += (f64::from(*v) - m).powi(2) / n;
            }
        }
        Self { mean, scale: variance.into_iter().map(|v| if v > 1e-24 { 1.0 / v.sqrt() } else { 0.0 }).collect() }
    }

    /// The rows `rows`, standardised, row-major.
    pub fn apply(&self, e: &Matrix, rows: &[usize]) -> Vec<f64> {
        let standard = |&row: &usize| {
            let parts = self.mean.iter().zip(&self.scale);
            e.row(row).iter().zip(parts).map(|(v, (m, s))| (f64::from(*v) - m) * s).collect::<Vec<_>>()
        };
        rows.iter().flat_map(standard).collect()
    }
}

/// A fitted classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    classes: usize,
    dimension: usize,
    /// `classes` rows of `dimension` weights and an intercept.
    weights: Vec<f64>,
    /// Largest component of the gradient at the end.
    pub gradient: f64,
}

impl Logistic {
    /// Minimises `|W|^2 / 2 + c * (sum of cross entropies)`, the intercepts free of penalty, over the rows of `x`
    /// (row-major, `dimension` columns) with their `labels` (all below `classes`). Starts from `from` if given.
    pub fn fit(x: &[f64], dimension: usize, labels: &[usize], classes: usize, c: f64, from: Option<&Self>) -> Self {
        let mut fit =
            Self { classes, dimension, weights: vec![0.0; classes * (dimension + 1)], gradient: f64::INFINITY };
        if let Some(from) = from {
            fit.weights.clone_from(&from.weights);
        }
        let penalty = 1.0 / (c * labels.len() as f64);
        let objective = |weights: &[f64]| fit.objective(weights, x, labels, penalty);
        let (weights, gradient) = lbfgs(fit.weights.clone(), objective);
        Self { weights, gradient, ..fit }
    }

    /// The most likely class of each row of `x`.
    pub fn predict(&self, x: &[f64]) -> Vec<usize> {
        let predict = |row: &[f64]| {
            let scores = self.scores(&self.weights, row);
            (0..self.classes).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
        };
        x.par_chunks(self.dimension).map(predict).collect()
    }

    fn scores(&self, weights: &[f64], row: &[f64]) -> Vec<f64> {
        weights.chunks_exact(self.dimension + 1).map(|w| w[self.dimension] + dot(row, w)).collect()
    }

    /// Mean cross entropy plus penalty, and its gradient.
    fn objective(&self, weights: &[f64], x: &[f64], labels: &[usize], penalty: f64) -> (f64, Vec<f64>) {
        let (d, n) = (self.dimension, labels.len() as f64);
        let partial = |(rows, labels): (&[f64], &[usize])| {
            let mut gradient = vec![0.0; weights.len()];
            let mut loss = 0.0;
            for (row, &label) in rows.chunks_exact(d).zip(labels) {
                let scores = self.scores(weights, row);
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                loss += largest + sum.ln() - scores[label];
                for (class, g) in gradient.chunks_exact_mut(d + 1).enumerate() {
                    let error = (scores[class] - largest).exp() / sum - f64::from(u8::from(class == label));
                    g.iter_mut().zip(row).for_each(|(g, v)| *g += error * v);
                    g[d] += error;
                }
            }
            (loss, gradient)
        };
        let parts: Vec<_> = x.par_chunks(CHUNK * d).zip(labels.par_chunks(CHUNK)).map(partial).collect();
        let (mut value, mut gradient) = (0.0, vec![0.0; weights.len()]);
        for (loss, part) in parts {
            value += loss / n;
            gradient.iter_mut().zip(part).for_each(|(g, p)| *g += p / n);
        }
        for (at, w) in weights.iter().enumerate().filter(|(at, _)| at % (d + 1) != d) {
            value += penalty / 2.0 * w * w;
            gradient[at] += penalty * w;
        }
        (value, gradient)
    }
}

/// Minimises a smooth convex function; returns the place and its gradient's largest component.
pub fn lbfgs(mut at: Vec<f64>, objective: impl Fn(&[f64]) -> (f64, Vec<f64>)) -> (Vec<f64>, f64) {
    let (mut value, mut gradient) = objective(&at);
    let mut pairs: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::new();
    for _ in 0..MAX_STEPS {
        if largest(&gradient) <= TOLERANCE {
            break;
        }
        let mut direction = descent(&gradient, &pairs);
        let mut slope = dot(&gradient, &direction);
        if slope >= 0.0 {
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = dot(&gradient, &direction);
        }
        // Without curvature the first step has length 1 at most.
        let mut length = if pairs.is_empty() { (1.0 / (-slope).sqrt()).min(1.0) } else { 1.0 };
        let next = loop {
            let moved: Vec<f64> = at.iter().zip(&direction).map(|(a, d)| a + length * d).collect();
            let (new, new_gradient) = objective(&moved);
            if new <= value + 1e-4 * length * slope {
                break Some((moved, new, new_gradient));
            }
            length *= 0.5;
            if length < 1e-12 {
                break None;
            }
        };
        // The value can fall no further in f64.
        let Some((moved, new, new_gradient)) = next else { break };
        let step: Vec<f64> = moved.iter().zip(&at).map(|(a, b)| a - b).collect();
        let change: Vec<f64> = new_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-14 * dot(&change, &change) {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back((step, change, curvature));
        }
        (at, value, gradient) = (moved, new, new_gradient);
    }
    let rest = largest(&gradient);
    (at, rest)
}

/// The two-loop recursion: the negative gradient times the remembered inverse curvature.
fn descent(gradient: &[f64], pairs: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut factors = Vec::with_capacity(pairs.len());
    for (step, change, curvature) in pairs.iter().rev() {
        let factor = dot(step, &q) / curvature;
        q.iter_mut().zip(change).for_each(|(q, c)| *q -= factor * c);
        factors.push(factor);
    }
    if let Some((_, change, curvature)) = pairs.back() {
        let scale = curvature / dot(change, change);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((step, change, curvature), factor) in pairs.iter().zip(factors.into_iter().rev()) {
        let back = factor - dot(change, &q) / curvature;
        q.iter_mut().zip(step).for_each(|(q, s)| *q += back * s);
    }
    q
}

/// The scalar product over the shorter length, in eight partial sums, which a processor can form at once.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let length = a.len().min(b.len());
    let (a, b) = (a[..length].chunks_exact(8), b[..length].chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    let mut lanes = [0.0; 8];
    for (x, y) in a.zip(b) {
        (0..8).for_each(|i| lanes[i] += x[i] * y[i]);
    }
    lanes.iter().sum::<f64>() + rest
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 90;
    const COLUMNS: usize = 4;
    const CLASSES: usize = 3;

    /// The data of tests/probe/logistic_reference.py.
    fn data() -> (Vec<f64>, Vec<usize>) {
        let cell = |i: usize, j: usize| {
            let (a, b) = (i as f64, j as f64);
            (0.7 * a + 1.3 * b * a + b).sin() + 0.05 * (i % 11) as f64
        };
        let x: Vec<f64> = (0..ROWS).flat_map(|i| (0..COLUMNS).map(move |j| cell(i, j))).collect();
        let label = |i: usize| {
            let row = &x[i * COLUMNS..];
            usize::from(2.0 * row[0] - row[1] + 3.0 * (i as f64).cos() > 0.0)
                + usize::from(row[2] + (3.0 * i as f64).sin() > 0.4)
        };
        let labels = (0..ROWS).map(label).collect();
        (x, labels)
    }

    #[test]
    fn the_fit_is_scikit_learns() {
        let (x, labels) = data();
        assert_eq!([0, 1, 2].map(|c| labels.iter().filter(|l| **l == c).count()), [21, 44, 25]);
        let expected = [
            (
                0.05,
                [
                    [-0.056446, 0.214981, -0.403692, -0.102626, -0.233842],
                    [-0.153706, -0.169832, -0.060926, 0.149097, 0.530922],
                    [0.210153, -0.045149, 0.464619, -0.046471, -0.297081],
                ],
            ),
            (
                1.0,
                [
                    [-0.277383, 0.727688, -1.465154, -0.189576, -0.216538],
                    [-0.335747, -0.389853, -0.098641, 0.350788, 0.897058],
                    [0.61313, -0.337834, 1.563795, -0.161212, -0.68052],
                ],
            ),
        ];
        let mut warm: Option<Logistic> = None;
        for (c, weights) in expected {
            let fit = Logistic::fit(&x, COLUMNS, &labels, CLASSES, c, warm.as_ref());
            assert!(fit.gradient <= TOLERANCE, "stopped at gradient {}", fit.gradient);
            for (is, should) in fit.weights.iter().zip(weights.as_flattened()) {
                assert!((is - should).abs() < 2e-4, "C {c}: {:?}", fit.weights);
            }
            warm = Some(fit);
        }
    }

    #[test]
    fn separable_classes_are_told_apart() {
        let x = [-1.0, -2.0, -1.5, 1.0, 2.0, 3.0];
        let labels = [0, 0, 0, 1, 1, 1];
        let fit = Logistic::fit(&x, 1, &labels, 2, 1.0, None);
        assert_eq!(fit.predict(&x), labels);
    }

    #[test]
    fn the_gradient_is_that_of_the_value() {
        let (x, labels) = data();
        let fit = Logistic::fit(&x, COLUMNS, &labels, CLASSES, 1.0, None);
        let at: Vec<f64> = (0..CLASSES * (COLUMNS + 1)).map(|i| (i as f64).sin()).collect();
        let (_, gradient) = fit.objective(&at, &x, &labels, 0.01);
        for i in 0..at.len() {
            let value = |h: f64| {
                let mut moved = at.clone();
                moved[i] += h;
                fit.objective(&moved, &x, &labels, 0.01).0
            };
            let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
            assert!((slope - gradient[i]).abs() < 1e-8, "{i}: {slope} and {}", gradient[i]);
        }
    }

    #[test]
    fn standardising_forgets_scale_and_constants() {
        let e = Matrix { rows: 3, columns: 2, data: vec![1.0, 7.0, 3.0, 7.0, 9.0, 8.0] };
        let s = Standardiser::fit(&e, &[0, 1]);
        assert_eq!(s.apply(&e, &[0, 1, 2]), [-1.0, 0.0, 1.0, 0.0, 7.0, 0.0]);
    }
}
