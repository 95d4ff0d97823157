//! The handle, opening a model, embedding at once and in steps, and what a model is.
//!
//! The caller's arena begins with the handle ([`NADIR_HANDLE_BYTES`], set aside in full whatever the processor); the encoder's scratch memory
//! lies behind it. The encoder in the handle borrows the model beside it, so that a handle must not be moved: a tag made from its address
//! reveals it. No `&mut` to the whole handle is ever made; the model is written once, by `nadir_open`, and only read after.

use core::ffi::{c_char, c_void};
use core::ptr::{addr_of, addr_of_mut};

use super::memory::{Span, array, array_mut, one, put, text, tile, tile_span};
use super::{ErrorDetail, Failure, Status, finish};
use crate::Tile;
use crate::encoder::{ARENA_ALIGNMENT, Cursor, Encoder};
use crate::guard::Scrub;
use crate::model::{Model, Precision};
use crate::plan::int8::Passes;

/// Alignment of an arena, in bytes.
pub const NADIR_ARENA_ALIGNMENT: usize = 64;
/// Alignment of a model file in memory, in bytes.
pub const NADIR_MODEL_ALIGNMENT: usize = 64;
/// Bytes at the beginning of an arena that hold the encoder's handle.
pub const NADIR_HANDLE_BYTES: usize = 4096;
/// The most bands of a model.
pub const NADIR_MAX_BANDS: usize = 32;

const _: () = assert!(size_of::<Handle>() <= NADIR_HANDLE_BYTES);
const _: () = assert!(align_of::<Handle>() <= NADIR_ARENA_ALIGNMENT);
const _: () = assert!(NADIR_ARENA_ALIGNMENT.is_multiple_of(ARENA_ALIGNMENT));
const _: () = assert!(NADIR_HANDLE_BYTES.is_multiple_of(NADIR_ARENA_ALIGNMENT));
const _: () = assert!(NADIR_MODEL_ALIGNMENT == crate::model::ALIGNMENT);
const _: () = assert!(NADIR_MAX_BANDS == crate::model::MAX_BANDS);

/// How the sensor stores the values of a tile.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileType {
    /// uint8_t.
    U8 = 0,
    /// uint16_t.
    U16 = 1,
    /// float.
    F32 = 2,
}

/// Form of a model's weights.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// Weights and arithmetic in f32.
    F32 = 0,
    /// Weights of convolutions in f16, arithmetic in f32.
    F16 = 1,
    /// Integers throughout; the same bits on every processor.
    Int8 = 2,
}

/// What a model is. Texts are ended by a zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    /// Height and width of a tile in pixels.
    pub tile_side: u32,
    /// Number of bands.
    pub bands: u32,
    /// Values of a tile: bands x side x side.
    pub tile_values: u32,
    /// Values of an embedding.
    pub embedding_dimension: u32,
    /// Form of the weights.
    pub precision: WeightType,
    /// CRC-32C of the file: names these very bytes.
    pub file_crc: u32,
    /// Version of the model: a later one replaces an earlier one.
    pub model_version: u32,
    /// Multiply-accumulates of one tile.
    pub macs: u64,
    /// Bytes of the arena in use, the handle included.
    pub arena_bytes: u64,
    /// Bit i is set if stage i computes its hidden maps twice, to save memory.
    pub two_passes: u32,
    /// Name of the kernels, for instance "scalar".
    pub kernels: [c_char; 16],
    /// Name of the model.
    pub name: [c_char; 33],
    /// Embeddings may be compared only within one space.
    pub embedding_space: [c_char; 33],
}

/// One band of a model. Texts are ended by a zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BandInfo {
    /// Its name, for instance "B4".
    pub name: [c_char; 9],
    /// What a stored value counts.
    pub unit: [c_char; 25],
    /// 1 if there is a value that means "no data".
    pub has_no_data: u8,
    /// 1 if it is known at which value the sensor is saturated.
    pub has_saturation: u8,
    /// Subtracted from a stored value.
    pub mean: f32,
    /// Divides the difference.
    pub std: f32,
    /// The value that means "no data", if there is one.
    pub no_data: f32,
    /// The value at and above which the sensor is saturated, if it is known.
    pub saturation: f32,
}

/// An opened model. Lies at the beginning of the arena given to nadir_open.
pub struct Handle {
    model: Model<'static>,
    state: State,
}

/// What changes, and what says that the handle is one.
struct State {
    tag: usize,
    arena_bytes: usize,
    encoder: Encoder<'static>,
    run: Option<Pending>,
    scrub: Scrub,
}

/// A run between two steps.
#[derive(Clone, Copy)]
struct Pending {
    tile_type: u32,
    tile: *const c_void,
    values: usize,
    embedding: *mut f32,
    dimension: usize,
    at: Cursor,
}

/// The tag of a handle that lies at this address.
fn tag(handle: *const Handle) -> usize {
    handle.addr() ^ 0x4e44_5201
}

/// Checks that a handle is one that was opened here.
///
/// # Safety
/// `handle` is null, or points to [`NADIR_HANDLE_BYTES`] readable bytes.
unsafe fn check(handle: *const Handle) -> Result<(), Failure> {
    Span::of(handle, 1, "encoder")?;
    // SAFETY: not null, aligned, readable by the caller's promise; any bits are a number.
    let found = unsafe { addr_of!((*handle).state.tag).read_volatile() };
    if found == tag(handle) { Ok(()) } else { Err(Failure::new(Status::NotOpen, "encoder", handle.addr() as u64, 0)) }
}

/// The model of a handle.
///
/// # Safety
/// As [`check`]; nobody closes or reopens the handle during `'a`.
pub(super) unsafe fn model<'a>(handle: *const Handle) -> Result<&'a Model<'static>, Failure> {
    // SAFETY: the tag says that `nadir_open` has written the handle; the model is only read since.
    unsafe {
        check(handle)?;
        Ok(&*addr_of!((*handle).model))
    }
}

/// The arena of an open handle.
///
/// # Safety
/// As [`model`].
pub(super) unsafe fn span(handle: *const Handle) -> Result<Span, Failure> {
    // SAFETY: the tag says that the handle is written.
    let bytes = unsafe {
        check(handle)?;
        addr_of!((*handle).state.arena_bytes).read()
    };
    Span::of(handle.cast::<u8>(), bytes, "arena")
}

/// Parses `model` and says how many bytes of `budget` its encoder takes, the handle included.
fn configure<'m>(model: &'m Model<'m>, budget: usize) -> Result<(Encoder<'m>, usize), Failure> {
    let scratch = budget.saturating_sub(NADIR_HANDLE_BYTES);
    let with_handle = |bytes: u64| bytes.saturating_add(NADIR_HANDLE_BYTES as u64);
    let encoder = Encoder::new(model).within(scratch).map_err(Failure::from).map_err(|failure| Failure {
        found: budget as u64,
        expected: with_handle(failure.expected),
        ..failure
    })?;
    Ok((encoder, encoder.arena_bytes().saturating_add(NADIR_HANDLE_BYTES)))
}

/// How many bytes an arena of at most `budget` bytes must have for this model.
///
/// An int8 model can do with less memory if it computes more: of all schedules within the budget this is the one that computes least.
/// SIZE_MAX as budget gives the bytes of the fastest; a budget of 0 fails, and `error->expected` then has the fewest possible.
///
/// `model`: a whole .nadir file, at a multiple of NADIR_MODEL_ALIGNMENT. `bytes`: the result. `error`: may be null.
///
/// # Safety
/// `model` points to `model_bytes` readable bytes; `bytes` and `error`, if not null, to writable places of their types.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_required_bytes(
    model: *const u8,
    model_bytes: usize,
    budget: usize,
    bytes: *mut usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        let required = || {
            Span::of(bytes, 1, "bytes")?;
            let model = Model::parse(array(model, model_bytes, "model")?)?;
            put(bytes, configure(&model, budget)?.1, "bytes").map(|()| Status::Ok)
        };
        finish(error, required())
    }
}

/// Checks a model and opens it in an arena, with the fastest kernels of this processor and the fastest schedule that fits.
///
/// The bytes of the model are borrowed, not copied: they stay where and what they are until the encoder is closed. The arena belongs to
/// the encoder until then, begins at a multiple of NADIR_ARENA_ALIGNMENT, and may hold anything before. `encoder`: the result, the
/// arena's address; null after an error. `error`: may be null.
///
/// # Safety
/// The pointers point to so many readable (`model`) or writable bytes; `encoder` and `error`, if not null, to writable places.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_open(
    model: *const u8,
    model_bytes: usize,
    arena: *mut u8,
    arena_bytes: usize,
    encoder: *mut *mut Handle,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        let opened = || {
            Span::of(encoder, 1, "encoder")?.apart_from(&Span::of(arena, arena_bytes, "arena")?)?;
            put(encoder, core::ptr::null_mut(), "encoder")?;
            let handle = open(model, model_bytes, arena, arena_bytes)?;
            put(encoder, handle, "encoder").map(|()| Status::Ok)
        };
        finish(error, opened())
    }
}

/// See [`nadir_open`].
///
/// # Safety
/// As [`nadir_open`].
unsafe fn open(file: *const u8, file_bytes: usize, arena: *mut u8, arena_bytes: usize) -> Result<*mut Handle, Failure> {
    let place = Span::of(arena, arena_bytes, "arena")?;
    place.apart_from(&Span::of(file, file_bytes, "model")?)?;
    if arena.is_null() {
        return Err(Failure::new(Status::NullPointer, "arena", 0, 0));
    }
    if !arena.addr().is_multiple_of(NADIR_ARENA_ALIGNMENT) {
        let (found, expected) = (arena.addr() as u64, NADIR_ARENA_ALIGNMENT as u64);
        return Err(Failure::new(Status::Misaligned, "arena", found, expected));
    }
    // SAFETY: the bytes are readable for as long as the handle is open, by the caller's promise.
    let model: Model<'static> = Model::parse(unsafe { array(file, file_bytes, "model")? })?;
    // Nothing is written before it is known that everything fits.
    let (_, needed) = configure(&model, arena_bytes)?;
    let handle = arena.cast::<Handle>();
    // SAFETY: `configure` found that the arena holds a handle and the scratch memory behind it; it is aligned for both, and the
    // caller's to give. The model is borrowed from its place in the arena, where it is only read from here on.
    unsafe {
        arena.write_bytes(0, needed);
        addr_of_mut!((*handle).model).write(model);
        let model: &'static Model<'static> = &*addr_of!((*handle).model);
        let (encoder, _) = configure(model, arena_bytes)?;
        let state = State { tag: tag(handle), arena_bytes: needed, encoder, run: None, scrub: Scrub::new(model) };
        addr_of_mut!((*handle).state).write(state);
    }
    Ok(handle)
}

/// Ends the use of an encoder: model and arena are the caller's again.
///
/// # Safety
/// `encoder` comes from nadir_open, and its arena still stands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_close(encoder: *mut Handle) -> Status {
    // SAFETY: the handle was opened here; a tag is a number.
    unsafe {
        let closed = check(encoder).map(|()| {
            addr_of_mut!((*encoder).state.tag).write_volatile(0);
            Status::Ok
        });
        finish(core::ptr::null_mut(), closed)
    }
}

/// Chooses kernels by name, for instance "scalar", instead of the fastest; embeddings of int8 models do not change. Ends a run.
///
/// `name` has `name_bytes` characters, without a final zero.
///
/// # Safety
/// `encoder` comes from nadir_open; `name` points to `name_bytes` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_use_kernels(encoder: *mut Handle, name: *const c_char, name_bytes: usize) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let chosen = || {
            check(encoder)?;
            let name = core::str::from_utf8(array(name.cast(), name_bytes, "name")?).unwrap_or("");
            let state = addr_of_mut!((*encoder).state);
            (*state).encoder = (*state).encoder.with_kernels(name)?;
            (*state).run = None;
            Ok(Status::Ok)
        };
        finish(core::ptr::null_mut(), chosen())
    }
}

/// What the model of an encoder is.
///
/// # Safety
/// `encoder` comes from nadir_open; `info`, if not null, points to a writable place outside the arena.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_describe(encoder: *const Handle, info: *mut ModelInfo) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let described = || {
            let model = model(encoder)?;
            Span::of(info, 1, "info")?.apart_from(&span(encoder)?)?;
            let (architecture, state) = (model.architecture(), addr_of!((*encoder).state));
            let passes = (*state).encoder.passes().into_iter().zip(0u32..);
            let value = ModelInfo {
                tile_side: architecture.tile_size.into(),
                bands: model.bands().len() as u32,
                tile_values: model.tile_len() as u32,
                embedding_dimension: model.embedding_dimension() as u32,
                precision: match model.precision() {
                    Precision::F32 => WeightType::F32,
                    Precision::F16 => WeightType::F16,
                    Precision::Int8 => WeightType::Int8,
                },
                file_crc: model.file_crc(),
                model_version: model.model_version(),
                macs: architecture.macs(model.bands().len()),
                arena_bytes: (*state).arena_bytes as u64,
                two_passes: passes.filter(|(p, _)| *p == Passes::Two).fold(0, |bits, (_, i)| bits | 1 << i),
                kernels: text((*state).encoder.kernels()),
                name: text(model.name()),
                embedding_space: text(model.embedding_space()),
            };
            put(info, value, "info").map(|()| Status::Ok)
        };
        finish(core::ptr::null_mut(), described())
    }
}

/// Band `index` of the model, from 0, in the order of a tile's bands.
///
/// # Safety
/// `encoder` comes from nadir_open; `info`, if not null, points to a writable place outside the arena.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_band(encoder: *const Handle, index: u32, info: *mut BandInfo) -> Status {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        let described = || {
            let bands = model(encoder)?.bands();
            Span::of(info, 1, "info")?.apart_from(&span(encoder)?)?;
            let band = bands.get(index as usize);
            let band = band.ok_or(Failure::new(Status::Index, "index", index.into(), bands.len() as u64))?;
            let value = BandInfo {
                name: text(&band.name),
                unit: text(&band.unit),
                has_no_data: band.no_data.is_some().into(),
                has_saturation: band.saturation.is_some().into(),
                mean: band.mean,
                std: band.std,
                no_data: band.no_data.unwrap_or(0.0),
                saturation: band.saturation.unwrap_or(0.0),
            };
            put(info, value, "info").map(|()| Status::Ok)
        };
        finish(core::ptr::null_mut(), described())
    }
}

/// Embeds one tile. Ends a run that was started before.
///
/// `tile`: `values` values of `tile_type` (a nadir_tile_type), [bands, height, width] in the order of the model's bands.
/// `embedding`: `dimension` values, exactly the model's. `error`: may be null.
/// Nothing is written to `embedding` unless NADIR_STATUS_OK is returned.
///
/// # Safety
/// `encoder` comes from nadir_open; the other pointers, if not null, point to so many readable or writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_embed(
    encoder: *mut Handle,
    tile_type: u32,
    tile: *const c_void,
    values: usize,
    embedding: *mut f32,
    dimension: usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the functions called.
    unsafe {
        let embedded = || {
            let pending = Pending { tile_type, tile, values, embedding, dimension, at: Cursor::START };
            begin(encoder, pending)?;
            loop {
                match advance(encoder) {
                    Ok(Status::More) => {}
                    end => return end,
                }
            }
        };
        finish(error, embedded())
    }
}

/// Begins to embed a tile that nadir_step then carries on; the arguments are those of nadir_embed.
///
/// Tile and embedding stay where they are, and the tile what it is, until the last step. Ends a run that was started before.
///
/// # Safety
/// As nadir_embed, until the last step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_start(
    encoder: *mut Handle,
    tile_type: u32,
    tile: *const c_void,
    values: usize,
    embedding: *mut f32,
    dimension: usize,
    error: *mut ErrorDetail,
) -> Status {
    // SAFETY: the caller's promise is that of the function called.
    unsafe {
        let pending = Pending { tile_type, tile, values, embedding, dimension, at: Cursor::START };
        finish(error, begin(encoder, pending).map(|()| Status::More))
    }
}

/// Does the next step of a run: at most a strip of 64 pixels of one group of layers.
///
/// Returns NADIR_STATUS_MORE while there is more to do, NADIR_STATUS_OK when the embedding is written. A run may rest between two
/// steps for as long as it likes, and steps change no bit of the embedding. `error`: may be null.
///
/// # Safety
/// `encoder` comes from nadir_open; tile and embedding of nadir_start still stand.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nadir_step(encoder: *mut Handle, error: *mut ErrorDetail) -> Status {
    // SAFETY: the caller's promise is that of the function called.
    unsafe { finish(error, advance(encoder)) }
}

/// Checks everything about a run and notes it.
///
/// # Safety
/// As [`nadir_embed`].
unsafe fn begin(handle: *mut Handle, pending: Pending) -> Result<(), Failure> {
    // SAFETY: the handle is checked; the rest is the caller's promise.
    unsafe {
        check(handle)?;
        let state = addr_of_mut!((*handle).state);
        (*state).run = None;
        let tile = tile_span(pending.tile_type, pending.tile, pending.values)?;
        let embedding = Span::of(pending.embedding, pending.dimension, "embedding")?;
        let (arena, file) = (span(handle)?, one(addr_of!((*handle).model), "encoder")?.bytes());
        let file = Span::of(file.as_ptr(), file.len(), "model")?;
        tile.apart_from(&arena)?;
        tile.apart_from(&embedding)?;
        embedding.apart_from(&arena)?;
        embedding.apart_from(&file)?;
        resume(handle, &pending, |_| ())?;
        (*state).run = Some(pending);
    }
    Ok(())
}

/// Does one step of the run that was begun.
///
/// # Safety
/// As [`nadir_step`].
unsafe fn advance(handle: *mut Handle) -> Result<Status, Failure> {
    // SAFETY: the handle is checked; what the run points to was checked by `begin` and still stands, by the caller's promise.
    unsafe {
        check(handle)?;
        let state = addr_of_mut!((*handle).state);
        let pending = (*state).run.take().ok_or(Failure::new(Status::NotStarted, "run", 0, 0))?;
        let at = resume(handle, &pending, |run| {
            run.step()?;
            Ok::<_, Failure>(run.cursor())
        })??;
        (*state).run = at.map(|at| Pending { at, ..pending });
        Ok(if at.is_some() { Status::More } else { Status::Ok })
    }
}

/// The scrub of a handle, to be carried on.
///
/// # Safety
/// As [`model`]; nobody else uses the handle during `'a`.
pub(super) unsafe fn scrub<'a>(handle: *mut Handle) -> Result<&'a mut Scrub, Failure> {
    // SAFETY: the tag says that the handle is written; the scrub is nobody else's.
    unsafe {
        check(handle)?;
        Ok(&mut *addr_of_mut!((*handle).state.scrub))
    }
}

/// The encoder of a handle and its scratch memory; ends a run.
///
/// # Safety
/// As [`model`]; nobody else uses the handle during `'a`.
pub(super) unsafe fn idle<'a>(handle: *mut Handle) -> Result<(Encoder<'static>, &'a mut [u8]), Failure> {
    // SAFETY: the tag says that the handle is written; the scratch memory lies behind it, within the arena.
    unsafe {
        check(handle)?;
        let state = addr_of_mut!((*handle).state);
        (*state).run = None;
        Ok(((*state).encoder, scratch(handle)?))
    }
}

/// The scratch memory of a handle.
///
/// # Safety
/// As [`idle`], the handle checked.
unsafe fn scratch<'a>(handle: *mut Handle) -> Result<&'a mut [u8], Failure> {
    // SAFETY: it lies behind the handle, within the arena, and nothing else borrows it.
    unsafe {
        let bytes = addr_of!((*handle).state.arena_bytes).read().saturating_sub(NADIR_HANDLE_BYTES);
        array_mut(handle.cast::<u8>().add(NADIR_HANDLE_BYTES), bytes, "arena")
    }
}

/// Puts a run together again and lets `work` have it.
///
/// # Safety
/// As [`nadir_step`], the handle checked.
unsafe fn resume<T>(
    handle: *mut Handle,
    pending: &Pending,
    work: impl FnOnce(&mut crate::encoder::Run<'_, '_>) -> T,
) -> Result<T, Failure> {
    // SAFETY: the scratch memory lies behind the handle, within the arena, and nothing else borrows it; the spans of tile, embedding
    // and arena do not overlap. An f32 may have any bits.
    unsafe {
        let state = addr_of!((*handle).state);
        let tile: Tile<'_> = tile(pending.tile_type, pending.tile, pending.values)?;
        let scratch = scratch(handle)?;
        let embedding = array_mut(pending.embedding, pending.dimension, "embedding")?;
        let mut run = (*state).encoder.resume(tile, scratch, embedding, pending.at)?;
        Ok(work(&mut run))
    }
}
