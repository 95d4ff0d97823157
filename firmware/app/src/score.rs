//! From an embedding to the record of its tile. The ground calls the same functions to check what came down.

use nadir::triage::novelty::{NEIGHBOURS, novelty};
use nadir::triage::prototypes::{Prototypes, QueryError};
use nadir::triage::quality::{Quality, Verdict};
use nadir::triage::record::{Reason, Record, Rung, Scores};

/// The record of a tile that the quality check vetoed; `None` if it passed.
pub fn vetoed(tile: u32, quality: &Quality, verdict: Verdict) -> Option<Record> {
    let reason = match verdict {
        Verdict::Pass => return None,
        Verdict::NoData => Reason::VetoedNoData,
        Verdict::Saturated => Reason::VetoedSaturated,
    };
    Some(Record { rung: Rung::Record, reason, ..record(tile, quality) })
}

/// The record of a tile whose embedding goes down whole; scored if there are prototypes.
///
/// Here is no budget to weigh against other tiles: a tile that is more probably wanted than not is [`Reason::Wanted`], any
/// other one that is far from the bank [`Reason::Novel`].
///
/// # Errors
/// If the embedding is not finite, or does not have the dimension of the prototypes.
pub fn scored(
    tile: u32,
    quality: &Quality,
    embedding: &[f32],
    prototypes: Option<&Prototypes<'_>>,
) -> Result<Record, QueryError> {
    let mut record = record(tile, quality);
    if let Some(prototypes) = prototypes {
        let query = prototypes.query(embedding)?;
        let score = prototypes.score(&query);
        // Without a bank, novel is what lies far from every prototype.
        let distance = novelty(&query, prototypes.bank(), NEIGHBOURS)
            .or_else(|| novelty(&query, prototypes.vectors(), NEIGHBOURS))
            .unwrap_or(0.0);
        // The reason comes from the rounded scores, so that whoever has the record can repeat it.
        let scores = Scores::new(score.margin, distance, score.nearest);
        if prototypes.probability(scores.margin()) >= 0.5 {
            record.reason = Reason::Wanted;
        } else if scores.novelty() >= prototypes.header().novel_from {
            record.reason = Reason::Novel;
        }
        record.scores = Some(scores);
    }
    Ok(record)
}

fn record(tile: u32, quality: &Quality) -> Record {
    Record {
        tile,
        no_data: quality.no_data_permille(),
        saturated: quality.saturated_permille(),
        scores: None,
        rung: Rung::Embedding,
        reason: Reason::Routine,
    }
}
