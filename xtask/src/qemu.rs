//! `cargo xtask qemu BOARD`: a model on an emulated microcontroller, compared with this machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nadir::encoder::Encoder;
use nadir::model::Model;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::quality::{Limits, Quality};
use nadir::triage::record::{Record, ValueType};
use nadir_app::camera::{Identity, store_header};
use nadir_app::score;
use nadir_formats::{AlignedBytes, Pixels, Tiles, read_integers, write_atomic};

use crate::counts::{self, Book, Count};
use crate::emulator::{self, Loaded, Transcript};
pub use crate::firmware::Missing;
use crate::firmware::{
    BOARDS, Board, Contents, build, build_program, check_target, contents, default_model, print, root,
};

/// Exit code where the emulator or the compiler's target is not installed.
pub const EXIT_MISSING: u8 = 3;

/// Where in PSRAM the firmware of every emulated board looks for tiles and prototypes.
pub(crate) const TILES: u32 = 0;
pub(crate) const PROTOTYPES: u32 = 8 << 20;
/// A word that is not zero here: no tile is vetoed.
const NO_VETO: u32 = (16 << 20) - 4;
/// Room for each of them.
pub(crate) const ROOM: usize = 8 << 20;
/// Value of a split file that marks test tiles.
const TEST: i64 = 2;

/// Arguments of `cargo xtask qemu`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// The board: mps2-an386 (Cortex-M4F), mps2-an500 (Cortex-M7), mps3-an547 (Cortex-M55), or all
    pub board: String,
    /// The model that goes into the firmware's flash [default: models/yocto-rgb-int8.nadir]
    #[arg(long, value_name = "M.nadir")]
    pub model: Option<PathBuf>,
    /// Tiles [tiles, bands, height, width] [default: the test tiles of samples/eurosat-rgb]
    #[arg(long, value_name = "T.npy")]
    pub tiles: Option<PathBuf>,
    /// Bands of the tiles in their order, if not the model's: B4,B3,B2
    #[arg(long, value_delimiter = ',', requires = "tiles")]
    pub bands: Option<Vec<String>>,
    /// How many tiles, from the first on
    #[arg(long, default_value_t = 16)]
    pub count: usize,
    /// Prototypes made by `triage prototypes`: the device scores tiles too
    #[arg(long, value_name = "P")]
    pub prototypes: Option<PathBuf>,
    /// RAM set aside for the encoder, in KiB
    #[arg(long, default_value_t = 1024)]
    pub arena_kib: usize,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 600)]
    pub timeout: u64,
    /// Do not compare the processor's kernels with the scalar ones first
    #[arg(long)]
    pub skip_kernels: bool,
    /// Print counts as JSON, one object a board and line
    #[arg(long)]
    pub json: bool,
    /// Write the counts of these boards and this model into benches/counts.json
    #[arg(long)]
    pub update: bool,
    /// Write what the firmware logged, as defmt's frames; decode them with `defmt-print -e FIRMWARE < FILE`
    #[arg(long, value_name = "FILE")]
    pub raw_log: Option<PathBuf>,
    /// Print what the firmware logged
    #[cfg(feature = "logs")]
    #[arg(long)]
    pub log: bool,
}

impl Arguments {
    /// The defaults for `board`.
    pub fn new(board: &str) -> Self {
        Self {
            board: board.into(),
            model: None,
            tiles: None,
            bands: None,
            count: 16,
            prototypes: None,
            arena_kib: 1024,
            timeout: 600,
            skip_kernels: true,
            json: false,
            update: false,
            raw_log: None,
            #[cfg(feature = "logs")]
            log: false,
        }
    }
}

/// One tile on both machines.
#[derive(Clone, Debug)]
pub struct Row {
    /// Position among the tiles.
    pub tile: u32,
    /// Instructions that the device took to embed it; 0 if it did not.
    pub instructions: u64,
    /// The device's record.
    pub record: Record,
    /// How many values of the embedding differ; `None` if both machines vetoed the tile.
    pub differing: Option<usize>,
    /// Whether this machine makes the same record.
    pub record_equal: bool,
}

/// What a run gave.
#[derive(Debug)]
pub struct Report {
    /// Where it ran.
    pub board: Board,
    /// A black tile, one at the top of its range, and the first of the tiles: on both machines.
    pub kinds: [(&'static str, Row); 3],
    /// What the comparison of kernels said; empty if it was skipped.
    pub kernels: String,
    /// Everything that the device said.
    pub transcript: Transcript,
    /// One row a tile.
    pub rows: Vec<Row>,
    /// What the firmware holds.
    pub contents: Contents,
    /// Bytes of the model in it.
    pub model_bytes: usize,
    /// What it logged, in defmt's frames.
    pub log: Vec<u8>,
    /// The firmware, whose symbols hold the log's format strings.
    pub image: PathBuf,
    /// How long the emulator ran, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Tiles that both machines embedded.
    pub fn embedded(&self) -> usize {
        self.rows.iter().filter(|row| row.differing.is_some()).count()
    }

    /// Tiles whose embeddings are the same bytes.
    pub fn equal(&self) -> usize {
        self.rows.iter().filter(|row| row.differing == Some(0)).count()
    }

    /// Whether device and host agree in every byte of every embedding and record.
    pub fn agrees(&self) -> bool {
        let mut rows = self.rows.iter().chain(self.kinds.iter().map(|(_, row)| row));
        self.equal() == self.embedded() && rows.all(|row| row.record_equal && row.differing.is_none_or(|n| n == 0))
    }

    /// Mean number of instructions of one embedding.
    pub fn instructions(&self) -> f64 {
        let sum: u64 = self.rows.iter().map(|row| row.instructions).sum();
        sum as f64 / self.embedded().max(1) as f64
    }

    /// Instructions of the three kinds of tile.
    pub fn count(&self) -> Count {
        Count::new(self.transcript.macs, self.kinds.iter().map(|(kind, row)| (*kind, row.instructions)))
    }

    /// The report as text.
    pub fn text(&self) -> String {
        let mut text = String::from("tile  instructions  embedding   record\n");
        for row in &self.rows {
            let embedding = match row.differing {
                None => "-".into(),
                Some(0) => "equal".into(),
                Some(values) => format!("{values} differ"),
            };
            let record = if row.record_equal { "equal" } else { "differs" };
            let reason = row.record.reason;
            text += &format!("{:4}  {:12}  {embedding:<10}  {record} ({reason})\n", row.tile, row.instructions);
        }
        text += "\n";
        for (kind, row) in &self.kinds {
            let per_mac = row.instructions as f64 / self.transcript.macs.max(1) as f64;
            let equal = if row.differing == Some(0) { "equal" } else { "differs" };
            text +=
                &format!("{kind:4}  {:12}  {equal:<10}  {per_mac:.3} for each multiply-accumulate\n", row.instructions);
        }
        let (device, contents) = (&self.transcript, &self.contents);
        let macs = device.macs as f64;
        text += &format!(
            "\nmodel    {}, {} bytes, {:.1} M multiply-accumulates a tile\n\
             device   {:.1} M instructions a tile, {:.2} for each multiply-accumulate\n\
             arena    {} bytes\n\
             {}\n\
             {}emulator {:.1} s\n\n",
            device.model,
            self.model_bytes,
            macs / 1e6,
            self.instructions() / 1e6,
            self.instructions() / macs.max(1.0),
            device.arena_bytes,
            contents.text(),
            self.kernels,
            self.seconds,
        );
        text += &format!("{} of {} embeddings equal", self.equal(), self.embedded());
        let vetoed = self.rows.len() - self.embedded();
        if vetoed > 0 {
            text += &format!(", {vetoed} tiles vetoed");
        }
        text + "\n"
    }

    /// The counts as one JSON object.
    pub fn json(&self) -> String {
        let macs = self.transcript.macs;
        let kinds = self.kinds.iter().map(|(kind, row)| {
            let per_mac = row.instructions as f64 / macs.max(1) as f64;
            let value = serde_json::json!({
                "instructions": row.instructions, "per_mac": per_mac, "equal": row.differing == Some(0),
            });
            (kind.to_string(), value)
        });
        serde_json::json!({
            "board": self.board.name,
            "cpu": self.board.cpu,
            "model": self.transcript.model,
            "model_bytes": self.model_bytes,
            "macs": macs,
            "arena_bytes": self.transcript.arena_bytes,
            "flash_bytes": self.contents.flash,
            "code_bytes": self.contents.code,
            "tiles_equal": self.equal(),
            "tiles_embedded": self.embedded(),
            "kinds": serde_json::Map::from_iter(kinds),
        })
        .to_string()
    }
}

/// By how many percent the counts of the tiles may differ: the counter ticks every 40 instructions.
const COUNTER_SPREAD: f64 = 0.001;

/// Runs the command, and prints its report.
///
/// # Errors
/// [`Missing`] if something has to be installed first; otherwise those of [`run`], or if any byte differs.
pub fn main(arguments: &Arguments) -> Result<()> {
    let boards = if arguments.board == "all" { BOARDS.to_vec() } else { vec![Board::named(&arguments.board)?] };
    let (mut disagree, mut worse) = (vec![], vec![]);
    let path = Book::path();
    let mut book = if path.exists() { Book::read(&path)? } else { Book::empty() };
    for board in boards {
        let report = run(&Arguments { board: board.name.into(), ..arguments.clone() })?;
        let key = format!("{} {}", board.name, report.transcript.model);
        let count = report.count();
        let (verdict, bad) = counts::verdict(&count, book.boards.get(&key), COUNTER_SPREAD);
        if arguments.json {
            print(&(report.json() + "\n"))?;
        } else {
            print(&format!("{} ({})\n{}", board.name, board.cpu, report.text()))?;
            print(&format!("counts   {key}: {verdict}\n\n"))?;
        }
        if arguments.update {
            book.boards.insert(key, count);
        } else if bad {
            worse.push(key);
        }
        if !report.agrees() {
            disagree.push(board.name);
        }
    }
    ensure!(disagree.is_empty(), "the device and this machine disagree: {}", disagree.join(", "));
    if arguments.update {
        book.write(&path)?;
    }
    ensure!(worse.is_empty(), "counts are worse than those in benches/counts.json: {}", worse.join(", "));
    Ok(())
}

/// Builds the firmware, runs it on the tiles, and repeats its work here.
///
/// # Errors
/// [`Missing`] if something has to be installed first; otherwise in one line, the device's own reason included.
pub fn run(arguments: &Arguments) -> Result<Report> {
    let board = Board::named(&arguments.board)?;
    emulator::check_qemu()?;
    check_target(board.target)?;

    let model_path = arguments.model.clone().unwrap_or_else(default_model);
    let model_bytes = AlignedBytes::read(&model_path)?;
    let model = Model::parse(&model_bytes).with_context(|| model_path.display().to_string())?;
    let tiles = tiles(arguments, &model)?;
    let prototype_bytes = match &arguments.prototypes {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => vec![],
    };
    let prototypes = match &arguments.prototypes {
        Some(path) => Some(Prototypes::parse(&prototype_bytes).with_context(|| path.display().to_string())?),
        None => None,
    };

    let kernels = if arguments.skip_kernels { String::new() } else { kernels(&board, &model_path, arguments)? };
    let image = build(&board, &model_path, arguments.arena_kib)?;
    let contents = contents(&image.elf)?;
    ensure!(contents.heap_symbols == 0, "the firmware holds {} symbols of a heap", contents.heap_symbols);
    let store = store(&tiles)?;
    let mut with_length = (prototype_bytes.len() as u32).to_le_bytes().to_vec();
    with_length.extend(&prototype_bytes);
    ensure!(with_length.len() <= ROOM, "the prototypes have {} bytes, there is room for {ROOM}", with_length.len());
    let loaded = [
        Loaded { bytes: &store, address: board.psram + TILES },
        Loaded { bytes: &with_length, address: board.psram + PROTOTYPES },
    ];
    let mut outcome = emulator::run(board.machine, &image.elf, &loaded, true, Duration::from_secs(arguments.timeout))?;
    if let Some(path) = &arguments.raw_log {
        write_atomic(path, &outcome.log)?;
    }
    #[cfg(feature = "logs")]
    if arguments.log {
        print(&(emulator::log_lines(&image.elf, &outcome.log)?.join("\n") + "\n\n"))?;
    }
    let transcript = emulator::transcript(&mut outcome.link)?;
    if let Some((tile, part, reason)) = transcript.failures.first() {
        let place = tile.map_or_else(String::new, |tile| format!(", tile {tile}"));
        bail!("the device failed ({part:?}{place}): {reason}");
    }
    let done = transcript.done.context("the device ended without its last message")?;
    ensure!(outcome.success, "the firmware ended with an error that it did not name");
    ensure!(
        (done.embedded + done.vetoed) as usize == tiles.len(),
        "the device saw {} tiles of {}",
        done.embedded + done.vetoed,
        tiles.len()
    );

    let rows = compare(&model, &tiles, prototypes.as_ref(), &transcript, &Limits::default())?;
    let kinds = kinds(&board, &model, &image.elf, &tiles, Duration::from_secs(arguments.timeout))?;
    let model_bytes = model_bytes.len();
    Ok(Report {
        board,
        kinds,
        kernels,
        transcript,
        rows,
        contents,
        model_bytes,
        log: outcome.log,
        image: image.path,
        seconds: outcome.seconds,
    })
}

/// Compares the board's kernels with the scalar ones, on the board: what it says about them.
fn kernels(board: &Board, model: &std::path::Path, arguments: &Arguments) -> Result<String> {
    // The model is not looked at, but the board's build script wants one.
    let image = build_program(board, "kernels", model, arguments.arena_kib)?;
    let outcome = emulator::run(board.machine, &image.elf, &[], true, Duration::from_secs(arguments.timeout))?;
    ensure!(outcome.success, "{}: the kernels disagree: {}", board.name, outcome.console.trim());
    Ok(outcome.console.lines().map(|line| format!("kernels  {line}\n")).collect())
}

/// Embeds a black tile, one at the top of its range and the first of `tiles`, without a veto: the three must cost the same.
fn kinds(
    board: &Board,
    model: &Model<'_>,
    elf: &[u8],
    tiles: &Tiles,
    timeout: Duration,
) -> Result<[(&'static str, Row); 3]> {
    let mut three = tiles.pick(&[0, 0, 0]);
    let len = three.tile_len();
    match &mut three.pixels {
        Pixels::U8(v) => (v[..len].fill(0), v[len..2 * len].fill(u8::MAX)),
        Pixels::U16(v) => (v[..len].fill(0), v[len..2 * len].fill(u16::MAX)),
        Pixels::F32(v) => (v[..len].fill(0.0), v[len..2 * len].fill(f32::from(u16::MAX))),
    };
    let limits = Limits { no_data: 1000, saturated: 1000 };
    let loaded = [
        Loaded { bytes: &store(&three)?, address: board.psram + TILES },
        Loaded { bytes: &1u32.to_le_bytes(), address: board.psram + NO_VETO },
    ];
    let mut outcome = emulator::run(board.machine, elf, &loaded, true, timeout)?;
    let transcript = emulator::transcript(&mut outcome.link)?;
    let rows = compare(model, &three, None, &transcript, &limits)?;
    let [zero, max, real] = <[Row; 3]>::try_from(rows).ok().context("the device did not see three tiles")?;
    Ok([("zero", zero), ("max", max), ("real", real)])
}

/// The tiles of a run, in the model's order of bands.
fn tiles(arguments: &Arguments, model: &Model<'_>) -> Result<Tiles> {
    ensure!(arguments.count > 0, "--count is 0");
    let wanted: Vec<_> = model.bands().iter().map(|band| band.name.as_str()).collect();
    let folder = root().join("samples/eurosat-rgb");
    let path = arguments.tiles.clone().unwrap_or_else(|| folder.join("tiles.npy"));
    let mut tiles = Tiles::read(&path)?;
    let indices: Vec<usize> = if arguments.tiles.is_some() {
        (0..tiles.len()).take(arguments.count).collect()
    } else {
        let split = read_integers(&folder.join("split.npy"))?;
        let test = split.iter().enumerate().filter(|(_, split)| **split == TEST).map(|(index, _)| index);
        test.filter(|&index| index < tiles.len()).take(arguments.count).collect()
    };
    ensure!(
        indices.len() == arguments.count,
        "{}: has {} tiles to choose from, {} are wanted",
        path.display(),
        indices.len(),
        arguments.count
    );
    tiles = tiles.pick(&indices);
    let present: Option<Vec<&str>> = match (&arguments.bands, &arguments.tiles) {
        (Some(bands), _) => Some(bands.iter().map(String::as_str).collect()),
        (None, None) => Some(vec!["B4", "B3", "B2"]),
        (None, Some(_)) => None,
    };
    if let Some(present) = present {
        tiles = tiles.select_bands(&present, &wanted).with_context(|| path.display().to_string())?;
    }
    let side = usize::from(model.architecture().tile_size);
    ensure!(
        tiles.shape[1..] == [wanted.len(), side, side],
        "{}: has shape {:?}, the model takes [tiles, {}, {side}, {side}] with bands {}",
        path.display(),
        tiles.shape,
        wanted.len(),
        wanted.join(",")
    );
    Ok(tiles)
}

/// The memory that the camera in software reads from.
pub(crate) fn store(tiles: &Tiles) -> Result<Vec<u8>> {
    let (value_type, values): (_, Vec<u8>) = match &tiles.pixels {
        Pixels::U8(v) => (ValueType::U8, v.clone()),
        Pixels::U16(v) => (ValueType::U16, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Pixels::F32(v) => (ValueType::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    let [n, bands, height, width] = tiles.shape;
    let side = |length: usize| u16::try_from(length).with_context(|| format!("tiles have shape {:?}", tiles.shape));
    let identity =
        Identity { value_type, bands: side(bands)?, height: side(height)?, width: side(width)?, tiles: n as u32 };
    let mut store = store_header(&identity).to_vec();
    store.extend(values);
    ensure!(
        store.len() <= ROOM,
        "the tiles have {} bytes, there is room for {ROOM}: use a smaller --count",
        store.len()
    );
    Ok(store)
}

/// Repeats on this machine what the device did.
fn compare(
    model: &Model<'_>,
    tiles: &Tiles,
    prototypes: Option<&Prototypes<'_>>,
    transcript: &Transcript,
    limits: &Limits,
) -> Result<Vec<Row>> {
    let encoder = Encoder::new(model);
    let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
    let mut embedding = vec![0.0; model.embedding_dimension()];
    let mut rows = vec![];
    for index in 0..tiles.len() {
        let (tile, number) = (tiles.tile(index), index as u32);
        let once = |count: usize, what: &str| {
            ensure!(count <= 1, "the device sent {count} {what} of tile {index}");
            Ok(())
        };
        let mut device = transcript.embeddings.iter().filter(|(tile, ..)| *tile == number);
        once(device.clone().count(), "embeddings")?;
        let mut records = transcript.records.iter().filter(|record| record.tile == number);
        once(records.clone().count(), "records")?;
        let device = device.next();
        let record = *records.next().with_context(|| format!("the device sent no record of tile {index}"))?;

        let quality = Quality::assess(tile, model.bands())?;
        let vetoed = score::vetoed(number, &quality, quality.verdict(limits));
        let (expected, differing) = match (vetoed, device) {
            (Some(vetoed), None) => (vetoed, None),
            (None, Some((_, _, bytes))) => {
                encoder.embed(tile, &mut arena, &mut embedding)?;
                let expected = score::scored(number, &quality, &embedding, prototypes)?;
                (expected, Some(differing(bytes, &embedding)))
            }
            (vetoed, device) => bail!(
                "tile {index}: the device {} it, this machine {} it",
                if device.is_some() { "embedded" } else { "vetoed" },
                if vetoed.is_some() { "vetoed" } else { "embedded" }
            ),
        };
        let ticks = device.map_or(0, |(_, ticks, _)| *ticks);
        // At one instruction a nanosecond.
        let instructions = ticks * 1_000_000_000 / u64::from(transcript.ticks_per_second.max(1));
        rows.push(Row { tile: number, instructions, record, differing, record_equal: record == expected });
    }
    Ok(rows)
}

/// How many values of `expected` are not those bytes; all of them if the lengths differ.
fn differing(bytes: &[u8], expected: &[f32]) -> usize {
    let (values, rest) = bytes.as_chunks::<4>();
    if values.len() != expected.len() || !rest.is_empty() {
        return expected.len().max(1);
    }
    values.iter().zip(expected).filter(|(found, expected)| **found != expected.to_le_bytes()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_differing_value_is_counted() {
        let values = [1.0f32, -0.0, 3.5];
        let mut bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(differing(&bytes, &values), 0);
        assert_eq!(differing(&bytes, &[1.0, 0.0, 3.5]), 1, "the two zeros are different bytes");
        bytes[0] ^= 1;
        assert_eq!(differing(&bytes, &values), 1);
        assert_eq!(differing(&bytes[..8], &values), 3);
        assert_eq!(differing(&bytes[..11], &values), 3);
    }
}
