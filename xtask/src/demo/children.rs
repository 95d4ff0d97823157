//! The commands that the demo runs as child processes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::firmware::root;

/// A command of this repository.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    Trainer,
    Quantize,
    Triage,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Trainer => "trainer",
            Program::Quantize => "quantize",
            Program::Triage => "triage",
        }
    }
}

/// Where the release binaries lie.
pub struct Programs(PathBuf);

impl Programs {
    /// Builds the commands in release.
    pub fn build() -> Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--release", "-p", "nadir-trainer", "-p", "nadir-quantize", "-p", "nadir-linux"]);
        run(cargo.current_dir(root()))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        Self::in_folder(&target.join("release"))
    }

    /// The commands as they lie in `folder`.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self(std::path::absolute(folder)?))
    }

    /// A command that runs in the repository's root.
    pub fn command(&self, program: Program) -> Command {
        let mut command = Command::new(self.0.join(format!("{}{}", program.name(), std::env::consts::EXE_SUFFIX)));
        command.current_dir(root());
        command
    }
}

fn name(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match command.get_args().next() {
        Some(first) => format!("{program} {}", first.to_string_lossy()),
        None => program,
    }
}

/// Runs a command whose words go where the demo's go.
///
/// # Errors
/// If it cannot be started or fails; its own message is on standard error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be started", name(command)))?;
    ensure!(status.success(), "{} failed ({status})", name(command));
    Ok(())
}

/// Runs a command and returns what it printed; its progress and messages stay visible.
///
/// # Errors
/// As [`run`], or if it printed something that is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} cannot be started", name(command)))?;
    ensure!(output.status.success(), "{} failed ({})", name(command), output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", name(command)))
}

/// Runs a command that prints one JSON value.
///
/// # Errors
/// As [`output`], or if it printed something else.
pub fn json(command: &mut Command) -> Result<Value> {
    let text = output(command)?;
    serde_json::from_str(&text).with_context(|| format!("{} printed no JSON", name(command)))
}

/// A number at `path`, its parts divided by dots.
///
/// # Errors
/// If there is none.
pub fn number(value: &Value, path: &str) -> Result<f64> {
    let found = path.split('.').fold(value, |value, part| &value[part]);
    match found.as_f64() {
        Some(number) => Ok(number),
        None => bail!("no number {path} in {value}"),
    }
}
