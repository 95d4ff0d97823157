//! Fused layers one after the other as one operation of candle, which then sees only the ends.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::fused::{values, with_values};

/// What a layer keeps from the forward pass for the backward pass.
pub type Kept = Vec<Vec<f32>>;

/// What a layer must be able to do where the crate is built for GPUs.
#[cfg(any(feature = "cuda", test))]
pub use super::cuda::DeviceLayer as Elsewhere;

/// What a layer must be able to do where the crate is not built for GPUs: nothing.
#[cfg(not(any(feature = "cuda", test)))]
pub trait Elsewhere {}

#[cfg(not(any(feature = "cuda", test)))]
impl<T> Elsewhere for T {}

/// A fused layer over the rows of a batch. Its parameters lie one after the other in a slice.
pub trait Layer: Elsewhere + Send + Sync {
    /// Number of parameter values.
    fn parameters(&self) -> usize;

    /// Channels of a row of the output.
    fn channels(&self) -> usize;

    /// The output; with `keep` also what [`backward`](Self::backward) needs.
    fn forward(&self, x: &[f32], parameters: &[f32], keep: bool) -> (Vec<f32>, Kept);

    /// The gradients of the input (nothing if it has none) and of the parameters, from that of the output.
    fn backward(&self, x: &[f32], parameters: &[f32], g: &[f32], kept: &Kept) -> (Vec<f32>, Vec<f32>);
}

/// Passes `x` through the layers; `parameters` are those of each.
pub fn chain(x: &Tensor, layers: Vec<Box<dyn Layer>>, parameters: &[&Tensor]) -> Result<Tensor> {
    let flat = parameters.iter().map(|p| p.flatten_all()).collect::<Result<Vec<_>>>()?;
    let flat = Tensor::cat(&flat, 0)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let channels = layers.last().map_or(1, |layer| layer.channels());
        let layers = layers.into_iter().map(|layer| -> Box<dyn Elsewhere> { layer }).collect();
        return super::cuda::chained(x, layers, &flat, channels);
    }
    let track = x.track_op() || flat.track_op();
    x.contiguous()?.apply_op2(&flat, Chain { layers, track, traces: Mutex::default() })
}

struct Chain {
    layers: Vec<Box<dyn Layer>>,
    /// Whether a gradient may be asked for.
    track: bool,
    traces: Mutex<Vec<Trace>>,
}

/// One layer's forward pass.
struct Trace {
    /// The input; the first layer's is the operation's own and not copied.
    x: Vec<f32>,
    kept: Kept,
}

impl Chain {
    fn forward(&self, x: &[f32], mut parameters: &[f32], keep: bool) -> (Vec<f32>, Vec<Trace>) {
        let (mut out, mut traces) = (Vec::new(), Vec::new());
        for (at, layer) in self.layers.iter().enumerate() {
            let (own, rest) = parameters.split_at(layer.parameters());
            parameters = rest;
            let (next, kept) = layer.forward(if at == 0 { x } else { &out }, own, keep);
            let x = std::mem::replace(&mut out, next);
            if keep {
                traces.push(Trace { x, kept });
            }
        }
        (out, traces)
    }

    fn backward(&self, x: &[f32], parameters: &[f32], g: &[f32], traces: Vec<Trace>) -> (Vec<f32>, Vec<f32>) {
        let mut grad = vec![0f32; parameters.len()];
        let (mut end, mut flow) = (parameters.len(), Vec::new());
        for (at, (layer, trace)) in self.layers.iter().zip(traces).enumerate().rev() {
            let own = end - layer.parameters()..end;
            end = own.start;
            let g = if at + 1 == self.layers.len() { g } else { &flow };
            let x = if at == 0 { x } else { &trace.x };
            let (x_grad, p_grad) = layer.backward(x, &parameters[own.clone()], g, &trace.kept);
            grad[own].copy_from_slice(&p_grad);
            flow = x_grad;
        }
        (flow, grad)
    }
}

impl CustomOp2 for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, p: &CpuStorage, pl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, traces) = self.forward(values(x, xl)?, values(p, pl)?, self.track);
        if let Ok(mut slot) = self.traces.lock() {
            *slot = traces;
        }
        let channels = self.layers.last().map_or(1, |layer| layer.channels());
        let rows = out.len() / channels;
        Ok((CpuStorage::F32(out), (rows, channels).into()))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut traces = self.traces.lock().map(|mut slot| std::mem::take(&mut *slot)).unwrap_or_default();
        let (x_grad, p_grad) = with_values([x, p, g], |[x, p, g]| {
            // The first backward pass uses up what was kept; a second one computes it again.
            if traces.is_empty() {
                traces = self.forward(x, p, true).1;
            }
            self.backward(x, p, g, traces)
        })?;
        let x_grad = match x_grad.is_empty() {
            true => None,
            false => Some(Tensor::from_vec(x_grad, x.shape(), x.device())?),
        };
        Ok((x_grad, Some(Tensor::from_vec(p_grad, p.shape(), p.device())?)))
    }
}
