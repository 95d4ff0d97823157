//! The program `quantize` in a folder of its own.

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder that is deleted in the end.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_quantize"))
            .current_dir(self.0.path())
            .args(arguments.split_whitespace())
            .output()
            .unwrap()
    }

    /// Runs, must succeed; standard output.
    pub fn good(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs, must fail with code 2 and one line that holds `parts`.
    pub fn bad(&self, arguments: &str, parts: &[&str]) {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
        assert!(text.starts_with("quantize: ") && text.trim_end().lines().count() == 1, "{text:?}");
        for part in parts {
            assert!(text.contains(part), "{text:?} does not contain {part:?}");
        }
        assert!(output.stdout.is_empty(), "nothing on standard output beside an error");
    }
}
