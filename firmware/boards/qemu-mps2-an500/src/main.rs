//! The firmware on QEMU's mps2-an500: a Cortex-M7 with 4 MiB of flash, 4 MiB of RAM and 16 MiB of PSRAM.
#![no_std]
#![no_main]

use mps::Aligned;

include!(concat!(env!("OUT_DIR"), "/arena.rs"));

#[unsafe(link_section = ".model")]
static MODEL: Aligned<[u8; MODEL_BYTES]> = Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.nadir")));

#[cortex_m_rt::entry]
fn main() -> ! {
    static mut ARENA: Aligned<[u8; ARENA_BYTES]> = Aligned([0; ARENA_BYTES]);
    mps::start(&MODEL.0, &mut ARENA.0)
}
