//! The subcommands that make a file fit for flight and look whether it still is: `sign`, `check`, `repair`; and `convert`'s options for it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use ed25519_dalek::SigningKey;
use nadir::model::Model;
use nadir_formats::{AlignedBytes, write_atomic};
use nadir_quantize::flight::{Equipment, equip, sign};
use nadir_quantize::soundness::{self, Trust};
use nadir_quantize::{inspect::hexadecimal, keys};

use crate::{parse, print, writable};

#[derive(Args)]
pub struct Equip {
    /// Add a parity byte to every 8 bytes, by which `quantize repair` and the runtime correct any flipped bit; 12.5 % more bytes
    #[arg(long)]
    parity: bool,
    /// Version of the model: count up whenever one replaces another, so that on board none is rolled back
    #[arg(long, value_name = "N", default_value_t = 1)]
    model_version: u32,
    /// Sign with a private key of Ed25519, as `openssl genpkey -algorithm ed25519` writes it
    #[arg(long, value_name = "KEY.pem")]
    sign: Option<PathBuf>,
}

impl Equip {
    /// The key that signs; read before the work begins.
    pub fn key(&self) -> Result<Option<SigningKey>> {
        self.sign.as_deref().map(keys::read_private).transpose()
    }

    /// The file of `model` with all that was asked for.
    pub fn equip(&self, model: &Model<'_>, key: Option<&SigningKey>) -> Result<Vec<u8>> {
        equip(model, &Equipment { model_version: Some(self.model_version), parity: self.parity, key })
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Sign a .nadir file with Ed25519
    ///
    /// Keys: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out pub.pem
    Sign {
        /// The private key, PEM (PKCS#8)
        #[arg(long, value_name = "KEY.pem")]
        key: PathBuf,
        /// The model
        model: PathBuf,
        /// The file to write, if not the model itself
        #[arg(long, value_name = "Y.nadir")]
        out: Option<PathBuf>,
    },
    /// Check that a .nadir file is sound, runs its self-test, and with --key who signed it; exit code 2 if not
    Check {
        /// The model
        model: PathBuf,
        /// The public key with which it must be signed, PEM
        #[arg(long, value_name = "PUB.pem")]
        key: Option<PathBuf>,
        /// The least version of the model that is accepted
        #[arg(long, value_name = "N", default_value_t = 0)]
        at_least: u32,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set right the flipped bits of a .nadir file with parity
    Repair {
        /// The model
        model: PathBuf,
        /// The file to write
        #[arg(long, value_name = "Y.nadir")]
        out: PathBuf,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Sign { key, model, out } => {
            let signing = keys::read_private(&key)?;
            let bytes = AlignedBytes::read(&model)?;
            let out = out.as_deref().unwrap_or(&model);
            writable(out)?;
            let signed = sign(&parse(&bytes, &model)?, &signing).with_context(|| model.display().to_string())?;
            write_atomic(out, &signed)?;
            let id = nadir::guard::key_id(&signing.verifying_key().to_bytes());
            print(&format!("{}: signed with key {}\n", out.display(), hexadecimal(&id)))
        }
        Command::Check { model, key, at_least, json } => {
            let key = key.as_deref().map(keys::read_public).transpose()?;
            let bytes = AlignedBytes::read(&model)?;
            let trust = Trust { key, least_version: at_least };
            let checks = soundness::check(&bytes, &trust).with_context(|| model.display().to_string())?;
            print(&if json { format!("{:#}\n", soundness::json(&checks)) } else { soundness::text(&checks) })
        }
        Command::Repair { model, out } => repair(&model, &out),
    }
}

fn repair(path: &Path, out: &Path) -> Result<()> {
    let named = || path.display().to_string();
    let bytes = AlignedBytes::read(path)?;
    let (repaired, found) = soundness::repaired(&bytes).with_context(named)?;
    let aligned = AlignedBytes::copy_of(&repaired);
    Model::parse(&aligned).context("repaired by its parity, and still").with_context(named)?;
    writable(out)?;
    write_atomic(out, &repaired)?;
    let first = found.first.map_or(String::new(), |bit| format!(", the first bit {} of byte {}", bit.bit, bit.offset));
    print(&format!("{}: {} bits set right{first}\n", out.display(), found.bits))
}
