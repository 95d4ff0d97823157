//! The ConvNeXt V2 encoder, with MMEarth's stem or its own.
//!
//! Global Response Normalization takes its norms per sample, over the visible positions alone, in use always and in
//! pretraining unless [`Grn::Batch`](crate::ops::Grn) is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use nadir::model::{Architecture, StemPadding};
use nadir_formats::{Tensor as Array, expected_shapes};
use rand::rngs::StdRng;

use crate::mask::Mask;
use crate::ops::grid::{Geometry, Grid};
use crate::ops::rounding::Rounding;
use crate::ops::{self, Grn};
use crate::params::{Init, Params, fresh};

/// The stem in the geometry of pretraining, whose map has the positions of whole patches: same padding, or none where that is no
/// question.
pub(crate) fn whole_patches(stem: StemPadding) -> StemPadding {
    match stem {
        StemPadding::Same | StemPadding::None => StemPadding::Same,
        StemPadding::Patchify => StemPadding::Patchify,
    }
}

/// The encoder: weights and the shape that they belong to. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct Encoder {
    architecture: Architecture,
    bands: usize,
    params: Params,
    device: Device,
    rounding: Option<Arc<Rounding>>,
}

impl Encoder {
    /// A fresh encoder for `bands` input bands: weights as [`Init::Small`], biases and Global Response Normalization
    /// at 0, LayerNorm at 1 and 0.
    pub fn init(architecture: &Architecture, bands: usize, rng: &mut StdRng, device: &Device) -> Result<Self> {
        Self::init_as(Init::Small, architecture, bands, rng, device)
    }

    /// A fresh encoder with weights as `init` says.
    pub fn init_as(
        init: Init,
        architecture: &Architecture,
        bands: usize,
        rng: &mut StdRng,
        device: &Device,
    ) -> Result<Self> {
        const PREFIX: &str = "encoder.";
        let shapes = expected_shapes(architecture, bands);
        let shapes = shapes.into_iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape)).collect();
        let arrays = fresh(&shapes, init, |_| false, rng);
        let arrays = arrays.into_iter().map(|(name, array)| (name[PREFIX.len()..].to_owned(), array)).collect();
        Self::from_tensors(architecture, bands, &arrays, device)
    }

    /// The encoder with the given weights, named and shaped as [`expected_shapes`] says.
    pub fn from_tensors(
        architecture: &Architecture,
        bands: usize,
        tensors: &BTreeMap<String, Array>,
        device: &Device,
    ) -> Result<Self> {
        architecture.validate().map_err(candle_core::Error::wrap)?;
        architecture.validate_bands(bands).map_err(candle_core::Error::wrap)?;
        let shapes = expected_shapes(architecture, bands);
        for (name, shape) in &shapes {
            match tensors.get(name) {
                Some(tensor) if tensor.shape == *shape => {}
                Some(t) => candle_core::bail!("tensor {name} has shape {:?}, expected {shape:?}", t.shape),
                None => candle_core::bail!("tensor {name} is missing"),
            }
        }
        if let Some(name) = tensors.keys().find(|name| !shapes.contains_key(*name)) {
            candle_core::bail!("tensor {name} is unexpected");
        }
        let params = Params::from_arrays(tensors, device)?;
        Ok(Self { architecture: *architecture, bands, params, device: device.clone(), rounding: None })
    }

    /// The same weights, shared, without gradients: faster and smaller where only the forward pass is wanted.
    pub fn frozen(&self) -> Self {
        Self { params: self.params.frozen(), ..self.clone() }
    }

    /// The same weights, shared, for `architecture`, which may differ in tile size and stem padding alone.
    ///
    /// # Errors
    /// If the architecture is not possible, or asks for weights of other shapes.
    pub fn reshaped(&self, architecture: &Architecture) -> Result<Self> {
        architecture.validate().map_err(candle_core::Error::wrap)?;
        if expected_shapes(architecture, self.bands) != expected_shapes(&self.architecture, self.bands) {
            candle_core::bail!("the weights do not have the shapes of {architecture:?}");
        }
        Ok(Self { architecture: *architecture, ..self.clone() })
    }

    /// The same encoder with `params` in place of its weights and with its activations rounded; not to be trained itself.
    pub(crate) fn rounded(&self, params: Params, rounding: Arc<Rounding>) -> Self {
        Self { params, rounding: Some(rounding), ..self.clone() }
    }

    /// Its shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Number of input bands.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// Its weights, named as [`expected_shapes`] says.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The last stage's map as rows, `[batch * rows, d]`, and where the rows lie.
    pub(crate) fn rows(&self, x: &Tensor, mask: Option<&Mask>, grn: Grn) -> Result<(Tensor, Grid)> {
        let (batch, bands, height, width) = x.dims4()?;
        let side = usize::from(self.architecture.tile_size);
        if (bands, height, width) != (self.bands, side, side) {
            let expected = self.bands;
            candle_core::bail!(
                "tiles are [{bands}, {height}, {width}], the encoder takes [{expected}, {side}, {side}]"
            );
        }
        if x.dtype() != DType::F32 && !(x.dtype() == DType::BF16 && x.device().is_cuda()) {
            candle_core::bail!("tiles are {:?}, the encoder takes F32, or BF16 on a GPU", x.dtype());
        }
        let geometry = Geometry { grn, ..Geometry::new(&self.architecture, batch, mask)? };
        let rows = ops::encode(x, &self.params, &self.architecture, &geometry, self.rounding.as_deref())?;
        let [.., last] = geometry.grids;
        Ok((rows, last))
    }

    /// The last stage's map `[batch, g, g, d]` of normalised tiles `[batch, bands, height, width]` (f32).
    ///
    /// With a mask, hidden patches take no part and their positions come out as zeros.
    pub fn features(&self, x: &Tensor, mask: Option<&Mask>) -> Result<Tensor> {
        let (mut rows, grid) = self.rows(x, mask, Grn::Sample)?;
        let channels = rows.dim(1)?;
        if !grid.is_full() {
            let zero = Tensor::zeros((1, channels), DType::F32, rows.device())?;
            rows = spread(&rows, &zero, &grid)?;
        }
        rows.reshape((grid.batch, grid.side, grid.side, channels))
    }

    /// The mean over the last stage's map, `[batch, d]`.
    pub fn pooled(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, grid) = self.rows(x, None, Grn::Sample)?;
        let channels = rows.dim(1)?;
        rows.to_dtype(DType::F32)?.reshape((grid.batch, grid.rows, channels))?.mean(1)
    }

    /// The embeddings, `[batch, d]`: [`pooled`](Self::pooled) after the LayerNorm `norm`.
    pub fn embed(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.params.get("norm.weight"), self.params.get("norm.bias"));
        ops::layer_norm(&self.pooled(x)?, weight, bias, self.architecture.ln_eps)
    }
}

/// Puts rows on the full map, `[batch * side * side, channels]`, with the row `fill` `[1, channels]` (f32) at positions
/// that have none.
pub(crate) fn spread(rows: &Tensor, fill: &Tensor, grid: &Grid) -> Result<Tensor> {
    ops::pick(rows, grid.row_of_position(), Some(fill))
}
