//! Layers one after the other on a machine.

use candle_core::Result;

use super::{Kind, Launcher, Memory, Places, View};
use crate::mask::Mask;

/// A layer on a machine; see [`crate::ops::chain`] for its twin on the host.
pub trait DeviceLayer: Send + Sync {
    /// Number of parameter values.
    fn values(&self) -> usize;

    /// The mask of its rows, if any are hidden. All masks of a chain are the same.
    fn mask(&self) -> Option<&Mask>;

    /// The output, and what [`backward_on`](Self::backward_on) needs.
    fn forward_on(&self, l: &Launcher, places: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)>;

    /// The gradient of the input (nothing if it has none); that of the parameters goes into `grad`, f32.
    fn backward_on(
        &self,
        l: &Launcher,
        places: &Places,
        x: View,
        weights: &Weights,
        g: View,
        kept: Vec<Memory>,
        grad: View,
    ) -> Result<Option<Memory>>;
}

/// A layer's parameters: in f32, and as products of matrices take them.
pub struct Weights<'a> {
    /// All values in f32.
    pub plain: View<'a>,
    /// The same in the kind of the activations.
    pub narrow: View<'a>,
}

/// What a chain's forward pass leaves for the backward pass.
pub struct Trace {
    places: Places,
    /// All parameters in the kind of the activations, if that is not f32.
    narrow: Option<Memory>,
    layers: Vec<Step>,
}

/// One layer's forward pass.
struct Step {
    /// The input; the first layer's is the chain's own.
    x: Option<Memory>,
    kept: Vec<Memory>,
}

/// Passes `x` through the layers; `parameters` are those of each, one after the other. With `keep` also what [`backward`]
/// needs.
pub fn forward(
    l: &Launcher,
    layers: &[&dyn DeviceLayer],
    x: View,
    parameters: View,
    keep: bool,
) -> Result<(Memory, Option<Trace>)> {
    let places = Places::new(l, layers.iter().find_map(|layer| layer.mask()))?;
    let narrow = match l.kind {
        Kind::F32 => None,
        _ => Some(l.narrowed(parameters)?),
    };
    let mut steps = Vec::with_capacity(layers.len());
    let (mut out, mut at): (Option<Memory>, usize) = (None, 0);
    for layer in layers {
        let weights = weights(parameters, narrow.as_ref(), at, layer.values())?;
        at += layer.values();
        let (next, kept) = layer.forward_on(l, &places, out.as_ref().map_or(x, Memory::view), &weights)?;
        let x = out.replace(next);
        if keep {
            steps.push(Step { x, kept });
        }
    }
    let Some(out) = out else { candle_core::bail!("a chain without layers") };
    Ok((out, keep.then_some(Trace { places, narrow, layers: steps })))
}

/// The gradients of the input (nothing if it has none) and of the parameters (f32), from that of the output.
pub fn backward(
    l: &Launcher,
    layers: &[&dyn DeviceLayer],
    x: View,
    parameters: View,
    g: View,
    trace: Trace,
) -> Result<(Option<Memory>, Memory)> {
    let grad = l.floats(parameters.len())?;
    let (mut end, mut flow): (usize, Option<Memory>) = (parameters.len(), None);
    for (at, (layer, step)) in layers.iter().zip(trace.layers).enumerate().rev() {
        let start = end - layer.values();
        let weights = weights(parameters, trace.narrow.as_ref(), start, layer.values())?;
        let own = grad.view().part(start, layer.values())?;
        let x = step.x.as_ref().map_or(x, Memory::view);
        let next = match (at + 1 == layers.len(), &flow) {
            (true, _) => layer.backward_on(l, &trace.places, x, &weights, g, step.kept, own)?,
            (false, Some(g)) => layer.backward_on(l, &trace.places, x, &weights, g.view(), step.kept, own)?,
            (false, None) => candle_core::bail!("a layer inside of a chain has no gradient of its input"),
        };
        flow = next;
        end = start;
    }
    Ok((flow, grad))
}

fn weights<'a>(plain: View<'a>, narrow: Option<&'a Memory>, start: usize, len: usize) -> Result<Weights<'a>> {
    let narrow = narrow.map_or(plain, Memory::view);
    Ok(Weights { plain: plain.part(start, len)?, narrow: narrow.part(start, len)? })
}
