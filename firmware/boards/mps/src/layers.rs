//! Hashes the map of every place of a model over all tiles, so that the host can hold them against `tests/conformance/kernels.csv`.
//!
//! The tiles lie where the camera's do. In the other half of PSRAM lies the model, so that models fit that are larger than the board's
//! flash: the file's length (u32), how many sets of kernels to pass over (u32), and from byte 64 on the file. Every other set of
//! kernels runs twice, all stages in one pass and in two, and prints one line a place on the emulator's standard output:
//!
//! ```text
//! dsp,1,block 0.0,dd3a80a2fb3c2a7fb17ddfa787be9afa      set, passes, place, hash
//! ```
//!
//! The hash is that of `docs/integer-arithmetic.md`, section 9: SHA-256 of the tiles' SHA-256, cut to 16 bytes.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use cortex_m_semihosting::hprintln;
use nadir::Tile;
use nadir::encoder::{EmbedError, Encoder, Step};
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{Model, Place, STAGES};
use nadir::plan::int8::Passes;
use nadir::triage::record::ValueType;
use nadir_app::camera::TileStore;
use sha2::{Digest, Sha256};

use crate::{Aligned, MAX_DIMENSION, PROTOTYPES_ADDRESS, TILES_ADDRESS, psram};

/// The most places of a model: an atto has 17.
const PLACES: usize = 48;
/// RAM for the encoder.
const ARENA_BYTES: usize = 1 << 20;
/// Where the model begins behind its length: it is aligned as a model must be.
const MODEL_OFFSET: usize = 64;

struct Memory {
    arena: Aligned<[u8; ARENA_BYTES]>,
    embedding: [f32; MAX_DIMENSION],
}

struct Taken(AtomicBool, UnsafeCell<Memory>);

// SAFETY: the flag lets one user in.
unsafe impl Sync for Taken {}

static MEMORY: Taken = Taken(
    AtomicBool::new(false),
    UnsafeCell::new(Memory { arena: Aligned([0; ARENA_BYTES]), embedding: [0.0; MAX_DIMENSION] }),
);

/// The digests of a place, tile after tile.
#[derive(Clone)]
struct Chain {
    place: Place,
    hash: Sha256,
}

/// The chains of all places, in the order of the run.
struct Chains {
    chains: [Chain; PLACES],
    next: usize,
}

impl Chains {
    fn new() -> Self {
        Self { chains: core::array::from_fn(|_| Chain { place: Place::Stem, hash: Sha256::new() }), next: 0 }
    }

    fn add(&mut self, place: Place, map: &[u8]) -> Result<(), &'static str> {
        let chain = self.chains.get_mut(self.next).ok_or("the model has too many places")?;
        chain.place = place;
        chain.hash.update(Sha256::digest(map));
        self.next += 1;
        Ok(())
    }
}

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What ended the program.
enum Failure {
    Refused(EmbedError),
    Other(&'static str),
}

impl From<EmbedError> for Failure {
    fn from(error: EmbedError) -> Self {
        Self::Refused(error)
    }
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self::Other(reason)
    }
}

/// Hashes every place with every set of kernels, and ends the program.
pub fn main() -> ! {
    if MEMORY.0.swap(true, Ordering::Relaxed) {
        crate::exit(false);
    }
    // SAFETY: nobody passes the line before twice.
    let memory = unsafe { &mut *MEMORY.1.get() };
    let result = run(memory);
    match &result {
        Ok(()) => {}
        Err(Failure::Refused(error)) => hprintln!("{}", error),
        Err(Failure::Other(reason)) => hprintln!("{}", reason),
    }
    crate::exit(result.is_ok())
}

fn run(Memory { arena, embedding }: &mut Memory) -> Result<(), Failure> {
    let half = psram(PROTOTYPES_ADDRESS);
    let word = |index| half.as_chunks::<4>().0.get(index).map_or(0, |word| u32::from_le_bytes(*word) as usize);
    let (length, passed_over) = (word(0), word(1));
    let file = half.get(MODEL_OFFSET..).and_then(|rest| rest.get(..length)).ok_or("no model")?;
    let model = Model::parse(file).map_err(|_| "the model is damaged")?;
    let store = TileStore::parse(psram(TILES_ADDRESS)).map_err(|_| "there are no tiles")?;
    let embedding = embedding.get_mut(..model.embedding_dimension()).ok_or("the embedding is too long")?;
    for set in Int8Kernels::available().skip(passed_over) {
        for (name, passes) in [(1, Passes::One), (2, Passes::Two)] {
            let encoder = Encoder::new(&model).with_kernels(set.name).map_err(|_| "the model is not int8")?;
            let encoder = encoder.with_passes([passes; STAGES]);
            let mut chains = Chains::new();
            for index in 0..store.identity().tiles {
                let bytes = store.tile(index).ok_or("a tile is missing")?;
                let tile = match store.identity().value_type {
                    ValueType::U8 => Tile::U8(bytes),
                    ValueType::U16 => Tile::U16(bytemuck::try_cast_slice(bytes).map_err(|_| "a tile is misaligned")?),
                    ValueType::F32 => Tile::F32(bytemuck::try_cast_slice(bytes).map_err(|_| "a tile is misaligned")?),
                };
                embed(&encoder, tile, &mut arena.0, embedding, &mut chains)?;
            }
            for Chain { place, hash } in chains.chains.iter().take(chains.next) {
                hprintln!("{},{},{},{}", set.name, name, place, Hex(&hash.clone().finalize()[..16]));
            }
        }
    }
    Ok(())
}

fn embed(
    encoder: &Encoder<'_>,
    tile: Tile<'_>,
    arena: &mut [u8],
    embedding: &mut [f32],
    chains: &mut Chains,
) -> Result<(), Failure> {
    chains.next = 0;
    let mut run = encoder.start(tile, arena, embedding)?;
    loop {
        let place = run.place().ok_or("the run has no place")?;
        if run.step()? == Step::Done {
            break;
        }
        if run.place() != Some(place) {
            // The processor is little-endian, like what is hashed.
            chains.add(place, bytemuck::cast_slice(run.residual().ok_or("no residual map")?))?;
        }
    }
    chains.add(Place::Head, bytemuck::cast_slice(embedding))?;
    Ok(())
}
