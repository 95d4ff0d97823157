//! The inner loops. The integer kernels of every instruction set agree with the scalar ones, which are the specification, to
//! the bit; the float kernels agree within the bounds that each states.

#[cfg(target_arch = "x86_64")]
pub(crate) mod cpu;
pub mod crc;
pub mod fixed;
#[cfg_attr(not(feature = "float"), allow(dead_code, reason = "the planner uses its constants"))]
pub mod float;
pub mod int8;
