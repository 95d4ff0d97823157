//! Quality, embedding and scores of every tile.

use anyhow::{Context, Result};
use nadir::encoder::Encoder;
use nadir::model::Model;
use nadir::triage::novelty::novelty;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::quality::{Limits, Quality, Verdict};
use nadir::triage::record::Scores;
use nadir::triage::select::Signals;
use nadir_formats::{AlignedBytes, Tiles};
use rayon::prelude::*;

/// What is known of one tile before anything is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessed {
    /// Counts over its pixels.
    pub quality: Quality,
    /// Whether the encoder was worth running.
    pub verdict: Verdict,
    /// Its embedding, unless vetoed.
    pub embedding: Option<Vec<f32>>,
}

/// What the prototypes say of a tile. The signals come from the rounded scores of its record, so that ground, which sees the
/// record, can repeat the choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// As the record holds them.
    pub scores: Scores,
    /// What the choice is made by.
    pub signals: Signals,
}

/// Looks at every tile and embeds those that pass, on all threads. `done` is called after each tile, from any thread.
///
/// The tiles have the model's bands in its order. The result does not depend on the number of threads.
pub fn assess(model: &Model<'_>, tiles: &Tiles, limits: &Limits, done: impl Fn() + Sync) -> Result<Vec<Assessed>> {
    let encoder = Encoder::new(model);
    (0..tiles.len())
        .into_par_iter()
        .map_init(
            || AlignedBytes::zeroed(encoder.arena_bytes()),
            |arena, index| {
                let name = || format!("tile {index}");
                let tile = tiles.tile(index);
                let quality = Quality::assess(tile, model.bands()).with_context(name)?;
                let verdict = quality.verdict(limits);
                let mut embedding = None;
                if verdict == Verdict::Pass {
                    let mut values = vec![0.0; model.embedding_dimension()];
                    encoder.embed(tile, arena, &mut values).with_context(name)?;
                    embedding = Some(values);
                }
                done();
                Ok(Assessed { quality, verdict, embedding })
            },
        )
        .collect()
}

/// Compares one embedding with the table: margin, and mean distance to the `neighbours` nearest of the bank (or of the
/// prototypes, if the table has no bank).
pub fn score(table: &Prototypes<'_>, embedding: &[f32], neighbours: usize) -> Result<Scored> {
    let query = table.query(embedding)?;
    let score = table.score(&query);
    let novelty = novelty(&query, table.bank(), neighbours).or_else(|| novelty(&query, table.vectors(), neighbours));
    let scores = Scores::new(score.margin, novelty.unwrap_or(0.0), score.nearest);
    let signals = Signals { probability: table.probability(scores.margin()), novelty: scores.novelty() };
    Ok(Scored { scores, signals })
}
