//! `trainer distill` as a user runs it: students of other bands, sizes and embedding lengths, and in the teacher's space.

mod common;

use common::{COUNT, Desk, SIDE, desk};
use nadir_formats::{Encoder, Matrix, Pixels, Tiles};

const WHOLE: usize = 24;

const TEACHER: &str = "pretrain --tiles @tiles.npy --bands B4,B3,B2 --dims 8,8,16,16 --depths 1,1,1,1 --patch 8 \
                       --decoder-dim 16 --batch 8 --epochs 6 --flips --out @teacher";
const DISTILL: &str = "distill --teacher @teacher/encoder.safetensors --tiles @tiles.npy --batch 8 --lr 3e-3";

/// The desk with tiles of three patches a side, so that a student can take smaller ones, and a teacher.
fn desk_with_teacher() -> Desk {
    let desk = desk();
    let small = Tiles::read(&desk.path("tiles.npy")).unwrap();
    let Pixels::U8(pixels) = &small.pixels else { panic!() };
    // The pattern goes on beyond the edge.
    let at = |i: usize| pixels[i / (WHOLE * WHOLE) * SIDE * SIDE + i / WHOLE % WHOLE % SIDE * SIDE + i % WHOLE % SIDE];
    let pixels = Pixels::U8((0..COUNT * 3 * WHOLE * WHOLE).map(at).collect());
    Tiles { shape: [COUNT, 3, WHOLE, WHOLE], pixels }.write(&desk.path("tiles.npy")).unwrap();
    desk.succeed(TEACHER);
    std::fs::write(desk.path("small.toml"), "dims = [8, 8, 8, 12]\ndepths = [1, 1, 1, 1]\n").unwrap();
    desk
}

/// The task losses of the last epoch.
fn last(desk: &Desk, run: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(desk.path(run).join("metrics.jsonl")).unwrap();
    serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap()["tasks"].clone()
}

fn embeddings(desk: &Desk, run: &str, arguments: &str) -> Matrix {
    desk.succeed(&format!("embed --model @{run}/encoder.safetensors --tiles @tiles.npy --out @e.npy {arguments}"));
    Matrix::read(&desk.path("e.npy")).unwrap()
}

#[test]
fn a_student_for_another_camera() {
    let desk = desk_with_teacher();
    let text =
        "dims = [8, 8, 8, 12]\ndepths = [1, 1, 1, 1]\nbands = [\"B2\", \"b04\"]\ntile_size = 16\npatch_size = 8\n";
    std::fs::write(desk.path("camera.toml"), text).unwrap();
    desk.succeed(&format!(
        "{DISTILL} --student @camera.toml --matryoshka 3,6 --band-dropout 0.2 --flips --epochs 30 --out @camera"
    ));
    let card = Encoder::read(&desk.path("camera/encoder.safetensors")).unwrap().card;
    assert_eq!((card.band_names(), card.architecture.tile_size), (vec!["B2", "B4"], 16));
    for part in ["--matryoshka 3,6", "--band-dropout 0.2"] {
        assert!(card.provenance.recipe.contains(part), "{}", card.provenance.recipe);
    }
    let tasks = last(&desk, "camera");
    for task in ["feature", "relation", "feature-3", "relation-3", "feature-6", "relation-6"] {
        assert!(tasks[task].as_f64().unwrap() < 1.0, "{tasks}");
    }
    // Three numbers say less than six, and six less than all.
    let feature = |name: &str| tasks[name].as_f64().unwrap();
    assert!(feature("feature-3") > feature("feature-6") && feature("feature-6") > feature("feature"), "{tasks}");
    // Its tiles are those of the smaller camera.
    desk.refuse(
        "embed --model @camera/encoder.safetensors --tiles @tiles.npy --out @e.npy --bands B4,B3,B2",
        &["24 x 24", "16 x 16"],
    );
    // The same with windows of the tile; only the length of the tile decides which of the two is meant.
    desk.succeed(&format!("{DISTILL} --student @small.toml --tile-size 16 --fit crop --epochs 1 --out @crop"));
    assert_eq!(Encoder::read(&desk.path("crop/encoder.safetensors")).unwrap().card.architecture.tile_size, 16);
    // A stem that is not the teacher's.
    let small = std::fs::read_to_string(desk.path("small.toml")).unwrap();
    std::fs::write(desk.path("stem.toml"), format!("{small}stem_padding = \"patchify\"\n")).unwrap();
    desk.succeed(&format!("{DISTILL} --student @stem.toml --epochs 1 --out @stem"));
    assert!(Encoder::read(&desk.path("stem/encoder.safetensors")).unwrap().card.architecture.is_patchify());
}

#[test]
fn a_student_in_the_teachers_space() {
    let desk = desk_with_teacher();
    std::fs::write(desk.path("wide.toml"), "dims = [8, 8, 8, 16]\ndepths = [1, 1, 1, 1]\n").unwrap();
    desk.succeed(&format!("{DISTILL} --student @wide.toml --keep-space --epochs 30 --out @same"));
    desk.succeed(&format!("{DISTILL} --student @wide.toml --epochs 30 --out @own"));
    let space = |run: &str| Encoder::read(&desk.path(run).join("encoder.safetensors")).unwrap().card.embedding_space;
    assert_eq!(space("same"), space("teacher"));
    assert_ne!(space("own"), space("teacher"));
    let teacher = embeddings(&desk, "teacher", "");
    let cosine = |run: &str| {
        let student = embeddings(&desk, run, "");
        let each = (0..COUNT).map(|i| {
            let (a, b) = (student.row(i), teacher.row(i));
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        });
        each.sum::<f32>() / COUNT as f32
    };
    let (same, own) = (cosine("same"), cosine("own"));
    assert!(same > 0.7 && own < 0.4, "{same} in the teacher's space, {own} in another");
    desk.refuse(
        &format!("{DISTILL} --student @small.toml --keep-space --epochs 1 --out @x"),
        &["the student's embedding has 12 dimensions, the teacher's space 16"],
    );
}

#[test]
fn the_teachers_embeddings_are_kept_given_or_made_anew() {
    let desk = desk_with_teacher();
    let student = "--student @small.toml --epochs 2";
    desk.succeed(&format!("{DISTILL} {student} --out @kept"));
    let kept = Matrix::read(&desk.path("kept/teacher.npy")).unwrap();
    let teacher = embeddings(&desk, "teacher", "");
    assert_eq!(kept, teacher);
    teacher.write(&desk.path("t.npy")).unwrap();
    desk.succeed(&format!("{DISTILL} {student} --teacher-embeddings @t.npy --out @given"));
    assert_eq!(last(&desk, "given"), last(&desk, "kept"));
    // Without symmetries a teacher that runs along says what it said before.
    desk.succeed(&format!("{DISTILL} {student} --live-teacher --out @live"));
    let (live, kept) = (last(&desk, "live"), last(&desk, "kept"));
    for task in ["feature", "relation"] {
        let (a, b) = (live[task].as_f64().unwrap(), kept[task].as_f64().unwrap());
        assert!((a - b).abs() < 1e-3 * b, "{live} {kept}");
    }
    desk.succeed(&format!("{DISTILL} {student} --live-teacher --flips --out @turned"));
    assert_ne!(last(&desk, "turned")["feature"], live["feature"]);

    let refuse = |matrix: &Matrix, parts: &[&str]| {
        matrix.write(&desk.path("bad.npy")).unwrap();
        desk.refuse(&format!("{DISTILL} {student} --teacher-embeddings @bad.npy --out @bad"), parts);
        std::fs::remove_dir_all(desk.path("bad")).unwrap();
    };
    let short = Matrix { rows: 2, columns: 16, data: vec![0.0; 32] };
    refuse(&short, &["bad.npy: has 2 embeddings of 16 dimensions; there are 48 tiles"]);
    let mut hole = teacher.clone();
    hole.data[5 * 16 + 3] = f32::NAN;
    refuse(&hole, &["bad.npy: the embedding of tile 5 is not finite"]);
}

#[test]
fn a_student_predicts_more_than_its_teacher() {
    let desk = desk_with_teacher();
    let more = "--table @table.csv --geolocation lat,lon --regress height --classify place --random-features 5";
    let start = |out: &str| format!("{DISTILL} --student @small.toml {more} --pretext-weight 0.5 --flips --out @{out}");
    desk.succeed(&format!("{} --epochs 30", start("more")));
    let tasks = last(&desk, "more");
    let first: serde_json::Value = {
        let text = std::fs::read_to_string(desk.path("more/metrics.jsonl")).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    for task in ["feature", "relation", "lat", "lon", "height", "place"] {
        assert!(tasks[task].is_f64(), "{tasks}");
    }
    // The classes are the tiles' own textures.
    for task in ["feature", "height", "place"] {
        let (start, end) = (first["tasks"][task].as_f64().unwrap(), tasks[task].as_f64().unwrap());
        assert!(end < 0.7 * start, "{task}: from {start} to {end}");
    }
    let recipe = Encoder::read(&desk.path("more/encoder.safetensors")).unwrap().card.provenance.recipe;
    for part in
        ["--random-features 5", "--geolocation lat,lon --regress height --classify place", "--pretext-weight 0.5"]
    {
        assert!(recipe.contains(part), "{recipe}");
    }
    // A student that goes on is near the teacher and the features from the start.
    desk.succeed(&format!("{DISTILL} --init @more/encoder.safetensors --random-features 5 --epochs 1 --out @on"));
    assert!(last(&desk, "on")["feature"].as_f64() < first["tasks"]["feature"].as_f64());
    let refuse = |arguments: &str, parts: &[&str]| {
        desk.refuse(&format!("{DISTILL} --student @small.toml --epochs 1 --out @x {arguments}"), parts);
        let _ = std::fs::remove_dir_all(desk.path("x"));
    };
    refuse("--table @table.csv --regress depth", &["table.csv", "depth"]);
    refuse("--table @none.csv --regress height", &["none.csv"]);
    refuse("--table @table.csv", &["--table: name columns"]);
    refuse("--table @table.csv --geolocation lat,lon --regress lat", &["table.csv: two tasks are named lat"]);
    refuse("--random-features 97", &["97 random features: must be 1 to 96"]);
    let whole = std::fs::read_to_string(desk.path("table.csv")).unwrap();
    std::fs::write(desk.path("table.csv"), whole.replace("coast", "shore")).unwrap();
    desk.refuse(&format!("{} --epochs 30 --resume", start("more")), &["table_contents"]);
    let table = whole.replace("lat,lon,height", "lat,lon,feature");
    std::fs::write(desk.path("bad.csv"), table).unwrap();
    refuse("--table @bad.csv --regress feature", &["feature", "no column may be named so"]);
    let output = desk.run(&format!("{} --epochs 1 --keep-space", start("x")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be used with"));
}

#[test]
fn a_student_for_the_integer_engine_also_after_a_death() {
    let desk = desk_with_teacher();
    desk.succeed(&format!("{DISTILL} --student @small.toml --epochs 4 --out @float"));
    let start = |out: &str, more: &str| {
        format!("{DISTILL} --init @float/encoder.safetensors --quantize-aware --epochs 6 --out @{out} {more}")
    };
    desk.succeed(&start("whole", ""));
    let card = Encoder::read(&desk.path("whole/encoder.safetensors")).unwrap().card;
    assert!(card.provenance.recipe.contains("--quantize-aware"), "{}", card.provenance.recipe);
    desk.succeed(&start("exact", "").replace("--quantize-aware", ""));
    let bytes = |run: &str| std::fs::read(desk.path(run).join("checkpoint.safetensors")).unwrap();
    assert!(bytes("exact") != bytes("whole"), "rounding changes nothing");

    let mut child = desk.command(&start("cut", "")).stderr(std::process::Stdio::null()).spawn().unwrap();
    let began = std::time::Instant::now();
    while !desk.path("cut/checkpoint.safetensors").exists() {
        assert!(began.elapsed().as_secs() < 60, "no checkpoint comes");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    desk.succeed(&start("cut", "--resume"));
    let bytes = |run: &str| std::fs::read(desk.path(run).join("encoder.safetensors")).unwrap();
    assert!(bytes("cut") == bytes("whole"));
    desk.refuse(&format!("{DISTILL} --student @small.toml --quantize-aware --epochs 1 --out @x"), &["give --init"]);
}

#[test]
fn what_cannot_be_distilled_is_named() {
    let desk = desk_with_teacher();
    let refuse = |arguments: &str, parts: &[&str]| {
        desk.refuse(&format!("{DISTILL} --epochs 1 --out @x {arguments}"), parts);
        assert!(!desk.path("x/encoder.safetensors").exists());
        let _ = std::fs::remove_dir_all(desk.path("x"));
    };
    for (text, parts) in [
        ("dims = [8, 8, 8]\ndepths = [1, 1, 1, 1]", ["bad.toml", "length 4"]),
        ("dims = [8, 8, 8, 8]\ndepths = [1, 1, 1, 1]\nwidth = 3", ["bad.toml", "unknown field `width`"]),
        ("dims = [8, 8, 8, 0]\ndepths = [1, 1, 1, 1]", ["bad.toml", "stage 3 has 0 channels"]),
        ("dims =", ["bad.toml", "value"]),
    ] {
        std::fs::write(desk.path("bad.toml"), text).unwrap();
        refuse("--student @bad.toml", &parts);
    }
    refuse("--student huge.toml", &["huge.toml", "No such file"]);
    refuse("--student dwarf", &["--student dwarf: is neither a known size nor a .toml file"]);
    refuse("--student @small.toml --student-bands B4,B8", &["band B8", "the teacher has B4,B3,B2"]);
    refuse("--student @small.toml --student-bands B4,b04", &["band B4 is named twice"]);
    refuse("--student @small.toml --tile-size 12", &["12 pixels are not whole patches of 8"]);
    refuse("--student @small.toml --tile-size 32", &["tiles of 32 pixels cannot be made of tiles of 24"]);
    refuse("--student @small.toml --matryoshka 6,3", &["prefixes [6, 3]: must rise, and be below 12"]);
    refuse("--student @small.toml --matryoshka 12", &["prefixes [12]"]);
    let output = desk.run(&format!("{DISTILL} --epochs 1 --out @x --band-dropout 1"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("must be below 1"));
}
