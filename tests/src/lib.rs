//! What crosses rooms: the tests here start the commands as a user does, and compare what they write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A command of this repository (`trainer`, `quantize` or `triage`), of the profile in which the test itself was built. `cargo test` over
/// the whole workspace has built it; if it is not there, it is built now.
///
/// # Errors
/// If it cannot be built.
pub fn program(name: &str) -> Result<Command> {
    let test = std::env::current_exe()?;
    // .../target/PROFILE/deps/this-test
    let folder = test.parent().and_then(Path::parent).context("the test does not lie in a target folder")?;
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--bin", name, "--target-dir"]).arg(folder.with_file_name(""));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        ensure!(cargo.status()?.success(), "{name} does not build");
    }
    let mut command = Command::new(path);
    command.current_dir(root());
    Ok(command)
}

/// Runs a command whose arguments are separated by spaces, and gives what it printed.
///
/// # Errors
/// If it fails; with what it said.
pub fn run(name: &str, arguments: &str) -> Result<Output> {
    let output = program(name)?.args(arguments.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {arguments}: {}\n{said}", output.status);
    Ok(output)
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
