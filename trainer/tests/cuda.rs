//! MP-MAE on the GPU against the CPU: losses, gradients and a step of AdamW. Says SKIPPED where there is no GPU.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Tensor};
use nadir::model::Architecture;
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::ops::Grn;
use nadir_trainer::optim::{AdamW, AdamWConfig};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// |a - b| / |b|.
fn relative(a: &[f64], b: &[f64]) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (difference / b.iter().map(|b| b * b).sum::<f64>().max(f64::MIN_POSITIVE)).sqrt()
}

/// Losses, then gradients and parameters after a step, each over all parameters.
fn run(device: &Device, dtype: DType, grn: Grn) -> [Vec<f64>; 3] {
    let mut rng = StdRng::seed_from_u64(1);
    let architecture =
        Architecture { dims: [16, 24, 32, 40], depths: [1, 1, 2, 1], ..Architecture::named("yocto", 56, 8).unwrap() };
    let kinds = [
        TaskKind::PixelRegression { channels: 4, normalise_patches: true },
        TaskKind::PixelClassification { classes: 11 },
        TaskKind::ImageRegression { width: 5 },
        TaskKind::ImageClassification { classes: 7 },
    ];
    let tasks: Vec<Task> =
        kinds.iter().enumerate().map(|(i, kind)| Task { name: format!("t{i}"), kind: *kind }).collect();
    let config = MpMaeConfig { decoder_dim: 48, grn, ..MpMaeConfig::default() };
    let model = MpMae::init(&architecture, 4, &tasks, config, &mut rng, device).unwrap();
    // Weights as large as those of a trained model, or hardly any gradient flows.
    for (name, var) in model.params().vars() {
        let values: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-0.3..0.3)).collect();
        model.params().set(name, &values).unwrap();
    }
    let mut values = |n: usize| (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
    let x = Tensor::from_vec(values(4 * 4 * 56 * 56), (4, 4, 56, 56), device).unwrap().to_dtype(dtype).unwrap();
    let classes = |n: usize, k: i64| (0..n as i64).map(|i| i % (k + 1) - 1).collect::<Vec<_>>();
    let host = &Device::Cpu;
    let targets = [
        Target::Values(Tensor::from_vec(values(4 * 4 * 56 * 56), (4, 4, 56, 56), host).unwrap()),
        Target::Classes(Tensor::from_vec(classes(4 * 56 * 56, 11), (4, 56, 56), host).unwrap()),
        Target::Values(Tensor::from_vec(values(20), (4, 5), host).unwrap()),
        Target::Classes(Tensor::from_vec(vec![3i64, -1, 0, 6], 4, host).unwrap()),
    ];
    let mask = Mask::random(4, 7, 0.6, &mut rng);
    let losses = model.loss(&x, &mask, &targets).unwrap();
    let gradients = losses.total.backward().unwrap();
    let all: Vec<f64> = model.params().vars().flat_map(|(_, var)| flat(gradients.get(var).unwrap())).collect();
    let mut optimiser = AdamW::new(model.params(), AdamWConfig::default()).unwrap();
    optimiser.step(&gradients, 1e-2).unwrap();
    let after: Vec<f64> = model.params().vars().flat_map(|(_, var)| flat(var)).collect();
    [losses.tasks.iter().map(|(_, loss)| f64::from(*loss)).collect(), all, after]
}

#[test]
fn cuda_equals_the_cpu() {
    let Ok(device) = nadir_trainer::ops::open_gpu(0) else {
        eprintln!("SKIPPED: there is no GPU");
        return;
    };
    for grn in [Grn::Sample, Grn::Batch] {
        let exact = run(&Device::Cpu, DType::F32, grn);
        for (dtype, bounds) in [(DType::F32, [1e-5, 1e-4, 1e-4]), (DType::BF16, [2e-2, 5e-2, 5e-2])] {
            let got = run(&device, dtype, grn);
            for (((what, bound), got), exact) in
                ["losses", "gradients", "parameters after a step"].iter().zip(bounds).zip(&got).zip(&exact)
            {
                let error = relative(got, exact);
                println!("{grn:?}, {dtype:?}: {what}: relative error {error:.1e}");
                assert!(error <= bound, "{grn:?}, {dtype:?}: {what}: relative error {error:.1e}");
            }
        }
        // Sums are in a fixed order.
        assert!(run(&device, DType::BF16, grn) == run(&device, DType::BF16, grn), "two runs differ");
    }
}
