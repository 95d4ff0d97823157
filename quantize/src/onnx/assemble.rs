//! From the layers of a graph to an encoder: which layer must follow which, and the name of each weight.

use std::collections::BTreeMap;

use nadir::model::{Architecture, Place, STAGES, StemPadding};
use nadir_formats::Tensor;

use super::form::Coefficients;
use super::layer::{Convolution, Kind, Layer};
use super::reader::Misfit;

/// What was found of the encoder so far, and what comes next.
#[derive(Clone, Debug)]
pub struct Assembly {
    next: Next,
    /// The map that the next layer must read, and the one that the block began with.
    at: usize,
    residual: usize,
    bands: usize,
    stem_stride: usize,
    padding: Option<StemPadding>,
    depths: Vec<u8>,
    dims: Vec<usize>,
    ln_eps: Option<f64>,
    grn_eps: Option<f64>,
    /// Weights by the names of MMEarth's dense encoder.
    pub tensors: BTreeMap<String, Tensor>,
    /// Of each place, the layer that leaves it.
    pub places: Vec<(Place, usize)>,
    /// The normalisation in the graph, if there is one.
    pub normalise: Option<usize>,
}

/// The layer that must come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Initial,
    InitialNorm,
    InitialGelu,
    Stem,
    StemNorm,
    Block,
    Norm,
    Expand,
    Gelu,
    ResponseNorm,
    Project,
    Residual,
    Downsample,
    HeadNorm,
    Done,
}

impl Default for Assembly {
    fn default() -> Self {
        Self {
            next: Next::Initial,
            at: 0,
            residual: 0,
            bands: 0,
            stem_stride: 1,
            padding: None,
            depths: vec![0],
            dims: Vec::new(),
            ln_eps: None,
            grn_eps: None,
            tensors: BTreeMap::new(),
            places: Vec::new(),
            normalise: None,
        }
    }
}

impl Assembly {
    /// What must come next, in words.
    pub fn expected(&self) -> String {
        let (stage, block) = (self.depths.len() - 1, self.depths[self.depths.len() - 1]);
        let channels = self.dims.last().copied().unwrap_or(0);
        let part = |what: &str| format!("{what} (block {stage}.{block})");
        match self.next {
            Next::Initial => "the stem's initial 3x3 convolution, stride 1, padding 0 or 1, or a patchify stem: a convolution with kernel and \
                              stride 4, 2 or 1, padding 0"
                .into(),
            Next::InitialNorm => "LayerNorm over channels after the initial convolution".into(),
            Next::InitialGelu => "GELU after the stem's first LayerNorm".into(),
            Next::Stem => {
                format!("the stem's depthwise convolution of {channels} channels: kernel and stride 1, 2 or 4")
            }
            Next::StemNorm => "LayerNorm over channels after the stem".into(),
            Next::Block if block == 0 => part("a depthwise 7x7 convolution, padding 3"),
            Next::Block if stage + 1 < STAGES => {
                format!(
                    "a depthwise 7x7 convolution, padding 3 (block {stage}.{block}), or LayerNorm over channels (downsampling {})",
                    stage + 1
                )
            }
            Next::Block => {
                format!(
                    "a depthwise 7x7 convolution, padding 3 (block {stage}.{block}), or the mean over all positions (head)"
                )
            }
            Next::Norm => part("LayerNorm over channels after the depthwise convolution"),
            Next::Expand => part(&format!("a pointwise layer from {channels} to {} channels", 4 * channels)),
            Next::Gelu => part("GELU after the first pointwise layer"),
            Next::ResponseNorm => part("Global Response Normalization after GELU"),
            Next::Project => part(&format!("a pointwise layer from {} to {channels} channels", 4 * channels)),
            Next::Residual => part("the sum with the block's input"),
            Next::Downsample => format!("a 2x2 convolution with stride 2 (downsampling {stage})"),
            Next::HeadNorm => "LayerNorm over channels after the global mean".into(),
            Next::Done => "nothing but a classifier after the embedding".into(),
        }
    }

    /// Takes the next layer, number `number`.
    ///
    /// # Errors
    /// What is wrong with it; what was expected is in [`Assembly::expected`].
    pub fn take(&mut self, number: usize, layer: &Layer) -> Result<(), Misfit> {
        let stage = self.depths.len() - 1;
        let block = format!("stages.{stage}.{}", self.depths[stage]);
        let before = Place::Block { stage: stage as u8, block: self.depths[stage] };
        let channels = self.dims.last().copied().unwrap_or(0);
        let reads = layer.input;
        let wrong = || Err(layer.kind.describe());
        if reads != self.at && !matches!(layer.kind, Kind::Residual { .. }) {
            return Err(format!("{} of another map than the last", layer.kind.describe()));
        }
        self.next = match (self.next, &layer.kind) {
            (Next::Initial, Kind::Normalise { .. }) if number == 1 => {
                self.normalise = Some(number);
                Next::Initial
            }
            (Next::Initial, Kind::Convolution(c))
                if matches!(c.kernel, 1 | 2 | 4) && (c.stride, c.padding, c.groups) == (c.kernel, 0, 1) =>
            {
                self.padding = Some(StemPadding::Patchify);
                self.bands = c.inputs;
                self.stem_stride = c.kernel;
                self.dims.push(c.outputs);
                self.convolution("stem.0", c)?;
                Next::StemNorm
            }
            (Next::Initial, Kind::Convolution(c)) => {
                if (c.kernel, c.stride, c.groups) != (3, 1, 1) || c.padding > 1 {
                    return wrong();
                }
                self.padding = Some(if c.padding == 1 { StemPadding::Same } else { StemPadding::None });
                self.bands = c.inputs;
                self.dims.push(c.outputs);
                self.convolution("initial_conv.0", c)?;
                Next::InitialNorm
            }
            (Next::InitialNorm, Kind::LayerNorm { .. }) => {
                self.norm("initial_conv.1", channels, layer)?;
                Next::InitialGelu
            }
            (Next::InitialGelu, Kind::Gelu) => Next::Stem,
            (Next::Stem, Kind::Convolution(c)) => {
                let padding = if self.padding == Some(StemPadding::Same) { 0 } else { c.kernel / 2 };
                if !matches!(c.kernel, 1 | 2 | 4) || c.stride != c.kernel || !depthwise(c, channels) {
                    return wrong();
                }
                if c.padding != padding {
                    return Err(format!(
                        "{} after an initial convolution that asks for padding {padding} here",
                        layer.kind.describe()
                    ));
                }
                self.stem_stride = c.kernel;
                self.convolution("stem.0", c)?;
                Next::StemNorm
            }
            (Next::StemNorm, Kind::LayerNorm { .. }) => {
                self.norm("stem.1", channels, layer)?;
                self.places.push((Place::Stem, number));
                Next::Block
            }
            (Next::Block, Kind::Convolution(c))
                if (c.kernel, c.stride, c.padding) == (7, 1, 3) && depthwise(c, channels) =>
            {
                self.residual = self.at;
                self.convolution(&format!("{block}.dwconv"), c)?;
                Next::Norm
            }
            (Next::Block, Kind::LayerNorm { .. }) if self.depths[stage] > 0 && stage + 1 < STAGES => {
                self.norm(&format!("downsample_layers.{stage}.0"), channels, layer)?;
                self.depths.push(0);
                Next::Downsample
            }
            (Next::Block, Kind::Pool) if self.depths[stage] > 0 && stage + 1 == STAGES => Next::HeadNorm,
            (Next::Norm, Kind::LayerNorm { .. }) => {
                self.norm(&format!("{block}.norm"), channels, layer)?;
                Next::Expand
            }
            (Next::Expand, Kind::Convolution(c)) if pointwise(c, channels, 4 * channels) => {
                self.convolution(&format!("{block}.pwconv1"), c)?;
                Next::Gelu
            }
            (Next::Gelu, Kind::Gelu) => Next::ResponseNorm,
            (Next::ResponseNorm, Kind::ResponseNorm { gamma, beta, eps }) => {
                one_epsilon(&mut self.grn_eps, *eps, "Global Response Normalization")?;
                for (part, values) in [("gamma", gamma), ("beta", beta)] {
                    self.channels(&format!("{block}.grn.{part}"), values, &[1, 1, 1, 4 * channels])?;
                }
                Next::Project
            }
            (Next::Project, Kind::Convolution(c)) if pointwise(c, 4 * channels, channels) => {
                self.convolution(&format!("{block}.pwconv2"), c)?;
                Next::Residual
            }
            (Next::Residual, Kind::Residual { other }) => {
                let (a, b) = (reads, *other);
                if (a, b) != (self.residual, self.at) && (b, a) != (self.residual, self.at) {
                    return Err("a sum of other maps than the block's input and its second pointwise layer".into());
                }
                let depth = &mut self.depths[stage];
                *depth = depth.checked_add(1).ok_or("more than 255 blocks in a stage")?;
                self.places.push((before, number));
                Next::Block
            }
            (Next::Downsample, Kind::Convolution(c))
                if (c.kernel, c.stride, c.padding, c.groups, c.inputs) == (2, 2, 0, 1, channels) =>
            {
                self.convolution(&format!("downsample_layers.{}.1", stage - 1), c)?;
                self.dims.push(c.outputs);
                self.places.push((Place::Downsample { stage: stage as u8 }, number));
                Next::Block
            }
            (Next::HeadNorm, Kind::LayerNorm { .. }) => {
                self.norm("norm", channels, layer)?;
                self.places.push((Place::Head, number));
                Next::Done
            }
            _ => return wrong(),
        };
        self.at = number;
        Ok(())
    }

    /// The encoder's shape, and its number of bands.
    ///
    /// # Errors
    /// If the graph ends before the embedding, or the shape is beyond the runtime's limits.
    pub fn architecture(&self, tile_size: usize) -> Result<(Architecture, usize), Misfit> {
        if self.next != Next::Done {
            return Err(format!("the graph ends before the embedding; expected next: {}", self.expected()));
        }
        let dim = |i: usize| u16::try_from(self.dims[i]).map_err(|_| format!("{} channels in stage {i}", self.dims[i]));
        let architecture = Architecture {
            tile_size: u16::try_from(tile_size).map_err(|_| format!("tiles of {tile_size} pixels a side"))?,
            patch_size: 8 * self.stem_stride as u8,
            stem_padding: self.padding.unwrap_or(StemPadding::Same),
            depths: [self.depths[0], self.depths[1], self.depths[2], self.depths[3]],
            dims: [dim(0)?, dim(1)?, dim(2)?, dim(3)?],
            grn_eps: self.grn_eps.unwrap_or(1e-6) as f32,
            ln_eps: self.ln_eps.unwrap_or(1e-6) as f32,
        };
        architecture.validate().map_err(|e| e.to_string())?;
        Ok((architecture, self.bands))
    }

    fn convolution(&mut self, name: &str, c: &Convolution) -> Result<(), Misfit> {
        let pointwise = c.kernel == 1 && c.groups == 1 && name != "stem.0";
        let mut shape = vec![c.outputs, c.inputs];
        if !pointwise {
            shape.extend([c.kernel; 2]);
        }
        let bias = c.bias.clone().unwrap_or_else(|| vec![0.0; c.outputs]);
        if bias.len() != c.outputs {
            return Err(format!("{} biases for {} outputs", bias.len(), c.outputs));
        }
        self.tensors.insert(format!("{name}.weight"), Tensor { shape, data: c.weight.clone() });
        self.tensors.insert(format!("{name}.bias"), Tensor { shape: vec![c.outputs], data: bias });
        Ok(())
    }

    fn norm(&mut self, name: &str, channels: usize, layer: &Layer) -> Result<(), Misfit> {
        if let Kind::LayerNorm { weight, bias, eps } = &layer.kind {
            one_epsilon(&mut self.ln_eps, *eps, "LayerNorm")?;
            self.channels(&format!("{name}.weight"), weight, &[channels])?;
            self.channels(&format!("{name}.bias"), bias, &[channels])?;
        }
        Ok(())
    }

    /// Values of the channels under a name; one stands for all.
    fn channels(&mut self, name: &str, values: &Coefficients, shape: &[usize]) -> Result<(), Misfit> {
        let count = shape.iter().product();
        if values.len() != 1 && values.len() != count {
            return Err(format!("{} values for {count} channels ({name})", values.len()));
        }
        let data = (0..count).map(|i| values[i % values.len()] as f32).collect();
        self.tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), data });
        Ok(())
    }
}

/// How far two epsilons may be apart, relative: in f16 1e-6 is a subnormal number with a step of 6 %.
pub const EPSILON_STEP: f64 = 0.04;

/// An encoder has one epsilon for all its norms of a kind.
fn one_epsilon(known: &mut Option<f64>, eps: f64, what: &str) -> Result<(), Misfit> {
    let known = *known.get_or_insert(eps);
    if (known - eps).abs() > EPSILON_STEP * known {
        return Err(format!("{what} with epsilon {eps:e}, those before have {known:e}"));
    }
    Ok(())
}

fn depthwise(c: &Convolution, channels: usize) -> bool {
    (c.groups, c.outputs, c.inputs) == (channels, channels, 1)
}

fn pointwise(c: &Convolution, inputs: usize, outputs: usize) -> bool {
    (c.kernel, c.stride, c.padding, c.groups, c.inputs, c.outputs) == (1, 1, 0, 1, inputs, outputs)
}
