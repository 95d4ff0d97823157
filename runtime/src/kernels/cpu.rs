//! Which instruction sets this processor and its operating system offer.
//!
//! `std`'s detection is not there without `std`, so this asks CPUID itself. A vector instruction may be used only if the
//! processor has it *and* the operating system saves the wider registers when it switches threads; XCR0 tells the latter.
//! The answer is kept, because under a hypervisor every CPUID costs tens of microseconds.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapters 14.3 (AVX), 14.5.3 (FMA, F16C)
//! and 15.2 (AVX-512); volume 2, CPUID.
#![allow(unsafe_code)]

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU16, Ordering};

/// What may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// CRC-32C, which comes with SSE4.2.
    pub crc32: bool,
    /// AVX2.
    pub avx2: bool,
    /// Fused multiply-add of ymm registers.
    pub fma: bool,
    /// Conversion of f16.
    pub f16c: bool,
    /// AVX-512 F, BW, VL and DQ, all four.
    pub avx512: bool,
    /// AVX-512 VNNI; only with `avx512`.
    pub vnni: bool,
    /// AVX-512 VBMI; only with `avx512`.
    pub vbmi: bool,
    /// The VEX-encoded VNNI of ymm registers.
    pub avx_vnni: bool,
    /// AMX tiles and their products of 8 bits, and the system lets this process use them.
    pub amx: bool,
}

/// Set in [`KNOWN`] once the other bits are valid.
const ASKED: u16 = 0x8000;
static KNOWN: AtomicU16 = AtomicU16::new(0);

/// The features of this processor; asks it on the first call only.
pub(crate) fn features() -> Features {
    let mut bits = KNOWN.load(Ordering::Relaxed);
    if bits & ASKED == 0 {
        // Two threads that come here at once store the same.
        bits = ask().to_bits() | ASKED;
        KNOWN.store(bits, Ordering::Relaxed);
    }
    Features::from_bits(bits)
}

impl Features {
    fn to_bits(self) -> u16 {
        let all =
            [self.crc32, self.avx2, self.fma, self.f16c, self.avx512, self.vnni, self.vbmi, self.avx_vnni, self.amx];
        all.iter().rev().fold(0, |bits, &on| bits << 1 | u16::from(on))
    }

    fn from_bits(bits: u16) -> Self {
        let bit = |index: u16| bits >> index & 1 == 1;
        Self {
            crc32: bit(0),
            avx2: bit(1),
            fma: bit(2),
            f16c: bit(3),
            avx512: bit(4),
            vnni: bit(5),
            vbmi: bit(6),
            avx_vnni: bit(7),
            amx: bit(8),
        }
    }
}

fn ask() -> Features {
    let bit = |register: u32, index: u32| register >> index & 1 == 1;
    let leaves = __cpuid(0).eax;
    let basic = __cpuid(1);
    let (crc32, osxsave, avx) = (bit(basic.ecx, 20), bit(basic.ecx, 27), bit(basic.ecx, 28));
    if leaves < 7 || !osxsave || !avx {
        return Features { crc32, ..Features::default() };
    }
    // SAFETY: OSXSAVE is set, so XGETBV exists and register 0 may be read.
    let xcr0 = unsafe { _xgetbv(0) };
    // Bits 1 and 2: xmm and ymm; 5 to 7: mask registers, upper halves of zmm0-15, zmm16-31.
    let (ymm, zmm) = (xcr0 & 0x06 == 0x06, xcr0 & 0xe6 == 0xe6);
    let extended = __cpuid_count(7, 0);
    let further = if extended.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
    let avx2 = ymm && bit(extended.ebx, 5);
    let tiles = xcr0 & 0x6_0000 == 0x6_0000 && bit(extended.edx, 24) && bit(extended.edx, 25);
    // F, DQ, BW, VL.
    let avx512 = avx2 && zmm && [16, 17, 30, 31].iter().all(|&index| bit(extended.ebx, index));
    Features {
        crc32,
        avx2,
        fma: ymm && bit(basic.ecx, 12),
        f16c: ymm && bit(basic.ecx, 29),
        avx512,
        vnni: avx512 && bit(extended.ecx, 11),
        vbmi: avx512 && bit(extended.ecx, 1),
        avx_vnni: avx2 && bit(further, 4),
        amx: avx512 && tiles && request_tiles(),
    }
}

/// Asks the system for the tile registers, which are large enough that Linux gives them on request only
/// (`Documentation/arch/x86/xstate.rst`). The answer holds for the whole process.
#[cfg(all(target_os = "linux", not(miri)))]
fn request_tiles() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: the call reads no memory; it overwrites rcx, r11 and rax.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// Who would have to be asked is not known here.
#[cfg(not(all(target_os = "linux", not(miri))))]
fn request_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::is_x86_feature_detected;

    #[test]
    fn agrees_with_std() {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        let expected = Features {
            crc32: is_x86_feature_detected!("sse4.2"),
            avx2: is_x86_feature_detected!("avx2"),
            fma: is_x86_feature_detected!("fma"),
            f16c: is_x86_feature_detected!("f16c"),
            avx512,
            vnni: avx512 && is_x86_feature_detected!("avx512vnni"),
            vbmi: avx512 && is_x86_feature_detected!("avx512vbmi"),
            avx_vnni: is_x86_feature_detected!("avxvnni"),
            // `std` does not ask the system.
            amx: features().amx,
        };
        // The first call asks, the second remembers.
        assert_eq!([features(), features()], [expected; 2]);
    }

    #[test]
    fn bits_keep_every_feature() {
        for bits in 0..512 {
            assert_eq!(Features::from_bits(bits).to_bits(), bits);
        }
    }
}
