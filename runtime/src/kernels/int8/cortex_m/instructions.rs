//! The instructions of Armv7E-M that stable Rust has no intrinsics for, one function each.
//!
//! All are safe to call: they work on registers alone, and whatever this module is compiled for has them (`runtime/build.rs`).
//! A "pair" is two signed 16-bit values in a word, the lower half first.

use core::arch::asm;

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $text:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name($($argument: $type),*) -> $result {
            let result: $result;
            // SAFETY: one instruction on registers, without memory or stack; the processor has it (see the top of this file).
            unsafe { asm!($text, $($argument = in(reg) $argument,)* result = lateout(reg) result, options(pure, nomem, nostack)) };
            result
        }
    )*};
}

instructions! {
    /// Bytes 0 and 2, each widened.
    sxtb16(bytes: u32) -> u32 = "sxtb16 {result}, {bytes}";
    /// Bytes 1 and 3, each widened.
    sxtb16_ror8(bytes: u32) -> u32 = "sxtb16 {result}, {bytes}, ror #8";
    /// The lower halves of both.
    pkhbt(low: u32, high: u32) -> u32 = "pkhbt {result}, {low}, {high}, lsl #16";
    /// The upper halves of both.
    pkhtb(high: u32, low: u32) -> u32 = "pkhtb {result}, {high}, {low}, asr #16";
    /// `sum` plus both products of two pairs; wraps.
    smlad(x: u32, y: u32, sum: i32) -> i32 = "smlad {result}, {x}, {y}, {sum}";
    /// `sum` plus the product of both lower halves; wraps.
    smlabb(x: i32, y: i32, sum: i32) -> i32 = "smlabb {result}, {x}, {y}, {sum}";
    /// `sum` plus the product of the upper half of `x` and the lower of `y`; wraps.
    smlatb(x: i32, y: i32, sum: i32) -> i32 = "smlatb {result}, {x}, {y}, {sum}";
    /// Saturated to 8 bits.
    ssat8(value: i32) -> i32 = "ssat {result}, #8, {value}";
    /// Saturated to 14 bits.
    ssat14(value: i32) -> i32 = "ssat {result}, #14, {value}";
    /// Saturated to 16 bits.
    ssat16(value: i32) -> i32 = "ssat {result}, #16, {value}";
    /// `value >> 15`, saturated to 8 bits.
    ssat8_asr15(value: i32) -> i32 = "ssat {result}, #8, {value}, asr #15";
}

/// `sum` plus both products of two pairs, in 64 bits.
#[inline(always)]
pub fn smlald(x: u32, y: u32, sum: i64) -> i64 {
    let (mut low, mut high) = (sum as u32, (sum >> 32) as u32);
    // SAFETY: one instruction on registers, without memory or stack; the processor has it (see the top of this file).
    unsafe {
        asm!("smlald {low}, {high}, {x}, {y}", low = inout(reg) low, high = inout(reg) high, x = in(reg) x, y = in(reg) y, options(pure, nomem, nostack))
    };
    i64::from(high as i32) << 32 | i64::from(low)
}
