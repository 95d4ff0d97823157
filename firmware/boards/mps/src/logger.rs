//! defmt's global logger: rzCOBS frames on UART 1, timestamps in microseconds.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use critical_section::RestoreState;

use crate::clock;
use crate::machine::TICKS_PER_SECOND;
use crate::uart::{Port, Uart};

#[defmt::global_logger]
struct Logger;

defmt::timestamp!("{=u64:us}", clock::ticks() / u64::from(TICKS_PER_SECOND / 1_000_000));

/// What is held between `acquire` and `release`.
struct State {
    encoder: UnsafeCell<defmt::Encoder>,
    restore: UnsafeCell<RestoreState>,
}

// SAFETY: both cells are touched only between `acquire` and `release`, inside one critical section.
unsafe impl Sync for State {}

static STATE: State =
    State { encoder: UnsafeCell::new(defmt::Encoder::new()), restore: UnsafeCell::new(RestoreState::invalid()) };
static TAKEN: AtomicBool = AtomicBool::new(false);

fn send(bytes: &[u8]) {
    let mut uart = Uart::new(Port::Log);
    bytes.iter().for_each(|&byte| uart.send(byte));
}

/// Whether a log frame is being written, so that another one cannot be begun.
pub fn busy() -> bool {
    TAKEN.load(Ordering::Relaxed)
}

// SAFETY: the critical section from `acquire` to `release` keeps every other context out; a second `acquire` from
// within it panics, as defmt asks.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        // SAFETY: `release` ends this critical section; nothing else ends between.
        let restore = unsafe { critical_section::acquire() };
        assert!(!TAKEN.swap(true, Ordering::Relaxed), "defmt's logger was taken twice");
        // SAFETY: TAKEN was false, so that nobody else holds the state.
        unsafe {
            *STATE.restore.get() = restore;
            (*STATE.encoder.get()).start_frame(send);
        }
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: called once after `acquire`, in its critical section.
        unsafe {
            (*STATE.encoder.get()).end_frame(send);
            let restore = *STATE.restore.get();
            TAKEN.store(false, Ordering::Relaxed);
            critical_section::release(restore);
        }
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: called between `acquire` and `release`.
        unsafe { (*STATE.encoder.get()).write(bytes, send) }
    }
}
