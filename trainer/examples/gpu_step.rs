//! Tiles a second in training steps of atto at 56 pixels and patches of 8 on a GPU, as `benches/gpu/run.sh` compares
//! them: twelve bands in, MMEarth's twelve tasks out, made-up data that is on the GPU beforehand as far as a step takes
//! tensors.
//!
//!     gpu_step BATCH f32|bf16

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use nadir::model::Architecture;
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::optim::{AdamW, AdamWConfig};
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
const STEPS: usize = 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(batch)), Some(precision)) = (arguments.first().map(|b| b.parse::<usize>()), arguments.get(1)) else {
        candle_core::bail!("usage: gpu_step BATCH f32|bf16");
    };
    let dtype = if precision == "bf16" { DType::BF16 } else { DType::F32 };
    let Some(architecture) = Architecture::named("atto", SIDE as u16, 8) else {
        candle_core::bail!("no size is named atto");
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
    let mut rng = StdRng::seed_from_u64(1);
    let model = MpMae::init(&architecture, 12, &tasks, MpMaeConfig::default(), &mut rng, &device)?;
    let mut optimiser = AdamW::new(model.params(), AdamWConfig::default())?;
    let x = Tensor::randn(0f32, 1.0, (batch, 12, SIDE, SIDE), &device)?.to_dtype(dtype)?;
    let mut start = Instant::now();
    for step in 0..STEPS + 10 {
        if step == 10 {
            device.synchronize()?;
            start = Instant::now();
        }
        let mask = Mask::random(batch, SIDE / 8, 0.6, &mut rng);
        let losses = model.loss(&x, &mask, &targets)?;
        optimiser.backward_step(&losses.total, 1e-4)?;
    }
    device.synchronize()?;
    println!("{:.0}", (batch * STEPS) as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
