//! A camera in software: an [`SpiDevice`] that answers the protocol from tiles in memory.
//!
//! For machines without a camera, such as an emulator, and for tests. It answers a command only if all of it, its CRC
//! included, is right, and sends `FF` otherwise and past the end of an answer, as the real line would.

use core::convert::Infallible;

use embedded_hal::digital::{ErrorType as PinErrorType, InputPin};
use embedded_hal::spi::{ErrorType, Operation, SpiDevice};

use super::driver::{CameraError, parse_identity};
use super::{COMMAND_BYTES, CRC, IDENTITY_BYTES, Identity, Opcode, command};

/// Bytes before the first tile of a store.
pub const STORE_HEADER_BYTES: usize = 32;
/// What a line reads that nobody drives.
const IDLE: u8 = 0xFF;

/// Why memory is not a tile store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Shorter than its header.
    #[error("tile store: {0} bytes, the header alone has {STORE_HEADER_BYTES}")]
    Short(usize),
    /// The header is damaged, or there is none.
    #[error("tile store: no valid header: {0}")]
    Header(CameraError),
    /// The tiles do not fit.
    #[error("tile store: the tiles take {needed} bytes, {found} are there")]
    Truncated {
        /// Bytes that the header promises.
        needed: u64,
        /// Bytes that are there.
        found: usize,
    },
}

/// Tiles in memory: the answer to IDENTIFY, padded by zeros to 32 bytes, then the tiles one after the other.
#[derive(Clone, Copy, Debug)]
pub struct TileStore<'a> {
    identity: Identity,
    tiles: &'a [u8],
}

/// The 32 bytes that stand before the tiles of a store.
pub fn store_header(identity: &Identity) -> [u8; STORE_HEADER_BYTES] {
    let mut header = [0; STORE_HEADER_BYTES];
    header[..IDENTITY_BYTES].copy_from_slice(&identity.to_bytes());
    header
}

impl<'a> TileStore<'a> {
    /// Reads the header; `bytes` may go on after the last tile.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let (header, tiles) = bytes.split_at_checked(STORE_HEADER_BYTES).ok_or(StoreError::Short(bytes.len()))?;
        let answer = header.first_chunk().ok_or(StoreError::Short(bytes.len()))?;
        let identity = parse_identity(answer).map_err(StoreError::Header)?;
        let needed = u64::from(identity.tile_bytes().unwrap_or(u32::MAX)) * u64::from(identity.tiles);
        match usize::try_from(needed).ok().and_then(|needed| tiles.get(..needed)) {
            Some(tiles) => Ok(Self { identity, tiles }),
            None => Err(StoreError::Truncated { needed, found: tiles.len() }),
        }
    }

    /// Shape and number of the tiles.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The bytes of tile `index`, or `None` past the end.
    pub fn tile(&self, index: u32) -> Option<&'a [u8]> {
        let len = self.identity.tile_bytes()? as usize;
        let start = len.checked_mul(usize::try_from(index).ok()?)?;
        self.tiles.get(start..start.checked_add(len)?)
    }
}

/// What is left to send in the running transaction.
enum Answer<'a> {
    Nothing,
    Identity { bytes: [u8; IDENTITY_BYTES], sent: usize },
    Tile { index: [u8; 4], values: &'a [u8], crc: [u8; 4], sent: usize },
}

impl Answer<'_> {
    fn next(&mut self) -> u8 {
        match self {
            Answer::Nothing => IDLE,
            Answer::Identity { bytes, sent } => {
                let byte = bytes.get(*sent).copied().unwrap_or(IDLE);
                *sent += 1;
                byte
            }
            Answer::Tile { index, values, crc, sent } => {
                let byte = match *sent {
                    at if at < 4 => index.get(at),
                    at if at < 4 + values.len() => values.get(at - 4),
                    at => crc.get(at - 4 - values.len()),
                };
                *sent += 1;
                byte.copied().unwrap_or(IDLE)
            }
        }
    }
}

/// The SPI side of a camera in software.
#[derive(Debug)]
pub struct EmulatedCamera<'a> {
    store: TileStore<'a>,
    prepared: Option<u32>,
}

impl<'a> EmulatedCamera<'a> {
    /// A camera that holds the tiles of `store`.
    pub fn new(store: TileStore<'a>) -> Self {
        Self { store, prepared: None }
    }

    fn answer(&mut self, received: &[u8; COMMAND_BYTES]) -> Answer<'a> {
        let &[.., a0, a1, a2, a3, _, _, _, _] = received;
        let argument = u32::from_le_bytes([a0, a1, a2, a3]);
        let is = |opcode| command(opcode, argument) == *received;
        if is(Opcode::Identify) {
            return Answer::Identity { bytes: self.store.identity.to_bytes(), sent: 0 };
        }
        if is(Opcode::Prepare) {
            self.prepared = self.store.tile(argument).map(|_| argument);
        } else if is(Opcode::Read)
            && self.prepared == Some(argument)
            && let Some(values) = self.store.tile(argument)
        {
            let index = argument.to_le_bytes();
            let mut digest = CRC.digest();
            digest.update(&index);
            digest.update(values);
            return Answer::Tile { index, values, crc: digest.finalize().to_le_bytes(), sent: 0 };
        }
        Answer::Nothing
    }
}

impl ErrorType for EmulatedCamera<'_> {
    type Error = Infallible;
}

impl SpiDevice for EmulatedCamera<'_> {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), Infallible> {
        let mut received = [0; COMMAND_BYTES];
        let mut count = 0;
        let mut answer = Answer::Nothing;
        let mut exchange = |camera: &mut Self, sent: u8| {
            if count >= COMMAND_BYTES {
                return answer.next();
            }
            received[count] = sent;
            count += 1;
            if count == COMMAND_BYTES {
                answer = camera.answer(&received);
            }
            IDLE
        };
        for operation in operations {
            match operation {
                Operation::Read(into) => into.iter_mut().for_each(|byte| *byte = exchange(self, 0)),
                Operation::Write(from) => from.iter().for_each(|&byte| {
                    exchange(self, byte);
                }),
                Operation::Transfer(into, from) => {
                    for index in 0..into.len().max(from.len()) {
                        let byte = exchange(self, from.get(index).copied().unwrap_or(0));
                        if let Some(place) = into.get_mut(index) {
                            *place = byte;
                        }
                    }
                }
                Operation::TransferInPlace(bytes) => {
                    bytes.iter_mut().for_each(|byte| *byte = exchange(self, *byte));
                }
                Operation::DelayNs(_) => {}
            }
        }
        Ok(())
    }
}

/// A data-ready pin that is always high: tiles in memory are always ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysReady;

impl PinErrorType for AlwaysReady {
    type Error = Infallible;
}

impl InputPin for AlwaysReady {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(true)
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
}
