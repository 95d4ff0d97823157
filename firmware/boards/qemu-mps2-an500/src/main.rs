//! The firmware on QEMU's mps2-an500: a Cortex-M7 with 4 MiB of flash, 4 MiB of RAM and 16 MiB of PSRAM.
//!
//! | what | where |
//! | --- | --- |
//! | the model, fixed at build time by `NADIR_MODEL` | flash |
//! | tiles of the camera, a [`TileStore`] that the emulator loads | PSRAM, from 0x6000_0000 |
//! | prototypes, a length (u32, 0 for none) and the file, that the emulator loads | PSRAM, from 0x6080_0000 |
//! | messages of [`nadir_app`] | UART 0 |
//! | defmt's logs | UART 1 |
//!
//! The emulator has no camera: [`EmulatedCamera`] speaks the camera's protocol from the tiles in PSRAM, behind the same
//! driver as a real one. The program ends by semihosting, with code 0 if every tile was tried.
#![no_std]
#![no_main]

mod clock;
mod logger;
mod uart;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m_rt::{ExceptionFrame, entry, exception};
use cortex_m_semihosting::debug::{self, EXIT_FAILURE, EXIT_SUCCESS};
use embedded_hal::delay::DelayNs;
use nadir::model::Model;
use nadir::triage::prototypes::Prototypes;
use nadir::triage::quality::Limits;
use nadir_app::camera::{AlwaysReady, Camera, EmulatedCamera, Patience, TileStore};
use nadir_app::link::{Link, frame_bytes};
use nadir_app::message::{Failed, Message, Part, Reason};
use nadir_app::{Board, Memory, Task, run};

use crate::uart::{Port, Uart};

include!(concat!(env!("OUT_DIR"), "/arena.rs"));
/// The longest embedding: ConvNeXt V2 atto's, and larger.
const MAX_DIMENSION: usize = 768;
/// Room for a tile of 13 bands of 128 x 128 pixels of 2 bytes.
const TILE_WORDS: usize = 13 * 128 * 128 * 2 / 4;

/// Aligns what it holds as a model must be.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/model.nadir")));

const TILES_ADDRESS: usize = 0x6000_0000;
const PROTOTYPES_ADDRESS: usize = 0x6080_0000;
/// Bytes of each half of PSRAM.
const HALF: usize = 8 << 20;

/// Half of PSRAM, from `address`.
fn psram(address: usize) -> &'static [u8] {
    // SAFETY: both addresses lie in PSRAM, which is mapped, was written before the processor started, and is never
    // written after.
    unsafe { core::slice::from_raw_parts(address as *const u8, HALF) }
}

/// The file behind its length, or `None` if the length is 0 or impossible.
fn with_length(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(..u32::from_le_bytes(*length) as usize).filter(|file| !file.is_empty())
}

struct Mps2;

impl Board for Mps2 {
    const TICKS_PER_SECOND: u32 = clock::TICKS_PER_SECOND;

    fn ticks(&mut self) -> u64 {
        clock::ticks()
    }
}

struct Delay;

impl DelayNs for Delay {
    fn delay_ns(&mut self, ns: u32) {
        // Cycles of 40 ns, at least one.
        cortex_m::asm::delay(ns / 40 + 1);
    }
}

#[entry]
fn main() -> ! {
    static mut TILE: [u32; TILE_WORDS] = [0; TILE_WORDS];
    static mut ARENA: Aligned<[u8; ARENA_BYTES]> = Aligned([0; ARENA_BYTES]);
    static mut EMBEDDING: [f32; MAX_DIMENSION] = [0.0; MAX_DIMENSION];
    static mut FRAME: [u8; frame_bytes(MAX_DIMENSION)] = [0; frame_bytes(MAX_DIMENSION)];

    if let Some(mut peripherals) = cortex_m::Peripherals::take() {
        clock::start(&mut peripherals.SYST);
    }
    let memory = Memory { tile: TILE, arena: &mut ARENA.0, embedding: EMBEDDING };
    let model = or_fail(Part::Model, Model::parse(&MODEL.0));
    let prototypes = with_length(psram(PROTOTYPES_ADDRESS)).map(|file| or_fail(Part::Triage, Prototypes::parse(file)));
    let store = or_fail(Part::Camera, TileStore::parse(psram(TILES_ADDRESS)));
    let mut camera = Camera::new(EmulatedCamera::new(store), AlwaysReady, Delay, Patience::default());
    let mut link = or_fail(Part::Board, Link::open(Uart::new(Port::Link), FRAME));
    let task = Task { encoder: &model, prototypes, limits: Limits::default() };
    // What failed in there has been said on the link.
    exit(run(&mut camera, &mut link, &mut Mps2, &task, memory).is_ok())
}

/// The value, or the end of the program with the error on the link.
fn or_fail<T, E: core::fmt::Display>(part: Part, result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            fail(part, Reason::new(&error).as_str());
            exit(false)
        }
    }
}

/// Says on the link, through a UART of its own, why nothing more will come.
fn fail(part: Part, reason: &str) {
    if !logger::busy() {
        defmt::error!("{}", reason);
    }
    let mut frame = [0; frame_bytes(0)];
    // The link opens with a zero byte, which ends a frame that was cut off.
    if let Ok(mut link) = Link::open(Uart::new(Port::Link), &mut frame) {
        // Nothing is left to do if this fails too.
        let _ = link.send(&Message::Failed(Failed { tile: None, part, reason }));
    }
}

fn exit(success: bool) -> ! {
    loop {
        debug::exit(if success { EXIT_SUCCESS } else { EXIT_FAILURE });
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static PANICKED: AtomicBool = AtomicBool::new(false);
    cortex_m::interrupt::disable();
    // A panic while this one is reported ends at once.
    if !PANICKED.load(Ordering::Relaxed) {
        PANICKED.store(true, Ordering::Relaxed);
        fail(Part::Panic, Reason::new(info).as_str());
    }
    exit(false)
}

#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    fail(Part::Panic, Reason::new(&format_args!("hard fault at {:#010x}", frame.pc())).as_str());
    exit(false)
}
