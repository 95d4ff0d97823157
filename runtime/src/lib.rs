//! The runtime of Nadir.
#![no_std]

pub mod encoder;
pub mod kernels;
pub mod model;
pub mod plan;
mod tile;
pub mod triage;

pub use tile::Tile;
