//! What the firmware of Arm's emulated MPS boards has in common: all but the model, the arena's size and the memory map.
//!
//! | what | where |
//! | --- | --- |
//! | the model, fixed at build time by `NADIR_MODEL` | flash, section `.model` |
//! | tiles of the camera, a [`TileStore`] that the emulator loads | PSRAM, from its beginning |
//! | prototypes, a length (u32, 0 for none) and the file, that the emulator loads | PSRAM, from its middle |
//! | a word, other than 0 if no tile is to be vetoed | PSRAM, at its end |
//! | messages of [`nadir_app`] | UART 0 |
//! | defmt's logs | UART 1 |
//!
//! The emulator has no camera: [`EmulatedCamera`] speaks the camera's protocol from the tiles in PSRAM, behind the same
//! driver as a real one. The program ends by semihosting, with code 0 if every tile was tried.
#![no_std]

mod clock;
pub mod kernels;
pub mod layers;
mod logger;
mod machine;
mod uart;

use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m_rt::{ExceptionFrame, exception};
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

/// The longest embedding: ConvNeXt V2 atto's, and larger.
const MAX_DIMENSION: usize = 768;
/// Room for a tile of 13 bands of 128 x 128 pixels of 2 bytes.
const TILE_WORDS: usize = 13 * 128 * 128 * 2 / 4;

/// Aligns what it holds as a model must be.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

const TILES_ADDRESS: usize = machine::PSRAM;
const PROTOTYPES_ADDRESS: usize = machine::PSRAM + HALF;
/// A word that is not zero here: no tile is vetoed.
const NO_VETO: usize = HALF - 4;
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

/// What a run works in beside the arena.
struct Buffers {
    tile: [u32; TILE_WORDS],
    embedding: [f32; MAX_DIMENSION],
    frame: [u8; frame_bytes(MAX_DIMENSION)],
}

impl Buffers {
    const NEW: Self =
        Self { tile: [0; TILE_WORDS], embedding: [0.0; MAX_DIMENSION], frame: [0; frame_bytes(MAX_DIMENSION)] };
}

/// Something that is given away once.
struct Taken(AtomicBool, UnsafeCell<Buffers>);

// SAFETY: the flag lets one user in.
unsafe impl Sync for Taken {}

struct Mps;

impl Board for Mps {
    const TICKS_PER_SECOND: u32 = machine::TICKS_PER_SECOND;

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

/// Runs the application on every tile in PSRAM.
pub fn start(model: &[u8], arena: &mut [u8]) -> ! {
    static MEMORY: Taken = Taken(AtomicBool::new(false), UnsafeCell::new(Buffers::NEW));
    if MEMORY.0.swap(true, Ordering::Relaxed) {
        exit(false);
    }
    // SAFETY: nobody passes the line before twice.
    let Buffers { tile, embedding, frame } = unsafe { &mut *MEMORY.1.get() };

    if let Some(mut peripherals) = cortex_m::Peripherals::take() {
        clock::start(&mut peripherals.SYST);
    }
    let memory = Memory { tile, arena, embedding };
    let model = or_fail(Part::Model, Model::parse(model));
    let prototypes = with_length(psram(PROTOTYPES_ADDRESS)).map(|file| or_fail(Part::Triage, Prototypes::parse(file)));
    let store = or_fail(Part::Camera, TileStore::parse(psram(TILES_ADDRESS)));
    let mut camera = Camera::new(EmulatedCamera::new(store), AlwaysReady, Delay, Patience::default());
    let mut link = or_fail(Part::Board, Link::open(Uart::new(Port::Link), frame));
    let embed_all = psram(PROTOTYPES_ADDRESS)[NO_VETO..].iter().any(|&byte| byte != 0);
    let limits = if embed_all { Limits { no_data: 1000, saturated: 1000 } } else { Limits::default() };
    let task = Task { encoder: &model, prototypes, limits };
    // What failed in there has been said on the link.
    exit(run(&mut camera, &mut link, &mut Mps, &task, memory).is_ok())
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
