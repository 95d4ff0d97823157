//! The same model on an emulated microcontroller and on this machine: every byte of every embedding and record.
//!
//! Where QEMU or the compiler's target is not installed these tests cannot run, and say so.

use std::path::{Path, PathBuf};

use nadir::model::{Architecture, Precision, StemPadding};
use nadir::triage::prototypes::{Header, Table};
use nadir::triage::record::Reason;
use nadir_formats::{Encoder, Pixels, Tiles};
use nadir_quantize::testing::{Random, random_encoder, random_tiles};
use nadir_quantize::{float, int8};
use xtask::qemu::{Arguments, Missing, Report, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The report, or `None` where something has to be installed first.
fn report(arguments: &Arguments) -> Option<Report> {
    match run(arguments) {
        Ok(report) => {
            println!("{}", report.text());
            Some(report)
        }
        Err(error) => {
            let missing = error.downcast::<Missing>().unwrap_or_else(|error| panic!("{error:#}"));
            skipped(&missing);
            None
        }
    }
}

fn skipped(missing: &Missing) {
    // Past the capture of the test's output: a skipped test must be seen.
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "\nSKIPPED, no microcontroller to compare with: {missing}\n");
}

/// Writes a model of `encoder` into `folder`.
fn model(folder: &Path, encoder: &Encoder, precision: Precision, tiles: &Tiles) -> PathBuf {
    let bytes = match precision {
        Precision::Int8 => int8::convert(encoder, tiles).unwrap(),
        other => float::convert(encoder, other).unwrap(),
    };
    let path = folder.join("model.nadir");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_shipped_model_gives_the_same_bytes_on_16_real_tiles() {
    let Some(report) = report(&Arguments::new("mps2-an500")) else { return };
    assert!(report.agrees());
    assert_eq!((report.equal(), report.embedded(), report.rows.len()), (16, 16, 16));
    assert_eq!(report.contents.heap_symbols, 0);
    assert!(report.instructions() > report.transcript.macs as f64 / 4.0, "the clock counts instructions");
    let mut embeddings: Vec<_> = report.transcript.embeddings.iter().map(|(_, _, bytes)| bytes).collect();
    embeddings.sort();
    embeddings.dedup();
    assert_eq!(embeddings.len(), 16, "different tiles have different embeddings");
}

/// Thirteen bands of u16, a stem with the other padding, prototypes and a bank, and a tile without data.
#[test]
fn other_bands_types_and_geometry_agree_too() {
    let folder = tempfile::tempdir().unwrap();
    let all = Tiles::read(&root().join("samples/eurosat-ms/tiles.npy")).unwrap();
    let mut tiles = all.pick(&[0, 1, 2]);
    let Pixels::U16(pixels) = &mut tiles.pixels else { panic!("the 13-band samples are u16") };
    let tile_len = pixels.len() / 3;
    pixels[tile_len..2 * tile_len].fill(0);
    let tiles_path = folder.path().join("tiles.npy");
    tiles.write(&tiles_path).unwrap();

    let architecture =
        Architecture { stem_padding: StemPadding::None, ..Architecture::named("yocto", 64, 16).unwrap() };
    let bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A"];
    let mut encoder = random_encoder(architecture, &bands, 21);
    for band in &mut encoder.card.bands {
        (band.mean, band.std, band.saturation) = (1500.0, 900.0, None);
    }
    let space = encoder.card.embedding_space.clone();
    let dimension = architecture.embedding_dimension();
    let mut random = Random::new(4);
    let centre: Vec<f32> = (0..dimension).map(|_| random.normal() as f32).collect();
    let mut vectors =
        |n: usize| -> Vec<i8> { (0..n * dimension).map(|_| (20.0 * random.normal()) as i8 | 1).collect() };
    let (prototypes, bank) = (vectors(3), vectors(7));
    let table = Table {
        header: Header {
            embedding_space: &space,
            dimension: dimension as u16,
            prototypes: 3,
            bank: 7,
            midpoint: 0.0,
            temperature: 0.1,
            novel_from: 0.5,
        },
        centre: &centre,
        labels: &[(2, true), (5, false), (6, false)],
        vectors: &prototypes,
        bank: &bank,
    };
    let mut bytes = vec![0; table.max_bytes()];
    let length = table.write(&mut bytes).unwrap();
    let prototypes_path = folder.path().join("prototypes.bin");
    std::fs::write(&prototypes_path, &bytes[..length]).unwrap();

    let arguments = Arguments {
        model: Some(model(folder.path(), &encoder, Precision::Int8, &tiles)),
        tiles: Some(tiles_path),
        count: 3,
        prototypes: Some(prototypes_path),
        ..Arguments::new("mps2-an500")
    };
    let Some(report) = report(&arguments) else { return };
    assert!(report.agrees());
    assert_eq!((report.equal(), report.embedded(), report.rows.len()), (2, 2, 3));
    let records: Vec<_> = report.rows.iter().map(|row| row.record).collect();
    assert_eq!((records[1].reason, records[1].no_data, records[1].scores), (Reason::VetoedNoData, 1000, None));
    assert!(records[0].scores.is_some() && records[2].scores.is_some() && records[0].scores != records[2].scores);
}

#[test]
fn a_model_that_needs_more_memory_is_refused_by_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = random_encoder(Architecture::named("yocto", 64, 16).unwrap(), &["B4", "B3", "B2"], 3);
    let tiles = random_tiles(1, 3, 64, 1);
    let tiles_path = folder.path().join("tiles.npy");
    tiles.write(&tiles_path).unwrap();
    let arguments = Arguments {
        model: Some(model(folder.path(), &encoder, Precision::F32, &tiles)),
        tiles: Some(tiles_path),
        count: 1,
        arena_kib: 64,
        ..Arguments::new("mps2-an500")
    };
    match run(&arguments) {
        Ok(_) => panic!("64 KiB cannot be enough"),
        Err(error) => match error.downcast::<Missing>() {
            Ok(missing) => skipped(&missing),
            Err(error) => {
                let line = format!("{error:#}");
                assert!(
                    line.starts_with("the device failed (Encoder): arena has 65536 bytes, the model needs "),
                    "{line}"
                );
            }
        },
    }
}
