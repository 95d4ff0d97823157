//! Build script of every board: puts the memory map where the linker looks, and the model where the program includes it.
//!
//! `NADIR_MODEL` is the model's path (default `models/yocto-rgb-int8.nadir` of the repository), `NADIR_ARENA_KIB` the
//! RAM set aside for the encoder (default 1024).

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    if let Err(error) = prepare() {
        println!("cargo::error={error}");
    }
}

fn prepare() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=NADIR_MODEL");
    println!("cargo::rerun-if-env-changed=NADIR_ARENA_KIB");
    println!("cargo::rerun-if-changed=memory.x");
    println!("cargo::rerun-if-changed=../mps/board.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo::rustc-link-search={}", out.display());
    copy(Path::new("memory.x"), &out.join("memory.x"))?;

    let model =
        env::var_os("NADIR_MODEL").map_or_else(|| PathBuf::from("../../../models/yocto-rgb-int8.nadir"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", model.display());
    copy(&model, &out.join("model.nadir"))?;

    let kib = env::var("NADIR_ARENA_KIB").unwrap_or_else(|_| "1024".into());
    let kib: usize = kib.parse().map_err(|_| format!("NADIR_ARENA_KIB is {kib}, expected a number of KiB"))?;
    let model_bytes = fs::metadata(&model).map_err(|error| format!("{}: {error}", model.display()))?.len();
    let constants = format!("const ARENA_BYTES: usize = {};\nconst MODEL_BYTES: usize = {model_bytes};\n", kib * 1024);
    fs::write(out.join("arena.rs"), constants).map_err(|error| format!("arena.rs: {error}"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("{}: {error}", from.display()))
}
