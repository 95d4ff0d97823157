//! How many instructions a run and its longest step take, before it has run: multiply-adds times what one costs.
//!
//! What one costs was measured over whole runs, everything else included; stored channels and inputs that only fill up count as well, so that the
//! figure for a run is a few percent above the measured one. A single kind of step may be off by more: `quantize profile` measures each.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nadir::encoder::Encoder;
use nadir::model::{Model, Precision};
use nadir::plan::cost::StepKind;
use serde_json::{Value, json};

use crate::inspect::thousands;
use crate::plan::step_kinds;

/// Instructions for a multiply-add, and where the number is from.
#[derive(Clone, Debug, PartialEq)]
pub struct PerMac {
    /// Instructions of a whole run over the multiply-adds of its architecture.
    pub instructions: f64,
    /// For people.
    pub source: String,
}

/// Looks a target up in a file of measured counts (`benches/counts.json`): an object of groups (`host`, `boards`) of objects named
/// `TARGET MODEL-PRECISION`, `TARGET MODEL` (of int8) or `TARGET`, each with `per_mac`. Of another model than this one the largest of the
/// same precision counts.
///
/// # Errors
/// If the file is no such file, or the target is not in it; the message names those that are.
pub fn per_mac(path: &Path, target: &str, model: &Model<'_>) -> Result<PerMac> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let root: Value = serde_json::from_str(&text).with_context(|| format!("{}: is not JSON", path.display()))?;
    let groups = root.as_object().with_context(|| format!("{}: is not an object", path.display()))?;
    let entries: Vec<(&str, f64)> = groups
        .values()
        .filter_map(Value::as_object)
        .flatten()
        .filter_map(|(name, entry)| Some((name.as_str(), entry.get("per_mac")?.as_f64()?)))
        .collect();
    let precision = model.precision().name();
    let exact = format!("{target} {}-{precision}", model.name());
    let of_target = |name: &str| name.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    const ALL: [Precision; 3] = [Precision::Int8, Precision::F16, Precision::F32];
    let of_precision = |name: &str| match ALL.iter().find(|p| name.ends_with(&format!("-{}", p.name()))) {
        Some(named) => named.name() == precision,
        None => name == target || model.precision() == Precision::Int8,
    };
    let same = |name: &str| of_target(name) && of_precision(name);
    let found = entries
        .iter()
        .find(|(name, _)| *name == exact || same(name) && name.ends_with(&format!(" {}", model.name())))
        .or_else(|| entries.iter().filter(|(name, _)| same(name)).max_by(|a, b| a.1.total_cmp(&b.1)));
    let Some(&(name, instructions)) = found else {
        let mut known: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        anyhow::bail!("{}: has no {target:?} for {precision} models, only {known}", path.display());
    };
    ensure!(instructions.is_finite() && instructions > 0.0, "{}: {name}: per_mac is {instructions}", path.display());
    Ok(PerMac { instructions, source: format!("{name}, {}", path.display()) })
}

/// The kind of step whose largest step has the most multiply-adds, the first if there are several.
pub fn largest(kinds: &[StepKind]) -> Option<&StepKind> {
    kinds.iter().rev().max_by_key(|kind| kind.largest.macs)
}

fn instructions(macs: u64, per_mac: &PerMac) -> u64 {
    (macs as f64 * per_mac.instructions).ceil() as u64
}

/// The table for people.
pub fn text(encoder: &Encoder<'_>, per_mac: Option<&PerMac>) -> String {
    let (model, kinds) = (encoder.model(), step_kinds(encoder));
    let mut out = format!("{} {}", model.name(), model.precision().name());
    if let Some(per_mac) = per_mac {
        let _ = write!(out, ", {:.3} instructions a multiply-add ({})", per_mac.instructions, per_mac.source);
    }
    let bound = |macs: u64| per_mac.map_or(String::new(), |per_mac| thousands(instructions(macs, per_mac)));
    let _ = writeln!(
        out,
        "\n\n{:<14} {:>4} {:>6} {:>14} {:>14} {:>14} {:>14} {:>16} {:>16}",
        "place", "pass", "steps", "MACs a step", "MACs", "weight bytes", "moved bytes", "instr. a step", "instructions"
    );
    let mut row = |name: &str, pass: String, steps: usize, step: u64, total: nadir::plan::cost::Cost| {
        let _ = writeln!(
            out,
            "{name:<14} {pass:>4} {steps:>6} {:>14} {:>14} {:>14} {:>14} {:>16} {:>16}",
            thousands(step),
            thousands(total.macs),
            thousands(total.weights),
            thousands(total.activations),
            bound(step),
            bound(total.macs)
        );
    };
    for kind in &kinds {
        row(&kind.place.to_string(), (kind.pass + 1).to_string(), kind.steps, kind.largest.macs, kind.total);
    }
    let steps = kinds.iter().map(|kind| kind.steps).sum();
    let step = largest(&kinds).map_or(0, |kind| kind.largest.macs);
    row("all", String::new(), steps, step, kinds.iter().map(|kind| kind.total).sum());
    if let Some(kind) = largest(&kinds) {
        let _ =
            write!(out, "largest step: {}, pass {}, {} MACs", kind.place, kind.pass + 1, thousands(kind.largest.macs));
        if let Some(per_mac) = per_mac {
            let _ = write!(out, ", {} instructions", thousands(instructions(kind.largest.macs, per_mac)));
        }
        out.push('\n');
    }
    out
}

/// The same as JSON.
pub fn json(encoder: &Encoder<'_>, per_mac: Option<&PerMac>) -> Value {
    let kinds = step_kinds(encoder);
    let rows: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            json!({
                "place": kind.place.to_string(),
                "pass": kind.pass + 1,
                "steps": kind.steps,
                "step_macs": kind.largest.macs,
                "macs": kind.total.macs,
                "weight_bytes": kind.total.weights,
                "moved_bytes": kind.total.activations,
                "step_instructions": per_mac.map(|p| instructions(kind.largest.macs, p)),
                "instructions": per_mac.map(|p| instructions(kind.total.macs, p)),
            })
        })
        .collect();
    let macs: u64 = kinds.iter().map(|kind| kind.total.macs).sum();
    json!({
        "model": encoder.model().name(),
        "precision": encoder.model().precision().name(),
        "arena_bytes": encoder.arena_bytes(),
        "instructions_per_mac": per_mac.map(|p| p.instructions),
        "source": per_mac.map(|p| &p.source),
        "macs": macs,
        "instructions": per_mac.map(|p| instructions(macs, p)),
        "largest_step": largest(&kinds).map(|kind| json!({
            "place": kind.place.to_string(),
            "pass": kind.pass + 1,
            "macs": kind.largest.macs,
            "instructions": per_mac.map(|p| instructions(kind.largest.macs, p)),
        })),
        "steps": rows,
    })
}
