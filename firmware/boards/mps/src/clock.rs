//! SysTick as a clock that does not wrap.
//!
//! Under `-icount shift=0` the emulator executes one instruction in a nanosecond, so that one tick is 40 instructions at 25 MHz,
//! the same in every run. The cycle counter of the debug unit reads 0 in the emulator.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{SCB, SYST};
use cortex_m_rt::exception;

/// SysTick counts down from here, through 24 bits.
const RELOAD: u32 = 0x00ff_ffff;

static WRAPS: AtomicU32 = AtomicU32::new(0);

/// Starts counting.
pub fn start(systick: &mut SYST) {
    systick.set_clock_source(SystClkSource::Core);
    systick.set_reload(RELOAD);
    systick.clear_current();
    systick.enable_counter();
    systick.enable_interrupt();
}

#[exception]
fn SysTick() {
    // Alone to write, so that load and store need not be one step.
    WRAPS.store(WRAPS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Ticks since [`start`].
pub fn ticks() -> u64 {
    loop {
        let wraps = WRAPS.load(Ordering::Relaxed);
        let left = SYST::get_current();
        // A wrap that is not yet counted (interrupts are off inside a log frame) belongs to this reading.
        let pending = SCB::is_pendst_pending();
        let again = SYST::get_current();
        if wraps == WRAPS.load(Ordering::Relaxed) && again <= left {
            return (u64::from(wraps) + u64::from(pending)) * (u64::from(RELOAD) + 1) + u64::from(RELOAD - again);
        }
    }
}
