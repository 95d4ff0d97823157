//! An encoder with a head, what it predicts and its loss.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor};
use nadir::model::{Architecture, StemPadding};
use nadir_formats::{BandCard, Tensor as Array, Tiles};
use rand::rngs::StdRng;
use rayon::prelude::*;
use std::collections::BTreeMap;

use super::path::{Dropped, stages};
use super::unet;
use crate::data::{AS_IS, Labels, NO_CLASS, Symmetry, input, source};
use crate::encoder::{Encoder, whole_patches};
use crate::ops;
use crate::ops::grid::Geometry;
use crate::params::{Init, Params, fresh};
use crate::run::Progress;

/// The encoder's parameters stand under this prefix.
pub const ENCODER: &str = "encoder.";

/// The deviation of a linear head's first weights, over the 0.02 of other weights.
const HEAD_SCALE: f32 = 1e-3;

/// How much of the encoder is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// Nothing but the head, on features that the final LayerNorm only normalises (weight 1, bias 0): MMEarth's linear probe.
    Head,
    /// All of it.
    All,
}

/// An encoder with a head: linear on the embedding, or a UNet's decoder for every pixel.
pub struct Net {
    encoder: Encoder,
    params: Params,
    pixels: bool,
    trained: Trained,
    /// Mean and deviation of each number to predict, over the training tiles; 0 and 1 for classes.
    scale: Vec<(f64, f64)>,
}

/// `encoder` with the same weights, shared, for tiles of `side` pixels: a convolutional network takes any.
///
/// # Errors
/// If the side is not possible for the patch.
pub fn for_side(encoder: &Encoder, side: usize, padding: StemPadding) -> Result<Encoder> {
    let tile_size = u16::try_from(side).unwrap_or(u16::MAX);
    let architecture = Architecture { tile_size, stem_padding: padding, ..*encoder.architecture() };
    Ok(encoder.reshaped(&architecture)?)
}

impl Net {
    /// A net with a fresh head for `labels`, measured on `rows` of them where they are numbers. The weights of `encoder` are
    /// shared, and so trained in place.
    ///
    /// # Errors
    /// If the tiles' side `side` does not suit the encoder, or numbers do not vary over `rows`.
    pub fn new(
        encoder: &Encoder,
        labels: &Labels,
        rows: &[usize],
        tiles: usize,
        side: usize,
        trained: Trained,
        rng: &mut StdRng,
    ) -> Result<Self> {
        let pixels = matches!(labels, Labels::Map { .. } | Labels::NumberMap { .. });
        let own = encoder.architecture().stem_padding;
        let encoder = for_side(encoder, side, if pixels { whole_patches(own) } else { own })?;
        let architecture = encoder.architecture();
        let patch = usize::from(architecture.patch_size);
        ensure!(!pixels || side.is_multiple_of(patch), "a UNet takes whole patches: {side} pixels are none of {patch}");
        let (outputs, d) = (labels.outputs(), architecture.embedding_dimension());
        let shapes = match pixels {
            true => unet::decoder_shapes(architecture, outputs),
            false => BTreeMap::from([("head.weight".into(), vec![outputs, d]), ("head.bias".into(), vec![outputs])]),
        };
        let mut arrays = fresh(&shapes, Init::Small, |_| false, rng);
        if !pixels && let Some(Array { data, .. }) = arrays.get_mut("head.weight") {
            data.iter_mut().for_each(|v| *v *= HEAD_SCALE);
        }
        let mut params = Params::from_arrays(&arrays, encoder.device())?;
        if trained == Trained::All {
            params.extend(ENCODER, encoder.params(), |name| !pixels || !name.starts_with("norm."));
        }
        let scale = scale(labels, rows, tiles)?;
        Ok(Self { encoder, params, pixels, trained, scale })
    }

    /// All parameters that are trained: the head's, and the encoder's under [`ENCODER`].
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Whether it predicts something a pixel, by a UNet.
    pub fn pixels(&self) -> bool {
        self.pixels
    }

    /// The encoder inside.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The predictions before any activation, for normalised tiles `[batch, bands, side, side]`: `[batch, outputs]`, or
    /// `[batch * side * side, outputs]` for pixels. `frozen` keeps gradients from the encoder.
    pub fn forward(&self, x: &Tensor, dropped: Option<&Dropped>, frozen: bool) -> candle_core::Result<Tensor> {
        let a = self.encoder.architecture();
        let held;
        let params = match frozen || self.trained == Trained::Head {
            true => {
                held = self.encoder.params().frozen();
                &held
            }
            false => self.encoder.params(),
        };
        if self.pixels {
            return unet::forward(x, params, &self.params, a, dropped);
        }
        let geometry = Geometry::new(a, x.dim(0)?, None)?;
        let rows = match dropped {
            None => ops::encode(x, params, a, &geometry, None)?,
            Some(_) => {
                let rows = ops::enter(x, params, a, &geometry)?;
                stages(rows, params, a, &geometry, dropped)?.swap_remove(3)
            }
        };
        let d = a.embedding_dimension();
        let pooled = rows.reshape((geometry.batch(), geometry.grids[3].rows, d))?.mean(1)?;
        let embedding = match self.trained {
            Trained::All => ops::layer_norm(&pooled, params.get("norm.weight"), params.get("norm.bias"), a.ln_eps)?,
            Trained::Head => {
                let one = Tensor::ones(d, DType::F32, x.device())?;
                ops::layer_norm(&pooled, &one, &one.zeros_like()?, a.ln_eps)?
            }
        };
        ops::linear(&embedding, self.params.get("head.weight"), self.params.get("head.bias"))
    }

    /// The mean loss of `output` for the drawn tiles; nothing if none of their labels is known.
    ///
    /// Classes: cross entropy with `smoothing` spread evenly over all classes. Several classes: binary cross entropy against
    /// `1 - smoothing` and `smoothing`. Numbers: squared error at unit variance.
    pub fn loss(
        &self,
        output: &Tensor,
        labels: &Labels,
        tiles: usize,
        draws: &[(usize, Symmetry)],
        smoothing: f64,
    ) -> Result<Option<Tensor>> {
        let side = usize::from(self.encoder.architecture().tile_size);
        Ok(match labels {
            Labels::Classes { of, .. } => {
                let labels: Vec<u32> = draws.iter().map(|(i, _)| of[*i] as u32).collect();
                Some(smoothed_cross_entropy(output, &labels, smoothing)?)
            }
            Labels::Multi { of, .. } => {
                let soft = |t: &bool| if *t { 1.0 - smoothing } else { smoothing } as f32;
                let wanted: Vec<f32> = draws.iter().flat_map(|(i, _)| Labels::row(of, tiles, *i)).map(soft).collect();
                let wanted = Tensor::from_vec(wanted, output.shape(), output.device())?;
                Some(binary_cross_entropy(output, &wanted)?)
            }
            Labels::Map { of, .. } => {
                let class = |c: u8| if c == NO_CLASS { u32::MAX } else { u32::from(c) };
                let labels: Vec<u32> = turned(of, tiles, draws, side).map(class).collect();
                let known = labels.iter().any(|l| *l != u32::MAX);
                known.then(|| ops::cross_entropy(output, &labels)).transpose()?
            }
            Labels::Numbers { of, .. } => {
                let each = self.scale.len();
                let values = draws.iter().flat_map(|(i, _)| Labels::row(of, tiles, *i)).copied();
                self.squares(output, values.enumerate().map(|(at, v)| (at % each, v)))?
            }
            Labels::NumberMap { of } => self.squares(output, turned(of, tiles, draws, side).map(|v| (0, v)))?,
        })
    }

    /// Mean squared error at unit variance over the values that are not NaN.
    fn squares(&self, output: &Tensor, values: impl Iterator<Item = (usize, f32)>) -> Result<Option<Tensor>> {
        let (mut truth, mut weights) = (Vec::new(), Vec::new());
        for (column, value) in values {
            let (mean, std) = self.scale[column];
            weights.push(if value.is_nan() { 0f32 } else { 1.0 });
            truth.push(if value.is_nan() { 0.0 } else { ((f64::from(value) - mean) / std) as f32 });
        }
        let known: f32 = weights.iter().sum();
        if known == 0.0 {
            return Ok(None);
        }
        weights.iter_mut().for_each(|w| *w /= known);
        let [truth, weights] = [truth, weights].map(|v| Tensor::from_vec(v, output.shape(), output.device()));
        Ok(Some(ops::weighted_squares(output, &truth?, &weights?)?))
    }

    /// The predictions for the tiles `rows`, one after the other: scores of classes (logits), numbers in their own units.
    ///
    /// On the CPU each tile passes alone, so that a prediction does not depend on the tiles beside it.
    pub fn predict(&self, tiles: &Tiles, bands: &[BandCard], rows: &[usize], what: &str) -> Result<Vec<f32>> {
        let device = self.encoder.device();
        let one = |row: &usize| -> Result<Vec<f32>> {
            let x = input(tiles, bands, &[(*row, AS_IS)], device)?;
            Ok(self.forward(&x, None, true)?.flatten_all()?.to_vec1()?)
        };
        let mut out = Vec::new();
        let mut progress = Progress::new(what, "tiles", 0, rows.len() as u64);
        for (at, some) in rows.chunks(32).enumerate() {
            let each = some.par_iter().map(one).collect::<Result<Vec<_>>>()?;
            out.extend(each.into_iter().flatten());
            progress.at((at * 32 + some.len()) as u64, "");
        }
        let columns = self.scale.len();
        for (at, value) in out.iter_mut().enumerate() {
            let (mean, std) = self.scale[at % columns];
            *value = (f64::from(*value) * std + mean) as f32;
        }
        ensure!(out.iter().all(|v| v.is_finite()), "predictions are not finite");
        Ok(out)
    }
}

/// The maps of the drawn tiles, turned as these are.
fn turned<'a, T: Copy>(
    of: &'a [T],
    tiles: usize,
    draws: &'a [(usize, Symmetry)],
    side: usize,
) -> impl Iterator<Item = T> + 'a {
    draws.iter().flat_map(move |(row, symmetry)| {
        let map = Labels::row(of, tiles, *row);
        (0..side * side).map(move |at| map[source(*symmetry, side, at / side, at % side)])
    })
}

/// Mean and deviation of every number to predict.
fn scale(labels: &Labels, rows: &[usize], tiles: usize) -> Result<Vec<(f64, f64)>> {
    let (of, columns) = match labels {
        Labels::Numbers { of, names } => (of, names.len()),
        Labels::NumberMap { of } => (of, 1),
        _ => return Ok(vec![(0.0, 1.0); labels.outputs()]),
    };
    (0..columns)
        .map(|column| {
            let all = rows.iter().flat_map(|row| Labels::row(of, tiles, *row).iter().skip(column).step_by(columns));
            let known: Vec<f64> = all.filter(|v| !v.is_nan()).map(|v| f64::from(*v)).collect();
            let n = known.len() as f64;
            let mean = known.iter().sum::<f64>() / n;
            let std = (known.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            ensure!(std > 0.0, "labels: column {column} does not vary over the {} training tiles", rows.len());
            Ok((mean, std))
        })
        .collect()
}

/// `(1 - smoothing)` times the cross entropy plus `smoothing` times its mean over all classes as labels.
fn smoothed_cross_entropy(logits: &Tensor, labels: &[u32], smoothing: f64) -> Result<Tensor> {
    let sharp = ops::cross_entropy(logits, labels)?;
    if smoothing == 0.0 {
        return Ok(sharp);
    }
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let spread = (log_sum.mean_all()? - shifted.mean_all()?)?;
    Ok(((sharp * (1.0 - smoothing))? + (spread * smoothing)?)?)
}

/// Mean of `max(x, 0) - x t + ln(1 + exp(-|x|))`.
fn binary_cross_entropy(logits: &Tensor, wanted: &Tensor) -> Result<Tensor> {
    let soft = ((logits.abs()?.neg()?.exp()? + 1.0)?).log()?;
    Ok(((logits.relu()? - (logits * wanted)?)? + soft)?.mean_all()?)
}
