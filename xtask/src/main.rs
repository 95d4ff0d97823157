//! `cargo xtask`: what a developer runs beside `cargo build` and `cargo test`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{capi, counts, demo, firmware, header, layers, qemu};

/// Development commands of Nadir.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the whole way on the sample tiles, and writes target/demo/report.html.
    Demo(demo::Arguments),
    /// Runs a model on an emulated microcontroller and checks every embedding against this machine's, byte for byte.
    Qemu(qemu::Arguments),
    /// Hashes every place of five models on an emulated microcontroller, and compares with tests/conformance/kernels.csv.
    Layers(layers::Arguments),
    /// Builds the static library for C and says what it holds: sizes, symbols, functions that can panic.
    Capi(capi::Arguments),
    /// Writes the C header runtime/include/nadir.h from the source, or checks it.
    Header(header::Arguments),
    /// Builds a board's firmware and says what it holds: flash, RAM, symbols of the heap and of panics.
    Size(firmware::Arguments),
    /// Counts the instructions of one embedding under Valgrind, and compares with benches/counts.json.
    Counts(counts::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Qemu(arguments) => qemu::main(&arguments),
        Command::Layers(arguments) => layers::main(&arguments),
        Command::Capi(arguments) => capi::main(&arguments),
        Command::Header(arguments) => header::main(&arguments),
        Command::Size(arguments) => firmware::main(&arguments),
        Command::Counts(arguments) => counts::main(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", one_line(&error));
            // Callers tell "cannot run here" from "ran and failed" by the exit code.
            ExitCode::from(if error.is::<qemu::Missing>() || error.is::<firmware::Missing>() {
                qemu::EXIT_MISSING
            } else {
                2
            })
        }
    }
}

/// The error and its causes; a cause that the text before it names already is left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    line.replace(char::is_control, " ")
}
