//! `cargo xtask capi`: the static library for C, and what is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind};

use crate::firmware::{Missing, print, root};

/// The targets that the library is made for.
pub const TARGETS: [&str; 4] =
    ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "thumbv7em-none-eabihf", "thumbv8m.main-none-eabihf"];

/// Functions that may still hold a way to a panic, by the beginnings of their paths; `docs/safety.md` gives the reasons. Empty this list,
/// never let it grow.
pub const ALLOWED: [&str; 5] = [
    "nadir::encoder::float::",
    "nadir::kernels::float::",
    "nadir::plan::FloatRegions::",
    // Where the compiler put the float engine, which it inlines.
    "<nadir::encoder::Run>::step",
    "nadir::encoder::Run::step",
];

/// Arguments of `cargo xtask capi`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The compiler's target; may be given more than once [default: every one that is installed]
    #[arg(long, value_name = "TRIPLE")]
    pub target: Vec<String>,
    /// Fails if a function can panic that is not known to, or if the library uses a heap
    #[arg(long)]
    pub check: bool,
}

/// Builds the library for each target and prints what it holds.
///
/// # Errors
/// [`Missing`] if a target that was asked for is not installed, or none is; if a build fails; with `check` what the scan found.
pub fn main(arguments: &Arguments) -> Result<()> {
    let asked: Vec<&str> = match arguments.target.as_slice() {
        [] => TARGETS.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let mut built = 0;
    for target in &asked {
        if !installed(target) {
            let missing = Missing(format!("target {target} is not installed: rustup target add {target}"));
            if !arguments.target.is_empty() {
                return Err(missing.into());
            }
            print(&format!("{target}: SKIPPED, {missing}\n"))?;
            continue;
        }
        let path = build(target)?;
        let contents = contents(&fs::read(&path).with_context(|| path.display().to_string())?)?;
        print(&format!("{target}\n{}  file      {}\n", contents.text(), path.display()))?;
        if arguments.check {
            contents.check().with_context(|| (*target).to_owned())?;
        }
        built += 1;
    }
    ensure!(built > 0, Missing("no target of the C library is installed".to_owned()));
    Ok(())
}

/// Whether the compiler has the library of a target.
pub fn installed(target: &str) -> bool {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .stderr(Stdio::null())
        .current_dir(root())
        .output();
    let folder = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    !folder.is_empty() && Path::new(&folder).is_dir()
}

/// Builds `libnadir_capi.a` for a target and gives its path.
///
/// # Errors
/// If the build fails; the compiler's own words are on standard error.
pub fn build(target: &str) -> Result<PathBuf> {
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let target_dir = std::path::absolute(target_dir)?.join("capi");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--target", target, "--target-dir"])
        .arg(&target_dir)
        .current_dir(root().join("runtime/capi"))
        // Flags for another build are not flags for this one.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdout(Stdio::null())
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "the C library does not build for {target}");
    Ok(target_dir.join(target).join("release/libnadir_capi.a"))
}

/// What a static library holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of code.
    pub code: u64,
    /// Bytes of constants.
    pub constants: u64,
    /// Bytes of variables.
    pub variables: u64,
    /// Names of the functions for C.
    pub exported: Vec<String>,
    /// Symbols of a heap.
    pub heap: Vec<String>,
    /// Functions that hold calls of panicking functions, and how many.
    pub panics: BTreeMap<String, usize>,
}

impl Contents {
    /// A few lines of text.
    pub fn text(&self) -> String {
        let panics: String = self.panics.iter().map(|(name, n)| format!("            {n} in {name}\n")).collect();
        format!(
            "  code      {} bytes, constants {} bytes, variables {} bytes\n\
             \x20 symbols   {} for C, {} of the heap\n\
             \x20 panics    {} calls in {} functions\n{panics}",
            self.code,
            self.constants,
            self.variables,
            self.exported.len(),
            self.heap.len(),
            self.panics.values().sum::<usize>(),
            self.panics.len(),
        )
    }

    /// Functions that can panic and are not known to.
    pub fn unknown(&self) -> Vec<&str> {
        let known = |name: &str| ALLOWED.iter().any(|allowed| name.starts_with(allowed));
        self.panics.keys().map(String::as_str).filter(|name| !known(name)).collect()
    }

    /// Fails on what must not be there.
    ///
    /// # Errors
    /// If there is a heap, or a function that can panic and is not in [`ALLOWED`].
    pub fn check(&self) -> Result<()> {
        ensure!(self.heap.is_empty(), "the library uses a heap: {}", self.heap.join(", "));
        let unknown = self.unknown();
        ensure!(
            unknown.is_empty(),
            "functions that can panic, and are not in xtask/src/capi.rs: {}",
            unknown.join(", ")
        );
        ensure!(self.exported.iter().any(|name| name == "nadir_embed"), "nadir_embed is not in the library");
        Ok(())
    }
}

/// Reads the objects of the archive `library`. The compiler's own routines (`compiler_builtins`) are looked at for panics and heap,
/// but not counted: a program links of them what it needs.
///
/// # Errors
/// If it is not an archive of ELF objects.
pub fn contents(library: &[u8]) -> Result<Contents> {
    let archive = ArchiveFile::parse(library).context("the library is no archive")?;
    let mut contents = Contents::default();
    for member in archive.members() {
        let member = member?;
        let own = member.name().starts_with(b"nadir_capi");
        let file = object::File::parse(member.data(library)?).context("an object of the library is no ELF file")?;
        for symbol in file.symbols() {
            let name = symbol.name().unwrap_or_default();
            let heap = ["__rust_alloc", "__rg_alloc", "__rdl_alloc", "5alloc5alloc"];
            if heap.iter().any(|part| name.contains(part)) || ["malloc", "calloc", "free"].contains(&name) {
                contents.heap.push(name.to_owned());
            }
            if own && symbol.is_global() && symbol.is_definition() && name.starts_with("nadir_") {
                contents.exported.push(name.to_owned());
            }
        }
        for section in file.sections() {
            let size = if own { section.size() } else { 0 };
            match section.kind() {
                SectionKind::Text => contents.code += size,
                SectionKind::ReadOnlyData | SectionKind::ReadOnlyString | SectionKind::ReadOnlyDataWithRel => {
                    contents.constants += size;
                }
                SectionKind::Data | SectionKind::UninitializedData => contents.variables += size,
                _ => {}
            }
            if section.kind() != SectionKind::Text {
                continue;
            }
            for (_, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let symbol = file.symbol_by_index(index)?;
                let mut target = symbol.name().unwrap_or_default().to_owned();
                // Local functions are reached by their section.
                if target.is_empty()
                    && let Some(section) = symbol.section_index()
                {
                    target = function(file.section_by_index(section)?.name()?).to_owned();
                }
                let caller = section.name().unwrap_or_default();
                if panics(function(&target)) && !panics(function(caller)) {
                    *contents.panics.entry(readable(function(caller))).or_default() += 1;
                }
            }
        }
    }
    contents.exported.sort_unstable();
    Ok(contents)
}

/// The function in a section of its own.
fn function(section: &str) -> &str {
    let name = section.strip_prefix(".text.").unwrap_or(section);
    name.strip_prefix("unlikely.").unwrap_or(name)
}

/// Whether a mangled name is that of a function of `core` that ends in a panic.
fn panics(name: &str) -> bool {
    let endings = ["slice_index_fail", "mismatch_fail", "unwrap_failed", "expect_failed", "panic"];
    name.contains("4core") && (name.contains("9panicking") || endings.iter().any(|end| name.contains(end)))
}

fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panicking_functions_are_known_by_their_names() {
        for name in [
            "_RNvNtCsgEmfK2I1SDS_4core9panicking18panic_bounds_check",
            "_ZN4core9panicking9panic_fmt17h0123456789abcdefE",
            "_RNvNtNtCsgEmfK2I1SDS_4core5slice5index16slice_index_fail",
            "_ZN4core6option13unwrap_failed17h0123456789abcdefE",
        ] {
            assert!(panics(name), "{name}");
        }
        assert!(!panics("_RNvNtCs_5nadir4capi11nadir_embed") && !panics("memcpy"));
        assert_eq!(function(".text.unlikely.nadir_embed"), "nadir_embed");
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let mut contents = Contents { exported: vec!["nadir_embed".into()], ..Contents::default() };
        contents.panics.insert("nadir::kernels::float::scalar::dense".into(), 3);
        contents.check().unwrap();
        contents.panics.insert("nadir::model::parse::parse".into(), 1);
        let error = contents.check().unwrap_err().to_string();
        assert!(error.ends_with("xtask/src/capi.rs: nadir::model::parse::parse"), "{error}");
    }
}
