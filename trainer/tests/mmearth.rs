//! Releases of MMEarth against h5py and numpy (`mmearth/make_fixture.py` wrote files and expectations), packing and its
//! interruptions, splits, the loader, and what is said about damaged files.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nadir_trainer::data::mmearth::loader::{Loader, Options};
use nadir_trainer::data::mmearth::split::{By, Split};
use nadir_trainer::data::mmearth::{Level, Modality, Release, Rules, Values, packed};
use serde_json::Value;
use sha2::{Digest, Sha256};

use common::Desk;

const STEMS: [&str; 3] = ["data_100k_v001", "data_100k_v000", "data_layouts"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mmearth").join(name)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of values as numpy stores them, every NaN the same one.
fn digest(values: &Values) -> String {
    let bytes: Vec<u8> = match values {
        Values::Numbers(v) => v.iter().flat_map(|v| if v.is_nan() { f32::NAN } else { *v }.to_le_bytes()).collect(),
        Values::Classes(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    hex(&bytes)
}

/// A copy of a fixture's folder that a test may damage.
fn copy_of(stem: &str) -> Desk {
    let desk = Desk::empty();
    std::fs::create_dir(desk.path("data")).unwrap();
    for entry in std::fs::read_dir(fixture(stem)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), desk.path("data").join(entry.file_name())).unwrap();
    }
    desk
}

/// Opening the folder must fail with an error that holds all parts.
fn unopened(desk: &Desk, parts: &[&str]) {
    let Err(error) = Release::open(&desk.path("data")) else { panic!("was opened; expected {parts:?}") };
    let text = format!("{error:#}");
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in {text}"));
}

const H5: &str = "data/data_100k_v001.h5";

/// Compares everything in a release with what h5py and numpy found.
fn equals_h5py(release: &Release, expected: &Value) {
    let rows = expected["rows"].as_u64().unwrap() as usize;
    assert_eq!(release.rows(), rows);
    let arrays: Vec<String> = release.arrays().into_keys().collect();
    let named: Vec<String> = expected["raw"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(arrays, named);
    for (name, hashes) in expected["raw"].as_object().unwrap() {
        for row in 0..rows {
            let mut bytes = Vec::new();
            release.read_bytes(name, row, &mut bytes).unwrap();
            assert_eq!(hex(&bytes), hashes[row], "{name}, row {row}");
        }
    }
    for (kind, rules) in [("masked", Rules::Masked), ("as_released", Rules::AsReleased)] {
        for modality in release.modalities() {
            for row in 0..rows {
                let values = release.values(row, modality, rules).unwrap();
                assert_eq!(digest(&values), expected[kind][modality.name()][row], "{kind} {modality}, row {row}");
            }
        }
    }
    for modality in Modality::ALL.into_iter().filter(|m| !m.statistics_name(Level::L1c).contains("_world")) {
        for level in [Level::L1c, Level::L2a] {
            let Some(known) = expected["statistics"].get(modality.statistics_name(level)) else { continue };
            let found = release.statistics().of(modality, level).unwrap();
            for (what, values) in [("mean", &found.mean), ("std", &found.std), ("min", &found.min), ("max", &found.max)]
            {
                let bits: Vec<String> = values.iter().map(|v| format!("{:016x}", v.to_bits())).collect();
                assert_eq!(serde_json::json!(bits), known[what], "{modality} {what}");
            }
        }
    }
}

fn expected(stem: &str) -> Value {
    let all: Value = serde_json::from_slice(&std::fs::read(fixture("expected.json")).unwrap()).unwrap();
    all[stem].clone()
}

#[test]
fn every_byte_and_value_equals_h5py() {
    for stem in STEMS {
        let release = Release::open(&fixture(stem)).unwrap();
        assert_eq!((release.stem(), release.side(), release.is_packed()), (stem, 16, false));
        let levels: Vec<Level> = (0..4).map(|row| release.level(row)).collect();
        assert_eq!(levels, [Level::L1c, Level::L2a, Level::L1c, Level::L2a], "{stem}");
        assert_eq!(release.id(2), "726");
        equals_h5py(&release, &expected(stem));
    }
    // A folder of any size, with what `make_fixture.py --expect` found in it.
    if let (Some(folder), Some(file)) = (std::env::var_os("RELEASE"), std::env::var_os("EXPECTED")) {
        let expected = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        equals_h5py(&Release::open(Path::new(&folder)).unwrap(), &expected);
    }
}

#[test]
fn packed_folders_are_the_release() {
    for stem in STEMS {
        let desk = copy_of(stem);
        let said = desk.succeed("data pack --data @data --out @packed --shard-kib 8");
        assert!(said.contains("4 tiles in") && said.contains(", 0 there before"), "{said}");
        let release = Release::open(&desk.path("packed")).unwrap();
        assert!(release.is_packed());
        assert!(desk.path("packed/sentinel2.00003.bin").exists(), "rows of 6.5 KiB share a shard of 8 KiB");
        equals_h5py(&release, &expected(stem));
        for (name, bytes) in desk.files("data").iter().filter(|(name, _)| name.ends_with(".json")) {
            assert_eq!(*bytes, desk.files("packed")[name]);
        }
        // A second time nothing is written; a shard that was lost is, and one that was damaged is named.
        let before = desk.files("packed");
        std::fs::remove_file(desk.path("packed/aster.00000.bin")).unwrap();
        assert!(Release::open(&desk.path("packed")).is_err_and(|e| format!("{e:#}").contains("aster.00000.bin")));
        let said = desk.succeed("data pack --data @data --out @packed --shard-kib 8");
        assert!(said.contains("; 1 written"), "{said}");
        assert_eq!(desk.files("packed"), before);
        desk.succeed("data inspect --data @packed --verify");
        let mut bytes = before["aster.00000.bin"].clone();
        bytes[9] ^= 1;
        std::fs::write(desk.path("packed/aster.00000.bin"), &bytes).unwrap();
        let damaged = ["aster.00000.bin: is damaged", "delete it and pack again"];
        desk.refuse("data pack --data @data --out @packed --shard-kib 8", &damaged);
        desk.refuse("data inspect --data @packed --verify", &damaged);
        std::fs::write(desk.path("packed/aster.00000.bin"), &bytes[1..]).unwrap();
        desk.refuse("data inspect --data @packed", &["aster.00000.bin: has 4095 bytes, expected 4096"]);
    }
}

#[test]
fn packing_is_guarded() {
    let desk = copy_of(STEMS[0]);
    std::fs::create_dir(desk.path("full")).unwrap();
    std::fs::write(desk.path("full/letter.txt"), "x").unwrap();
    desk.refuse("data pack --data @data --out @full", &["full: is not empty"]);
    desk.refuse("data pack --data @data --out @full/letter.txt", &["letter.txt"]);
    desk.succeed("data pack --data @data --out @packed");
    desk.refuse("data pack --data @packed --out @again", &["packed: is packed already"]);
    desk.refuse(
        "data pack --data @data --out @packed --shard-kib 1",
        &["packed from something else", "pack into another"],
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_packing_goes_on_after_it() {
    let desk = copy_of(STEMS[0]);
    std::fs::create_dir(desk.path("packed")).unwrap();
    let part = desk.path("packed/month.00000.bin.part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    desk.refuse("data pack --data @data --out @packed", &["month.00000.bin.part", "No space left on device"]);
    desk.refuse("data inspect --data @packed", &["packed: is only partly packed", "trainer data pack"]);
    std::fs::remove_file(&part).unwrap();
    let said = desk.succeed("data pack --data @data --out @packed");
    assert!(!said.contains(", 0 there before"), "{said}");
    desk.succeed("data pack --data @data --out @whole");
    assert_eq!(desk.files("packed"), desk.files("whole"));
}

#[cfg(unix)]
#[test]
fn a_killed_packing_goes_on() {
    let desk = copy_of(STEMS[0]);
    desk.succeed("data pack --data @data --out @whole");
    std::fs::create_dir(desk.path("packed")).unwrap();
    // The write of this shard waits for a reader that never comes, so the kill falls into it.
    let part = desk.path("packed/month.00000.bin.part");
    assert!(Command::new("mkfifo").arg(&part).status().unwrap().success());
    let mut child = desk.command("data pack --data @data --out @packed").env("RAYON_NUM_THREADS", "1").spawn().unwrap();
    let journal = desk.path("packed/pack.journal");
    let start = std::time::Instant::now();
    // The plan and the eleven arrays before `month`, of 16 arrays by name.
    while std::fs::read_to_string(&journal).map_or(0, |t| t.lines().count()) < 11 {
        assert!(start.elapsed().as_secs() < 60, "the journal does not grow");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "packing was not killed in time");
    std::fs::remove_file(&part).unwrap();
    // What a kill leaves in the middle of a write: half a shard and half a line.
    std::fs::write(&part, "half").unwrap();
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text + "{\"file\":\"month.0").unwrap();
    let said = desk.succeed("data pack --data @data --out @packed");
    assert!(said.contains("10 there before"), "{said}");
    assert_eq!(desk.files("packed"), desk.files("whole"));
}

#[test]
fn cut_and_unfinished_files_are_named() {
    let desk = copy_of(STEMS[0]);
    let bytes = std::fs::read(desk.path(H5)).unwrap();
    for cut in [0, 7, 95, 96, 800, 2048, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(desk.path(H5), &bytes[..cut]).unwrap();
        let message = if cut < 96 { "is not a whole HDF5 file" } else { "data_100k_v001.h5: is" };
        unopened(&desk, &[message, &cut.to_string()]);
    }
    // Zeros where the structures should be, as after a crash, and bytes at random: any error, no panic.
    let mut random = 12345u64;
    let mut next = || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize
    };
    for turn in 0..300 {
        let mut damaged = bytes.clone();
        if turn < 70 {
            let at = turn * 1399 % bytes.len();
            damaged[at..(at + 700).min(bytes.len())].fill(0);
        } else {
            // Half of these in the headers at the start.
            (0..8).for_each(|i| damaged[next() % if i % 2 == 0 { 4096 } else { bytes.len() }] = next() as u8);
        }
        std::fs::write(desk.path(H5), &damaged).unwrap();
        let Ok(release) = Release::open(&desk.path("data")) else { continue };
        for modality in release.modalities() {
            for row in 0..release.rows() {
                if let Err(error) = release.read_bytes(modality.name(), row, &mut Vec::new()) {
                    let text = format!("{error:#}");
                    assert!(text.contains(&format!("v001.h5: dataset {modality}, row {row}: ")), "{text}");
                }
            }
        }
    }
    std::fs::copy(fixture("broken/half.h5"), desk.path(H5)).unwrap();
    std::fs::copy(fixture("data_100k_v001/data_100k_v001_splits.json"), desk.path("s")).unwrap();
    let release = Release::open(&desk.path("data")).unwrap();
    release.read_bytes("aster", 0, &mut Vec::new()).unwrap();
    let error = format!("{:#}", release.read_bytes("aster", 1, &mut Vec::new()).unwrap_err());
    assert!(error.contains("v001.h5: dataset aster, row 1: was never written"), "{error}");
}

#[test]
fn wrong_datasets_are_named() {
    let desk = copy_of(STEMS[0]);
    let bytes = std::fs::read(desk.path(H5)).unwrap();
    std::fs::copy(fixture("broken/type.h5"), desk.path(H5)).unwrap();
    unopened(&desk, &["data_100k_v001.h5: dataset aster: has type", "size: 4", "expected"]);
    std::fs::copy(fixture("broken/shape.h5"), desk.path(H5)).unwrap();
    unopened(&desk, &["data_100k_v001.h5: dataset era5 is f32 [2, 11], expected f32 [2, 12]"]);
    // Datasets are renamed wherever their names stand.
    let renamed = |pairs: &[(&str, &str)]| {
        let mut new = bytes.clone();
        for (from, to) in pairs {
            let places = (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes()));
            places.for_each(|at| new[at..at + from.len()].copy_from_slice(to.as_bytes()));
        }
        std::fs::write(desk.path(H5), new).unwrap();
    };
    renamed(&[("\0biome\0", "\0month\0"), ("\0month\0", "\0biome\0")]);
    unopened(&desk, &["dataset biome is f32 [4, 2], expected u8 [4, 14]"]);
    renamed(&[("\0aster\0", "\0other\0")]);
    unopened(&desk, &["data_100k_v001.h5: dataset aster is missing, expected i16 [4, 2, 16, 16]"]);
    renamed(&[("\0metadata\0", "\0metadate\0")]);
    unopened(&desk, &["data_100k_v001.h5: dataset metadata is missing"]);
    renamed(&[("l2a\0\0\0\0\0\0\0", "l3a\0\0\0\0\0\0\0")]);
    unopened(&desk, &["data_100k_v001.h5: dataset metadata, row 1: S2_type is \"l3a\", expected \"l1c\" or \"l2a\""]);
}

#[test]
fn missing_and_wrong_companions_are_named() {
    for suffix in [".h5", "_band_stats.json", "_splits.json", "_tile_info.json"] {
        let desk = copy_of(STEMS[0]);
        let path = desk.path(&format!("data/data_100k_v001{suffix}"));
        std::fs::copy(&path, desk.path(&format!("data/data_twice{suffix}"))).unwrap();
        unopened(&desk, &["data: has 2 files data_*", suffix, "expected one"]);
        std::fs::remove_file(desk.path(&format!("data/data_twice{suffix}"))).unwrap();
        std::fs::remove_file(path).unwrap();
        unopened(&desk, &["data: has no file data_*", suffix]);
    }
    let desk = copy_of(STEMS[0]);
    std::fs::write(desk.path("data/data_100k_v001_band_stats.json"), "{\"aster\": ").unwrap();
    unopened(&desk, &["data_100k_v001_band_stats.json: expected mean, std"]);
    std::fs::write(desk.path("data/data_100k_v001_band_stats.json"), "{}").unwrap();
    let dump = "data dump --data @data --rows 1 --normalized --out @x.npy";
    desk.refuse(&format!("{dump} --modality sentinel2"), &["band_stats.json: has no statistics of sentinel2_l2a"]);
    desk.succeed(&format!("{dump} --modality esa_worldcover"));
    // The older metadata needs the tile's level from tile_info.
    let desk = copy_of(STEMS[1]);
    std::fs::write(desk.path("data/data_100k_v000_tile_info.json"), "{\"700\": {\"S2_type\": \"l1c\"}}").unwrap();
    unopened(&desk, &["data_100k_v000_tile_info.json: has no tile \"713\"", "data_100k_v000.h5"]);
    desk.refuse("data inspect --data @nowhere", &["nowhere: is no folder"]);
}

#[test]
fn commands_say_and_write_what_they_should() {
    let desk = copy_of(STEMS[0]);
    let said = desk.succeed("data inspect --data @data --out-png @sheet.png");
    for part in ["4 of 16 x 16", "2 L1C, 2 L2A", "sentinel2 B10", "sentinel1 desc_VV", "tree cover", "4 tiles"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let row = said.lines().find(|l| l.starts_with("canopy_height_eth height")).unwrap();
    assert!(row.contains("6.25 %"), "four of sixteen rows of one of four tiles are missing: {row}");
    assert!(std::fs::read(desk.path("sheet.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(desk.succeed("data inspect --data @data --rows 1,3").contains("looked at        2 tiles"));

    let dump = |arguments: &str| {
        desk.succeed(&format!("data dump --data @data --out @x.npy {arguments}"));
        std::fs::read(desk.path("x.npy")).unwrap()
    };
    let npy = npyz::NpyFile::new(&dump("--rows 2,0 --modality canopy_height_eth")[..]).unwrap().into_vec::<i8>();
    let (values, mut bytes) = (npy.unwrap(), Vec::new());
    let release = Release::open(&desk.path("data")).unwrap();
    release.read_bytes("canopy_height_eth", 2, &mut bytes).unwrap();
    assert_eq!(values[..512], bytes.iter().map(|b| *b as i8).collect::<Vec<_>>());
    let bytes = dump("--rows 3 --modality sentinel1 --normalized --as-released");
    let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
    assert_eq!(npy.shape(), [1, 8, 16, 16]);
    assert!(npy.into_vec::<f32>().unwrap()[4 * 256..].iter().all(|v| *v == 0.0));
    let bytes = dump("--rows 0-2 --modality biome --normalized");
    assert_eq!(npyz::NpyFile::new(&bytes[..]).unwrap().into_vec::<i64>().unwrap(), [4, 0, 13]);

    let bad = "data dump --data @data --modality aster --out";
    desk.refuse(&format!("{bad} @x.npy --rows 0,4"), &["data: has no row 4; it has 4 tiles, rows 0 to 3"]);
    desk.refuse(&format!("{bad} @none/x.npy --rows 0"), &["none/x.npy", "is not a folder"]);
    let output = desk.run(&format!("{bad} @x.npy --rows 1-x"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rows as in 0,5,10-19"));
    for command in ["", "inspect", "dump", "split", "pack"] {
        assert!(desk.succeed(&format!("data {command} --help")).contains("MMEarth"));
    }
}

#[test]
fn splits_part_by_place_and_repeat() {
    let desk = copy_of(STEMS[0]);
    let release = Release::open(&desk.path("data")).unwrap();
    let split = |by, seed| Split::make(&release, by, seed, 0.0, 0.34).unwrap();
    // Row 1 has no ecoregion; rows 2 and 3 share theirs and must stay together.
    let mut tests = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let parts = split(By::Ecoregion, seed);
        assert_eq!(parts, split(By::Ecoregion, seed));
        assert_eq!((parts.test, parts.train), (vec![0], vec![2, 3]));
        // Row 3 has no latitude.
        let grid = split(By::Grid { degrees: 0.01 }, seed);
        assert_eq!((grid.test.len(), grid.train.len()), (1, 2));
        tests.insert(grid.test);
    }
    assert!(tests.len() > 1, "the seed changes nothing");
    let said = desk.succeed("data split --data @data --by ecoregion --val 0 --test 0.34 --seed 3 --out @split.json");
    assert!(said.contains("2 train, 0 validation, 1 test; 2 places by ecoregion, seed 3"), "{said}");
    assert_eq!(Split::read(&desk.path("split.json"), 4).unwrap(), split(By::Ecoregion, 3));
    desk.succeed("data pack --data @data --out @packed");
    desk.succeed("data split --data @packed --by ecoregion --val 0 --test 0.34 --seed 3 --out @again.json");
    assert_eq!(std::fs::read(desk.path("again.json")).unwrap(), std::fs::read(desk.path("split.json")).unwrap());
    let few = "data split --data @data --by grid --degrees 90 --out @split.json";
    desk.refuse(few, &["by grid of 90 degrees no place is small enough for val"]);
    desk.refuse(&format!("{few} --val 0.5 --test 0.5"), &["leave nothing to train on"]);
    assert_eq!(Split::read(&desk.path("data/data_100k_v001_splits.json"), 4).unwrap().train, [2, 0, 3, 1]);
}

fn options(release: &Release) -> Options {
    Options { batch: 3, flips: true, seed: 5, ..Options::of(release) }
}

#[test]
fn batches_do_not_depend_on_threads_or_storage() {
    let desk = copy_of(STEMS[0]);
    let release = Arc::new(Release::open(&desk.path("data")).unwrap());
    packed::pack(&release, &desk.path("packed"), 1 << 13).unwrap();
    let packed = Arc::new(Release::open(&desk.path("packed")).unwrap());
    let text = |release: &Arc<Release>, threads, first| -> Vec<String> {
        let loader = Loader::new(release.clone(), Options { threads, ..options(release) }).unwrap();
        // NaN is not equal to itself, but prints the same.
        loader.prefetch(first).unwrap().take(6).map(|b| format!("{:?}", b.unwrap())).collect()
    };
    let one = text(&release, 1, 0);
    for threads in [2, 5] {
        assert_eq!(text(&release, threads, 0), one);
        assert_eq!(text(&packed, threads, 0), one);
    }
    assert_eq!(text(&packed, 2, 2)[..4], one[2..]);
    assert_ne!(one[0], one[1]);
}

#[test]
fn crops_are_aligned_and_masked() {
    let release = Arc::new(Release::open(&fixture(STEMS[0])).unwrap());
    let base = Options { flips: false, crop: 14, bands: Some(vec!["B02".into(), "B8A".into()]), ..options(&release) };
    let mut loader = Loader::new(release.clone(), base.clone()).unwrap();
    let mut corners = std::collections::BTreeSet::new();
    for step in 0..12 {
        let batch = loader.batch(step).unwrap();
        assert_eq!(batch.fields.len(), 12);
        for (tile, &row) in batch.rows.iter().enumerate() {
            // The crop's corner, by comparison with the whole tile; the same for every modality with pixels.
            let mut fitting: Vec<(usize, usize)> = (0..9).map(|i| (i / 3, i % 3)).collect();
            for field in batch.fields.iter().filter(|f| f.modality.per_pixel()) {
                let whole = release.values(row, field.modality, Rules::Masked).unwrap();
                let stored =
                    if field.modality == Modality::Sentinel2 { vec![1, 7] } else { (0..field.shape[1]).collect() };
                fitting.retain(|(top, left)| {
                    let at = |channel, y, x| (channel * 16 + y + top) * 16 + x + left;
                    let mut places = (0..14 * 14).map(|i| (i / 14, i % 14));
                    match (&field.values, &whole) {
                        (Values::Numbers(crop), Values::Numbers(whole)) => stored.iter().enumerate().all(|(c, &s)| {
                            places.clone().all(|(y, x)| {
                                let i = ((tile * stored.len() + c) * 14 + y) * 14 + x;
                                crop[i].to_bits() == whole[at(s, y, x)].to_bits()
                            })
                        }),
                        (Values::Classes(crop), Values::Classes(whole)) => {
                            places.all(|(y, x)| crop[(tile * 14 + y) * 14 + x] == whole[at(0, y, x)])
                        }
                        _ => false,
                    }
                });
            }
            assert_eq!(fitting.len(), 1, "step {step}, row {row}");
            corners.insert(fitting[0]);
        }
        for (field, shape) in [(0, vec![3, 2, 14, 14]), (3, vec![3, 12]), (4, vec![3, 14, 14]), (8, vec![3])] {
            assert_eq!(batch.fields[field].shape, shape);
            assert_eq!(batch.fields[field].values.len(), shape.iter().product::<usize>());
        }
        let present =
            |field: usize, row| batch.rows.iter().position(|r| *r == row).map(|t| batch.fields[field].present[t]);
        assert!(present(6, 3) != Some(true) && present(8, 3) != Some(true), "row 3 has neither latitude nor biome");
        assert!(
            present(9, 1) != Some(true) && present(1, 3) != Some(false),
            "row 1 has no ecoregion, row 3 Sentinel-1"
        );
    }
    assert!(corners.len() > 5, "{corners:?}");
    let bad = |options| format!("{:#}", Loader::new(release.clone(), options).err().unwrap());
    assert!(bad(Options { crop: 17, ..base.clone() }).contains("crops of 17 pixels, tiles of 16"));
    assert!(bad(Options { rows: vec![9], ..base.clone() }).contains("has no row 9"));
    assert!(bad(Options { bands: Some(vec!["B13".into()]), ..base.clone() }).contains("no band B13"));
    assert!(bad(Options { modalities: vec![Modality::Lat; 2], ..base.clone() }).contains("lat is named twice"));
}

#[test]
fn a_damaged_row_ends_the_batches_with_its_name() {
    let desk = copy_of(STEMS[0]);
    std::fs::copy(fixture("broken/half.h5"), desk.path(H5)).unwrap();
    let release = Arc::new(Release::open(&desk.path("data")).unwrap());
    let options = Options { batch: 1, crop: 2, threads: 2, ..Options::of(&release) };
    let batches: Vec<_> = Loader::new(release, options).unwrap().prefetch(0).unwrap().collect();
    let error = format!("{:#}", batches.last().unwrap().as_ref().unwrap_err());
    assert!(error.contains("dataset aster, row 1: was never written"), "{error}");
    assert!(batches.len() <= 2);
}
