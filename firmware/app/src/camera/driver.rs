//! The driver, generic over the SPI device, the data-ready pin and the delay of embedded-hal 1.0.

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::InputPin;
use embedded_hal::spi::{Error as _, ErrorKind, Operation, SpiDevice};
use nadir::Tile;
use nadir::triage::record::ValueType;

use super::{CRC, IDENTITY_BYTES, Identity, MAGIC, Opcode, VERSION, command, value_type};
use crate::fmt::warning;

/// Why the camera gave no tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// The SPI bus failed.
    #[error("camera: the SPI bus reports {0:?}")]
    Bus(ErrorKind),
    /// The data-ready pin could not be read.
    #[error("camera: the data-ready pin cannot be read")]
    Pin,
    /// Data-ready stayed low.
    #[error("camera: tile {tile} was not ready after {waited_us} us")]
    NotReady {
        /// The tile.
        tile: u32,
        /// How long the driver waited, in microseconds.
        waited_us: u32,
    },
    /// The CRC of an answer was wrong.
    #[error("camera: the answer to {opcode:?} has a wrong CRC")]
    Crc {
        /// What was asked.
        opcode: Opcode,
    },
    /// The camera sent a tile that was not asked for.
    #[error("camera: asked for tile {tile}, got tile {found}")]
    OtherTile {
        /// The tile that was asked for.
        tile: u32,
        /// The tile that came.
        found: u32,
    },
    /// The device answers, but is no tile camera.
    #[error("camera: the device names itself {0:02x?}, expected \"NCAM\"")]
    Magic([u8; 4]),
    /// The camera speaks another version of the protocol.
    #[error("camera: protocol version {0}, expected {VERSION}")]
    Version(u8),
    /// Values of an unknown type.
    #[error("camera: values of {0} bytes, expected 1, 2 or 4")]
    ValueType(u8),
    /// Tiles without a pixel, or of more than 4 GiB.
    #[error("camera: tiles of {bands} bands x {height} x {width} are not possible")]
    Shape {
        /// Bands.
        bands: u16,
        /// Rows.
        height: u16,
        /// Columns.
        width: u16,
    },
    /// The buffer cannot hold a tile.
    #[error("camera: a tile has {needed} bytes, the buffer holds {buffer}")]
    TooLarge {
        /// Bytes of a tile.
        needed: u32,
        /// Bytes of the buffer.
        buffer: usize,
    },
    /// There are fewer tiles.
    #[error("camera: no tile {tile}, there are {tiles}")]
    NoTile {
        /// The tile that was asked for.
        tile: u32,
        /// Number of tiles.
        tiles: u32,
    },
}

/// How long the driver keeps trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts per answer, at least 1.
    pub attempts: u8,
    /// Longest wait for data-ready in one attempt, in microseconds.
    pub ready_us: u32,
    /// Time between two looks at data-ready, in microseconds, at least 1.
    pub poll_us: u32,
}

impl Default for Patience {
    /// 3 attempts, 100 ms each, a look every 50 us.
    fn default() -> Self {
        Self { attempts: 3, ready_us: 100_000, poll_us: 50 }
    }
}

/// A tile camera on SPI device `S`, with data-ready pin `R` (high: ready) and delay `D`.
///
/// No call takes longer than `attempts` times (`ready_us` and the transfer of one tile).
#[derive(Debug)]
pub struct Camera<S, R, D> {
    spi: S,
    ready: R,
    delay: D,
    patience: Patience,
    retries: u32,
}

impl<S: SpiDevice, R: InputPin, D: DelayNs> Camera<S, R, D> {
    /// A camera; nothing is sent yet.
    pub fn new(spi: S, ready: R, delay: D, patience: Patience) -> Self {
        Self { spi, ready, delay, patience, retries: 0 }
    }

    /// How many attempts failed since the start.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Asks the camera what it is.
    ///
    /// # Errors
    /// [`CameraError::Bus`] or [`CameraError::Crc`] if every attempt failed; an answer that arrived well but is not
    /// usable gives its own error at once.
    pub fn identify(&mut self) -> Result<Identity, CameraError> {
        self.retrying(|camera| {
            let mut answer = [0; IDENTITY_BYTES];
            let command = command(Opcode::Identify, 0);
            camera.transaction(&mut [Operation::Write(&command), Operation::Read(&mut answer)])?;
            parse_identity(&answer)
        })
    }

    /// Reads tile `tile` into `buffer` and returns its values, `[bands, height, width]`.
    ///
    /// The buffer is made of words so that values of every type are aligned in it.
    ///
    /// # Errors
    /// [`CameraError::NoTile`] and [`CameraError::TooLarge`] before anything is sent; after that the last error, once
    /// every attempt failed.
    pub fn read_tile<'b>(
        &mut self,
        identity: &Identity,
        tile: u32,
        buffer: &'b mut [u32],
    ) -> Result<Tile<'b>, CameraError> {
        if tile >= identity.tiles {
            return Err(CameraError::NoTile { tile, tiles: identity.tiles });
        }
        let words: &mut [u8] = bytemuck::cast_slice_mut(buffer);
        let needed = identity.tile_bytes().unwrap_or(u32::MAX);
        let buffer_bytes = words.len();
        let Some(bytes) = words.get_mut(..needed as usize) else {
            return Err(CameraError::TooLarge { needed, buffer: buffer_bytes });
        };
        self.retrying(|camera| camera.read_once(tile, bytes))?;
        let too_large = CameraError::TooLarge { needed, buffer: buffer_bytes };
        // The casts cannot fail: the buffer is aligned to 4 and `needed` is a multiple of the value's size.
        match identity.value_type {
            ValueType::U8 => Ok(Tile::U8(bytes)),
            ValueType::U16 => bytemuck::try_cast_slice(bytes).map(Tile::U16).map_err(|_| too_large),
            ValueType::F32 => bytemuck::try_cast_slice(bytes).map(Tile::F32).map_err(|_| too_large),
        }
    }

    fn read_once(&mut self, tile: u32, bytes: &mut [u8]) -> Result<(), CameraError> {
        self.transaction(&mut [Operation::Write(&command(Opcode::Prepare, tile))])?;
        self.wait_ready(tile)?;
        let (mut index, mut crc) = ([0; 4], [0; 4]);
        let command = command(Opcode::Read, tile);
        self.transaction(&mut [
            Operation::Write(&command),
            Operation::Read(&mut index),
            Operation::Read(bytes),
            Operation::Read(&mut crc),
        ])?;
        let mut digest = CRC.digest();
        digest.update(&index);
        digest.update(bytes);
        if digest.finalize() != u32::from_le_bytes(crc) {
            return Err(CameraError::Crc { opcode: Opcode::Read });
        }
        match u32::from_le_bytes(index) {
            found if found == tile => Ok(()),
            found => Err(CameraError::OtherTile { tile, found }),
        }
    }

    fn wait_ready(&mut self, tile: u32) -> Result<(), CameraError> {
        let poll_us = self.patience.poll_us.max(1);
        let mut waited_us = 0u32;
        loop {
            if self.ready.is_high().map_err(|_| CameraError::Pin)? {
                return Ok(());
            }
            if waited_us >= self.patience.ready_us {
                return Err(CameraError::NotReady { tile, waited_us });
            }
            self.delay.delay_us(poll_us);
            waited_us = waited_us.saturating_add(poll_us);
        }
    }

    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), CameraError> {
        self.spi.transaction(operations).map_err(|error| CameraError::Bus(error.kind()))
    }

    /// Repeats what noise on the line can have spoilt; the rest would fail again.
    fn retrying<T>(&mut self, mut attempt: impl FnMut(&mut Self) -> Result<T, CameraError>) -> Result<T, CameraError> {
        let mut left = self.patience.attempts.max(1);
        loop {
            left -= 1;
            match attempt(self) {
                Err(
                    error @ (CameraError::Bus(_)
                    | CameraError::Pin
                    | CameraError::NotReady { .. }
                    | CameraError::Crc { .. }
                    | CameraError::OtherTile { .. }),
                ) => {
                    self.retries = self.retries.saturating_add(1);
                    warning!("{}; {} attempts left", crate::fmt::text(&error), left);
                    if left == 0 {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }
}

/// Reads an answer to IDENTIFY.
pub(super) fn parse_identity(answer: &[u8; IDENTITY_BYTES]) -> Result<Identity, CameraError> {
    let (fields, crc) = answer.split_at(IDENTITY_BYTES - 4);
    if CRC.checksum(fields).to_le_bytes() != crc {
        return Err(CameraError::Crc { opcode: Opcode::Identify });
    }
    let &[m0, m1, m2, m3, version, value, b0, b1, h0, h1, w0, w1, t0, t1, t2, t3, ..] = answer;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(CameraError::Magic([m0, m1, m2, m3]));
    }
    if version != VERSION {
        return Err(CameraError::Version(version));
    }
    let identity = Identity {
        value_type: value_type(value).ok_or(CameraError::ValueType(value))?,
        bands: u16::from_le_bytes([b0, b1]),
        height: u16::from_le_bytes([h0, h1]),
        width: u16::from_le_bytes([w0, w1]),
        tiles: u32::from_le_bytes([t0, t1, t2, t3]),
    };
    match identity.tile_bytes() {
        Some(1..) => Ok(identity),
        _ => Err(CameraError::Shape { bands: identity.bands, height: identity.height, width: identity.width }),
    }
}
