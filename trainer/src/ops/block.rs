//! The ConvNeXt V2 block in one operation: samples pass through it in groups small enough for the caches.

use rayon::prelude::*;

use super::Grn;
use super::chain::{Kept, Layer};
use super::fused::{group, split, split_mut, sum, swap_last};
use super::gemm::{multiply, rows, transposed};
use super::grid::Grid;
use super::kernels::{
    Padded, add_rows, add_to_rows, affine_rows, bias_gelu_rows, depthwise, depthwise_weight, dot_rows, gelu_rows,
    normalise_rows, normalise_rows_backward, response_rows_backward, scale_rows, stride, widen,
};
use super::rounding::{BlockRounding, rounded};

/// See [`super::elementary::block`].
pub struct Block {
    /// Where the rows lie.
    pub grid: Grid,
    /// Channels.
    pub channels: usize,
    /// Over what Global Response Normalization takes its norms.
    pub grn: Grn,
    /// Epsilon of the LayerNorm.
    pub ln_eps: f32,
    /// Epsilon of Global Response Normalization.
    pub grn_eps: f32,
    /// Where activations are rounded, if they are.
    pub rounding: Option<BlockRounding>,
}

/// The block's parameters in their flat order; the depthwise weight as `[49, stride]`.
pub(super) struct Weights<'a> {
    dw: Vec<f32>,
    /// The same with its taps backwards.
    dw_backwards: Vec<f32>,
    dw_bias: &'a [f32],
    norm: [&'a [f32]; 2],
    pw1: &'a [f32],
    pw1_bias: &'a [f32],
    pub(super) gamma: &'a [f32],
    beta: &'a [f32],
    pw2: &'a [f32],
    pw2_bias: &'a [f32],
}

/// Lengths of the parameters in their flat order.
pub(super) fn lengths(d: usize) -> [usize; 10] {
    [49 * d, d, d, d, 4 * d * d, 4 * d, 4 * d, 4 * d, 4 * d * d, d]
}

impl<'a> Weights<'a> {
    pub(super) fn new(flat: &'a [f32], d: usize) -> Self {
        let [dw, dw_bias, norm, norm_bias, pw1, pw1_bias, gamma, beta, pw2, pw2_bias] = split(flat, lengths(d));
        let dw = widen(&swap_last(dw, [1, d, 49]), d);
        let dw_backwards = dw.chunks_exact(stride(d)).rev().flatten().copied().collect();
        Self { dw, dw_backwards, dw_bias, norm: [norm, norm_bias], pw1, pw1_bias, gamma, beta, pw2, pw2_bias }
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
    /// what enters GELU `[rows, 4d]`, and the sums of squares of what leaves it, `[norms, 4d]`.
    fn forward(&self, x: &[f32], flat: &[f32], keep: bool) -> (Vec<f32>, Kept) {
        let (d, samples) = (self.channels, self.group());
        let w = Weights::new(flat, d);
        let mut out = vec![0f32; x.len()];
        let chunk = samples * self.grid.rows;
        let room = |n: usize| (vec![0f32; n * d], vec![0f32; n], vec![0f32; n * 4 * d]);
        if !keep && self.grn == Grn::Sample {
            out.par_chunks_mut(chunk * d).zip(x.par_chunks(chunk * d)).enumerate().for_each(|(at, (out, x))| {
                let (mut unit, mut scale, mut wide) = room(out.len() / d);
                let (mut active, squares) = self.to_wide(&w, at * samples, x, &mut unit, &mut scale, &mut wide);
                self.to_narrow(&w, x, out, &mut active, &self.responses(&w, &squares));
            });
            return (out, Vec::new());
        }
        let (mut unit, mut scale, mut wide) = room(x.len() / d);
        let groups = x
            .par_chunks(chunk * d)
            .zip(unit.par_chunks_mut(chunk * d))
            .zip(scale.par_chunks_mut(chunk))
            .zip(wide.par_chunks_mut(chunk * 4 * d))
            .zip(out.par_chunks_mut(chunk * d))
            .enumerate();
        let halves: Vec<_> = groups
            .map(|(at, ((((x, unit), scale), wide), out))| {
                let (mut active, squares) = self.to_wide(&w, at * samples, x, unit, scale, wide);
                if self.grn == Grn::Sample {
                    self.to_narrow(&w, x, out, &mut active, &self.responses(&w, &squares));
                    active.clear();
                }
                (active, squares)
            })
            .collect();
        let (mut actives, squares): (Vec<_>, Vec<_>) = halves.into_iter().unzip();
        let mut squares = squares.concat();
        if self.grn == Grn::Batch {
            squares = sum(squares.chunks_exact(4 * d).map(<[f32]>::to_vec).collect());
            let responses = self.responses(&w, &squares);
            out.par_chunks_mut(chunk * d)
                .zip(x.par_chunks(chunk * d))
                .zip(&mut actives)
                .for_each(|((out, x), active)| self.to_narrow(&w, x, out, active, &responses));
        }
        (out, vec![unit, scale, wide, squares])
    }

    fn backward(&self, x: &[f32], flat: &[f32], g: &[f32], kept: &Kept) -> (Vec<f32>, Vec<f32>) {
        let (d, samples) = (self.channels, self.group());
        let w = Weights::new(flat, d);
        let [unit, scale, wide, squares] = [0, 1, 2, 3].map(|part| kept[part].as_slice());
        let responses = self.responses(&w, squares);
        let mut x_grad = vec![0f32; x.len()];
        let chunk = samples * self.grid.rows;
        let groups = g.par_chunks(chunk * d).zip(wide.par_chunks(chunk * 4 * d)).enumerate();
        let first = |(at, (g, wide)): (usize, (&[f32], &[f32]))| {
            let own = if self.grn == Grn::Sample { &responses[at * samples..] } else { &responses };
            let mut half = self.wide_gradient(&w, g, wide, own);
            if self.grn == Grn::Sample {
                let [_, _, _, _, _, _, gamma, ..] = split_mut(&mut half.flat, lengths(d));
                let along = half.dots.iter().zip(own).map(|(dots, r)| r.backward(dots, w.gamma, gamma)).collect();
                half.along = along;
            }
            half
        };
        let second = |half: Half, at: usize, x_grad: &mut [f32], x: &[f32], g: &[f32], unit: &[f32], scale: &[f32]| {
            let own = if self.grn == Grn::Sample { &responses[at * samples..] } else { &responses };
            self.narrow_gradient(&w, at * samples, half, own, x_grad, x, g, unit, scale)
        };
        let rest = x_grad
            .par_chunks_mut(chunk * d)
            .zip(x.par_chunks(chunk * d))
            .zip(g.par_chunks(chunk * d))
            .zip(unit.par_chunks(chunk * d))
            .zip(scale.par_chunks(chunk))
            .enumerate();
        let mut shared = Vec::new();
        let parts: Vec<Vec<f32>> = match self.grn {
            Grn::Sample => groups
                .zip(rest)
                .map(|(group, (at, ((((x_grad, x), g), unit), scale)))| {
                    second(first(group), at, x_grad, x, g, unit, scale)
                })
                .collect(),
            Grn::Batch => {
                let mut halves: Vec<Half> = groups.map(first).collect();
                let dots = sum(halves.iter_mut().flat_map(|half| std::mem::take(&mut half.dots)).collect());
                shared = vec![0f32; 4 * d];
                let along = responses[0].backward(&dots, w.gamma, &mut shared);
                halves.iter_mut().for_each(|half| half.along = vec![along.clone()]);
                let halves = halves.into_par_iter();
                halves
                    .zip(rest)
                    .map(|(half, (at, ((((x_grad, x), g), unit), scale)))| second(half, at, x_grad, x, g, unit, scale))
                    .collect()
            }
        };
        let mut flat_grad = sum(parts);
        let [_, _, _, _, _, _, gamma, ..] = split_mut(&mut flat_grad, lengths(d));
        gamma.iter_mut().zip(&shared).for_each(|(gamma, shared)| *gamma += shared);
        let dw = swap_last(&flat_grad[..49 * d], [1, 49, d]);
        flat_grad[..49 * d].copy_from_slice(&dw);
        (x_grad, flat_grad)
    }
}

/// The backward pass of a group down to what left GELU.
struct Half {
    /// GELU and its slope, `[rows, 4d]`.
    gelu: Vec<f32>,
    slope: Vec<f32>,
    /// The gradient of what Global Response Normalization gave, `[rows, 4d]`.
    active: Vec<f32>,
    /// The gradients of the parameters so far.
    flat: Vec<f32>,
    /// For each sample the sums of gradient times GELU, `[4d]`.
    dots: Vec<Vec<f32>>,
    /// For each norm [`Response::backward`] of its dots.
    along: Vec<Vec<f32>>,
}

impl Block {
    fn group(&self) -> usize {
        group(self.grid.batch, self.grid.rows)
    }

    /// The norms of consecutive samples, or of the batch, from their sums of squares.
    pub(super) fn responses(&self, w: &Weights, squares: &[f32]) -> Vec<Response> {
        squares.chunks_exact(4 * self.channels).map(|s| Response::new(s, w.gamma, self.grn_eps)).collect()
    }

    /// Up to GELU: gives that, `[rows, 4d]`, and each sample's sums of its squares. Fills in what [`Layer::forward`] keeps.
    pub(super) fn to_wide(
        &self,
        w: &Weights,
        first: usize,
        x: &[f32],
        unit: &mut [f32],
        scale: &mut [f32],
        wide: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let (d, r, n) = (self.channels, self.grid.rows, scale.len());
        self.convolve(w, first, x, unit);
        normalise_rows(unit, scale, self.ln_eps);
        let narrow = self.narrow(w, unit);
        multiply(wide, [n, 4 * d, d], rows(&narrow, d), transposed(w.pw1, d), false, false);
        let mut active = vec![0f32; n * 4 * d];
        let mut squares = vec![0f32; n / r * 4 * d];
        let samples = wide.chunks_exact_mut(r * 4 * d).zip(active.chunks_exact_mut(r * 4 * d));
        for ((wide, active), squares) in samples.zip(squares.chunks_exact_mut(4 * d)) {
            bias_gelu_rows(wide, active, w.pw1_bias, squares);
            if let Some(rounding) = &self.rounding {
                squares.fill(0.0);
                let mut wide = rounded(Some(&rounding.hidden), wide).into_owned();
                bias_gelu_rows(&mut wide, active, &vec![0.0; 4 * d], squares);
            }
        }
        (active, squares)
    }

    /// The depthwise convolution of some samples.
    pub(super) fn convolve(&self, w: &Weights, first: usize, x: &[f32], out: &mut [f32]) {
        let (d, r) = (self.channels, self.grid.rows);
        let mut padded = Padded::new(self.grid.side, d);
        for (at, (out, x)) in out.chunks_exact_mut(r * d).zip(x.chunks_exact(r * d)).enumerate() {
            let positions = self.grid.positions(first + at);
            padded.fill(x, positions);
            depthwise(out, w.dw_bias, &padded, positions, &w.dw);
        }
    }

    /// What enters the first pointwise layer, from the normalised rows.
    fn narrow(&self, w: &Weights, unit: &[f32]) -> Vec<f32> {
        let mut narrow = vec![0f32; unit.len()];
        let unit = rounded(self.rounding.as_ref().map(|r| &r.normalised), unit);
        affine_rows(&mut narrow, &unit, w.norm[0], w.norm[1]);
        narrow
    }

    /// From GELU on, to the output; `responses` are those of the group's samples, or the one of the batch.
    fn to_narrow(&self, w: &Weights, x: &[f32], out: &mut [f32], active: &mut [f32], responses: &[Response]) {
        let (d, n) = (self.channels, x.len() / self.channels);
        for (active, response) in active.chunks_exact_mut(self.span(n)).zip(responses) {
            scale_rows(active, &response.factors, w.beta);
        }
        if let Some(rounding) = &self.rounding {
            rounding.projected.round(active);
        }
        add_to_rows(out, x, w.pw2_bias);
        multiply(out, [n, d, 4 * d], rows(active, 4 * d), transposed(w.pw2, 4 * d), true, false);
    }

    /// Wide values that share norms, of a group of `n` rows.
    fn span(&self, n: usize) -> usize {
        4 * self.channels * if self.grn == Grn::Sample { self.grid.rows } else { n }
    }

    /// Backwards from the output's gradient `g` to what left GELU.
    fn wide_gradient(&self, w: &Weights, g: &[f32], wide: &[f32], responses: &[Response]) -> Half {
        let (d, r, n) = (self.channels, self.grid.rows, g.len() / self.channels);
        let c = 4 * d;
        let mut flat = vec![0f32; lengths(d).iter().sum()];
        let [.., beta, pw2, pw2_bias] = split_mut(&mut flat, lengths(d));
        // GELU again, with its slope; `active` then passes through Global Response Normalization.
        let (mut gelu, mut slope) = (vec![0f32; n * c], vec![0f32; n * c]);
        let hidden = self.rounding.as_ref().map(|r| &r.hidden);
        gelu_rows(&mut gelu, &mut slope, &rounded(hidden, wide));
        if let Some(hidden) = hidden {
            hidden.cut(&mut slope, wide);
        }
        let mut active = vec![0f32; n * c];
        let spans = active.chunks_exact_mut(self.span(n)).zip(gelu.chunks_exact(self.span(n)));
        for ((active, gelu), response) in spans.zip(responses) {
            affine_rows(active, gelu, &response.factors, w.beta);
        }
        add_rows(pw2_bias, g);
        let projected = self.rounding.as_ref().map(|r| &r.projected);
        multiply(pw2, [d, c, n], transposed(g, d), rows(&rounded(projected, &active), c), false, false);
        let exact = projected.map(|projected| (projected, active.clone()));
        // From here on `active` holds the gradient of what it held.
        multiply(&mut active, [n, c, d], rows(g, d), rows(w.pw2, c), false, false);
        if let Some((projected, exact)) = exact {
            projected.cut(&mut active, &exact);
        }
        let samples = active.chunks_exact(r * c).zip(gelu.chunks_exact(r * c));
        let dots = samples
            .map(|(active, gelu)| {
                let mut dots = vec![0f32; c];
                dot_rows(active, gelu, &mut dots, beta);
                dots
            })
            .collect();
        Half { gelu, slope, active, flat, dots, along: Vec::new() }
    }

    /// Backwards from there to the input; gives the gradients of all parameters.
    fn narrow_gradient(
        &self,
        w: &Weights,
        first: usize,
        half: Half,
        responses: &[Response],
        x_grad: &mut [f32],
        x: &[f32],
        g: &[f32],
        unit: &[f32],
        scale: &[f32],
    ) -> Vec<f32> {
        let (d, r, n) = (self.channels, self.grid.rows, scale.len());
        let c = 4 * d;
        let Half { gelu, slope, mut active, mut flat, along, .. } = half;
        let [dw, dw_bias, norm, norm_bias, pw1, pw1_bias, ..] = split_mut(&mut flat, lengths(d));
        let span = self.span(n);
        for (at, (response, along)) in responses.iter().zip(&along).enumerate() {
            let span = at * span..(at + 1) * span;
            let (gelu, slope, active) = (&gelu[span.clone()], &slope[span.clone()], &mut active[span]);
            response_rows_backward(active, gelu, slope, &response.factors, along, pw1_bias);
        }

        let mut narrow = self.narrow(w, unit);
        multiply(pw1, [c, d, n], transposed(&active, c), rows(&narrow, d), false, false);
        multiply(&mut narrow, [n, d, c], rows(&active, c), rows(w.pw1, d), false, false);
        if let Some(rounding) = &self.rounding {
            rounding.normalised.cut(&mut narrow, unit);
        }
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

/// Global Response Normalization over some positions as a factor per channel.
pub(super) struct Response {
    /// The norm of each channel.
    norm: Vec<f32>,
    /// That norm over the mean norm.
    pub(super) relative: Vec<f32>,
    /// The mean norm plus epsilon.
    mean: f32,
    /// What each channel is multiplied by.
    pub(super) factors: Vec<f32>,
}

impl Response {
    fn new(squares: &[f32], gamma: &[f32], eps: f32) -> Self {
        let norm: Vec<f32> = squares.iter().map(|s| s.sqrt()).collect();
        let mean = norm.iter().sum::<f32>() / norm.len() as f32 + eps;
        let relative: Vec<f32> = norm.iter().map(|n| n / mean).collect();
        let factors = relative.iter().zip(gamma).map(|(r, g)| r.mul_add(*g, 1.0)).collect();
        Self { norm, relative, mean, factors }
    }

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
