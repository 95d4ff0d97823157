//! The C functions as C calls them, against the same calls in Rust.
extern crate std;

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::Tile;
use crate::encoder::Encoder;
use crate::guard::{self, SelfTest, TileKind};
use crate::model::synthetic::{Aligned, equipped, tiny, tiny_patchify};
use crate::model::{Model, Precision};
use crate::triage::products::Product;
use crate::triage::prototypes;
use crate::triage::record::{Message, Rung};

/// Dimension of the embeddings of [`tiny`].
const VALUES: usize = 7;
/// Steps for which Miri has time: what is unsafe here happens in each of them.
const MIRI_STEPS: usize = 1;

/// A value whose bytes are all zero.
fn blank<T>() -> T {
    // SAFETY: only used for structs of plain numbers, and enums of which 0 is a value.
    unsafe { std::mem::zeroed() }
}

fn words(text: &[c_char]) -> &CStr {
    // SAFETY: fixed texts of the interface are ended by a zero.
    unsafe { CStr::from_ptr(text.as_ptr()) }
}

/// A model, an arena and an encoder in it.
struct Opened {
    file: Aligned,
    arena: Aligned,
    encoder: *mut Handle,
}

fn open(precision: Precision, budget: usize) -> Opened {
    open_file(tiny(precision), budget)
}

fn open_file(file: Aligned, budget: usize) -> Opened {
    let (bytes, mut encoder, mut error) = (budget.min(1 << 17), null_mut(), blank::<ErrorDetail>());
    // SAFETY: all pointers are to local variables of the lengths given.
    unsafe {
        let mut arena = Aligned::filled(bytes, 0xa5);
        let status =
            nadir_open(file.as_ptr(), file.len(), arena.bytes_mut().as_mut_ptr(), bytes, &mut encoder, &mut error);
        assert_eq!(status, Status::Ok, "{error:?}");
        Opened { file, arena, encoder }
    }
}

fn pixels() -> Vec<u8> {
    (0..2 * 16 * 16u32).map(|i| (i * 37 % 251) as u8).collect()
}

fn expected(file: &[u8]) -> Vec<u32> {
    let model = Model::parse(file).unwrap();
    let encoder = Encoder::new(&model);
    let (mut arena, mut out) = (Aligned::filled(encoder.arena_bytes(), 0), vec![0.0; model.embedding_dimension()]);
    encoder.embed(Tile::U8(&pixels()), arena.bytes_mut(), &mut out).unwrap();
    out.iter().map(|v| v.to_bits()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The first steps of two runs, the second of which ends the first, and the end of the encoder.
fn some_steps(it: &Opened) {
    let (tile, mut out) = (pixels(), [0f32; VALUES]);
    // SAFETY: the encoder is open; tile and result are local variables.
    unsafe {
        for _ in 0..2 {
            let tile = tile.as_ptr().cast();
            assert_eq!(nadir_start(it.encoder, 0, tile, 512, out.as_mut_ptr(), VALUES, null_mut()), Status::More);
            for _ in 0..MIRI_STEPS {
                assert_eq!(nadir_step(it.encoder, null_mut()), Status::More);
            }
        }
        assert_eq!(nadir_close(it.encoder), Status::Ok);
        assert_eq!(nadir_step(it.encoder, null_mut()), Status::NotOpen);
    }
}

#[test]
fn embeddings_are_those_of_rust_at_once_and_in_steps() {
    if cfg!(miri) {
        // Other precisions differ in the engine, which is safe code.
        some_steps(&open(Precision::Int8, usize::MAX));
        return some_steps(&open_file(tiny_patchify(Precision::Int8), usize::MAX));
    }
    let precisions = [Precision::Int8, Precision::F32, Precision::F16];
    for (precision, patchify) in precisions.into_iter().flat_map(|p| [(p, false), (p, true)]) {
        let file = if patchify { tiny_patchify(precision) } else { tiny(precision) };
        let it = open_file(file, usize::MAX);
        let (tile, expected) = (pixels(), expected(&it.file));
        let (mut out, mut steps) = ([0f32; VALUES], 0);
        // SAFETY: the encoder is open; tile and result are local variables.
        unsafe {
            let tile = tile.as_ptr().cast();
            assert_eq!(nadir_start(it.encoder, 0, tile, 512, out.as_mut_ptr(), VALUES, null_mut()), Status::More);
            loop {
                steps += 1;
                match nadir_step(it.encoder, null_mut()) {
                    Status::More => assert_eq!(out, [0.0; VALUES]),
                    end => break assert_eq!(end, Status::Ok),
                }
            }
            assert_eq!(bits(&out), expected);
            assert_eq!(nadir_step(it.encoder, null_mut()), Status::NotStarted);
            let mut again = [0f32; VALUES];
            assert_eq!(nadir_embed(it.encoder, 0, tile, 512, again.as_mut_ptr(), VALUES, null_mut()), Status::Ok);
            assert_eq!(bits(&again), expected);
            assert_eq!(nadir_close(it.encoder), Status::Ok);
            assert_eq!(nadir_close(it.encoder), Status::NotOpen);
        }
        assert!(steps > 1 || precision != Precision::Int8);
    }
}

#[test]
fn less_memory_gives_the_same_bits() {
    let file = tiny(Precision::Int8);
    let (mut most, mut error) = (0, blank::<ErrorDetail>());
    // SAFETY: all pointers are to local variables of the lengths given.
    unsafe {
        assert_eq!(nadir_required_bytes(file.as_ptr(), file.len(), usize::MAX, &mut most, null_mut()), Status::Ok);
        let status = nadir_required_bytes(file.as_ptr(), file.len(), 0, &mut most, &mut error);
        assert_eq!((status, error.found), (Status::ArenaTooSmall, 0));
    }
    let (least, mut bytes) = (error.expected as usize, 0);
    // SAFETY: as above.
    let status = unsafe { nadir_required_bytes(file.as_ptr(), file.len(), least + 1, &mut bytes, null_mut()) };
    assert_eq!((status, bytes), (Status::Ok, least));
    assert!(least < most && least > NADIR_HANDLE_BYTES);
    let it = open(Precision::Int8, least);
    assert_eq!(it.arena.len(), least);
    let (mut info, mut out) = (blank::<ModelInfo>(), [0f32; VALUES]);
    // SAFETY: the encoder is open; the places are local variables.
    unsafe {
        assert_eq!(nadir_describe(it.encoder, &mut info), Status::Ok);
        assert_eq!((info.arena_bytes, info.two_passes > 0), (least as u64, true));
        if cfg!(miri) {
            return;
        }
        let tile = pixels();
        let status = nadir_embed(it.encoder, 0, tile.as_ptr().cast(), 512, out.as_mut_ptr(), VALUES, null_mut());
        assert_eq!(status, Status::Ok);
    }
    assert_eq!(bits(&out), expected(&it.file));
}

#[test]
fn models_are_described() {
    let it = open(Precision::Int8, usize::MAX);
    let (mut info, mut band) = (blank::<ModelInfo>(), blank::<BandInfo>());
    // SAFETY: the encoder is open; the places are local variables.
    unsafe {
        assert_eq!(nadir_describe(it.encoder, &mut info), Status::Ok);
        assert_eq!(
            [info.tile_side, info.bands, info.tile_values, info.embedding_dimension],
            [16, 2, 512, VALUES as u32]
        );
        assert_eq!(
            (info.precision, words(&info.name), words(&info.embedding_space)),
            (WeightType::Int8, c"tiny", c"nowhere")
        );
        assert_eq!(info.model_version, 3);
        assert_eq!(nadir_band(it.encoder, 1, &mut band), Status::Ok);
        assert_eq!((words(&band.name), words(&band.unit)), (c"B3", c"grey level"));
        assert_eq!((band.mean, band.std, band.has_no_data, band.has_saturation), (90.0, 40.0, 1, 0));
        assert_eq!(nadir_band(it.encoder, 2, &mut band), Status::Index);
        assert_eq!(nadir_use_kernels(it.encoder, c"scalar".as_ptr(), 6), Status::Ok);
        assert_eq!(nadir_use_kernels(it.encoder, c"abacus".as_ptr(), 6), Status::NoSuchKernels);
        assert_eq!(nadir_use_kernels(it.encoder, c"\xff".as_ptr(), 1), Status::NoSuchKernels);
        // Into the encoder itself: refused.
        let inside = it.encoder.byte_add(64).cast::<ModelInfo>();
        assert_eq!(nadir_describe(it.encoder, inside), Status::Overlap);
    }
}

#[test]
fn bad_arguments_are_refused_and_named() {
    let it = open(Precision::Int8, usize::MAX);
    let (tile, mut out, mut error) = (pixels(), [7f32; VALUES + 1], blank::<ErrorDetail>());
    let (good_tile, good_out) = (tile.as_ptr().cast::<c_void>(), out.as_mut_ptr());
    let arena = it.encoder.cast::<u8>();
    let arena_bytes = it.arena.len();
    // SAFETY: what may be dereferenced is a local variable of the length given; the functions must not touch the rest.
    unsafe {
        let mut refused = |encoder, kind, tile, values, out, dimension, status, what: &CStr| {
            for start in [false, true] {
                let found = if start {
                    nadir_start(encoder, kind, tile, values, out, dimension, &mut error)
                } else {
                    nadir_embed(encoder, kind, tile, values, out, dimension, &mut error)
                };
                assert_eq!((found, error.status, words(&error.what)), (status, status, what));
                assert_eq!(nadir_step(it.encoder, null_mut()), Status::NotStarted);
            }
        };
        let (encoder, elsewhere) = (it.encoder, [0u64; 512]);
        refused(null_mut(), 0, good_tile, 512, good_out, VALUES, Status::NullPointer, c"encoder");
        refused(elsewhere.as_ptr().cast_mut().cast(), 0, good_tile, 512, good_out, VALUES, Status::NotOpen, c"encoder");
        refused(encoder.byte_add(1), 0, good_tile, 512, good_out, VALUES, Status::Misaligned, c"encoder");
        refused(encoder, 3, good_tile, 512, good_out, VALUES, Status::UnknownValue, c"tile_type");
        refused(encoder, 0, null(), 512, good_out, VALUES, Status::NullPointer, c"tile");
        refused(encoder, 0, good_tile, 511, good_out, VALUES, Status::Length, c"tile");
        refused(
            encoder,
            1,
            good_tile.byte_add(good_tile.align_offset(2) ^ 1),
            512,
            good_out,
            VALUES,
            Status::Misaligned,
            c"tile",
        );
        refused(encoder, 0, good_tile, usize::MAX, good_out, VALUES, Status::Length, c"tile");
        refused(encoder, 0, arena.cast(), 512, good_out, VALUES, Status::Overlap, c"tile");
        refused(encoder, 0, good_out.cast(), 512, good_out, VALUES, Status::Overlap, c"tile");
        refused(encoder, 0, good_tile, 512, null_mut(), VALUES, Status::NullPointer, c"embedding");
        refused(encoder, 0, good_tile, 512, good_out, VALUES - 1, Status::Length, c"embedding");
        refused(encoder, 0, good_tile, 512, good_out.byte_add(2), VALUES, Status::Misaligned, c"embedding");
        refused(encoder, 0, good_tile, 512, arena.cast(), VALUES, Status::Overlap, c"embedding");
        refused(encoder, 0, good_tile, 512, it.file.as_ptr().cast_mut().cast(), VALUES, Status::Overlap, c"embedding");
    }
    assert_eq!(out, [7.0; VALUES + 1]);

    // SAFETY: as above.
    unsafe {
        let (file, bytes) = (it.file.as_ptr(), it.file.len());
        let mut handle = it.encoder;
        let mut refused = |file, bytes, arena, arena_bytes, status, what: &CStr| {
            let found = nadir_open(file, bytes, arena, arena_bytes, &mut handle, &mut error);
            assert_eq!((found, words(&error.what), handle), (status, what, null_mut()));
        };
        refused(null(), bytes, arena, arena_bytes, Status::NullPointer, c"model");
        refused(file.add(4), bytes - 4, arena, arena_bytes, Status::Misaligned, c"model");
        refused(file, bytes - 1, arena, arena_bytes, Status::ModelLength, c"model");
        refused(file, 8, arena, arena_bytes, Status::ModelLength, c"model");
        refused(file, bytes, null_mut(), arena_bytes, Status::NullPointer, c"arena");
        refused(file, bytes, null_mut(), 0, Status::NullPointer, c"arena");
        refused(file, bytes, arena.add(16), arena_bytes - 16, Status::Misaligned, c"arena");
        refused(file, bytes, file.cast_mut(), bytes, Status::Overlap, c"arena");
        refused(file, bytes, arena, 64, Status::ArenaTooSmall, c"arena");
        assert_eq!(nadir_open(file, bytes, arena, arena_bytes, null_mut(), &mut error), Status::NullPointer);
        assert_eq!(nadir_open(file, bytes, arena, arena_bytes, arena.cast(), &mut error), Status::Overlap);
        assert_eq!(nadir_required_bytes(file, bytes, usize::MAX, null_mut(), &mut error), Status::NullPointer);
        // The first encoder is untouched by all this.
        assert_eq!(nadir_close(it.encoder), Status::Ok);
    }
}

#[test]
fn a_moved_handle_is_noticed() {
    let it = open(Precision::F32, usize::MAX);
    let mut copy = Aligned::filled(it.arena.len(), 0);
    let mut info = blank::<ModelInfo>();
    // SAFETY: both arenas are as large as each other, and local.
    unsafe {
        let moved = copy.bytes_mut().as_mut_ptr();
        it.encoder.cast::<u8>().copy_to(moved, it.arena.len());
        assert_eq!(nadir_describe(moved.cast(), &mut info), Status::NotOpen);
        assert_eq!(nadir_describe(it.encoder, &mut info), Status::Ok);
    }
}

#[test]
fn tiles_are_scored_chosen_and_recorded() {
    let it = open(Precision::Int8, usize::MAX);
    let header = prototypes::Header {
        embedding_space: "nowhere",
        dimension: VALUES as u16,
        prototypes: 2,
        bank: 0,
        midpoint: 0.0,
        temperature: 0.1,
        novel_from: 0.5,
    };
    let vectors: Vec<i8> = (1..=14).map(|v| if v % 5 < 3 { v } else { -v }).collect();
    let write = |header: prototypes::Header<'_>| {
        let labels = [(4, true), (9, false)];
        let table =
            prototypes::Table { header, centre: &[0.25; VALUES], labels: &labels, vectors: &vectors, bank: &[] };
        let mut bytes = vec![0; table.max_bytes()];
        let len = table.write(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    };
    let (good, other) = (write(header), write(prototypes::Header { embedding_space: "elsewhere", ..header }));
    let mut table = PrototypeTable { words: [0; 24] };
    let (mut scores, mut quality, mut policy) = (blank::<Scores>(), blank::<Quality>(), blank::<Policy>());
    let (mut error, mut worth) = (blank::<ErrorDetail>(), 0f32);
    let embedding = [0.5, 1.0, -2.0, 0.25, 3.0, 1.0, 0.0];
    let mut tile = pixels();
    tile[..128].fill(0);
    // SAFETY: the encoder is open; all other pointers are to local variables of the lengths given.
    unsafe {
        let tile = tile.as_ptr().cast();
        assert_eq!(nadir_assess(it.encoder, 0, tile, 512, 600, 300, &mut quality, &mut error), Status::Ok);
        assert_eq!((quality.pixels, quality.saturated, quality.verdict), (256, 0, Verdict::Pass));
        assert!(quality.no_data >= 128 && quality.no_data_permille >= 500);
        assert_eq!(nadir_assess(it.encoder, 0, tile, 512, 400, 300, &mut quality, null_mut()), Status::Ok);
        assert_eq!(quality.verdict, Verdict::NoData);
        assert_eq!(nadir_assess(it.encoder, 0, tile, 511, 500, 300, &mut quality, &mut error), Status::Length);

        assert_eq!(nadir_score(&table, embedding.as_ptr(), VALUES, &mut scores, &mut error), Status::NotOpen);
        let mut opened =
            |bytes: &[u8]| nadir_prototypes_open(it.encoder, bytes.as_ptr(), bytes.len(), &mut table, &mut error);
        assert_eq!(opened(&other), Status::PrototypesMismatch);
        assert_eq!(opened(&good[..good.len() - 1]), Status::Prototypes);
        assert_eq!(opened(&[]), Status::Prototypes);
        assert_eq!(opened(&good), Status::Ok);
        assert_eq!(nadir_score(&table, embedding.as_ptr(), VALUES - 1, &mut scores, &mut error), Status::Length);
        let nan = [f32::NAN; VALUES];
        assert_eq!(nadir_score(&table, nan.as_ptr(), VALUES, &mut scores, &mut error), Status::NotFinite);
        assert_eq!(nadir_score(&table, embedding.as_ptr(), VALUES, &mut scores, &mut error), Status::Ok);
        let rust = prototypes::Prototypes::parse(&good).unwrap();
        let score = rust.score(&rust.query(&embedding).unwrap());
        assert!((scores.margin - score.margin).abs() <= 5e-5 && scores.nearest == score.nearest);
        assert_eq!(scores.probability, rust.probability(scores.margin));

        assert_eq!(nadir_policy_default(&mut policy), Status::Ok);
        assert_eq!(nadir_worth(&policy, 0, &scores, &mut worth), Status::Ok);
        assert!(worth > 0.0);
        assert_eq!(nadir_worth(&policy, 1, null(), &mut worth), Status::Ok);
        assert_eq!(worth, 0.0);
        assert_eq!(nadir_worth(&policy, 3, null(), &mut worth), Status::UnknownValue);
    }

    let candidates = [0.1f32, 1.0, 0.5].map(|worth| TileChoice { worth, bytes: [0, 20, 30, NADIR_NO_RUNG, 1000] });
    let (mut memory, mut rungs, mut sum) = ([0u64; 30], [9u8; 3], blank::<ChoiceSum>());
    let mut chosen = |budget, memory_bytes, rungs: *mut u8| {
        let memory = memory.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            nadir_select(&policy, candidates.as_ptr(), 3, budget, memory, memory_bytes, rungs, &mut sum, &mut error)
        }
    };
    assert_eq!(chosen(1100, 239, rungs.as_mut_ptr()), Status::Length);
    assert_eq!(chosen(1100, 240, null_mut()), Status::NullPointer);
    assert_eq!(rungs, [9; 3]);
    assert_eq!(chosen(1100, 240, rungs.as_mut_ptr()), Status::Ok);
    assert_eq!((rungs, sum.bytes <= 1100), ([2, 4, 2], true));

    let (mut frame, mut length) = ([0u8; NADIR_RECORD_BYTES], 0);
    // SAFETY: as above.
    unsafe {
        let mut record = |rung, bytes| {
            nadir_record(&policy, 7, &quality, &scores, rung, frame.as_mut_ptr(), bytes, &mut length, &mut error)
        };
        assert_eq!(record(5, NADIR_RECORD_BYTES), Status::UnknownValue);
        assert_eq!(record(1, 4), Status::Length);
        assert_eq!(record(1, NADIR_RECORD_BYTES), Status::Ok);
    }
    let payload = crate::triage::frame::decode(&mut frame[..length - 1]).unwrap();
    let Some(Message::Record(record)) = crate::triage::frame::parse(payload) else { panic!("not a record") };
    assert_eq!((record.tile, record.rung, record.no_data), (7, Rung::Record, quality.no_data_permille));
    assert_eq!(record.scores.unwrap().margin(), scores.margin);
}

#[test]
fn products_are_those_of_rust() {
    let it = open_file(whole(), usize::MAX);
    let (mut info, mut error) = (blank::<ProductsInfo>(), blank::<ErrorDetail>());
    let embedding = [0.5, 1.0, -2.0, 0.25, 3.0, 1.0, 0.0f32];
    let rust = Model::parse(&it.file).unwrap().products().unwrap();
    // SAFETY: the encoder is open; all other pointers are to local variables of the lengths given.
    unsafe {
        assert_eq!(nadir_products(it.encoder, &mut info, &mut error), Status::Ok);
        assert_eq!(info, ProductsInfo { dimension: VALUES as u32, components: 3, binary_bytes: 1 });
        let mut code = [0x55u8; VALUES + 1];
        let at = code.as_mut_ptr();
        let mut encode = |product, numbers, embedding: *const f32, values, at, bytes| {
            nadir_encode_product(it.encoder, product, numbers, embedding, values, at, bytes, &mut error)
        };
        let good = embedding.as_ptr();
        for (kind, numbers, product) in [
            (NADIR_PRODUCT_INT8, VALUES, Product::Int8(VALUES)),
            (NADIR_PRODUCT_INT8, 4, Product::Int8(4)),
            (NADIR_PRODUCT_BINARY, VALUES, Product::Binary),
            (NADIR_PRODUCT_PCA, 3, Product::Pca(3)),
        ]
        .into_iter()
        .step_by(if cfg!(miri) { 3 } else { 1 })
        {
            let bytes = product.bytes(VALUES);
            let mut expected = vec![0; bytes];
            rust.encode(product, &embedding, &mut expected).unwrap();
            assert_eq!(encode(kind, numbers, good, VALUES, at, bytes), Status::Ok);
            assert_eq!(std::slice::from_raw_parts(at, bytes), expected);
            assert!(expected.iter().any(|&byte| byte != 0));
            assert_eq!(encode(kind, numbers, good, VALUES, at, bytes + 1), Status::Length);
            assert_eq!(encode(kind, numbers, good, VALUES - 1, at, bytes), Status::Length);
            assert_eq!(encode(kind, numbers, [f32::NAN; VALUES].as_ptr(), VALUES, at, bytes), Status::NotFinite);
            assert_eq!(encode(kind, numbers, good, VALUES, null_mut(), bytes), Status::NullPointer);
            assert_eq!(encode(kind, numbers, good, VALUES, it.encoder.cast(), bytes), Status::Overlap);
        }
        assert_eq!(encode(3, 1, good, VALUES, at, 1), Status::UnknownValue);
        assert_eq!(encode(NADIR_PRODUCT_BINARY, 6, good, VALUES, at, 1), Status::Length);
        assert_eq!(encode(NADIR_PRODUCT_PCA, 4, good, VALUES, at, 4), Status::Length);
        assert_eq!(encode(NADIR_PRODUCT_INT8, VALUES, good, VALUES, good.cast_mut().cast(), VALUES), Status::Overlap);
        let without = open(Precision::Int8, usize::MAX);
        assert_eq!(nadir_products(without.encoder, &mut info, &mut error), Status::NoProducts);
    }
}

/// The private key of the tests.
#[cfg(feature = "signature")]
fn signing_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[7; 32])
}

/// A file with everything: its self-test is right, and `signing_key` has signed it.
fn whole() -> Aligned {
    // Made once, as Miri is slow at it.
    static FILE: OnceLock<Aligned> = OnceLock::new();
    Aligned::copy_of(FILE.get_or_init(make_whole))
}

fn make_whole() -> Aligned {
    let plain = tiny(Precision::Int8);
    let model = Model::parse(&plain).unwrap();
    let encoder = Encoder::new(&model);
    let test = SelfTest { tiles: 1, kind: TileKind::U8, seed: 1, hash: [0; 32] };
    let (mut tile, mut arena) = (Aligned::filled(512, 0), Aligned::filled(encoder.arena_bytes(), 0));
    // Miri has no time for an embedding.
    let hash = if cfg!(miri) {
        [0; 32]
    } else {
        test.compute(&encoder, tile.bytes_mut(), arena.bytes_mut(), &mut [0.0; VALUES]).unwrap()
    };
    equipped(&SelfTest { hash, ..test }.to_bytes(), |_model| {
        #[cfg_attr(any(miri, not(feature = "signature")), expect(unused_mut))]
        let mut section = [0; crate::model::SIGNATURE_BYTES];
        #[cfg(all(feature = "signature", not(miri)))]
        {
            use ed25519_dalek::Signer;
            let key = signing_key();
            let id = guard::key_id(&key.verifying_key().to_bytes());
            let signature = key.sign(&guard::signed_message(_model)).to_bytes();
            section.iter_mut().zip(id.iter().chain(&signature)).for_each(|(to, from)| *to = *from);
        }
        section
    })
}

#[test]
fn models_are_repaired_in_place() {
    let (good, mut file) = (whole(), whole());
    let (mut sum, mut error) = (blank::<RepairSum>(), blank::<ErrorDetail>());
    let bytes = file.len();
    let at = file.bytes_mut().as_mut_ptr();
    // SAFETY: all pointers are to local variables of the lengths given.
    unsafe {
        let mut repair = |bytes| nadir_repair(at, bytes, &mut sum, &mut error);
        assert_eq!(repair(bytes), Status::Ok);
        *at.add(200) ^= 4;
        *at.add(24) ^= 1;
        assert_eq!(repair(bytes), Status::Ok);
        *at.add(208) ^= 9;
        *at.add(200) ^= 4;
        assert_eq!(repair(bytes), Status::Unrepairable);
        assert_eq!((sum.bits, sum.offset, sum.bit), (1, 200, 2));
        assert_eq!((error.found, error.expected), (1, 208));
        *at.add(208) ^= 9;
        assert_eq!(nadir_repair(at, bytes - 1, null_mut(), &mut error), Status::ModelLength);
        assert_eq!(nadir_repair(null_mut(), bytes, null_mut(), &mut error), Status::NullPointer);
        assert_eq!(nadir_repair(at, bytes, at.cast(), &mut error), Status::Overlap);
        let mut plain = tiny(Precision::Int8);
        let bytes = plain.len();
        let plain = plain.bytes_mut().as_mut_ptr();
        assert_eq!(nadir_repair(plain, bytes, null_mut(), &mut error), Status::NoParity);
    }
    assert!(*file == *good);
}

#[test]
fn models_are_scrubbed_tested_and_verified() {
    let it = open_file(whole(), usize::MAX);
    let (mut error, mut bytes) = (blank::<ErrorDetail>(), 0);
    let (mut tile, mut out) = (Aligned::filled(512, 0), [0f32; VALUES]);
    // SAFETY: the encoder is open; all other pointers are to local variables of the lengths given.
    unsafe {
        for _ in 0..2 {
            let mut steps = 1;
            while nadir_scrub(it.encoder, &mut error) == Status::More {
                steps += 1;
            }
            assert_eq!((error.status, steps <= 2 * it.file.len() / 4096 + 7), (Status::Ok, true));
        }
        assert_eq!(nadir_self_test_bytes(it.encoder, &mut bytes), Status::Ok);
        assert_eq!(bytes, 512);
        let place = tile.bytes_mut().as_mut_ptr();
        let mut test = |tile, bytes, out| nadir_self_test(it.encoder, tile, bytes, out, VALUES, &mut error);
        assert_eq!(test(place, 511, out.as_mut_ptr()), Status::Length);
        assert_eq!(test(it.encoder.cast(), 512, out.as_mut_ptr()), Status::Overlap);
        assert_eq!(test(place, 512, place.cast()), Status::Overlap);
        assert_eq!(test(place, 512, null_mut()), Status::NullPointer);
        if !cfg!(miri) {
            assert_eq!(test(place, 512, out.as_mut_ptr()), Status::Ok);
        }
        let other = open(Precision::Int8, usize::MAX);
        assert_eq!(nadir_self_test_bytes(other.encoder, &mut bytes), Status::NoSelfTest);
        let mut verify = |encoder: *mut Handle, key: *const u8, least| {
            let status = nadir_verify_signature(encoder, key, least, &mut error);
            (status, error.found)
        };
        assert_eq!(verify(it.encoder, null(), 0).0, Status::NullPointer);
        #[cfg(not(feature = "signature"))]
        assert_eq!(verify(it.encoder, [0; 32].as_ptr(), 0).0, Status::NoVerification);
        #[cfg(all(feature = "signature", not(miri)))]
        {
            let key = signing_key().verifying_key().to_bytes();
            assert_eq!(verify(it.encoder, key.as_ptr(), 3).0, Status::Ok);
            assert_eq!(verify(it.encoder, key.as_ptr(), 4), (Status::RolledBack, 3));
            assert_eq!(verify(other.encoder, key.as_ptr(), 0).0, Status::NotSigned);
            let another = ed25519_dalek::SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
            assert_eq!(verify(it.encoder, another.as_ptr(), 0).0, Status::OtherKey);
            assert_eq!(verify(it.encoder, [0xff; 32].as_ptr(), 0).0, Status::BadKey);
        }
        assert_eq!(nadir_close(it.encoder), Status::Ok);
        assert_eq!(nadir_scrub(it.encoder, &mut error), Status::NotOpen);
    }
}

/// A device behind functions, that fails when told to.
struct Chip {
    bytes: Vec<u8>,
    fails: bool,
}

const CHIP_PAGE: usize = 4096;

impl Chip {
    /// The chip for C; whoever holds it looks at the chip by this pointer only.
    unsafe fn device(chip: *mut Self) -> StorageDevice {
        unsafe extern "C" fn read(chip: *mut c_void, offset: usize, to: *mut u8, length: usize) -> i32 {
            // SAFETY: the context is a chip, and nobody else looks at it; the rest is within the lengths that the library keeps to.
            unsafe { to.copy_from((&(*chip.cast::<Chip>()).bytes)[offset..offset + length].as_ptr(), length) };
            0
        }
        unsafe extern "C" fn erase(chip: *mut c_void, offset: usize, length: usize) -> i32 {
            // SAFETY: as above.
            unsafe { (&mut (*chip.cast::<Chip>()).bytes)[offset..offset + length].fill(0xff) };
            0
        }
        unsafe extern "C" fn write(chip: *mut c_void, offset: usize, from: *const u8, length: usize) -> i32 {
            // SAFETY: as above.
            unsafe {
                if (*chip.cast::<Chip>()).fails {
                    return 7;
                }
                from.copy_to((&mut (*chip.cast::<Chip>()).bytes)[offset..offset + length].as_mut_ptr(), length);
            }
            0
        }
        // SAFETY: the caller's promise.
        let (bytes, context) = (unsafe { &*chip }.bytes.len(), chip.cast());
        StorageDevice {
            context,
            bytes,
            page_bytes: CHIP_PAGE,
            read: Some(read),
            erase: Some(erase),
            write: Some(write),
        }
    }
}

#[test]
fn deltas_are_applied_by_functions_and_in_memory() {
    let (old, new) = (tiny(Precision::Int8), whole());
    let data = Model::parse(&new).unwrap().data().len();
    let delta = crate::delta::tests::whole(&old, &new, data);
    let (mut info, mut error, mut work) = (blank::<DeltaInfo>(), blank::<ErrorDetail>(), blank::<DeltaWork>());
    let room = new.len().next_multiple_of(CHIP_PAGE);
    let mut page = vec![0; CHIP_PAGE];
    let mut chip = Chip { bytes: vec![0; 3 * CHIP_PAGE], fails: false };
    let chip: *mut Chip = &mut chip;
    let mut slot = Aligned::filled(room, 0xff);
    slot.bytes_mut()[..old.len()].copy_from_slice(&old);
    let bytes = |context: *mut u8, bytes| StorageDevice {
        context: context.cast(),
        bytes,
        page_bytes: CHIP_PAGE,
        read: None,
        erase: None,
        write: None,
    };
    // SAFETY: all pointers are to local variables of the lengths given.
    unsafe {
        assert_eq!(nadir_delta_describe(delta.as_ptr(), delta.len(), &mut info, &mut error), Status::Ok);
        assert_eq!((info.old_bytes, info.new_bytes, info.model_version, info.is_signed), (old.len(), new.len(), 3, 0));
        assert_eq!(nadir_delta_describe(delta.as_ptr(), delta.len() - 1, &mut info, &mut error), Status::DeltaDamaged);
        assert_eq!(nadir_delta_describe(old.as_ptr(), old.len(), &mut info, &mut error), Status::Delta);
        let mut damaged = delta.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(nadir_delta_describe(damaged.as_ptr(), damaged.len(), &mut info, &mut error), Status::DeltaDamaged);
        let last = (delta.len() - 128) / 1028;
        assert_eq!((words(&error.what), error.found), (c"block", last as u64));
        assert_eq!(nadir_delta_step(&mut work, &mut error), Status::NotOpen);

        let memory = slot.bytes_mut().as_mut_ptr();
        let memory = bytes(memory, room);
        let half = StorageDevice { read: None, ..Chip::device(chip) };
        let log = Chip::device(chip);
        let mut open = |slot: &StorageDevice, log: *const StorageDevice, page_bytes, key, least| {
            let (page, delta_at) = (page.as_mut_ptr(), delta.as_ptr());
            nadir_delta_open(&mut work, delta_at, delta.len(), slot, log, page, page_bytes, key, least, &mut error)
        };
        assert_eq!(open(&memory, null(), CHIP_PAGE, null(), 0), Status::NullPointer);
        assert_eq!(open(&memory, &half, CHIP_PAGE, null(), 0), Status::NullPointer);
        assert_eq!(open(&memory, &memory, CHIP_PAGE, null(), 0), Status::Overlap);
        assert_eq!(open(&memory, &log, CHIP_PAGE - 64, null(), 0), Status::Length);
        assert_eq!(open(&StorageDevice { bytes: room - 1, ..memory }, &log, CHIP_PAGE, null(), 0), Status::Length);
        assert_eq!(open(&StorageDevice { page_bytes: 100, ..memory }, &log, 100, null(), 0), Status::Misaligned);
        assert_eq!(open(&memory, &log, CHIP_PAGE, null(), 4), Status::RolledBack);
        let unsigned = if cfg!(feature = "signature") { Status::NotSigned } else { Status::NoVerification };
        assert_eq!(open(&memory, &log, CHIP_PAGE, [1; 32].as_ptr(), 0), unsigned);
        assert_eq!(open(&memory, &log, CHIP_PAGE, null(), 3), Status::Ok);
        (*chip).fails = true;
        let mut steps = 0;
        while nadir_delta_step(&mut work, &mut error) == Status::More {}
        assert_eq!((error.status, error.found, words(&error.what)), (Status::Device, 7, c"journal"));
        (*chip).fails = false;
        while nadir_delta_step(&mut work, &mut error) == Status::More {
            steps += 1;
            // Miri has no time for the rest.
            if cfg!(miri) && steps > 10 {
                return;
            }
        }
        assert_eq!((error.status, steps > 10), (Status::Ok, true), "{error:?}");
        assert!(slot[..new.len()] == *new);
        slot.bytes_mut()[100] ^= 1;
        assert_eq!(nadir_delta_step(&mut work, null_mut()), Status::Ok, "done is done");
    }
}
