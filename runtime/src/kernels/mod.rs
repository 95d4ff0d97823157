//! The inner loops. The integer kernels of every instruction set agree with the scalar ones, which are the specification, to
//! the bit; the float kernels agree within the bounds that each states.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
pub(crate) mod cpu;
pub mod fixed;
pub mod float;
pub mod int8;
