//! The program `quantize` from outside: what works, and one clear line with exit code 2 for what does not.

mod common;

use std::ops::Deref;
use std::path::Path;
use std::process::Command;

use common::Folder;
use nadir::model::{Architecture, Model};
use nadir_formats::{AlignedBytes, Encoder, Matrix, Pixels, Tiles};
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
        ("version.nadir", Box::new(|b| b[8] = 9), "version is 9.0, this runtime reads 1.x to 3.x"),
        ("old.nadir", Box::new(|b| b[2..4].copy_from_slice(b"DR")), "a draft of the format: convert the model again"),
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
    // Tiles that hold nothing set no scales.
    let calibrate =
        |tiles: &str| format!("convert --model m.safetensors --precision int8 --calibrate {tiles} --out n.nadir");
    bench.bad(&calibrate("nan.npy"), &["nan.npy", "1 tiles are too few", "at least 4"]);
    let nothing = Tiles { shape: [4, 3, 32, 32], pixels: Pixels::F32(vec![f32::NAN; 4 * 3 * 32 * 32]) };
    nothing.write(&bench.path("nothing.npy")).unwrap();
    bench.bad(&calibrate("nothing.npy"), &["nothing.npy", "band B4", "no data"]);
}

/// Each option changes the file, the defaults are those of the library, and warnings do not fail.
#[test]
fn calibration_is_chosen() {
    let bench = Bench::new();
    let file = |options: &str| {
        bench
            .good(&format!("convert --model m.safetensors --precision int8 --calibrate t.npy --out q.nadir {options}"));
        std::fs::read(bench.path("q.nadir")).unwrap()
    };
    // What the library gives has the same tensors, and nothing beside them.
    let tensors = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let bytes = AlignedBytes::copy_of(bytes);
        let model = Model::parse(&bytes).unwrap();
        let indices = (0..model.section_count()).filter(|&i| model.section_entry(i).is_some_and(|e| e.kind == 0));
        indices.map(|i| model.section_bytes(i).to_vec()).collect()
    };
    let plain = file("");
    assert!(tensors(&plain) == tensors(&nadir_quantize::int8::convert(&bench.encoder, &bench.tiles).unwrap()));
    assert!(plain == file("--calibration minmax --rounding gptq --bias-correction on"));
    let others = [
        "--calibration mse",
        "--calibration entropy",
        "--calibration percentile",
        "--calibration percentile --percentile 99",
    ];
    let others = others.into_iter().chain(["--rounding nearest", "--bias-correction off"]);
    let all: std::collections::BTreeSet<Vec<u8>> = others.map(file).chain([plain]).collect();
    assert_eq!(all.len(), 7, "every option makes another file");
    // 24 tiles are few, and too few to choose by; 32 are enough.
    let options = "convert --model m.safetensors --precision int8 --calibration auto --out q.nadir --calibrate";
    let stderr = |tiles: &str| String::from_utf8(bench.run(&format!("{options} {tiles}")).stderr).unwrap();
    let few = stderr("t.npy");
    assert!(few.contains("warning") && few.contains("24 calibration tiles are few") && !few.contains("dB"), "{few}");
    random_tiles(32, 3, 32, 4).write(&bench.path("t32.npy")).unwrap();
    assert!(stderr("t32.npy").contains("block 2.1 GRN"));
    bench.bad(&format!("{options} t.npy --bands B4,B3"), &["t.npy", "2 names given for 3 bands"]);
    assert_eq!(bench.run(&format!("{options} t.npy --percentile 30")).status.code(), Some(2));
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

/// From a key of openssl's to a file that is signed, damaged, refused, repaired and accepted.
#[test]
fn models_are_signed_checked_and_repaired() {
    let bench = Bench::new();
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference/signature");
    for name in ["key.pem", "public.pem", "other.pem"] {
        std::fs::copy(keys.join(name), bench.path(name)).unwrap();
    }
    bench.good("convert --model m.safetensors --precision int8 --calibrate t.npy --out q.nadir --parity --model-version 5 --sign key.pem");
    let text = bench.good("check q.nadir --key public.pem --at-least 5");
    for part in [
        "format       sound",
        "parity       fits every word",
        "self-test    passed, 2 tiles",
        "signature    good",
        "version      5",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let json: Value = serde_json::from_str(&bench.good("check q.nadir --json")).unwrap();
    assert_eq!(json["sound"], true);
    assert!(json["checks"]["signature"].as_str().unwrap().ends_with("not verified"));
    let json: Value = serde_json::from_str(&bench.good("inspect q.nadir --json")).unwrap();
    assert_eq!(
        (&json["header"]["model_version"], &json["parity"], &json["self_test"]["tiles"]),
        (&5.into(), &true.into(), &2.into())
    );
    let text = bench.good("inspect q.nadir");
    for part in ["one byte a 64-bit word", "self-test", "checksum columns", "signature", "not verified"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }

    bench.bad("check q.nadir --key other.pem", &["q.nadir: the file was signed with key", "not with"]);
    bench.bad("check q.nadir --key public.pem --at-least 6", &["version is 5, at least 6 is required"]);
    bench.bad("check q.nadir --at-least 6", &["version is 5, at least 6 is required"]);
    bench.bad("check m.nadir --key public.pem", &["m.nadir: the file is not signed"]);
    bench.bad("check q.nadir --key key.pem", &["key.pem: no public key of Ed25519 in PEM"]);
    bench.bad("sign m.nadir --key public.pem", &["public.pem: no private key of Ed25519 in PEM"]);
    bench.bad("sign m.nadir --key missing.pem", &["missing.pem: "]);
    bench.bad("repair m.nadir --out r.nadir", &["m.nadir: the file has no parity"]);
    assert!(!bench.path("r.nadir").exists());

    assert!(bench.good("sign m.nadir --key key.pem --out s.nadir").starts_with("s.nadir: signed with key "));
    bench.good("check s.nadir --key public.pem");
    bench.bad("check m.nadir --key public.pem", &["not signed"]);
    bench.good("sign m.nadir --key key.pem");
    assert_eq!(std::fs::read(bench.path("m.nadir")).unwrap(), std::fs::read(bench.path("s.nadir")).unwrap());

    // A flipped bit in a tensor: the block, the section and its place are named.
    let good = std::fs::read(bench.path("q.nadir")).unwrap();
    let json: Value = serde_json::from_str(&bench.good("inspect q.nadir --json")).unwrap();
    let section = json["sections"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["place"] == "block 2.1" && s["name"] == "pointwise 1 weight");
    let (index, at) =
        (section.unwrap()["index"].as_u64().unwrap(), section.unwrap()["offset"].as_u64().unwrap() as usize + 70);
    let start = json["sections"][0]["offset"].as_u64().unwrap() as usize;
    std::fs::write(bench.path("d.nadir"), edited(&bench.path("q.nadir"), |b| b[at] ^= 8)).unwrap();
    let named = format!("section {index} (block 2.1 pointwise 1 weight) is damaged");
    let block = format!("block {} (", (at - start) / 4096);
    let bit = format!("1 bit is flipped, quantize repair sets right (the first: bit 3 of byte {at})");
    bench.bad("check d.nadir", &["d.nadir: ", &named, &block, &bit]);
    let text = bench.good("repair d.nadir --out r.nadir");
    assert_eq!(text, format!("r.nadir: 1 bits set right, the first bit 3 of byte {at}\n"));
    assert_eq!(std::fs::read(bench.path("r.nadir")).unwrap(), good);
    // Two in a word.
    std::fs::write(bench.path("d.nadir"), edited(&bench.path("q.nadir"), |b| b[at] ^= 9)).unwrap();
    let word = format!("1 words have more than one flipped bit, the first at byte {}", at / 8 * 8);
    bench.bad("check d.nadir", &[&named, &word]);
    bench.bad("repair d.nadir --out r2.nadir", &[&word]);
    assert!(!bench.path("r2.nadir").exists());
    // In the head nothing can be located, and the parity still helps.
    std::fs::write(bench.path("d.nadir"), edited(&bench.path("q.nadir"), |b| b[1] ^= 1)).unwrap();
    bench.bad("check d.nadir", &["not a .nadir model", "1 bit is flipped, quantize repair"]);
    bench.good("repair d.nadir --out r.nadir");
    bench.good("check r.nadir --key public.pem --at-least 5");
}
