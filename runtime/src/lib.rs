//! The runtime of Nadir.
#![no_std]

pub mod model;
mod tile;

pub use tile::Tile;
