//! `cargo xtask`: what a developer runs beside `cargo build` and `cargo test`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::qemu;

/// Development commands of Nadir.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a model on an emulated microcontroller and checks every embedding against this machine's, byte for byte.
    Qemu(qemu::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Qemu(arguments) => qemu::main(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            // Callers tell "cannot run here" from "ran and failed" by the exit code.
            ExitCode::from(if error.is::<qemu::Missing>() { qemu::EXIT_MISSING } else { 2 })
        }
    }
}
