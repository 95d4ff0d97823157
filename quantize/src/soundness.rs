//! Whether a model file is sound, and if not, where it is damaged.

use std::fmt::Write;

use anyhow::Result;
use nadir::encoder::Encoder;
use nadir::guard::{Damage, Progress, Repair, RepairError, Repaired, Scrub, Survey, verify_signature};
use nadir::model::{Model, ModelError};
use serde_json::{Value, json};

use crate::flight::{block_crcs, checksum_columns, run_self_test};
use crate::inspect::hexadecimal;

/// A public key, and the least version of a model that is accepted.
pub struct Trust {
    /// The key that must have signed; `None`: a signature is not looked at.
    pub key: Option<[u8; 32]>,
    /// The least version; 0 for any.
    pub least_version: u32,
}

/// What was checked of a sound file, a line each: what, and with which result.
pub type Checks = Vec<(&'static str, String)>;

/// Checks everything about a file that begins at a multiple of 64 bytes in memory: format, CRCs and parity, block CRCs and checksum columns
/// against the weights, the self-test, and what `trust` says.
///
/// # Errors
/// The first thing that is wrong, in one line; of a damaged file also the block, the section and its place, and whether it can be repaired.
pub fn check(file: &[u8], trust: &Trust) -> Result<Checks> {
    let model = Model::parse(file).map_err(|error| anyhow::anyhow!("{}", damaged(file, &error)))?;
    let mut checks: Checks = vec![("format", format!("sound, {} sections", model.section_count()))];
    let mut note = |what, result: String| checks.push((what, result));

    let crcs = model.block_crcs();
    let wrong = block_crcs(&model).iter().zip(crcs).position(|(found, expected)| found != expected);
    anyhow::ensure!(wrong.is_none(), "CRC on record of block {} is not that of the block", wrong.unwrap_or(0));
    note("block CRCs", if crcs.is_empty() { "none".into() } else { format!("{} agree", crcs.len()) });

    let mut columns = 0;
    let expected = checksum_columns(&model);
    let blocks = model.architecture().depths.iter().enumerate();
    for (stage, block) in blocks.flat_map(|(stage, &depth)| (0..usize::from(depth)).map(move |block| (stage, block))) {
        let Some(found) = model.checksum_columns(stage, block) else { continue };
        let both = [found.pointwise_1, found.pointwise_2].concat();
        let right = expected.get(columns..columns + both.len()).is_some_and(|expected| expected == both);
        anyhow::ensure!(right, "checksum columns of block {stage}.{block} are not those of its weights");
        columns += both.len();
    }
    note("columns", if columns == 0 { "none".into() } else { format!("{columns} agree with the weights") });
    note("parity", if model.has_parity() { "fits every word".into() } else { "none".into() });

    let encoder = Encoder::new(&model);
    note(
        "self-test",
        match nadir::guard::SelfTest::of(&model) {
            None => "none".into(),
            Some(_) => {
                let test = run_self_test(&encoder).map_err(|error| anyhow::anyhow!("self-test: {error:#}"))?;
                format!("passed, {} tiles with kernels {}", test.tiles, encoder.kernels())
            }
        },
    );

    match &trust.key {
        Some(key) => {
            verify_signature(&model, key, trust.least_version)?;
            note("signature", format!("good, with key {}", hexadecimal(&nadir::guard::key_id(key))));
        }
        None => {
            let key = nadir::guard::signed_key(&model);
            note("signature", key.map_or("none".into(), |id| format!("with key {}, not verified", hexadecimal(&id))));
            let (found, least) = (model.model_version(), trust.least_version);
            anyhow::ensure!(found >= least, "the model's version is {found}, at least {least} is required");
        }
    }
    note("version", model.model_version().to_string());
    Ok(checks)
}

/// The checks as text.
pub fn text(checks: &Checks) -> String {
    checks.iter().fold(String::new(), |mut out, (what, result)| {
        let _ = writeln!(out, "{what:<12} {result}");
        out
    })
}

/// The checks as JSON.
pub fn json(checks: &Checks) -> Value {
    let all: serde_json::Map<String, Value> =
        checks.iter().map(|(what, result)| ((*what).to_owned(), json!(result))).collect();
    json!({ "sound": true, "checks": all })
}

/// The most damaged places that a message names.
const NAMED: usize = 4;

/// One line about a file that does not parse: why, where it is damaged, and whether its parity could repair it.
pub fn damaged(file: &[u8], error: &ModelError) -> String {
    let mut line = error.to_string();
    if let Ok(survey) = Survey::of(file) {
        let places = places(file, &survey);
        for place in places.iter().take(NAMED) {
            let _ = write!(line, "; {place}");
        }
        if places.len() > NAMED {
            let _ = write!(line, "; and {} more places", places.len() - NAMED);
        }
    }
    match repaired(file) {
        Ok((_, repaired)) if repaired.bits > 0 => {
            let bits = if repaired.bits == 1 { "bit is" } else { "bits are" };
            let _ = write!(line, "; {} {bits} flipped, quantize repair sets right", repaired.bits);
            if let Some(first) = repaired.first {
                let _ = write!(line, " (the first: bit {} of byte {})", first.bit, first.offset);
            }
        }
        Err(lost @ RepairError::Lost { .. }) => _ = write!(line, "; parity: {lost}"),
        _ => {}
    }
    line
}

/// Damaged blocks and words, each with the section where it lies.
fn places(file: &[u8], survey: &Survey<'_>) -> Vec<String> {
    let mut scrub: Scrub = survey.scrub();
    let mut places = Vec::new();
    loop {
        match scrub.step(file) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return places,
            Err(damage) => {
                let (offset, bytes) = match damage {
                    Damage::Block { offset, bytes, .. } => (offset, bytes),
                    Damage::Parity { offset } => (offset, 1),
                    Damage::File { .. } | Damage::NotZero { .. } => continue,
                };
                let name = |at: usize| survey.section_at(at).map(|(index, name)| format!("section {index} ({name})"));
                let first = name(offset).unwrap_or_else(|| "head or end of the file".into());
                let last = name(offset + bytes - 1).filter(|last| *last != first);
                places.push(match last {
                    Some(last) => format!("{damage}, in {first} to {last}"),
                    None => format!("{damage}, in {first}"),
                });
            }
        }
    }
}

/// The file with every single flipped bit set right.
///
/// # Errors
/// As [`nadir::guard::repair`].
pub fn repaired(file: &[u8]) -> Result<(Vec<u8>, Repaired), RepairError> {
    let mut copy = file.to_vec();
    let mut repair = Repair::new(&copy)?;
    while repair.step(&mut copy) == Progress::More {}
    repair.result().map(|repaired| (copy, repaired))
}
