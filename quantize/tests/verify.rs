//! `quantize verify`: good models pass, and a wrong weight under valid checksums is found in its own place.
#![cfg(feature = "onnx")]

mod common;

use std::path::{Path, PathBuf};

use common::Folder;
use nadir::model::{Architecture, Precision, StemPadding};
use nadir_formats::Encoder;
use nadir_quantize::testing::{random_encoder, random_tiles};
use nadir_quantize::{float, int8};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference/onnx").join(name)
}

fn architecture() -> Architecture {
    Architecture {
        tile_size: 48,
        patch_size: 16,
        stem_padding: StemPadding::Same,
        depths: [1, 2, 2, 1],
        dims: [16, 24, 32, 48],
        grn_eps: 1e-6,
        ln_eps: 1e-6,
    }
}

/// An encoder, its tiles, and a folder that holds both.
fn prepared() -> (Folder, Encoder) {
    prepared_as(architecture())
}

fn prepared_as(architecture: Architecture) -> (Folder, Encoder) {
    let folder = Folder::new();
    let encoder = random_encoder(architecture, &["B4", "B3", "B2"], 11);
    encoder.write(&folder.path("e.safetensors")).unwrap();
    let tiles = random_tiles(8, 3, architecture.tile_size.into(), 12);
    let nadir_formats::Pixels::U8(pixels) = &tiles.pixels else { panic!("tiles of bytes") };
    nadir_formats::write_npy(&folder.path("t.npy"), &tiles.shape.map(|n| n as u64), pixels).unwrap();
    (folder, encoder)
}

fn write(folder: &Folder, name: &str, encoder: &Encoder, precision: Precision) {
    let bytes = match precision {
        Precision::Int8 => int8::convert(encoder, &random_tiles(8, 3, encoder.card.architecture.tile_size.into(), 12)),
        _ => float::convert(encoder, precision),
    };
    std::fs::write(folder.path(name), bytes.unwrap()).unwrap();
}

#[test]
fn good_models_pass_in_every_precision() {
    let patchify = StemPadding::Patchify;
    let imagenet = Architecture { tile_size: 72, patch_size: 32, stem_padding: patchify, ..architecture() };
    for (folder, encoder) in [prepared(), prepared_as(imagenet)] {
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            write(&folder, "m.nadir", &encoder, precision);
            let text = folder.good("verify m.nadir --float e.safetensors --tiles t.npy --count 3");
            println!("{text}");
            let names = ["stem", "block 1.1", "f64-candle", "candle-nadir"];
            assert!(names.iter().all(|name| text.contains(name)), "{text}");
            assert!(!text.contains("NaN"), "{text}");
        }
    }
}

#[test]
fn a_wrong_weight_is_found_in_its_place() {
    let (folder, encoder) = prepared();
    let cases = [
        ("initial_conv.0.weight", "stem"),
        ("downsample_layers.0.1.weight", "downsample 1"),
        ("stages.1.1.dwconv.weight", "block 1.1"),
        ("stages.2.0.grn.gamma", "block 2.0"),
        ("stages.2.1.pwconv2.weight", "block 2.1"),
        ("norm.weight", "head"),
    ];
    for (tensor, place) in cases {
        for (precision, wrong) in [(Precision::F32, 1.05), (Precision::F16, 1.3), (Precision::Int8, -1.5)] {
            let mut bad = encoder.clone();
            bad.tensors.get_mut(tensor).unwrap().data.iter_mut().for_each(|v| *v *= wrong);
            write(&folder, "bad.nadir", &bad, precision);
            let output = folder.run("verify bad.nadir --float e.safetensors --tiles t.npy --count 2 --json");
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{tensor} {precision:?}");
            let expected = format!("nadir parts from the float64 reference at {place}, which adds");
            assert!(error.contains(&expected), "{tensor} {precision:?}: {error}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["parts"]["place"], place);
        }
    }
}

#[test]
fn an_onnx_file_is_run_beside() {
    let folder = Folder::new();
    let (own, tiles) = (fixture("own.onnx"), fixture("tiles.npy"));
    let (own, tiles) = (own.display(), tiles.display());
    folder.good(&format!("convert --model {own} --precision f32 --out m.nadir"));
    let text = folder.good(&format!("verify m.nadir --float {own} --tiles {tiles}"));
    assert!(text.contains("f64-tract") && text.contains("tract-nadir"), "{text}");
    let (float, graph) = (fixture("timm.safetensors"), fixture("timm-script-11.onnx"));
    let (float, graph, card) = (float.display(), graph.display(), fixture("timm.card.json"));
    let card = card.display();
    folder.good(&format!("verify m.nadir --float {float} --onnx {graph} --card {card} --tiles {tiles}"));

    // Another encoder's graph of the same shape: tract parts, at once.
    let mut other = Encoder::read(&fixture("timm.safetensors")).unwrap();
    other.tensors.get_mut("stages.0.0.norm.bias").unwrap().data[1] += 0.5;
    other.write(&folder.path("other.safetensors")).unwrap();
    folder.good("convert --model other.safetensors --precision f32 --out other.nadir");
    let output = folder
        .run(&format!("verify other.nadir --float other.safetensors --onnx {graph} --card {card} --tiles {tiles}"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && error.contains("tract parts from the float64 reference at block 0.0"),
        "{error}"
    );
}

#[test]
fn bad_input_is_one_line() {
    let folder = Folder::new();
    std::fs::write(folder.path("c.pth"), b"PK").unwrap();
    folder.bad("convert --model c.pth --precision f32 --out m.nadir", &["c.pth", "trainer import --checkpoint"]);
    let own = fixture("own.onnx");
    let own = own.display();
    folder.good(&format!("convert --model {own} --precision f32 --out m.nadir"));
    let float = fixture("mmearth.safetensors");
    let tiles = fixture("tiles.npy");
    let (float, tiles) = (float.display(), tiles.display());
    folder.bad(&format!("verify m.nadir --float {float} --tiles {tiles}"), &["differ in architecture"]);
    folder.bad(
        &format!("verify m.nadir --float {own} --onnx {own} --tiles {tiles}"),
        &["--float is an ONNX file already"],
    );
    folder.bad(
        &format!("verify m.nadir --float {own} --tiles {tiles} --tolerance 0"),
        &["--tolerance 0 must be above 0"],
    );
    folder.bad(&format!("convert --model {float} --card x.json --precision f32 --out m.nadir"), &["--card"]);
}
