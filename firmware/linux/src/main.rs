//! `triage`: embeds tiles, decides under a byte budget what of each goes down, and reads back what arrived.

mod commands;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "triage", version, about = "Decides under a byte budget what of each tile goes down")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Embed a stream of tiles and fill an outbox with what is worth most
    Run(commands::run::Arguments),
    /// Read an outbox
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
