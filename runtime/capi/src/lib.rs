//! The functions of `nadir::capi`, and what a static library without `std` needs besides: a panic handler.
//!
//! It is never called: `cargo xtask capi --check` asserts that the library holds no way to it.
#![no_std]

pub use nadir::capi::*;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
