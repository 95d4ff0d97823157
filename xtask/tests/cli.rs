//! Exit codes and error lines of `cargo xtask qemu` and `counts`: 3 where something is not installed, 2 on any other error.

use std::io::Write;
use std::process::{Command, Output};

fn xtask(arguments: &[&str], path: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.output().unwrap()
}

fn error_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

#[test]
fn without_qemu_it_says_what_to_install_and_exits_with_3() {
    let nowhere = tempfile::tempdir().unwrap();
    let output = xtask(&["qemu", "mps2-an500"], nowhere.path().to_str());
    assert_eq!(output.status.code(), Some(3));
    let line = error_line(&output);
    assert!(line.starts_with("xtask: qemu-system-arm is not installed: apt install qemu-system-arm"), "{line}");
}

#[test]
fn without_valgrind_it_says_that_nothing_was_counted_and_exits_with_3() {
    let nowhere = tempfile::tempdir().unwrap();
    let output = xtask(&["counts"], nowhere.path().to_str());
    assert_eq!(output.status.code(), Some(3));
    let line = error_line(&output);
    assert!(line.starts_with("xtask: valgrind is not installed, NO INSTRUCTIONS WERE COUNTED: apt install"), "{line}");
}

#[test]
fn other_errors_exit_with_2() {
    let output = xtask(&["qemu", "pdp-11"], None);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(error_line(&output), "xtask: no board pdp-11; there are: mps2-an386, mps2-an500, mps3-an547\n");

    let output = xtask(&["qemu", "mps2-an500", "--model", "nowhere.nadir"], None);
    if output.status.code() == Some(3) {
        // Past the capture of the test's output: a skipped test must be seen.
        let _ =
            writeln!(std::io::stderr(), "\nSKIPPED, errors after the start of the emulator: {}", error_line(&output));
        return;
    }
    assert_eq!(output.status.code(), Some(2));
    let line = error_line(&output);
    assert!(line.starts_with("xtask: nowhere.nadir: ") && line.matches("os error").count() == 1, "{line}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [b'x'; 4096]).unwrap();
    let output = xtask(&["qemu", "mps2-an500", "--model", file.path().to_str().unwrap()], None);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_line(&output).contains("not a .nadir model"));
}
