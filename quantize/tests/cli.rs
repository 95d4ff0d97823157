//! The program `quantize` from outside: what works, and one clear line with exit code 2 for what does not.

mod common;

use std::ops::Deref;
use std::path::Path;
use std::process::Command;

use common::Folder;
use nadir::model::Architecture;
use nadir_formats::{Encoder, Matrix, Pixels, Tiles};
use nadir_quantize::compare::Agreement;
use nadir_quantize::reference::Reference;
use nadir_quantize::testing::{random_encoder, random_tiles};
use serde_json::Value;

/// A folder with an encoder, tiles, and an f32 model.
struct Bench {
    folder: Folder,
    encoder: Encoder,
    tiles: Tiles,
}

impl Deref for Bench {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Bench {
    fn new() -> Self {
        let folder = Folder::new();
        let named = Architecture::named("yocto", 32, 16).unwrap();
        let architecture = Architecture { dims: [8, 16, 24, 32], ..named };
        let encoder = random_encoder(architecture, &["B4", "B3", "B2"], 3);
        let tiles = random_tiles(24, 3, 32, 4);
        let bench = Self { folder, encoder, tiles };
        bench.encoder.write(&bench.path("m.safetensors")).unwrap();
        bench.tiles.write(&bench.path("t.npy")).unwrap();
        bench.good("convert --model m.safetensors --precision f32 --out m.nadir");
        bench
    }

    /// Agreement of the embeddings in a file with float64.
    fn agreement(&self, embeddings: &str) -> Agreement {
        let found = Matrix::read(&self.path(embeddings)).unwrap();
        let rows: Vec<Vec<f64>> =
            (0..found.rows).map(|i| found.row(i).iter().map(|&v| f64::from(v)).collect()).collect();
        Agreement::of(&rows, &Reference::new(&self.encoder).embed_all(&self.tiles))
    }
}

fn edited(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    bytes
}

#[test]
fn f32_and_f16_embed_as_the_reference() {
    let bench = Bench::new();
    bench.good("embed --model m.nadir --tiles t.npy --out e.npy");
    assert!(bench.agreement("e.npy").relative_error <= 1e-5);
    let line = bench.good("convert --model m.safetensors --precision f16 --out h.nadir --name other");
    assert!(line.starts_with("h.nadir: other f16, "), "{line}");
    bench.good("embed --model h.nadir --tiles t.npy --out h.npy");
    let half = bench.agreement("h.npy");
    assert!(half.percentile(0.0) >= 0.9999 && half.relative_error > 1e-6, "{half:?}");
}

#[test]
fn int8_is_near_the_reference() {
    let bench = Bench::new();
    bench.good("convert --model m.safetensors --precision int8 --calibrate t.npy --out q.nadir");
    bench.good("embed --model q.nadir --tiles t.npy --out q.npy");
    let agreement = bench.agreement("q.npy");
    assert!(agreement.mean() >= 0.98, "{}", agreement.mean());
    let told: Value =
        serde_json::from_str(&bench.good("compare --model q.nadir --float m.safetensors --tiles t.npy --json"))
            .unwrap();
    assert_eq!(told["precision"], "int8");
    assert!((told["cosine_mean"].as_f64().unwrap() - agreement.mean()).abs() < 1e-9);
}

#[test]
fn models_are_inspected() {
    let bench = Bench::new();
    let text = bench.good("inspect m.nadir");
    for part in ["random-3", "f32", "grey level", "block 2.0 pointwise 1 weight", "head norm bias", "arena", "MACs"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let json: Value = serde_json::from_str(&bench.good("inspect m.nadir --json")).unwrap();
    assert_eq!(json["header"]["bands"][2]["name"], "B2");
    assert_eq!(json["file_bytes"].as_u64(), Some(std::fs::metadata(bench.path("m.nadir")).unwrap().len()));
    let arch = bench.encoder.card.architecture;
    assert_eq!(json["parameters"].as_u64(), Some(arch.parameters(3)));
    assert_eq!(json["macs"].as_u64(), Some(arch.macs(3)));
    assert!(json["arena_bytes"].as_u64() > Some(0));
    assert_eq!(json["sections"][0]["crc"].as_str().map(str::len), Some(8));
}

#[test]
fn comparison_is_printed() {
    let bench = Bench::new();
    let text = bench.good("compare --model m.nadir --float m.safetensors --tiles t.npy");
    assert!(text.contains("random-3 f32 against float64, 24 tiles") && text.contains("mean 1.000000"), "{text}");
    let mut other = bench.encoder.clone();
    other.card.embedding_space = "elsewhere".into();
    other.write(&bench.path("other.safetensors")).unwrap();
    bench.bad(
        "compare --model m.nadir --float other.safetensors --tiles t.npy",
        &["m.nadir and other.safetensors differ in embedding space"],
    );
}

#[test]
fn bands_go_by_name() {
    let bench = Bench::new();
    bench.good("embed --model m.nadir --tiles t.npy --out e.npy");
    let Pixels::U8(bytes) = &bench.tiles.pixels else { unreachable!("tiles of bytes") };
    // Four bands in another order: B2, B8, B3, B4.
    let plane = 32 * 32;
    let mut mixed = Vec::new();
    for tile in bytes.chunks_exact(3 * plane) {
        let [b4, b3, b2] = [0, 1, 2].map(|band| &tile[band * plane..(band + 1) * plane]);
        mixed.extend([b2, &[77; 32 * 32], b3, b4].concat());
    }
    Tiles { shape: [24, 4, 32, 32], pixels: Pixels::U8(mixed) }.write(&bench.path("mixed.npy")).unwrap();
    bench.good("embed --model m.nadir --tiles mixed.npy --bands B02,B08,B03,B04 --out mixed-e.npy");
    assert_eq!(std::fs::read(bench.path("e.npy")).unwrap(), std::fs::read(bench.path("mixed-e.npy")).unwrap());

    bench.bad(
        "embed --model m.nadir --tiles mixed.npy --out x.npy",
        &["mixed.npy", "[24, 4, 32, 32]", "[tiles, 3, 32, 32]"],
    );
    bench.bad("embed --model m.nadir --tiles t.npy --bands B4,B3,B8 --out x.npy", &["t.npy", "needs B2", "B4,B3,B8"]);
    bench.bad("embed --model m.nadir --tiles t.npy --bands B4,B3 --out x.npy", &["2 names given for 3 bands"]);
    bench.bad("embed --model m.nadir --tiles t.npy --bands B4,B3,B4 --out x.npy", &["B4 is named twice"]);
}

#[test]
fn damaged_models_are_refused() {
    let bench = Bench::new();
    let model = bench.path("m.nadir");
    type Edit = Box<dyn FnOnce(&mut Vec<u8>)>;
    let edits: [(&str, Edit, &str); 7] = [
        ("short.nadir", Box::new(|b| b.truncate(5000)), "is truncated: 5000 bytes"),
        ("empty.nadir", Box::new(Vec::clear), "is truncated: 0 bytes"),
        ("flipped.nadir", Box::new(|b| b[9000] ^= 4), "is damaged: CRC is"),
        ("version.nadir", Box::new(|b| b[8] = 9), "version is 9.0, this runtime reads 2.x"),
        ("old.nadir", Box::new(|b| b[8] = 1), "version is 1.0, this runtime reads 2.x"),
        ("text.nadir", Box::new(|b| _ = b.remove(4)), "not a .nadir model"),
        ("long.nadir", Box::new(|b| b.push(0)), "its prefix says"),
    ];
    for (name, edit, part) in edits {
        std::fs::write(bench.path(name), edited(&model, edit)).unwrap();
        bench.bad(&format!("inspect {name}"), &[name, part]);
        bench.bad(&format!("embed --model {name} --tiles t.npy --out x.npy"), &[name, part]);
        bench.bad(&format!("compare --model {name} --float m.safetensors --tiles t.npy"), &[name, part]);
    }
    bench.bad("inspect missing.nadir", &["missing.nadir", "No such file"]);
    std::fs::write(bench.path("bad.safetensors"), edited(&bench.path("m.safetensors"), |b| b.truncate(3000))).unwrap();
    bench.bad("convert --model bad.safetensors --precision f32 --out x.nadir", &["bad.safetensors", "safetensors"]);
    assert!(!bench.path("x.npy").exists() && !bench.path("x.nadir").exists());
}

#[test]
fn wrong_tiles_are_refused() {
    let bench = Bench::new();
    random_tiles(2, 3, 40, 1).write(&bench.path("large.npy")).unwrap();
    bench.bad(
        "embed --model m.nadir --tiles large.npy --out x.npy",
        &["large.npy", "[2, 3, 40, 40]", "[tiles, 3, 32, 32]"],
    );
    nadir_formats::write_integers(&bench.path("labels.npy"), &[1, 2]).unwrap();
    bench.bad("embed --model m.nadir --tiles labels.npy --out x.npy", &["labels.npy", "[tiles, bands, height, width]"]);
    // The same bytes under another type: i8 in place of u8.
    let typed = edited(&bench.path("t.npy"), |b| {
        let at = b.windows(3).position(|w| w == b"|u1").unwrap();
        b[at + 1] = b'i';
    });
    std::fs::write(bench.path("typed.npy"), typed).unwrap();
    bench.bad("embed --model m.nadir --tiles typed.npy --out x.npy", &["typed.npy", "expected u8, u16 or f32"]);
    std::fs::write(bench.path("cut.npy"), edited(&bench.path("t.npy"), |b| b.truncate(999))).unwrap();
    bench.bad("embed --model m.nadir --tiles cut.npy --out x.npy", &["cut.npy"]);
    bench.bad(
        "convert --model m.safetensors --precision int8 --calibrate large.npy --out x.nadir",
        &["large.npy", "[2, 3, 40, 40]"],
    );
}

#[test]
fn conversions_that_cannot_be_are_refused() {
    let bench = Bench::new();
    bench.bad("convert --model m.safetensors --precision int8 --out x.nadir", &["int8", "--calibrate"]);
    let long = "a-name-that-is-longer-than-thirty-two-bytes";
    bench.bad(&format!("convert --model m.safetensors --precision f32 --name {long} --out x.nadir"), &["--name", long]);
    let mut huge = bench.encoder.clone();
    huge.tensors.get_mut("stages.1.0.pwconv1.weight").unwrap().data[7] = 1e5;
    huge.write(&bench.path("huge.safetensors")).unwrap();
    bench.bad(
        "convert --model huge.safetensors --precision f16 --out x.nadir",
        &["huge.safetensors", "stages.1.0.pwconv1.weight holds 100000", "65504"],
    );
    bench.bad("convert --model t.npy --precision f32 --out x.nadir", &["t.npy", "safetensors"]);
    assert!(!bench.path("x.nadir").exists());
}

#[test]
fn outputs_that_cannot_be_written_are_named() {
    let bench = Bench::new();
    for out in ["nowhere/x", "."] {
        bench.bad(&format!("convert --model m.safetensors --precision f32 --out {out}"), &[out]);
        bench.bad(&format!("embed --model m.nadir --tiles t.npy --out {out}"), &[out]);
    }
    let left: Vec<_> = std::fs::read_dir(bench.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing is left behind: {left:?}");
}

/// A file size limit in place of a full disk: both fail while the bytes are being written.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file() {
    let bench = Bench::new();
    bench.good("convert --model m.safetensors --precision f32 --out old.nadir");
    let old = std::fs::read(bench.path("old.nadir")).unwrap();
    for arguments in [
        "convert --model m.safetensors --precision f16 --out old.nadir",
        "embed --model m.nadir --tiles t.npy --out e.npy",
    ] {
        let limited = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {arguments}");
        let output = Command::new("sh")
            .current_dir(bench.path(""))
            .args(["-c", &limited, env!("CARGO_BIN_EXE_quantize")])
            .output()
            .unwrap();
        let (text, out) = (String::from_utf8(output.stderr).unwrap(), arguments.rsplit(' ').next().unwrap());
        assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
        assert!(text.starts_with(&format!("quantize: {out}: ")) && text.trim_end().lines().count() == 1, "{text:?}");
        assert!(output.stdout.is_empty());
    }
    assert!(std::fs::read(bench.path("old.nadir")).unwrap() == old);
    assert_eq!(std::fs::read_dir(bench.path("")).unwrap().count(), 4, "nothing is left behind");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error() {
    let bench = Bench::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_quantize"))
        .current_dir(bench.path(""))
        .args(["inspect", "m.nadir"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("quantize: standard output: "));
}

#[test]
fn tiles_without_pixels_or_without_numbers() {
    let bench = Bench::new();
    let empty = Tiles { shape: [0, 3, 32, 32], pixels: Pixels::U8(Vec::new()) };
    empty.write(&bench.path("empty.npy")).unwrap();
    for arguments in [
        "embed --model m.nadir --tiles empty.npy --out x.npy",
        "compare --model m.nadir --float m.safetensors --tiles empty.npy",
        "convert --model m.safetensors --precision int8 --calibrate empty.npy --out x.nadir",
    ] {
        bench.bad(arguments, &["empty.npy", "[0, 3, 32, 32]", "no pixel"]);
    }
    // Not a number is no data: a tile of nothing else is the mean everywhere, for every precision.
    let floats = |value: f32| Tiles { shape: [1, 3, 32, 32], pixels: Pixels::F32(vec![value; 3 * 32 * 32]) };
    floats(f32::NAN).write(&bench.path("nan.npy")).unwrap();
    floats(90.0).write(&bench.path("mean.npy")).unwrap();
    bench.good("convert --model m.safetensors --precision f16 --out h.nadir");
    bench.good("convert --model m.safetensors --precision int8 --calibrate t.npy --out q.nadir");
    for model in ["m.nadir", "h.nadir", "q.nadir"] {
        for tiles in ["nan", "mean"] {
            bench.good(&format!("embed --model {model} --tiles {tiles}.npy --out {tiles}-e.npy"));
        }
        let [nan, mean] = ["nan-e.npy", "mean-e.npy"].map(|e| Matrix::read(&bench.path(e)).unwrap());
        assert!(nan == mean && nan.data.iter().all(|v| v.is_finite()), "{model}");
    }
    // Scales can be set even by tiles that hold nothing.
    bench.good("convert --model m.safetensors --precision int8 --calibrate nan.npy --out nan.nadir");
}

#[test]
fn wrong_usage_exits_with_2() {
    let bench = Bench::new();
    for arguments in ["", "unknown", "convert --precision f32", "convert --model m.safetensors --precision i4 --out x"]
    {
        assert_eq!(bench.run(arguments).status.code(), Some(2), "{arguments}");
    }
    assert!(bench.good("--help").contains("inspect"));
}
