//! MP-MAE: the encoder sees part of a tile, one decoder block and a head per task predict the rest.

use candle_core::{Device, Result, Tensor};
use nadir::model::Architecture;
use rand::rngs::StdRng;

use crate::encoder::Encoder;
use crate::mask::Mask;
use crate::params::Params;

/// One thing that is predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its name, part of its head's parameter names (`pred.NAME.weight`); no dots.
    pub name: String,
    /// What kind of prediction.
    pub kind: TaskKind,
}

/// The kinds of predictions, which fix head, target and loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Values per pixel; squared error on hidden patches.
    PixelRegression {
        /// Values per pixel.
        channels: usize,
        /// Whether each patch's target is brought to zero mean and unit variance, all channels together.
        normalise_patches: bool,
    },
    /// A class per pixel; cross entropy on the pixels of hidden patches.
    PixelClassification {
        /// Number of classes.
        classes: usize,
    },
    /// Values per tile; squared error.
    ImageRegression {
        /// Number of values.
        width: usize,
    },
    /// A class per tile; cross entropy.
    ImageClassification {
        /// Number of classes.
        classes: usize,
    },
}

/// The truth for one task over a batch.
#[derive(Clone, Debug)]
pub enum Target {
    /// f32, `[batch, channels, height, width]` or `[batch, width]`; NaN is missing and ignored.
    Values(Tensor),
    /// i64, `[batch, height, width]` or `[batch]`; -1 is missing and ignored.
    Classes(Tensor),
}

/// The parts of MP-MAE that are free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MpMaeConfig {
    /// Channels of the decoder block (512 in MMEarth).
    pub decoder_dim: usize,
    /// Share of the patches that is hidden (0.6 in MMEarth). [`Mask::random`] takes it.
    pub mask_ratio: f64,
    /// Whether tasks are weighted by learned log variances (`exp(-s) L + s`) or just added.
    pub uncertainty: bool,
    /// Epsilon of the decoder's Global Response Normalization (1e-4 in MMEarth).
    pub decoder_grn_eps: f32,
}

impl Default for MpMaeConfig {
    fn default() -> Self {
        Self { decoder_dim: 512, mask_ratio: 0.6, uncertainty: true, decoder_grn_eps: 1e-4 }
    }
}

/// The losses of one batch.
#[derive(Clone, Debug)]
pub struct Losses {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// Every task's own loss before weighting, in the order of the tasks; 0 if nothing of it is known in the batch.
    pub tasks: Vec<(String, f32)>,
}

/// The encoder, the decoder and the heads.
#[derive(Clone, Debug)]
pub struct MpMae {
    encoder: Encoder,
    tasks: Vec<Task>,
    config: MpMaeConfig,
    params: Params,
}

impl MpMae {
    /// A fresh model for the tasks.
    pub fn init(
        architecture: &Architecture,
        bands: usize,
        tasks: &[Task],
        config: MpMaeConfig,
        rng: &mut StdRng,
        device: &Device,
    ) -> Result<Self> {
        let _ = (architecture, bands, tasks, config, rng, device);
        todo!()
    }

    /// The encoder; it shares its weights with this model.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The tasks, in order.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The free parts.
    pub fn config(&self) -> &MpMaeConfig {
        &self.config
    }

    /// All parameters: the encoder's under `encoder.`, then `mask_token`, `proj.*`, `decoder.*`, `pred.TASK.*`,
    /// `layer_norm_tmp.*` and `log_vars`.
    ///
    /// The encoder's final `norm` takes no part in pretraining, so it is not among them.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The losses on normalised tiles `x`, `[batch, bands, height, width]` in f32, one target per task in their order.
    pub fn loss(&self, x: &Tensor, mask: &Mask, targets: &[Target]) -> Result<Losses> {
        let _ = (x, mask, targets);
        todo!()
    }
}
