//! The firmware of a tile camera, without the board: tiles in over SPI, embeddings and triage records out over a UART.
//!
//! ```text
//! camera ─ SPI ─► Camera::read_tile ─► quality ─► Embed ─► scores ─► Link ─ UART ─► ground
//! ```
//!
//! A board (`firmware/boards/*`) brings the SPI device, the UART, a clock and static memory, and calls [`run`]. Everything
//! here is generic over embedded-hal 1.0 and embedded-io, allocates nothing, and does not panic: what fails is reported on
//! the link, and a tile that is lost does not stop the next. Logs are defmt's, under the feature `defmt`.
#![no_std]

#[cfg(target_endian = "big")]
compile_error!("tiles and embeddings go over the wires little-endian, as they lie in memory");

#[cfg(test)]
extern crate std;

pub mod camera;
pub mod link;
pub mod message;
pub mod score;

mod app;
mod fmt;
#[cfg(test)]
mod tests;

pub use app::{Board, Embed, Memory, ModelFacts, RunError, Task, run};
