//! The C interface from C: the header is fresh, and a C99 program gives the embeddings that Rust gives, bit for bit.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nadir::encoder::Encoder;
use nadir::model::{Architecture, Model, Precision};
use nadir_formats::{AlignedBytes, Pixels};
use nadir_quantize::testing::{random_encoder, random_tiles};
use nadir_quantize::{float, int8};
use xtask::{capi, firmware, header};

const HOST: &str = "x86_64-unknown-linux-gnu";

#[test]
fn the_header_is_fresh() {
    header::main(&header::Arguments { check: true }).unwrap();
}

/// Past the capture of the test's output: a skipped test must be seen.
fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED, the C interface from C: {reason}");
}

/// Builds the library and `embed.c`, as strictly as C99 goes; `None` where that cannot be done.
fn build(folder: &Path) -> Option<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) || !capi::installed(HOST) {
        skipped("this machine is not x86-64 Linux");
        return None;
    }
    if Command::new("cc").arg("--version").output().is_err() {
        skipped("there is no C compiler `cc`");
        return None;
    }
    let library = capi::build(HOST).unwrap();
    capi::contents(&fs::read(&library).unwrap()).unwrap().check().unwrap();
    let program = folder.join("embed");
    let output = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O2", "-I"])
        .arg(firmware::root().join("runtime/include"))
        .arg(firmware::root().join("runtime/examples/c/embed.c"))
        .arg(&library)
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}

fn embed(program: &Path, arguments: &[&Path], rest: &[&str]) -> Output {
    Command::new(program).args(arguments).args(rest).output().unwrap()
}

#[test]
fn c_gives_the_embeddings_that_rust_gives() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = build(folder.path()) else { return };
    let weights = random_encoder(Architecture::named("yocto", 64, 16).unwrap(), &["B4", "B3", "B2"], 5);
    let tiles = random_tiles(2, 3, 64, 6).pick(&[1]);
    let Pixels::U8(pixels) = &tiles.pixels else { panic!("random tiles are u8") };
    let tile = folder.path().join("tile.raw");
    fs::write(&tile, pixels).unwrap();

    let path = folder.path().join("model.nadir");
    for (precision, budgets) in
        [(Precision::F32, &[""][..]), (Precision::F16, &[""]), (Precision::Int8, &["", "90000"])]
    {
        let name = precision.name();
        let file = match precision {
            Precision::Int8 => int8::convert(&weights, &tiles).unwrap(),
            _ => float::convert(&weights, precision).unwrap(),
        };
        fs::write(&path, &file).unwrap();
        let file = AlignedBytes::copy_of(&file);
        let model = Model::parse(&file).unwrap();
        let encoder = Encoder::new(&model);
        let mut expected = vec![0.0; model.embedding_dimension()];
        encoder.embed(tiles.tile(0), &mut AlignedBytes::zeroed(encoder.arena_bytes()), &mut expected).unwrap();
        let expected: Vec<String> = expected.iter().map(|v| format!("{:08x}", v.to_bits())).collect();
        for budget in budgets {
            let rest: Vec<&str> = ["u8", budget].into_iter().filter(|text| !text.is_empty()).collect();
            let output = embed(&program, &[&path, &tile], &rest);
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{name} {budget}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(text.starts_with(&format!("model {}, space {}", model.name(), model.embedding_space())), "{text}");
            assert!(text.contains(", 0 values differ"), "{text}");
            assert_eq!(text.contains("two passes: 0\n"), budget.is_empty(), "{text}");
            let found: Vec<&str> = text.lines().skip(4).map(|line| line.split(' ').next().unwrap()).collect();
            assert_eq!(found, expected, "{name} {budget}");
        }
    }

    // Errors name what is wrong, in one line.
    let error = |model: &Path, tile: &Path, rest: &[&str]| {
        let output = embed(&program, &[model, tile], rest);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(error(&path, &tile, &["u16"]), "tile: an array has the wrong length, found 6144, expected 12288\n");
    assert!(error(&path, &tile, &["u8", "5000"]).starts_with("arena: the arena is too small, found 5000, expected "));
    let mut damaged = fs::read(&path).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    let bad = folder.path().join("bad.nadir");
    fs::write(&bad, damaged).unwrap();
    let error = error(&bad, &tile, &["u8"]);
    assert!(error.contains("the model file is damaged (section "), "{error}");
}
