//! The shipped models on the shipped tiles, by the commands: the trainer's float embeddings, the runtime's in each precision, and
//! what triage makes of them.

use std::path::Path;

use nadir_formats::{Matrix, read_integers};
use nadir_tests::{cosine, root, run};
use serde_json::Value;

const TILES: &str = "samples/eurosat-rgb/tiles.npy";
const LABELS: &str = "samples/eurosat-rgb/labels.npy";
const SPLIT: &str = "samples/eurosat-rgb/split.npy";

/// Rows of the held-out part of the samples.
fn held_out() -> Vec<usize> {
    let split = read_integers(&root().join(SPLIT)).unwrap();
    (0..split.len()).filter(|&i| split[i] == 2).collect()
}

fn embed(program: &str, model: &str, out: &Path) -> Matrix {
    run(program, &format!("embed --model models/{model} --tiles {TILES} --out {}", out.display())).unwrap();
    Matrix::read(out).unwrap()
}

/// k-NN accuracy in percent on the held-out tiles.
fn accuracy(embeddings: &Path) -> f64 {
    let arguments = format!("probe --embeddings {} --labels {LABELS} --split {SPLIT} --json", embeddings.display());
    let json: Value = serde_json::from_slice(&run("trainer", &arguments).unwrap().stdout).unwrap();
    100.0 * json["knn"]["accuracy"].as_f64().unwrap()
}

#[test]
fn every_precision_follows_the_trainer() {
    let folder = tempfile::tempdir().unwrap();
    let rows = held_out();
    for size in ["yocto", "zepto"] {
        let path = |name: &str| folder.path().join(format!("{size}-{name}.npy"));
        let float = embed("trainer", &format!("{size}-rgb.safetensors"), &path("float"));
        let least =
            |matrix: &Matrix| rows.iter().map(|&i| cosine(matrix.row(i), float.row(i))).fold(f64::INFINITY, f64::min);

        let f32 = embed("quantize", &format!("{size}-rgb-f32.nadir"), &path("f32"));
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let zeros = vec![0.0; float.data.len()];
        let error = (distance(&f32.data, &float.data) / distance(&float.data, &zeros)).sqrt();
        assert!(error <= 1e-5, "{size} f32: relative error {error:e}");

        let f16 = embed("quantize", &format!("{size}-rgb-f16.nadir"), &path("f16"));
        assert!(least(&f16) >= 0.9999, "{size} f16: {}", least(&f16));

        let int8 = embed("quantize", &format!("{size}-rgb-int8.nadir"), &path("int8"));
        assert!(least(&int8) >= 0.98, "{size} int8: {}", least(&int8));
        let (before, after) = (accuracy(&path("float")), accuracy(&path("int8")));
        println!(
            "{size}: f32 error {error:.1e}, least cosine f16 {:.6}, int8 {:.4}; k-NN float {before:.1} %, int8 {after:.1} %",
            least(&f16),
            least(&int8)
        );
        assert!((before - after).abs() <= 1.5, "{size}: k-NN float {before} %, int8 {after} %");
        // Ten classes: an encoder that learned nothing is right for one tile in ten, untrained features for two or three.
        assert!(before > 40.0, "{size}: k-NN {before} %");
    }
}

#[test]
fn triage_keeps_what_is_wanted_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (all, out) = (folder.path(), folder.path().join("outbox"));
    let rows = held_out();
    let tiles = nadir_formats::Tiles::read(&root().join(TILES)).unwrap();
    tiles.pick(&rows).write(&all.join("stream.npy")).unwrap();
    let labels = read_integers(&root().join(LABELS)).unwrap();
    let wanted = 4;
    let budget = 15 * rows.len() * tiles.tile_len() / 100;

    let (model, prototypes) = ("models/yocto-rgb-int8.nadir", all.join("prototypes"));
    run(
        "triage",
        &format!(
            "prototypes --model {model} --tiles {TILES} --labels {LABELS} --split {SPLIT} --use 0 --wanted {wanted} --out {}",
            prototypes.display()
        ),
    )
    .unwrap();
    run(
        "triage",
        &format!(
            "run --model {model} --frames {} --prototypes {} --budget {budget} --out {}",
            all.join("stream.npy").display(),
            prototypes.display(),
            out.display()
        ),
    )
    .unwrap();
    assert!(std::fs::metadata(out.join("outbox.bin")).unwrap().len() <= budget as u64);

    let shown = run("triage", &format!("show {} --json", out.display())).unwrap().stdout;
    let kept = String::from_utf8(shown)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|row| row["rung"] == "tile")
        .filter(|row| labels[rows[row["tile"].as_u64().unwrap() as usize]] == wanted)
        .count();
    let first = rows.iter().take(budget / tiles.tile_len()).filter(|&&i| labels[i] == wanted).count();
    println!("wanted tiles kept in {budget} bytes: {kept}, first in first out {first}");
    assert!(kept >= 2 * first.max(1), "{kept} kept, first in first out {first}");
}
