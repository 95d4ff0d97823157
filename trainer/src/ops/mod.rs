//! The operations of the encoder and the decoder on maps held as rows.
//!
//! On the CPU in f32 and on an NVIDIA GPU in f32 and bf16 they are fused, with gradients of their own; elsewhere they are
//! put together from candle's operations ([`elementary`]). Parameters are f32 in all of these.

mod block;
mod chain;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod downsample;
pub mod elementary;
mod fused;
pub(crate) mod gemm;
pub mod grid;
mod kernels;
mod linear;
mod losses;
pub mod observe;
mod patchify;
pub mod rounding;
mod stem;

use candle_core::{DType, Device, Result, Tensor};
use nadir::model::{Architecture, STAGES};

use crate::params::Params;
use grid::{Geometry, Grid};
pub use patchify::{PatchifyParams, patchify};
use rounding::Rounding;

/// Over which positions Global Response Normalization takes a channel's norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Grn {
    /// The visible positions of each tile, as the finished encoder does
    #[default]
    Sample,
    /// The visible positions of all tiles of a micro-batch together, as MMEarth's sparse pretraining
    Batch,
}

/// The tensors of the initial convolution and the stem, as MMEarth's encoders have them.
#[derive(Clone, Debug)]
pub struct StemParams {
    /// `[d, bands, 3, 3]`.
    pub conv_weight: Tensor,
    /// `[d]`.
    pub conv_bias: Tensor,
    /// `[d]`.
    pub norm1_weight: Tensor,
    /// `[d]`.
    pub norm1_bias: Tensor,
    /// `[d, 1, k, k]`.
    pub stem_weight: Tensor,
    /// `[d]`.
    pub stem_bias: Tensor,
    /// `[d]`.
    pub norm2_weight: Tensor,
    /// `[d]`.
    pub norm2_bias: Tensor,
}

impl StemParams {
    /// The encoder's stem.
    pub fn of(params: &Params) -> Self {
        let get = |name: &str| params.get(name).clone();
        Self {
            conv_weight: get("initial_conv.0.weight"),
            conv_bias: get("initial_conv.0.bias"),
            norm1_weight: get("initial_conv.1.weight"),
            norm1_bias: get("initial_conv.1.bias"),
            stem_weight: get("stem.0.weight"),
            stem_bias: get("stem.0.bias"),
            norm2_weight: get("stem.1.weight"),
            norm2_bias: get("stem.1.bias"),
        }
    }

    /// All tensors, in the order in which the fused layer takes them.
    fn all(&self) -> [&Tensor; 8] {
        [
            &self.conv_weight,
            &self.conv_bias,
            &self.norm1_weight,
            &self.norm1_bias,
            &self.stem_weight,
            &self.stem_bias,
            &self.norm2_weight,
            &self.norm2_bias,
        ]
    }
}

/// The tensors of one block of `d` channels.
#[derive(Clone, Debug)]
pub struct BlockParams {
    /// `[d, 1, 7, 7]`.
    pub dw_weight: Tensor,
    /// `[d]`.
    pub dw_bias: Tensor,
    /// `[d]`.
    pub norm_weight: Tensor,
    /// `[d]`.
    pub norm_bias: Tensor,
    /// `[4d, d]`.
    pub pw1_weight: Tensor,
    /// `[4d]`.
    pub pw1_bias: Tensor,
    /// `[1, 1, 1, 4d]`.
    pub grn_gamma: Tensor,
    /// `[1, 1, 1, 4d]`.
    pub grn_beta: Tensor,
    /// `[d, 4d]`.
    pub pw2_weight: Tensor,
    /// `[d]`.
    pub pw2_bias: Tensor,
}

impl BlockParams {
    /// The block whose names start with `prefix`, for instance `stages.0.1`.
    pub fn of(params: &Params, prefix: &str) -> Self {
        let get = |name: &str| params.get(&format!("{prefix}.{name}")).clone();
        Self {
            dw_weight: get("dwconv.weight"),
            dw_bias: get("dwconv.bias"),
            norm_weight: get("norm.weight"),
            norm_bias: get("norm.bias"),
            pw1_weight: get("pwconv1.weight"),
            pw1_bias: get("pwconv1.bias"),
            grn_gamma: get("grn.gamma"),
            grn_beta: get("grn.beta"),
            pw2_weight: get("pwconv2.weight"),
            pw2_bias: get("pwconv2.bias"),
        }
    }

    /// All tensors, in the order in which the fused layer takes them.
    fn all(&self) -> [&Tensor; 10] {
        [
            &self.dw_weight,
            &self.dw_bias,
            &self.norm_weight,
            &self.norm_bias,
            &self.pw1_weight,
            &self.pw1_bias,
            &self.grn_gamma,
            &self.grn_beta,
            &self.pw2_weight,
            &self.pw2_bias,
        ]
    }
}

/// The tensors between two stages, of `c` and `d` channels.
#[derive(Clone, Debug)]
pub struct DownsampleParams {
    /// `[c]`.
    pub norm_weight: Tensor,
    /// `[c]`.
    pub norm_bias: Tensor,
    /// `[d, c, 2, 2]`.
    pub weight: Tensor,
    /// `[d]`.
    pub bias: Tensor,
}

impl DownsampleParams {
    /// The step before stage `stage + 1`.
    pub fn of(params: &Params, stage: usize) -> Self {
        let get = |name: &str| params.get(&format!("downsample_layers.{stage}.{name}")).clone();
        Self { norm_weight: get("0.weight"), norm_bias: get("0.bias"), weight: get("1.weight"), bias: get("1.bias") }
    }

    /// All tensors, in the order in which the fused layer takes them.
    fn all(&self) -> [&Tensor; 4] {
        [&self.norm_weight, &self.norm_bias, &self.weight, &self.bias]
    }
}

/// Whether the fused operations take `x`.
fn fuses(x: &Tensor) -> bool {
    match x.device() {
        Device::Cpu => x.dtype() == DType::F32,
        Device::Cuda(_) => cfg!(feature = "cuda") && matches!(x.dtype(), DType::F32 | DType::BF16),
        Device::Metal(_) => false,
    }
}

/// The encoder's last map as rows, from tiles `[batch, bands, height, width]`; on the host in f32 also with its activations
/// rounded.
pub fn encode(
    x: &Tensor,
    params: &Params,
    architecture: &Architecture,
    geometry: &Geometry,
    rounding: Option<&Rounding>,
) -> Result<Tensor> {
    if rounding.is_some() && !(x.device().is_cpu() && fuses(x)) {
        candle_core::bail!("activations are rounded on the CPU in F32 alone")
    }
    let (ln_eps, grn_eps) = (architecture.ln_eps, architecture.grn_eps);
    let downsamples = [0, 1, 2].map(|stage| DownsampleParams::of(params, stage));
    let of_stage = |stage: usize| {
        (0..architecture.depths[stage]).map(move |at| BlockParams::of(params, &format!("stages.{stage}.{at}")))
    };
    if !fuses(x) {
        let mut rows = enter(x, params, architecture, geometry)?;
        for stage in 0..STAGES {
            if stage > 0 {
                rows = elementary::downsample(&rows, &downsamples[stage - 1], geometry, stage - 1, ln_eps)?;
            }
            for block in of_stage(stage) {
                rows = elementary::block(&rows, &block, &geometry.grids[stage], geometry.grn, ln_eps, grn_eps)?;
            }
        }
        return Ok(rows);
    }
    let blocks: Vec<Vec<BlockParams>> = (0..STAGES).map(|stage| of_stage(stage).collect()).collect();
    let (mut layers, mut tensors): (Vec<Box<dyn chain::Layer>>, Vec<&Tensor>) = (Vec::new(), Vec::new());
    let stem = (!architecture.is_patchify()).then(|| StemParams::of(params));
    let x = match &stem {
        None => enter(x, params, architecture, geometry)?,
        Some(stem) => {
            let (geometry, bands, channels) = (geometry.clone(), x.dim(1)?, architecture.dim(0));
            let rounding = rounding.and_then(|r| r.stem.clone());
            layers.push(Box::new(stem::Stem { geometry, bands, channels, ln_eps, rounding }));
            tensors.extend(stem.all());
            x.clone()
        }
    };
    for stage in 0..STAGES {
        let channels = architecture.dim(stage);
        if stage > 0 {
            let (geometry, before) = (geometry.clone(), architecture.dim(stage - 1));
            let rounding = rounding.map(|r| r.downsamples[stage - 1].clone());
            let layer =
                downsample::Downsample { geometry, stage: stage - 1, before, after: channels, ln_eps, rounding };
            layers.push(Box::new(layer));
            tensors.extend(downsamples[stage - 1].all());
        }
        for (at, params) in blocks[stage].iter().enumerate() {
            let grid = geometry.grids[stage].clone();
            let rounding = rounding.map(|r| r.blocks[stage][at].clone());
            layers.push(Box::new(block::Block { grid, channels, grn: geometry.grn, ln_eps, grn_eps, rounding }));
            tensors.extend(params.all());
        }
    }
    chain::chain(&x, layers, &tensors)
}

/// The rows of stage 0 from tiles `[batch, bands, height, width]`, by the stem that the architecture has.
pub fn enter(x: &Tensor, params: &Params, architecture: &Architecture, geometry: &Geometry) -> Result<Tensor> {
    match architecture.is_patchify() {
        true => patchify(x, &PatchifyParams::of(params), geometry, architecture.ln_eps),
        false => stem(x, &StemParams::of(params), geometry, architecture.ln_eps),
    }
}

/// See [`elementary::stem`].
pub fn stem(x: &Tensor, p: &StemParams, geometry: &Geometry, ln_eps: f32) -> Result<Tensor> {
    if !fuses(x) {
        return elementary::stem(x, p, geometry, ln_eps);
    }
    let layer = stem::Stem {
        geometry: geometry.clone(),
        bands: x.dim(1)?,
        channels: p.conv_bias.dim(0)?,
        ln_eps,
        rounding: None,
    };
    chain::chain(x, vec![Box::new(layer)], &p.all())
}

/// See [`elementary::downsample`].
pub fn downsample(x: &Tensor, p: &DownsampleParams, geometry: &Geometry, stage: usize, ln_eps: f32) -> Result<Tensor> {
    if !fuses(x) {
        return elementary::downsample(x, p, geometry, stage, ln_eps);
    }
    let (before, after) = (x.dim(1)?, p.bias.dim(0)?);
    let layer = downsample::Downsample { geometry: geometry.clone(), stage, before, after, ln_eps, rounding: None };
    chain::chain(x, vec![Box::new(layer)], &p.all())
}

/// See [`elementary::block`].
pub fn block(x: &Tensor, p: &BlockParams, grid: &Grid, grn: Grn, ln_eps: f32, grn_eps: f32) -> Result<Tensor> {
    if !fuses(x) {
        return elementary::block(x, p, grid, grn, ln_eps, grn_eps);
    }
    let layer = block::Block { grid: grid.clone(), channels: x.dim(1)?, grn, ln_eps, grn_eps, rounding: None };
    chain::chain(x, vec![Box::new(layer)], &p.all())
}

/// See [`elementary::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::linear(x, weight, bias);
    }
    match fuses(x) {
        true => linear::linear(x, weight, bias),
        false => elementary::linear(x, weight, bias),
    }
}

/// See [`elementary::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::layer_norm(x, weight, bias, eps);
    }
    match fuses(x) {
        true => linear::layer_norm(x, weight, bias, eps),
        false => elementary::layer_norm(x, weight, bias, eps),
    }
}

/// See [`elementary::weighted_squares`].
pub fn weighted_squares(x: &Tensor, truth: &Tensor, weights: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::weighted_squares(x, truth, weights);
    }
    match fuses(x) {
        true => losses::weighted_squares(x, truth, weights),
        false => elementary::weighted_squares(x, truth, weights),
    }
}

/// See [`elementary::cross_entropy`].
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let classes = logits.dim(1)?;
    let known = labels.iter().filter(|label| (**label as usize) < classes).count();
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return cuda::cross_entropy(logits, labels, known);
    }
    match fuses(logits) {
        true => losses::cross_entropy(logits, labels.to_vec(), known),
        false => elementary::cross_entropy(logits, labels),
    }
}

/// Rows of `x` `[n, d]`: row `i` of the output is the `index[i]`-th, or `fill` `[1, d]` (f32) where that is `n`. No row of
/// `x` may be picked twice; without `fill` all of the index must be below `n`.
pub fn pick(x: &Tensor, index: Vec<u32>, fill: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::pick(x, index, fill);
    }
    let n = index.len();
    let index = Tensor::from_vec(index, n, x.device())?;
    match fill {
        Some(fill) => Tensor::cat(&[x, fill], 0)?.index_select(&index, 0),
        None => x.index_select(&index, 0),
    }
}

#[cfg(feature = "cuda")]
pub use cuda::open as open_gpu;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{adamw_moment, adamw_update};
