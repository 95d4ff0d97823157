//! The layers that are found in a graph, in the order in which they compute.

use super::form::{Axis, Coefficients, Map};
use super::source::Name;

/// A layer of the graph.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it computes.
    pub kind: Kind,
    /// The map that it reads; of a residual addition the first.
    pub input: Map,
    /// The value that holds its result, and what that value's axes are.
    pub value: Name,
    /// See there.
    pub axes: Vec<Axis>,
    /// The node that gives it, for messages: `"stages.0/Conv" (Conv)`.
    pub node: String,
}

/// What a layer computes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The tiles.
    Input,
    /// `x scale + shift` for each band, 0 where there is no data.
    Normalise {
        /// 1 / standard deviation.
        scale: Coefficients,
        /// - mean / standard deviation.
        shift: Coefficients,
        /// Whether NaN or the no-data values become 0; the values, one for all bands or one each.
        missing: Option<Option<Coefficients>>,
    },
    /// A convolution, or a matrix product over channels, which is one with a kernel of 1.
    Convolution(Convolution),
    /// LayerNorm over channels.
    LayerNorm {
        /// Weight, one a channel.
        weight: Coefficients,
        /// Bias, one a channel.
        bias: Coefficients,
        /// Epsilon.
        eps: f64,
    },
    /// Exact GELU.
    Gelu,
    /// Global Response Normalization.
    ResponseNorm {
        /// Gamma, one a channel.
        gamma: Coefficients,
        /// Beta, one a channel.
        beta: Coefficients,
        /// Epsilon.
        eps: f64,
    },
    /// Sum of two maps.
    Residual {
        /// The other map.
        other: Map,
    },
    /// Mean over all positions.
    Pool,
}

/// A convolution with a square kernel.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// `[outputs, inputs of a group, kernel, kernel]`.
    pub weight: Vec<f32>,
    /// Outputs.
    pub outputs: usize,
    /// Inputs of a group.
    pub inputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Padding on all four sides.
    pub padding: usize,
    /// Number of groups.
    pub groups: usize,
    /// One an output; `None` if there was none yet.
    pub bias: Option<Vec<f32>>,
}

impl Kind {
    /// In words, for messages.
    pub fn describe(&self) -> String {
        match self {
            Kind::Input => "the tiles".into(),
            Kind::Normalise { .. } => "normalisation of the bands".into(),
            Kind::Convolution(c) if c.groups == 1 && c.kernel == 1 => {
                format!("a pointwise layer from {} to {} channels", c.inputs, c.outputs)
            }
            Kind::Convolution(c) => {
                let Convolution { kernel: k, stride, padding, groups, outputs, .. } = c;
                let depthwise = if *groups == *outputs { "depthwise " } else { "" };
                format!(
                    "a {depthwise}convolution {k}x{k}, stride {stride}, padding {padding}, {groups} group(s), {outputs} outputs"
                )
            }
            Kind::LayerNorm { .. } => "LayerNorm".into(),
            Kind::Gelu => "GELU".into(),
            Kind::ResponseNorm { .. } => "Global Response Normalization".into(),
            Kind::Residual { .. } => "a sum of two maps".into(),
            Kind::Pool => "a mean over all positions".into(),
        }
    }
}
