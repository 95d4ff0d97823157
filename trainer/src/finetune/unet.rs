//! MMEarth's UNet: the encoder's maps, from the coarsest, each upsampled, convolved and joined with the next finer one.
//!
//! A step is nearest upsampling, a 3x3 convolution, LayerNorm over channels and GELU. With an encoder of dims d0 to d3:
//!
//! | step | channels | factor | then joined with |
//! | --- | --- | --- | --- |
//! | 0 | d3 to d3 / 2 | 2 | stage 2 |
//! | 1 | with d2 to d2 / 2 | 2 | stage 1 |
//! | 2 | with d1 to d1 / 2 | 2 | the stem, before stage 0 |
//! | 3 | with d0 to d0 | patch / 8 | the initial convolution |
//! | 4 | with d0 to d0 / 2 | 1 | |
//!
//! then a linear head on every pixel. The geometry is that of pretraining: everything padded to the same size. A patchify stem has no
//! initial convolution: there nothing joins after step 3.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use nadir::model::Architecture;

use super::path::{Dropped, stages};
use crate::ops;
use crate::ops::StemParams;
use crate::ops::grid::Geometry;
use crate::params::Params;

/// Steps of the decoder.
const STEPS: usize = 5;

/// Names and shapes of the decoder's tensors for `outputs` numbers a pixel.
pub fn decoder_shapes(architecture: &Architecture, outputs: usize) -> BTreeMap<String, Vec<usize>> {
    let d = |stage: usize| architecture.dim(stage);
    let half = |n: usize| (n / 2).max(1);
    let out = [half(d(3)), half(d(2)), half(d(1)), d(0), half(d(0))];
    let joined = [0, d(2), d(1), d(0), if architecture.is_patchify() { 0 } else { d(0) }];
    let mut shapes = BTreeMap::new();
    let mut before = d(3);
    for step in 0..STEPS {
        shapes.insert(format!("decoder.{step}.conv.weight"), vec![out[step], before + joined[step], 3, 3]);
        for name in ["conv.bias", "norm.weight", "norm.bias"] {
            shapes.insert(format!("decoder.{step}.{name}"), vec![out[step]]);
        }
        before = out[step];
    }
    shapes.insert("head.weight".into(), vec![outputs, before]);
    shapes.insert("head.bias".into(), vec![outputs]);
    shapes
}

/// What every pixel is predicted to be, `[batch * side * side, outputs]`, from normalised tiles `[batch, bands, side, side]`.
///
/// `encoder` are the encoder's tensors under their own names, `decoder` those of [`decoder_shapes`].
pub fn forward(
    x: &Tensor,
    encoder: &Params,
    decoder: &Params,
    architecture: &Architecture,
    dropped: Option<&Dropped>,
) -> Result<Tensor> {
    let (batch, bands, side, _) = x.dims4()?;
    let geometry = Geometry::new(architecture, batch, None)?;
    if geometry.grids[3].side * usize::from(architecture.patch_size) != side || geometry.initial_side != side {
        candle_core::bail!("the UNet takes whole patches of {} pixels, not {side}", architecture.patch_size);
    }
    let eps = architecture.ln_eps;
    let (initial, stemmed) = match architecture.is_patchify() {
        true => (None, ops::enter(x, encoder, architecture, &geometry)?),
        false => {
            let stem = StemParams::of(encoder);
            let pixels = x.permute((0, 2, 3, 1))?.reshape((batch * side * side, bands))?;
            let initial = convolution(&pixels, &stem.conv_weight, &stem.conv_bias, batch, side)?;
            let initial = ops::layer_norm(&initial, &stem.norm1_weight, &stem.norm1_bias, eps)?.gelu_erf()?;
            let stemmed = depthwise_stem(&initial, &stem, batch, side, geometry.stride)?;
            let stemmed = ops::layer_norm(&stemmed, &stem.norm2_weight, &stem.norm2_bias, eps)?;
            (Some(initial), stemmed)
        }
    };
    let maps = stages(stemmed.clone(), encoder, architecture, &geometry, dropped)?;

    let joins = [Some(&maps[2]), Some(&maps[1]), Some(&stemmed), initial.as_ref(), None];
    let factors = [2, 2, 2, geometry.stride, 1];
    let (mut rows, mut at) = (maps[3].clone(), geometry.grids[3].side);
    for step in 0..STEPS {
        let get = |name: &str| decoder.get(&format!("decoder.{step}.{name}"));
        rows = upsample(&rows, batch, at, factors[step])?;
        at *= factors[step];
        rows = convolution(&rows, get("conv.weight"), get("conv.bias"), batch, at)?;
        rows = ops::layer_norm(&rows, get("norm.weight"), get("norm.bias"), eps)?.gelu_erf()?;
        if let Some(join) = joins[step] {
            rows = Tensor::cat(&[&rows, join], 1)?;
        }
    }
    ops::linear(&rows, decoder.get("head.weight"), decoder.get("head.bias"))
}

/// Each position repeated `factor` times along both axes; rows of maps of side `side`.
fn upsample(x: &Tensor, batch: usize, side: usize, factor: usize) -> Result<Tensor> {
    if factor == 1 {
        return Ok(x.clone());
    }
    let fine = side * factor;
    let from = |at: usize| {
        let (sample, row, column) = (at / (fine * fine), at / fine % fine, at % fine);
        (sample * side * side + row / factor * side + column / factor) as u32
    };
    let index: Vec<u32> = (0..batch * fine * fine).map(from).collect();
    x.index_select(&Tensor::new(index, x.device())?, 0)
}

/// 3x3 convolution with zero padding 1 over the rows of maps of side `side`: what each row gives to its nine neighbours,
/// then every row's sum of what it is given.
fn convolution(x: &Tensor, weight: &Tensor, bias: &Tensor, batch: usize, side: usize) -> Result<Tensor> {
    let (out, channels, ..) = weight.dims4()?;
    let rows = batch * side * side;
    let taps = weight.permute((2, 3, 0, 1))?.reshape((9 * out, channels))?;
    let given = x.matmul(&taps.t()?)?.reshape((rows * 9, out))?;
    let given = Tensor::cat(&[&given, &Tensor::zeros((1, out), x.dtype(), x.device())?], 0)?;
    let index = neighbours(batch, side, x.device())?;
    given.index_select(&index, 0)?.reshape((rows, 9, out))?.sum(1)?.broadcast_add(bias)
}

/// For each row and tap where, among rows times taps, that tap's contribution comes from; past the last if from outside.
fn neighbours(batch: usize, side: usize, device: &Device) -> Result<Tensor> {
    let rows = batch * side * side;
    let mut index = Vec::with_capacity(rows * 9);
    for row in 0..rows {
        let (y, x) = (row / side % side, row % side);
        for tap in 0..9 {
            // One more than the neighbour's position, so that nothing is negative.
            let (v, u) = (y + tap / 3, x + tap % 3);
            let inside = (1..=side).contains(&v) && (1..=side).contains(&u);
            let from = || (row - y * side - x + (v - 1) * side + u - 1) * 9 + tap;
            index.push(if inside { from() } else { rows * 9 } as u32);
        }
    }
    Tensor::new(index, device)
}

/// The depthwise stem: kernel and stride `k`, no padding.
fn depthwise_stem(x: &Tensor, p: &StemParams, batch: usize, side: usize, k: usize) -> Result<Tensor> {
    let (channels, coarse) = (p.stem_bias.dim(0)?, side / k);
    let x = x.reshape((batch * coarse, k, coarse, k * channels))?;
    let x = x.permute((0, 2, 1, 3))?.reshape((batch * coarse * coarse, k * k, channels))?;
    let taps = p.stem_weight.reshape((channels, k * k))?.t()?.contiguous()?;
    x.broadcast_mul(&taps.unsqueeze(0)?)?.sum(1)?.broadcast_add(&p.stem_bias)
}
