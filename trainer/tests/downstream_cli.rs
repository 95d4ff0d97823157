//! `trainer probe --model`, `finetune`, `data eurosat` and `data geobench` as a user runs them.

mod common;

use std::path::{Path, PathBuf};

use nadir::model::{Architecture, StemPadding};
use nadir_formats::{
    BandCard, Encoder as EncoderFile, Matrix, ModelCard, Pixels, Provenance, Tiles, read_integers, read_values,
    write_integers, write_npy,
};
use nadir_trainer::data::{Stream, generator};
use nadir_trainer::encoder::Encoder;
use serde_json::Value;

use common::Desk;

const SIDE: usize = 16;
const COUNT: usize = 60;

/// Tiles of three classes that differ in level and texture, with labels of all kinds, a split and a small model.
fn desk() -> Desk {
    let desk = Desk::empty();
    let mut noise = 12345u32;
    let mut random = move || {
        noise = noise.wrapping_mul(1664525).wrapping_add(1013904223);
        noise >> 27
    };
    let left = |i: usize, x: usize| x < 4 + 3 * (i % 4);
    let mut pixels = Vec::new();
    for i in 0..COUNT {
        for band in 0..3 {
            for at in 0..SIDE * SIDE {
                let (y, x) = (at / SIDE, at % SIDE);
                let texture = if i % 3 == 1 { 40 * (y % 2) } else { 0 };
                let side = if left(i, x) { 60 } else { 0 };
                pixels.push((40 + 30 * ((i % 3 + band) % 3) + texture + side) as u8 + random() as u8);
            }
        }
    }
    Tiles { shape: [COUNT, 3, SIDE, SIDE], pixels: Pixels::U8(pixels) }.write(&desk.path("tiles.npy")).unwrap();
    let column = |f: &dyn Fn(usize) -> i64| (0..COUNT).map(f).collect::<Vec<_>>();
    write_integers(&desk.path("labels.npy"), &column(&|i| (i % 3) as i64)).unwrap();
    write_integers(&desk.path("split.npy"), &column(&|i| (i / 3 % 4).saturating_sub(1) as i64)).unwrap();
    let (n, side) = (COUNT as u64, SIDE as u64);
    let several: Vec<u8> = (0..COUNT).flat_map(|i| [(i % 3 == 0) as u8, (i % 3 != 1) as u8]).collect();
    write_npy(&desk.path("several.npy"), &[n, 2], &several).unwrap();
    let map: Vec<u8> = (0..COUNT * SIDE * SIDE).map(|at| left(at / SIDE / SIDE, at % SIDE).into()).collect();
    write_npy(&desk.path("map.npy"), &[n, side, side], &map).unwrap();
    let heights: Vec<f32> = map.iter().map(|left| 5.0 + 20.0 * f32::from(*left)).collect();
    write_npy(&desk.path("heights.npy"), &[n, side, side], &heights).unwrap();
    let level: Vec<f32> = (0..COUNT).map(|i| if i == 9 { f32::NAN } else { 100.0 + 50.0 * (i % 3) as f32 }).collect();
    write_npy(&desk.path("level.npy"), &[n], &level).unwrap();
    write_model(&desk.path("model.safetensors"), &["B4", "B3", "B2"], "small");
    desk
}

fn write_model(path: &Path, bands: &[&str], name: &str) {
    let architecture = Architecture {
        tile_size: 32,
        patch_size: 8,
        stem_padding: StemPadding::Same,
        depths: [1, 1, 2, 1],
        dims: [8, 8, 16, 16],
        grn_eps: 1e-6,
        ln_eps: 1e-6,
    };
    let mut random = generator(1, Stream::Weights, 0);
    let encoder = Encoder::init(&architecture, bands.len(), &mut random, &candle_core::Device::Cpu).unwrap();
    let band = |name: &&str| BandCard {
        name: name.to_string(),
        unit: "grey level".into(),
        mean: 110.0,
        std: 50.0,
        no_data: None,
        saturation: None,
    };
    let card = ModelCard {
        name: name.into(),
        architecture,
        bands: bands.iter().map(band).collect(),
        embedding_space: "test".into(),
        provenance: Provenance::default(),
    };
    EncoderFile { card, tensors: encoder.params().export().unwrap() }.write(path).unwrap();
}

const DATA: &str = "--tiles @tiles.npy --labels @labels.npy --split @split.npy";

#[test]
fn models_are_compared_in_one_table() {
    let desk = desk();
    let probe = format!(
        "probe --model @model.safetensors --model again=@model.safetensors {DATA} --names plain,fine,coarse --k 3 \
         --few-shot 20,100 --seeds 2"
    );
    let text = desk.succeed(&format!("{probe} --out @probes"));
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with('|')).collect();
    let names: Vec<&str> = lines.iter().map(|l| l.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(names[2..], ["small", "again", "random", "band statistics"], "{text}");
    assert!(lines[0].contains("3-NN 20 %") && lines[0].contains("logistic 100 %"), "{text}");
    let row = |name: &str| lines[names.iter().position(|n| *n == name).unwrap()];
    let cells = |name: &str| row(name).split('|').skip(2).map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(cells("small"), cells("again"), "{text}");
    assert_eq!(cells("band statistics")[3], "100.0", "{text}");
    assert!(cells("small")[0].contains('±') && !cells("small")[1].contains('±'), "{text}");
    assert!(cells("random")[1].contains('±'), "random weights differ by seed\n{text}");
    let files = desk.files("probes");
    for file in ["table.md", "results.json", "confusion-small.png", "pca-small.png", "tsne-band-statistics.png"] {
        assert!(files.contains_key(file), "{file} is missing");
    }
    // The same once more, and as JSON.
    let json = desk.succeed(&format!("{probe} --out @more --json"));
    assert!(desk.files("more") == files, "a second run differs");
    let results: Value = serde_json::from_str(&json).unwrap();
    let scores = &results["rows"][0]["scores"];
    assert_eq!(scores["logistic"]["20"].as_array().unwrap().len(), 2);
    assert_eq!(scores["knn"]["100"][0]["rows"], 30);
    assert_eq!(scores["knn"]["20"][0]["rows"], 6);
    assert_eq!(results["tiles"]["test"], 15);

    // MMEarth's probe needs an encoder, which statistics do not have; two of its seeds differ in the head and the order.
    let linear = format!(
        "probe --model @model.safetensors {DATA} --few-shot 20 --seeds 2 --probes mmearth --baselines statistics --json"
    );
    let results: Value = serde_json::from_str(&desk.succeed(&linear)).unwrap();
    assert_eq!(results["rows"][0]["scores"]["mmearth"]["20"].as_array().unwrap().len(), 2);
    assert_eq!(results["rows"][1]["scores"], serde_json::json!({}));

    let several = desk.succeed(
        "probe --model @model.safetensors --tiles @tiles.npy --labels @several.npy --split @split.npy --k 3 --seeds 1",
    );
    assert!(several.contains("micro F1 / micro average precision"), "{several}");
    assert!(several.lines().last().unwrap().contains("100.0 / 100.0"), "{several}");

    let error = |arguments: &str, parts: &[&str]| desk.refuse(arguments, parts);
    error(&format!("probe {DATA}"), &["--embeddings", "--model"]);
    error("probe --model @model.safetensors --tiles @tiles.npy --labels @labels.npy", &["--split is missing"]);
    error(
        "probe --model @model.safetensors --tiles @tiles.npy --labels @map.npy --split @split.npy",
        &["one of 2 classes a pixel", "trainer finetune"],
    );
    error(
        &format!("probe --model @model.safetensors --model @model.safetensors {DATA}"),
        &["two rows are named small"],
    );
    write_model(&desk.path("nir.safetensors"), &["B4", "B3", "B8"], "nir");
    error(&format!("probe --model @nir.safetensors {DATA} --bands B4,B3,B2"), &["tiles.npy", "needs B8"]);
    error(
        &format!("probe --model @model.safetensors --model @nir.safetensors {DATA}"),
        &["nir takes the bands B4,B3,B8, another model B4,B3,B2", "--bands"],
    );
    error(
        &format!("probe --model @model.safetensors {DATA} --few-shot 20,20.001"),
        &["--few-shot: 20 % and 20.001", "two decimals"],
    );
}

/// The results of a short fine-tuning.
fn finetune(desk: &Desk, labels: &str, out: &str, more: &str) -> (String, Value) {
    let said = desk.succeed(&format!(
        "finetune --model @model.safetensors --tiles @tiles.npy --labels @{labels}.npy --split @split.npy --batch 6 \
         --accumulate 1 --drop-path 0.05 --out @{out} {more}"
    ));
    let results = std::fs::read_to_string(desk.path(out).join("results.json")).unwrap();
    (said, serde_json::from_str(&results).unwrap())
}

#[test]
fn every_kind_of_label_is_learned() {
    let desk = desk();
    let (said, results) = finetune(&desk, "labels", "classes", "--epochs 12 --base-lr 0.1 --layer-decay 1");
    assert!(results["accuracy"].as_f64().unwrap() > 0.9, "{said}");
    assert!(said.contains("15 test tiles: accuracy") && said.contains("embedding space"), "{said}");
    for file in ["config.json", "metrics.jsonl", "loss.png", "head.safetensors", "checkpoint.safetensors"] {
        assert!(desk.path("classes").join(file).exists(), "{file} is missing");
    }
    let tuned = EncoderFile::read(&desk.path("classes/encoder.safetensors")).unwrap().card;
    assert_eq!((tuned.architecture.tile_size, tuned.embedding_space != "test"), (16, true));
    assert_eq!(read_integers(&desk.path("classes/predictions.npy")).unwrap().len(), 15);

    let (said, results) = finetune(&desk, "several", "several", "--epochs 12 --base-lr 0.1 --layer-decay 1 --flips");
    assert!(results["micro_f1"].as_f64().unwrap() > 0.9, "{said}");
    let (said, results) = finetune(&desk, "level", "level", "--epochs 16 --base-lr 0.1 --layer-decay 1");
    assert!(results["columns"][0]["r2"].as_f64().unwrap() > 0.7, "{said}");
    let (said, results) = finetune(&desk, "map", "map", "--epochs 8 --frozen-epochs 2 --base-lr 0.2 --flips");
    assert!(results["mean_iou"].as_f64().unwrap() > 0.8, "{said}");
    assert_eq!(read_values(&desk.path("map/predictions.npy")).unwrap().0, [15, 16, 16]);
    // The encoder inside goes on as one: its embeddings of the training tiles have mean 0.
    desk.succeed("embed --model @map/encoder.safetensors --tiles @tiles.npy --out @e.npy");
    let embeddings = Matrix::read(&desk.path("e.npy")).unwrap();
    let split = read_integers(&desk.path("split.npy")).unwrap();
    let train: Vec<usize> = (0..split.len()).filter(|i| split[*i] == 0).collect();
    for column in 0..embeddings.columns {
        let mean = train.iter().map(|i| embeddings.row(*i)[column]).sum::<f32>() / train.len() as f32;
        assert!(mean.abs() < 1e-4, "dimension {column}: {mean}");
    }
    let (said, results) = finetune(&desk, "heights", "heights", "--epochs 24 --frozen-epochs 4 --base-lr 0.2");
    assert!(results["r2"].as_f64().unwrap() > 0.6 && results["rmse"].as_f64().unwrap() < 7.0, "{said}");

    let refuse = |more: &str, parts: &[&str]| {
        desk.refuse(&format!("finetune --model @model.safetensors --out @classes {DATA} {more}"), parts)
    };
    refuse("", &["classes: is not empty", "--resume"]);
    refuse("--resume --epochs 3", &["cannot resume with other settings"]);
    // The tiles that were trained on must not become those that are tested.
    let mut split = read_integers(&desk.path("split.npy")).unwrap();
    let recipe = "--batch 6 --accumulate 1 --drop-path 0.05 --epochs 12 --base-lr 0.1 --layer-decay 1";
    for (other, setting) in [(1, "rows is"), (0, "pixels is")] {
        let [there, test] = [other, 2].map(|code| split.iter().position(|s| *s == code).unwrap());
        split.swap(there, test);
        write_integers(&desk.path("split.npy"), &split).unwrap();
        refuse(&format!("{recipe} --resume"), &["cannot resume with other settings", setting]);
    }
    let level = |more: &str, parts: &[&str]| {
        desk.refuse(
            &format!(
                "finetune --model @model.safetensors --tiles @tiles.npy --split @split.npy --out @x --labels {more}"
            ),
            parts,
        )
    };
    level("@level.npy --smoothing 0.1", &["--smoothing 0.1: must be at most 0"]);
    level("@several.npy --smoothing 0.6", &["--smoothing 0.6: must be at most 0.5"]);
    level("@map.npy --layer-decay 0.9", &["--layer-decay has no part in training a UNet"]);
}

#[cfg(unix)]
#[test]
fn interrupted_fine_tuning_ends_as_uninterrupted() {
    let desk = desk();
    let start = |out: &str| {
        format!(
            "finetune --model @model.safetensors {DATA} --batch 6 --accumulate 2 --epochs 30 --seed 4 --flips --out @{out}"
        )
    };
    desk.succeed(&start("whole"));
    let mut child = desk.command(&start("cut")).stderr(std::process::Stdio::null()).spawn().unwrap();
    let metrics = desk.path("cut/metrics.jsonl");
    let began = std::time::Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 5 {
        assert!(began.elapsed().as_secs() < 120, "{} does not grow", metrics.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "was not interrupted in time");
    desk.succeed(&(start("cut") + " --resume"));
    for file in ["encoder.safetensors", "head.safetensors", "results.json", "predictions.npy", "checkpoint.safetensors"]
    {
        let bytes = |run: &str| std::fs::read(desk.path(run).join(file)).unwrap();
        assert!(bytes("cut") == bytes("whole"), "{file} differs");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/downstream").join(name)
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("datasets.json")).unwrap()).unwrap()
}

fn description(desk: &Desk, folder: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(desk.path(folder).join("dataset.json")).unwrap()).unwrap()
}

#[test]
fn geobench_folders_become_datasets() {
    let desk = Desk::empty();
    let convert = |name: &str, more: &str| {
        let folder = fixture("geobench").join(name);
        desk.succeed(&format!("data geobench --folder {} --out @{name}{more}", folder.display()))
    };
    for (name, bands, factor) in [
        ("m-eurosat", "B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11 B12 B8A", 1.0),
        ("m-brick-kiln", "B1 B2 B3 B4 B5 B7 B8A B8 B11 B12 TCI_R TCI_G TCI_B", 1.0),
        ("m-so2sat", "VH.LEE Filtered|B2|B8A|B1|B9", 10_000.0),
        ("m-bigearthnet", "B2 B3 B4", 1.0),
        ("m-cashew-plant", "B2 B3 B4", 1.0),
    ] {
        convert(name, "");
        let separator = if bands.contains('|') { '|' } else { ' ' };
        let bands: Vec<&str> = bands.split(separator).collect();
        let about = description(&desk, name);
        assert_eq!(about["bands"], serde_json::json!(bands), "{name}");
        let tiles = Tiles::read(&desk.path(name).join("tiles.npy")).unwrap();
        let (_, labels) = read_values(&desk.path(name).join("labels.npy")).unwrap();
        let nadir_formats::Values::Integers(labels) = labels else { panic!("labels are floats") };
        let expected = expected();
        let held = expected[name].as_array().unwrap();
        assert_eq!(tiles.shape, [held.len(), bands.len(), SIDE, SIDE]);
        let each = labels.len() / held.len();
        for (row, sample) in held.iter().enumerate() {
            let sums = sample["sums"].as_array().unwrap();
            for (band, sum) in sums.iter().enumerate() {
                let plane = SIDE * SIDE;
                let values = (band * plane..(band + 1) * plane).map(|at| f64::from(tiles.tile(row).value(at).unwrap()));
                // Radar is in units of its own.
                let factor = if bands[band].starts_with("VH") { 1.0 } else { factor };
                let (is, should) = (values.sum::<f64>(), factor * sum.as_f64().unwrap());
                assert!((is - should).abs() <= 1e-6 * should, "{name} {row} {band}: {is}, not {should}");
            }
            let is = &labels[row * each..][..each];
            match &sample["label"] {
                Value::Array(list) => assert!(list.iter().zip(is).all(|(a, b)| a.as_i64() == Some(*b)), "{name} {row}"),
                one => assert_eq!((one.as_i64(), each), (Some(is[0]), 1), "{name} {row}"),
            }
        }
        let third = held.len() / 3;
        let split = read_integers(&desk.path(name).join("split.npy")).unwrap();
        assert_eq!(split, [0, 1, 2].map(|code| vec![code; third]).concat(), "{name}");
    }
    // The absent bands of m-so2sat are copies.
    let tiles = Tiles::read(&desk.path("m-so2sat/tiles.npy")).unwrap();
    let picked = |band: &str| {
        let present = ["VH.LEE Filtered", "B2", "B8A", "B1", "B9"];
        tiles.clone().select_bands(&present, &[band]).unwrap().pixels
    };
    assert!(picked("B1") == picked("B2") && picked("B9") == picked("B8A"));
    assert_eq!(description(&desk, "m-eurosat")["classes"], serde_json::json!(["Forest", "River"]));
    assert_eq!(description(&desk, "m-cashew-plant")["classes"], serde_json::json!(["no", "poor", "rich"]));

    let few = fixture("geobench/m-eurosat");
    desk.succeed(&format!("data geobench --folder {} --partition 0.01x_train --as-released --out @few", few.display()));
    assert_eq!(read_integers(&desk.path("few/split.npy")).unwrap(), [0, 1, 1, 2, 2]);
    assert_eq!(description(&desk, "few")["bands"][8], "B8A");

    let cashew = fixture("geobench/m-cashew-plant").display().to_string();
    desk.succeed(&format!("data geobench --folder {cashew} --cut 8 --out @cut"));
    assert_eq!(Tiles::read(&desk.path("cut/tiles.npy")).unwrap().shape, [12, 3, 8, 8]);
    assert_eq!(read_values(&desk.path("cut/labels.npy")).unwrap().0, [12, 8, 8]);

    // A model for them reads them by name; the UNet takes the maps.
    write_model(&desk.path("ms.safetensors"), &["B2", "B8A", "B9"], "ms");
    let table = desk.succeed("probe --model @ms.safetensors --data @m-eurosat --normalise data --k 1 --seeds 1");
    assert!(table.contains("m-eurosat: one of 2 classes a tile"), "{table}");
    write_model(&desk.path("rgb.safetensors"), &["B4", "B3", "B2"], "rgb");
    let said = desk
        .succeed("finetune --model @rgb.safetensors --data @m-cashew-plant --normalise data --epochs 1 --out @cashew");
    assert!(said.contains("1 test tiles: mean IoU"), "{said}");

    // What is missing or damaged is named.
    let copy = desk.path("broken/m-eurosat");
    std::fs::create_dir_all(&copy).unwrap();
    for (name, bytes) in std::fs::read_dir(&few)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_owned(), std::fs::read(&p).unwrap()))
    {
        std::fs::write(copy.join(name), bytes).unwrap();
    }
    let refuse = |more: &str, parts: &[&str]| {
        let out = desk.path("refused");
        let _ = std::fs::remove_dir_all(&out);
        desk.refuse(&format!("data geobench --folder @broken/m-eurosat --out @refused{more}"), parts);
    };
    refuse(" --partition 0.5x", &["0.5x_partition.json", "the folder has 0.01x_train, default"]);
    let sample = copy.join("id_0003.hdf5");
    let bytes = std::fs::read(&sample).unwrap();
    std::fs::write(&sample, &bytes[..bytes.len() / 2]).unwrap();
    refuse("", &["id_0003.hdf5"]);
    std::fs::remove_file(&sample).unwrap();
    refuse("", &["id_0003.hdf5", "in the partition but not there"]);
    std::fs::write(&sample, std::fs::read(fixture("geobench/m-brick-kiln/id_0001.hdf5")).unwrap()).unwrap();
    std::fs::write(copy.join("id_0002.hdf5"), std::fs::read(fixture("geobench/m-cashew-plant/id_0001.hdf5")).unwrap())
        .unwrap();
    refuse("", &["id_0002.hdf5", "other bands than"]);
    desk.refuse(&format!("data geobench --folder {} --out @few", few.display()), &["few: is not empty"]);
}

#[test]
fn eurosat_folders_become_datasets() {
    let desk = Desk::empty();
    let expected = expected();
    for (kind, shape) in [("rgb", [4, 3, SIDE, SIDE]), ("ms", [4, 13, SIDE, SIDE])] {
        desk.succeed(&format!("data eurosat --folder {} --out @{kind}", fixture("eurosat").join(kind).display()));
        let tiles = Tiles::read(&desk.path(kind).join("tiles.npy")).unwrap();
        assert_eq!(tiles.shape, shape);
        assert_eq!(read_integers(&desk.path(kind).join("labels.npy")).unwrap(), [0, 0, 1, 1]);
        assert_eq!(description(&desk, kind)["classes"], serde_json::json!(["Forest", "River"]));
        for row in 0..4 {
            let held = &expected["eurosat"][kind][row];
            if kind == "ms" {
                let at = 12 * SIDE * SIDE + 3 * SIDE + 4;
                assert_eq!(tiles.tile(row).value(at), Some(held.as_f64().unwrap() as f32));
                continue;
            }
            // Decoders round differently, most where they interpolate colours.
            let differences: Vec<f32> = held
                .as_array()
                .unwrap()
                .iter()
                .enumerate()
                .map(|(at, v)| (tiles.tile(row).value(at).unwrap() - v.as_f64().unwrap() as f32).abs())
                .collect();
            let mean = differences.iter().sum::<f32>() / differences.len() as f32;
            assert!(mean < 0.6 && differences.iter().all(|d| *d <= 6.0), "tile {row}: mean difference {mean}");
        }
    }
    assert_eq!(description(&desk, "ms")["bands"][12], "B8A");
    for (list, name) in [("train", "Forest_1.tif"), ("val", "River_1.jpg"), ("test", "Forest_2.jpg\nRiver_2")] {
        std::fs::write(desk.path(list), name).unwrap();
    }
    let folder = fixture("eurosat/rgb");
    let listed = |out: &str| {
        let lists = ["train", "val", "test"].map(|l| desk.path(l).display().to_string()).join(",");
        format!("data eurosat --folder {} --lists {lists} --out @{out}", folder.display())
    };
    desk.succeed(&listed("listed"));
    assert_eq!(read_integers(&desk.path("listed/split.npy")).unwrap(), [0, 2, 1, 2]);
    std::fs::write(desk.path("val"), "River_1\nRiver_9").unwrap();
    desk.refuse(&listed("no"), &["val: line 2", "River_9 is not there"]);
    std::fs::write(desk.path("val"), "River_2").unwrap();
    desk.refuse(&listed("no2"), &["River_2 is in two lists"]);

    let broken = |name: &str, bytes: &[u8], parts: &[&str]| {
        let root = desk.path("broken");
        let _ = std::fs::remove_dir_all(&root);
        let _ = std::fs::remove_dir_all(desk.path("out"));
        for class in ["a", "b"] {
            std::fs::create_dir_all(root.join(class)).unwrap();
            std::fs::copy(fixture("eurosat/rgb/River/River_1.jpg"), root.join(class).join("one.jpg")).unwrap();
        }
        std::fs::write(root.join("b").join(name), bytes).unwrap();
        desk.refuse("data eurosat --folder @broken --out @out", parts);
    };
    let jpeg = std::fs::read(fixture("eurosat/rgb/River/River_2.jpg")).unwrap();
    broken("two.jpg", &jpeg[..100], &["two.jpg", "not a whole JPEG"]);
    broken("two.tif", &jpeg, &["mixed"]);
    broken("two.jpg", b"", &["two.jpg"]);
    desk.refuse("data eurosat --folder @absent --out @out2", &["absent"]);
}
