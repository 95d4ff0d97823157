//! The runtime of Nadir: turns tiles into embeddings, and decides what of them goes down. No heap, no operating system.
//!
//! ```no_run
//! use nadir::{Tile, encoder::Encoder, model::Model};
//!
//! # fn run(file: &[u8], pixels: &[u8], arena: &mut [u8], embedding: &mut [f32]) -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::parse(file)?; // a .nadir file that begins at a multiple of 64 bytes
//! let encoder = Encoder::new(&model);
//! // `arena` has encoder.arena_bytes() bytes and begins at a multiple of 16; `embedding` has model.embedding_dimension() values.
//! encoder.embed(Tile::U8(pixels), arena, embedding)?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`model`] | checks a `.nadir` file and reads it in place |
//! | [`encoder`] | a tile, a model and an arena in; an embedding out |
//! | [`guard`] | repair, scrub, self-test, signature |
//! | [`delta`] | turns one model file into another where it lies |
//! | [`plan`] | what lies where in the arena |
//! | [`kernels`] | the inner loops |
//! | [`triage`] | quality, prototypes, novelty, and the choice under a budget of bytes |
//! | `capi` | the same for C; only with the feature `capi` |
#![no_std]

#[cfg(feature = "capi")]
pub mod capi;
pub mod delta;
pub mod encoder;
pub mod guard;
pub mod kernels;
pub mod model;
pub mod plan;
mod tile;
pub mod triage;

pub use tile::Tile;
