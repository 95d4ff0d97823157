//! The loop over the tiles.

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::InputPin;
use embedded_hal::spi::SpiDevice;
use embedded_io::Write;
use nadir::Tile;
use nadir::encoder::{ARENA_ALIGNMENT, EmbedError, Encoder};
use nadir::model::{Band, Model};
use nadir::triage::prototypes::Prototypes;
use nadir::triage::quality::{Limits, Quality};

use crate::camera::{Camera, CameraError, Identity};
use crate::fmt::{error, info, text};
use crate::link::{Link, LinkError};
use crate::message::{Done, Embedding, Failed, LINK_VERSION, Message, Part, Reason, Start};
use crate::score;

/// What the application asks of a board beside its bus and its UART.
pub trait Board {
    /// Rate of [`Board::ticks`], in 1/s.
    const TICKS_PER_SECOND: u32;

    /// Ticks since some fixed moment; never runs backwards.
    fn ticks(&mut self) -> u64;

    /// Tells the watchdog that the application lives. Called before every tile and every embedding.
    fn feed_watchdog(&mut self) {}
}

/// What an encoder says about its model.
#[derive(Clone, Copy, Debug)]
pub struct ModelFacts<'m> {
    /// Name of the model.
    pub name: &'m str,
    /// Embeddings may be compared only within one space.
    pub embedding_space: &'m str,
    /// Bands of a tile, in order.
    pub bands: &'m [Band],
    /// Rows and columns of a tile.
    pub side: u16,
    /// Values of an embedding.
    pub dimension: usize,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Multiply-accumulates of one embedding.
    pub macs: u64,
}

/// Turns tiles into embeddings. A [`Model`] does; tests bring their own.
pub trait Embed {
    /// What is executed.
    fn facts(&self) -> ModelFacts<'_>;

    /// Embeds one tile; see [`Encoder::embed`].
    ///
    /// # Errors
    /// Those of [`Encoder::embed`].
    fn embed(&self, tile: Tile<'_>, arena: &mut [u8], embedding: &mut [f32]) -> Result<(), EmbedError>;
}

impl Embed for Model<'_> {
    fn facts(&self) -> ModelFacts<'_> {
        ModelFacts {
            name: self.name(),
            embedding_space: self.embedding_space(),
            bands: self.bands(),
            side: self.architecture().tile_size,
            dimension: self.embedding_dimension(),
            arena_bytes: Encoder::new(self).arena_bytes(),
            macs: self.architecture().macs(self.bands().len()),
        }
    }

    fn embed(&self, tile: Tile<'_>, arena: &mut [u8], embedding: &mut [f32]) -> Result<(), EmbedError> {
        Encoder::new(self).embed(tile, arena, embedding)
    }
}

/// What is done with every tile.
#[derive(Debug)]
pub struct Task<'e, E> {
    /// Makes the embeddings.
    pub encoder: &'e E,
    /// What to look for, if anything.
    pub prototypes: Option<Prototypes<'e>>,
    /// Which tiles are not worth encoding.
    pub limits: Limits,
}

/// The memory that the application works in; static on a board.
#[derive(Debug)]
pub struct Memory<'m> {
    /// Holds one tile as the sensor stores it.
    pub tile: &'m mut [u32],
    /// At least [`ModelFacts::arena_bytes`] bytes, from a multiple of [`ARENA_ALIGNMENT`].
    pub arena: &'m mut [u8],
    /// At least [`ModelFacts::dimension`] values.
    pub embedding: &'m mut [f32],
}

/// Why a run ended before its last tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError<'e> {
    /// The camera cannot be used.
    #[error("{0}")]
    Camera(CameraError),
    /// The camera's tiles are not what the model takes.
    #[error("tiles have {found:?} bands, rows and columns, the model takes {expected:?}")]
    Shape {
        /// Of the camera.
        found: [u16; 3],
        /// Of the model.
        expected: [u16; 3],
    },
    /// The board has too little memory for the model.
    #[error("arena has {found} bytes, the model needs {needed}")]
    Arena {
        /// Bytes there.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// The arena does not start at a multiple of [`ARENA_ALIGNMENT`].
    #[error("arena does not start at a multiple of {ARENA_ALIGNMENT} bytes")]
    ArenaMisaligned,
    /// The board has too little place for an embedding.
    #[error("there is place for {found} values of an embedding of {needed}")]
    Embedding {
        /// Values that fit.
        found: usize,
        /// Values needed.
        needed: usize,
    },
    /// The prototypes were made with another model.
    #[error("prototypes are for {found_dimension} values of space {found}, the model gives {dimension} of {expected}")]
    Space {
        /// Embedding space of the prototypes.
        found: &'e str,
        /// Values of their vectors.
        found_dimension: u16,
        /// Embedding space of the model.
        expected: &'e str,
        /// Values of its embeddings.
        dimension: usize,
    },
    /// The link failed, so that nothing more can be said.
    #[error("{0}")]
    Link(LinkError),
}

impl RunError<'_> {
    fn part(&self) -> Part {
        match self {
            RunError::Camera(_) | RunError::Shape { .. } => Part::Camera,
            RunError::Arena { .. } | RunError::ArenaMisaligned | RunError::Embedding { .. } => Part::Encoder,
            RunError::Space { .. } => Part::Triage,
            RunError::Link(_) => Part::Board,
        }
    }
}

impl From<LinkError> for RunError<'_> {
    fn from(error: LinkError) -> Self {
        RunError::Link(error)
    }
}

/// Reads every tile of the camera once, and sends what the model sees in it.
///
/// A tile that the camera or the encoder does not give is reported as [`Message::Failed`] and counted; the next one is
/// tried. The returned counts are those of the last message, [`Message::Done`].
///
/// # Errors
/// Before the first tile where camera, model, prototypes and memory do not fit one another: the reason has been sent as
/// [`Message::Failed`] without a tile. At any time where the link fails.
pub fn run<'e, S, R, D, W, B, E>(
    camera: &mut Camera<S, R, D>,
    link: &mut Link<'_, W>,
    board: &mut B,
    task: &Task<'e, E>,
    memory: Memory<'_>,
) -> Result<Done, RunError<'e>>
where
    S: SpiDevice,
    R: InputPin,
    D: DelayNs,
    W: Write,
    B: Board,
    E: Embed,
{
    let result = fit(task, &memory).and_then(|()| {
        let (identity, start) = introduce(camera, task, &memory)?;
        link.send(&Message::Start(Start { ticks_per_second: B::TICKS_PER_SECOND, ..start }))?;
        tiles(camera, link, board, task, memory, &identity)
    });
    match &result {
        Ok(done) => info!("done: {} embedded, {} vetoed, {} failed", done.embedded, done.vetoed, done.failed),
        Err(failure) => {
            error!("{}", text(failure));
            if !matches!(failure, RunError::Link(_)) {
                link.send(&failed(None, failure.part(), Reason::new(failure).as_str()))?;
            }
        }
    }
    result
}

fn failed(tile: Option<u32>, part: Part, reason: &str) -> Message<'_> {
    Message::Failed(Failed { tile, part, reason })
}

/// Checks that model, prototypes and memory fit one another.
fn fit<'e, E: Embed>(task: &Task<'e, E>, memory: &Memory<'_>) -> Result<(), RunError<'e>> {
    let facts = task.encoder.facts();
    let (arena, dimension) = (memory.arena.len(), facts.dimension);
    info!("model {}: {} values, {} of {} bytes of arena", facts.name, dimension, facts.arena_bytes, arena);
    if arena < facts.arena_bytes {
        return Err(RunError::Arena { found: arena, needed: facts.arena_bytes });
    }
    if !memory.arena.as_ptr().addr().is_multiple_of(ARENA_ALIGNMENT) {
        return Err(RunError::ArenaMisaligned);
    }
    if memory.embedding.len() < dimension {
        return Err(RunError::Embedding { found: memory.embedding.len(), needed: dimension });
    }
    if let Some(header) = task.prototypes.as_ref().map(|prototypes| *prototypes.header()) {
        let (found, found_dimension, expected) = (header.embedding_space, header.dimension, facts.embedding_space);
        info!("prototypes: {} of space {}", header.prototypes, found);
        if found != expected || usize::from(found_dimension) != dimension {
            return Err(RunError::Space { found, found_dimension, expected, dimension });
        }
    }
    Ok(())
}

/// Asks the camera what it is, checks that its tiles fit, and returns what to say about this run.
fn introduce<'e, S: SpiDevice, R: InputPin, D: DelayNs, E: Embed>(
    camera: &mut Camera<S, R, D>,
    task: &Task<'e, E>,
    memory: &Memory<'_>,
) -> Result<(Identity, Start<'e>), RunError<'e>> {
    let facts = task.encoder.facts();
    let identity = camera.identify().map_err(RunError::Camera)?;
    info!("camera: {} tiles, {} x {} x {}", identity.tiles, identity.bands, identity.height, identity.width);
    let found = [identity.bands, identity.height, identity.width];
    let expected = [facts.bands.len() as u16, facts.side, facts.side];
    if found != expected {
        return Err(RunError::Shape { found, expected });
    }
    let (needed, buffer) = (identity.tile_bytes().unwrap_or(u32::MAX), size_of_val(memory.tile));
    if needed as usize > buffer {
        return Err(RunError::Camera(CameraError::TooLarge { needed, buffer }));
    }
    let start = Start {
        version: LINK_VERSION,
        model: facts.name,
        embedding_space: facts.embedding_space,
        dimension: facts.dimension as u16,
        tiles: identity.tiles,
        arena_bytes: facts.arena_bytes as u32,
        macs: facts.macs,
        ticks_per_second: 0,
    };
    Ok((identity, start))
}

/// What became of one tile.
enum Fate {
    Embedded,
    Vetoed,
    Failed,
}

fn tiles<'e, S, R, D, W, B, E>(
    camera: &mut Camera<S, R, D>,
    link: &mut Link<'_, W>,
    board: &mut B,
    task: &Task<'e, E>,
    memory: Memory<'_>,
    identity: &Identity,
) -> Result<Done, RunError<'e>>
where
    S: SpiDevice,
    R: InputPin,
    D: DelayNs,
    W: Write,
    B: Board,
    E: Embed,
{
    let (found, needed) = (memory.embedding.len(), task.encoder.facts().dimension);
    let embedding = memory.embedding.get_mut(..needed).ok_or(RunError::Embedding { found, needed })?;
    let mut done = Done::default();
    for index in 0..identity.tiles {
        board.feed_watchdog();
        let fate = match camera.read_tile(identity, index, memory.tile) {
            Ok(tile) => one(index, tile, link, board, task, memory.arena, embedding)?,
            Err(failure) => lost(index, Part::Camera, &failure, link)?,
        };
        match fate {
            Fate::Embedded => done.embedded += 1,
            Fate::Vetoed => done.vetoed += 1,
            Fate::Failed => done.failed += 1,
        }
    }
    done.retries = camera.retries();
    link.send(&Message::Done(done))?;
    Ok(done)
}

/// Takes one tile from its pixels to its last message.
fn one<W: Write, B: Board, E: Embed>(
    index: u32,
    tile: Tile<'_>,
    link: &mut Link<'_, W>,
    board: &mut B,
    task: &Task<'_, E>,
    arena: &mut [u8],
    embedding: &mut [f32],
) -> Result<Fate, LinkError> {
    let quality = match Quality::assess(tile, task.encoder.facts().bands) {
        Ok(quality) => quality,
        Err(failure) => return lost(index, Part::Camera, &failure, link),
    };
    if let Some(record) = score::vetoed(index, &quality, quality.verdict(&task.limits)) {
        info!("tile {}: {}", index, record.reason.name());
        link.send(&Message::Record(record))?;
        return Ok(Fate::Vetoed);
    }
    board.feed_watchdog();
    let start = board.ticks();
    let result = task.encoder.embed(tile, arena, embedding);
    let ticks = board.ticks().saturating_sub(start);
    if let Err(failure) = result {
        return lost(index, Part::Encoder, &failure, link);
    }
    let record = match score::scored(index, &quality, embedding, task.prototypes.as_ref()) {
        Ok(record) => record,
        Err(failure) => return lost(index, Part::Triage, &failure, link),
    };
    info!("tile {}: embedded in {} ticks, {}", index, ticks, record.reason.name());
    let values = bytemuck::cast_slice(embedding);
    link.send(&Message::Embedding(Embedding { tile: index, ticks, values }))?;
    link.send(&Message::Record(record))?;
    Ok(Fate::Embedded)
}

fn lost<W: Write>(
    index: u32,
    part: Part,
    failure: &dyn core::fmt::Display,
    link: &mut Link<'_, W>,
) -> Result<Fate, LinkError> {
    let reason = Reason::new(failure);
    error!("tile {}: {}", index, reason.as_str());
    link.send(&failed(Some(index), part, reason.as_str()))?;
    Ok(Fate::Failed)
}
