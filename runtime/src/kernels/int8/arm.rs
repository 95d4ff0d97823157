//! Which of the aarch64 sets this processor runs.
//!
//! | set | needs | is there since, for instance |
//! | --- | --- | --- |
//! | `neon` | what every aarch64 processor with vectors has | Cortex-A53, A72 |
//! | `dotprod` | FEAT_DotProd | Cortex-A55, A76, A78 |
//! | `i8mm` | FEAT_DotProd and FEAT_I8MM | Cortex-A510, A710, Neoverse V1 |
//!
//! Without an operating system to ask, the identification registers tell. Linux (since 4.11), Android and FreeBSD trap the read of a
//! program and answer with what all cores have in common; on bare metal it is an ordinary read at EL1 and above, and tells of the core
//! that reads. Elsewhere (macOS, Windows) a program that reads them dies, so that there only what it was compiled for counts.
#![allow(unsafe_code)]

use super::Int8Kernels;
use super::{neon::NEON, neon_dot::DOTPROD, neon_i8mm::I8MM};

/// Slowest first.
static SETS: [&Int8Kernels; 3] = [&NEON, &DOTPROD, &I8MM];

/// The sets of this architecture that this processor runs, slowest first.
pub(super) fn sets() -> &'static [&'static Int8Kernels] {
    let (dotprod, i8mm) = features();
    &SETS[..1 + usize::from(dotprod) + usize::from(dotprod && i8mm)]
}

/// FEAT_DotProd and FEAT_I8MM.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "none"))]
fn features() -> (bool, bool) {
    let (isar0, isar1): (u64, u64);
    // SAFETY: reads two identification registers, which is allowed where this is compiled (see above) and changes nothing.
    unsafe {
        core::arch::asm!(
            "mrs {0}, ID_AA64ISAR0_EL1",
            "mrs {1}, ID_AA64ISAR1_EL1",
            out(reg) isar0,
            out(reg) isar1,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    (field(isar0, 44) != 0, field(isar1, 52) != 0)
}

/// FEAT_DotProd and FEAT_I8MM.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "none")))]
fn features() -> (bool, bool) {
    (cfg!(target_feature = "dotprod"), cfg!(target_feature = "i8mm"))
}

/// The four bits from `at` on: 0 means absent, more means ever more.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "none"))]
fn field(register: u64, at: u32) -> u64 {
    register >> at & 15
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// The standard library asks the kernel in another way.
    #[test]
    fn the_features_are_those_that_the_standard_library_finds() {
        let expected =
            (std::arch::is_aarch64_feature_detected!("dotprod"), std::arch::is_aarch64_feature_detected!("i8mm"));
        assert_eq!(features(), expected);
        assert_eq!(sets().len(), 1 + usize::from(expected.0) + usize::from(expected.0 && expected.1));
    }
}
