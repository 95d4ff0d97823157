//! Fills an outbox: the choice under the budget, and the frames in the order in which they should be sent.
//!
//! First the header, then the records of all tiles, those worth most first, then payloads, those of most value per byte
//! first. Whatever part of it arrives, the frames in it can be read.

use anyhow::{Context, Result, bail, ensure};
use nadir::Tile;
use nadir::model::Model;
use nadir::triage::codes;
use nadir::triage::frame;
use nadir::triage::products::Product;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::record::{Header, MESSAGE_VERSION, Message, PAYLOAD_BYTES, Payload, Record, Rung};
use nadir::triage::select::{Candidate, Policy, Step, select};
use nadir_formats::Tiles;

use crate::assess::{Assessed, Scored};
use crate::input::{HasValueType, band_names};

/// An outbox ready to be written, and the fate of every tile.
#[derive(Clone, Debug)]
pub struct Filled {
    /// Content of the file; no longer than the budget.
    pub bytes: Vec<u8>,
    /// Record and bytes of every captured tile, in capture order; bytes is 0 where nothing was sent.
    pub fates: Vec<(Record, u64)>,
}

/// Chooses a rung for every tile and frames what is sent. `scored` holds `None` for vetoed tiles.
///
/// # Errors
/// If the budget does not hold the header, or if an embedding is not finite.
pub fn fill(
    model: &Model<'_>,
    table: &Prototypes<'_>,
    tiles: &Tiles,
    assessed: &[Assessed],
    scored: &[Option<Scored>],
    policy: &Policy,
    budget: u64,
) -> Result<Filled> {
    ensure!(assessed.len() == tiles.len() && scored.len() == tiles.len(), "not every tile was assessed");
    let bands = band_names(model).join(",");
    let header = Message::Header(Header {
        version: MESSAGE_VERSION,
        model: model.name(),
        embedding_space: model.embedding_space(),
        dimension: u16::try_from(model.embedding_dimension())?,
        prototypes: table.crc(),
        captured: u32::try_from(tiles.len())?,
        bands: &bands,
        height: u16::try_from(tiles.shape[2])?,
        width: u16::try_from(tiles.shape[3])?,
        value: tiles.value_type(),
    });
    let mut bytes = Vec::new();
    push_frame(&mut bytes, &header)?;
    let Some(left) = budget.checked_sub(bytes.len() as u64) else {
        bail!("a budget of {budget} bytes does not hold the outbox's header of {} bytes", bytes.len());
    };

    let mut candidates = Vec::with_capacity(tiles.len());
    let mut payloads = Vec::with_capacity(tiles.len());
    for (index, (assessed, scored)) in assessed.iter().zip(scored).enumerate() {
        let tile = index as u32;
        let payload =
            TilePayloads::new(tiles.tile(index), assessed, model, table).with_context(|| format!("tile {tile}"))?;
        // Neither rung nor reason changes the length of the record's frame.
        let record = frame::encoded_len(&Message::Record(record(tile, assessed, scored, policy, Rung::Record)))?;
        let mut sizes = [Some(0); Rung::ALL.len()];
        for rung in [Rung::Record, Rung::Code, Rung::Embedding, Rung::Tile] {
            let framed = payload.framed_len(tile, rung)?.and_then(|payload| u32::try_from(record + payload).ok());
            sizes[rung.index()] = framed;
        }
        let worth = policy.worth(assessed.verdict, scored.as_ref().map(|s| &s.signals));
        candidates.push(Candidate { worth, bytes: sizes });
        payloads.push(payload);
    }
    let mut rungs = vec![Rung::Nothing; tiles.len()];
    select(&candidates, policy, left, &mut vec![Step::EMPTY; tiles.len()], &mut rungs)?;

    let records: Vec<Record> =
        (0..tiles.len()).map(|i| record(i as u32, &assessed[i], &scored[i], policy, rungs[i])).collect();
    let fates: Vec<(Record, u64)> =
        records.iter().map(|r| (*r, size(&candidates[r.tile as usize], r.rung).into())).collect();
    let mut sent: Vec<usize> = (0..tiles.len()).filter(|i| rungs[*i] != Rung::Nothing).collect();
    sent.sort_by(|a, b| candidates[*b].worth.total_cmp(&candidates[*a].worth));
    for &index in &sent {
        push_frame(&mut bytes, &Message::Record(records[index]))?;
    }
    let density = |index: usize| {
        let (candidate, rung) = (&candidates[index], rungs[index]);
        let more = size(candidate, rung) - size(candidate, Rung::Record);
        let gain = policy.fidelity[rung.index()] - policy.fidelity[Rung::Record.index()];
        f64::from(candidate.worth) * f64::from(gain) / f64::from(more.max(1))
    };
    sent.retain(|i| rungs[*i] > Rung::Record);
    sent.sort_by(|a, b| density(*b).total_cmp(&density(*a)).then(a.cmp(b)));
    for &index in &sent {
        for piece in pieces(index as u32, &payloads[index].bytes(rungs[index])) {
            push_frame(&mut bytes, &piece)?;
        }
    }
    ensure!(bytes.len() as u64 <= budget, "the outbox came to {} bytes, over its budget of {budget}", bytes.len());
    Ok(Filled { bytes, fates })
}

fn size(candidate: &Candidate, rung: Rung) -> u32 {
    candidate.bytes[rung.index()].unwrap_or(0)
}

fn record(tile: u32, assessed: &Assessed, scored: &Option<Scored>, policy: &Policy, rung: Rung) -> Record {
    Record {
        tile,
        no_data: assessed.quality.no_data_permille(),
        saturated: assessed.quality.saturated_permille(),
        scores: scored.map(|s| s.scores),
        rung,
        reason: policy.reason(assessed.verdict, scored.as_ref().map(|s| &s.signals), rung),
    }
}

/// The forms in which one tile may go down.
struct TilePayloads<'a> {
    tile: Tile<'a>,
    /// Code and int8 embedding.
    small: Option<(Vec<u8>, Vec<u8>)>,
}

impl<'a> TilePayloads<'a> {
    /// A code is the model's binary product; of a model without products it is the signs about the centre of the prototypes.
    fn new(tile: Tile<'a>, assessed: &Assessed, model: &Model<'_>, table: &Prototypes<'_>) -> Result<Self> {
        let mut small = None;
        if let Some(embedding) = &assessed.embedding {
            let mut code = vec![0; codes::code_bytes(embedding.len())];
            match model.products() {
                Some(products) => products.encode(Product::Binary, embedding, &mut code)?,
                None => codes::binary_code(embedding, table.centre(), &mut code)?,
            }
            let mut int8 = vec![0; codes::int8_bytes(embedding.len())];
            codes::encode_int8(embedding, &mut int8)?;
            small = Some((code, int8));
        }
        Ok(Self { tile, small })
    }

    fn bytes(&self, rung: Rung) -> Vec<u8> {
        match (rung, &self.small) {
            (Rung::Code, Some((code, _))) => code.clone(),
            (Rung::Embedding, Some((_, int8))) => int8.clone(),
            (Rung::Tile, _) => match self.tile {
                Tile::U8(v) => v.to_vec(),
                Tile::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Tile::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            },
            _ => Vec::new(),
        }
    }

    /// Bytes of the payload's frames; `None` if the tile does not have the rung.
    fn framed_len(&self, tile: u32, rung: Rung) -> Result<Option<usize>> {
        // A vetoed tile is worth nothing: only its record may go.
        if rung > Rung::Record && self.small.is_none() {
            return Ok(None);
        }
        let mut len = 0;
        for piece in pieces(tile, &self.bytes(rung)) {
            len += frame::encoded_len(&piece)?;
        }
        Ok(Some(len))
    }
}

pub(crate) fn pieces(tile: u32, bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    bytes.chunks(PAYLOAD_BYTES).enumerate().map(move |(i, bytes)| {
        let offset = (i * PAYLOAD_BYTES) as u32;
        Message::Payload(Payload { tile, offset, bytes })
    })
}

pub(crate) fn push_frame(to: &mut Vec<u8>, message: &Message<'_>) -> Result<()> {
    let start = to.len();
    to.resize(start + frame::encoded_len(message)?, 0);
    frame::encode(message, &mut to[start..])?;
    Ok(())
}
