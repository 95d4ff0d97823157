//! Pretraining on releases of MMEarth as a user runs it: what is read, resumption after any death, configuration files,
//! models to start from, and how a run ends that cannot go on.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use nadir_formats::Encoder;
use nadir_trainer::data::mmearth::feed::{Feed, modalities};
use nadir_trainer::data::mmearth::loader::Options;
use nadir_trainer::data::mmearth::{Level, Modality, Release, Rules};
use nadir_trainer::import::Whole;
use nadir_trainer::mpmae::{Target, TaskKind};
use nadir_trainer::run::Checkpoint;

use common::Desk;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn release() -> PathBuf {
    fixture("mmearth/data_100k_v001")
}

/// A small pretraining on the four tiles of the fixture: two steps an epoch, each of two batches.
fn pretrain(rest: &str) -> String {
    format!(
        "pretrain --data {} --crop 16 --dims 8,8,8,16 --depths 1,1,1,1 --decoder-dim 16 --batch 1 --accumulate 2 \
         --grn batch --flips --lr 1e-4 --checkpoint-minutes 0 {rest}",
        release().display()
    )
}

/// The metrics without what depends on the clock.
fn timeless(path: &Path) -> Vec<serde_json::Value> {
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("tiles_per_second").unwrap();
        value
    };
    std::fs::read_to_string(path).unwrap().lines().map(line).collect()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn feeds_hold_input_and_targets() {
    let release = Arc::new(Release::open(&release()).unwrap());
    let feed = |list: &[&str], rules, level| {
        let list: Vec<String> = list.iter().map(|n| n.to_string()).collect();
        let options =
            Options { modalities: modalities(&list).unwrap(), batch: 4, crop: 16, rules, ..Options::of(&release) };
        let mut feed = Feed::new(release.clone(), options, true).unwrap();
        let (rows, x, targets) = feed.batch(3, &Device::Cpu).unwrap();
        (feed.tasks(), feed.band_cards(level).unwrap(), rows, x, targets)
    };
    let (tasks, bands, rows, x, targets) = feed(&["all"], Rules::Masked, Level::L1c);
    let names: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, Modality::ALL.map(Modality::name)[..12]);
    assert_eq!(tasks[0].kind, TaskKind::PixelRegression { channels: 12, normalise_patches: true });
    assert_eq!(tasks[1].kind, TaskKind::PixelRegression { channels: 8, normalise_patches: false });
    assert_eq!(tasks[9].kind, TaskKind::ImageClassification { classes: 846 });
    assert_eq!((bands[9].name.as_str(), bands[9].mean, bands[9].no_data), ("B9", 974.47866, Some(0.0)));
    assert_eq!((rows.len(), x.dims(), targets.len()), (4, &[4, 12, 16, 16][..], 12));
    // The input is the target, with 0 where that knows nothing; the fixture has a strip of such pixels.
    let Target::Values(s2) = &targets[0] else { panic!() };
    let (x, s2) = (flat(&x), flat(s2));
    assert!(s2.iter().any(|v| v.is_nan()));
    assert!(x.iter().zip(&s2).all(|(x, t)| if t.is_nan() { *x == 0.0 } else { x == t }));
    let missing = |target: &Target| match target {
        Target::Values(t) => flat(t).iter().filter(|v| v.is_nan()).count(),
        Target::Classes(t) => t.flatten_all().unwrap().to_vec1::<i64>().unwrap().iter().filter(|c| **c < 0).count(),
    };
    assert!([1, 3, 5, 11].iter().all(|i| missing(&targets[*i]) > 0));
    let (_, _, _, _, targets) = feed(&["all"], Rules::AsReleased, Level::L1c);
    assert!([0, 1, 5].iter().all(|i| missing(&targets[*i]) == 0) && missing(&targets[3]) > 0);
    // Whatever is predicted, Sentinel-2 alone goes in.
    for (list, count) in [(&["s2"][..], 1), (&["image"], 6), (&["pixel"], 6), (&["lat", "s2", "image"], 7)] {
        let (tasks, .., again, targets) = feed(list, Rules::Masked, Level::L2a);
        assert_eq!((tasks.len(), targets.len(), flat(&again) == x), (count, count, true), "{list:?}");
    }
    assert!(modalities(&["s3".to_owned()]).unwrap_err().to_string().contains("the sets all, s2, pixel and image"));
}

#[cfg(unix)]
#[test]
fn runs_killed_at_any_instant_end_as_if_they_had_not_been() {
    let desk = Desk::empty();
    desk.succeed(&pretrain("--epochs 24 --out @whole"));
    let card = Encoder::read(&desk.path("whole/encoder.safetensors")).unwrap().card;
    assert!(card.provenance.data.starts_with("MMEarth data_100k_v001, 4 tiles"), "{}", card.provenance.data);
    assert!(card.provenance.recipe.contains("--accumulate 2") && card.provenance.recipe.contains("--grn batch"));
    assert_eq!((card.bands.len(), card.bands[7].name.as_str(), card.bands[9].mean), (12, "B8A", 3213.7637));

    // Instants that have nothing to do with steps, or with what is being written.
    let mut kills = 0;
    for attempt in 0..200u32 {
        if desk.path("killed/encoder.safetensors").exists() {
            break;
        }
        let resume = if desk.path("killed/config.json").exists() { "--resume" } else { "" };
        let command = pretrain(&format!("--epochs 24 --out @killed {resume}"));
        let mut child = desk.command(&command).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let patience = Duration::from_millis(40 + u64::from(attempt * 37 % 120) + 10 * u64::from(attempt));
        let start = Instant::now();
        while start.elapsed() < patience && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills >= 3, "only {kills} runs were killed");
    let metrics = |run: &str| timeless(&desk.path(run).join("metrics.jsonl"));
    assert_eq!(metrics("killed"), metrics("whole"));
    assert!(metrics("whole")[0]["gradient_norm"].as_f64().unwrap() > 0.0);
    for file in ["encoder.safetensors", "checkpoint.safetensors"] {
        let bytes = |run: &str| std::fs::read(desk.path(run).join(file)).unwrap();
        assert!(bytes("killed") == bytes("whole"), "{file} differs");
    }
    assert!(desk.files("killed").keys().all(|name| !name.ends_with(".part")));

    // Packed, the release gives the same; so does the run's own configuration file.
    desk.succeed(&format!("data pack --data {} --out @packed", release().display()));
    desk.succeed("pretrain --config @whole/run.toml --data @packed --out @again");
    let bytes = |run: &str| std::fs::read(desk.path(run).join("encoder.safetensors")).unwrap();
    assert!(bytes("again") == bytes("whole"));
    assert_eq!(metrics("again"), metrics("whole"));
}

#[test]
fn configuration_files_are_complete_and_checked() {
    let desk = Desk::empty();
    desk.succeed(&pretrain("--epochs 2 --modalities s2,era5 --level l1c --out @run"));
    let toml = std::fs::read_to_string(desk.path("run/run.toml")).unwrap();
    for line in ["epochs = 2", "modalities = [\"s2\", \"era5\"]", "flips = true", "seed = 1", "mask-ratio = 0.6"] {
        assert!(toml.lines().any(|l| l == line), "no {line} in {toml}");
    }
    let with = |name: &str, text: &str| std::fs::write(desk.path(name), text).unwrap();
    with("other.toml", &toml.replace("epochs = 2", "epochs = 9"));
    desk.succeed("pretrain --config @other.toml --epochs 1 --seed 5 --flips=false --out @other");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(desk.path("other/config.json")).unwrap()).unwrap();
    let values = ["epochs", "seed", "flips", "crop", "level"].map(|key| config[key].to_string());
    assert_eq!(values, ["1", "5", "false", "16", "\"l1c\""]);
    assert_eq!(config["modalities"], serde_json::json!(["sentinel2", "era5"]));
    with("unknown.toml", &format!("{toml}colour = 3\n"));
    desk.refuse("pretrain --config @unknown.toml --out @x", &["unknown.toml: colour is no option of trainer pretrain"]);
    desk.refuse("pretrain --config @missing.toml --out @x", &["missing.toml"]);

    let said = desk.succeed(&pretrain("--epochs 500 --dry-run --out @dry"));
    for part in [
        "12 bands of 16 x 16 pixels",
        "patches of 8 x 8: 1 of 4 are visible",
        "in training",
        "s a step",
        "1000 in all, each of 2 x 1 tiles",
        "nothing was written",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!desk.path("dry").exists());
}

#[test]
fn splits_choose_the_tiles() {
    let desk = Desk::empty();
    std::fs::write(desk.path("split.json"), r#"{"train": [3, 0], "val": [1], "test": [2]}"#).unwrap();
    let run = |rest: &str| {
        pretrain(&format!("--epochs 1 --accumulate 1 --split @split.json {rest}")).replace("--accumulate 2", "")
    };
    desk.succeed(&run("--out @train"));
    let config = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(desk.path(run).join("config.json")).unwrap()).unwrap()
    };
    assert!(config("train")["data"].as_str().unwrap().contains("2 tiles"));
    desk.succeed(&run("--use train,val --out @both"));
    assert!(config("both")["data"].as_str().unwrap().contains("3 tiles"));
    desk.refuse(&run("--use 0 --out @x"), &["--use 0: is none of train, val and test"]);
    std::fs::write(desk.path("split.json"), r#"{"train": [7], "val": [], "test": []}"#).unwrap();
    desk.refuse(&run("--out @x"), &["split.json: names row 7 of a release of 4 tiles"]);
    desk.refuse(
        &pretrain("--epochs 1 --accumulate 3 --batch 2 --out @x").replace("--batch 1 --accumulate 2", ""),
        &["4 tiles are too few for a step of 3 batches of 2"],
    );
    let odd = pretrain("--epochs 1 --out @x").replace("--crop 16", "--crop 20");
    desk.refuse(&odd, &["crops of 20 pixels, tiles of 16"]);
    desk.refuse(&pretrain("--epochs 1 --bands B2,B13 --out @x"), &["sentinel2 has no band B13"]);
}

#[test]
fn models_are_continued() {
    let desk = Desk::empty();
    let still = "--epochs 1 --lr 1e-12 --weight-decay 0";
    let run = |rest: &str| pretrain(rest).replace("--lr 1e-4 ", "").replace("--dims 8,8,8,16 --depths 1,1,1,1", "");
    desk.succeed(&pretrain("--epochs 1 --out @first"));
    desk.succeed(&run(&format!("{still} --init @first/encoder.safetensors --out @next")));
    let tensors = |path: &str| Encoder::read(&desk.path(path)).unwrap().tensors;
    let (first, next) = (tensors("first/encoder.safetensors"), tensors("next/encoder.safetensors"));
    for (name, array) in first.iter().filter(|(name, _)| !name.starts_with("norm.")) {
        let worst = array.data.iter().zip(&next[name].data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{name} moved by {worst}");
    }

    // A whole pretraining model: decoder, heads and log variances too.
    let checkpoint = fixture("checkpoints/all-p8.pth");
    let import = format!(
        "import --checkpoint {} --tile-size 24 --out @e.safetensors --whole @w.safetensors",
        checkpoint.display()
    );
    desk.succeed(&import);
    let whole = Whole::read(&desk.path("w.safetensors")).unwrap().unwrap();
    assert_eq!(whole.tasks.len(), 12);
    let resumed = run(&format!("{still} --init @w.safetensors --modalities esa_worldcover,s2 --out @whole"))
        .replace("--decoder-dim 16", "");
    desk.succeed(&resumed);
    let trained = Checkpoint::read(&desk.path("whole/checkpoint.safetensors")).unwrap().parameters;
    let at = |task: &str| whole.parameters["log_vars"].data[whole.tasks.iter().position(|t| t == task).unwrap()];
    assert!(at("sentinel2") != at("esa_worldcover"));
    for (ours, theirs) in trained["log_vars"].data.iter().zip([at("sentinel2"), at("esa_worldcover")]) {
        assert!((ours - theirs).abs() < 1e-6);
    }
    for name in
        ["decoder.0.pwconv1.weight", "pred.esa_worldcover.weight", "mask_token", "encoder.stages.0.0.dwconv.weight"]
    {
        let pairs = trained[name].data.iter().zip(&whole.parameters[name].data);
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
    }
    desk.refuse(
        &run(&format!("{still} --init @w.safetensors --out @x")),
        &["w.safetensors: ", "has shape [", "expected ["],
    );
    desk.refuse(
        &run(&format!("{still} --init @e.safetensors --bands B2,B3 --out @x")),
        &["takes bands B1,B2,", "the data has B2,B3"],
    );
}

#[test]
fn what_is_not_finite_is_named() {
    let desk = Desk::empty();
    let wild = pretrain("--epochs 5 --weight-decay 0 --warmup 0 --out @run").replace("--lr 1e-4", "--lr 1e25");
    desk.refuse(
        &wild,
        &[
            "the last checkpoint is",
            "checkpoint.safetensors",
            "at step 1 (epoch 1)",
            "the loss of sentinel2 is ",
            "rows ",
            " (",
        ],
    );
    assert_eq!(Checkpoint::read(&desk.path("run/checkpoint.safetensors")).unwrap().position.step, 1);
}

#[cfg(unix)]
#[test]
fn a_full_disk_costs_no_checkpoint() {
    let desk = Desk::empty();
    let mut child = desk.command(&pretrain("--epochs 400 --out @run")).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !desk.path("run/checkpoint.safetensors").exists() {
        assert!(start.elapsed().as_secs() < 60);
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = std::fs::read(desk.path("run/checkpoint.safetensors")).unwrap();
    let step = Checkpoint::read(&desk.path("run/checkpoint.safetensors")).unwrap().position.step;
    // A limit on the length of files, whose signal is ignored, makes writes fail as a full disk does.
    let resume = desk.command(&pretrain("--epochs 400 --out @run --resume"));
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"])
        .arg(resume.get_program())
        .args(resume.get_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("cannot save, the checkpoint before stays") && said.contains("checkpoint.safetensors"),
        "{said}"
    );
    assert!(std::fs::read(desk.path("run/checkpoint.safetensors")).unwrap() == before, "step {step} is lost");
    assert!(desk.files("run").keys().all(|name| !name.ends_with(".part")), "a part was left");
}
