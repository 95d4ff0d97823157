//! The operations put together from candle's own: slow, but they run on any device and type, and candle derives their
//! gradients. The fused ones are tested against these.

use candle_core::{D, Device, Result, Tensor};

use super::grid::{Geometry, Grid};
use super::{BlockParams, DownsampleParams, Grn, StemParams};

/// LayerNorm over the last dimension.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// `x` times the transpose of `weight` `[out, in]`, plus `bias`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

/// Global Response Normalization of `[batch * rows, channels]`, each of `batch` samples over its rows; a batch whose
/// norms are shared is one sample.
pub fn grn(x: &Tensor, gamma: &Tensor, beta: &Tensor, batch: usize, eps: f32) -> Result<Tensor> {
    let (rows, channels) = x.dims2()?;
    let x = x.reshape((batch, rows / batch, channels))?;
    let squares = x.sqr()?.sum_keepdim(1)?;
    // The root has no derivative at 0; there the norm is taken as constant.
    let zero = squares.eq(&squares.zeros_like()?)?.to_dtype(x.dtype())?;
    let norm = ((&squares + &zero)?.sqrt()? - &zero)?;
    let relative = norm.broadcast_div(&(norm.mean_keepdim(2)? + f64::from(eps))?)?;
    let scale = relative.broadcast_mul(&gamma.reshape((1, 1, channels))?)?;
    let y = (x.broadcast_mul(&(scale + 1.0)?)?).broadcast_add(&beta.reshape((1, 1, channels))?)?;
    y.reshape((rows, channels))
}

/// The sum of `weights * (x - truth)^2`. Only `x` gets a gradient where this is fused.
pub fn weighted_squares(x: &Tensor, truth: &Tensor, weights: &Tensor) -> Result<Tensor> {
    ((x - truth)?.sqr()? * weights)?.sum_all()
}

/// Mean cross entropy of `[n, classes]` logits over the labels that are classes; at least one must be.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let known = |label: &u32| (*label as usize) < classes;
    let weight = 1.0 / labels.iter().filter(|l| known(l)).count() as f32;
    let weights: Vec<f32> = labels.iter().map(|l| if known(l) { weight } else { 0.0 }).collect();
    let picks: Vec<u32> = labels.iter().map(|l| if known(l) { *l } else { 0 }).collect();
    let weights = Tensor::from_vec(weights, (n, 1), logits.device())?.to_dtype(logits.dtype())?;
    let picks = Tensor::from_vec(picks, (n, 1), logits.device())?;
    // The shift cancels, so it needs no gradient.
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    ((log_sum - shifted.gather(&picks, 1)?)? * weights)?.sum_all()
}

/// Appends a row of zeros, for the positions that have no row.
fn with_zero_row(x: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[x, &Tensor::zeros((1, x.dim(1)?), x.dtype(), x.device())?], 0)
}

/// 7x7 depthwise convolution with zero padding 3 over the rows of `grid`.
pub fn depthwise(x: &Tensor, weight: &Tensor, bias: &Tensor, grid: &Grid) -> Result<Tensor> {
    let (side, channels) = (grid.side as isize, x.dim(1)?);
    let row_of = grid.row_of_position();
    let padded = with_zero_row(x)?;
    let taps = weight.reshape((channels, 49))?.t()?.contiguous()?;
    let mut sum: Option<Tensor> = None;
    for tap in 0..49isize {
        let (dy, dx) = (tap / 7 - 3, tap % 7 - 3);
        let mut index = Vec::with_capacity(grid.batch * grid.rows);
        for sample in 0..grid.batch {
            for &position in grid.positions(sample) {
                let (y, x) = (position as isize / side + dy, position as isize % side + dx);
                let inside = (0..side).contains(&y) && (0..side).contains(&x);
                index.push(match inside {
                    true => row_of[(sample as isize * side * side + y * side + x) as usize],
                    false => (grid.batch * grid.rows) as u32,
                });
            }
        }
        let index = Tensor::from_vec(index, grid.batch * grid.rows, x.device())?;
        let term = padded.index_select(&index, 0)?.broadcast_mul(&taps.narrow(0, tap as usize, 1)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    match sum {
        Some(sum) => sum.broadcast_add(bias),
        None => candle_core::bail!("a kernel without taps"),
    }
}

/// The ConvNeXt V2 block on the rows of `grid`.
pub fn block(x: &Tensor, p: &BlockParams, grid: &Grid, norms: Grn, ln_eps: f32, grn_eps: f32) -> Result<Tensor> {
    let y = depthwise(x, &p.dw_weight, &p.dw_bias, grid)?;
    let y = layer_norm(&y, &p.norm_weight, &p.norm_bias, ln_eps)?;
    let y = linear(&y, &p.pw1_weight, &p.pw1_bias)?.gelu_erf()?;
    let samples = if norms == Grn::Batch { 1 } else { grid.batch };
    let y = grn(&y, &p.grn_gamma, &p.grn_beta, samples, grn_eps)?;
    x + linear(&y, &p.pw2_weight, &p.pw2_bias)?
}

/// LayerNorm and 2x2 convolution with stride 2 before stage `stage + 1`.
pub fn downsample(x: &Tensor, p: &DownsampleParams, geometry: &Geometry, stage: usize, ln_eps: f32) -> Result<Tensor> {
    let (fine, coarse) = (&geometry.grids[stage], &geometry.grids[stage + 1]);
    let (out, channels, ..) = p.weight.dims4()?;
    let mut index = Vec::with_capacity(coarse.batch * coarse.rows * 4);
    for sample in 0..coarse.batch {
        let first = (sample * fine.rows) as u32;
        index.extend(geometry.children(stage, sample).iter().map(|child| first + child));
    }
    let index = Tensor::from_vec(index, coarse.batch * coarse.rows * 4, x.device())?;
    let y = layer_norm(x, &p.norm_weight, &p.norm_bias, ln_eps)?;
    let y = y.index_select(&index, 0)?.reshape((coarse.batch * coarse.rows, 4 * channels))?;
    linear(&y, &p.weight.permute((0, 2, 3, 1))?.reshape((out, 4 * channels))?, &p.bias)
}

/// Initial 3x3 convolution, LayerNorm, GELU, depthwise stem and LayerNorm: tiles `[batch, bands, height, width]` to the
/// rows of stage 0.
pub fn stem(x: &Tensor, p: &StemParams, geometry: &Geometry, ln_eps: f32) -> Result<Tensor> {
    let (batch, bands, height, width) = x.dims4()?;
    let (channels, k, grid) = (p.conv_bias.dim(0)?, geometry.stride, &geometry.grids[0]);
    let x = match geometry.pixel_mask(x.device())? {
        Some(mask) => x.broadcast_mul(&mask.to_dtype(x.dtype())?)?,
        None => x.clone(),
    };
    let pixels = with_zero_row(&x.permute((0, 2, 3, 1))?.reshape((batch * height * width, bands))?)?;
    let (index, valid) = stem_index(geometry, height, width, x.device())?;
    let sites = batch * grid.rows * k * k;
    let columns = pixels.index_select(&index, 0)?.reshape((sites, 9 * bands))?;
    let weight = p.conv_weight.permute((0, 2, 3, 1))?.reshape((channels, 9 * bands))?;
    let y = linear(&columns, &weight, &p.conv_bias)?;
    let y = layer_norm(&y, &p.norm1_weight, &p.norm1_bias, ln_eps)?.gelu_erf()?;
    let y = y.broadcast_mul(&valid.to_dtype(y.dtype())?)?.reshape((batch * grid.rows, k * k, channels))?;
    let taps = p.stem_weight.reshape((channels, k * k))?.t()?.contiguous()?;
    let y = y.broadcast_mul(&taps.unsqueeze(0)?)?.sum(1)?.broadcast_add(&p.stem_bias)?;
    layer_norm(&y, &p.norm2_weight, &p.norm2_bias, ln_eps)
}

/// For every site of the initial convolution under every row, in the order of the stem's taps: the nine pixels that it
/// sees, and whether the site exists (1) or is the stem's padding (0).
fn stem_index(geometry: &Geometry, height: usize, width: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let (grid, k) = (&geometry.grids[0], geometry.stride as isize);
    let outside = (grid.batch * height * width) as u32;
    let (mut index, mut valid) = (Vec::new(), Vec::new());
    for sample in 0..grid.batch {
        for &position in grid.positions(sample) {
            let (row, column) = (position as isize / grid.side as isize, position as isize % grid.side as isize);
            for tap in 0..k * k {
                let y = row * k + tap / k - geometry.stem_padding as isize;
                let x = column * k + tap % k - geometry.stem_padding as isize;
                let side = 0..geometry.initial_side as isize;
                valid.push(f32::from(u8::from(side.contains(&y) && side.contains(&x))));
                for near in 0..9 {
                    let y = y + near / 3 - geometry.initial_padding as isize;
                    let x = x + near % 3 - geometry.initial_padding as isize;
                    let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                    let pixel = ((sample * height) as isize + y) * width as isize + x;
                    index.push(if inside { pixel as u32 } else { outside });
                }
            }
        }
    }
    let n = valid.len();
    Ok((Tensor::from_vec(index, n * 9, device)?, Tensor::from_vec(valid, (n, 1), device)?))
}
