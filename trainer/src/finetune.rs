//! Training an encoder on with labels, as MMEarth does downstream: linear heads, the UNet, layer decay, stochastic depth.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`net`] | encoder and head, their losses and predictions |
//! | [`path`] | the encoder with stochastic depth |
//! | [`unet`] | the decoder for pixels |
//! | [`fit`] | the loop over steps |

pub mod fit;
pub mod net;
pub mod path;
pub mod unet;

use nadir::model::{Architecture, STAGES};
use serde::Serialize;

use crate::data::Labels;
use crate::optim::Group;
use net::ENCODER;

/// Tiles that a learning rate is given for.
const BASE_TILES: f64 = 256.0;

/// How long and how fast a net is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Epochs in all.
    pub epochs: u64,
    /// Epochs at the start in which the encoder is held fixed.
    pub frozen_epochs: u64,
    /// Tiles whose gradient is computed at once.
    pub batch: usize,
    /// Batches in a step of the optimiser.
    pub accumulate: usize,
    /// Learning rate for 256 tiles a step; it grows in proportion.
    pub base_lr: f64,
    /// What half a cosine falls to.
    pub min_lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// What the learning rate is multiplied by with each layer towards the input.
    pub layer_decay: f64,
    /// Chance that the last block leaves out its branch for a sample.
    pub drop_path: f64,
    /// Share of a label that is spread over all classes.
    pub smoothing: f64,
    /// Whether tiles are turned and mirrored at random.
    pub flips: bool,
    /// Seed of the head, the order, the symmetries and the stochastic depth.
    pub seed: u64,
}

impl Recipe {
    /// MMEarth's fine-tuning with a class a tile.
    fn of_tiles(seed: u64) -> Self {
        Self {
            epochs: 100,
            frozen_epochs: 0,
            batch: 64,
            accumulate: 16,
            base_lr: 2e-4,
            min_lr: 1e-6,
            weight_decay: 0.3,
            layer_decay: 0.9,
            drop_path: 0.1,
            smoothing: 0.2,
            flips: false,
            seed,
        }
    }

    /// MMEarth's fine-tuning of these labels. Numbers, of which MMEarth tells no recipe, are trained as classes are, without
    /// smoothing.
    pub fn of_labels(labels: &Labels, seed: u64) -> Self {
        let tile = Self::of_tiles(seed);
        match labels {
            Labels::Classes { .. } | Labels::Multi { .. } => tile,
            Labels::Numbers { .. } => Self { smoothing: 0.0, ..tile },
            Labels::Map { .. } | Labels::NumberMap { .. } => Self {
                epochs: 200,
                frozen_epochs: 50,
                batch: 8,
                accumulate: 4,
                base_lr: 1e-2,
                layer_decay: 1.0,
                smoothing: 0.0,
                ..tile
            },
        }
    }

    /// MMEarth's linear probe on `rows` tiles out of `all` of the training split.
    ///
    /// On the whole split steps of 16 batches of 64. On a share of it single batches of 32, and of 8 where the whole split has
    /// at most 2000 tiles (MMEarth's exception for m-eurosat).
    pub fn linear_probe(rows: usize, all: usize, seed: u64) -> Self {
        let (batch, accumulate) = match (rows == all, all <= 2000) {
            (true, _) => (64, 16),
            (false, true) => (8, 1),
            (false, false) => (32, 1),
        };
        Self { batch, accumulate, ..Self::of_tiles(seed) }.fitted(rows)
    }

    /// The same with no larger batches and no longer steps than `rows` tiles fill.
    pub fn fitted(self, rows: usize) -> Self {
        let batch = self.batch.min(rows).max(1);
        Self { batch, accumulate: self.accumulate.min(rows / batch).max(1), ..self }
    }

    /// Steps in an epoch over `rows` tiles. Batches and steps that are not full are left out.
    pub fn steps_per_epoch(&self, rows: usize) -> u64 {
        (rows / self.batch / self.accumulate) as u64
    }

    /// The learning rate at its highest.
    pub fn lr(&self) -> f64 {
        self.base_lr * (self.batch * self.accumulate) as f64 / BASE_TILES
    }

    /// The learning rate after `epoch` epochs, with fraction: half a cosine from [`lr`](Self::lr) to the least.
    pub fn lr_at(&self, epoch: f64) -> f64 {
        let fall = 0.5 * (1.0 + (std::f64::consts::PI * epoch / self.epochs as f64).cos());
        self.min_lr + (self.lr() - self.min_lr) * fall
    }
}

/// How fine-tuning treats the parameter `name` of `rank` dimensions.
///
/// No decay for tensors of at most one dimension and names that end in `.bias`, `.gamma` or `.beta`. The learning rate is
/// multiplied by `layer_decay` once for each layer between the parameter and the head: block b of stage s stands at the number of
/// blocks before it plus 1, the downsampling before stage s + 1 at the number of blocks before stage s plus 1 (one stage early,
/// as in MMEarth's code), all else (initial convolution, stem, final norm, head) at the top. Where the encoder starts frozen
/// (`joins_later`) it has neither weight decay nor layer decay, again as MMEarth's code adds it.
pub fn group(architecture: &Architecture, layer_decay: f64, joins_later: bool, name: &str, rank: usize) -> Group {
    let exempt = rank <= 1 || [".bias", ".gamma", ".beta"].iter().any(|end| name.ends_with(end));
    let Some(name) = name.strip_prefix(ENCODER) else {
        return Group { scale: 1.0, decays: !exempt };
    };
    if joins_later {
        return Group { scale: 1.0, decays: false };
    }
    let blocks_before = |stage: usize| architecture.depths[..stage].iter().map(|d| i32::from(*d)).sum::<i32>();
    let top = blocks_before(STAGES) + 1;
    let mut parts = name.split('.');
    let kind = parts.next();
    let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok()).unwrap_or(0);
    let layer = match kind {
        Some("stages") => {
            let (stage, block) = (number(), number());
            blocks_before(stage) + block as i32 + 1
        }
        Some("downsample_layers") => blocks_before(number()) + 1,
        _ => top,
    };
    Group { scale: layer_decay.powi(top - layer), decays: !exempt }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_decay_as_in_mmearth() {
        let atto = Architecture::named("atto", 56, 8).unwrap();
        let of = |name: &str, rank| group(&atto, 0.9, false, name, rank);
        // 12 blocks, so the top is 13.
        for (name, rank, layer, decays) in [
            ("encoder.initial_conv.0.weight", 4, 13, true),
            ("encoder.stem.0.weight", 4, 13, true),
            ("encoder.stages.0.0.dwconv.weight", 4, 1, true),
            ("encoder.stages.2.5.pwconv1.weight", 2, 10, true),
            ("encoder.stages.2.5.pwconv1.bias", 1, 10, false),
            ("encoder.stages.3.1.grn.gamma", 4, 12, false),
            ("encoder.downsample_layers.0.1.weight", 4, 1, true),
            ("encoder.downsample_layers.2.1.weight", 4, 5, true),
            ("encoder.norm.weight", 1, 13, false),
            ("head.weight", 2, 13, true),
        ] {
            let group = of(name, rank);
            assert!((group.scale - 0.9f64.powi(13 - layer)).abs() < 1e-15, "{name}: {}", group.scale);
            assert_eq!(group.decays, decays, "{name}");
        }
        assert_eq!(group(&atto, 0.9, true, "encoder.stages.0.0.dwconv.weight", 4), Group { scale: 1.0, decays: false });
    }

    #[test]
    fn updates_are_as_few_as_mmearths() {
        // (training tiles, steps in all), as counted from its code.
        for (rows, steps) in [(20000, 1900), (19992, 1900), (15063, 1400), (2000, 100)] {
            let recipe = Recipe::linear_probe(rows, rows, 1);
            assert_eq!(recipe.steps_per_epoch(rows) * recipe.epochs, steps);
            assert!((recipe.lr() - 8e-4).abs() < 1e-12);
        }
        let few = Recipe::linear_probe(200, 20000, 1);
        assert!((few.lr() - 2.5e-5).abs() < 1e-15);
        let eurosat = Recipe::linear_probe(20, 2000, 1);
        assert!((eurosat.lr() - 6.25e-6).abs() < 1e-15);
        assert_eq!(eurosat.steps_per_epoch(20), 2);
        assert!((eurosat.lr_at(0.0) - eurosat.lr()).abs() < 1e-15 && (few.lr_at(100.0) - 1e-6).abs() < 1e-15);
    }
}
