//! Where engines part: the same tiles through the float encoder in float64, in candle, as ONNX in tract, and as a model file in the runtime,
//! compared after every place.
//!
//! Two numbers are taken of each place. How far two engines lie apart there holds everything that went wrong before. What a place itself
//! adds is measured against the reference computed *from that engine's own input to the place*; so a wrong weight shows in its place and in no
//! other, and what comes in noisy is not held against it.

use std::fmt::Write;

use anyhow::{Result, ensure};
use nadir::encoder::Encoder as Engine;
use nadir::model::{Place, Precision};
use nadir_formats::{Encoder, Tiles};
use serde_json::{Value, json};

use crate::candle::CandleEncoder;
use crate::maps::{PlaceMap, maps, reference_maps, residual_scales};
use crate::onnx::OnnxEncoder;
use crate::onnx::run::Graph;
use crate::reference::Reference;

/// How two engines compare at a place, over all tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    dot: f64,
    first: f64,
    second: f64,
    difference: f64,
}

impl Distance {
    fn add(&mut self, a: &[f64], b: &[f64]) {
        for (a, b) in a.iter().zip(b) {
            self.dot += a * b;
            self.first += a * a;
            self.second += b * b;
            self.difference += (a - b) * (a - b);
        }
    }

    /// Cosine of the two, all values of the place taken as one vector.
    pub fn cosine(&self) -> f64 {
        self.dot / (self.first * self.second).sqrt()
    }

    /// Energy of the first over energy of the difference, in decibels; infinite if they are equal.
    pub fn signal_to_noise_db(&self) -> f64 {
        10.0 * (self.first / self.difference).log10()
    }
}

/// One place of the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The place.
    pub place: Place,
    /// A distance for each of [`Report::pairs`].
    pub distances: Vec<Distance>,
    /// Of each engine but the reference: the error that the place adds, relative to what the place adds to its input (a block) or to its
    /// result (the others).
    pub added: Vec<f64>,
}

/// Where an engine parts from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parting {
    /// Index into [`Report::engines`].
    pub engine: usize,
    /// The first place that adds more error than its precision explains.
    pub place: Place,
    /// The error that it adds.
    pub error: f64,
    /// What is explained.
    pub limit: f64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Engines by name; the first is the reference.
    pub engines: Vec<&'static str>,
    /// The largest error that a place may add, for each engine but the reference.
    pub limits: Vec<f64>,
    /// Number of tiles.
    pub tiles: usize,
    /// Place by place, in the order of a run.
    pub rows: Vec<Row>,
}

/// The largest relative error that a place may add in this precision.
///
/// Several times what the shipped models add (`benches/runs/2026-11-23-verify.md`): f32 9e-7, f16 6e-4, int8 0.04.
pub fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2e-5,
        Precision::F16 => 3e-3,
        Precision::Int8 => 0.15,
    }
}

/// Runs all engines on `tiles`, whose bands are in the model's order. `tolerance` replaces the limit of the runtime's precision. `done` is
/// called after each tile.
///
/// # Errors
/// If the tiles do not have the encoder's shape, or an engine fails.
pub fn verify(
    encoder: &Encoder,
    onnx: Option<&OnnxEncoder>,
    engine: &Engine<'_>,
    tiles: &Tiles,
    tolerance: Option<f64>,
    done: impl Fn(),
) -> Result<Report> {
    ensure!(!tiles.is_empty(), "there is no tile");
    let reference = Reference::new(encoder);
    let candle = CandleEncoder::new(encoder)?;
    let graph = onnx.map(Graph::new).transpose()?;
    let scales = residual_scales(engine, &reference, tiles)?;
    let precision = engine.model().precision();
    let mut engines = vec!["f64", "candle"];
    engines.extend(graph.is_some().then_some("tract"));
    engines.push("nadir");
    let mut limits = vec![limit(Precision::F32); engines.len() - 2];
    limits.push(tolerance.unwrap_or(limit(precision)));

    let mut report = Report { engines, limits, tiles: tiles.len(), rows: Vec::new() };
    let pairs = report.pairs();
    // Of each place and engine, the energy of what was added and of its error.
    let mut added: Vec<Vec<[f64; 2]>> = Vec::new();
    for index in 0..tiles.len() {
        let tile = tiles.tile(index);
        let mut found = vec![reference_maps(&reference, tile), candle.maps(tile)?];
        found.extend(graph.as_ref().map(|graph| graph.maps(tile)).transpose()?);
        found.push(maps(engine, &scales, tile)?);
        for (at, map) in found[0].iter().enumerate() {
            if index == 0 {
                let distances = vec![Distance::default(); pairs.len()];
                report.rows.push(Row { place: map.place, distances, added: Vec::new() });
                added.push(vec![[0.0; 2]; found.len() - 1]);
            }
            for (distance, &[a, b]) in report.rows[at].distances.iter_mut().zip(&pairs) {
                distance.add(&found[a][at].values, &found[b][at].values);
            }
            for (sums, maps) in added[at].iter_mut().zip(&found[1..]) {
                let [signal, noise] = addition(&reference, at, maps, &found[0]);
                *sums = [sums[0] + signal, sums[1] + noise];
            }
        }
        done();
    }
    for (row, sums) in report.rows.iter_mut().zip(added) {
        row.added = sums.iter().map(|[signal, noise]| (noise / signal).sqrt()).collect();
    }
    Ok(report)
}

/// Energies of what place `at` adds, by the reference from the engine's own input, and of the engine's error therein.
fn addition(reference: &Reference, at: usize, maps: &[PlaceMap], exact: &[PlaceMap]) -> [f64; 2] {
    let found = &maps[at];
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let (expected, before) = match at.checked_sub(1) {
        None => (exact[at].values.clone(), None),
        Some(before) => {
            let input = &maps[before].values;
            (reference.place(found.place, input), matches!(found.place, Place::Block { .. }).then_some(input))
        }
    };
    let noise = square(&mut found.values.iter().zip(&expected).map(|(f, e)| f - e));
    let signal = match before {
        Some(before) => square(&mut expected.iter().zip(before).map(|(e, b)| e - b)),
        None => square(&mut expected.iter().copied()),
    };
    [signal, noise]
}

impl Report {
    /// The pairs of engines that are compared, as indices.
    pub fn pairs(&self) -> Vec<[usize; 2]> {
        let n = self.engines.len();
        (0..n).flat_map(|a| (a + 1..n).map(move |b| [a, b])).collect()
    }

    /// The first place at which an engine adds more error than is explained; of several engines the first.
    pub fn parting(&self) -> Option<Parting> {
        self.rows.iter().find_map(|row| {
            let beyond = |(i, (&error, &limit)): (usize, (&f64, &f64))| {
                // Not a number is beyond every limit.
                let within = error <= limit;
                (!within).then_some(Parting { engine: i + 1, place: row.place, error, limit })
            };
            row.added.iter().zip(&self.limits).enumerate().find_map(beyond)
        })
    }

    /// A line a place.
    pub fn text(&self) -> String {
        let pairs = self.pairs();
        let mut out = format!(
            "{} tiles; cosine and signal-to-noise ratio in dB between engines; error that each place adds\n",
            self.tiles
        );
        let _ = write!(out, "{:<14}", "place");
        for [a, b] in &pairs {
            let _ = write!(out, "  {:>16}", format!("{}-{}", self.engines[*a], self.engines[*b]));
        }
        for name in &self.engines[1..] {
            let _ = write!(out, "  {name:>8}");
        }
        out.push('\n');
        for row in &self.rows {
            let _ = write!(out, "{:<14}", row.place.to_string());
            for distance in &row.distances {
                let _ = write!(out, "  {:>9.6} {:>6.1}", distance.cosine(), distance.signal_to_noise_db());
            }
            for error in &row.added {
                let _ = write!(out, "  {error:>8.1e}");
            }
            out.push('\n');
        }
        let limits: Vec<String> =
            self.engines[1..].iter().zip(&self.limits).map(|(name, limit)| format!("{name} {limit:.1e}")).collect();
        let _ = writeln!(out, "a place may add: {}", limits.join(", "));
        out
    }

    /// The same as JSON; an infinite ratio is null.
    pub fn json(&self) -> Value {
        let pairs = self.pairs();
        let row = |row: &Row| {
            let distances = pairs.iter().zip(&row.distances).map(|([a, b], distance)| {
                json!({
                    "engines": [self.engines[*a], self.engines[*b]],
                    "cosine": distance.cosine(),
                    "signal_to_noise_db": distance.signal_to_noise_db(),
                })
            });
            let added: serde_json::Map<String, Value> = self.engines[1..]
                .iter()
                .zip(&row.added)
                .map(|(name, error)| ((*name).to_owned(), json!(error)))
                .collect();
            json!({ "place": row.place.to_string(), "pairs": distances.collect::<Vec<_>>(), "added_error": added })
        };
        let limits: serde_json::Map<String, Value> = self.engines[1..]
            .iter()
            .zip(&self.limits)
            .map(|(name, limit)| ((*name).to_owned(), json!(limit)))
            .collect();
        json!({
            "tiles": self.tiles,
            "limits": limits,
            "places": self.rows.iter().map(row).collect::<Vec<_>>(),
            "parts": self.parting().map(|p| {
                json!({ "engine": self.engines[p.engine], "place": p.place.to_string(), "added_error": p.error, "limit": p.limit })
            }),
        })
    }
}
