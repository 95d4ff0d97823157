//! Tiles as lines: a table for people, JSON for programs.

use std::fmt::Write;

use nadir::triage::record::{Record, Rung};
use serde::Serialize;

/// One tile, as `--json` prints it. What is not known is `null`.
#[derive(Serialize)]
pub struct Line {
    /// Index in capture order.
    pub tile: u32,
    /// `nothing`, `record`, `code`, `embedding` or `tile`.
    pub rung: Option<&'static str>,
    /// Bytes sent, or received, frames included.
    pub bytes: u64,
    /// Margin of the nearest wanted prototype over the nearest other one, -2 to 2.
    pub score: Option<f64>,
    /// Why it got its rung.
    pub reason: Option<&'static str>,
    /// Mean cosine distance to the nearest embeddings of the bank, 0 to 2.
    pub novelty: Option<f64>,
    /// Class of the nearest prototype.
    pub nearest: Option<u16>,
    /// Share of pixels without data.
    pub no_data: Option<f64>,
    /// Share of saturated pixels.
    pub saturated: Option<f64>,
    /// Whether record and payload are all there.
    pub complete: bool,
}

impl Line {
    /// The line of a tile; `record` is `None` if it was lost.
    pub fn new(tile: u32, record: Option<&Record>, bytes: u64, complete: bool) -> Self {
        let scores = record.and_then(|r| r.scores);
        // Fixed point read as decimals, so that 0.1234 prints as it stands.
        let decimal = |v: f32, unit: f64| (f64::from(v) * unit).round() / unit;
        Self {
            tile,
            rung: record.map(|r| r.rung.name()),
            bytes,
            score: scores.map(|s| decimal(s.margin(), 1e4)),
            reason: record.map(|r| r.reason.name()),
            novelty: scores.map(|s| decimal(s.novelty(), 1e4)),
            nearest: scores.map(|s| s.nearest),
            no_data: record.map(|r| f64::from(r.no_data) / 1e3),
            saturated: record.map(|r| f64::from(r.saturated) / 1e3),
            complete,
        }
    }
}

/// One JSON object a line.
pub fn json(lines: &[Line]) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line)?;
        text.push('\n');
    }
    Ok(text)
}

/// A table with a head line.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::from("  tile  no data  saturated    score  novelty  nearest  rung          bytes  reason\n");
    let percent = |v: Option<f64>| v.map_or("-".into(), |v| format!("{:.1} %", 100.0 * v));
    let number = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.4}"));
    for line in lines {
        let rung = line.rung.unwrap_or("lost");
        let nearest = line.nearest.map_or("-".into(), |n| n.to_string());
        let reason = line.reason.unwrap_or("record lost");
        let mark = if line.complete || line.reason.is_none() { "" } else { ", incomplete" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>6}  {:>7}  {:>9}  {:>7}  {:>7}  {nearest:>7}  {rung:<9}  {:>8}  {reason}{mark}",
            line.tile,
            percent(line.no_data),
            percent(line.saturated),
            number(line.score),
            number(line.novelty),
            line.bytes
        );
    }
    text
}

/// Number of tiles on each rung, for instance `2 nothing, 5 record, 0 code, 1 embedding, 4 tile`.
pub fn rung_counts(rungs: impl Iterator<Item = Rung>) -> String {
    let mut counts = [0; Rung::ALL.len()];
    rungs.for_each(|r| counts[r.index()] += 1);
    let counts: Vec<String> = Rung::ALL.iter().zip(counts).map(|(r, n)| format!("{n} {r}")).collect();
    counts.join(", ")
}
