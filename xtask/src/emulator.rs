//! Runs an image in QEMU, and reads what it says.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nadir::triage::frame;
use nadir::triage::record::Record;
use nadir_app::message::{Done, LINK_VERSION, Message, Part};

use crate::firmware::Missing;

const QEMU: &str = "qemu-system-arm";

/// Whether the emulator is there.
///
/// # Errors
/// [`Missing`], with the commands that install it.
pub fn check_qemu() -> Result<()> {
    let status = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Missing(format!(
            "{QEMU} is not installed: apt install qemu-system-arm (Debian, Ubuntu), dnf install qemu-system-arm-core \
             (Fedora) or brew install qemu (macOS)"
        ))
        .into()),
    }
}

/// What the device said on its link.
#[derive(Debug, Default)]
pub struct Transcript {
    /// Name of the model.
    pub model: String,
    /// Bytes that the encoder works in.
    pub arena_bytes: u32,
    /// Multiply-accumulates of one embedding.
    pub macs: u64,
    /// Of the counts in `embeddings`.
    pub ticks_per_second: u32,
    /// Index of the tile, ticks that the encoder took, and the bytes of the embedding.
    pub embeddings: Vec<(u32, u64, Vec<u8>)>,
    /// One for each tile that was read and embedded or vetoed.
    pub records: Vec<Record>,
    /// Tile, part and reason of what was lost.
    pub failures: Vec<(Option<u32>, Part, String)>,
    /// The last message.
    pub done: Option<Done>,
}

/// Reads the bytes of the link.
///
/// # Errors
/// If a frame is damaged or is no message, or if the first message is not of this version.
pub fn transcript(bytes: &mut [u8]) -> Result<Transcript> {
    let mut transcript = Transcript::default();
    for payload in frame::frames(bytes) {
        let payload = payload.context("the link")?;
        match frame::parse(payload).context("the link: a frame holds no message")? {
            Message::Start(start) => {
                ensure!(
                    start.version == LINK_VERSION,
                    "the link speaks version {}, expected {LINK_VERSION}",
                    start.version
                );
                transcript.model = start.model.to_owned();
                transcript.arena_bytes = start.arena_bytes;
                transcript.macs = start.macs;
                transcript.ticks_per_second = start.ticks_per_second;
            }
            Message::Embedding(e) => transcript.embeddings.push((e.tile, e.ticks, e.values.to_vec())),
            Message::Record(record) => transcript.records.push(record),
            Message::Failed(f) => transcript.failures.push((f.tile, f.part, f.reason.to_owned())),
            Message::Done(done) => transcript.done = Some(done),
        }
    }
    Ok(transcript)
}

/// Files that the emulator puts into the board's PSRAM before it starts.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// What is written.
    pub bytes: &'a [u8],
    /// From which address on.
    pub address: u32,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes of the link, UART 0.
    pub link: Vec<u8>,
    /// Bytes of the log, UART 1.
    pub log: Vec<u8>,
    /// What it said by semihosting.
    pub console: String,
    /// Whether the firmware ended with success.
    pub success: bool,
    /// How long it took here.
    pub seconds: f64,
}

/// Runs the firmware `elf` on `machine` until the firmware ends itself.
///
/// If `counted`, one instruction takes one nanosecond of the board's time (`-icount shift=0`), so that its clock counts instructions; otherwise
/// the emulator goes as fast as it can.
///
/// # Errors
/// [`Missing`] if QEMU is; if it cannot be started; or if it is still running after `timeout`, when it is killed.
pub fn run(machine: &str, elf: &[u8], loaded: &[Loaded<'_>], counted: bool, timeout: Duration) -> Result<Outcome> {
    check_qemu()?;
    let folder = tempfile::tempdir().context("a folder for the emulator's files")?;
    let (link, log, words) =
        (folder.path().join("link.bin"), folder.path().join("log.bin"), folder.path().join("words.txt"));
    let image = folder.path().join("firmware.elf");
    fs::write(&image, elf).with_context(|| image.display().to_string())?;
    let mut command = Command::new(QEMU);
    command.args(["-M", machine, "-display", "none", "-monitor", "none"]);
    if counted {
        command.args(["-icount", "shift=0"]);
    }
    command.args(["-semihosting-config", "enable=on,target=native", "-kernel"]).arg(image);
    for file in [&link, &log] {
        command.arg("-serial").arg(prefixed("file:", file, ""));
    }
    for (index, Loaded { bytes, address }) in loaded.iter().enumerate() {
        let file = folder.path().join(format!("loaded{index}.bin"));
        fs::write(&file, bytes).with_context(|| file.display().to_string())?;
        let rest = format!(",addr={address:#x},force-raw=on");
        command.arg("-device").arg(prefixed("loader,file=", &file, &rest));
    }
    let words_file = File::create(&words).with_context(|| words.display().to_string())?;
    let console = folder.path().join("console.txt");
    let console_file = File::create(&console).with_context(|| console.display().to_string())?;
    command.stdin(Stdio::null()).stdout(console_file).stderr(words_file);

    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{QEMU} cannot be started"))?;
    let status = loop {
        if let Some(status) = child.try_wait().context(QEMU)? {
            break status;
        }
        if start.elapsed() > timeout {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the firmware was still running after {} s; {QEMU} was ended", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let read = |file: &Path| fs::read(file).unwrap_or_default();
    let outcome = Outcome {
        link: read(&link),
        log: read(&log),
        console: String::from_utf8_lossy(&read(&console)).into_owned(),
        success: status.success(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if !outcome.success && outcome.link.is_empty() && outcome.console.is_empty() {
        bail!("{QEMU}: {}", String::from_utf8_lossy(&read(&words)).trim());
    }
    Ok(outcome)
}

fn prefixed(before: &str, path: &Path, after: &str) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(before);
    text.push(path);
    text.push(after);
    text
}

/// The lines that the firmware logged with defmt; the format strings are in its `elf` file.
///
/// # Errors
/// If the file has no such strings, or of another version of defmt.
#[cfg(feature = "logs")]
pub fn log_lines(elf: &[u8], bytes: &[u8]) -> Result<Vec<String>> {
    let table = defmt_decoder::Table::parse(elf)?.context("the firmware has no defmt strings")?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(bytes);
    let mut lines = vec![];
    loop {
        match decoder.decode() {
            Ok(frame) => lines.push(frame.display(false).to_string()),
            Err(defmt_decoder::DecodeError::UnexpectedEof) => return Ok(lines),
            Err(defmt_decoder::DecodeError::Malformed) => lines.push("(a damaged log frame)".into()),
        }
    }
}
