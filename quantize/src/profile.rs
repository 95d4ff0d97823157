//! Where the time of a run goes: measured place by place on this machine, or read from a device's counters, beside what each place costs.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nadir::encoder::{Encoder, Step};
use nadir::plan::cost::Cost;
use nadir_formats::{AlignedBytes, Tiles};
use serde_json::{Value, json};

use crate::embed::check_shape;
use crate::inspect::thousands;
use crate::plan::step_kinds;

/// One place of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceProfile {
    /// Name, for instance `block 2.1`.
    pub place: String,
    /// Number of steps.
    pub steps: usize,
    /// What all of them cost.
    pub cost: Cost,
    /// Time of all steps of the place: the median over tiles.
    pub time: Option<Duration>,
    /// Time of its longest step: the median over tiles.
    pub longest: Option<Duration>,
    /// A device's cycles.
    pub cycles: Option<f64>,
}

/// The places of a run with their costs, nothing measured.
pub fn places(encoder: &Encoder<'_>) -> Vec<PlaceProfile> {
    let mut rows: Vec<PlaceProfile> = Vec::new();
    for kind in step_kinds(encoder) {
        let place = kind.place.to_string();
        match rows.last_mut().filter(|row| row.place == place) {
            Some(row) => {
                row.steps += kind.steps;
                row.cost = row.cost + kind.total;
            }
            None => {
                rows.push(PlaceProfile {
                    place,
                    steps: kind.steps,
                    cost: kind.total,
                    time: None,
                    longest: None,
                    cycles: None,
                });
            }
        }
    }
    rows
}

/// Runs every tile on one thread and notes the time of each step. Before that one tile runs unmeasured.
///
/// # Errors
/// If the tiles do not have the model's shape, or there is none.
pub fn measure(encoder: &Encoder<'_>, tiles: &Tiles, rows: &mut [PlaceProfile]) -> Result<()> {
    check_shape(encoder.model(), tiles)?;
    ensure!(!tiles.is_empty(), "there is no tile");
    let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
    let mut embedding = vec![0.0; encoder.model().embedding_dimension()];
    encoder.embed(tiles.tile(0), &mut arena, &mut embedding)?;
    // Of each place, for each tile: all steps, and the longest.
    let mut times = vec![Vec::with_capacity(tiles.len()); rows.len()];
    for tile in 0..tiles.len() {
        let mut of_tile = vec![(Duration::ZERO, Duration::ZERO); rows.len()];
        let mut run = encoder.start(tiles.tile(tile), &mut arena, &mut embedding)?;
        let (mut at, mut before) = (0, run.place());
        loop {
            if run.place() != before {
                (at, before) = (at + 1, run.place());
            }
            let started = Instant::now();
            let step = run.step()?;
            let took = started.elapsed();
            let (all, longest) = of_tile.get_mut(at).context("a run has more places than its plan")?;
            *all += took;
            *longest = took.max(*longest);
            if step == Step::Done {
                break;
            }
        }
        times.iter_mut().zip(of_tile).for_each(|(times, of_tile)| times.push(of_tile));
    }
    for (row, times) in rows.iter_mut().zip(times) {
        row.time = Some(median(times.iter().map(|(all, _)| *all)));
        row.longest = Some(median(times.iter().map(|(_, longest)| *longest)));
    }
    Ok(())
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Reads a device's counters: lines of `place,cycles` (a first line that names the columns is passed over), or JSON, either
/// `{"block 0.0": 1234, ...}` or `[{"place": "block 0.0", "cycles": 1234}, ...]`. Several numbers for a place are added up.
///
/// # Errors
/// If it is neither, or names a place that the model does not have.
pub fn read_counters(path: &Path, rows: &mut [PlaceProfile]) -> Result<()> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    let counters = if text.trim_start().starts_with(['{', '[']) {
        json_counters(&serde_json::from_str(&text).with_context(name)?)
    } else {
        csv_counters(&text)
    }
    .with_context(name)?;
    ensure!(!counters.is_empty(), "{}: has no counters", path.display());
    for (place, cycles) in counters {
        ensure!(cycles.is_finite() && cycles >= 0.0, "{}: {place} has {cycles} cycles", path.display());
        let Some(row) = rows.iter_mut().find(|row| row.place == place) else {
            let known: Vec<&str> = rows.iter().map(|row| row.place.as_str()).collect();
            bail!("{}: the model has no place {place:?}, only {}", path.display(), known.join(", "));
        };
        *row.cycles.get_or_insert(0.0) += cycles;
    }
    Ok(())
}

fn csv_counters(text: &str) -> Result<Vec<(String, f64)>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let number = |(i, line): (usize, &str)| {
        let (place, cycles) = line.rsplit_once(',').with_context(|| format!("line {} is not place,cycles", i + 1))?;
        match cycles.trim().parse::<f64>() {
            Ok(cycles) => Ok(Some((place.trim().to_owned(), cycles))),
            Err(_) if i == 0 => Ok(None),
            Err(_) => bail!("line {}: {:?} is not a number", i + 1, cycles.trim()),
        }
    };
    lines.map(number).filter_map(Result::transpose).collect()
}

fn json_counters(value: &Value) -> Result<Vec<(String, f64)>> {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(place, cycles)| {
                Ok((place.clone(), cycles.as_f64().with_context(|| format!("{place} is no number"))?))
            })
            .collect(),
        Value::Array(rows) => rows
            .iter()
            .map(|row| {
                let place = row["place"].as_str().context("an entry has no \"place\"")?;
                let cycles = row["cycles"].as_f64().with_context(|| format!("{place} has no \"cycles\""))?;
                Ok((place.to_owned(), cycles))
            })
            .collect(),
        _ => bail!("is neither an object nor a list"),
    }
}

/// Everything that was measured, of all places.
struct Totals {
    time: Duration,
    cycles: f64,
    cost: Cost,
}

fn totals(rows: &[PlaceProfile]) -> Totals {
    Totals {
        time: rows.iter().filter_map(|row| row.time).sum(),
        cycles: rows.iter().filter_map(|row| row.cycles).sum(),
        cost: rows.iter().map(|row| row.cost).sum(),
    }
}

/// The place with the longest step.
fn longest(rows: &[PlaceProfile]) -> Option<&PlaceProfile> {
    rows.iter().filter(|row| row.longest.is_some()).max_by_key(|row| row.longest)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Giga-multiply-adds a second, where there are both.
fn speed(macs: u64, time: Duration) -> Option<f64> {
    (macs > 0 && time > Duration::ZERO).then(|| macs as f64 / time.as_secs_f64() / 1e9)
}

/// The table for people; `tiles` is how many were measured.
pub fn text(encoder: &Encoder<'_>, tiles: usize, rows: &[PlaceProfile]) -> String {
    let model = encoder.model();
    let sums = totals(rows);
    let (timed, counted) = (rows.iter().any(|row| row.time.is_some()), rows.iter().any(|row| row.cycles.is_some()));
    let mut out = format!("{} {}", model.name(), model.precision().name());
    if timed {
        let _ = write!(out, ", kernels {}, one thread, median of {tiles} tiles", encoder.kernels());
    }
    let _ =
        write!(out, "\n\n{:<14} {:>6} {:>14} {:>14} {:>14}", "place", "steps", "MACs", "weight bytes", "moved bytes");
    if timed {
        let _ = write!(out, " {:>12} {:>7} {:>8} {:>14}", "us", "share", "GMAC/s", "us, longest");
    }
    if counted {
        let _ = write!(out, " {:>14} {:>7} {:>10}", "cycles", "share", "cycles/MAC");
    }
    out.push('\n');
    let all = PlaceProfile {
        place: "all".into(),
        steps: rows.iter().map(|row| row.steps).sum(),
        cost: sums.cost,
        time: timed.then_some(sums.time),
        longest: longest(rows).and_then(|row| row.longest),
        cycles: counted.then_some(sums.cycles),
    };
    for row in rows.iter().chain([&all]) {
        let Cost { macs, weights, activations } = row.cost;
        let _ = write!(
            out,
            "{:<14} {:>6} {:>14} {:>14} {:>14}",
            row.place,
            row.steps,
            thousands(macs),
            thousands(weights),
            thousands(activations)
        );
        if let (Some(time), Some(longest)) = (row.time, row.longest) {
            let share = 100.0 * time.as_secs_f64() / sums.time.as_secs_f64().max(1e-12);
            let _ = write!(
                out,
                " {:>12.1} {share:>6.1}% {:>8} {:>14.1}",
                micros(time),
                speed(macs, time).map_or("-".into(), |speed| format!("{speed:.2}")),
                micros(longest)
            );
        }
        if let Some(cycles) = row.cycles {
            let share = 100.0 * cycles / sums.cycles.max(1e-12);
            let per_mac = if macs > 0 { format!("{:.3}", cycles / macs as f64) } else { "-".into() };
            let _ = write!(out, " {:>14} {share:>6.1}% {per_mac:>10}", thousands(cycles as u64));
        }
        out.push('\n');
    }
    if let Some(row) = longest(rows) {
        let time = row.longest.unwrap_or_default();
        let _ = writeln!(out, "longest step: {}, {:.1} us", row.place, micros(time));
    }
    out
}

/// The same as JSON.
pub fn json(encoder: &Encoder<'_>, tiles: usize, rows: &[PlaceProfile]) -> Value {
    let sums = totals(rows);
    let row = |row: &PlaceProfile| {
        json!({
            "place": row.place,
            "steps": row.steps,
            "macs": row.cost.macs,
            "weight_bytes": row.cost.weights,
            "moved_bytes": row.cost.activations,
            "microseconds": row.time.map(micros),
            "gmac_per_second": row.time.and_then(|time| speed(row.cost.macs, time)),
            "longest_step_microseconds": row.longest.map(micros),
            "cycles": row.cycles,
        })
    };
    json!({
        "model": encoder.model().name(),
        "precision": encoder.model().precision().name(),
        "kernels": encoder.kernels(),
        "tiles": tiles,
        "microseconds": micros(sums.time),
        "cycles": sums.cycles,
        "macs": sums.cost.macs,
        "longest_step": longest(rows).map(|row| json!({"place": row.place, "microseconds": row.longest.map(micros)})),
        "places": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
