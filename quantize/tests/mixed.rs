//! Mixed precision from outside: bounds that are met or named, a table that a person edits, and every subcommand on a file with raised layers.

mod common;

use common::Folder;
use nadir::model::{Architecture, Model};
use nadir_formats::AlignedBytes;
use nadir_quantize::testing::{random_encoder, random_tiles};
use serde_json::Value;

const CONVERT: &str = "convert --model m.safetensors --precision int8 --calibrate t.npy";

/// An encoder, tiles that calibrate, tiles that judge.
fn bench() -> Folder {
    let folder = Folder::new();
    let named = Architecture::named("yocto", 32, 16).unwrap();
    let architecture = Architecture { dims: [8, 16, 24, 32], ..named };
    random_encoder(architecture, &["B4", "B3", "B2"], 3).write(&folder.path("m.safetensors")).unwrap();
    random_tiles(24, 3, 32, 4).write(&folder.path("t.npy")).unwrap();
    random_tiles(16, 3, 32, 5).write(&folder.path("j.npy")).unwrap();
    folder
}

fn bytes(folder: &Folder, name: &str) -> Vec<u8> {
    std::fs::read(folder.path(name)).unwrap()
}

fn table(folder: &Folder, name: &str) -> String {
    String::from_utf8(bytes(folder, name)).unwrap()
}

/// Runs, must fail with code 2 and a last line that holds `parts`: warnings about the few tiles stand before it.
fn refused(folder: &Folder, arguments: &str, parts: &[&str]) {
    let output = folder.run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not contain {part:?}"));
    assert!(output.stdout.is_empty(), "nothing on standard output beside an error");
}

/// The raised layers of a file.
fn raised(folder: &Folder, name: &str) -> Vec<String> {
    let file = AlignedBytes::read(&folder.path(name)).unwrap();
    nadir_quantize::inspect::raised(&Model::parse(&file).unwrap())
}

fn cosine(folder: &Folder, name: &str) -> f64 {
    let told = folder.good(&format!("compare --model {name} --float m.safetensors --tiles j.npy --json"));
    serde_json::from_str::<Value>(&told).unwrap()["cosine_mean"].as_f64().unwrap()
}

#[test]
fn bounds_are_met_or_named() {
    let bench = bench();
    bench.good(&format!("{CONVERT} --out plain.nadir"));
    // A bound that int8 meets raises nothing: the file is the same to the byte.
    bench.good(&format!("{CONVERT} --judge j.npy --min-cosine 0.5 --out low.nadir"));
    assert_eq!(bytes(&bench, "low.nadir"), bytes(&bench, "plain.nadir"));
    // As much as raised layers bring, in as many bytes.
    let length = bytes(&bench, "plain.nadir").len();
    let text =
        bench.good(&format!("{CONVERT} --judge j.npy --max-bytes {length} --out best.nadir --table-out best.csv"));
    assert_eq!(bytes(&bench, "best.nadir").len(), length);
    let best = raised(&bench, "best.nadir");
    assert!(!best.is_empty());
    let [before, after] = ["plain.nadir", "best.nadir"].map(|name| cosine(&bench, name));
    assert!(after > before, "{after} after {before}");
    let chosen = text.lines().find(|line| line.starts_with("as chosen")).unwrap();
    assert!(
        chosen.contains(&format!("{} raised", best.len())) && chosen.contains(&format!("cosine {after:.6}")),
        "{text}"
    );
    assert!(
        text.lines().any(|line| line.starts_with("f16, another engine") && line.contains("cosine 1.0000")),
        "{text}"
    );

    // In between, fewer layers are enough: all are needed for the best only.
    let between = f64::midpoint(before, after);
    bench.good(&format!("{CONVERT} --judge j.npy --min-cosine {between} --out met.nadir"));
    let met = raised(&bench, "met.nadir");
    assert!(cosine(&bench, "met.nadir") >= between - 1e-9 && !met.is_empty() && met.len() <= best.len(), "{met:?}");

    refused(
        &bench,
        &format!("{CONVERT} --judge j.npy --min-cosine 0.99999999 --out no.nadir"),
        &["--min-cosine: a mean cosine of 0.99999999 is not reached in integers", "in f16 (--precision f16)"],
    );
    refused(
        &bench,
        &format!("{CONVERT} --judge j.npy --max-bytes {} --out no.nadir", length - 1),
        &["--max-bytes: the int8 file has ", "the f16 file "],
    );
    assert!(!bench.path("no.nadir").exists());
}

#[test]
fn a_table_is_written_edited_and_fed_back() {
    let bench = bench();
    bench.good(&format!("{CONVERT} --out plain.nadir"));
    bench.good(&format!("{CONVERT} --judge j.npy --out same.nadir --table-out layers.csv"));
    assert_eq!(bytes(&bench, "same.nadir"), bytes(&bench, "plain.nadir"), "a table alone raises nothing");
    let text = table(&bench, "layers.csv");
    assert!(
        text.starts_with("layer,precision,choices,gain_db,cosine,bytes,macs\nstem convolution 3x3,int8,int8,,,"),
        "{text}"
    );
    // Two layers of the stem, three of each of six blocks, three downsamplings; six can be raised.
    let lines: Vec<&str> = text.lines().skip(1).filter(|line| !line.starts_with('#')).collect();
    assert_eq!((lines.len(), lines.iter().filter(|line| line.contains(",int8 int14,")).count()), (23, 6));

    let edited = text.replace("block 1.0 pointwise 2,int8,", "block 1.0 pointwise 2,int14,");
    std::fs::write(bench.path("edited.csv"), &edited).unwrap();
    let told = bench.good(&format!("{CONVERT} --table edited.csv --out raised.nadir"));
    assert_eq!(raised(&bench, "raised.nadir"), ["block 1.0 pointwise 2"]);
    assert!(told.lines().any(|line| line.starts_with("block 1.0 pointwise 2") && line.contains("int14")), "{told}");
    // Columns in another order, lines of Windows, and the table that is written for it.
    let other: Vec<String> = edited
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            format!("{}, {}\r\n", fields[1], fields[0])
        })
        .collect();
    std::fs::write(bench.path("other.csv"), other.concat()).unwrap();
    bench.good(&format!("{CONVERT} --table other.csv --judge j.npy --table-out again.csv --out other.nadir"));
    assert_eq!(bytes(&bench, "other.nadir"), bytes(&bench, "raised.nadir"));
    bench.good(&format!("{CONVERT} --table again.csv --out again.nadir"));
    assert_eq!(bytes(&bench, "again.nadir"), bytes(&bench, "raised.nadir"));

    let bad = |change: &dyn Fn(&str) -> String, parts: &[&str]| {
        std::fs::write(bench.path("bad.csv"), change(&edited)).unwrap();
        refused(&bench, &format!("{CONVERT} --table bad.csv --out no.nadir"), &[&["bad.csv: "], parts].concat());
    };
    bad(&|_| String::new(), &["is empty: the first line must name the columns"]);
    bad(&|_| "# nothing\n\n".into(), &["is empty"]);
    bad(&|t| t.replacen("precision", "form", 1), &["line 1: there is no column precision"]);
    bad(&|t| t.replacen("layer,", "", 1), &["line 1: there is no column layer"]);
    bad(&|t| t.replacen("stem depthwise", "stem deepwise", 1), &["line 3: the model has no layer \"stem deepwise\""]);
    bad(
        &|t| t.replacen("stem depthwise", "stem convolution 3x3", 1),
        &["line 3: stem convolution 3x3 stands in line 2 already"],
    );
    bad(
        &|t| t.lines().filter(|line| !line.starts_with("stem d")).collect::<Vec<_>>().join("\n"),
        &["there is no line for stem depthwise"],
    );
    bad(
        &|t| t.replacen("stem depthwise,int8", "stem depthwise,int14", 1),
        &["line 3: stem depthwise can be int8 only"],
    );
    bad(
        &|t| t.replacen("stem depthwise,int8", "stem depthwise,f16", 1),
        &["line 3: stem depthwise cannot be f16 beside integers", "--precision f16"],
    );
    bad(&|t| t.replacen(",int14,", ",int16,", 1), &["has precision \"int16\", expected int8 or int14"]);
    bad(&|t| t.replacen("stem depthwise,int8,", "stem depthwise,", 1), &["line 3: has 6 fields, 7 expected"]);
    std::fs::write(bench.path("bad.csv"), [0xff, 0xfe]).unwrap();
    refused(&bench, &format!("{CONVERT} --table bad.csv --out no.nadir"), &["bad.csv"]);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let bench = bench();
    let refused = |arguments: &str, part: &str| refused(&bench, arguments, &[part]);
    refused(&format!("{CONVERT} --min-cosine 0.9 --out x.nadir"), "--judge");
    refused(&format!("{CONVERT} --table-out x.csv --out x.nadir"), "--judge");
    refused(
        &format!("{CONVERT} --judge j.npy --min-cosine 1.5 --out x.nadir"),
        "1.5 is not a number from 0 to below 1",
    );
    refused(&format!("{CONVERT} --judge j.npy --min-cosine 0.9 --table x.csv --out x.nadir"), "cannot be used with");
    refused(
        &format!("{CONVERT} --judge t.npy --min-cosine 0.9 --out x.nadir"),
        "--judge: t.npy are the tiles that calibrate",
    );
    refused(&format!("{CONVERT} --judge absent.npy --min-cosine 0.9 --out x.nadir"), "absent.npy");
    refused(&format!("{CONVERT} --table absent.csv --out x.nadir"), "absent.csv");
    refused(
        "convert --model m.safetensors --precision f16 --judge j.npy --min-cosine 0.9 --out x.nadir",
        "choose layers of an int8 model, this one is to be f16",
    );
    assert!(!bench.path("x.nadir").exists());
}

#[test]
fn every_subcommand_takes_raised_layers() {
    let bench = bench();
    bench.good(&format!("{CONVERT} --out plain.nadir"));
    let length = bytes(&bench, "plain.nadir").len();
    bench.good(&format!("{CONVERT} --judge j.npy --max-bytes {length} --model-version 2 --out m.nadir"));
    let layers = raised(&bench, "m.nadir");
    let text = bench.good("inspect m.nadir");
    assert!(text.contains(&format!("inputs of 14 bits: {}", layers.join(", "))), "{text}");
    assert!(bench.good("inspect plain.nadir").lines().any(|line| line == "raised       none"));
    let json: Value = serde_json::from_str(&bench.good("inspect m.nadir --json")).unwrap();
    assert_eq!((&json["format_major"], json["raised"].as_array().unwrap().len()), (&2.into(), layers.len()));

    bench.good("check m.nadir");
    let diff = bench.good("diff plain.nadir m.nadir");
    assert!(
        diff.contains("embeddings may be compared") && diff.contains(&format!("{} constants", &layers[0][..9])),
        "{diff}"
    );
    let report = bench.good("report m.nadir --float m.safetensors --tiles j.npy");
    assert_eq!(report.matches("pointwise 2, 14 bits").count(), layers.len(), "{report}");
    assert_eq!(report.matches("  pointwise 2 ").count(), 6 - layers.len(), "{report}");
    bench.good("plan m.nadir");
    bench.good("profile m.nadir j.npy");

    // There and back by a delta.
    for (old, new) in [("plain", "m"), ("m", "plain")] {
        bench.good(&format!("delta {old}.nadir {new}.nadir --out d.delta"));
        bench.good(&format!("apply {old}.nadir d.delta --out made.nadir"));
        assert_eq!(bytes(&bench, "made.nadir"), bytes(&bench, &format!("{new}.nadir")));
    }

    // Parity sets a flipped mark right.
    bench.good(&format!("{CONVERT} --judge j.npy --max-bytes {} --parity --out p.nadir", 2 * length));
    let good = bytes(&bench, "p.nadir");
    let json: Value = serde_json::from_str(&bench.good("inspect p.nadir --json")).unwrap();
    let place = layers[0].trim_end_matches(" pointwise 2");
    let of_place = |section: &&Value| section["place"] == place && section["name"] == "constants";
    let constants = json["sections"].as_array().unwrap().iter().find(of_place).unwrap();
    let mut flipped = good.clone();
    flipped[constants["offset"].as_u64().unwrap() as usize + 36] ^= 32;
    std::fs::write(bench.path("flipped.nadir"), flipped).unwrap();
    bench.bad("check flipped.nadir", &["flipped.nadir"]);
    bench.good("repair flipped.nadir --out repaired.nadir");
    assert_eq!(bytes(&bench, "repaired.nadir"), good);
}
