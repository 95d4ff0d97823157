//! An imported encoder with a patchify stem through all commands that compute with one.

mod common;

use std::path::Path;

use common::Desk;
use nadir::model::StemPadding;
use nadir_formats::{Encoder, Matrix, Pixels, Tiles, read_values, write_integers, write_npy};
use serde_json::Value;

const SIDE: usize = 64;
const COUNT: usize = 48;
const DATA: &str = "--tiles @tiles.npy --labels @labels.npy --split @split.npy";

/// Tiles of three classes of colours and stripes, bright on the left as far as `left`, with labels a tile and a pixel, and the
/// encoder of timm's fixture.
fn desk() -> Desk {
    let desk = Desk::empty();
    let left = |i: usize, x: usize| x < 16 + 8 * (i % 4);
    let mut noise = 12345u32;
    let mut pixels = Vec::new();
    for i in 0..COUNT {
        for at in 0..3 * SIDE * SIDE {
            let (band, y, x) = (at / SIDE / SIDE, at / SIDE % SIDE, at % SIDE);
            noise = noise.wrapping_mul(1664525).wrapping_add(1013904223);
            let stripes = if i % 3 == 1 { 40 * (y % 2) } else { 0 };
            let bright = if left(i, x) { 60 } else { 0 };
            pixels.push((40 + 30 * ((i % 3 + band) % 3) + stripes + bright) as u8 + (noise >> 27) as u8);
        }
    }
    Tiles { shape: [COUNT, 3, SIDE, SIDE], pixels: Pixels::U8(pixels) }.write(&desk.path("tiles.npy")).unwrap();
    let column = |f: &dyn Fn(usize) -> i64| (0..COUNT).map(f).collect::<Vec<_>>();
    write_integers(&desk.path("labels.npy"), &column(&|i| (i % 3) as i64)).unwrap();
    write_integers(&desk.path("split.npy"), &column(&|i| (i / 3 % 4).saturating_sub(1) as i64)).unwrap();
    let map: Vec<u8> = (0..COUNT * SIDE * SIDE).map(|at| left(at / SIDE / SIDE, at % SIDE).into()).collect();
    write_npy(&desk.path("map.npy"), &[COUNT as u64, SIDE as u64, SIDE as u64], &map).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/patchify-timm.safetensors");
    let import = format!("import --checkpoint {} --tile-size 64 --out @model.safetensors", fixture.display());
    desk.succeed(&import);
    desk
}

/// The task losses of the first and of the last line of a run's metrics.
fn ends(desk: &Desk, run: &str) -> [Value; 2] {
    let text = std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    [lines[0], lines[lines.len() - 1]].map(|line| serde_json::from_str::<Value>(line).unwrap()["tasks"].clone())
}

#[test]
fn it_is_pretrained_on_and_distilled() {
    let desk = desk();
    // Without learning its weights stay; with it the stem's move and the loss falls.
    let start = "pretrain --tiles @tiles.npy --bands B4,B3,B2 --init @model.safetensors --decoder-dim 16 --batch 8";
    let tensors = |path: &str| Encoder::read(&desk.path(path)).unwrap().tensors;
    let moved = |path: &str, name: &str| {
        let (before, after) = (tensors("model.safetensors"), tensors(path));
        before[name].data.iter().zip(&after[name].data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    desk.succeed(&format!("{start} --epochs 1 --lr 1e-12 --weight-decay 0 --out @still"));
    desk.succeed(&format!("{start} --epochs 8 --lr 3e-3 --flips --out @teacher"));
    for name in ["stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"] {
        assert!(moved("still/encoder.safetensors", name) < 1e-6, "{name}");
        assert!(moved("teacher/encoder.safetensors", name) > 1e-4, "{name}");
    }
    let [first, last] = ends(&desk, "teacher").map(|tasks| tasks["tiles"].as_f64().unwrap());
    assert!(last < 0.9 * first, "from {first} to {last}");

    // Student and teacher have the stem; then the student learns with the integer engine's rounding.
    std::fs::write(desk.path("small.toml"), "dims = [8, 8, 8, 12]\ndepths = [1, 1, 1, 1]\npatch_size = 16\n").unwrap();
    let distill = "distill --teacher @teacher/encoder.safetensors --tiles @tiles.npy --batch 8";
    desk.succeed(&format!("{distill} --student @small.toml --lr 3e-3 --epochs 12 --out @student"));
    let card = Encoder::read(&desk.path("student/encoder.safetensors")).unwrap().card;
    assert_eq!((card.architecture.stem_padding, card.architecture.patch_size), (StemPadding::Patchify, 16));
    let [first, last] = ends(&desk, "student").map(|tasks| tasks["feature"].as_f64().unwrap());
    assert!(last < 0.7 * first, "from {first} to {last}");
    let on = format!("{distill} --init @student/encoder.safetensors --lr 1e-4 --epochs 1");
    desk.succeed(&format!("{on} --quantize-aware --out @rounded"));
    desk.succeed(&format!("{on} --out @exact"));
    let feature = |run: &str| ends(&desk, run)[1]["feature"].as_f64().unwrap();
    let (rounded, exact) = (feature("rounded"), feature("exact"));
    assert!(rounded != exact && rounded < 0.8 * first, "rounding: {rounded}, exact {exact}, first {first}");
}

#[test]
fn it_is_probed_and_fine_tuned() {
    let desk = desk();
    desk.succeed("embed --model @model.safetensors --tiles @tiles.npy --out @e.npy");
    let embeddings = Matrix::read(&desk.path("e.npy")).unwrap();
    assert_eq!((embeddings.rows, embeddings.columns), (COUNT, 16));
    let table = desk.succeed(&format!("probe --model @model.safetensors {DATA} --k 3 --seeds 1 --out @probe"));
    assert!(table.contains("imported-custom-p32-3"), "{table}");

    let finetune = |labels: &str, more: &str| -> Value {
        desk.succeed(&format!(
            "finetune --model @model.safetensors --tiles @tiles.npy --labels @{labels}.npy --split @split.npy --batch 6 \
             --accumulate 1 --out @{labels} {more}"
        ));
        let text = std::fs::read_to_string(desk.path(labels).join("results.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let results = finetune("labels", "--drop-path 0.05 --epochs 12 --base-lr 0.1 --layer-decay 1");
    assert!(results["accuracy"].as_f64().unwrap() > 0.9, "{results}");
    // Its UNet joins the stem's map and nothing finer.
    let results = finetune("map", "--epochs 8 --frozen-epochs 2 --base-lr 0.2");
    assert!(results["mean_iou"].as_f64().unwrap() > 0.8, "{results}");
    assert_eq!(read_values(&desk.path("map/predictions.npy")).unwrap().0, [12, 64, 64]);
    let architecture = Encoder::read(&desk.path("map/encoder.safetensors")).unwrap().card.architecture;
    assert_eq!(architecture.stem_padding, StemPadding::Patchify);
}
