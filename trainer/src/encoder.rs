//! The ConvNeXt V2 encoder with MMEarth's stem.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use nadir::model::Architecture;
use nadir_formats::Tensor as Array;
use rand::rngs::StdRng;

use crate::mask::Mask;
use crate::params::Params;

/// The encoder: weights and the shape that they belong to.
#[derive(Clone, Debug)]
pub struct Encoder {
    architecture: Architecture,
    bands: usize,
    params: Params,
    device: Device,
}

impl Encoder {
    /// A fresh encoder for `bands` input bands: weights from a normal distribution of standard deviation 0.02 cut at
    /// two deviations, biases and Global Response Normalization at 0, LayerNorm at 1 and 0.
    pub fn init(architecture: &Architecture, bands: usize, rng: &mut StdRng, device: &Device) -> Result<Self> {
        let _ = (architecture, bands, rng, device);
        todo!()
    }

    /// The encoder with the given weights, named and shaped as [`nadir_formats::expected_shapes`] says.
    pub fn from_tensors(
        architecture: &Architecture,
        bands: usize,
        tensors: &BTreeMap<String, Array>,
        device: &Device,
    ) -> Result<Self> {
        let _ = (architecture, bands, tensors, device);
        todo!()
    }

    /// Its shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Number of input bands.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// Its weights, named as [`nadir_formats::expected_shapes`] says.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The last stage's map `[batch, g, g, d]` of normalised tiles `[batch, bands, height, width]` (f32).
    ///
    /// With a mask, hidden patches take no part and their positions come out as zeros.
    pub fn features(&self, x: &Tensor, mask: Option<&Mask>) -> Result<Tensor> {
        let _ = (x, mask);
        todo!()
    }

    /// The mean over the last stage's map, `[batch, d]`.
    pub fn pooled(&self, x: &Tensor) -> Result<Tensor> {
        let _ = x;
        todo!()
    }

    /// The embeddings, `[batch, d]`: [`pooled`](Self::pooled) after the LayerNorm `norm`.
    pub fn embed(&self, x: &Tensor) -> Result<Tensor> {
        let _ = x;
        todo!()
    }
}
