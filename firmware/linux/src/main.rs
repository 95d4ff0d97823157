//! `triage`: embeds tiles, decides under a byte budget what of each goes down, and reads back what arrived.

mod commands;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "triage",
    version,
    about = "Decides under a byte budget what of each tile goes down",
    after_help = EXAMPLE
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
Example, in the repository's folder (class 4 of the samples is Industrial):
  triage prototypes --model models/yocto-rgb-int8.nadir --tiles samples/eurosat-rgb/tiles.npy \\
      --labels samples/eurosat-rgb/labels.npy --split samples/eurosat-rgb/split.npy --use 0 --wanted 4 --out industrial.proto
  triage run --model models/yocto-rgb-int8.nadir --frames samples/eurosat-rgb/tiles.npy \\
      --prototypes industrial.proto --budget 256KiB --out outbox
  triage show outbox

Any error is one line on stderr, and exit code 2.";

#[derive(Subcommand)]
enum Command {
    /// Embed a stream of tiles and fill an outbox with what is worth most
    Run(commands::run::Arguments),
    /// Read back an outbox, or what arrived of it
    Show(commands::show::Arguments),
    /// Make prototypes of classes from labelled tiles
    Prototypes(commands::prototypes::Arguments),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => commands::run::run(&arguments),
        Command::Show(arguments) => commands::show::run(&arguments),
        Command::Prototypes(arguments) => commands::prototypes::run(&arguments),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the cause's text looks like.
            eprintln!("triage: {}", format!("{error:#}").replace('\n', " "));
            std::process::ExitCode::from(2)
        }
    }
}
