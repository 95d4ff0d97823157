//! `quantize plan`, `bound`, `profile`, `kernels`, and `--kernels`, `--threads` from outside.

mod common;

use std::ops::Deref;

use common::Folder;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{Architecture, Precision};
use nadir_formats::{Pixels, Tiles};
use nadir_quantize::float::convert;
use nadir_quantize::testing::{random_encoder, random_int8_model, random_tiles};
use serde_json::Value;

/// A folder with an int8 model, an f32 model, and tiles of both.
struct Bench {
    folder: Folder,
}

impl Deref for Bench {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: Folder::new() };
        let architecture = Architecture { dims: [8, 16, 24, 32], ..Architecture::named("yocto", 32, 16).unwrap() };
        let bands = ["B4", "B3", "B2"];
        std::fs::write(bench.path("q.nadir"), random_int8_model("small", architecture, &bands, 1)).unwrap();
        let encoder = random_encoder(architecture, &bands, 3);
        std::fs::write(bench.path("f.nadir"), convert(&encoder, Precision::F32).unwrap()).unwrap();
        random_tiles(5, 3, 32, 4).write(&bench.path("t.npy")).unwrap();
        bench
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.good(arguments)).unwrap()
    }
}

#[test]
fn plans_are_shown_and_drawn() {
    let bench = Bench::new();
    let text = bench.good("plan q.nadir --png arena.png");
    for part in ["small int8: arena ", "passes 1,1,1,1", "block 2.2", "downsample 3", "hidden ", "finish", "  <-"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let png = std::fs::read(bench.path("arena.png")).unwrap();
    let decoder = png::Decoder::new(std::io::Cursor::new(&png));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    // Eleven places: stem, six blocks, three downsamplings, head.
    assert_eq!((reader.info().width, reader.info().height), (80 + 44 * 11 + 120, 470));
    for colour in [[0, 114, 178], [230, 159, 0]] {
        assert!(pixels.chunks_exact(3).filter(|p| *p == colour).count() > 5000, "the map and the hidden map are seen");
    }
    assert!(bench.good("plan f.nadir --png f.png").contains("random-3 f32: arena "));
    assert!(bench.path("f.png").exists());
    assert!(bench.good("plan q.nadir --passes 2,1,2,1").contains("passes 2,1,2,1"));
}

#[test]
fn budgets_that_do_not_fit_name_the_smallest() {
    let bench = Bench::new();
    let smallest = bench.good("plan q.nadir --passes 2,2,2,2");
    let bytes = smallest.split("arena ").nth(1).unwrap().split(' ').next().unwrap().replace(',', "");
    assert!(bench.good(&format!("plan q.nadir --budget {bytes}")).contains("small int8: arena "));
    let part = format!("the smallest arena of this model has {bytes} bytes, 100 are allowed");
    bench.bad("plan q.nadir --budget 100", &["q.nadir", "--budget", &part]);
    bench.bad("plan f.nadir --budget 100", &["f.nadir", "--budget", "100 are allowed"]);
    bench.bad("plan q.nadir --passes 1,1", &["--passes", "2 passes given for 4 stages"]);
    bench.bad("plan q.nadir --passes 1,1,1,x", &["--passes", "passes are 1 or 2, not \"x\""]);
    bench.bad("plan f.nadir --passes 2,1,1,1", &["--passes", "f32 and f16 models have one pass"]);
    bench.bad("plan q.nadir --png nowhere/x.png", &["nowhere/x.png"]);
    bench.bad("plan t.npy", &["t.npy", "not a .nadir model"]);
    std::fs::write(bench.path("cut.nadir"), &std::fs::read(bench.path("q.nadir")).unwrap()[..4000]).unwrap();
    for command in ["plan cut.nadir", "bound cut.nadir", "profile cut.nadir t.npy"] {
        bench.bad(command, &["cut.nadir", "is truncated: 4000 bytes"]);
    }
    assert_eq!(bench.run("plan q.nadir --budget many").status.code(), Some(2));
}

#[test]
fn bounds_are_multiply_adds_times_instructions() {
    let bench = Bench::new();
    let plain = bench.json("bound q.nadir --json");
    assert_eq!(plain["instructions"], Value::Null);
    let macs = plain["macs"].as_u64().unwrap();
    let steps = plain["steps"].as_array().unwrap();
    assert_eq!(steps.iter().map(|s| s["macs"].as_u64().unwrap()).sum::<u64>(), macs);
    let largest = steps.iter().map(|s| s["step_macs"].as_u64().unwrap()).max();
    assert_eq!(plain["largest_step"]["macs"].as_u64(), largest);
    let bound = bench.json("bound q.nadir --instructions-per-mac 2.5 --json");
    assert_eq!(bound["instructions"].as_u64(), Some((macs as f64 * 2.5).ceil() as u64));
    let text = bench.good("bound q.nadir --instructions-per-mac 2.5");
    assert!(text.contains("largest step: ") && text.contains(" instructions\n"), "{text}");
    assert!(bench.json("bound q.nadir --passes 2,2,2,2 --json")["macs"].as_u64() > Some(macs));
    assert!(bench.json("bound f.nadir --json")["macs"].as_u64() > Some(0));

    let counts = r#"{"about": "x", "host": {"scalar small-int8": {"per_mac": 4.0}, "scalar other-int8": {"per_mac": 5.0},
        "scalar other-f32": {"per_mac": 9.0}}, "boards": {"m7 other-int8": {"per_mac": 1.5}}}"#;
    bench.write("counts.json", counts);
    let per_mac = |target: &str| bench.json(&format!("bound q.nadir --counts counts.json --target {target} --json"));
    assert_eq!(per_mac("scalar")["instructions_per_mac"], 4.0);
    assert_eq!(per_mac("m7")["instructions_per_mac"], 1.5);
    let known = "only m7 other-int8, scalar other-f32, scalar other-int8, scalar small-int8";
    bench.bad(
        "bound q.nadir --counts counts.json --target m4",
        &["counts.json", "has no \"m4\" for int8 models", known],
    );
    bench.bad("bound q.nadir --counts none.json --target m4", &["none.json"]);
    bench.write("bad.json", "{");
    bench.bad("bound q.nadir --counts bad.json --target m4", &["bad.json", "is not JSON"]);
    bench.bad("bound q.nadir --instructions-per-mac 0", &["--instructions-per-mac", "0 is not above 0"]);
}

#[test]
fn profiles_measure_every_place() {
    let bench = Bench::new();
    let profile = bench.json("profile q.nadir t.npy --kernels scalar --passes 2,1,1,1 --json");
    assert_eq!((&profile["kernels"], &profile["tiles"]), (&Value::from("scalar"), &Value::from(5)));
    let places = profile["places"].as_array().unwrap();
    assert_eq!(places.len(), 11);
    let sum: f64 = places.iter().map(|place| place["microseconds"].as_f64().unwrap()).sum();
    assert!(sum > 0.0 && (sum / profile["microseconds"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let text = bench.good("profile q.nadir t.npy");
    for part in ["GMAC/s", "longest step: ", "median of 5 tiles", "block 2.1", "all "] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    bench.bad("profile q.nadir t.npy --kernels none", &["no kernels \"none\" for int8 models", "scalar"]);
    random_tiles(2, 3, 40, 1).write(&bench.path("large.npy")).unwrap();
    bench.bad("profile q.nadir large.npy", &["large.npy", "[2, 3, 40, 40]"]);
    let empty = Tiles { shape: [0, 3, 32, 32], pixels: Pixels::U8(Vec::new()) };
    empty.write(&bench.path("empty.npy")).unwrap();
    bench.bad("profile q.nadir empty.npy", &["empty.npy", "no pixel"]);
    assert_eq!(bench.run("profile q.nadir").status.code(), Some(2), "neither tiles nor counters");
}

#[test]
fn counters_of_a_device_are_joined() {
    let bench = Bench::new();
    bench.write("c.csv", "place,cycles\nstem,1000\nblock 0.0,2000\nblock 0.0,500\n\nhead,7\n");
    bench.write("map.json", r#"{"stem": 1000, "block 0.0": 2500, "head": 7}"#);
    bench.write("list.json", r#"[{"place": "stem", "cycles": 1000}, {"place": "block 0.0", "cycles": 2500}, {"place": "head", "cycles": 7}]"#);
    let csv = bench.json("profile q.nadir --counters c.csv --json");
    assert_eq!(csv["cycles"], 3507.0);
    assert_eq!((&csv["places"][1]["cycles"], &csv["places"][2]["cycles"]), (&Value::from(2500.0), &Value::Null));
    for file in ["map.json", "list.json"] {
        assert_eq!(bench.json(&format!("profile q.nadir --counters {file} --json")), csv);
    }
    let text = bench.good("profile q.nadir t.npy --counters c.csv");
    assert!(text.contains("cycles/MAC") && text.contains("GMAC/s"), "{text}");
    for (content, part) in [
        ("stem,1\nblock 9.9,2\n", "no place \"block 9.9\", only stem, block 0.0, downsample 1"),
        ("stem,1\nblock 0.0,many\n", "line 2: \"many\" is not a number"),
        ("stem\n", "line 1 is not place,cycles"),
        ("stem,-4\n", "stem has -4 cycles"),
        ("", "has no counters"),
        ("[{\"place\": \"stem\"}]", "stem has no \"cycles\""),
        ("{\"stem\": \"x\"}", "stem is no number"),
        ("{", "bad.txt"),
    ] {
        bench.write("bad.txt", content);
        bench.bad("profile q.nadir --counters bad.txt", &["bad.txt", part]);
    }
    bench.bad("profile q.nadir --counters none.csv", &["none.csv"]);
}

#[test]
fn kernels_go_by_name() {
    let bench = Bench::new();
    let list = bench.good("kernels");
    assert!(list.starts_with("int8  scalar") && list.contains("\nf32   scalar"), "{list}");
    bench.good("embed --model q.nadir --tiles t.npy --out e.npy");
    let expected = std::fs::read(bench.path("e.npy")).unwrap();
    for set in Int8Kernels::available() {
        for threads in [1, 3] {
            let options = format!("--kernels {} --threads {threads}", set.name);
            bench.good(&format!("embed --model q.nadir --tiles t.npy --out k.npy {options}"));
            assert!(std::fs::read(bench.path("k.npy")).unwrap() == expected, "{options}");
        }
    }
    for model in ["q", "f"] {
        let arguments = format!("embed --model {model}.nadir --tiles t.npy --out x.npy --kernels sse9");
        let precision = if model == "q" { "int8" } else { "f32" };
        bench.bad(&arguments, &["there are no kernels \"sse9\"", precision, "only: scalar"]);
    }
    assert_eq!(bench.run("embed --model q.nadir --tiles t.npy --out x.npy --threads 0").status.code(), Some(2));
    assert!(!bench.path("x.npy").exists());
    bench.bad("verify-kernels --root nowhere", &["kernels.csv"]);
}
