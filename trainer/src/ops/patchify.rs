//! The stem of the original ConvNeXt: one convolution of whole patches, then LayerNorm, from tiles to rows.
//!
//! Kernel and stride are the same and nothing is padded, so each row is a linear layer of its own pixels. It is put together from
//! the operations beside it, which are fused where they can be.

use candle_core::{Result, Tensor};

use super::grid::Geometry;
use super::{layer_norm, linear, pick};
use crate::params::Params;

/// The tensors of a patchify stem.
#[derive(Clone, Debug)]
pub struct PatchifyParams {
    /// `[d, bands, k, k]`.
    pub weight: Tensor,
    /// `[d]`.
    pub bias: Tensor,
    /// `[d]`.
    pub norm_weight: Tensor,
    /// `[d]`.
    pub norm_bias: Tensor,
}

impl PatchifyParams {
    /// The encoder's stem.
    pub fn of(params: &Params) -> Self {
        let get = |name: &str| params.get(name).clone();
        Self {
            weight: get("stem.0.weight"),
            bias: get("stem.0.bias"),
            norm_weight: get("stem.1.weight"),
            norm_bias: get("stem.1.bias"),
        }
    }
}

/// Convolution and LayerNorm: tiles `[batch, bands, height, width]` to the rows of stage 0, on any device and type. Pixels of hidden
/// patches, and those past the last whole patch, take no part.
pub fn patchify(x: &Tensor, p: &PatchifyParams, geometry: &Geometry, ln_eps: f32) -> Result<Tensor> {
    layer_norm(&convolve(x, p, geometry)?, &p.norm_weight, &p.norm_bias, ln_eps)
}

/// The rows before LayerNorm.
pub(super) fn convolve(x: &Tensor, p: &PatchifyParams, geometry: &Geometry) -> Result<Tensor> {
    let (batch, bands, ..) = x.dims4()?;
    let (grid, k) = (&geometry.grids[0], geometry.stride);
    let (side, columns) = (grid.side, bands * k * k);
    let x = x.narrow(2, 0, side * k)?.narrow(3, 0, side * k)?;
    let patches = x.contiguous()?.reshape(&[batch, bands, side, k, side, k][..])?.permute([0, 2, 4, 1, 3, 5])?;
    let mut rows = patches.reshape((batch * side * side, columns))?;
    if grid.mask().is_some() {
        let of = |sample: usize| grid.positions(sample).iter().map(move |at| (sample * side * side) as u32 + at);
        rows = pick(&rows, (0..batch).flat_map(of).collect(), None)?;
    }
    linear(&rows, &p.weight.reshape((p.bias.dim(0)?, columns))?, &p.bias)
}
