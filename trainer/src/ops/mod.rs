//! The operations of the encoder and the decoder on maps held as rows.
//!
//! On the CPU in f32 they are fused, with gradients of their own; elsewhere they are put together from candle's
//! operations ([`elementary`]).

mod block;
mod downsample;
pub mod elementary;
mod fused;
mod gemm;
pub mod grid;
mod kernels;
mod linear;
mod stem;

use candle_core::{DType, Result, Tensor};

use crate::params::Params;
use grid::{Geometry, Grid};

/// The tensors of the initial convolution and the stem.
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
}

/// Whether the fused operations take `x`.
fn fuses(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// See [`elementary::stem`].
pub fn stem(x: &Tensor, p: &StemParams, geometry: &Geometry, ln_eps: f32) -> Result<Tensor> {
    match fuses(x) {
        true => stem::stem(x, p, geometry, ln_eps),
        false => elementary::stem(x, p, geometry, ln_eps),
    }
}

/// See [`elementary::block`].
pub fn block(x: &Tensor, p: &BlockParams, grid: &Grid, ln_eps: f32, grn_eps: f32) -> Result<Tensor> {
    match fuses(x) {
        true => block::block(x, p, grid, ln_eps, grn_eps),
        false => elementary::block(x, p, grid, ln_eps, grn_eps),
    }
}

/// See [`elementary::downsample`].
pub fn downsample(x: &Tensor, p: &DownsampleParams, geometry: &Geometry, stage: usize, ln_eps: f32) -> Result<Tensor> {
    match fuses(x) {
        true => downsample::downsample(x, p, geometry, stage, ln_eps),
        false => elementary::downsample(x, p, geometry, stage, ln_eps),
    }
}

/// See [`elementary::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    match fuses(x) {
        true => linear::linear(x, weight, bias),
        false => elementary::linear(x, weight, bias),
    }
}

/// See [`elementary::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    match fuses(x) {
        true => linear::layer_norm(x, weight, bias, eps),
        false => elementary::layer_norm(x, weight, bias, eps),
    }
}
