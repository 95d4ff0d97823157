//! Every set of int8 kernels against the committed hashes of every map, in one pass, in two, and with the steps of two runs mixed.
//!
//! `NADIR_CONFORMANCE=quick` takes the first 4 tiles of each model in place of 64, for emulators. The table is of the models as they are
//! committed; after a change of those: `cargo run --release -p nadir-quantize -- verify-kernels --update`.

use std::path::{Path, PathBuf};

use nadir::encoder::{Encoder, Step};
use nadir::kernels::int8::Int8Kernels;
use nadir::plan::int8::Passes::{One, Two};
use nadir_formats::AlignedBytes;
use nadir_quantize::conformance::{Case, FIRST, MODELS, Recorder, TABLE, TILES, Table, chain, hashes};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn table() -> Table {
    Table::read(&root().join(TABLE)).unwrap()
}

fn tiles() -> usize {
    if std::env::var("NADIR_CONFORMANCE").is_ok_and(|v| v == "quick") { FIRST } else { TILES }
}

fn every_set_conforms(name: &'static str) {
    let case = Case::load(&root(), name).unwrap();
    let model = case.model().unwrap();
    for set in Int8Kernels::available() {
        for passes in [[One; 4], [Two; 4]] {
            let encoder = Encoder::new(&model).with_kernels(set.name).unwrap().with_passes(passes);
            // The slowest set computes everything twice on a few tiles only; `verify-kernels` does so on all.
            let count = if set.name == "scalar" && passes == [Two; 4] { FIRST } else { tiles() };
            let found = hashes(&encoder, &case.tiles, count).unwrap();
            table().check(&case, count, &found).unwrap_or_else(|e| panic!("{}, {passes:?}: {e:#}", set.name));
        }
    }
}

#[test]
fn every_set_conforms_on_the_yocto() {
    every_set_conforms("yocto");
}

#[test]
fn every_set_conforms_on_the_zepto() {
    every_set_conforms("zepto");
}

#[test]
fn every_set_conforms_on_raised_layers() {
    every_set_conforms("raised");
}

#[test]
fn every_set_conforms_on_the_atto() {
    every_set_conforms("atto");
}

/// A run may rest after each of its steps while others go on: here two take turns, one with other kernels and passes than the other.
fn runs_may_be_split(name: &'static str) {
    let case = Case::load(&root(), name).unwrap();
    let model = case.model().unwrap();
    for set in Int8Kernels::available() {
        let one = Encoder::new(&model).with_kernels("scalar").unwrap().with_passes([Two, One, Two, One]);
        let two = Encoder::new(&model).with_kernels(set.name).unwrap().with_passes([One, Two, One, Two]);
        let mut found = Vec::new();
        for pair in 0..FIRST / 2 {
            let dimension = model.embedding_dimension();
            let (mut arena, mut embedding) = (AlignedBytes::zeroed(one.arena_bytes()), vec![0.0; dimension]);
            let (mut other_arena, mut other_embedding) =
                (AlignedBytes::zeroed(two.arena_bytes()), vec![0.0; dimension]);
            arena.fill(0xa5);
            other_arena.fill(0x5a);
            let (mut recorder, mut other_recorder) = (Recorder::default(), Recorder::default());
            let mut run = one.start(case.tiles.tile(2 * pair), &mut arena, &mut embedding).unwrap();
            let mut other = two.start(case.tiles.tile(2 * pair + 1), &mut other_arena, &mut other_embedding).unwrap();
            let (mut more, mut other_more) = (true, true);
            while more || other_more {
                more = more && recorder.step(&mut run).unwrap() == Step::More;
                other_more = other_more && other_recorder.step(&mut other).unwrap() == Step::More;
            }
            assert_eq!((run.place(), run.step().unwrap()), (None, Step::Done), "a finished run stays finished");
            found.push(recorder.finish(&embedding));
            found.push(other_recorder.finish(&other_embedding));
        }
        table().check(&case, FIRST, &chain(&found)).unwrap_or_else(|e| panic!("{}: {e:#}", set.name));
    }
}

#[test]
fn runs_may_be_split_after_every_step() {
    MODELS.into_iter().for_each(runs_may_be_split);
}

#[test]
fn differences_are_named() {
    let case = Case::load(&root(), "atto").unwrap();
    let model = case.model().unwrap();
    let good = hashes(&Encoder::new(&model), &case.tiles, FIRST).unwrap();
    table().check(&case, FIRST, &good).unwrap();
    let mut bad = good.clone();
    let other = if good[5].1.starts_with('0') { "1" } else { "0" };
    bad[5].1.replace_range(..1, other);
    let text = table().check(&case, FIRST, &bad).unwrap_err().to_string();
    assert!(text.contains(&format!("atto: {} is the first place that differs", good[5].0)), "{text}");
    let text = table().check(&case, FIRST, &good[1..]).unwrap_err().to_string();
    assert!(text.contains(&format!("{} places, the table has {}", good.len() - 1, good.len())), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.csv");
    let read = |text: String| {
        std::fs::write(&path, text).unwrap();
        Table::read(&path)
    };
    let text = table().text();
    assert_eq!(read(text.clone()).unwrap(), table());
    assert!(read("other\n".into()).unwrap_err().to_string().contains("the first line must be model,file_crc"));
    let short = text.replacen(",stem,", ",", 1);
    assert!(read(short).unwrap_err().to_string().contains("line 2 has 4 fields, 5 expected"));
    // A table of another model says so, and how to make a new one.
    let crc = format!("{:08x}", model.file_crc());
    let other = read(text.replace(&crc, "00000000")).unwrap();
    let text = other.check(&case, FIRST, &good).unwrap_err().to_string();
    assert!(text.contains(&crc) && text.contains("00000000") && text.contains("--update"), "{text}");
}
