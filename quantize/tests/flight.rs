//! The file for flight: parity, signature, self-test, checksum columns, scrub.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nadir::encoder::Encoder as Engine;
use nadir::guard::{
    Bit, Damage, Progress, RepairError, SelfTest, SelfTestError, SignatureError, TileKind, key_id, repair,
    signed_message, verify_signature,
};
use nadir::kernels::int8::Int8Kernels;
use nadir::model::parity::{Decoded, decode};
use nadir::model::{
    Architecture, Dtype, END_BYTES, ENTRY_BYTES, KIND_BLOCKS, KIND_COLUMNS, KIND_SELF_TEST, KIND_SIGNATURE, Model,
    PREFIX_BYTES, Place, Precision, crc32c,
};
use nadir::{Tile, guard::Scrub};
use nadir_formats::AlignedBytes;
use nadir_quantize::flight::{Equipment, equip, run_self_test, sign};
use nadir_quantize::testing::{Random, random_encoder, random_int8_model, random_tiles};
use nadir_quantize::writer::{Section, parity_bytes, write_file};
use nadir_quantize::{float, int8, keys};
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn keys_at(name: &str) -> PathBuf {
    root().join("tests/reference/signature").join(name)
}

/// The committed key and its public half.
fn key() -> (ed25519_dalek::SigningKey, [u8; 32]) {
    (keys::read_private(&keys_at("key.pem")).unwrap(), keys::read_public(&keys_at("public.pem")).unwrap())
}

/// A small int8 model with everything that a file can have.
fn small() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let named = Architecture::named("yocto", 16, 8).unwrap();
        let architecture = Architecture { depths: [1, 1, 2, 1], dims: [3, 4, 5, 6], ..named };
        let encoder = random_encoder(architecture, &["B4", "B8A"], 5);
        let plain = AlignedBytes::copy_of(&int8::convert(&encoder, &random_tiles(4, 2, 16, 6)).unwrap());
        let equipment = Equipment { model_version: Some(7), parity: true, key: Some(&key().0) };
        equip(&Model::parse(&plain).unwrap(), &equipment).unwrap()
    })
}

/// The shipped yocto, with parity and signed.
fn yocto() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let shipped = AlignedBytes::read(&root().join("models/yocto-rgb-int8.nadir")).unwrap();
        let model = Model::parse(&shipped).unwrap();
        let with_parity = write_file(model.header(), &Section::all_of(&model), true).unwrap();
        sign(&Model::parse(&AlignedBytes::copy_of(&with_parity)).unwrap(), &key().0).unwrap()
    })
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Makes every CRC and the parity right again, where `good`, the intact file, has them.
fn reseal(file: &mut [u8], good: &[u8]) {
    let data = file.len() / 9 * 8;
    let table = (PREFIX_BYTES + u32_at(good, 12)).next_multiple_of(64);
    let sections = sections(good);
    for (row, &(offset, bytes)) in sections.iter().enumerate() {
        let crc = crc32c(&file[offset..offset + bytes]);
        file[table + row * ENTRY_BYTES + 24..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    let (head, end) = (table + sections.len() * ENTRY_BYTES, data - END_BYTES);
    for (covered, at) in [(head, head + 4), (end, end)] {
        let crc = crc32c(&file[..covered]);
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let (data, parity) = file.split_at_mut(data);
    parity.copy_from_slice(&parity_bytes(data));
}

fn sections(file: &[u8]) -> Vec<(usize, usize)> {
    let aligned = AlignedBytes::copy_of(file);
    let model = Model::parse(&aligned).unwrap();
    let entries = (0..model.section_count()).map(|i| model.section_entry(i).unwrap());
    entries.map(|entry| (entry.offset, entry.bytes())).collect()
}

/// Flips one bit, which the parser must notice and the parity must repair.
fn flip(file: &mut AlignedBytes, good: &[u8], bit: usize) {
    file[bit / 8] ^= 1 << (bit % 8);
    assert!(Model::parse(file).is_err(), "bit {bit}");
    let repaired = repair(file).unwrap();
    let place = Bit { offset: bit / 8, bit: (bit % 8) as u8 };
    assert_eq!((repaired.bits, repaired.first), (1, Some(place)));
    assert!(**file == *good, "bit {bit}");
}

#[test]
fn every_flipped_bit_of_a_small_file_is_found_and_repaired() {
    let good = small();
    let mut file = AlignedBytes::copy_of(good);
    let first = sections(good)[0].0;
    let data = good.len() / 9 * 8;
    for byte in 0..good.len() {
        // All bits of head, ancillary sections, end and parity; of the tensors one a byte.
        let in_tensors = (first..data - 2048).contains(&byte);
        for bit in 0..8 {
            if !in_tensors || bit == byte % 8 {
                flip(&mut file, good, 8 * byte + bit);
            }
        }
    }
}

/// The repair is local to a word: every bit by the word it lies in, and some by the whole file. `examples/bit_flips.rs` does all by the whole file.
#[test]
fn every_flipped_bit_of_the_yocto_is_repaired() {
    let good = yocto();
    let data = good.len() / 9 * 8;
    for (word, &parity) in good[..data].as_chunks().0.iter().zip(&good[data..]) {
        let word = u64::from_le_bytes(*word);
        for bit in 0..64 {
            assert_eq!(decode(word ^ 1 << bit, parity), Decoded::Data(bit));
        }
        for bit in 0..8 {
            assert_eq!(decode(word, parity ^ 1 << bit), Decoded::Parity(bit));
        }
    }
    let mut file = AlignedBytes::copy_of(good);
    (0..8 * good.len()).step_by(2503).for_each(|bit| flip(&mut file, good, bit));
}

#[test]
fn two_flips_of_a_word_are_reported_and_nothing_is_changed_for_the_worse() {
    let good = small();
    let data = good.len() / 9 * 8;
    let mut random = Random::new(3);
    for _ in 0..2000 {
        let word = random.below(data / 8);
        // Bits 64 to 71 are those of the parity byte.
        let (one, other) = (random.below(72), random.below(72));
        let at = |bit: usize| if bit < 64 { (word * 8 + bit / 8, bit % 8) } else { (data + word, bit - 64) };
        let mut file = AlignedBytes::copy_of(good);
        for (byte, bit) in [at(one), at(other)] {
            file[byte] ^= 1 << bit;
        }
        // And a single one elsewhere, which is set right all the same.
        let elsewhere = (word * 8 + 8 + random.below(data / 2)) % data / 8 * 8;
        let single = elsewhere / 8 != word;
        file[elsewhere] ^= u8::from(single);
        let result = repair(&mut file);
        if one == other {
            assert!(result.is_ok() && *file == *good);
            continue;
        }
        let lost = result.unwrap_err();
        let RepairError::Lost { words: 1, offset, repaired } = lost else { panic!("{lost}") };
        assert_eq!((offset, repaired.bits), (word * 8, usize::from(single)), "{lost}");
        let differing = file.iter().zip(good).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        assert_eq!(differing, 2, "the two flips and nothing else");
        assert!(Model::parse(&file).is_err());
    }
}

#[test]
fn what_has_no_parity_is_not_repaired() {
    let (mut good, mut random) = (small().to_vec(), Random::new(4));
    assert_eq!(repair(&mut good).unwrap().bits, 0);
    assert_eq!(repair(&mut []), Err(RepairError::NoParity));
    assert_eq!(repair(&mut [0xff; 23]), Err(RepairError::NoParity));
    let length = good.len() - 1;
    assert_eq!(repair(&mut good[..length]), Err(RepairError::Length { length }));
    let shipped = std::fs::read(root().join("models/yocto-rgb-int8.nadir")).unwrap();
    assert_eq!(repair(&mut shipped.clone()), Err(RepairError::NoParity));
    // Any bytes: an error or a repair, no panic.
    for _ in 0..300 {
        let mut bytes: Vec<u8> = (0..random.below(4000)).map(|_| random.bits() as u8).collect();
        if let Some(field) = bytes.get_mut(20..24) {
            field.fill(0xff);
        }
        let _ = repair(&mut bytes);
    }
}

#[test]
fn signed_as_openssl_and_the_text_say() {
    let text = std::fs::read_to_string(keys_at("vectors.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
    let hex = |bytes: &[u8]| nadir_quantize::inspect::hexadecimal(bytes);
    let shipped = std::fs::read(root().join("models/yocto-rgb-int8.nadir")).unwrap();
    assert_eq!(vectors["model_sha256"], hex(&Sha256::digest(&shipped)), "run tests/reference/make_signature.py");
    let signed = AlignedBytes::copy_of(yocto());
    let model = Model::parse(&signed).unwrap();
    let signature = model.section_bytes(model.ancillary(KIND_SIGNATURE).unwrap().index as usize);
    assert_eq!(vectors["message"], hex(&signed_message(&model)));
    assert_eq!(vectors["signature"], hex(&signature[8..]));
    assert_eq!(vectors["parity_sha256"], hex(&Sha256::digest(&signed[model.data().len()..])));
    assert_eq!(vectors["signed_sha256"], hex(&Sha256::digest(&*signed)));
    assert_eq!(verify_signature(&model, &key().1, 0), Ok(()));
}

#[test]
fn other_keys_missing_signatures_and_old_versions_are_refused() {
    let (signing, public) = key();
    let file = AlignedBytes::copy_of(small());
    let model = Model::parse(&file).unwrap();
    assert_eq!(model.model_version(), 7);
    assert_eq!(verify_signature(&model, &public, 7), Ok(()));
    let rolled_back = SignatureError::RolledBack { found: 7, least: 8 };
    assert_eq!(verify_signature(&model, &public, 8), Err(rolled_back));
    let other = keys::read_public(&keys_at("other.pem")).unwrap();
    let expected = SignatureError::OtherKey { found: key_id(&public), expected: key_id(&other) };
    assert_eq!(verify_signature(&model, &other, 0), Err(expected));
    // The neutral element, with which anything can be signed, and what is no point.
    let mut weak = [0; 32];
    weak[0] = 1;
    assert_eq!(verify_signature(&model, &weak, 0), Err(SignatureError::BadKey));
    weak[0] = 2;
    assert_eq!(verify_signature(&model, &weak, 0), Err(SignatureError::BadKey));
    let unsigned = equip(&model, &Equipment { model_version: None, parity: false, key: None }).unwrap();
    let unsigned = AlignedBytes::copy_of(&unsigned);
    let unsigned = Model::parse(&unsigned).unwrap();
    assert_eq!(unsigned.model_version(), 7);
    assert_eq!(verify_signature(&unsigned, &public, 0), Err(SignatureError::Missing));
    // To sign again changes nothing.
    assert_eq!(sign(&model, &signing).unwrap(), small());
}

/// A byte changed anywhere, with CRCs and parity made right as an adversary would.
#[test]
fn a_changed_byte_anywhere_is_refused() {
    let (good, (_, public)) = (small(), key());
    let first = sections(good)[0].0;
    let mut file = AlignedBytes::copy_of(good);
    let (mut by_parser, mut wrong, mut other_key, mut missing) = (0, 0, 0, 0);
    let data = good.len() / 9 * 8;
    for byte in 0..good.len() {
        let in_tensors = (first + 64..data - 2048).contains(&byte);
        if in_tensors && byte % 13 != 0 {
            continue;
        }
        file[byte] ^= 1 << (byte % 8);
        reseal(&mut file, good);
        match Model::parse(&file) {
            // A CRC or parity byte, which sealing made right again.
            Ok(_) if *file == *good => {}
            Ok(model) => match verify_signature(&model, &public, 0).unwrap_err() {
                SignatureError::Wrong => wrong += 1,
                SignatureError::OtherKey { .. } => other_key += 1,
                // The kind of the signature's section.
                SignatureError::Missing => missing += 1,
                error => panic!("byte {byte}: {error}"),
            },
            Err(_) => by_parser += 1,
        }
        file.copy_from_slice(good);
    }
    println!("{by_parser} refused by the parser, {wrong} by the signature, {other_key} by the key's id");
    assert!(by_parser > 500 && wrong > 500 && other_key == 8 && missing == 1, "{by_parser} {wrong} {other_key}");
}

/// Parity taken away, a section taken away, a later minor version: files that parse, and are not those that were signed.
#[test]
fn another_file_of_the_same_tensors_is_refused() {
    let (file, (_, public)) = (AlignedBytes::copy_of(small()), key());
    let model = Model::parse(&file).unwrap();
    let all = Section::all_of(&model);
    let refused = |file: &[u8]| {
        let file = AlignedBytes::copy_of(file);
        assert_eq!(verify_signature(&Model::parse(&file).unwrap(), &public, 0), Err(SignatureError::Wrong));
    };
    refused(&write_file(model.header(), &all, false).unwrap());
    for kind in [KIND_BLOCKS, KIND_SELF_TEST, KIND_COLUMNS] {
        let fewer: Vec<_> = all.iter().filter(|section| section.kind != kind).cloned().collect();
        refused(&write_file(model.header(), &fewer, true).unwrap());
    }
    let mut header = model.header().clone();
    header.model_version = 8;
    refused(&write_file(&header, &all, true).unwrap());
    let mut minor = small().to_vec();
    minor[10] = 2;
    reseal(&mut minor, small());
    refused(&minor);
}

/// The generator as `docs/model-file.md` has it, written again.
fn golden_tile(model: &Model<'_>, test: &SelfTest, tile: u64) -> Vec<f32> {
    let mix = |n: u128| {
        let mut z = (u128::from(test.seed) + (n + 1) * 0x9e37_79b9_7f4a_7c15) as u64;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(((z ^ z >> 31) >> 56) as i8)
    };
    let (bands, side) = (model.bands().len() as u64, u64::from(model.architecture().tile_size));
    let mut values = Vec::new();
    for band in 0..bands {
        for y in 0..side {
            for x in 0..side {
                let plane = u128::from(tile * bands + band);
                let fine = plane * u128::from(side * side) + u128::from(y * side + x);
                let coarse = (1 << 40) + (plane * 32 + u128::from(y / 8)) * 32 + u128::from(x / 8);
                let share = ((2.0 * mix(coarse) + mix(fine)) / 128.0) as f32;
                let product = (f64::from(model.bands()[band as usize].std) * f64::from(share)) as f32;
                values.push((f64::from(model.bands()[band as usize].mean) + f64::from(product)) as f32);
            }
        }
    }
    values
}

#[test]
fn the_self_test_is_that_of_the_text_on_every_set_of_kernels() {
    let file = AlignedBytes::copy_of(yocto());
    let model = Model::parse(&file).unwrap();
    let test = SelfTest::of(&model).unwrap();
    assert_eq!((test.tiles, test.kind), (2, TileKind::U8));
    let mut hash = Sha256::new();
    let engine = Engine::new(&model).with_kernels("scalar").unwrap();
    for tile in 0..test.tiles.into() {
        let values: Vec<u8> = golden_tile(&model, &test, tile).iter().map(|v| v.clamp(0.0, 255.0) as u8).collect();
        assert!(values.iter().collect::<std::collections::BTreeSet<_>>().len() > 100, "tiles vary");
        let mut embedding = vec![0.0; model.embedding_dimension()];
        engine.embed(Tile::U8(&values), &mut AlignedBytes::zeroed(engine.arena_bytes()), &mut embedding).unwrap();
        embedding.iter().for_each(|v| hash.update(v.to_le_bytes()));
    }
    assert_eq!(hash.finalize()[..], test.hash);
    for set in Int8Kernels::available() {
        run_self_test(&Engine::new(&model).with_kernels(set.name).unwrap()).unwrap();
    }
}

/// Models whose weights were changed behind the parser's back, by a fault that CRCs did not see.
#[test]
fn the_self_test_notices_other_weights() {
    let file = AlignedBytes::copy_of(small());
    let model = Model::parse(&file).unwrap();
    let test = SelfTest::of(&model).unwrap();
    assert_eq!(
        SelfTest::of(&model).unwrap().to_bytes(),
        model.section_bytes(model.ancillary(KIND_SELF_TEST).unwrap().index as usize)
    );
    let all = Section::all_of(&model);
    for index in (0..all.len()).filter(|&i| all[i].kind == 0 && model.expected(i).unwrap().name.ends_with("bias")) {
        let mut changed = all.clone();
        changed[index].bytes[1] ^= 0x40;
        let changed = AlignedBytes::copy_of(&write_file(model.header(), &changed, false).unwrap());
        let changed = Model::parse(&changed).unwrap();
        let error = run_self_test(&Engine::new(&changed)).unwrap_err();
        let name = model.expected(index).unwrap();
        assert!(error.to_string().contains("on record"), "{name}: {error}");
    }
    let engine = Engine::new(&model);
    let (mut arena, mut out) = (AlignedBytes::zeroed(engine.arena_bytes()), vec![0.0; 6]);
    let mut tile = AlignedBytes::zeroed(test.tile_bytes(&model) - 1);
    let error = test.run(&engine, &mut tile, &mut arena, &mut out).unwrap_err();
    assert!(matches!(error, SelfTestError::TileMemory { needed: 512, found: 511, .. }), "{error}");
}

/// The sum of a layer's accumulators over its outputs is the inner product of inputs and column.
#[test]
fn checksum_columns_check_the_pointwise_layers() {
    let file = AlignedBytes::copy_of(yocto());
    let model = Model::parse(&file).unwrap();
    let mut random = Random::new(9);
    let arch = *model.architecture();
    for stage in 0..4 {
        let c = arch.dim(stage).next_multiple_of(8);
        for block in 0..arch.depth(stage) {
            let columns = model.checksum_columns(stage, block).unwrap();
            let place = Place::Block { stage: stage as u8, block: block as u8 };
            let layers = [
                ("pointwise 1 weight", c, 4 * c, columns.pointwise_1),
                ("pointwise 2 weight", 4 * c, c, columns.pointwise_2),
            ];
            for (name, inputs, outputs, column) in layers {
                let is = |&i: &usize| model.expected(i).is_some_and(|s| s.place == place && s.name == name);
                let weight: &[i8] = model.section((0..model.section_count()).find(is).unwrap());
                let x: Vec<i64> = (0..inputs).map(|_| random.below(256) as i64 - 128).collect();
                // Where docs/integer-arithmetic.md, section 1, says that the weight of an output and an input lies.
                let at = |o: usize, i: usize| (o / 16 * (inputs / 4) + i / 4) * 64 + (o % 16) * 4 + i % 4;
                let accumulator = |o| (0..inputs).map(|i| i64::from(weight[at(o, i)]) * x[i]).sum::<i64>();
                let sum: i64 = (0..outputs).map(accumulator).sum();
                assert_eq!(column.len(), inputs);
                assert_eq!(column.iter().zip(&x).map(|(&c, x)| i64::from(c) * x).sum::<i64>(), sum, "{place} {name}");
            }
        }
        assert_eq!(model.checksum_columns(stage, arch.depth(stage)), None);
    }
    assert_eq!(model.checksum_columns(4, 0), None);
}

/// All damage that one pass finds, and the steps that it took.
fn pass(scrub: &mut Scrub, file: &[u8]) -> (Vec<Damage>, usize) {
    let (mut found, mut steps) = (Vec::new(), 0);
    loop {
        steps += 1;
        match scrub.step(file) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return (found, steps),
            Err(damage) => found.push(damage),
        }
    }
}

#[test]
fn a_scrub_finds_what_changed_in_memory() {
    for file in [small(), yocto(), &std::fs::read(root().join("models/yocto-rgb-f16.nadir")).unwrap()] {
        let aligned = AlignedBytes::copy_of(file);
        let model = Model::parse(&aligned).unwrap();
        let (tensors, data) = (model.tensor_range(), model.data().len());
        let mut scrub = Scrub::new(&model);
        let (found, steps) = pass(&mut scrub, file);
        assert!(found.is_empty() && steps <= 2 * file.len() / 4096 + 7, "{steps} steps");
        let mut memory = file.to_vec();
        let mut random = Random::new(5);
        for round in 0..150 {
            let at = if round % 3 == 0 { random.below(tensors.start) } else { random.below(file.len()) };
            memory[at] ^= 1 << random.below(8);
            let (found, again) = pass(&mut scrub, &memory);
            assert!(!found.is_empty() && again <= steps + 1, "byte {at}");
            for damage in &found {
                match *damage {
                    Damage::Block { index, offset, bytes, .. } if tensors.contains(&at) => {
                        assert_eq!((index, offset), ((at - tensors.start) / 4096, tensors.start + index * 4096));
                        assert!((offset..offset + bytes).contains(&at));
                    }
                    // A CRC on record that flipped.
                    Damage::Block { .. } => assert!(at > tensors.end),
                    Damage::File { .. } => assert!(at < data - 60),
                    Damage::NotZero { offset } => assert_eq!(offset, at),
                    Damage::Parity { offset } => {
                        assert_eq!(offset, if at < data { at / 8 * 8 } else { (at - data) * 8 }, "byte {at}");
                    }
                }
            }
            let in_block = found.iter().any(|damage| matches!(damage, Damage::Block { .. }));
            assert!(in_block || !tensors.contains(&at), "byte {at} of the tensors is located");
            memory.copy_from_slice(file);
        }
        // Two blocks at once, and a scrub that goes on after.
        (memory[tensors.start], memory[tensors.end - 1]) = (!file[tensors.start], !file[tensors.end - 1]);
        let blocks = pass(&mut scrub, &memory).0.iter().filter(|d| matches!(d, Damage::Block { .. })).count();
        assert_eq!(blocks, if tensors.len() > 4096 { 2 } else { 1 });
        assert!(pass(&mut scrub, file).0.is_empty());
    }
}

#[test]
fn float_models_are_equipped_without_integers() {
    let encoder = random_encoder(Architecture::named("yocto", 16, 8).unwrap(), &["B4"], 5);
    for precision in [Precision::F32, Precision::F16] {
        let plain = AlignedBytes::copy_of(&float::convert(&encoder, precision).unwrap());
        let equipment = Equipment { model_version: None, parity: true, key: Some(&key().0) };
        let file = AlignedBytes::copy_of(&equip(&Model::parse(&plain).unwrap(), &equipment).unwrap());
        let model = Model::parse(&file).unwrap();
        let kinds: Vec<u8> =
            Section::all_of(&model).iter().map(|section| section.kind).filter(|&kind| kind > 0).collect();
        assert_eq!(kinds, [KIND_BLOCKS, KIND_SIGNATURE]);
        assert_eq!((SelfTest::of(&model), model.checksum_columns(0, 0)), (None, None));
        assert_eq!(verify_signature(&model, &key().1, 1), Ok(()));
        assert_eq!(model.section_entry(0).unwrap().dtype == Dtype::F32, precision == Precision::F32);
    }
}

/// An atto of 12 bands with everything but parity takes at most 3.6 MB, and parity at most 13 % more.
#[test]
fn an_atto_is_small() {
    let bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"];
    let architecture = Architecture::named("atto", 56, 8).unwrap();
    let plain = AlignedBytes::copy_of(&random_int8_model("atto", architecture, &bands, 3));
    let model = Model::parse(&plain).unwrap();
    let size = |parity| equip(&model, &Equipment { model_version: None, parity, key: Some(&key().0) }).unwrap().len();
    let (without, with) = (size(false), size(true));
    println!("tensors alone {}, signed {without}, with parity {with} bytes", plain.len());
    assert!(without <= 3_600_000, "{without} bytes");
    assert!(with * 100 <= without * 113, "{with} of {without} bytes");
}
