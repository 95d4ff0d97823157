//! The `trainer` command.

use std::process::ExitCode;

use nadir_trainer::commands::{Cli, End};

/// Exit code after an interruption, as shells use it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match Cli::read(std::env::args_os().collect()).and_then(Cli::run) {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            // One line, also where a library's message has several.
            let message = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("trainer: {message}");
            ExitCode::from(2)
        }
    }
}
