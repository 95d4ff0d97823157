//! The float encoder in candle, in f32: written from the paper's formulas with candle's own operators, so that it shares neither code nor
//! layout with the reference and the runtime.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor};
use nadir::Tile;
use nadir::model::{Architecture, Place, STAGES};
use nadir_formats::{BandCard, Encoder};

use crate::maps::PlaceMap;
use crate::reference::normalised;

/// An encoder in candle.
pub struct CandleEncoder {
    architecture: Architecture,
    bands: Vec<BandCard>,
    weights: BTreeMap<String, Tensor>,
}

impl CandleEncoder {
    /// The weights of `encoder`.
    ///
    /// # Errors
    /// If candle has no memory for them.
    pub fn new(encoder: &Encoder) -> Result<Self> {
        let weight = |(name, t): (&String, &nadir_formats::Tensor)| {
            Ok((name.clone(), Tensor::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?))
        };
        Ok(Self {
            architecture: encoder.card.architecture,
            bands: encoder.card.bands.clone(),
            weights: encoder.tensors.iter().map(weight).collect::<Result<_>>()?,
        })
    }

    /// The maps of one tile `[bands, height, width]`.
    ///
    /// # Errors
    /// If candle fails.
    ///
    /// # Panics
    /// If the tile has another length than the encoder takes.
    pub fn maps(&self, tile: Tile<'_>) -> Result<Vec<PlaceMap>> {
        let arch = &self.architecture;
        let side = usize::from(arch.tile_size);
        let values = normalised(tile, &self.bands, arch.tile_size);
        let mut maps = Vec::new();
        let mut x = Tensor::from_vec(values, (1, self.bands.len(), side, side), &Device::Cpu)?;
        if arch.is_patchify() {
            x = self.convolution(&x, "stem.0", arch.stem_stride(), 0, 1)?;
        } else {
            x = self.convolution(&x, "initial_conv.0", 1, arch.initial_padding(), 1)?;
            x = self.norm(&x, "initial_conv.1")?.gelu_erf()?;
            x = self.convolution(&x, "stem.0", arch.stem_stride(), arch.stem_pad(), arch.dim(0))?;
        }
        x = self.norm(&x, "stem.1")?;
        maps.push(map(Place::Stem, &x)?);
        for stage in 0..STAGES {
            let channels = arch.dim(stage);
            if stage > 0 {
                let name = format!("downsample_layers.{}", stage - 1);
                x = self.convolution(&self.norm(&x, &format!("{name}.0"))?, &format!("{name}.1"), 2, 0, 1)?;
                maps.push(map(Place::Downsample { stage: stage as u8 }, &x)?);
            }
            for block in 0..arch.depth(stage) {
                let name = format!("stages.{stage}.{block}");
                let y = self.convolution(&x, &format!("{name}.dwconv"), 1, 3, channels)?;
                let y = self.norm(&y, &format!("{name}.norm"))?;
                let y = self.pointwise(&y, &format!("{name}.pwconv1"))?.gelu_erf()?;
                let y = self.response_norm(&y, &format!("{name}.grn"))?;
                x = (x + self.pointwise(&y, &format!("{name}.pwconv2"))?)?;
                maps.push(map(Place::Block { stage: stage as u8, block: block as u8 }, &x)?);
            }
        }
        let pooled = x.mean_keepdim(D::Minus1)?.mean_keepdim(D::Minus2)?;
        maps.push(map(Place::Head, &self.norm(&pooled, "norm")?)?);
        Ok(maps)
    }

    /// A vector of the channels, to be spread over a map.
    fn channels(&self, name: &str) -> Result<Tensor> {
        self.weights[name].flatten_all()?.reshape((1, (), 1, 1))
    }

    fn convolution(&self, x: &Tensor, name: &str, stride: usize, padding: usize, groups: usize) -> Result<Tensor> {
        let y = x.conv2d(&self.weights[&format!("{name}.weight")], padding, stride, 1, groups)?;
        y.broadcast_add(&self.channels(&format!("{name}.bias"))?)
    }

    /// A matrix product over the channels of each position.
    fn pointwise(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let y = self.weights[&format!("{name}.weight")].matmul(&x.flatten_from(2)?.squeeze(0)?)?;
        y.reshape((1, (), height, width))?.broadcast_add(&self.channels(&format!("{name}.bias"))?)
    }

    /// LayerNorm over channels.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let deviation = (variance + f64::from(self.architecture.ln_eps))?.sqrt()?;
        let scaled = centred.broadcast_div(&deviation)?.broadcast_mul(&self.channels(&format!("{name}.weight"))?)?;
        scaled.broadcast_add(&self.channels(&format!("{name}.bias"))?)
    }

    /// Global Response Normalization.
    fn response_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let norms = x.sqr()?.sum_keepdim((2, 3))?.sqrt()?;
        let mean = (norms.mean_keepdim(1)? + f64::from(self.architecture.grn_eps))?;
        let scaled = x.broadcast_mul(&norms.broadcast_div(&mean)?)?;
        let response = scaled.broadcast_mul(&self.channels(&format!("{name}.gamma"))?)?;
        (response.broadcast_add(&self.channels(&format!("{name}.beta"))?)? + x)?.contiguous()
    }
}

/// `[1, channels, height, width]` as a map of a place.
fn map(place: Place, x: &Tensor) -> Result<PlaceMap> {
    let values: Vec<f32> = x.flatten_from(2)?.squeeze(0)?.t()?.flatten_all()?.to_vec1()?;
    Ok(PlaceMap { place, channels: x.dim(1)?, values: values.into_iter().map(f64::from).collect() })
}
