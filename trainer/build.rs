//! With the feature `cuda`: compiles the kernels with nvcc.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "src/ops/cuda/kernels";

fn main() {
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    // The toolkit that candle's kernels are compiled with.
    let nvcc = match std::env::var_os("CUDA_HOME") {
        Some(home) if Path::new(&home).join("bin/nvcc").exists() => Path::new(&home).join("bin/nvcc"),
        _ => PathBuf::from("nvcc"),
    };
    // The oldest capability that CUDA 12 and 13 both know: the driver compiles for its own GPU from there.
    let status = Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "-arch=compute_75", "-o"])
        .arg(&out)
        .arg(Path::new(SOURCES).join("all.cu"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} failed on {SOURCES}: {status}", nvcc.display()),
        Err(error) => panic!("{}: {error}; the feature cuda needs nvcc of CUDA 12 or 13", nvcc.display()),
    }
}
