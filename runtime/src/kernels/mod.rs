//! The inner loops. In each file the scalar versions are the specification; a faster set for an instruction set must agree with them
//! (integers: to the bit; floats: to the bit too, because the order of the sums is fixed).

#[cfg(target_arch = "x86_64")]
mod cpu;
pub mod crc;
pub mod fixed;
pub mod float;
pub mod int8;
