//! What is sent about a tile: a record, and behind it as much of the tile as its rung says.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Version of the messages in this file.
pub const MESSAGE_VERSION: u8 = 1;

/// The most bytes of a tile or embedding in one [`Payload`] message.
pub const PAYLOAD_BYTES: usize = 4096;

/// Number of rungs.
pub const RUNGS: usize = 5;

/// How much of a tile goes down. Each rung above [`Rung::Record`] holds the record and one payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)] // The C interface writes it as a byte.
pub enum Rung {
    /// Not a byte.
    #[default]
    Nothing,
    /// The record alone.
    Record,
    /// The signs of the centred embedding, one bit a dimension: the model's binary product, or about the prototypes' centre if it has none.
    Code,
    /// The embedding as int8 with one scale ([`super::codes::encode_int8`]).
    Embedding,
    /// Every pixel as the sensor stored it, `[bands, height, width]`, little-endian.
    Tile,
}

impl Rung {
    /// All rungs, from nothing upward.
    pub const ALL: [Rung; RUNGS] = [Rung::Nothing, Rung::Record, Rung::Code, Rung::Embedding, Rung::Tile];

    /// `nothing`, `record`, `code`, `embedding` or `tile`.
    pub const fn name(self) -> &'static str {
        match self {
            Rung::Nothing => "nothing",
            Rung::Record => "record",
            Rung::Code => "code",
            Rung::Embedding => "embedding",
            Rung::Tile => "tile",
        }
    }

    /// Position in [`Rung::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Bytes of the payload: `tile_bytes` is values x bytes a value, `dimension` that of the embedding.
    pub const fn payload_bytes(self, dimension: usize, tile_bytes: usize) -> usize {
        match self {
            Rung::Nothing | Rung::Record => 0,
            Rung::Code => super::codes::code_bytes(dimension),
            Rung::Embedding => super::codes::int8_bytes(dimension),
            Rung::Tile => tile_bytes,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a tile got its rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// Near a wanted prototype.
    Wanted,
    /// Far from everything in the bank.
    Novel,
    /// Neither: sent as far as its small worth went.
    Routine,
    /// Too much of it is no data.
    VetoedNoData,
    /// Too much of it is saturated.
    VetoedSaturated,
    /// Wanted, novel or not even recorded, but the bytes went to tiles worth more per byte.
    BudgetExhausted,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 6] = [
        Reason::Wanted,
        Reason::Novel,
        Reason::Routine,
        Reason::VetoedNoData,
        Reason::VetoedSaturated,
        Reason::BudgetExhausted,
    ];

    /// `wanted`, `novel`, `routine`, `vetoed-no-data`, `vetoed-saturated` or `budget-exhausted`.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Wanted => "wanted",
            Reason::Novel => "novel",
            Reason::Routine => "routine",
            Reason::VetoedNoData => "vetoed-no-data",
            Reason::VetoedSaturated => "vetoed-saturated",
            Reason::BudgetExhausted => "budget-exhausted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the embedding of a tile said, in fixed point: margin and novelty in units of 1/10000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scores {
    margin: i16,
    novelty: u16,
    /// Class label of the nearest prototype.
    pub nearest: u16,
}

impl Scores {
    /// Rounds `margin` (in -2 to 2) and `novelty` (in 0 to 2) to 1/10000; NaN becomes 0, what is outside is clamped.
    pub fn new(margin: f32, novelty: f32, nearest: u16) -> Self {
        // `as` saturates, and turns NaN into 0.
        let margin = libm::rintf(margin.clamp(-2.0, 2.0) * 1e4) as i16;
        let novelty = libm::rintf(novelty.clamp(0.0, 2.0) * 1e4) as u16;
        Self { margin, novelty, nearest }
    }

    /// Cosine to the nearest wanted prototype less cosine to the nearest other one.
    pub fn margin(&self) -> f32 {
        f32::from(self.margin) / 1e4
    }

    /// Mean cosine distance to the nearest embeddings of the bank.
    pub fn novelty(&self) -> f32 {
        f32::from(self.novelty) / 1e4
    }
}

/// What is known of one tile, in at most [`Record::MAX_BYTES`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Position in capture order, from 0.
    pub tile: u32,
    /// Share of pixels without data, in 1/1000.
    pub no_data: u16,
    /// Share of saturated pixels, in 1/1000.
    pub saturated: u16,
    /// From its embedding; `None` if it was vetoed before the encoder ran.
    pub scores: Option<Scores>,
    /// How much of it goes down.
    pub rung: Rung,
    /// Why.
    pub reason: Reason,
}

impl Record {
    /// Bytes of the longest record in postcard.
    pub const MAX_BYTES: usize = 5 + 3 + 3 + (1 + 3 + 3 + 3) + 1 + 1;
}

/// In what type the sensor stores a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueType {
    /// Unsigned, one byte.
    U8,
    /// Unsigned, two bytes.
    U16,
    /// IEEE 754 single precision.
    F32,
}

impl ValueType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            ValueType::U8 => 1,
            ValueType::U16 => 2,
            ValueType::F32 => 4,
        }
    }
}

/// What is common to all tiles of an outbox; its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header<'a> {
    /// [`MESSAGE_VERSION`].
    pub version: u8,
    /// Name of the model.
    pub model: &'a str,
    /// Embeddings and codes may be compared only within one space.
    pub embedding_space: &'a str,
    /// Dimension of the embeddings.
    pub dimension: u16,
    /// CRC-32C of the prototype file: whose centre the binary codes are taken about.
    pub prototypes: u32,
    /// How many tiles were captured, sent or not.
    pub captured: u32,
    /// Names of the bands in the order of the pixels, separated by commas.
    pub bands: &'a str,
    /// Rows of a tile.
    pub height: u16,
    /// Columns of a tile.
    pub width: u16,
    /// Type of a pixel.
    pub value: ValueType,
}

/// A piece of a tile's code, embedding or pixels; which of them, the rung in its record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload<'a> {
    /// Position in capture order.
    pub tile: u32,
    /// Where the piece stands in the whole, in bytes.
    pub offset: u32,
    /// At most [`PAYLOAD_BYTES`] bytes.
    pub bytes: &'a [u8],
}

/// One framed message of an outbox or of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message<'a> {
    /// First.
    #[serde(borrow)]
    Header(Header<'a>),
    /// About one tile.
    Record(Record),
    /// Part of one tile.
    Payload(Payload<'a>),
}

impl Message<'_> {
    /// The longest frame of a [`Message::Record`].
    pub const MAX_RECORD_FRAME: usize = super::frame::max_frame_bytes(1 + Record::MAX_BYTES);
    /// The longest frame of a [`Message::Payload`].
    pub const MAX_PAYLOAD_FRAME: usize = super::frame::max_frame_bytes(1 + 5 + 5 + 2 + PAYLOAD_BYTES);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;
    use std::string::ToString;

    use super::*;
    use crate::triage::frame;

    const LONGEST: Record = Record {
        tile: u32::MAX,
        no_data: u16::MAX,
        saturated: u16::MAX,
        scores: Some(Scores { margin: i16::MIN, novelty: u16::MAX, nearest: u16::MAX }),
        rung: Rung::Tile,
        reason: Reason::BudgetExhausted,
    };

    #[test]
    fn sizes_are_known() {
        let mut buffer = [0; 5000];
        assert_eq!(postcard::to_slice(&LONGEST, &mut buffer).unwrap().len(), Record::MAX_BYTES);
        assert_eq!(frame::encode(&Message::Record(LONGEST), &mut buffer), Ok(Message::MAX_RECORD_FRAME));
        let bytes = [7; PAYLOAD_BYTES];
        let longest = Message::Payload(Payload { tile: u32::MAX, offset: u32::MAX, bytes: &bytes });
        let n = frame::encode(&longest, &mut buffer).unwrap();
        assert!(n <= Message::MAX_PAYLOAD_FRAME && n + 1 >= Message::MAX_PAYLOAD_FRAME, "{n}");
        assert_eq!(Rung::ALL.map(|r| r.payload_bytes(128, 12_288)), [0, 0, 16, 132, 12_288]);
    }

    /// The bytes written out by hand from postcard's wire format: the format may not change unnoticed.
    #[test]
    fn the_wire_format_is_fixed() {
        let record = Record {
            tile: 300,
            no_data: 5,
            saturated: 1000,
            scores: Some(Scores::new(-0.5, 0.25, 3)),
            rung: Rung::Embedding,
            reason: Reason::Novel,
        };
        let mut buffer = [0; 64];
        // Tag; 300; 5; 1000; some; zigzag(-5000) = 9999; 2500; 3; rung; reason.
        let expected = [1, 0xac, 2, 5, 0xe8, 7, 1, 0x8f, 0x4e, 0xc4, 0x13, 3, 3, 1];
        assert_eq!(postcard::to_slice(&Message::Record(record), &mut buffer).unwrap(), expected);
        assert_eq!(frame::parse(&expected), Some(Message::Record(record)));
        let payload = Message::Payload(Payload { tile: 1, offset: 128, bytes: b"ab" });
        let expected = [2, 1, 0x80, 1, 2, b'a', b'b'];
        assert_eq!(postcard::to_slice(&payload, &mut buffer).unwrap(), expected);
        assert_eq!(frame::parse(&expected), Some(payload));
        assert_eq!(frame::parse::<Message>(&[2, 1, 0x80, 1, 2, b'a', b'b', 0]), None);
        for (i, rung) in Rung::ALL.into_iter().enumerate() {
            assert_eq!(postcard::to_slice(&rung, &mut buffer).unwrap(), [i as u8]);
            assert_eq!(rung.index(), i);
        }
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(postcard::to_slice(&reason, &mut buffer).unwrap(), [i as u8]);
        }
    }

    #[test]
    fn scores_are_clamped_and_rounded() {
        for v in [-2.0, -0.12345, 0.0, 0.5, 1.99999, 2.0] {
            assert!((Scores::new(v, 0.0, 0).margin() - v).abs() <= 0.5001e-4);
            assert!((Scores::new(0.0, v, 0).novelty() - v.max(0.0)).abs() <= 0.5001e-4);
        }
        assert_eq!(Scores::new(f32::NAN, f32::NAN, 9), Scores::new(0.0, 0.0, 9));
        assert_eq!(Scores::new(f32::NEG_INFINITY, f32::INFINITY, 9), Scores::new(-2.0, 2.0, 9));
    }

    #[test]
    fn names_are_shown() {
        assert_eq!(format!("{:>10}|{:<7}|", Rung::Embedding, Reason::Novel), " embedding|novel  |");
        assert_eq!(Reason::VetoedNoData.to_string(), "vetoed-no-data");
    }
}
