//! The subcommands that turn one model file into another: `delta`, `apply`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use nadir::delta::{Delta, DeltaError, damaged_blocks};
use nadir_formats::{AlignedBytes, write_atomic};
use nadir_quantize::soundness::{self, Trust};
use nadir_quantize::{delta, keys};

use crate::{parse, print, writable};

#[derive(Subcommand)]
pub enum Command {
    /// Make a small file that turns one .nadir file into another, for a narrow uplink
    ///
    /// Each section is sent as whatever is smallest: not at all, as the elements that differ, or whole. CRCs and parity are computed again where the
    /// delta is applied. The sizes are compared with the new file and with a pass of a UHF link.
    Delta {
        /// The model that is on board
        old: PathBuf,
        /// The model that shall replace it
        new: PathBuf,
        /// The file to write
        #[arg(long, value_name = "D.delta")]
        out: PathBuf,
        /// Sign the delta with a private key of Ed25519, PEM: then it can be refused before anything is written
        #[arg(long, value_name = "KEY.pem")]
        key: Option<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Turn a .nadir file into another by a delta, with the runtime's code, and check what comes out as `quantize check` does
    Apply {
        /// The model for which the delta was made
        old: PathBuf,
        /// The delta
        delta: PathBuf,
        /// The file to write
        #[arg(long, value_name = "NEW.nadir")]
        out: PathBuf,
        /// The public key with which the new model must be signed, PEM; and the delta, if it is signed
        #[arg(long, value_name = "PUB.pem")]
        key: Option<PathBuf>,
        /// The least version of the new model that is accepted
        #[arg(long, value_name = "N", default_value_t = 0)]
        at_least: u32,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Delta { old, new, out, key, json } => {
            let key = key.as_deref().map(keys::read_private).transpose()?;
            let (old_bytes, new_bytes) = (AlignedBytes::read(&old)?, AlignedBytes::read(&new)?);
            let models = (parse(&old_bytes, &old)?, parse(&new_bytes, &new)?);
            writable(&out)?;
            let both = || format!("{} and {}", old.display(), new.display());
            let made = delta::make(&models.0, &models.1, key.as_ref()).with_context(both)?;
            write_atomic(&out, &made.file)?;
            print(&if json { format!("{:#}\n", delta::json(&made)) } else { delta::text(&made) })
        }
        Command::Apply { old, delta, out, key, at_least } => {
            let key = key.as_deref().map(keys::read_public).transpose()?;
            let old_bytes = AlignedBytes::read(&old)?;
            let file = AlignedBytes::read(&delta)?;
            let named = || delta.display().to_string();
            let delta = Delta::parse(&file).map_err(|error| damaged(&file, error)).with_context(named)?;
            delta.check_version(at_least).with_context(named)?;
            if let Some(key) = key.filter(|_| delta.is_signed()) {
                delta.verify_signature(&key).with_context(named)?;
            }
            writable(&out)?;
            let new = delta::apply(&old_bytes, &delta).with_context(|| old.display().to_string())?;
            accept(&new, &out, &Trust { key, least_version: at_least })
        }
    }
}

/// Checks the new file, writes it, and says what was checked.
fn accept(new: &[u8], out: &Path, trust: &Trust) -> Result<()> {
    let named = || format!("{} (not written)", out.display());
    let checks = soundness::check(&AlignedBytes::copy_of(new), trust).with_context(named)?;
    write_atomic(out, new)?;
    print(&soundness::text(&checks))
}

/// The most damaged blocks that a message names.
const NAMED: usize = 4;

/// The error, and the other blocks that are damaged.
fn damaged(file: &[u8], error: DeltaError) -> anyhow::Error {
    let blocks: Vec<String> = match damaged_blocks(file) {
        Ok(blocks) => blocks
            .filter_map(|block| match block {
                DeltaError::Block { index, .. } => Some(index.to_string()),
                _ => None,
            })
            .collect(),
        Err(_) => Vec::new(),
    };
    match blocks.len() {
        0 | 1 => error.into(),
        count if count > NAMED => anyhow!("{error}; {count} blocks are: {}, ...", blocks[..NAMED].join(", ")),
        count => anyhow!("{error}; {count} blocks are: {}", blocks.join(", ")),
    }
}
