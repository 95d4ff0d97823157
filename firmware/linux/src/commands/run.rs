//! `triage run`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nadir::triage::novelty::NEIGHBOURS;
use nadir::triage::select::Policy;
use nadir_formats::{AlignedBytes, write_atomic};
use nadir_linux::assess::{Scored, assess, score};
use nadir_linux::fill::fill;
use nadir_linux::input::{parse_model, parse_prototypes, read_tiles};
use nadir_linux::outbox::FILE_NAME;
use nadir_linux::units::parse_bytes;
use serde::Deserialize;

use super::table::{Line, json, rung_counts, table};
use super::{QualityOptions, print, progress};

#[derive(clap::Args)]
pub struct Arguments {
    /// The model
    #[arg(long, value_name = "M.nadir")]
    model: PathBuf,
    /// Tiles in capture order: a .npy file [tiles, bands, height, width], or a folder of them, read by name
    #[arg(long, value_name = "DIR|T.npy")]
    frames: PathBuf,
    /// Prototypes, from `triage prototypes`
    #[arg(long, value_name = "P")]
    prototypes: PathBuf,
    /// The most bytes that outbox.bin may have: 65536, 64KiB, 1.5MB
    #[arg(long, value_parser = parse_bytes, value_name = "SIZE")]
    budget: u64,
    /// Folder to write outbox.bin to
    #[arg(long, value_name = "OUTBOX")]
    out: PathBuf,
    /// Names of the bands in the files, if their order differs from the model's
    #[arg(long, value_name = "B4,B3,..")]
    bands: Option<String>,
    #[command(flatten)]
    quality: QualityOptions,
    /// JSON file with any of base, wanted, novel, wanted_from, novel_from, fidelity {record, code, embedding, tile} and
    /// always_record; docs/triage.md says what they mean
    #[arg(long, value_name = "P.json")]
    policy: Option<PathBuf>,
    /// Print one JSON object a tile instead of a table
    #[arg(long)]
    json: bool,
    /// Replace the outbox.bin of an outbox that is not empty
    #[arg(long)]
    force: bool,
}

/// What a policy file may hold; what it does not name keeps its default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    base: f32,
    wanted: f32,
    novel: f32,
    wanted_from: f32,
    novel_from: f32,
    fidelity: Fidelity,
    always_record: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fidelity {
    record: f32,
    code: f32,
    embedding: f32,
    tile: f32,
}

impl Default for PolicyFile {
    fn default() -> Self {
        let Policy { base, wanted, novel, wanted_from, novel_from, always_record, .. } = Policy::default();
        Self { base, wanted, novel, wanted_from, novel_from, always_record, fidelity: Fidelity::default() }
    }
}

impl Default for Fidelity {
    fn default() -> Self {
        let [_, record, code, embedding, tile] = Policy::default().fidelity;
        Self { record, code, embedding, tile }
    }
}

/// The policy: defaults, the novelty threshold of the prototypes, and over them the file.
fn read_policy(path: Option<&Path>, novel_from: f32) -> Result<Policy> {
    let Some(path) = path else { return Ok(Policy { novel_from, ..Policy::default() }) };
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    let names_threshold = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|v| v.get("novel_from").is_some());
    let file: PolicyFile = serde_json::from_str(&text).with_context(name)?;
    let Fidelity { record, code, embedding, tile } = file.fidelity;
    let policy = Policy {
        base: file.base,
        wanted: file.wanted,
        novel: file.novel,
        wanted_from: file.wanted_from,
        novel_from: if names_threshold { file.novel_from } else { novel_from },
        fidelity: [0.0, record, code, embedding, tile],
        always_record: file.always_record,
    };
    for (field, value) in [
        ("base", policy.base),
        ("wanted", policy.wanted),
        ("novel", policy.novel),
        ("wanted_from", policy.wanted_from),
        ("novel_from", policy.novel_from),
        ("fidelity.tile", tile),
    ] {
        ensure!(
            value >= 0.0 && value.is_finite(),
            "{}: {field} is {value}, expected a finite number from 0 on",
            path.display()
        );
    }
    ensure!(
        policy.fidelity.is_sorted(),
        "{}: the fidelities must not fall from record to tile and not be negative: {record}, {code}, {embedding}, {tile}",
        path.display()
    );
    Ok(policy)
}

/// Makes the folder, and refuses one with something in it unless `force` is given.
fn prepare(outbox: &Path, force: bool) -> Result<()> {
    let name = || outbox.display().to_string();
    std::fs::create_dir_all(outbox).with_context(name)?;
    if !force && std::fs::read_dir(outbox).with_context(name)?.next().is_some() {
        bail!("{}: the outbox is not empty (--force replaces it)", outbox.display());
    }
    Ok(())
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let limits = arguments.quality.limits()?;
    let model_bytes = AlignedBytes::read(&arguments.model)?;
    let model = parse_model(&arguments.model, &model_bytes)?;
    let table_bytes = AlignedBytes::read(&arguments.prototypes)?;
    let prototypes = parse_prototypes(&arguments.prototypes, &table_bytes, &model)?;
    let policy = read_policy(arguments.policy.as_deref(), prototypes.header().novel_from)?;
    let tiles = read_tiles(&arguments.frames, &model, arguments.bands.as_deref())?;
    prepare(&arguments.out, arguments.force)?;

    let bar = progress(tiles.len());
    let assessed = assess(&model, &tiles, &limits, || bar.inc(1))?;
    bar.finish_and_clear();
    let mut scored: Vec<Option<Scored>> = Vec::with_capacity(assessed.len());
    for (index, tile) in assessed.iter().enumerate() {
        let score = |e: &Vec<f32>| score(&prototypes, e, NEIGHBOURS).with_context(|| format!("tile {index}"));
        scored.push(tile.embedding.as_ref().map(score).transpose()?);
    }
    let filled = fill(&model, &prototypes, &tiles, &assessed, &scored, &policy, arguments.budget)?;
    write_atomic(&arguments.out.join(FILE_NAME), &filled.bytes)?;

    let lines: Vec<Line> = filled.fates.iter().map(|(r, bytes)| Line::new(r.tile, Some(r), *bytes, true)).collect();
    let summary = format!(
        "{} of {} bytes ({:.1} %) for {} tiles: {}\n",
        filled.bytes.len(),
        arguments.budget,
        100.0 * filled.bytes.len() as f64 / arguments.budget.max(1) as f64,
        tiles.len(),
        rung_counts(filled.fates.iter().map(|(r, _)| r.rung))
    );
    if arguments.json {
        eprint!("{summary}");
        print(&json(&lines)?)
    } else {
        print(&(table(&lines) + &summary))
    }
}
