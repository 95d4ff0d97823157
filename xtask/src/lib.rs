//! The library behind `cargo xtask`, so that tests can call what the command runs.

pub mod qemu;
