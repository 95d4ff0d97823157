//! The ConvNeXt V2 block in one operation: samples pass through it in groups small enough for the caches.

use rayon::prelude::*;

use super::chain::{Kept, Layer};
use super::fused::{group, split, split_mut, sum, swap_last};
use super::gemm::{multiply, rows, transposed};
use super::grid::Grid;
use super::kernels::{
    Padded, add_rows, add_to_rows, affine_rows, bias_gelu_rows, depthwise, depthwise_weight, dot_rows, gelu_rows,
    normalise_rows, normalise_rows_backward, response_rows_backward, scale_rows, stride, widen,
};

/// See [`super::elementary::block`].
pub struct Block {
    /// Where the rows lie.
    pub grid: Grid,
    /// Channels.
    pub channels: usize,
    /// Epsilon of the LayerNorm.
    pub ln_eps: f32,
    /// Epsilon of Global Response Normalization.
    pub grn_eps: f32,
}

/// The block's parameters in their flat order; the depthwise weight as `[49, stride]`.
struct Weights<'a> {
    dw: Vec<f32>,
    /// The same with its taps backwards.
    dw_backwards: Vec<f32>,
    dw_bias: &'a [f32],
    norm: [&'a [f32]; 2],
    pw1: &'a [f32],
    pw1_bias: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    pw2: &'a [f32],
    pw2_bias: &'a [f32],
}

/// Lengths of the parameters in their flat order.
fn lengths(d: usize) -> [usize; 10] {
    [49 * d, d, d, d, 4 * d * d, 4 * d, 4 * d, 4 * d, 4 * d * d, d]
}

impl<'a> Weights<'a> {
    fn new(flat: &'a [f32], d: usize) -> Self {
        let [dw, dw_bias, norm, norm_bias, pw1, pw1_bias, gamma, beta, pw2, pw2_bias] = split(flat, lengths(d));
        let dw = widen(&swap_last(dw, [1, d, 49]), d);
        let dw_backwards = dw.chunks_exact(stride(d)).rev().flatten().copied().collect();
        Self { dw, dw_backwards, dw_bias, norm: [norm, norm_bias], pw1, pw1_bias, gamma, beta, pw2, pw2_bias }
    }
}

/// Global Response Normalization of one sample as a factor per channel.
struct Response {
    /// The norm of each channel.
    norm: Vec<f32>,
    /// That norm over the mean norm.
    relative: Vec<f32>,
    /// The mean norm plus epsilon.
    mean: f32,
}

impl Response {
    fn new(squares: &[f32], eps: f32) -> Self {
        let norm: Vec<f32> = squares.iter().map(|s| s.sqrt()).collect();
        let mean = norm.iter().sum::<f32>() / norm.len() as f32 + eps;
        let relative = norm.iter().map(|n| n / mean).collect();
        Self { norm, relative, mean }
    }

    /// What each channel is multiplied by.
    fn factors(&self, gamma: &[f32]) -> Vec<f32> {
        self.relative.iter().zip(gamma).map(|(r, g)| r.mul_add(*g, 1.0)).collect()
    }
}

impl Layer for Block {
    fn parameters(&self) -> usize {
        lengths(self.channels).iter().sum()
    }

    fn channels(&self) -> usize {
        self.channels
    }

    /// Keeps the normalised rows before their affine map `[rows, d]`, the factor of each row's normalisation `[rows]`,
    /// and what enters GELU `[rows, 4d]`.
    fn forward(&self, x: &[f32], flat: &[f32], keep: bool) -> (Vec<f32>, Kept) {
        let (d, r, samples) = (self.channels, self.grid.rows, self.group());
        let w = Weights::new(flat, d);
        let mut out = vec![0f32; x.len()];
        let chunk = samples * r;
        if !keep {
            out.par_chunks_mut(chunk * d).zip(x.par_chunks(chunk * d)).enumerate().for_each(|(at, (out, x))| {
                let n = out.len() / d;
                let (mut unit, mut scale, mut wide) = (vec![0f32; n * d], vec![0f32; n], vec![0f32; n * 4 * d]);
                self.forward_group(&w, at * samples, x, out, &mut unit, &mut scale, &mut wide);
            });
            return (out, Vec::new());
        }
        let n = x.len() / d;
        let (mut unit, mut scale, mut wide) = (vec![0f32; n * d], vec![0f32; n], vec![0f32; n * 4 * d]);
        out.par_chunks_mut(chunk * d)
            .zip(x.par_chunks(chunk * d))
            .zip(unit.par_chunks_mut(chunk * d))
            .zip(scale.par_chunks_mut(chunk))
            .zip(wide.par_chunks_mut(chunk * 4 * d))
            .enumerate()
            .for_each(|(at, ((((out, x), unit), scale), wide))| {
                self.forward_group(&w, at * samples, x, out, unit, scale, wide);
            });
        (out, vec![unit, scale, wide])
    }

    fn backward(&self, x: &[f32], flat: &[f32], g: &[f32], kept: &Kept) -> (Vec<f32>, Vec<f32>) {
        let (d, samples) = (self.channels, self.group());
        let w = Weights::new(flat, d);
        let [unit, scale, wide] = [0, 1, 2].map(|part| kept[part].as_slice());
        let mut x_grad = vec![0f32; x.len()];
        let chunk = samples * self.grid.rows;
        let parts: Vec<Vec<f32>> = x_grad
            .par_chunks_mut(chunk * d)
            .zip(x.par_chunks(chunk * d))
            .zip(g.par_chunks(chunk * d))
            .zip(unit.par_chunks(chunk * d))
            .zip(scale.par_chunks(chunk))
            .zip(wide.par_chunks(chunk * 4 * d))
            .enumerate()
            .map(|(at, (((((x_grad, x), g), unit), scale), wide))| {
                self.backward_group(&w, at * samples, x, g, unit, scale, wide, x_grad)
            })
            .collect();
        let mut flat_grad = sum(parts);
        let dw = swap_last(&flat_grad[..49 * d], [1, 49, d]);
        flat_grad[..49 * d].copy_from_slice(&dw);
        (x_grad, flat_grad)
    }
}

impl Block {
    fn group(&self) -> usize {
        group(self.grid.batch, self.grid.rows)
    }

    fn forward_group(
        &self,
        w: &Weights,
        first: usize,
        x: &[f32],
        out: &mut [f32],
        unit: &mut [f32],
        scale: &mut [f32],
        wide: &mut [f32],
    ) {
        let (d, r, n) = (self.channels, self.grid.rows, scale.len());
        let mut padded = Padded::new(self.grid.side, d);
        let mut narrow = vec![0f32; n * d];
        for (at, (unit, x)) in unit.chunks_exact_mut(r * d).zip(x.chunks_exact(r * d)).enumerate() {
            let positions = self.grid.positions(first + at);
            padded.fill(x, positions);
            depthwise(unit, w.dw_bias, &padded, positions, &w.dw);
        }
        normalise_rows(unit, scale, self.ln_eps);
        affine_rows(&mut narrow, unit, w.norm[0], w.norm[1]);
        multiply(wide, [n, 4 * d, d], rows(&narrow, d), transposed(w.pw1, d), false, false);
        let mut active = vec![0f32; n * 4 * d];
        for (wide, active) in wide.chunks_exact_mut(r * 4 * d).zip(active.chunks_exact_mut(r * 4 * d)) {
            let mut squares = vec![0f32; 4 * d];
            bias_gelu_rows(wide, active, w.pw1_bias, &mut squares);
            let factors = Response::new(&squares, self.grn_eps).factors(w.gamma);
            scale_rows(active, &factors, w.beta);
        }
        add_to_rows(out, x, w.pw2_bias);
        multiply(out, [n, d, 4 * d], rows(&active, 4 * d), transposed(w.pw2, 4 * d), true, false);
    }

    fn backward_group(
        &self,
        w: &Weights,
        first: usize,
        x: &[f32],
        g: &[f32],
        unit: &[f32],
        scale: &[f32],
        wide: &[f32],
        x_grad: &mut [f32],
    ) -> Vec<f32> {
        let (d, r, n) = (self.channels, self.grid.rows, scale.len());
        let c = 4 * d;
        let mut flat = vec![0f32; lengths(d).iter().sum()];
        let [dw, dw_bias, norm, norm_bias, pw1, pw1_bias, gamma, beta, pw2, pw2_bias] =
            split_mut(&mut flat, lengths(d));

        // GELU again, with its slope; `active` then passes through Global Response Normalization.
        let (mut gelu, mut slope) = (vec![0f32; n * c], vec![0f32; n * c]);
        let mut active = vec![0f32; n * c];
        let mut responses = Vec::with_capacity(n / r);
        for at in 0..n / r {
            let span = at * r * c..(at + 1) * r * c;
            let (gelu, slope, wide) = (&mut gelu[span.clone()], &mut slope[span.clone()], &wide[span.clone()]);
            let mut squares = vec![0f32; c];
            gelu_rows(gelu, slope, wide, &mut squares);
            let response = Response::new(&squares, self.grn_eps);
            let factors = response.factors(w.gamma);
            let active = &mut active[span];
            affine_rows(active, gelu, &factors, w.beta);
            responses.push((response, factors));
        }

        add_rows(pw2_bias, g);
        multiply(pw2, [d, c, n], transposed(g, d), rows(&active, c), false, false);
        // From here on `active` holds the gradient of what it held.
        multiply(&mut active, [n, c, d], rows(g, d), rows(w.pw2, c), false, false);

        for (at, (response, factors)) in responses.iter().enumerate() {
            let span = at * r * c..(at + 1) * r * c;
            let (gelu, slope, active) = (&gelu[span.clone()], &slope[span.clone()], &mut active[span]);
            let mut dots = vec![0f32; c];
            dot_rows(active, gelu, &mut dots, beta);
            let along = response.backward(&dots, w.gamma, gamma);
            response_rows_backward(active, gelu, slope, factors, &along, pw1_bias);
        }

        let mut narrow = vec![0f32; n * d];
        affine_rows(&mut narrow, unit, w.norm[0], w.norm[1]);
        multiply(pw1, [c, d, n], transposed(&active, c), rows(&narrow, d), false, false);
        multiply(&mut narrow, [n, d, c], rows(&active, c), rows(w.pw1, d), false, false);
        normalise_rows_backward(&mut narrow, unit, scale, w.norm[0], norm, norm_bias);
        add_rows(dw_bias, &narrow);
        let (mut x_map, mut g_map) = (Padded::new(self.grid.side, d), Padded::new(self.grid.side, d));
        let mut dw_wide = vec![0f32; 49 * stride(d)];
        for (at, narrow) in narrow.chunks_exact(r * d).enumerate() {
            let span = at * r * d..(at + 1) * r * d;
            let positions = self.grid.positions(first + at);
            g_map.fill(narrow, positions);
            depthwise(&mut x_grad[span.clone()], &g[span.clone()], &g_map, positions, &w.dw_backwards);
            x_map.fill(&x[span], positions);
            depthwise_weight(&mut dw_wide, &g_map, &x_map, positions);
        }
        for (dw, wide) in dw.chunks_exact_mut(d).zip(dw_wide.chunks_exact(stride(d))) {
            dw.copy_from_slice(&wide[..d]);
        }
        flat
    }
}

impl Response {
    /// From each channel's sum of gradient times input: adds to the gradient of gamma, gives the factor by which the
    /// input enters its own gradient through the norms.
    fn backward(&self, dots: &[f32], gamma: &[f32], gamma_grad: &mut [f32]) -> Vec<f32> {
        let n = dots.len() as f32;
        let mut shared = 0f32;
        for (((dot, relative), gamma), grad) in dots.iter().zip(&self.relative).zip(gamma).zip(gamma_grad) {
            *grad += dot * relative;
            shared += gamma * dot * relative;
        }
        let along = |((norm, dot), gamma): ((&f32, &f32), &f32)| match *norm {
            // The root has no derivative at 0; there the norm is taken as constant.
            0.0 => 0.0,
            norm => (gamma * dot - shared / n) / (self.mean * norm),
        };
        self.norm.iter().zip(dots).zip(gamma).map(along).collect()
    }
}
