//! A tile camera (or tile memory) on an SPI bus: the protocol, the driver, and a camera in software.
//!
//! One SPI transaction (chip select low) carries one command and its answer. All numbers are little-endian; every CRC is
//! CRC-32C.
//!
//! ```text
//! command, 12 bytes     opcode u8 | 0 0 0 | argument u32 | CRC of these 8 bytes u32
//!
//! IDENTIFY 9F, arg 0    answer, 20 bytes: "NCAM" | version u8 = 1 | bytes per value u8 (1 u8, 2 u16, 4 f32) |
//!                       bands u16 | height u16 | width u16 | tiles u32 | CRC of these 16 bytes u32
//! PREPARE  10, arg i    no answer; data-ready goes low, and high again when tile i can be read
//! READ     11, arg i    answer: i u32 | values [bands, height, width] | CRC of index and values u32
//! ```
//!
//! A command that arrives damaged, or makes no sense, is not answered: the line stays high and reads `FF`, which no CRC
//! matches. So the driver has one remedy for everything that noise can do: ask again, a bounded number of times.

mod driver;
mod emulated;
#[cfg(test)]
mod tests;

pub use driver::{Camera, CameraError, Patience};
pub use emulated::{AlwaysReady, EmulatedCamera, STORE_HEADER_BYTES, StoreError, TileStore, store_header};

use crc::{CRC_32_ISCSI, Crc};
use nadir::triage::record::ValueType;

pub(crate) static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// First bytes of the answer to IDENTIFY.
pub const MAGIC: [u8; 4] = *b"NCAM";
/// Version of the protocol described above.
pub const VERSION: u8 = 1;
/// Bytes of a command.
pub const COMMAND_BYTES: usize = 12;
/// Bytes of the answer to IDENTIFY.
pub const IDENTITY_BYTES: usize = 20;

/// What the camera is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Who are you, and how many tiles of which shape do you have?
    Identify = 0x9F,
    /// Make a tile ready.
    Prepare = 0x10,
    /// Send a tile.
    Read = 0x11,
}

/// The bytes of a command.
pub fn command(opcode: Opcode, argument: u32) -> [u8; COMMAND_BYTES] {
    let mut bytes = [0; COMMAND_BYTES];
    bytes[0] = opcode as u8;
    bytes[4..8].copy_from_slice(&argument.to_le_bytes());
    let crc = CRC.checksum(&bytes[..8]);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The type whose values take `bytes` bytes: 1, 2 or 4.
fn value_type(bytes: u8) -> Option<ValueType> {
    [ValueType::U8, ValueType::U16, ValueType::F32].into_iter().find(|value| value.bytes() == usize::from(bytes))
}

/// What a camera says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Type of every value.
    pub value_type: ValueType,
    /// Bands of a tile.
    pub bands: u16,
    /// Rows of a tile.
    pub height: u16,
    /// Columns of a tile.
    pub width: u16,
    /// Number of tiles that can be read.
    pub tiles: u32,
}

impl Identity {
    /// Values of one tile, or `None` where the number does not fit a `u32`.
    pub fn tile_values(&self) -> Option<u32> {
        u32::from(self.bands).checked_mul(u32::from(self.height))?.checked_mul(u32::from(self.width))
    }

    /// Bytes of one tile, or `None` where the number does not fit a `u32`.
    pub fn tile_bytes(&self) -> Option<u32> {
        self.tile_values()?.checked_mul(self.value_type.bytes() as u32)
    }

    /// The answer to IDENTIFY.
    pub fn to_bytes(&self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.value_type.bytes() as u8;
        bytes[6..8].copy_from_slice(&self.bands.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.height.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.width.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tiles.to_le_bytes());
        let crc = CRC.checksum(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}
