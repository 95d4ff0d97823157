//! Turns a float encoder (`.safetensors`) into one model file (`.nadir`), and shows what was lost.

pub mod int8;
pub mod reference;
pub mod testing;
pub mod writer;
