//! The outbox: one file of frames, `outbox.bin`, in the order in which it should be sent.
//!
//! First the header, then the records of all tiles, those worth most first, then payloads, those of most value per byte
//! first. Whatever part of it arrives, the frames in it can be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nadir::Tile;
use nadir::model::Model;
use nadir::triage::codes;
use nadir::triage::frame;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::record::{
    Header, MESSAGE_VERSION, Message, PAYLOAD_BYTES, Payload, Reason, Record, Rung, ValueType,
};
use nadir::triage::select::{Candidate, Policy, Step, select};
use nadir_formats::Tiles;

use crate::assess::{Assessed, Scored};
use crate::input::{HasValueType, band_names};

/// Name of the file inside the outbox folder.
pub const FILE_NAME: &str = "outbox.bin";

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

    let centre: Vec<f32> = table.centre().collect();
    let mut candidates = Vec::with_capacity(tiles.len());
    let mut payloads = Vec::with_capacity(tiles.len());
    for (index, (assessed, scored)) in assessed.iter().zip(scored).enumerate() {
        let tile = index as u32;
        let payload =
            TilePayloads::new(tiles.tile(index), assessed, &centre).with_context(|| format!("tile {tile}"))?;
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
    fn new(tile: Tile<'a>, assessed: &Assessed, centre: &[f32]) -> Result<Self> {
        let mut small = None;
        if let Some(embedding) = &assessed.embedding {
            let mut code = vec![0; codes::code_bytes(embedding.len())];
            codes::binary_code(embedding, centre, &mut code)?;
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

fn pieces(tile: u32, bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    bytes.chunks(PAYLOAD_BYTES).enumerate().map(move |(i, bytes)| {
        let offset = (i * PAYLOAD_BYTES) as u32;
        Message::Payload(Payload { tile, offset, bytes })
    })
}

fn push_frame(to: &mut Vec<u8>, message: &Message<'_>) -> Result<()> {
    let start = to.len();
    to.resize(start + frame::encoded_len(message)?, 0);
    frame::encode(message, &mut to[start..])?;
    Ok(())
}

/// The header of an outbox, owned.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxHeader {
    /// Name of the model.
    pub model: String,
    /// Space of the embeddings.
    pub embedding_space: String,
    /// Dimension of the embeddings.
    pub dimension: usize,
    /// CRC-32C of the prototype file.
    pub prototypes: u32,
    /// Tiles captured, sent or not.
    pub captured: u32,
    /// Bands of the pixels.
    pub bands: Vec<String>,
    /// Rows of a tile.
    pub height: usize,
    /// Columns of a tile.
    pub width: usize,
    /// Type of a pixel.
    pub value: ValueType,
}

impl OutboxHeader {
    /// Bytes of the payload of a rung.
    pub fn payload_bytes(&self, rung: Rung) -> usize {
        let pixels = self.bands.len().saturating_mul(self.height).saturating_mul(self.width);
        rung.payload_bytes(self.dimension, pixels.saturating_mul(self.value.bytes()))
    }
}

/// What arrived of one tile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Its record, unless lost.
    pub record: Option<Record>,
    /// Bytes of its frames.
    pub bytes: u64,
    /// Pieces of its payload by offset.
    pub pieces: BTreeMap<u32, Vec<u8>>,
}

impl Received {
    /// Its rung; `None` if the record was lost.
    pub fn rung(&self) -> Option<Rung> {
        self.record.map(|r| r.rung)
    }

    /// Why it was sent so; `None` if the record was lost.
    pub fn reason(&self) -> Option<Reason> {
        self.record.map(|r| r.reason)
    }

    /// The whole payload, if every byte of it is there.
    pub fn payload(&self, header: &OutboxHeader) -> Option<Vec<u8>> {
        let expected = header.payload_bytes(self.rung()?);
        let mut whole = Vec::new();
        for (offset, bytes) in &self.pieces {
            if *offset as usize != whole.len() {
                return None;
            }
            whole.extend(bytes);
        }
        (whole.len() == expected).then_some(whole)
    }
}

/// Something in an outbox that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Position of the frame in the file.
    pub position: usize,
    /// What is wrong with it.
    pub what: String,
}

/// An outbox as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outbox {
    /// Its header, unless lost.
    pub header: Option<OutboxHeader>,
    /// By tile, in capture order.
    pub tiles: BTreeMap<u32, Received>,
    /// Frames that could not be read.
    pub damaged: Vec<Damaged>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// The file of an outbox, given itself or its folder.
pub fn outbox_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() }
}

/// Reads an outbox, given its folder or the file in it. Damaged frames are listed in the result; the others are read.
///
/// # Errors
/// If the file cannot be read at all.
pub fn read_outbox(path: &Path) -> Result<Outbox> {
    let file = outbox_file(path);
    let mut bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    Ok(parse_outbox(&mut bytes))
}

/// Reads the content of an outbox file; `bytes` is used as working memory.
pub fn parse_outbox(bytes: &mut [u8]) -> Outbox {
    let mut outbox = Outbox { bytes: bytes.len() as u64, ..Outbox::default() };
    let mut frames = frame::frames(bytes);
    loop {
        let position = frames.position();
        match frames.next() {
            None => break,
            Some(Err(e)) => outbox.damaged.push(Damaged { position: e.position, what: e.damage.to_string() }),
            Some(Ok(payload)) => match frame::parse::<Message<'_>>(payload) {
                Some(message) => outbox.take(&message, position),
                None => outbox.damaged.push(Damaged { position, what: "unknown message".into() }),
            },
        }
    }
    outbox
}

impl Outbox {
    fn take(&mut self, message: &Message<'_>, position: usize) {
        let len = frame::encoded_len(message).unwrap_or(0) as u64;
        match message {
            Message::Header(h) if h.version != MESSAGE_VERSION => {
                let what = format!("version {} is not known, only {MESSAGE_VERSION}", h.version);
                self.damaged.push(Damaged { position, what });
            }
            Message::Header(h) => {
                self.header = Some(OutboxHeader {
                    model: h.model.into(),
                    embedding_space: h.embedding_space.into(),
                    dimension: h.dimension.into(),
                    prototypes: h.prototypes,
                    captured: h.captured,
                    bands: h.bands.split(',').map(String::from).collect(),
                    height: h.height.into(),
                    width: h.width.into(),
                    value: h.value,
                });
            }
            Message::Record(record) => {
                let tile = self.tiles.entry(record.tile).or_default();
                tile.record = Some(*record);
                tile.bytes += len;
            }
            Message::Payload(payload) => {
                let tile = self.tiles.entry(payload.tile).or_default();
                tile.pieces.insert(payload.offset, payload.bytes.to_vec());
                tile.bytes += len;
            }
        }
    }

    /// Tiles whose record or part of whose payload did not arrive.
    pub fn incomplete(&self) -> Vec<u32> {
        let whole = |r: &Received| self.header.as_ref().is_some_and(|h| r.payload(h).is_some());
        self.tiles.iter().filter(|(_, received)| !whole(received)).map(|(tile, _)| *tile).collect()
    }
}
