//! Tiles a second in training steps of atto at 56 pixels and patches of 8 on a GPU, as `benches/gpu/run.sh` compares
//! them: twelve bands in, MMEarth's twelve tasks out, made-up data that is on the GPU beforehand as far as a step takes
//! tensors. The steps are those of a run, with its checks.
//!
//!     gpu_step BATCH f32|bf16

use std::time::Duration;

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};
use nadir::model::Architecture;
use nadir_trainer::data::{Sampler, Symmetry};
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{Losses, MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::params::Params;
use nadir_trainer::run::{Objective, Schedule, measure};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Name, values a pixel or tile, whether a pixel, whether classes.
const TASKS: [(&str, usize, bool, bool); 12] = [
    ("sentinel2", 12, true, false),
    ("sentinel1", 8, true, false),
    ("aster", 2, true, false),
    ("era5", 12, false, false),
    ("dynamic_world", 9, true, true),
    ("canopy_height_eth", 2, true, false),
    ("lat", 2, false, false),
    ("lon", 2, false, false),
    ("biome", 14, false, true),
    ("eco_region", 846, false, true),
    ("month", 2, false, false),
    ("esa_worldcover", 11, true, true),
];
const SIDE: usize = 56;
const STEPS: u64 = 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(batch)), Some(precision)) = (arguments.first().map(|b| b.parse::<usize>()), arguments.get(1)) else {
        bail!("usage: gpu_step BATCH f32|bf16");
    };
    let dtype = if precision == "bf16" { DType::BF16 } else { DType::F32 };
    let Some(architecture) = Architecture::named("atto", SIDE as u16, 8) else {
        bail!("no size is named atto");
    };
    let device = nadir_trainer::ops::open_gpu(0)?;
    let task = |(name, n, pixel, classes): (&str, usize, bool, bool)| {
        let kind = match (pixel, classes) {
            (true, false) => TaskKind::PixelRegression { channels: n, normalise_patches: name == "sentinel2" },
            (true, true) => TaskKind::PixelClassification { classes: n },
            (false, false) => TaskKind::ImageRegression { width: n },
            (false, true) => TaskKind::ImageClassification { classes: n },
        };
        Task { name: name.to_owned(), kind }
    };
    let tasks = TASKS.map(task);
    let target = |task: &Task| {
        let shape = match task.kind {
            TaskKind::PixelRegression { channels: n, .. } => vec![batch, n, SIDE, SIDE],
            TaskKind::PixelClassification { .. } => vec![batch, SIDE, SIDE],
            TaskKind::ImageRegression { width: n } => vec![batch, n],
            TaskKind::EmbeddingRegression { .. } => unreachable!("none of MMEarth's tasks"),
            TaskKind::ImageClassification { .. } => vec![batch],
        };
        Ok(match task.kind {
            TaskKind::PixelClassification { .. } | TaskKind::ImageClassification { .. } => {
                let n = shape.iter().product::<usize>() as i64;
                let classes: Vec<i64> = (0..n).map(|i| i % 9).collect();
                Target::Classes(Tensor::from_vec(classes, shape, &Device::Cpu)?)
            }
            _ => Target::Values(Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?),
        })
    };
    let targets = tasks.iter().map(target).collect::<Result<Vec<_>>>()?;
    let model = MpMae::init(&architecture, 12, &tasks, MpMaeConfig::default(), &mut StdRng::seed_from_u64(1), &device)?;
    let x = Tensor::randn(0f32, 1.0, (batch, 12, SIDE, SIDE), &device)?.to_dtype(dtype)?;
    let schedule = Schedule {
        epochs: 1,
        warmup: 0.0,
        lr: 1e-4,
        weight_decay: 0.05,
        logs_per_epoch: 1,
        checkpoint_every: Duration::MAX,
    };
    let steps = Steps { model, x, targets };
    let mut sampler = Sampler::new(batch * (2 * STEPS as usize + 2), batch, 1, false);
    // The first figure has the kernels' compilation and the first allocations in it.
    measure(&schedule, &mut sampler, &steps, STEPS)?;
    println!("{:.0}", batch as f64 / measure(&schedule, &mut sampler, &steps, STEPS)?);
    Ok(())
}

/// Training on one batch.
struct Steps {
    model: MpMae,
    x: Tensor,
    targets: Vec<Target>,
}

impl Objective for Steps {
    fn params(&self) -> &Params {
        self.model.params()
    }

    fn loss(&self, number: u64, draws: &[(usize, Symmetry)]) -> Result<Losses> {
        let mask = Mask::random(draws.len(), SIDE / 8, 0.6, &mut StdRng::seed_from_u64(number));
        Ok(self.model.loss(&self.x, &mask, &self.targets)?)
    }
}
