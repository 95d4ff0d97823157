//! Bytes in, a checked and borrowed [`Model`] out.

mod architecture;

pub use architecture::*;
