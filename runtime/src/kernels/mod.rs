//! The inner loops.

pub mod fixed;
pub mod int8;
