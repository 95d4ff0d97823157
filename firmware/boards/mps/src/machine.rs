//! Where the two families of boards differ.

/// Clock of SysTick, in 1/s.
#[cfg(not(feature = "mps3"))]
pub const TICKS_PER_SECOND: u32 = 25_000_000;
/// Clock of SysTick, in 1/s.
#[cfg(feature = "mps3")]
pub const TICKS_PER_SECOND: u32 = 32_000_000;

/// Address of UART 0, the link.
#[cfg(not(feature = "mps3"))]
pub const LINK: usize = 0x4000_4000;
/// Address of UART 0, the link.
#[cfg(feature = "mps3")]
pub const LINK: usize = 0x4930_3000;

/// Address of UART 1, logs.
#[cfg(not(feature = "mps3"))]
pub const LOG: usize = 0x4000_5000;
/// Address of UART 1, logs.
#[cfg(feature = "mps3")]
pub const LOG: usize = 0x4930_4000;

/// Where the emulator loads tiles: 16 MiB.
#[cfg(not(feature = "an386"))]
pub const PSRAM: usize = 0x6000_0000;
/// Where the emulator loads tiles: 16 MiB.
#[cfg(feature = "an386")]
pub const PSRAM: usize = 0x2100_0000;
