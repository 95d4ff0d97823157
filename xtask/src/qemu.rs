//! `cargo xtask qemu BOARD`: a model on an emulated microcontroller, compared with this machine.

use std::path::PathBuf;

/// Exit code where the emulator or the compiler's target is not installed.
pub const EXIT_MISSING: u8 = 3;

/// Something that has to be installed first.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Arguments of `cargo xtask qemu`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The board: mps2-an500.
    pub board: String,
    /// The model that goes into the firmware's flash.
    #[arg(long, default_value = "models/yocto-rgb-int8.nadir")]
    pub model: PathBuf,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    match arguments.board.as_str() {
        "mps2-an500" => anyhow::bail!("{} does not exist yet", arguments.model.display()),
        other => anyhow::bail!("no board {other}; there is mps2-an500"),
    }
}
