//! Firmware images: what is needed to build one, building it, and what the result holds.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags};

/// The compiler's target of every Cortex-M4F and Cortex-M7 board.
const THUMBV7EM: &str = "thumbv7em-none-eabihf";
/// The compiler's target of the Cortex-M55 board.
const THUMBV8M: &str = "thumbv8m.main-none-eabihf";

/// The boards.
pub const BOARDS: [Board; 3] = [
    Board {
        name: "mps2-an386",
        folder: "qemu-mps2-an386",
        machine: "mps2-an386",
        cpu: "Cortex-M4F",
        target: THUMBV7EM,
        psram: 0x2100_0000,
    },
    Board {
        name: "mps2-an500",
        folder: "qemu-mps2-an500",
        machine: "mps2-an500",
        cpu: "Cortex-M7",
        target: THUMBV7EM,
        psram: 0x6000_0000,
    },
    Board {
        name: "mps3-an547",
        folder: "qemu-mps3-an547",
        machine: "mps3-an547",
        cpu: "Cortex-M55",
        target: THUMBV8M,
        psram: 0x6000_0000,
    },
];

/// A board that firmware is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Board {
    /// What a user calls it.
    pub name: &'static str,
    /// Its folder under `firmware/boards`, and the name of its program.
    pub folder: &'static str,
    /// The machine of QEMU that it runs on.
    pub machine: &'static str,
    /// Its processor.
    pub cpu: &'static str,
    /// The compiler's target.
    pub target: &'static str,
    /// Where its PSRAM begins.
    pub psram: u32,
}

impl Board {
    /// The board that a user calls `name`.
    ///
    /// # Errors
    /// If there is none; the message lists them.
    pub fn named(name: &str) -> Result<Self> {
        let names = BOARDS.map(|board| board.name).join(", ");
        BOARDS.into_iter().find(|b| b.name == name).with_context(|| format!("no board {name}; there are: {names}"))
    }
}

/// Arguments of `cargo xtask size`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The board: mps2-an386 (Cortex-M4F), mps2-an500 (Cortex-M7) or mps3-an547 (Cortex-M55); or runtime: the int8 engine alone
    pub board: String,
    /// The model that goes into the firmware's flash [default: models/yocto-rgb-int8.nadir]
    #[arg(long, value_name = "M.nadir")]
    pub model: Option<PathBuf>,
    /// RAM set aside for the encoder, in KiB
    #[arg(long, default_value_t = 1024)]
    pub arena_kib: usize,
    /// With runtime: what it has besides, guard (repair, scrub and self-test) or signature, or both
    #[arg(long, value_name = "guard,signature", default_value = "")]
    pub features: String,
}

/// Builds a board's firmware and prints what it holds.
///
/// # Errors
/// Those of [`build`] and [`contents`].
pub fn main(arguments: &Arguments) -> Result<()> {
    if arguments.board == RUNTIME.name {
        return runtime(arguments);
    }
    ensure!(arguments.features.is_empty(), "--features goes with runtime, not with a board");
    let board = Board::named(&arguments.board)?;
    let model = arguments.model.clone().unwrap_or_else(default_model);
    let image = build(&board, &model, arguments.arena_kib)?;
    let model_bytes = fs::metadata(&model).map_or(0, |file| file.len());
    print(&format!(
        "model    {model_bytes} bytes\n{}\nimage    {}\n",
        contents(&image.elf)?.text(),
        image.path.display()
    ))
}

/// What no board is: the runtime with int8 kernels alone, linked but never run.
const RUNTIME: Board =
    Board { name: "runtime", folder: "../size", machine: "", cpu: "Cortex-M7", target: THUMBV7EM, psram: 0x6000_0000 };

/// Links the runtime with int8 kernels alone, and prints what that takes.
fn runtime(arguments: &Arguments) -> Result<()> {
    let path = arguments.model.clone().unwrap_or_else(default_model);
    let image = build_with(&RUNTIME, "size", &arguments.features, &path, arguments.arena_kib)?;
    let bytes = nadir_formats::AlignedBytes::read(&path)?;
    let model = nadir::model::Model::parse(&bytes).with_context(|| path.display().to_string())?;
    let arena = nadir::encoder::Encoder::new(&model).arena_bytes();
    let file = object::File::parse(&*image.elf).context("the firmware is no ELF file")?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned));
    let panics: Vec<String> = names.filter(|name| name.contains("4core9panicking")).collect();
    print(&format!(
        "the runtime with int8 kernels alone{} for {} ({}), opt-level s\n{}\narena    {arena} bytes for {}\npanics   {}\n",
        if arguments.features.is_empty() { String::new() } else { format!(", and {},", arguments.features) },
        RUNTIME.cpu,
        RUNTIME.target,
        contents(&image.elf)?.text(),
        model.name(),
        panics.join(" "),
    ))
}

/// Writes to standard output; a reader that stopped reading (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

/// The model that goes into a board unless told otherwise.
pub fn default_model() -> PathBuf {
    root().join("models/yocto-rgb-int8.nadir")
}

/// Something that has to be installed first.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// The folder of the whole repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Whether the compiler has the library of `target`.
///
/// # Errors
/// [`Missing`], with the command that installs it.
pub fn check_target(target: &str) -> Result<()> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--print", "target-libdir", "--target", target])
        .stderr(Stdio::null())
        .current_dir(root())
        .output();
    let folder = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if !folder.is_empty() && Path::new(&folder).is_dir() {
        return Ok(());
    }
    Err(Missing(format!("the compiler's target {target} is not installed: rustup target add {target}")).into())
}

/// A firmware, ready to be loaded.
#[derive(Clone, Debug)]
pub struct Image {
    /// The ELF file.
    pub elf: Vec<u8>,
    /// Where the build left it; the next build, of any model, puts another one there.
    pub path: PathBuf,
}

/// Builds the firmware of a board with a model in its flash.
///
/// # Errors
/// Those of [`build_program`].
pub fn build(board: &Board, model: &Path, arena_kib: usize) -> Result<Image> {
    build_program(board, board.folder, model, arena_kib)
}

/// Builds one of a board's programs: that named like its folder, or `kernels`.
///
/// # Errors
/// [`Missing`] if the target is; otherwise if the build fails (the compiler's own words are on standard error).
pub fn build_program(board: &Board, program: &str, model: &Path, arena_kib: usize) -> Result<Image> {
    build_with(board, program, "", model, arena_kib)
}

fn build_with(board: &Board, program: &str, features: &str, model: &Path, arena_kib: usize) -> Result<Image> {
    check_target(board.target)?;
    let model = std::path::absolute(model).with_context(|| model.display().to_string())?;
    ensure!(model.is_file(), "{}: no such file", model.display());
    // Beside the other build products, but apart: another cargo may hold the lock of the folder itself.
    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let target_dir = std::path::absolute(target_dir)?.join("boards").join(board.folder.trim_start_matches("../"));
    fs::create_dir_all(&target_dir).with_context(|| target_dir.display().to_string())?;
    // Held until the image is read: another process may be building another model into the same place.
    let lock = target_dir.join("image.lock");
    let lock = fs::File::create(&lock)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| lock.display().to_string())?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--bin", program, "--features", features, "--target-dir"])
        .arg(&target_dir)
        .current_dir(root().join("firmware/boards").join(board.folder))
        .env("NADIR_MODEL", &model)
        .env("NADIR_ARENA_KIB", arena_kib.to_string())
        // Flags for the host are not flags for the board.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdout(Stdio::null())
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "the firmware of {} does not build", board.name);
    let path = target_dir.join(board.target).join("release").join(program);
    let elf = fs::read(&path).with_context(|| path.display().to_string())?;
    drop(lock);
    Ok(Image { elf, path })
}

/// What an image holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of flash: code, constants, and the initial values of variables.
    pub flash: u64,
    /// Bytes of flash that are code.
    pub code: u64,
    /// Bytes of static RAM; the stack has what is left.
    pub ram: u64,
    /// Symbols of the heap. Always 0: the runtime allocates nothing.
    pub heap_symbols: usize,
    /// Functions of `core::panicking`.
    pub panic_symbols: usize,
}

impl Contents {
    /// Three lines of text.
    pub fn text(&self) -> String {
        format!(
            "flash    {} bytes, {} of them code\n\
             RAM      {} bytes static\n\
             symbols  {} of the heap, {} of panics",
            self.flash, self.code, self.ram, self.heap_symbols, self.panic_symbols
        )
    }
}

/// Reads the sections and symbols of the ELF file `elf`.
///
/// # Errors
/// If it is not an ELF file.
pub fn contents(elf: &[u8]) -> Result<Contents> {
    const ALLOCATED: u64 = object::elf::SHF_ALLOC as u64;
    const EXECUTABLE: u64 = object::elf::SHF_EXECINSTR as u64;
    let file = object::File::parse(elf).context("the firmware is no ELF file")?;
    let mut contents = Contents::default();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & ALLOCATED == 0 {
            continue;
        }
        let (size, name) = (section.size(), section.name().unwrap_or_default());
        let in_ram = [".data", ".bss", ".uninit"].contains(&name);
        contents.ram += if in_ram { size } else { 0 };
        contents.flash += if !in_ram || name == ".data" { size } else { 0 };
        contents.code += if sh_flags & EXECUTABLE != 0 { size } else { 0 };
    }
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or_default();
        // Parts of names as both manglings write them.
        let heap = ["__rust_alloc", "__rg_alloc", "__rdl_alloc", "5alloc5alloc", "malloc"];
        contents.heap_symbols += usize::from(heap.iter().any(|part| name.contains(part)));
        contents.panic_symbols += usize::from(name.contains("4core9panicking"));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This very test program uses the heap and can panic: what the scan finds in a firmware means something.
    #[test]
    fn the_scan_finds_a_heap_where_there_is_one() {
        let elf = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let contents = contents(&elf).unwrap();
        assert!(contents.heap_symbols > 0 && contents.panic_symbols > 0, "{contents:?}");
        assert!(contents.code > 0 && contents.flash > contents.code && contents.ram > 0, "{contents:?}");
        assert!(super::contents(b"nothing").is_err());
    }

    #[test]
    fn an_unknown_board_is_named() {
        let error = Board::named("pdp-11").unwrap_err().to_string();
        assert_eq!(error, "no board pdp-11; there are: mps2-an386, mps2-an500, mps3-an547");
    }

    #[test]
    fn a_missing_model_is_named() {
        if let Err(missing) = check_target(BOARDS[0].target) {
            // Past the capture of the test's output: a skipped test must be seen.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("\nSKIPPED: {missing}\n"));
            return;
        }
        let error = build(&BOARDS[0], Path::new("nowhere.nadir"), 1).unwrap_err().to_string();
        assert!(error.ends_with("nowhere.nadir: no such file"), "{error}");
    }
}
