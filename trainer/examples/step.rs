//! Times training steps of MP-MAE as MMEarth trains it: atto, 12 bands, crops of 56 pixels, patches of 8, twelve tasks.
//!
//! Reads commands from standard input, a line each, and prints seconds a step: `step N` for whole training steps,
//! `masked N` and `dense N` for the encoder's forward and backward pass on visible patches alone and on all.
//! `benches/training/compare.py` runs it beside PyTorch: `cargo run --release --example step BATCH [sample|batch]`.

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use nadir::model::Architecture;
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::ops::Grn;
use nadir_trainer::optim::{AdamW, AdamWConfig};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SIDE: usize = 56;

fn tasks() -> Vec<Task> {
    let pixels = |channels| TaskKind::PixelRegression { channels, normalise_patches: false };
    let kinds = [
        ("sentinel2", TaskKind::PixelRegression { channels: 12, normalise_patches: true }),
        ("sentinel1", pixels(8)),
        ("aster", pixels(2)),
        ("era5", TaskKind::ImageRegression { width: 12 }),
        ("dynamic_world", TaskKind::PixelClassification { classes: 9 }),
        ("canopy_height_eth", pixels(2)),
        ("lat", TaskKind::ImageRegression { width: 2 }),
        ("lon", TaskKind::ImageRegression { width: 2 }),
        ("biome", TaskKind::ImageClassification { classes: 14 }),
        ("eco_region", TaskKind::ImageClassification { classes: 846 }),
        ("month", TaskKind::ImageRegression { width: 2 }),
        ("esa_worldcover", TaskKind::PixelClassification { classes: 11 }),
    ];
    kinds.map(|(name, kind)| Task { name: name.into(), kind }).into()
}

fn target(kind: TaskKind, batch: usize, rng: &mut StdRng) -> Result<Target> {
    let values = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
    let mut classes = |shape: &[usize], count: usize| {
        let labels: Vec<i64> = (0..shape.iter().product()).map(|_| rng.random_range(0..count as i64)).collect();
        Tensor::from_vec(labels, shape, &Device::Cpu)
    };
    Ok(match kind {
        TaskKind::PixelRegression { channels, .. } => Target::Values(values(&[batch, channels, SIDE, SIDE])?),
        TaskKind::ImageRegression { width } => Target::Values(values(&[batch, width])?),
        TaskKind::EmbeddingRegression { .. } => unreachable!("none of MMEarth's tasks"),
        TaskKind::PixelClassification { classes: n } => Target::Classes(classes(&[batch, SIDE, SIDE], n)?),
        TaskKind::ImageClassification { classes: n } => Target::Classes(classes(&[batch], n)?),
    })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let batch: usize = arguments.first().map_or(Ok(64), |b| b.parse())?;
    let grn = if arguments.get(1).is_some_and(|g| g == "sample") { Grn::Sample } else { Grn::Batch };
    let (device, mut rng) = (Device::Cpu, StdRng::seed_from_u64(1));
    let architecture = Architecture::named("atto", SIDE as u16, 8).context("no size is named atto")?;
    let (tasks, config) = (tasks(), MpMaeConfig { grn, ..MpMaeConfig::default() });
    let model = MpMae::init(&architecture, 12, &tasks, config, &mut rng, &device)?;
    let mut optimiser = AdamW::new(model.params(), AdamWConfig::default())?;
    let x = Tensor::randn(0f32, 1.0, (batch, 12, SIDE, SIDE), &device)?;
    let targets = tasks.iter().map(|task| target(task.kind, batch, &mut rng)).collect::<Result<Vec<_>>>()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, n) = line.split_once(' ').context("expected a word and a number")?;
        let n: u32 = n.parse()?;
        let start = Instant::now();
        for _ in 0..n {
            let mask = Mask::random(batch, SIDE / 8, config.mask_ratio, &mut rng);
            match what {
                "step" => optimiser.backward_step(&model.loss(&x, &mask, &targets)?.total, 1e-4)?,
                "masked" => drop(model.encoder().features(&x, Some(&mask))?.sqr()?.mean_all()?.backward()?),
                "dense" => drop(model.encoder().features(&x, None)?.sqr()?.mean_all()?.backward()?),
                other => bail!("{other} is none of step, masked and dense"),
            }
        }
        println!("{}", start.elapsed().as_secs_f64() / f64::from(n));
    }
    Ok(())
}
