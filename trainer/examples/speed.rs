//! Measures tiles per second of pretraining and embedding: `cargo run --release --example speed [SIZE]`.

use std::time::Instant;

use candle_core::{Device, Tensor};
use nadir::model::Architecture;
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::optim::{AdamW, AdamWConfig};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn main() -> candle_core::Result<()> {
    let sizes: Vec<String> = std::env::args().skip(1).collect();
    let sizes = if sizes.is_empty() { vec!["zepto".to_owned(), "yocto".to_owned()] } else { sizes };
    let (batch, device) = (64, Device::Cpu);
    let x = Tensor::randn(0f32, 1.0, (batch, 3, 64, 64), &device)?;
    for size in sizes {
        let Some(architecture) = Architecture::named(&size, 64, 16) else {
            candle_core::bail!("no size is named {size}");
        };
        for decoder_dim in [128, 256, 512] {
            let tasks = [
                Task { name: "tile".into(), kind: TaskKind::PixelRegression { channels: 3, normalise_patches: true } },
                Task { name: "place".into(), kind: TaskKind::ImageRegression { width: 3 } },
                Task { name: "climate".into(), kind: TaskKind::ImageRegression { width: 6 } },
            ];
            let targets = [
                Target::Values(x.clone()),
                Target::Values(Tensor::randn(0f32, 1.0, (batch, 3), &device)?),
                Target::Values(Tensor::randn(0f32, 1.0, (batch, 6), &device)?),
            ];
            let mut rng = StdRng::seed_from_u64(1);
            let config = MpMaeConfig { decoder_dim, ..MpMaeConfig::default() };
            let model = MpMae::init(&architecture, 3, &tasks, config, &mut rng, &device)?;
            let mut optimiser = AdamW::new(model.params(), AdamWConfig::default())?;
            let mut times = [0.0; 4];
            let steps = 8;
            for step in 0..steps + 2 {
                let mask = Mask::random(batch, 4, config.mask_ratio, &mut rng);
                let start = Instant::now();
                let losses = model.loss(&x, &mask, &targets)?;
                let forward = start.elapsed();
                let gradients = losses.total.backward()?;
                let backward = start.elapsed();
                optimiser.step(&gradients, 1e-4)?;
                let all = start.elapsed();
                drop((losses, gradients));
                if step >= 2 {
                    times[0] += forward.as_secs_f64();
                    times[1] += (backward - forward).as_secs_f64();
                    times[2] += (all - backward).as_secs_f64();
                    times[3] += start.elapsed().as_secs_f64();
                }
            }
            let [forward, backward, update, total] = times.map(|t| t / f64::from(steps) * 1e3);
            println!(
                "{size} pretraining, decoder {decoder_dim}: {:.0} tiles/s ({forward:.0} ms forward, {backward:.0} ms backward, {update:.0} ms update)",
                batch as f64 / total * 1e3
            );
            if decoder_dim == 128 {
                let encoder = model.encoder();
                let time = |frozen: bool| {
                    let encoder = if frozen { encoder.frozen() } else { encoder.clone() };
                    encoder.embed(&x)?;
                    let start = Instant::now();
                    for _ in 0..8 {
                        let y = encoder.embed(&x)?;
                        if !frozen {
                            y.sqr()?.mean_all()?.backward()?;
                        }
                    }
                    Ok::<_, candle_core::Error>(8.0 * batch as f64 / start.elapsed().as_secs_f64())
                };
                println!("{size} embedding: {:.0} tiles/s; with gradients {:.0} tiles/s", time(true)?, time(false)?);
            }
        }
    }
    Ok(())
}
