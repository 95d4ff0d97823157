//! `cargo xtask header`: the C header, made from the source of `nadir::capi`.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::firmware::{print, root};

/// Where the header lies, from the root of the repository.
pub const HEADER: &str = "runtime/include/nadir.h";

/// The module that it is made from, with those below.
const SOURCE: &str = "runtime/src/capi/mod.rs";

/// Arguments of `cargo xtask header`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Arguments {
    /// Writes nothing; fails if the header is not what the source gives
    #[arg(long)]
    pub check: bool,
}

/// Writes the header, or checks it.
///
/// # Errors
/// If a source cannot be read or parsed, the header cannot be written, or is stale.
pub fn main(arguments: &Arguments) -> Result<()> {
    let (fresh, path) = (generate()?, root().join(HEADER));
    if arguments.check {
        let found = fs::read_to_string(&path).with_context(|| HEADER.to_owned())?;
        ensure!(found == fresh, "{HEADER} is not what the source gives: run `cargo xtask header`");
        return print(&format!("{HEADER} is fresh\n"));
    }
    fs::write(&path, fresh).with_context(|| HEADER.to_owned())?;
    print(&format!("wrote {HEADER}\n"))
}

/// The header as the source gives it.
///
/// # Errors
/// If a source cannot be read or parsed.
pub fn generate() -> Result<String> {
    let config = match cbindgen::Config::from_file(root().join("runtime/cbindgen.toml")) {
        Ok(config) => config,
        Err(error) => bail!("runtime/cbindgen.toml: {error}"),
    };
    let builder = cbindgen::Builder::new().with_config(config).with_src(root().join(SOURCE));
    let mut text = Vec::new();
    builder.generate().context("the C interface does not parse")?.write(&mut text);
    // Rust's heading for what a caller must see to.
    Ok(String::from_utf8(text)?.replace("// # Safety\n", "// The caller promises:\n"))
}
