//! What the firmware says on its link: one postcard message a frame.

use nadir::triage::record::Record;
use serde::{Deserialize, Serialize};

/// Version of the messages in this file.
pub const LINK_VERSION: u8 = 1;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message<'a> {
    /// First: what runs here.
    #[serde(borrow)]
    Start(Start<'a>),
    /// The embedding of one tile.
    Embedding(Embedding<'a>),
    /// What triage makes of one tile; follows its embedding, or stands alone if the tile was vetoed.
    Record(Record),
    /// A tile was lost, or the run cannot go on.
    Failed(Failed<'a>),
    /// Last: every tile was tried.
    Done(Done),
}

/// What runs on the device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start<'a> {
    /// [`LINK_VERSION`].
    pub version: u8,
    /// Name of the model.
    pub model: &'a str,
    /// Embeddings may be compared only within one space.
    pub embedding_space: &'a str,
    /// Values of an embedding.
    pub dimension: u16,
    /// Tiles that the camera has.
    pub tiles: u32,
    /// Bytes of memory that the encoder works in.
    pub arena_bytes: u32,
    /// Multiply-accumulates of one embedding.
    pub macs: u64,
    /// Ticks of the device's clock in a second.
    pub ticks_per_second: u32,
}

/// The embedding of one tile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embedding<'a> {
    /// Position in capture order, from 0.
    pub tile: u32,
    /// Clock ticks that the encoder took.
    pub ticks: u64,
    /// The values, f32 little-endian, not rounded: the same bytes as on any other machine.
    pub values: &'a [u8],
}

/// Where something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The board itself.
    Board,
    /// The model file.
    Model,
    /// The camera, its bus or its tiles.
    Camera,
    /// The encoder or its memory.
    Encoder,
    /// Prototypes and scores.
    Triage,
    /// The firmware panicked.
    Panic,
}

/// A tile was lost (`tile` is its index), or the run cannot go on (`tile` is `None`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed<'a> {
    /// Position in capture order.
    pub tile: Option<u32>,
    /// Where.
    pub part: Part,
    /// One line, cut at [`REASON_BYTES`].
    pub reason: &'a str,
}

/// The most bytes of [`Failed::reason`].
pub const REASON_BYTES: usize = 160;

/// Counts of a whole run; the first three add up to the number of tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Tiles whose embedding was sent.
    pub embedded: u32,
    /// Tiles that the quality check kept from the encoder.
    pub vetoed: u32,
    /// Tiles that the camera or the encoder did not give.
    pub failed: u32,
    /// Attempts that the camera driver had to repeat.
    pub retries: u32,
}

/// A line of text that is cut, never refused, where it is too long.
#[derive(Debug, Default)]
pub struct Reason(heapless::String<REASON_BYTES>);

impl Reason {
    /// The text of `error`.
    pub fn new(error: &dyn core::fmt::Display) -> Self {
        let mut reason = Self::default();
        // `write_str` below never fails.
        let _ = core::fmt::write(&mut reason, format_args!("{error}"));
        reason
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl core::fmt::Write for Reason {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for character in text.chars() {
            if self.0.push(character).is_err() {
                break;
            }
        }
        Ok(())
    }
}
