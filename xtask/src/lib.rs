//! The library behind `cargo xtask`, so that tests can call what the command runs.

pub mod capi;
pub mod counts;
pub mod demo;
pub mod emulator;
pub mod firmware;
pub mod header;
pub mod layers;
pub mod qemu;
