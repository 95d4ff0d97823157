//! LayerNorm and 2x2 convolution with stride 2 in one operation.

use rayon::prelude::*;

use super::chain::{Kept, Layer};
use super::fused::{group, split, split_mut, sum, swap_last};
use super::gemm::{multiply, rows, transposed};
use super::grid::Geometry;
use super::kernels::{add_rows, affine_picked, normalise_rows, normalise_rows_backward};
use super::rounding::{Steps, rounded};

/// See [`super::elementary::downsample`].
pub struct Downsample {
    /// The maps.
    pub geometry: Geometry,
    /// The step goes from this stage to the next.
    pub stage: usize,
    /// Channels before.
    pub before: usize,
    /// Channels after.
    pub after: usize,
    /// Epsilon of the LayerNorm.
    pub ln_eps: f32,
    /// How the normalised rows are rounded, if they are.
    pub rounding: Option<Steps>,
}

impl Downsample {
    pub(super) fn lengths(&self) -> [usize; 4] {
        [self.before, self.before, self.after * self.before * 4, self.after]
    }

    /// Rows of a sample before and after, and samples of a group.
    fn sizes(&self) -> [usize; 3] {
        let (fine, coarse) = (&self.geometry.grids[self.stage], &self.geometry.grids[self.stage + 1]);
        [fine.rows, coarse.rows, group(fine.batch, coarse.rows)]
    }

    /// Normalised rows, their factors, and for each row after the affine maps of its four children side by side.
    pub(super) fn columns(&self, x: &[f32], first: usize, norm: [&[f32]; 2]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (c, [fine, coarse, _]) = (self.before, self.sizes());
        let mut unit = x.to_vec();
        let mut scale = vec![0f32; x.len() / c];
        let samples = x.len() / (fine * c);
        let mut columns = vec![0f32; samples * coarse * 4 * c];
        normalise_rows(&mut unit, &mut scale, self.ln_eps);
        let seen = rounded(self.rounding.as_ref(), &unit);
        for (at, columns) in columns.chunks_exact_mut(coarse * 4 * c).enumerate() {
            let children = self.geometry.children(self.stage, first + at);
            affine_picked(columns, &seen[at * fine * c..], children, norm[0], norm[1]);
        }
        drop(seen);
        (unit, scale, columns)
    }
}

impl Layer for Downsample {
    fn parameters(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn channels(&self) -> usize {
        self.after
    }

    /// Keeps nothing: the backward pass computes the columns again.
    fn forward(&self, x: &[f32], flat: &[f32], _: bool) -> (Vec<f32>, Kept) {
        let (c, d, [fine, coarse, samples]) = (self.before, self.after, self.sizes());
        let [norm, norm_bias, weight, bias] = split(flat, self.lengths());
        let weight = swap_last(weight, [d, c, 4]);
        let mut out = vec![0f32; x.len() / (fine * c) * coarse * d];
        out.par_chunks_mut(samples * coarse * d).zip(x.par_chunks(samples * fine * c)).enumerate().for_each(
            |(at, (out, x))| {
                let (_, _, columns) = self.columns(x, at * samples, [norm, norm_bias]);
                out.chunks_exact_mut(d).for_each(|row| row.copy_from_slice(bias));
                let n = out.len() / d;
                multiply(out, [n, d, 4 * c], rows(&columns, 4 * c), transposed(&weight, 4 * c), true, false);
            },
        );
        (out, Vec::new())
    }

    fn backward(&self, x: &[f32], flat: &[f32], g: &[f32], _: &Kept) -> (Vec<f32>, Vec<f32>) {
        let (c, d, [fine, coarse, samples]) = (self.before, self.after, self.sizes());
        let [norm, norm_bias, weight, _] = split(flat, self.lengths());
        let weight = swap_last(weight, [d, c, 4]);
        let mut x_grad = vec![0f32; x.len()];
        let parts: Vec<Vec<f32>> = x_grad
            .par_chunks_mut(samples * fine * c)
            .zip(x.par_chunks(samples * fine * c))
            .zip(g.par_chunks(samples * coarse * d))
            .enumerate()
            .map(|(group, ((x_grad, x), g))| {
                let mut flat = vec![0f32; self.lengths().iter().sum()];
                let [norm_grad, norm_bias_grad, weight_grad, bias_grad] = split_mut(&mut flat, self.lengths());
                let (unit, scale, mut columns) = self.columns(x, group * samples, [norm, norm_bias]);
                let n = g.len() / d;
                multiply(weight_grad, [d, 4 * c, n], transposed(g, d), rows(&columns, 4 * c), false, false);
                multiply(&mut columns, [n, 4 * c, d], rows(g, d), rows(&weight, 4 * c), false, false);
                for (at, x_grad) in x_grad.chunks_exact_mut(fine * c).enumerate() {
                    let children = self.geometry.children(self.stage, group * samples + at);
                    let columns = &columns[at * coarse * 4 * c..];
                    // Every row has at most one parent, so nothing has to be added up.
                    for (child, column) in children.iter().zip(columns.chunks_exact(c)) {
                        x_grad[*child as usize * c..][..c].copy_from_slice(column);
                    }
                }
                if let Some(rounding) = &self.rounding {
                    rounding.cut(x_grad, &unit);
                }
                add_rows(bias_grad, g);
                normalise_rows_backward(x_grad, &unit, &scale, norm, norm_grad, norm_bias_grad);
                flat
            })
            .collect();
        let mut flat_grad = sum(parts);
        let at = 2 * c..2 * c + 4 * c * d;
        let weight_grad = swap_last(&flat_grad[at.clone()], [d, 4, c]);
        flat_grad[at].copy_from_slice(&weight_grad);
        (x_grad, flat_grad)
    }
}
