//! The link to the ground: framed messages over anything that takes bytes, such as a UART.

use embedded_io::{Error as _, ErrorKind, Write};
use nadir::triage::frame::{self, EncodeError};

use crate::message::Message;

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The message does not fit the frame buffer.
    #[error("link: {0}")]
    Encode(EncodeError),
    /// The writer failed.
    #[error("link: the writer reports {0:?}")]
    Write(ErrorKind),
}

/// Writes [`Message`]s as frames (see [`nadir::triage::frame`]) to `W`.
#[derive(Debug)]
pub struct Link<'b, W> {
    writer: W,
    buffer: &'b mut [u8],
}

impl<'b, W: Write> Link<'b, W> {
    /// A link that builds its frames in `buffer`. Sends one zero byte, which ends whatever noise the line held.
    ///
    /// The buffer needs [`frame_bytes`] bytes for the embeddings of a model.
    ///
    /// # Errors
    /// [`LinkError::Write`].
    pub fn open(mut writer: W, buffer: &'b mut [u8]) -> Result<Self, LinkError> {
        writer.write_all(&[0]).map_err(|error| LinkError::Write(error.kind()))?;
        Ok(Self { writer, buffer })
    }

    /// Sends one message, and waits until the writer has passed it on.
    ///
    /// # Errors
    /// [`LinkError::Encode`] before a byte is written, [`LinkError::Write`] from the writer.
    pub fn send(&mut self, message: &Message<'_>) -> Result<(), LinkError> {
        let length = frame::encode(message, self.buffer).map_err(LinkError::Encode)?;
        let bytes = self.buffer.get(..length).unwrap_or_default();
        self.writer.write_all(bytes).and_then(|()| self.writer.flush()).map_err(|error| LinkError::Write(error.kind()))
    }
}

/// Bytes of the longest frame for embeddings of `dimension` values.
pub const fn frame_bytes(dimension: usize) -> usize {
    // Tag, tile, ticks and length in postcard's variable-length integers, or a failure with its reason.
    let embedding = 1 + 5 + 10 + 5 + 4 * dimension;
    let failure = 1 + 6 + 1 + 2 + crate::message::REASON_BYTES;
    // Three names of at most 64 bytes each would still fit.
    let start = 256;
    let mut longest = if embedding > failure { embedding } else { failure };
    if start > longest {
        longest = start;
    }
    frame::max_frame_bytes(longest)
}
