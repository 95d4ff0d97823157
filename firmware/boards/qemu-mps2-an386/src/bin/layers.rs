//! Hashes the map of every place of a model.
#![no_std]
#![no_main]

#[cortex_m_rt::entry]
fn main() -> ! {
    mps::layers::main()
}
