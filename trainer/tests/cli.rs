//! The `trainer` command as a user runs it: the way from tiles to a probe, resumption bit for bit, and its errors.

mod common;

use std::path::Path;
use std::process::Command;

use nadir_formats::{Encoder, Matrix, Pixels, Tiles, write_integers};

use common::{COUNT, SIDE, desk};

const TINY: &str = "--dims 8,8,16,16 --depths 1,1,1,1 --batch 8 --flips";

/// A small pretraining with every kind of target.
fn pretrain(epochs: u32, out: &str) -> String {
    format!(
        "pretrain --tiles @tiles.npy --bands B04,B3,B2 --unit grey --saturation 255 --split @split.npy --use 0,1 \
         --table @table.csv --geolocation lat,lon --regress log1p:height --classify place \
         --pixel-target again=@tiles.npy:regress --patch 8 --decoder-dim 16 {TINY} --epochs {epochs} --out @{out}"
    )
}

/// The metrics without what depends on the clock.
fn timeless(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("tiles_per_second").unwrap();
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn tiles_become_models_embeddings_and_scores() {
    let desk = desk();
    let said = desk.succeed(&pretrain(6, "teacher"));
    assert!(said.contains("encoder.safetensors: custom-3, embedding space "), "{said}");
    for file in ["config.json", "metrics.jsonl", "loss.png", "checkpoint.safetensors"] {
        assert!(desk.path("teacher").join(file).exists(), "{file} is missing");
    }
    let metrics = timeless(&desk.path("teacher/metrics.jsonl"));
    let loss = |epoch: f64, task: &str| {
        let of = metrics.iter().find(|m| m["kind"] == "epoch" && m["epoch"] == epoch).unwrap();
        of["tasks"][task].as_f64().unwrap()
    };
    for task in ["tiles", "again", "lat", "lon", "height", "place"] {
        assert!(loss(1.0, task) > 0.0, "{task}");
    }
    assert!(loss(6.0, "tiles") < loss(1.0, "tiles"), "nothing was learned");

    // The card says what went in; the final norm makes the training tiles' embeddings standard.
    let teacher = Encoder::read(&desk.path("teacher/encoder.safetensors")).unwrap();
    assert_eq!(teacher.card.band_names(), ["B4", "B3", "B2"]);
    assert_eq!(teacher.card.embedding_space, teacher.space_of_weights());
    assert!(teacher.card.provenance.recipe.contains("--epochs 6") && teacher.card.provenance.data.contains("36 tiles"));
    let band = &teacher.card.bands[1];
    assert_eq!((band.unit.as_str(), band.saturation, band.no_data), ("grey", Some(255.0), None));
    desk.succeed("embed --model @teacher/encoder.safetensors --tiles @tiles.npy --out @e.npy");
    let e = Matrix::read(&desk.path("e.npy")).unwrap();
    assert_eq!((e.rows, e.columns), (COUNT, 16));
    let used: Vec<usize> = (0..COUNT).filter(|i| (i / 3 % 4) < 3).collect();
    for d in 0..e.columns {
        let mean = used.iter().map(|&i| f64::from(e.row(i)[d])).sum::<f64>() / used.len() as f64;
        let square = used.iter().map(|&i| f64::from(e.row(i)[d]).powi(2)).sum::<f64>() / used.len() as f64;
        assert!(mean.abs() < 1e-3 && (square - 1.0).abs() < 1e-2, "dimension {d}: mean {mean}, square {square}");
    }

    // A student, then further from it.
    let student = "distill --teacher @teacher/encoder.safetensors --tiles @tiles.npy --split @split.npy --use 0,1 \
                   --batch 8 --flips --lr 3e-3";
    std::fs::write(desk.path("tiny.toml"), "dims = [8, 8, 8, 12]\ndepths = [1, 1, 1, 1]\n").unwrap();
    let tiny = "--student @tiny.toml";
    desk.succeed(&format!("{student} {tiny} --epochs 12 --name yocto-rgb --out @student"));
    let card = Encoder::read(&desk.path("student/encoder.safetensors")).unwrap().card;
    assert_eq!((card.name.as_str(), card.bands == teacher.card.bands), ("yocto-rgb", true));
    assert_ne!(card.embedding_space, teacher.card.embedding_space);
    assert!(card.provenance.recipe.contains(&teacher.card.embedding_space), "{}", card.provenance.recipe);
    desk.succeed(&format!("{student} --epochs 4 --init @student/encoder.safetensors --teacher-views 2 --out @further"));
    let first =
        |run: &str, task: &str| timeless(&desk.path(run).join("metrics.jsonl"))[0]["tasks"][task].as_f64().unwrap();
    assert!(first("further", "feature") < 0.8 * first("student", "feature"), "--init does not start from the student");

    // The classes differ plainly, so the probes must find them.
    let probe = "probe --embeddings @e.npy --labels @labels.npy --split @split.npy --k 3";
    let table = desk.succeed(&format!("{probe} --names plain,fine,coarse --save-plot @confusion.png"));
    assert!(table.contains("coarse") && table.contains("3-NN"), "{table}");
    assert!(desk.path("confusion.png").exists());
    let scores: serde_json::Value = serde_json::from_str(&desk.succeed(&format!("{probe} --json"))).unwrap();
    assert_eq!(scores["rows"]["test"], 12);
    for kind in ["knn", "logistic"] {
        assert!(scores[kind]["accuracy"].as_f64().unwrap() > 0.9, "{scores}");
    }

    let info = desk.succeed("info --model @teacher/encoder.safetensors");
    for part in ["custom-3", "16 dimensions", "B4", "grey, saturated from 255", "MIT OR Apache-2.0", "2 x 2"] {
        assert!(info.contains(part), "no {part:?} in {info}");
    }
    let info = desk.succeed("info --run @teacher");
    assert!(info.contains("finished") && info.contains("height"), "{info}");
    let again = desk.succeed(&(pretrain(6, "teacher") + " --resume"));
    assert!(again.contains("the run is finished"), "{again}");
}

#[test]
fn an_embedding_depends_on_its_tile_alone() {
    let desk = desk();
    desk.succeed(&pretrain(1, "run"));
    let embed = |arguments: &str| {
        desk.succeed(&format!("embed --model @run/encoder.safetensors --out @e.npy {arguments}"));
        Matrix::read(&desk.path("e.npy")).unwrap()
    };
    let all = embed("--tiles @tiles.npy");
    let tiles = Tiles::read(&desk.path("tiles.npy")).unwrap();
    tiles.pick(&[7]).write(&desk.path("one.npy")).unwrap();
    assert_eq!(embed("--tiles @one.npy").data, all.row(7));
    let turned = tiles.select_bands(&["B4", "B3", "B2"], &["B2", "B4", "B3"]).unwrap();
    turned.write(&desk.path("turned.npy")).unwrap();
    assert_eq!(embed("--tiles @turned.npy --bands B02,B04,B03"), all);
}

/// Waits until the run has written this many lines of metrics.
#[cfg(unix)]
fn wait_for_lines(path: &Path, lines: usize) {
    let start = std::time::Instant::now();
    while std::fs::read_to_string(path).map_or(0, |t| t.lines().count()) < lines {
        assert!(start.elapsed().as_secs() < 120, "{} does not grow", path.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[cfg(unix)]
#[test]
fn interrupted_runs_end_as_uninterrupted_ones() {
    let desk = desk();
    desk.succeed(&pretrain(30, "whole"));
    // 36 tiles in batches of 8 are 4 steps an epoch, each logged, and a line for the epoch.
    for (name, signal, lines) in [("terminated", "-TERM", 13), ("killed", "-KILL", 33)] {
        let mut child = desk.command(&pretrain(30, name)).stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_for_lines(&desk.path(name).join("metrics.jsonl"), lines);
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        let expected = if signal == "-TERM" { Some(130) } else { None };
        assert_eq!(status.code(), expected, "{name} was not interrupted in time");
        assert!(!desk.path(name).join("encoder.safetensors").exists());
        let info = desk.succeed(&format!("info --run @{name}"));
        assert!(info.contains("not finished"), "{info}");
        desk.succeed(&(pretrain(30, name) + " --resume"));
        assert_eq!(timeless(&desk.path(name).join("metrics.jsonl")), timeless(&desk.path("whole/metrics.jsonl")));
        for file in ["encoder.safetensors", "checkpoint.safetensors"] {
            let bytes = |run: &str| std::fs::read(desk.path(run).join(file)).unwrap();
            assert!(bytes(name) == bytes("whole"), "{name}: {file} differs");
        }
    }
}

#[test]
fn settings_and_folders_are_guarded() {
    let desk = desk();
    desk.succeed(&pretrain(1, "run"));
    desk.refuse(&pretrain(1, "run"), &["run: is not empty", "--resume"]);
    desk.refuse(&(pretrain(1, "run") + " --resume --lr 0.5"), &["cannot resume", "lr is 0.5, the run has 0.001"]);
    desk.refuse(&(pretrain(2, "run") + " --resume"), &["epochs is 2, the run has 1"]);
    desk.refuse(&(pretrain(1, "nowhere") + " --resume"), &["nowhere: nothing to resume"]);
    std::fs::write(desk.path("file"), "").unwrap();
    desk.refuse(&pretrain(1, "file/run"), &["file/run"]);
    desk.refuse("info --run @labels.npy", &["labels.npy: is no run folder"]);
}

#[test]
fn wrong_data_is_named() {
    let desk = desk();
    let tiles = Tiles::read(&desk.path("tiles.npy")).unwrap();
    let with = |from: &str, to: &str| pretrain(1, "run").replace(from, to);

    let bytes = std::fs::read(desk.path("tiles.npy")).unwrap();
    std::fs::write(desk.path("short.npy"), &bytes[..bytes.len() - 1]).unwrap();
    desk.refuse(&with("--tiles @tiles.npy", "--tiles @short.npy"), &["short.npy", "does not fit"]);
    desk.refuse(&with("--tiles @tiles.npy", "--tiles @labels.npy"), &["labels.npy", "[tiles, bands, height, width]"]);
    desk.refuse(&with("--tiles @tiles.npy", "--tiles @missing.npy"), &["missing.npy"]);
    desk.refuse(&with("B04,B3,B2", "B4,B3"), &["tiles.npy: has 3 bands, 2 are named"]);
    desk.refuse(&with("B04,B3,B2", "B4,B3,B04"), &["B4 is named twice"]);
    desk.refuse(&with("B04,B3,B2", "B4,,B2"), &["--bands", "empty"]);
    let nothing = Tiles { shape: tiles.shape, pixels: Pixels::F32(vec![f32::NAN; bytes.len() - 128]) };
    nothing.write(&desk.path("nan.npy")).unwrap();
    desk.refuse(&with("--tiles @tiles.npy", "--tiles @nan.npy"), &["nan.npy: band B4", "not finite"]);
    desk.refuse(&with("--patch 8", "--patch 16"), &["tile size 16"]);
    desk.refuse(&with("--patch 8", "--patch 9"), &["patch size 9"]);
    let odd = Tiles { shape: [COUNT, 3, 20, 20], pixels: Pixels::U8((0..COUNT * 1200).map(|i| i as u8).collect()) };
    odd.write(&desk.path("odd.npy")).unwrap();
    desk.refuse(&with("@tiles.npy", "@odd.npy"), &["20 pixels are not whole patches of 8"]);
    desk.refuse(&with("8,8,16,16", "8,8,16"), &["--dims takes 4 numbers, not 3"]);

    desk.refuse(
        &with("log1p:height", "altitude"),
        &["table.csv: has no column altitude; it has lat, lon, height, place"],
    );
    desk.refuse(&with("log1p:height", "place"), &["column place holds \"coast\", not a number"]);
    desk.refuse(&with("--geolocation lat,lon", "--geolocation lat"), &["--geolocation takes two columns"]);
    std::fs::write(desk.path("table.csv"), "lat,lon,height,place\n1,2,3,a\n").unwrap();
    desk.refuse(&pretrain(1, "run"), &["table.csv: has 1 rows for 48 tiles"]);
    let sparse = "lat,lon,height,place\n".to_owned() + &"1,2,,a\n".repeat(COUNT - 1) + "2,3,,b\n";
    std::fs::write(desk.path("table.csv"), sparse).unwrap();
    let only = with("--geolocation lat,lon", "");
    desk.refuse(&only, &["column height is empty in every row in use"]);
    desk.refuse(&with("again=@tiles.npy:regress", "again=@odd.npy:regress"), &["odd.npy: tiles are 20 x 20 pixels"]);
    desk.refuse(&with("again=@tiles.npy:regress", "tiles=@tiles.npy:regress"), &["two tasks are named tiles"]);
    write_integers(&desk.path("short-split.npy"), &[0, 1]).unwrap();
    desk.refuse(&with("@split.npy", "@short-split.npy"), &["short-split.npy: has 2 entries for 48 tiles"]);
    desk.refuse(&with("--use 0,1", "--use 7"), &["split.npy: no tile is in split 7"]);
    assert!(!desk.path("run").exists(), "a refused run left a folder");
}

#[test]
fn wrong_models_and_embeddings_are_named() {
    let desk = desk();
    desk.succeed(&pretrain(1, "run"));
    let embed = |rest: &str| format!("embed --model @run/encoder.safetensors {rest}");
    desk.refuse(&embed("--tiles @tiles.npy --out @none/e.npy"), &["none/e.npy", "not a folder"]);
    desk.refuse(&embed("--tiles @tiles.npy --out @run"), &["run: "]);
    desk.refuse(&embed("--tiles @tiles.npy --bands B4,B3,B8 --out @e.npy"), &["tiles.npy", "needs B2"]);
    desk.refuse(&embed("--tiles @tiles.npy --bands B4,B3 --out @e.npy"), &["has 3 bands, 2 are named"]);
    let two = Tiles { shape: [2, 2, SIDE, SIDE], pixels: Pixels::U16(vec![7; 4 * SIDE * SIDE]) };
    two.write(&desk.path("two.npy")).unwrap();
    desk.refuse(&embed("--tiles @two.npy --out @e.npy"), &["two.npy: has 2 bands, custom-3 takes 3 (B4,B3,B2)"]);
    let large = Tiles { shape: [1, 3, 24, 24], pixels: Pixels::U8(vec![7; 3 * 24 * 24]) };
    large.write(&desk.path("large.npy")).unwrap();
    desk.refuse(&embed("--tiles @large.npy --out @e.npy"), &["large.npy: tiles are 24 x 24 pixels, custom-3 takes 16"]);
    let model = std::fs::read(desk.path("run/encoder.safetensors")).unwrap();
    std::fs::write(desk.path("cut.safetensors"), &model[..model.len() / 2]).unwrap();
    desk.refuse("embed --model @cut.safetensors --tiles @tiles.npy --out @e.npy", &["cut.safetensors"]);
    desk.refuse("distill --teacher @cut.safetensors --tiles @tiles.npy --epochs 1 --out @d", &["cut.safetensors"]);
    assert!(!desk.path("e.npy").exists());

    // A tile without data is embedded, with a note.
    let holes = Tiles { shape: [1, 3, SIDE, SIDE], pixels: Pixels::F32(vec![f32::NAN; 3 * SIDE * SIDE]) };
    holes.write(&desk.path("holes.npy")).unwrap();
    let output = desk.run(&embed("--tiles @holes.npy --out @holes-e.npy"));
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 1 tiles hold no data"));

    desk.succeed(&embed("--tiles @tiles.npy --out @e.npy"));
    let probe = |labels: &str, split: &str| format!("probe --embeddings @e.npy --labels @{labels} --split @{split}");
    write_integers(&desk.path("few.npy"), &[1, 2]).unwrap();
    desk.refuse(&probe("few.npy", "split.npy"), &["few.npy: has 2 labels for 48 embeddings"]);
    desk.refuse(&probe("labels.npy", "few.npy"), &["few.npy: has 2 entries"]);
    write_integers(&desk.path("same.npy"), &[4; COUNT]).unwrap();
    desk.refuse(&probe("same.npy", "split.npy"), &["same.npy: all labels are 4"]);
    desk.refuse(&probe("labels.npy", "same.npy"), &["same.npy", "entry 0 is 4"]);
    desk.refuse(&probe("e.npy", "split.npy"), &["e.npy", "expected [tiles]"]);
}

#[cfg(unix)]
#[test]
fn views_are_told_apart_also_after_a_death() {
    let desk = desk();
    let start = |out: &str| {
        pretrain(8, out) + " --contrast 0.5 --temperature 0.1 --jitter 0.2 --accumulate 2 --random-features 4"
    };
    desk.succeed(&start("whole"));
    let card = Encoder::read(&desk.path("whole/encoder.safetensors")).unwrap().card;
    let recipe = "--random-features 4 --contrast 0.5 --temperature 0.1 --jitter 0.2";
    assert!(card.provenance.recipe.contains(recipe), "{}", card.provenance.recipe);
    let task = |name: &str, at: usize| {
        let metrics = timeless(&desk.path("whole/metrics.jsonl"));
        let epochs: Vec<_> = metrics.iter().filter(|m| m["kind"] == "epoch").collect();
        epochs[at]["tasks"][name].as_f64().unwrap()
    };
    let contrast = |at: usize| task("contrast", at);
    assert!(task("random_features", 7) < 0.8 * task("random_features", 0));
    // Sixteen views: guessing costs the logarithm of 15.
    assert!(contrast(7) < 0.8 * contrast(0) && contrast(0) < 3.5, "from {} to {}", contrast(0), contrast(7));

    let mut child = desk.command(&start("cut")).stderr(std::process::Stdio::null()).spawn().unwrap();
    let checkpoint = desk.path("cut/checkpoint.safetensors");
    let began = std::time::Instant::now();
    while !checkpoint.exists() {
        assert!(began.elapsed().as_secs() < 60, "no checkpoint comes");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    desk.succeed(&(start("cut") + " --resume"));
    let bytes = |run: &str| std::fs::read(desk.path(run).join("encoder.safetensors")).unwrap();
    assert!(bytes("cut") == bytes("whole"));
    let other = start("cut").replace("--jitter 0.2", "--jitter 0.4");
    desk.refuse(&(other + " --resume"), &["jitter is 0.4, the run has 0.2"]);
    desk.refuse(
        &start("x").replace("--random-features 4", "--random-features 97"),
        &["97 random features: must be 1 to 96"],
    );
}
