//! Training with the integer engine's arithmetic in view: weights and activations are rounded in the forward pass where
//! `nadir-quantize` will round them, by the same scales ([`nadir_formats::scales`]).
//!
//! - Weights: eight bits, one scale an output channel, LayerNorm's weight and bias and Global Response Normalization's beta folded in
//!   as there. They are rounded to the nearest integer; gradients pass as if they were not (the straight-through estimator).
//! - Activations: eight bits at the inputs of matrix products and of GELU ([`crate::ops::rounding`]), by scales that are calibrated once.
//! - Biases take up the mean error of the rounded inputs, as the quantizer has them do.
//!
//! The rest of the engine (16-bit residual maps, 12-bit GELU, norms, multipliers) is finer and left as it is.

mod calibration;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use nadir_formats::scales::{Ends, RowScales};

use crate::encoder::Encoder;
use crate::ops::rounding::Rounding;
use crate::params::Params;

/// Where and how an encoder rounds.
#[derive(Clone, Debug)]
pub struct Quantization {
    rounding: Arc<Rounding>,
    /// By the names of the layers.
    layers: BTreeMap<String, Layer>,
}

/// What decides the integers of a layer.
#[derive(Clone, Debug)]
struct Layer {
    ends: Ends,
    fold: Fold,
    /// Mean of each input before and after rounding; none where inputs are rounded so finely that it does not matter.
    means: Option<[Vec<f32>; 2]>,
}

/// What becomes a part of a layer.
#[derive(Clone, Debug)]
enum Fold {
    Nothing,
    /// Weight and bias of the LayerNorm of this name before it.
    Norm(String),
    /// The tensor beta of this name before it; weights are rounded as multiples of one over these divisors of the inputs.
    Beta(String, Vec<f32>),
}

impl Quantization {
    /// The student with its weights, and what passes through it, rounded. Its gradients are those of the student's own weights. It computes
    /// with the weights as they are now: to be made anew after each step.
    ///
    /// # Errors
    /// If the student has other layers than the encoder that was calibrated.
    pub fn apply(&self, student: &Encoder) -> Result<Encoder> {
        let params = Params::from_tensors(self.round(student.params())?);
        Ok(student.rounded(params, self.rounding.clone()))
    }

    /// All tensors with those of the layers rounded. Biases take up the mean errors of weights and inputs.
    fn round(&self, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        let tensors = params.vars().map(|(name, var)| (name.to_owned(), var.as_tensor().clone()));
        let mut tensors: BTreeMap<String, Tensor> = tensors.collect();
        for (name, layer) in &self.layers {
            let names = [format!("{name}.weight"), format!("{name}.bias")];
            let [weight, bias] = names.each_ref().map(|name| tensors[name].clone());
            let (shape, outputs) = (weight.shape().clone(), weight.dim(0)?);
            let (mut weight, mut bias) = (weight.reshape((outputs, ()))?, bias);
            let columns = weight.dim(1)?;
            let column = |values: &[f32]| Tensor::from_slice(values, (columns, 1), &Device::Cpu);
            let times = |weight: &Tensor, values: &Tensor| weight.matmul(values)?.flatten_all();
            let mut divisors = None;
            match &layer.fold {
                Fold::Nothing => {}
                Fold::Norm(norm) => {
                    // The taps of a channel lie together.
                    let spread = |tensor: &Tensor| -> candle_core::Result<Tensor> {
                        let channels = tensor.elem_count();
                        let taps = tensor.unsqueeze(1)?.broadcast_as((channels, columns / channels))?;
                        taps.contiguous()?.reshape((columns, 1))
                    };
                    let [gain, offset] = ["weight", "bias"].map(|part| format!("{norm}.{part}"));
                    bias = (bias + times(&weight, &spread(&tensors[&offset])?)?)?;
                    weight = weight.broadcast_mul(&spread(&tensors[&gain])?.t()?)?;
                    tensors.insert(gain.clone(), tensors[&gain].ones_like()?);
                    tensors.insert(offset.clone(), tensors[&offset].zeros_like()?);
                }
                Fold::Beta(beta, balance) => {
                    bias = (bias + times(&weight, &tensors[beta].reshape((columns, 1))?)?)?;
                    tensors.insert(beta.clone(), tensors[beta].zeros_like()?);
                    divisors = Some(column(balance)?.t()?);
                }
            }
            let scaled = match &divisors {
                Some(divisors) => weight.broadcast_mul(divisors)?,
                None => weight.clone(),
            };
            let mut rounded = nearest(&scaled, &bias, &layer.ends)?;
            if let Some(divisors) = &divisors {
                rounded = rounded.broadcast_div(divisors)?;
            }
            // Forwards the rounded weights, backwards the exact ones.
            let rounded = (&weight + (rounded - weight.detach())?)?;
            if let Some([exact, seen]) = &layer.means {
                let (exact, seen) = (column(exact)?, column(seen)?);
                bias = (bias + times(&(weight - &rounded)?.detach(), &exact)?)?;
                bias = (bias + times(&rounded, &(exact - seen)?)?)?;
            }
            let [weight_name, bias_name] = names;
            tensors.insert(weight_name, rounded.reshape(shape)?);
            tensors.insert(bias_name, bias);
        }
        Ok(tensors)
    }
}

/// `weight` `[outputs, columns]` at the nearest multiples of its scales, without gradients.
fn nearest(weight: &Tensor, bias: &Tensor, ends: &Ends) -> Result<Tensor> {
    let (outputs, columns) = weight.dims2()?;
    let values = |tensor: &Tensor| -> candle_core::Result<Vec<f64>> {
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    };
    let weight = values(weight)?;
    let scales = RowScales::of(&weight, columns, &values(bias)?, ends).scale;
    let rows = weight.chunks_exact(columns).zip(&scales);
    let rounded = rows
        .flat_map(|(row, scale)| row.iter().map(move |w| ((w / scale).round().clamp(-127.0, 127.0) * scale) as f32));
    Ok(Tensor::from_vec(rounded.collect::<Vec<f32>>(), (outputs, columns), &Device::Cpu)?)
}
