//! Quality, prototypes and novelty, the choice under a budget, records: `crate::triage` for C.
//!
//! Scores are rounded to 1/10000 as a record holds them before anything is decided by them, so that ground can repeat the decision.

use core::ffi::c_void;
use core::mem::{align_of, size_of};

use super::encoder::{Handle, model, span};
use super::memory::{Span, array, array_mut, one, put, tile, tile_span};
use super::{ErrorDetail, Failure, Status, finish};
use crate::triage::frame;
use crate::triage::novelty::{NEIGHBOURS, novelty};
use crate::triage::prototypes::{ParseError, Prototypes, QueryError};
use crate::triage::quality::{Limits, Quality as Counts, Verdict as Judgement};
use crate::triage::record::{Message, RUNGS, Reason, Record, Rung, Scores as Rounded};
use crate::triage::select::{self, Candidate, Signals, Step};

/// Number of rungs: 0 nothing, 1 record, 2 binary code, 3 int8 embedding, 4 whole tile.
pub const NADIR_RUNGS: usize = 5;
/// `nadir_candidate.bytes` of a rung that a tile does not have.
pub const NADIR_NO_RUNG: u32 = 0xffff_ffff;
/// Bytes of working memory that nadir_select needs for one tile.
pub const NADIR_SELECT_BYTES: usize = 80;
/// A buffer of so many bytes holds any record's frame.
pub const NADIR_RECORD_BYTES: usize = 40;

const _: () = assert!(NADIR_RUNGS == RUNGS);
const _: () = assert!(size_of::<Candidate>() + size_of::<Step>() <= NADIR_SELECT_BYTES);
const _: () = assert!(frame::max_frame_bytes(1 + Record::MAX_BYTES) <= NADIR_RECORD_BYTES);
const _: () = assert!(size_of::<Table>() <= size_of::<PrototypeTable>() && align_of::<Table>() <= 8);

/// Whether a tile goes on to the encoder.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Pass = 0,
    /// Too much is without data.
    NoData = 1,
    /// Too much is saturated.
    Saturated = 2,
}

/// Counts over the pixels of a tile, each counted once whatever the number of bands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Rows x columns.
    pub pixels: u32,
    /// Pixels of which any band has no data.
    pub no_data: u32,
    /// Pixels with data of which any band is saturated.
    pub saturated: u32,
    /// Share without data in 1/1000.
    pub no_data_permille: u16,
    /// Share saturated in 1/1000.
    pub saturated_permille: u16,
    /// By the limits given.
    pub verdict: Verdict,
}

/// A checked prototype file: opened by nadir_prototypes_open, read by nadir_score. Its words are of no use to a program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrototypeTable {
    /// Opaque.
    pub words: [u64; 24],
}

/// What lies in a [`PrototypeTable`].
struct Table {
    tag: usize,
    table: Prototypes<'static>,
}

const TABLE_TAG: usize = 0x4e44_5002;

/// What an embedding said, rounded to 1/10000.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Cosine to the nearest wanted prototype less that to the nearest other one, -2 to 2.
    pub margin: f32,
    /// Probability that the tile is wanted.
    pub probability: f32,
    /// Mean cosine distance to the three nearest vectors of the bank (of the prototypes, if there is no bank), 0 to 2.
    pub novelty: f32,
    /// Class label of the nearest prototype.
    pub nearest: u16,
    /// 1 if the novelty reaches the table's threshold.
    pub is_novel: u16,
}

/// What the operator wants. nadir_policy_default fills it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Worth of any tile that passed the quality check.
    pub base: f32,
    /// Added at probability 1 of being wanted, in proportion below.
    pub wanted: f32,
    /// Added at twice `novel_from`, nothing at it, in proportion between.
    pub novel: f32,
    /// Probability from which a tile is called wanted.
    pub wanted_from: f32,
    /// Novelty from which a tile is called novel.
    pub novel_from: f32,
    /// Share of a tile's worth that each rung keeps.
    pub fidelity: [f32; 5],
    /// Not 0: every tile's record goes before anything else.
    pub always_record: u32,
}

/// One tile of a choice.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TileChoice {
    /// From nadir_worth.
    pub worth: f32,
    /// Bytes down on each rung, or NADIR_NO_RUNG.
    pub bytes: [u32; 5],
}

/// What a choice came to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChoiceSum {
    /// Bytes down, at most the budget.
    pub bytes: u64,
    /// Sum of worth x fidelity.
    pub value: f64,
}

impl Policy {
    fn of(policy: &select::Policy) -> Self {
        let select::Policy { base, wanted, novel, wanted_from, novel_from, fidelity, always_record } = *policy;
        Self { base, wanted, novel, wanted_from, novel_from, fidelity, always_record: always_record.into() }
    }

    fn inner(&self) -> select::Policy {
        let Self { base, wanted, novel, wanted_from, novel_from, fidelity, always_record } = *self;
        select::Policy { base, wanted, novel, wanted_from, novel_from, fidelity, always_record: always_record != 0 }
    }
}

fn judgement(verdict: u32) -> Result<Judgement, Failure> {
    match verdict {
        0 => Ok(Judgement::Pass),
        1 => Ok(Judgement::NoData),
        2 => Ok(Judgement::Saturated),
        other => Err(Failure::new(Status::UnknownValue, "verdict", other.into(), 2)),
    }
}

fn rung_of(rung: u32) -> Result<Rung, Failure> {
    let known = Rung::ALL.get(rung as usize).copied();
    known.ok_or(Failure::new(Status::UnknownValue, "rung", rung.into(), RUNGS as u64 - 1))
}

fn signals(scores: &Scores) -> Signals {
    Signals { probability: scores.probability, novelty: scores.novelty }
}

/// Counts the pixels of a tile without data and those that are saturated, and judges by limits in 1/1000 (usual: 500 and 300).
///
/// Tile as in nadir_embed. `quality`: the result. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_assess(
    encoder: *const Handle,
    tile_type: u32,
    tile_values: *const c_void,
    values: usize,
    no_data_limit: u16,
    saturated_limit: u16,
    quality: *mut Quality,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let assessed = || {
            let model = model(encoder)?;
            Span::of(quality, 1, "quality")?.apart_from(&span(encoder)?)?;
            let expected = model.tile_len();
            tile_span(tile_type, tile_values, values)?;
            if values != expected {
                return Err(Failure::new(Status::Length, "tile", values as u64, expected as u64));
            }
            let counts = Counts::assess(tile(tile_type, tile_values, values)?, model.bands())
                .map_err(|wrong| Failure::new(Status::Length, "tile", wrong.values as u64, expected as u64))?;
            let limits = Limits { no_data: no_data_limit, saturated: saturated_limit };
            let value = Quality {
                pixels: counts.pixels,
                no_data: counts.no_data,
                saturated: counts.saturated,
                no_data_permille: counts.no_data_permille(),
                saturated_permille: counts.saturated_permille(),
                verdict: match counts.verdict(&limits) {
                    Judgement::Pass => Verdict::Pass,
                    Judgement::NoData => Verdict::NoData,
                    Judgement::Saturated => Verdict::Saturated,
                },
            };
            put(quality, value, "quality").map(|()| Status::Ok)
        };
        finish(error, assessed())
    }
}

/// Checks a prototype file, at any alignment, and that it was made for the model's embedding space.
///
/// The bytes are borrowed: they stay where and what they are for as long as `table` is used.
///
/// # Safety
/// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_prototypes_open(
    encoder: *const Handle,
    file: *const u8,
    file_bytes: usize,
    table: *mut PrototypeTable,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let opened = || {
            let model = model(encoder)?;
            Span::of(table, 1, "table")?.apart_from(&span(encoder)?)?;
            Span::of(file, file_bytes, "prototypes")?.apart_from(&Span::of(table, 1, "table")?)?;
            put(table, PrototypeTable { words: [0; 24] }, "table")?;
            let found = Prototypes::parse(array(file, file_bytes, "prototypes")?)?;
            let (dimension, expected) = (usize::from(found.header().dimension), model.embedding_dimension());
            if dimension != expected || found.header().embedding_space != model.embedding_space() {
                let (dimension, expected) = (dimension as u64, expected as u64);
                return Err(Failure::new(Status::PrototypesMismatch, "embedding space", dimension, expected));
            }
            put(table.cast(), Table { tag: TABLE_TAG, table: found }, "table").map(|()| Status::Ok)
        };
        finish(error, opened())
    }
}

/// Compares an embedding with prototypes: nearness to what is wanted, and novelty.
///
/// # Safety
/// `table` comes from nadir_prototypes_open, its file still stands; the other pointers, if not null, point to so many values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_score(
    table: *const PrototypeTable,
    embedding: *const f32,
    dimension: usize,
    scores: *mut Scores,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: a table with the tag was written by `nadir_prototypes_open`; without it only the tag is read, which any bits can be.
    unsafe {
        let scored = || {
            Span::of(table, 1, "table")?;
            let table = table.cast::<Table>();
            if core::ptr::addr_of!((*table).tag).read() != TABLE_TAG {
                return Err(Failure::new(Status::NotOpen, "table", table.addr() as u64, 0));
            }
            let table = &one(table, "table")?.table;
            let query = table.query(array(embedding, dimension, "embedding")?)?;
            let score = table.score(&query);
            let distance =
                novelty(&query, table.bank(), NEIGHBOURS).or_else(|| novelty(&query, table.vectors(), NEIGHBOURS));
            let rounded = Rounded::new(score.margin, distance.unwrap_or(0.0), score.nearest);
            let value = Scores {
                margin: rounded.margin(),
                probability: table.probability(rounded.margin()),
                novelty: rounded.novelty(),
                nearest: rounded.nearest,
                is_novel: (rounded.novelty() >= table.header().novel_from).into(),
            };
            put(scores, value, "scores").map(|()| Status::Ok)
        };
        finish(error, scored())
    }
}

/// The policy that `triage` has unless told otherwise.
///
/// # Safety
/// `policy`, if not null, points to a writable place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_policy_default(policy: *mut Policy) -> Status {
    // SAFETY: the caller's promise.
    unsafe {
        let done = put(policy, Policy::of(&select::Policy::default()), "policy").map(|()| Status::Ok);
        finish(core::ptr::null_mut(), done)
    }
}

/// Worth of a tile; `scores` is null for one that was not embedded. Finite and not negative.
///
/// # Safety
/// The pointers, if not null, point to readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_worth(
    policy: *const Policy,
    verdict: u32,
    scores: *const Scores,
    worth: *mut f32,
) -> Status {
    // SAFETY: the caller's promise.
    unsafe {
        let weighed = || {
            let signals = optional(scores)?;
            let value = one(policy, "policy")?.inner().worth(judgement(verdict)?, signals.as_ref());
            put(worth, value, "worth").map(|()| Status::Ok)
        };
        finish(core::ptr::null_mut(), weighed())
    }
}

/// Gives each of `tiles` tiles a rung (one byte in `rungs`), so that the sum of values is as large as `budget` bytes allow.
///
/// `memory`: NADIR_SELECT_BYTES for each tile, at a multiple of 8; anything before and after. `sum`, `error`: may be null.
///
/// # Safety
/// The pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_select(
    policy: *const Policy,
    candidates: *const TileChoice,
    tiles: usize,
    budget: u64,
    memory: *mut u64,
    memory_bytes: usize,
    rungs: *mut u8,
    sum: *mut ChoiceSum,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the working memory holds both arrays, is aligned for both, and is written before it is read; a byte may have any bits, and
    // a rung is a byte of 0 to 4, which `array_mut` gets after zeros were written.
    unsafe {
        let selected = || {
            let given = array(candidates, tiles, "candidates")?;
            let room = Span::of(memory.cast::<u8>(), memory_bytes, "memory")?;
            Span::of(memory, 0, "memory")?;
            let out = Span::of(rungs, tiles, "rungs")?;
            room.apart_from(&Span::of(candidates, tiles, "candidates")?)?;
            room.apart_from(&out)?;
            out.apart_from(&Span::of(candidates, tiles, "candidates")?)?;
            let needed = tiles.saturating_mul(NADIR_SELECT_BYTES);
            if memory_bytes < needed {
                return Err(Failure::new(Status::Length, "memory", memory_bytes as u64, needed as u64));
            }
            let policy = one(policy, "policy")?.inner();
            // Steps are aligned to 8 and stand first.
            let steps = memory.cast::<Step>();
            let items = steps.wrapping_add(tiles).cast::<Candidate>();
            for (i, choice) in given.iter().enumerate() {
                let bytes = choice.bytes.map(|bytes| Some(bytes).filter(|&bytes| bytes != NADIR_NO_RUNG));
                steps.add(i).write(Step::EMPTY);
                items.add(i).write(Candidate { worth: choice.worth, bytes });
                rungs.add(i).write(0);
            }
            let steps = array_mut(steps, tiles, "memory")?;
            let result = array_mut(rungs.cast::<Rung>(), tiles, "rungs")?;
            let chosen = select::select(array(items, tiles, "memory")?, &policy, budget, steps, result)
                .map_err(|wrong| Failure::new(Status::Length, "candidates", wrong.tiles as u64, 0))?;
            if !sum.is_null() {
                put(sum, ChoiceSum { bytes: chosen.bytes, value: chosen.value }, "sum")?;
            }
            Ok(Status::Ok)
        };
        finish(error, selected())
    }
}

/// Writes the record of a tile as a frame, as links and outboxes hold it, and its length to `length`.
///
/// `tile`: position in capture order. `scores`: null for a tile that was not embedded. `rung`, with the policy, gives the reason.
/// A `buffer` of NADIR_RECORD_BYTES is always enough. `error`: may be null.
///
/// # Safety
/// The pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_record(
    policy: *const Policy,
    tile: u32,
    quality: *const Quality,
    scores: *const Scores,
    rung: u32,
    buffer: *mut u8,
    buffer_bytes: usize,
    length: *mut usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise; of `quality`, whose verdict may be any number, only plain numbers are read.
    unsafe {
        let recorded = || {
            let policy = one(policy, "policy")?.inner();
            Span::of(quality, 1, "quality")?;
            let verdict = judgement(core::ptr::addr_of!((*quality).verdict).cast::<u32>().read())?;
            let no_data = core::ptr::addr_of!((*quality).no_data_permille).read();
            let saturated = core::ptr::addr_of!((*quality).saturated_permille).read();
            let (signals, rung) = (optional(scores)?, rung_of(rung)?);
            let reason: Reason = policy.reason(verdict, signals.as_ref(), rung);
            let scores = match signals {
                Some(_) => one(scores, "scores").map(|s| Some(Rounded::new(s.margin, s.novelty, s.nearest)))?,
                None => None,
            };
            let record = Record { tile, no_data, saturated, scores, rung, reason };
            let written = frame::encode(&Message::Record(record), array_mut(buffer, buffer_bytes, "buffer")?)
                .map_err(|_| Failure::new(Status::Length, "buffer", buffer_bytes as u64, NADIR_RECORD_BYTES as u64))?;
            put(length, written, "length").map(|()| Status::Ok)
        };
        finish(error, recorded())
    }
}

/// The signals in scores that may be null.
///
/// # Safety
/// `scores` is null or points to readable scores.
unsafe fn optional(scores: *const Scores) -> Result<Option<Signals>, Failure> {
    if scores.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { one(scores, "scores").map(|scores| Some(signals(scores))) }
}

impl From<ParseError> for Failure {
    fn from(error: ParseError) -> Self {
        let (what, found, expected) = match error {
            ParseError::Magic => ("magic number", 0, 0),
            ParseError::Version(version) => ("version", version.into(), 1),
            ParseError::Length { found, expected } => ("length", found as u64, expected as u64),
            ParseError::Crc => ("CRC", 0, 0),
            ParseError::Header(field) => (field, 0, 0),
            ParseError::Value { what, index } => (what, index as u64, 0),
            ParseError::NothingWanted => ("wanted prototypes", 0, 1),
        };
        Self::new(Status::Prototypes, what, found, expected)
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Dimension { found, expected } => {
                Self::new(Status::Length, "embedding", found as u64, expected as u64)
            }
            QueryError::NotFinite => Self::new(Status::NotFinite, "embedding", 0, 0),
        }
    }
}
