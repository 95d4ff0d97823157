//! The library behind `cargo xtask`, so that tests can call what the command runs.

pub mod counts;
pub mod demo;
pub mod emulator;
pub mod firmware;
pub mod qemu;
