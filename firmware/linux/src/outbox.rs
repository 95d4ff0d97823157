//! Reads an outbox: one file of frames, `outbox.bin`, as [`mod@crate::fill`] writes it, or what arrived of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nadir::triage::frame;
use nadir::triage::record::{MESSAGE_VERSION, Message, Reason, Record, Rung, ValueType};

/// Name of the file inside the outbox folder.
pub const FILE_NAME: &str = "outbox.bin";

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

#[cfg(test)]
mod tests {
    use nadir::triage::record::{Header, Payload};

    use super::*;
    use crate::fill::{pieces, push_frame};

    fn header(version: u8) -> Message<'static> {
        Message::Header(Header {
            version,
            model: "m",
            embedding_space: "s",
            dimension: 8,
            prototypes: 7,
            captured: 9,
            bands: "B4,B3",
            height: 50,
            width: 60,
            value: ValueType::U8,
        })
    }

    fn file(version: u8) -> Vec<u8> {
        let record = |tile, rung| {
            Message::Record(Record { tile, no_data: 0, saturated: 0, scores: None, rung, reason: Reason::Routine })
        };
        let mut bytes = Vec::new();
        push_frame(&mut bytes, &header(version)).unwrap();
        for message in [record(4, Rung::Tile), record(2, Rung::Code), record(3, Rung::Record)] {
            push_frame(&mut bytes, &message).unwrap();
        }
        let tile: Vec<u8> = (0..6000).map(|i| (i % 251) as u8).collect();
        for piece in pieces(2, &[5]).chain(pieces(4, &tile)) {
            push_frame(&mut bytes, &piece).unwrap();
        }
        bytes
    }

    #[test]
    fn pieces_are_put_together() {
        let bytes = file(MESSAGE_VERSION);
        let outbox = parse_outbox(&mut bytes.clone());
        let header = outbox.header.as_ref().unwrap();
        assert_eq!((header.captured, header.bands.len(), outbox.damaged.len()), (9, 2, 0));
        assert_eq!(outbox.tiles.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(outbox.tiles[&2].payload(header), Some(vec![5]));
        assert_eq!(outbox.tiles[&3].payload(header), Some(vec![]));
        assert_eq!(outbox.tiles[&4].payload(header).unwrap().len(), 6000);
        assert!(outbox.incomplete().is_empty());
        let first = bytes.iter().position(|b| *b == 0).unwrap() + 1;
        assert_eq!(outbox.tiles.values().map(|t| t.bytes).sum::<u64>(), (bytes.len() - first) as u64);

        let mut other = parse_outbox(&mut file(MESSAGE_VERSION + 1));
        assert_eq!((other.header.take(), other.damaged[0].position), (None, 0));
        assert!(other.damaged[0].what.contains("version 2"));
        assert_eq!(other.incomplete(), [2, 3, 4]);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let bytes = file(MESSAGE_VERSION);
        let mut random = crate::kmeans::Random(6);
        let mut below = |n: usize| (random.unit() * n as f64) as usize;
        for _ in 0..3000 {
            let mut bad = bytes.clone();
            for _ in 0..1 + below(8) {
                let at = below(bad.len());
                match below(3) {
                    0 => bad[at] = below(256) as u8,
                    1 => bad.truncate(at.max(1)),
                    _ => bad.insert(at, below(2) as u8),
                }
            }
            let outbox = parse_outbox(&mut bad);
            outbox.incomplete();
            assert!(outbox.tiles.len() <= 3 && outbox.damaged.iter().all(|d| d.position < bytes.len() + 9));
        }
        // Payloads that claim other places than their own do not make a whole.
        let mut shifted = Vec::new();
        push_frame(&mut shifted, &header(MESSAGE_VERSION)).unwrap();
        let at = |offset| Message::Payload(Payload { tile: 1, offset, bytes: &[1; 10] });
        push_frame(&mut shifted, &at(u32::MAX)).unwrap();
        push_frame(&mut shifted, &at(5)).unwrap();
        assert_eq!(parse_outbox(&mut shifted).incomplete(), [1]);
    }
}
