//! The encoder, MP-MAE and AdamW against an independent PyTorch implementation (`tests/reference/`).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use nadir::model::Architecture;
use nadir_formats::Tensor as Array;
use nadir_trainer::encoder::Encoder;
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{MpMae, MpMaeConfig, Target, Task, TaskKind};
use nadir_trainer::ops::Grn;
use nadir_trainer::optim::{AdamW, AdamWConfig};
use nadir_trainer::params::Params;
use rand::SeedableRng;
use rand::rngs::StdRng;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

use common::relative;

/// Tensors by name (integers as f32) and one metadata entry as JSON.
fn read(path: &Path, key: &str) -> (BTreeMap<String, Array>, Value) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().as_ref().and_then(|m| m.get(key)).map_or(Value::Null, |j| j.parse().unwrap());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView| match view.dtype() {
        Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::I16 => view.data().as_chunks().0.iter().map(|b| f32::from(i16::from_le_bytes(*b))).collect(),
        Dtype::I8 => view.data().iter().map(|b| f32::from(*b as i8)).collect(),
        other => panic!("{other:?}"),
    };
    let tensors =
        file.iter().map(|(k, v)| (k.to_owned(), Array { shape: v.shape().to_vec(), data: tensor(&v) })).collect();
    (tensors, about)
}

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference").join(name)
}

fn under(tensors: &BTreeMap<String, Array>, prefix: &str) -> BTreeMap<String, Array> {
    let strip = |(k, v): (&String, &Array)| k.strip_prefix(prefix).map(|k| (k.to_owned(), v.clone()));
    tensors.iter().filter_map(strip).collect()
}

fn tensor(array: &Array) -> Tensor {
    Tensor::from_slice(&array.data, array.shape.as_slice(), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn architecture(about: &Value) -> Architecture {
    serde_json::from_value(about.clone()).unwrap()
}

#[test]
fn embeddings_equal_pytorch() {
    let (all, cases) = read(&reference("encoder.safetensors"), "cases");
    for (case, about) in cases.as_object().unwrap() {
        let mut weights = under(&all, "weights.");
        weights.insert("stem.0.weight".into(), all[&format!("{case}.stem.0.weight")].clone());
        let x = &all[&format!("{case}.x")];
        let encoder = Encoder::from_tensors(&architecture(about), x.shape[1], &weights, &Device::Cpu).unwrap();
        let y = &all[&format!("{case}.y")];
        for encoder in [encoder.frozen(), encoder] {
            let error = relative(&flat(&encoder.embed(&tensor(x)).unwrap()), &y.data);
            println!("{case}: relative error {error:.2e}");
            assert!(error <= 1e-5, "{case}: {error}");
        }
    }
}

fn task(about: &Value) -> Task {
    let n = about["n"].as_u64().unwrap() as usize;
    let kind = match about["kind"].as_str().unwrap() {
        "pixel_regression" => {
            TaskKind::PixelRegression { channels: n, normalise_patches: about["normalise"].as_bool().unwrap() }
        }
        "pixel_classification" => TaskKind::PixelClassification { classes: n },
        "image_regression" => TaskKind::ImageRegression { width: n },
        "image_classification" => TaskKind::ImageClassification { classes: n },
        other => panic!("{other}"),
    };
    Task { name: about["name"].as_str().unwrap().into(), kind }
}

fn target(task: &Task, array: &Array) -> Target {
    match task.kind {
        TaskKind::PixelRegression { .. } | TaskKind::ImageRegression { .. } => Target::Values(tensor(array)),
        _ => Target::Classes(tensor(array).to_dtype(candle_core::DType::I64).unwrap()),
    }
}

/// The model, tiles, mask and targets of `mpmae.safetensors` or `mmearth.safetensors`.
fn mpmae(all: &BTreeMap<String, Array>, about: &Value, grn: Grn) -> (MpMae, Tensor, Mask, Vec<Target>) {
    let arch = architecture(&about["arch"]);
    let tasks: Vec<Task> = about["tasks"].as_array().unwrap().iter().map(task).collect();
    let config = MpMaeConfig {
        decoder_dim: about["decoder_dim"].as_u64().unwrap() as usize,
        decoder_grn_eps: about["decoder_grn_eps"].as_f64().unwrap() as f32,
        grn,
        ..MpMaeConfig::default()
    };
    let bands = about["bands"].as_u64().unwrap() as usize;
    let model = MpMae::init(&arch, bands, &tasks, config, &mut StdRng::seed_from_u64(0), &Device::Cpu).unwrap();
    model.params().load(&under(all, "weights.")).unwrap();
    let visible = &all["visible"];
    let visible: Vec<Vec<u32>> =
        visible.data.chunks(visible.shape[1]).map(|row| row.iter().map(|v| *v as u32).collect()).collect();
    let side = usize::from(arch.tile_size) / usize::from(arch.patch_size);
    let mask = Mask::from_visible(side, &visible).unwrap();
    let targets = tasks.iter().map(|t| target(t, &all[&format!("target.{}", t.name)])).collect();
    (model, tensor(&all["x"]), mask, targets)
}

/// Compares losses, total and all gradients with the vectors whose names begin with `prefix`; gives the names of the
/// parameters without a gradient.
fn compare_losses(all: &BTreeMap<String, Array>, about: &Value, grn: Grn, prefix: &str) -> Vec<String> {
    let (model, x, mask, targets) = mpmae(all, about, grn);
    let losses = model.loss(&x, &mask, &targets).unwrap();
    let expected = &all[&format!("{prefix}losses")].data;
    assert_eq!(losses.tasks.len(), expected.len());
    for ((name, value), expected) in losses.tasks.iter().zip(expected) {
        println!("{name}: {value} and {expected}");
        assert!((value - expected).abs() <= 1e-5 * expected.abs(), "{name}: {value}, PyTorch {expected}");
    }
    let (total, expected) = (losses.total.to_scalar::<f32>().unwrap(), all[&format!("{prefix}run")].data[0]);
    assert!((total - expected).abs() <= 1e-5 * expected.abs().max(1.0), "total {total}, PyTorch {expected}");
    let gradients = losses.total.backward().unwrap();
    let expected = under(all, &format!("{prefix}grads."));
    assert_eq!(model.params().vars().count(), expected.len());
    let mut unused = Vec::new();
    let mut worst = 0f64;
    for (name, var) in model.params().vars() {
        let expected = &expected[name].data;
        let gradient = gradients.get(var).map_or(vec![0.0; expected.len()], flat);
        if expected.iter().all(|v| *v == 0.0) {
            assert!(gradient.iter().all(|v| *v == 0.0), "{name} has a gradient, in PyTorch it has none");
            unused.push(name.to_owned());
            continue;
        }
        let error = relative(&gradient, expected);
        worst = worst.max(error);
        assert!(error <= 1e-4, "gradient of {name}: relative error {error}");
    }
    println!("worst gradient: relative error {worst:.2e}");
    unused
}

#[test]
fn losses_and_gradients_equal_pytorch() {
    let (all, about) = read(&reference("mpmae.safetensors"), "about");
    assert_eq!(compare_losses(&all, &about, Grn::Sample, ""), ["pred.unknown.bias", "pred.unknown.weight"]);
}

/// MMEarth's twelve tasks, each missing values, in both semantics of Global Response Normalization
/// (`tests/reference/make_mmearth_vectors.py`).
#[test]
fn mmearths_twelve_tasks_equal_pytorch() {
    let (all, about) = read(&reference("mmearth.safetensors"), "about");
    for (grn, prefix) in [(Grn::Batch, "batch."), (Grn::Sample, "sample.")] {
        println!("{prefix}");
        assert_eq!(compare_losses(&all, &about, grn, prefix), [""; 0]);
    }
    let (batch, sample) =
        (&all["batch.grads.encoder.stages.0.0.grn.gamma"], &all["sample.grads.encoder.stages.0.0.grn.gamma"]);
    assert!(relative(&batch.data, &sample.data) > 1e-2, "the two semantics differ by nothing");
}

#[test]
fn training_follows_pytorch() {
    let (all, about) = read(&reference("mpmae.safetensors"), "about");
    let (model, x, mask, targets) = mpmae(&all, &about, Grn::Sample);
    let mut optimiser = AdamW::new(model.params(), AdamWConfig::default()).unwrap();
    let mut run = Vec::new();
    for step in 0..4 {
        let losses = model.loss(&x, &mask, &targets).unwrap();
        run.push(losses.total.to_scalar::<f32>().unwrap());
        if step < 3 {
            optimiser.backward_step(&losses.total, 1e-3).unwrap();
        }
    }
    let error = relative(&run, &all["run"].data);
    println!("totals {run:?}: relative error {error:.2e}");
    assert!(run[3] < run[0] && error <= 1e-4, "totals {run:?}, PyTorch {:?}", all["run"].data);
}

fn adamw_params(all: &BTreeMap<String, Array>, step: usize) -> BTreeMap<String, Array> {
    under(all, &format!("{step}.")).into_iter().filter(|(k, _)| !k.starts_with("grad.")).collect()
}

#[test]
fn adamw_equals_pytorch_and_resumes() {
    let (all, _) = read(&reference("adamw.safetensors"), "");
    let params = Params::from_arrays(&adamw_params(&all, 0), &Device::Cpu).unwrap();
    let mut optimiser = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let step = |params: &Params, optimiser: &mut AdamW, step: usize| {
        let mut gradients = candle_core::backprop::GradStore::default();
        for (name, array) in under(&all, &format!("{step}.grad.")) {
            gradients.insert(params.get(&name), tensor(&array));
        }
        optimiser.step(&gradients, 0.01 * step as f64).unwrap();
    };
    let mut resumed = None;
    for at in 1..=3 {
        step(&params, &mut optimiser, at);
        for (name, expected) in adamw_params(&all, at) {
            let error = relative(&flat(params.get(&name)), &expected.data);
            assert!(error <= 1e-6, "{name} after step {at}: relative error {error}");
        }
        if at == 2 {
            let copy = Params::from_arrays(&params.export().unwrap(), &Device::Cpu).unwrap();
            let mut again = AdamW::new(&copy, AdamWConfig::default()).unwrap();
            again.load_state(&optimiser.export_state().unwrap()).unwrap();
            resumed = Some((copy, again));
        }
    }
    let (copy, mut again) = resumed.unwrap();
    step(&copy, &mut again, 3);
    assert_eq!(copy.export().unwrap(), params.export().unwrap());
    assert_eq!(again.export_state().unwrap(), optimiser.export_state().unwrap());
    assert!(again.load_state(&BTreeMap::new()).is_err());
}

fn read_npy(path: &Path) -> Array {
    let file = npyz::NpyFile::new(std::io::BufReader::new(std::fs::File::open(path).unwrap())).unwrap();
    let shape = file.shape().iter().map(|d| *d as usize).collect();
    Array { shape, data: file.into_vec().unwrap() }
}

#[test]
fn embeds_like_mmearths_atto() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/peers/models");
    if !folder.exists() {
        println!("SKIPPED: {} is not here, MMEarth's atto is not compared", folder.display());
        return;
    }
    let (mut weights, _) = read(&folder.join("weights_p8.safetensors"), "");
    weights.retain(|name, _| !name.starts_with("head."));
    let arch = Architecture {
        stem_padding: nadir::model::StemPadding::None,
        grn_eps: 1e-4,
        ..Architecture::named("atto", 56, 8).unwrap()
    };
    let encoder = Encoder::from_tensors(&arch, 12, &weights, &Device::Cpu).unwrap().frozen();
    let (x, y) = (read_npy(&folder.join("x_p8_56.npy")), read_npy(&folder.join("y_p8_56.npy")));
    let error = relative(&flat(&encoder.embed(&tensor(&x)).unwrap()), &y.data);
    println!("atto: relative error {error:.2e} over {:?}", y.shape);
    assert!(error <= 1e-5, "{error}");
}
