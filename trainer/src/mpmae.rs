//! MP-MAE: the encoder sees part of a tile, one decoder block and a head per task predict the rest.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use nadir::model::Architecture;
use rand::rngs::StdRng;

use crate::contrast::{self, Contrast};
use crate::encoder::{Encoder, spread};
use crate::loss::Truth;
use crate::mask::Mask;
use crate::ops::grid::Grid;
use crate::ops::{self, BlockParams, Grn};
use crate::parallel::Group;
use crate::params::{Init, Params, fresh};

/// What the loss of [`crate::contrast`] is called among those of the tasks.
const CONTRAST: &str = "contrast";

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
    /// Values a patch, whose mean over the visible patches is read off the encoder's embedding of them linearly; squared error. No
    /// decoder is between.
    EmbeddingRegression {
        /// Number of values.
        width: usize,
    },
}

impl TaskKind {
    /// Whether there is a prediction a pixel rather than a tile.
    pub fn per_pixel(self) -> bool {
        matches!(self, Self::PixelRegression { .. } | Self::PixelClassification { .. })
    }
}

/// The truth for one task over a batch. The tensor may lie on the host, wherever the model computes.
#[derive(Clone, Debug)]
pub enum Target {
    /// f32, `[batch, channels, height, width]` or `[batch, width]`, or `[batch, width, patches, patches]` a side of
    /// [`TaskKind::EmbeddingRegression`]; NaN is missing and ignored.
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
    /// Over what the encoder's Global Response Normalization takes its norms (the batch in MMEarth). The decoder's are
    /// always per sample.
    pub grn: Grn,
    /// How weights are drawn at the start.
    pub init: Init,
    /// Whether and how tiles are told apart besides ([`crate::contrast`]). A batch then holds two views of each tile, the first of all before
    /// the second of all.
    pub contrast: Option<Contrast>,
}

impl Default for MpMaeConfig {
    fn default() -> Self {
        Self {
            decoder_dim: 512,
            mask_ratio: 0.6,
            uncertainty: true,
            decoder_grn_eps: 1e-4,
            grn: Grn::Sample,
            init: Init::Small,
            contrast: None,
        }
    }
}

/// The losses of one batch.
#[derive(Clone, Debug)]
pub struct Losses {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// Every task's own loss before weighting, in the order of the tasks, 0 if nothing of it is known in the batch; then `contrast`, if
    /// there is any.
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
        let encoder = Encoder::init_as(config.init, architecture, bands, rng, device)?;
        let shapes = shapes(architecture, tasks, &config)?;
        let pixel_head = |name: &str| {
            let of =
                |task: &Task| name.strip_prefix("pred.").is_some_and(|n| n.strip_suffix(".weight") == Some(&task.name));
            tasks.iter().any(|task| of(task) && task.kind.per_pixel())
        };
        let mut params = Params::from_arrays(&fresh(&shapes, config.init, pixel_head, rng), device)?;
        params.extend("encoder.", encoder.params(), |name| !name.starts_with("norm."));
        Ok(Self { encoder, tasks: tasks.to_vec(), config, params })
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

    /// All parameters: the encoder's under `encoder.`, then `mask_token`, `proj.*`, `decoder.0.*`, `pred.TASK.*`,
    /// `layer_norm_tmp.*` and `log_vars`.
    ///
    /// The encoder's final `norm` takes no part in pretraining, so it is not among them.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The losses on normalised tiles `x`, `[batch, bands, height, width]` in f32, one target per task in their order.
    ///
    /// Pixel tasks count on hidden patches alone. Missing values are left out of every mean (MMEarth's own code trains
    /// some of them as zeros); a task of which nothing is known in the batch is left out of the total.
    pub fn loss(&self, x: &Tensor, mask: &Mask, targets: &[Target]) -> Result<Losses> {
        self.loss_among(x, mask, targets, &Group::ALONE)
    }

    /// As [`loss`](Self::loss), on this process's part of a batch: the sums over the group of totals, of tasks' losses and
    /// of gradients are those of the whole batch. See [`parallel`](crate::parallel).
    pub fn loss_among(&self, x: &Tensor, mask: &Mask, targets: &[Target], group: &Group) -> Result<Losses> {
        if targets.len() != self.tasks.len() {
            candle_core::bail!("{} targets for {} tasks", targets.len(), self.tasks.len());
        }
        let (rows, grid) = self.encoder.rows(x, Some(mask), self.config.grn)?;
        let decoded = self.decode(&rows, &grid)?;
        let hidden = ops::pick(&decoded, hidden_rows(mask), None)?;
        let (mut pooled, mut embedded) = (None, None);
        let patch = usize::from(self.encoder.architecture().patch_size);
        let truth = |(task, target)| Truth::new(task, target, mask, patch, x.device());
        let truths = self.tasks.iter().zip(targets).map(truth).collect::<Result<Vec<_>>>()?;
        let known: Vec<usize> = truths.iter().map(Truth::known).collect();
        let shares = group.shares(&known).map_err(|error| candle_core::Error::msg(format!("{error:#}")))?;
        let mut total = self.params.get("log_vars").narrow(0, 0, 1)?.affine(0.0, 0.0)?;
        let mut values = Vec::with_capacity(self.tasks.len());
        for (at, ((task, truth), (share, anywhere))) in self.tasks.iter().zip(&truths).zip(shares).enumerate() {
            let head = |x: &Tensor| {
                let get = |part: &str| self.params.get(&format!("pred.{}.{part}", task.name));
                ops::linear(x, get("weight"), get("bias"))
            };
            let from = match task.kind {
                TaskKind::PixelRegression { .. } | TaskKind::PixelClassification { .. } => &hidden,
                TaskKind::ImageRegression { .. } | TaskKind::ImageClassification { .. } => {
                    once(&mut pooled, || self.pool(&decoded, &grid))?
                }
                TaskKind::EmbeddingRegression { .. } => once(&mut embedded, || self.embed(&rows, &grid))?,
            };
            let mut loss = truth.loss(|| head(from))?;
            if group.size() > 1 {
                loss = loss.map(|loss| loss * share).transpose()?;
            }
            let value = match &loss {
                Some(loss) => loss.to_scalar::<f32>()?,
                None => 0.0,
            };
            values.push((task.name.clone(), value));
            let s = self.params.get("log_vars").narrow(0, at, 1)?;
            if let Some(loss) = loss.filter(|_| value != 0.0) {
                let loss = loss.reshape(1)?;
                total = match self.config.uncertainty {
                    true => (total + (s.neg()?.exp()? * loss)?)?,
                    false => (total + loss)?,
                };
            }
            // A task that another process knows something of has its term here too.
            let counts = value != 0.0 || (anywhere && group.size() > 1);
            if counts && self.config.uncertainty {
                total = (total + (s / group.size() as f64)?)?;
            }
        }
        if let Some(Contrast { weight, temperature }) = self.config.contrast {
            let ln_eps = self.encoder.architecture().ln_eps;
            // Each process tells its own views apart.
            let loss = (contrast::loss(&rows, &grid, &self.params, temperature, ln_eps)? / group.size() as f64)?;
            values.push((CONTRAST.to_owned(), loss.to_scalar()?));
            total = (total + (loss.reshape(1)? * weight)?)?;
        }
        Ok(Losses { total: total.squeeze(0)?, tasks: values })
    }

    /// The decoder's output on the full map, `[batch * g * g, decoder_dim]`, from the encoder's visible rows.
    fn decode(&self, rows: &Tensor, grid: &Grid) -> Result<Tensor> {
        let projected = ops::linear(rows, self.params.get("proj.weight"), self.params.get("proj.bias"))?;
        let token = self.params.get("mask_token").reshape((1, self.config.decoder_dim))?;
        let map = spread(&projected, &token, grid)?;
        let ln_eps = self.encoder.architecture().ln_eps;
        let full = Grid::full(grid.side, grid.batch);
        ops::block(
            &map,
            &BlockParams::of(&self.params, "decoder.0"),
            &full,
            Grn::Sample,
            ln_eps,
            self.config.decoder_grn_eps,
        )
    }

    /// The embedding of the visible patches, before the affine of the encoder's final LayerNorm, `[batch, dimension]`.
    fn embed(&self, rows: &Tensor, grid: &Grid) -> Result<Tensor> {
        let d = rows.dim(1)?;
        let pooled = rows.to_dtype(DType::F32)?.reshape((grid.batch, grid.rows, d))?.mean(1)?;
        let (one, zero) = (Tensor::ones(d, DType::F32, rows.device())?, Tensor::zeros(d, DType::F32, rows.device())?);
        ops::layer_norm(&pooled, &one, &zero, self.encoder.architecture().ln_eps)
    }

    /// What the heads of whole tiles see, `[batch, decoder_dim]`.
    fn pool(&self, decoded: &Tensor, grid: &Grid) -> Result<Tensor> {
        let (weight, bias) = (self.params.get("layer_norm_tmp.weight"), self.params.get("layer_norm_tmp.bias"));
        let y = ops::layer_norm(decoded, weight, bias, self.encoder.architecture().ln_eps)?;
        y.to_dtype(DType::F32)?.reshape((grid.batch, grid.side * grid.side, self.config.decoder_dim))?.mean(1)
    }
}

/// What is in `slot`, made at its first use.
fn once(slot: &mut Option<Tensor>, make: impl FnOnce() -> Result<Tensor>) -> Result<&Tensor> {
    Ok(match slot {
        Some(tensor) => tensor,
        None => slot.insert(make()?),
    })
}

/// The rows of the full map that belong to hidden patches.
fn hidden_rows(mask: &Mask) -> Vec<u32> {
    let patches = (mask.side() * mask.side()) as u32;
    (0..mask.batch()).flat_map(|b| mask.hidden(b).into_iter().map(move |p| b as u32 * patches + p)).collect()
}

/// Names and shapes of all parameters outside of the encoder.
fn shapes(a: &Architecture, tasks: &[Task], config: &MpMaeConfig) -> Result<BTreeMap<String, Vec<usize>>> {
    let (d, patch) = (config.decoder_dim, usize::from(a.patch_size));
    let mut shapes = BTreeMap::new();
    let mut pair = |name: String, weight: Vec<usize>| {
        let fresh = shapes.insert(format!("{name}.bias"), vec![weight[0]]).is_none();
        shapes.insert(format!("{name}.weight"), weight);
        fresh
    };
    pair("proj".into(), vec![d, a.embedding_dimension()]);
    pair("decoder.0.dwconv".into(), vec![d, 1, 7, 7]);
    pair("decoder.0.norm".into(), vec![d]);
    pair("decoder.0.pwconv1".into(), vec![4 * d, d]);
    pair("decoder.0.pwconv2".into(), vec![d, 4 * d]);
    pair("layer_norm_tmp".into(), vec![d]);
    for task in tasks {
        let width = match task.kind {
            TaskKind::PixelRegression { channels: n, .. } | TaskKind::PixelClassification { classes: n } => {
                patch * patch * n
            }
            TaskKind::ImageRegression { width: n }
            | TaskKind::ImageClassification { classes: n }
            | TaskKind::EmbeddingRegression { width: n } => n,
        };
        let from = if matches!(task.kind, TaskKind::EmbeddingRegression { .. }) { a.embedding_dimension() } else { d };
        if width == 0 || task.name.is_empty() || task.name.contains('.') {
            candle_core::bail!("task {:?} has nothing to predict, or a name that is empty or holds a dot", task.name);
        }
        if task.name == CONTRAST && config.contrast.is_some() {
            candle_core::bail!("a task is named {CONTRAST}, as the loss beside the tasks");
        }
        if !pair(format!("pred.{}", task.name), vec![width, from]) {
            candle_core::bail!("task {} is named twice", task.name);
        }
    }
    if tasks.is_empty() || d == 0 {
        candle_core::bail!("pretraining needs a task and a decoder");
    }
    for part in ["gamma", "beta"] {
        shapes.insert(format!("decoder.0.grn.{part}"), vec![1, 1, 1, 4 * d]);
    }
    shapes.insert("mask_token".into(), vec![1, d, 1, 1]);
    if config.contrast.is_some() {
        shapes.extend(contrast::shapes(a.embedding_dimension()));
    }
    shapes.insert("log_vars".into(), vec![tasks.len()]);
    Ok(shapes)
}
