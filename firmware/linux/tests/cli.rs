//! The `triage` command, run as a program on models and tiles made here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nadir::model::{Architecture, Precision};
use nadir_formats::{Matrix, Pixels, Tiles, read_integers, write_integers};
use nadir_quantize::testing::{random_encoder, random_tiles};
use tempfile::TempDir;

const SIDE: usize = 32;

/// A folder with a model, labelled tiles of three sorts, and prototypes of sort 2.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        write_model(&scene.path("m.nadir"), &["B4", "B3", "B2"], 1);
        tiles(60, 1).write(&scene.path("t.npy")).unwrap();
        write_integers(&scene.path("l.npy"), &labels(60)).unwrap();
        let out = scene.run(&[
            "prototypes",
            "--model",
            "m.nadir",
            "--tiles",
            "t.npy",
            "--labels",
            "l.npy",
            "--wanted",
            "2",
            "--out",
            "p",
        ]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        tiles(40, 2).write(&scene.path("f.npy")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_triage")).current_dir(self.dir.path()).args(arguments).output().unwrap()
    }

    /// `triage run` on the scene's files, with `changed` options in place of its own.
    fn triage(&self, changed: &[(&str, &str)]) -> Output {
        let mut options = BTreeMap::from([
            ("--model", "m.nadir"),
            ("--frames", "f.npy"),
            ("--prototypes", "p"),
            ("--budget", "16KiB"),
            ("--out", "o"),
        ]);
        options.extend(changed.iter().copied());
        let mut arguments = vec!["run", "--json"];
        for (option, value) in &options {
            arguments.push(option);
            if !value.is_empty() {
                arguments.push(value);
            }
        }
        self.run(&arguments)
    }

    /// It must fail with exit code 2 and one line that has all of `parts`.
    fn refused(&self, out: &Output, parts: &[&str]) {
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(error.starts_with("triage: ") && error.ends_with('\n') && error.lines().count() == 1, "{error:?}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert!(!self.path("o/outbox.bin").exists());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write_model(path: &Path, bands: &[&str], seed: u64) {
    let encoder = random_encoder(Architecture::named("yocto", SIDE as u16, 16).unwrap(), bands, seed);
    std::fs::write(path, nadir_quantize::float::convert(&encoder, Precision::F32).unwrap()).unwrap();
}

/// Label of tile `i`: 0, 1, 2, 0, 1, 2, ...
fn labels(count: usize) -> Vec<i64> {
    (0..count as i64).map(|i| i % 3).collect()
}

/// Tiles whose sort is `labels`: sort 1 has a bright first band, sort 2 coarse stripes over its noise.
fn tiles(count: usize, seed: u64) -> Tiles {
    let mut tiles = random_tiles(count, 3, SIDE, seed);
    let Pixels::U8(pixels) = &mut tiles.pixels else { unreachable!() };
    let (plane, tile) = (SIDE * SIDE, 3 * SIDE * SIDE);
    for (i, v) in pixels.iter_mut().enumerate() {
        *v = match (i / tile % 3, i % tile / plane, i % SIDE / 4 % 2) {
            (1, 0, _) => 200,
            (2, _, 0) => 230,
            (2, _, _) => 20,
            _ => *v / 4 + 60,
        };
    }
    tiles
}

fn json(bytes: &[u8]) -> Vec<serde_json::Value> {
    text(bytes).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn wanted_tiles_come_down_and_the_outbox_tells_all() {
    let scene = Scene::new();
    let out = scene.triage(&[("--budget", "20KiB")]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let ran = json(&out.stdout);
    assert_eq!(ran.len(), 40);
    assert!(std::fs::metadata(scene.path("o/outbox.bin")).unwrap().len() <= 20 * 1024);

    let out = scene.run(&["show", "o", "--json", "--extract", "x"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let shown = json(&out.stdout);
    assert_eq!(shown, ran, "every tile has at least its record here");
    let sum: u64 = shown.iter().map(|l| l["bytes"].as_u64().unwrap()).sum();
    let whole = std::fs::metadata(scene.path("o/outbox.bin")).unwrap().len();
    assert!(sum < whole && whole - sum < 150, "tiles {sum}, file {whole}: the difference is the header");
    for (index, line) in shown.iter().enumerate() {
        assert_eq!(line["tile"], index);
        assert!(["record", "code", "embedding", "tile"].contains(&line["rung"].as_str().unwrap()), "{line}");
        assert!(line["score"].as_f64().unwrap().abs() <= 2.0 && line["bytes"].as_u64().unwrap() > 0, "{line}");
        assert!(line["reason"].is_string() && line["complete"] == true);
    }
    let full: Vec<u64> = shown.iter().filter(|l| l["rung"] == "tile").map(|l| l["tile"].as_u64().unwrap()).collect();
    assert!(full.len() >= 4 && full.iter().all(|t| t % 3 == 2), "{full:?}");

    // What was extracted is what was captured.
    let frames = Tiles::read(&scene.path("f.npy")).unwrap();
    let index = read_integers(&scene.path("x/tiles-index.npy")).unwrap();
    assert!(index.iter().map(|i| *i as u64).eq(full));
    let rows: Vec<usize> = index.iter().map(|i| *i as usize).collect();
    assert_eq!(Tiles::read(&scene.path("x/tiles.npy")).unwrap(), frames.pick(&rows));
    let embeddings = Matrix::read(&scene.path("x/embeddings.npy")).unwrap();
    assert_eq!(embeddings.columns, 128);
    assert_eq!(read_integers(&scene.path("x/embeddings-index.npy")).unwrap().len(), embeddings.rows);

    let table = text(&scene.run(&["show", "o/outbox.bin"]).stdout);
    assert_eq!(table.lines().count(), 42);
    assert!(table.contains("wanted") && table.contains("of 40 tiles by random-1"));
}

#[test]
fn the_budget_is_never_exceeded() {
    let scene = Scene::new();
    let sizes = [(120u64, "120"), (300, "300"), (1000, "1kB"), (5000, "5000B"), (20_480, "20KiB"), (1_000_000, "1MB")];
    let mut kept = Vec::new();
    for (bytes, budget) in sizes {
        let out = scene.triage(&[("--budget", budget), ("--force", "")]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let size = std::fs::metadata(scene.path("o/outbox.bin")).unwrap().len();
        assert!(size <= bytes, "{size} over {bytes}");
        let lines = json(&out.stdout);
        let sum: u64 = lines.iter().map(|l| l["bytes"].as_u64().unwrap()).sum();
        assert!(sum < size);
        kept.push(lines.iter().filter(|l| l["rung"] == "tile").count());
        for nothing in lines.iter().filter(|l| l["rung"] == "nothing") {
            assert_eq!((nothing["bytes"].as_u64(), nothing["reason"].as_str()), (Some(0), Some("budget-exhausted")));
        }
    }
    assert_eq!((kept[0], kept[5]), (0, 40));
    std::fs::remove_dir_all(scene.path("o")).unwrap();
    scene.refused(&scene.triage(&[("--budget", "10")]), &["10 bytes", "header"]);
}

#[test]
fn vetoed_tiles_send_a_record_only() {
    let scene = Scene::new();
    let mut frames = tiles(6, 3);
    let Pixels::U8(pixels) = &mut frames.pixels else { unreachable!() };
    let tile = 3 * SIDE * SIDE;
    pixels[..tile].fill(0);
    pixels[tile..2 * tile].fill(255);
    frames.write(&scene.path("f.npy")).unwrap();
    let out = scene.triage(&[("--budget", "1MiB")]);
    let lines = json(&out.stdout);
    assert_eq!((&lines[0]["reason"], &lines[0]["rung"]), (&"vetoed-no-data".into(), &"record".into()));
    assert_eq!((&lines[0]["no_data"], &lines[0]["score"]), (&1.0.into(), &serde_json::Value::Null));
    assert_eq!((&lines[1]["reason"], &lines[1]["saturated"]), (&"vetoed-saturated".into(), &1.0.into()));
    assert!(lines[2..].iter().all(|l| l["rung"] == "tile"));
    let out = scene.triage(&[("--budget", "1MiB"), ("--force", ""), ("--max-no-data", "1"), ("--max-saturated", "1")]);
    assert!(json(&out.stdout).iter().all(|l| l["rung"] == "tile"));
}

#[test]
fn folders_bands_and_other_types_are_read() {
    let scene = Scene::new();
    assert!(scene.triage(&[]).status.success());
    let reference = std::fs::read(scene.path("o/outbox.bin")).unwrap();
    let frames = Tiles::read(&scene.path("f.npy")).unwrap();
    std::fs::create_dir(scene.path("d")).unwrap();
    for (name, range) in [("a.npy", 0..11), ("b.npy", 11..40)] {
        frames.pick(&range.collect::<Vec<_>>()).write(&scene.path("d").join(name)).unwrap();
    }
    assert!(scene.triage(&[("--frames", "d"), ("--out", "o2")]).status.success());
    assert_eq!(std::fs::read(scene.path("o2/outbox.bin")).unwrap(), reference);

    let swapped = frames.clone().select_bands(&["B4", "B3", "B2"], &["B2", "B4", "B3"]).unwrap();
    swapped.write(&scene.path("f.npy")).unwrap();
    assert!(scene.triage(&[("--bands", "B02,B04,B03"), ("--out", "o3")]).status.success());
    assert_eq!(std::fs::read(scene.path("o3/outbox.bin")).unwrap(), reference);

    let Pixels::U8(pixels) = &frames.pixels else { unreachable!() };
    let wide = Pixels::U16(pixels.iter().map(|v| u16::from(*v)).collect());
    Tiles { shape: frames.shape, pixels: wide.clone() }.write(&scene.path("f.npy")).unwrap();
    assert!(scene.triage(&[("--budget", "2MiB"), ("--out", "o4")]).status.success());
    assert!(scene.run(&["show", "o4", "--extract", "x"]).status.success());
    assert_eq!(Tiles::read(&scene.path("x/tiles.npy")).unwrap().pixels, wide);
}

#[test]
fn bad_models_are_refused() {
    let scene = Scene::new();
    let good = std::fs::read(scene.path("m.nadir")).unwrap();
    let try_bytes = |bytes: &[u8], parts: &[&str]| {
        std::fs::write(scene.path("bad.nadir"), bytes).unwrap();
        scene.refused(&scene.triage(&[("--model", "bad.nadir")]), &[&["bad.nadir: "], parts].concat());
    };
    for cut in [0, 1, 40, good.len() / 2, good.len() - 1] {
        try_bytes(&good[..cut], &[]);
    }
    for at in [0, 9, 100, good.len() / 3, good.len() - 70] {
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        try_bytes(&flipped, &[]);
    }
    let mut newer = good.clone();
    newer[8] = 0x63;
    try_bytes(&newer, &["version"]);
    scene.refused(&scene.triage(&[("--model", "none.nadir")]), &["none.nadir", "No such file"]);

    // Another set of bands, and another embedding space.
    write_model(&scene.path("bad.nadir"), &["B4", "B3", "B2", "B8"], 1);
    let prototypes =
        ["prototypes", "--model", "bad.nadir", "--tiles", "t.npy", "--labels", "l.npy", "--wanted", "2", "--out", "q"];
    scene.refused(&scene.run(&prototypes), &["t.npy", "[60, 3, 32, 32]", "B4,B3,B2,B8"]);
    scene
        .refused(&scene.run(&[&prototypes[..], &["--bands", "B4,B3,B2"]].concat()), &["t.npy", "needs B8", "B4,B3,B2"]);
    assert!(!scene.path("q").exists());
    write_model(&scene.path("bad.nadir"), &["B4", "B3", "B2"], 2);
    scene.refused(&scene.triage(&[("--model", "bad.nadir")]), &["p: prototypes of embedding space", "random-2"]);
}

#[test]
fn bad_tiles_and_tables_are_refused() {
    let scene = Scene::new();
    let frames = tiles(2, 5);
    let Pixels::U8(pixels) = &frames.pixels else { unreachable!() };
    let write = |shape, pixels| Tiles { shape, pixels }.write(&scene.path("bad.npy")).unwrap();
    let refused = |parts: &[&str]| scene.refused(&scene.triage(&[("--frames", "bad.npy")]), parts);
    write([2, 3, 16, 64], Pixels::U8(pixels.clone()));
    refused(&["bad.npy", "[2, 3, 16, 64]", "[tiles, 3, 32, 32]"]);
    write([6, 1, 32, 32], Pixels::U8(pixels.clone()));
    refused(&["bad.npy", "[6, 1, 32, 32]"]);
    write_integers(&scene.path("bad.npy"), &[1, 2, 3]).unwrap();
    refused(&["bad.npy", "[3]", "[tiles, bands, height, width]"]);
    std::fs::write(scene.path("bad.npy"), b"no array").unwrap();
    refused(&["bad.npy", "not a .npy file"]);
    let whole = std::fs::read(scene.path("f.npy")).unwrap();
    std::fs::write(scene.path("bad.npy"), &whole[..whole.len() - 1]).unwrap();
    refused(&["bad.npy"]);
    // numpy's header for i32, over the same bytes.
    let header = text(&whole[1..128]).replace("|u1", "<i4").replace("40, 3", "10, 3");
    std::fs::write(scene.path("bad.npy"), [&whole[..1], header.as_bytes(), &whole[128..]].concat()).unwrap();
    refused(&["bad.npy", "expected u8, u16 or f32"]);
    std::fs::create_dir(scene.path("empty")).unwrap();
    scene.refused(&scene.triage(&[("--frames", "empty")]), &["empty", "no .npy file"]);
    scene.refused(&scene.triage(&[("--bands", "B4,B3")]), &["2 names given for 3 bands"]);
    // Two files of one folder that do not fit together.
    frames.write(&scene.path("empty/a.npy")).unwrap();
    let wide = pixels.iter().map(|v| f32::from(*v)).collect();
    Tiles { shape: frames.shape, pixels: Pixels::F32(wide) }.write(&scene.path("empty/b.npy")).unwrap();
    scene.refused(&scene.triage(&[("--frames", "empty")]), &["b.npy", "F32"]);

    let mut table = std::fs::read(scene.path("p")).unwrap();
    let at = table.len() / 2;
    table[at] ^= 1;
    std::fs::write(scene.path("bad"), &table).unwrap();
    scene.refused(&scene.triage(&[("--prototypes", "bad")]), &["bad: ", "CRC"]);
    scene.refused(&scene.triage(&[("--prototypes", "m.nadir")]), &["m.nadir: not a prototype file"]);
    std::fs::write(scene.path("policy.json"), r#"{"bass": 1}"#).unwrap();
    scene.refused(&scene.triage(&[("--policy", "policy.json")]), &["policy.json", "bass"]);
    std::fs::write(scene.path("policy.json"), r#"{"novel": -0.5}"#).unwrap();
    scene.refused(&scene.triage(&[("--policy", "policy.json")]), &["policy.json: novel is -0.5"]);
    std::fs::write(scene.path("policy.json"), r#"{"fidelity": {"code": 0.5}}"#).unwrap();
    scene.refused(
        &scene.triage(&[("--policy", "policy.json")]),
        &["policy.json", "must not fall", "0.005, 0.5, 0.03, 1"],
    );
    scene.refused(&scene.triage(&[("--max-no-data", "50")]), &["--max-no-data 50"]);
}

#[test]
fn bad_labels_are_refused() {
    let scene = Scene::new();
    let run = |labels: &[i64], wanted: &str, extra: &[&str]| {
        write_integers(&scene.path("bad.npy"), labels).unwrap();
        let mut arguments = vec![
            "prototypes",
            "--model",
            "m.nadir",
            "--tiles",
            "t.npy",
            "--labels",
            "bad.npy",
            "--out",
            "q",
            "--wanted",
            wanted,
        ];
        arguments.extend(extra);
        scene.run(&arguments)
    };
    scene.refused(&run(&labels(59), "2", &[]), &["bad.npy", "59 values for 60 tiles"]);
    scene.refused(&run(&labels(60), "7", &[]), &["wanted class 7", "[0, 1, 2]"]);
    scene.refused(&run(&[-1; 60], "2", &[]), &["bad.npy", "label -1"]);
    scene.refused(&run(&labels(60), "2", &["--split", "l.npy", "--use", "9"]), &["[9]"]);
    // Only sort 0 is left when the labels serve as the split.
    scene.refused(&run(&labels(60), "2", &["--split", "l.npy", "--use", "0"]), &["wanted class 2", "[0]"]);
    assert!(!scene.path("q").exists());
    assert!(run(&labels(60), "2,1", &["--per-class", "2"]).status.success());
}

#[test]
fn outboxes_that_cannot_be_written_are_refused() {
    let scene = Scene::new();
    std::fs::write(scene.path("file"), "in the way").unwrap();
    scene.refused(&scene.triage(&[("--out", "file")]), &["file"]);
    scene.refused(&scene.triage(&[("--out", "file/o")]), &["file/o"]);
    scene.refused(&scene.triage(&[("--out", "/proc/o")]), &["/proc/o"]);
    std::fs::create_dir(scene.path("full")).unwrap();
    std::fs::write(scene.path("full/notes"), "keep").unwrap();
    scene.refused(&scene.triage(&[("--out", "full")]), &["full", "not empty", "--force"]);
    // The file itself cannot be replaced: a folder has its name.
    std::fs::create_dir_all(scene.path("taken/outbox.bin")).unwrap();
    scene.refused(&scene.triage(&[("--out", "taken"), ("--force", "")]), &["taken/outbox.bin"]);
    assert_eq!(std::fs::read_dir(scene.path("taken")).unwrap().count(), 1, "no part file is left behind");
    assert!(scene.triage(&[("--out", "full"), ("--force", "")]).status.success());
    assert_eq!(std::fs::read_to_string(scene.path("full/notes")).unwrap(), "keep");
}

#[test]
fn damage_is_told_and_the_rest_is_shown() {
    let scene = Scene::new();
    assert!(scene.triage(&[]).status.success());
    let good = std::fs::read(scene.path("o/outbox.bin")).unwrap();
    let whole = json(&scene.run(&["show", "o", "--json"]).stdout);
    let show = |bytes: &[u8]| {
        std::fs::write(scene.path("bad.bin"), bytes).unwrap();
        scene.run(&["show", "bad.bin", "--json"])
    };
    let zeros: Vec<usize> = good.iter().enumerate().filter(|(_, b)| **b == 0).map(|(i, _)| i).collect();

    // The second record, flipped: that tile is gone or has lost its record, the others are as before.
    let mut flipped = good.clone();
    flipped[zeros[1] + 5] ^= 1;
    let out = show(&flipped);
    let position = format!("bad.bin: damaged frame at byte {}", zeros[1] + 1);
    assert_eq!(out.status.code(), Some(2));
    assert!(
        text(&out.stderr).contains(&position) && text(&out.stderr).contains("1 damaged frame"),
        "{}",
        text(&out.stderr)
    );
    let left = json(&out.stdout);
    assert!(left.iter().filter(|l| whole.contains(l)).count() == 39 && left.len() <= 40);

    // Cut in the last payload: only that tile is incomplete.
    let out = show(&good[..good.len() - 10]);
    assert_eq!(out.status.code(), Some(2));
    let left = json(&out.stdout);
    assert_eq!((left.len(), left.iter().filter(|l| l["complete"] == false).count()), (40, 1));

    // Without its header it is still shown; noise and nothing are told from an outbox.
    assert_eq!(json(&show(&good[zeros[0] + 1..]).stdout).len(), 40);
    assert_eq!(show(b"noise, not frames").status.code(), Some(2));
    assert_eq!(show(b"").status.code(), Some(2));
    std::fs::remove_dir_all(scene.path("o")).unwrap();
    scene.refused(&scene.run(&["show", "o"]), &["o: No such file"]);
}
