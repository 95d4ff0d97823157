//! Initial convolution, LayerNorm, GELU, depthwise stem and LayerNorm in one operation, from tiles to rows.

use rayon::prelude::*;

use super::chain::{Kept, Layer};
use super::fused::{split, split_mut, sum, swap_last};
use super::gemm::{multiply, rows, transposed};
use super::grid::Geometry;
use super::kernels::{add_rows, affine_rows, normalise_rows, normalise_rows_backward, stem_rows, stem_rows_backward};
use super::rounding::Steps;

/// See [`super::elementary::stem`]. The tiles get no gradient.
pub struct Stem {
    /// The maps.
    pub geometry: Geometry,
    /// Bands of a tile.
    pub bands: usize,
    /// Channels of a row.
    pub channels: usize,
    /// Epsilon of both LayerNorms.
    pub ln_eps: f32,
    /// How what enters GELU is rounded, if it is.
    pub rounding: Option<Steps>,
}

/// The parameters, the weights with their taps outermost: `[9 * bands]` per channel as (tap, band), and `[k * k, d]`.
pub(super) struct Weights<'a> {
    conv: Vec<f32>,
    conv_bias: &'a [f32],
    pub(super) norm1: [&'a [f32]; 2],
    pub(super) stem: Vec<f32>,
    pub(super) stem_bias: &'a [f32],
    norm2: [&'a [f32]; 2],
}

/// The intermediate values of one sample. A site is a position of the initial convolution's map under some row; the
/// sites of a row follow each other in the order of the stem's taps.
struct Sample {
    /// What the initial convolution sees, `[sites, 9 * bands]`.
    columns: Vec<f32>,
    /// Whether the site exists; if not it is the stem's padding.
    exists: Vec<bool>,
    /// Normalised rows of the first LayerNorm and their factors.
    unit1: Vec<f32>,
    scale1: Vec<f32>,
    /// GELU's values (0 where there is no site) and slopes, `[sites, d]`.
    active: Vec<f32>,
    slope: Vec<f32>,
    /// Normalised rows of the second LayerNorm, `[rows, d]`, and their factors.
    unit2: Vec<f32>,
    scale2: Vec<f32>,
}

impl Stem {
    pub(super) fn lengths(&self) -> [usize; 8] {
        let (d, taps) = (self.channels, self.geometry.stride * self.geometry.stride);
        [d * self.bands * 9, d, d, d, d * taps, d, d, d]
    }

    pub(super) fn weights<'a>(&self, flat: &'a [f32]) -> Weights<'a> {
        let (d, taps) = (self.channels, self.geometry.stride * self.geometry.stride);
        let [conv, conv_bias, norm1, norm1_bias, stem, stem_bias, norm2, norm2_bias] = split(flat, self.lengths());
        Weights {
            conv: swap_last(conv, [d, self.bands, 9]),
            conv_bias,
            norm1: [norm1, norm1_bias],
            stem: swap_last(stem, [1, d, taps]),
            stem_bias,
            norm2: [norm2, norm2_bias],
        }
    }

    /// The tile with one pixel of zeros around it, bands innermost, hidden patches zero.
    fn padded(&self, tile: &[f32], sample: usize) -> Vec<f32> {
        let (side, bands) = (self.geometry.tile, self.bands);
        let mut out = vec![0f32; (side + 2) * (side + 2) * bands];
        let mut copy = |top: usize, left: usize, size: usize| {
            for y in top..top + size {
                for band in 0..bands {
                    let line = &tile[(band * side + y) * side + left..][..size];
                    let at = ((y + 1) * (side + 2) + left + 1) * bands + band;
                    line.iter().enumerate().for_each(|(x, v)| out[at + x * bands] = *v);
                }
            }
        };
        match &self.geometry.mask {
            None => copy(0, 0, side),
            Some(mask) => {
                let patch = side / mask.side();
                for &p in mask.visible(sample) {
                    copy(p as usize / mask.side() * patch, p as usize % mask.side() * patch, patch);
                }
            }
        }
        out
    }

    /// What the stem reads, window by window: row and column in the map of the initial convolution, nothing where that is padded.
    pub(super) fn read_sites(&self, sample: usize) -> impl Iterator<Item = Option<[usize; 2]>> {
        let (g, k) = (&self.geometry, self.geometry.stride);
        let grid = &g.grids[0];
        let inside = g.stem_padding..g.stem_padding + g.initial_side;
        let windows = grid.positions(sample).iter().map(|&at| at as usize);
        let corners = windows.map(move |at| [at / grid.side * k, at % grid.side * k]);
        let places = corners.flat_map(move |[y, x]| (0..k * k).map(move |tap| [y + tap / k, x + tap % k]));
        places.map(move |place| place.iter().all(|v| inside.contains(v)).then(|| place.map(|v| v - g.stem_padding)))
    }

    /// What the initial convolution sees, which sites exist, and what it gives, `[sites, d]`.
    pub(super) fn first_sites(&self, w: &Weights, tile: &[f32], sample: usize) -> (Vec<f32>, Vec<bool>, Vec<f32>) {
        let (g, d, bands) = (&self.geometry, self.channels, self.bands);
        let (width, line) = ((g.tile + 2) * bands, 3 * bands);
        let padded = self.padded(tile, sample);
        let sites = g.grids[0].rows * g.stride * g.stride;
        let mut columns = vec![0f32; sites * 9 * bands];
        let mut exists = Vec::with_capacity(sites);
        for (at, site) in self.read_sites(sample).enumerate() {
            exists.push(site.is_some());
            let Some([y, x]) = site else { continue };
            let (y, x) = (y + 1 - g.initial_padding, x + 1 - g.initial_padding);
            let out = &mut columns[at * 9 * bands..][..9 * bands];
            for dy in 0..3 {
                out[dy * line..][..line].copy_from_slice(&padded[(y + dy) * width + x * bands..][..line]);
            }
        }
        let mut out = vec![0f32; sites * d];
        out.chunks_exact_mut(d).for_each(|row| row.copy_from_slice(w.conv_bias));
        let sides = [sites, d, 9 * bands];
        multiply(&mut out, sides, rows(&columns, 9 * bands), transposed(&w.conv, 9 * bands), true, false);
        (columns, exists, out)
    }

    /// All intermediate values of `tile`.
    fn sample(&self, w: &Weights, tile: &[f32], sample: usize) -> Sample {
        let (grid, d) = (&self.geometry.grids[0], self.channels);
        let (columns, exists, mut unit1) = self.first_sites(w, tile, sample);
        let sites = exists.len();
        let (mut scale1, mut slope) = (vec![0f32; sites], vec![0f32; sites * d]);
        normalise_rows(&mut unit1, &mut scale1, self.ln_eps);
        let (mut unit2, mut scale2) = (vec![0f32; grid.rows * d], vec![0f32; grid.rows]);
        let mut active;
        if let Some(steps) = &self.rounding {
            let mut exact = vec![0f32; sites * d];
            affine_rows(&mut exact, &unit1, w.norm1[0], w.norm1[1]);
            active = exact.clone();
            steps.round(&mut active);
            let (ones, zeros) = (vec![1.0; d], vec![0.0; d]);
            stem_rows(&mut active, &mut slope, &mut unit2, &exists, [&ones, &zeros], &w.stem, w.stem_bias);
            steps.cut(&mut slope, &exact);
        } else {
            active = unit1.clone();
            stem_rows(&mut active, &mut slope, &mut unit2, &exists, w.norm1, &w.stem, w.stem_bias);
        }
        normalise_rows(&mut unit2, &mut scale2, self.ln_eps);
        Sample { columns, exists, unit1, scale1, active, slope, unit2, scale2 }
    }

    fn backward_sample(&self, w: &Weights, s: &Sample, g: &[f32]) -> Vec<f32> {
        let (d, sites) = (self.channels, s.scale1.len());
        let mut flat = vec![0f32; self.lengths().iter().sum()];
        let [conv, conv_bias, norm1, norm1_bias, stem, stem_bias, norm2, norm2_bias] =
            split_mut(&mut flat, self.lengths());
        let (mut g, mut site_g) = (g.to_vec(), vec![0f32; sites * d]);
        normalise_rows_backward(&mut g, &s.unit2, &s.scale2, w.norm2[0], norm2, norm2_bias);
        add_rows(stem_bias, &g);
        stem_rows_backward(&mut site_g, &g, &s.active, &s.slope, &s.exists, &w.stem, stem, d);
        // Where there is no site the gradient is 0 and stays 0.
        normalise_rows_backward(&mut site_g, &s.unit1, &s.scale1, w.norm1[0], norm1, norm1_bias);
        add_rows(conv_bias, &site_g);
        let n = 9 * self.bands;
        multiply(conv, [d, n, sites], transposed(&site_g, d), rows(&s.columns, n), false, false);
        flat
    }
}

impl Layer for Stem {
    fn parameters(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn channels(&self) -> usize {
        self.channels
    }

    /// Keeps nothing: the backward pass computes the samples again.
    fn forward(&self, x: &[f32], flat: &[f32], _: bool) -> (Vec<f32>, Kept) {
        let w = self.weights(flat);
        let (d, r, pixels) = (self.channels, self.geometry.grids[0].rows, self.geometry.tile * self.geometry.tile);
        let mut out = vec![0f32; self.geometry.batch() * r * d];
        out.par_chunks_mut(r * d).zip(x.par_chunks(pixels * self.bands)).enumerate().for_each(|(at, (out, tile))| {
            let sample = self.sample(&w, tile, at);
            affine_rows(out, &sample.unit2, w.norm2[0], w.norm2[1]);
        });
        (out, Vec::new())
    }

    fn backward(&self, x: &[f32], flat: &[f32], g: &[f32], _: &Kept) -> (Vec<f32>, Vec<f32>) {
        let w = self.weights(flat);
        let (d, r, pixels) = (self.channels, self.geometry.grids[0].rows, self.geometry.tile * self.geometry.tile);
        let parts = x
            .par_chunks(pixels * self.bands)
            .zip(g.par_chunks(r * d))
            .enumerate()
            .map(|(at, (tile, g))| self.backward_sample(&w, &self.sample(&w, tile, at), g))
            .collect();
        let flat_grad = sum(parts);
        let [conv, conv_bias, norm1, norm1_bias, stem, rest @ ..] = split(&flat_grad, self.lengths());
        let conv = swap_last(conv, [d, 9, self.bands]);
        let stem = swap_last(stem, [1, self.geometry.stride * self.geometry.stride, d]);
        let parts = [&conv, conv_bias, norm1, norm1_bias, &stem].into_iter().chain(rest);
        (Vec::new(), parts.flatten().copied().collect())
    }
}
