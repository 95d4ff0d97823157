//! The transmitter of the CMSDK APB UART (Arm Cortex-M System Design Kit, DDI 0479, section 4.3).

use core::convert::Infallible;
use core::ptr::write_volatile;

use crate::machine;

use embedded_io::{ErrorType, Write};

/// Transmit buffer full.
const TX_FULL: u32 = 1 << 0;
/// Transmit enable.
const TX_ENABLE: u32 = 1 << 0;

/// Registers from offset 0.
#[repr(C)]
struct Registers {
    data: u32,
    state: u32,
    control: u32,
    interrupt: u32,
    divider: u32,
}

/// The UARTs of the board that the firmware writes to.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Port {
    /// UART 0: the link.
    Link = machine::LINK,
    /// UART 1: logs.
    Log = machine::LOG,
}

/// One UART, writing only. It holds no state, so that a panic handler can make another one.
#[derive(Debug)]
pub struct Uart(*mut Registers);

impl Uart {
    /// Enables the transmitter.
    pub fn new(port: Port) -> Self {
        let registers = port as usize as *mut Registers;
        // SAFETY: `port` is the address of a UART of this board, whose registers are always mapped.
        unsafe {
            // The smallest legal divider; the emulator keeps no bit rate.
            write_volatile(&raw mut (*registers).divider, 16);
            write_volatile(&raw mut (*registers).control, TX_ENABLE);
        }
        Self(registers)
    }

    /// Sends one byte, once there is room.
    pub fn send(&mut self, byte: u8) {
        // SAFETY: as in `new`; both registers may be accessed at any time.
        unsafe {
            while (&raw const (*self.0).state).read_volatile() & TX_FULL != 0 {}
            write_volatile(&raw mut (*self.0).data, u32::from(byte));
        }
    }
}

impl ErrorType for Uart {
    type Error = Infallible;
}

impl Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        bytes.iter().for_each(|&byte| self.send(byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
