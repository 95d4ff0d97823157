//! Compares this processor's kernels with the scalar ones.
#![no_std]
#![no_main]

#[cortex_m_rt::entry]
fn main() -> ! {
    mps::kernels::main()
}
