//! Deltas: pairs of every shape, power cut at every write, every bit flipped, against a second reader written by the text alone.

mod common;

use std::cell::Cell;
use std::path::Path;

use common::Folder;
use nadir::delta::{
    Delta, DeltaError, HEAD_BYTES, SEAL_BYTES, Storage, StorageError, Update, UpdateError, Where, damaged_blocks,
};
use nadir::guard::{Progress, SignatureError};
use nadir::model::{Architecture, Header, KIND_ANCILLARY, Model, Precision, crc32c};
use nadir_formats::AlignedBytes;
use nadir_quantize::delta::{Kind, apply, make};
use nadir_quantize::flight::{Equipment, equip};
use nadir_quantize::testing::{random_encoder, random_tiles};
use nadir_quantize::writer::{Section, write_file};
use nadir_quantize::{float, int8, keys};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

#[path = "delta/second_reader.rs"]
mod second_reader;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/signature");

fn private() -> ed25519_dalek::SigningKey {
    keys::read_private(&Path::new(KEYS).join("key.pem")).unwrap()
}

fn public(name: &str) -> [u8; 32] {
    keys::read_public(&Path::new(KEYS).join(name)).unwrap()
}

/// A small model without ancillary sections.
fn plain(precision: Precision, dims: [u16; 4], depths: [u8; 4], seed: u64) -> Vec<u8> {
    let named = Architecture::named("yocto", 16, 8).unwrap();
    let encoder = random_encoder(Architecture { dims, depths, ..named }, &["B4", "B8A"], seed);
    match precision {
        Precision::Int8 => int8::convert(&encoder, &random_tiles(4, 2, 16, 6)).unwrap(),
        other => float::convert(&encoder, other).unwrap(),
    }
}

fn small() -> Vec<u8> {
    plain(Precision::Int8, [3, 4, 5, 6], [1, 1, 2, 1], 5)
}

/// What may be done to a model.
#[derive(Clone, Copy, Default)]
struct Edit<'a> {
    /// Share of the weights of dense and depthwise layers that change by 1 to 3 up or down.
    share: f64,
    name: Option<&'a str>,
    recipe: Option<&'a str>,
    equipment: Option<(bool, bool)>,
}

/// The model with weights changed, and all that follows from them made again; `equipment` is whether it has parity and a signature.
fn edited(file: &[u8], edit: Edit<'_>, random: &mut StdRng) -> Vec<u8> {
    let aligned = AlignedBytes::copy_of(file);
    let model = Model::parse(&aligned).unwrap();
    let mut header: Header<'_> = model.header().clone();
    header.name = edit.name.unwrap_or(header.name);
    header.provenance.recipe = edit.recipe.unwrap_or(header.provenance.recipe);
    header.model_version += 1;
    let mut sections = Section::all_of(&model);
    sections.retain(|section| section.kind < KIND_ANCILLARY);
    for (index, section) in sections.iter_mut().enumerate() {
        if model.section_name(index).name().ends_with("weight") && model.precision() == Precision::Int8 {
            for byte in &mut section.bytes {
                if random.random_bool(edit.share) {
                    let by = random.random_range(1..=3i8);
                    *byte = (*byte as i8).saturating_add(if random.random() { by } else { -by }) as u8;
                }
            }
        }
    }
    let bytes = AlignedBytes::copy_of(&write_file(&header, &sections, false).unwrap());
    let Some((parity, signed)) = edit.equipment else { return bytes.to_vec() };
    let key = private();
    let equipment = Equipment { model_version: None, parity, key: signed.then_some(&key) };
    equip(&Model::parse(&bytes).unwrap(), &equipment).unwrap()
}

fn delta(old: &[u8], new: &[u8]) -> Vec<u8> {
    let (old, new) = (AlignedBytes::copy_of(old), AlignedBytes::copy_of(new));
    make(&Model::parse(&old).unwrap(), &Model::parse(&new).unwrap(), None).unwrap().file
}

/// NOR flash: bits are set by erasing a page, and cleared by writing. The power fails at an operation chosen beforehand.
struct Flash<'a> {
    bytes: Vec<u8>,
    page: usize,
    power: &'a Power,
}

/// Erases and writes until the power fails, and how much of the last one is done, in 64ths.
struct Power {
    left: Cell<usize>,
    torn: Cell<usize>,
    used: Cell<usize>,
}

impl Power {
    fn new(left: usize, torn: usize) -> Self {
        Self { left: Cell::new(left), torn: Cell::new(torn), used: Cell::new(0) }
    }

    /// How much of an operation on `length` bytes is done.
    fn draw(&self, length: usize) -> Result<usize, usize> {
        self.used.set(self.used.get() + 1);
        match self.left.get() {
            0 => Err(0),
            1 => {
                self.left.set(0);
                Err(length * self.torn.get() / 64)
            }
            left => {
                self.left.set(left - 1);
                Ok(length)
            }
        }
    }
}

const CUT: StorageError = StorageError(-9);

impl Storage for Flash<'_> {
    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn page_bytes(&self) -> usize {
        self.page
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), StorageError> {
        bytes.copy_from_slice(&self.bytes[offset..offset + bytes.len()]);
        Ok(())
    }

    fn erase(&mut self, offset: usize) -> Result<(), StorageError> {
        assert!(offset.is_multiple_of(self.page));
        let done = self.power.draw(self.page);
        self.bytes[offset..][..done.unwrap_or_else(|n| n)].fill(0xff);
        done.map(drop).map_err(|_| CUT)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), StorageError> {
        assert!(offset.is_multiple_of(64) && bytes.len().is_multiple_of(64));
        let done = self.power.draw(bytes.len());
        for (to, from) in self.bytes[offset..].iter_mut().zip(bytes).take(done.unwrap_or_else(|n| n)) {
            *to &= from;
        }
        done.map(drop).map_err(|_| CUT)
    }
}

/// A slot with a file, and a journal full of dirt.
fn flash<'a>(old: &[u8], new: &[u8], page: usize, power: &'a Power) -> (Flash<'a>, Flash<'a>) {
    let bytes = old.len().max(new.len()).next_multiple_of(page);
    let mut slot = vec![0xff; bytes];
    slot[..old.len()].copy_from_slice(old);
    (Flash { bytes: slot, page, power }, Flash { bytes: vec![0x5a; 3 * page], page, power })
}

fn run(delta: &[u8], slot: &mut Flash<'_>, journal: &mut Flash<'_>) -> Result<(), UpdateError> {
    let mut page = vec![0; slot.page];
    let mut update = Update::new(Delta::parse(delta).unwrap(), slot, journal, &mut page)?;
    while update.step()? == Progress::More {}
    assert_eq!(update.step()?, Progress::Done);
    Ok(())
}

/// Whatever passes for a model is the old one or the new one.
fn is_no_chimera(slot: &[u8], old: &[u8], new: &[u8]) {
    for length in [old.len(), new.len()] {
        let there = &slot[..length];
        let sound = Model::parse(&AlignedBytes::copy_of(there)).is_ok();
        assert!(!sound || there == old || there == new, "neither, and sound");
    }
}

#[test]
fn pairs_of_every_shape() {
    let random = &mut StdRng::seed_from_u64(1);
    let base = small();
    let edit = |share| Edit { share, ..Edit::default() };
    let whole = Edit { equipment: Some((true, true)), ..edit(0.01) };
    let long = &"a long recipe, ".repeat(30)[..];
    let equipped = edited(&base, whole, random);
    let files = [
        ("plain", base.clone()),
        ("one per cent", edited(&base, edit(0.01), random)),
        ("all weights", edited(&base, edit(1.0), random)),
        ("equipped", equipped.clone()),
        ("equipped, one per cent", edited(&equipped, whole, random)),
        ("no parity", edited(&base, Edit { equipment: Some((false, true)), ..edit(0.01) }, random)),
        ("a longer header", edited(&equipped, Edit { recipe: Some(long), ..whole }, random)),
        ("another name", edited(&equipped, Edit { name: Some("x"), ..edit(0.0) }, random)),
        ("wider", plain(Precision::Int8, [3, 4, 9, 17], [1, 1, 2, 1], 6)),
        ("deeper", plain(Precision::Int8, [3, 4, 5, 6], [1, 2, 3, 1], 7)),
        ("f16", plain(Precision::F16, [3, 4, 5, 6], [1, 1, 2, 1], 5)),
        ("f32", plain(Precision::F32, [3, 4, 5, 6], [1, 1, 2, 1], 8)),
    ];
    for (from, old) in &files {
        for (to, new) in files.iter().filter(|(to, _)| to != from) {
            let delta = delta(old, new);
            assert!(second_reader::apply(old, &delta) == *new, "{from} to {to}: by the text");
            for page in [64, 192, 1024, 4096, 1 << 17] {
                let power = Power::new(usize::MAX, 0);
                let (mut slot, mut journal) = flash(old, new, page, &power);
                run(&delta, &mut slot, &mut journal).unwrap();
                assert!(slot.bytes[..new.len()] == **new, "{from} to {to}, pages of {page}");
                // Again, it is there already.
                run(&delta, &mut slot, &mut journal).unwrap();
            }
        }
    }
}

#[test]
fn power_is_cut_at_every_write() {
    let random = &mut StdRng::seed_from_u64(2);
    let base = edited(&small(), Edit { equipment: Some((true, true)), ..Edit::default() }, random);
    let one = Edit { share: 0.01, equipment: Some((true, true)), ..Edit::default() };
    let long = &"a recipe of many words, ".repeat(20)[..];
    let pairs = [
        (base.clone(), edited(&base, one, random), 1024),
        // Everything moves to the right, then to the left.
        (base.clone(), edited(&base, Edit { recipe: Some(long), ..one }, random), 256),
        (edited(&base, Edit { recipe: Some(long), ..one }, random), base.clone(), 512),
        (base.clone(), plain(Precision::Int8, [3, 4, 9, 6], [1, 1, 1, 1], 9), 1024),
    ];
    for (old, new, page) in &pairs {
        let delta = delta(old, new);
        let power = Power::new(usize::MAX, 0);
        let (mut slot, mut journal) = flash(old, new, *page, &power);
        run(&delta, &mut slot, &mut journal).unwrap();
        let operations = power.used.get();
        assert!(operations > 50, "{operations}");
        for cut in 1..=operations {
            for torn in [0, 21, 64] {
                let power = Power::new(cut, torn);
                let (mut slot, mut journal) = flash(old, new, *page, &power);
                let failed = run(&delta, &mut slot, &mut journal).unwrap_err();
                assert!(matches!(failed, UpdateError::Device { error: CUT, .. }), "{failed}");
                is_no_chimera(&slot.bytes, old, new);
                // A second cut, somewhere in what is left.
                power.left.set(random.random_range(1..20));
                power.torn.set(random.random_range(0..=64));
                if run(&delta, &mut slot, &mut journal).is_err() {
                    is_no_chimera(&slot.bytes, old, new);
                }
                power.left.set(usize::MAX);
                run(&delta, &mut slot, &mut journal).unwrap();
                assert!(slot.bytes[..new.len()] == **new, "cut at {cut} of {operations}, torn {torn}");
            }
        }
    }
}

/// The same memory, and the same update going on after the device failed.
#[test]
fn a_failing_device_is_tried_again() {
    let random = &mut StdRng::seed_from_u64(3);
    let old = small();
    let new = edited(&old, Edit { share: 0.1, equipment: Some((true, false)), ..Edit::default() }, random);
    let delta = delta(&old, &new);
    let power = Power::new(30, 13);
    let (mut slot, mut journal) = flash(&old, &new, 256, &power);
    let mut page = [0; 256];
    let mut update = Update::new(Delta::parse(&delta).unwrap(), &mut slot, &mut journal, &mut page).unwrap();
    let mut failures = 0;
    loop {
        match update.step() {
            Ok(Progress::Done) => break,
            Ok(Progress::More) => {}
            Err(UpdateError::Device { .. }) => {
                failures += 1;
                power.left.set(30);
            }
            Err(error) => panic!("{error}"),
        }
    }
    drop(update);
    assert!(failures > 3 && slot.bytes[..new.len()] == *new, "{failures} failures");
}

#[test]
fn every_flipped_bit_is_refused_by_name() {
    let random = &mut StdRng::seed_from_u64(4);
    let (old, key) = (small(), private());
    let new = edited(&old, Edit { share: 0.1, equipment: Some((true, true)), ..Edit::default() }, random);
    let (old, new) = (AlignedBytes::copy_of(&old), AlignedBytes::copy_of(&new));
    let good = make(&Model::parse(&old).unwrap(), &Model::parse(&new).unwrap(), Some(&key)).unwrap().file;
    assert!(Delta::parse(&good).is_ok() && damaged_blocks(&good).unwrap().next().is_none());
    let body = good.len() - SEAL_BYTES - u32::from_le_bytes(good[40..44].try_into().unwrap()) as usize;
    let mut file = good.clone();
    for bit in 0..8 * good.len() {
        let byte = bit / 8;
        file[byte] ^= 1 << (bit % 8);
        let error = Delta::parse(&file).unwrap_err();
        let named = match error {
            DeltaError::Magic { .. } => byte < 8,
            DeltaError::Version { .. } => (8..10).contains(&byte),
            DeltaError::Head { .. } => byte < HEAD_BYTES,
            DeltaError::Table { offset, bytes, .. } => (offset..offset + bytes).contains(&byte),
            DeltaError::Block { index, offset, bytes, .. } => {
                assert!(damaged_blocks(&file).unwrap().eq([error]));
                (offset..offset + bytes).contains(&byte) && index == (byte - body) / 1024
            }
            DeltaError::Seal { offset, bytes } => (offset..offset + bytes).contains(&byte),
            _ => false,
        };
        assert!(named, "bit {bit}: {error}");
        file[byte] = good[byte];
    }
    for length in 0..good.len() {
        let error = Delta::parse(&good[..length]).unwrap_err();
        assert!(matches!(error, DeltaError::Length { found, .. } if found == length), "{length}: {error}");
    }
    assert!(matches!(Delta::parse(&[&good[..], &[0]].concat()), Err(DeltaError::Length { .. })));

    let delta = Delta::parse(&good).unwrap();
    assert_eq!(delta.verify_signature(&public("public.pem")), Ok(()));
    assert!(matches!(delta.verify_signature(&public("other.pem")), Err(SignatureError::OtherKey { .. })));
    let version = Model::parse(&new).unwrap().model_version();
    assert_eq!(delta.check_version(version), Ok(()));
    let refused = DeltaError::RolledBack { found: version, least: version + 1 };
    assert_eq!(delta.check_version(version + 1), Err(refused));
}

/// Makes the CRCs of a delta without signature right again.
fn reseal(file: &mut [u8]) {
    let blocks = (u32::from_le_bytes(file[40..44].try_into().unwrap()) as usize).div_ceil(1024);
    let body = (HEAD_BYTES + 4 * blocks).min(file.len());
    let crcs: Vec<u8> = file[body..].chunks(1024).flat_map(|block| crc32c(block).to_le_bytes()).collect();
    let room = crcs.len().min(body - HEAD_BYTES);
    file[HEAD_BYTES..HEAD_BYTES + room].copy_from_slice(&crcs[..room]);
    let table = crc32c(&file[HEAD_BYTES..body]);
    file[120..124].copy_from_slice(&table.to_le_bytes());
    let head = crc32c(&file[..124]);
    file[124..128].copy_from_slice(&head.to_le_bytes());
}

/// Deltas with right CRCs and anything else wrong: an error, and never a panic or a model that is neither.
#[test]
fn any_bytes_are_a_delta_or_an_error() {
    let random = &mut StdRng::seed_from_u64(5);
    let old = small();
    let new = edited(&old, Edit { share: 0.05, equipment: Some((true, false)), ..Edit::default() }, random);
    let good = delta(&old, &new);
    let (mut refused, mut failed) = (0, 0);
    for round in 0..3000 {
        let mut file = good.clone();
        for _ in 0..random.random_range(1..4) {
            let from = if random.random_bool(0.3) { 16 } else { HEAD_BYTES };
            // Numbers of the head, but for those that a wrong length refuses at once.
            let at = random.random_range(from..file.len().min(if round % 2 == 0 { from + 120 } else { usize::MAX }));
            file[at] = random.random();
        }
        reseal(&mut file);
        let Ok(delta) = Delta::parse(&file) else {
            refused += 1;
            continue;
        };
        if delta.old_bytes().max(delta.new_bytes()) > 1 << 20 {
            continue;
        }
        match apply(&old, &delta) {
            Ok(made) => assert!(made == new, "round {round}"),
            Err(_) => failed += 1,
        }
    }
    assert!(refused > 200 && failed > 200, "{refused} {failed}");
    for _ in 0..2000 {
        let mut bytes = vec![0; random.random_range(0..400)];
        random.fill_bytes(&mut bytes);
        assert!(Delta::parse(&bytes).is_err());
    }
}

#[test]
fn another_model_and_small_memory_are_refused_before_the_first_write() {
    let random = &mut StdRng::seed_from_u64(6);
    let old = small();
    let edit = Edit { share: 0.05, equipment: Some((true, false)), ..Edit::default() };
    let (new, other) = (edited(&old, edit, random), edited(&old, edit, random));
    let delta = delta(&old, &new);
    let power = Power::new(usize::MAX, 0);
    for wrong in [&other[..], &old[..old.len() - 64], &[]] {
        let (mut slot, mut journal) = flash(wrong, &new, 1024, &power);
        slot.bytes.resize(new.len().next_multiple_of(1024), 0xff);
        let before = slot.bytes.clone();
        let refused = run(&delta, &mut slot, &mut journal).unwrap_err();
        assert!(matches!(refused, UpdateError::OtherModel { .. }), "{refused}");
        assert!(slot.bytes == before && power.used.get() == 0);
    }
    let (mut slot, mut journal) = flash(&old, &new, 1024, &power);
    journal.bytes.truncate(3 * 1024 - 1);
    let short = UpdateError::Capacity { place: Where::Journal, found: 3071, needed: 3072 };
    assert_eq!(run(&delta, &mut slot, &mut journal), Err(short));
    let needed = slot.bytes.len();
    slot.bytes.pop();
    let short = UpdateError::Capacity { place: Where::Slot, found: needed - 1, needed };
    assert_eq!(run(&delta, &mut slot, &mut journal), Err(short));
    assert_eq!(short.to_string(), format!("the slot has {} bytes, {needed} needed", needed - 1));
    assert_eq!(power.used.get(), 0);

    // A delta half applied, and another model put in its place: its journal is of no use to the second delta.
    let (mut slot, mut journal) = flash(&old, &new, 1024, &power);
    power.left.set(20);
    run(&delta, &mut slot, &mut journal).unwrap_err();
    power.left.set(usize::MAX);
    let second = self::delta(&other, &old);
    let refused = run(&second, &mut slot, &mut journal).unwrap_err();
    assert!(matches!(refused, UpdateError::OtherModel { .. }), "{refused}");
    // What the journal does not remember cannot be finished, and the old file can always be sent again.
    journal.bytes.fill(0);
    assert!(matches!(run(&delta, &mut slot, &mut journal), Err(UpdateError::OtherModel { .. })));
    slot.bytes[..old.len()].copy_from_slice(&old);
    run(&delta, &mut slot, &mut journal).unwrap();
    assert!(slot.bytes[..new.len()] == *new);
}

/// The slot is damaged while the work goes on: the end says so.
#[test]
fn a_slot_that_changes_underneath_is_noticed() {
    let random = &mut StdRng::seed_from_u64(7);
    let old = small();
    let new = edited(&old, Edit { share: 0.05, equipment: Some((true, false)), ..Edit::default() }, random);
    let delta = delta(&old, &new);
    let power = Power::new(40, 64);
    let (mut slot, mut journal) = flash(&old, &new, 256, &power);
    run(&delta, &mut slot, &mut journal).unwrap_err();
    power.left.set(usize::MAX);
    slot.bytes[new.len() / 2] ^= 4;
    let broken = run(&delta, &mut slot, &mut journal).unwrap_err();
    assert!(matches!(broken, UpdateError::Broken { .. }), "{broken}");
    assert!(broken.to_string().ends_with("send the old model again, whole"));
}

/// The bar: 1 % of the weights changed, at most 3 % of the file.
#[test]
fn a_hundredth_of_the_weights_takes_less_than_three_hundredths_of_the_file() {
    let random = &mut StdRng::seed_from_u64(8);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/yocto-rgb-int8.nadir");
    let old = std::fs::read(path).unwrap();
    let new = edited(&old, Edit { share: 0.01, equipment: Some((false, false)), ..Edit::default() }, random);
    let (old, new) = (AlignedBytes::copy_of(&old), AlignedBytes::copy_of(&new));
    let made = make(&Model::parse(&old).unwrap(), &Model::parse(&new).unwrap(), None).unwrap();
    let changed: usize = made.parts.iter().filter(|p| p.name.ends_with("weight")).map(|p| p.changed).sum();
    assert!(changed > 2800, "{changed}");
    assert!(made.parts.iter().any(|p| p.kind == Kind::Nothing) && made.parts.iter().any(|p| p.kind == Kind::Patch));
    println!("{changed} weights changed: {} bytes of {}", made.file.len(), new.len());
    assert!(100 * made.file.len() <= 3 * new.len(), "{} bytes", made.file.len());
    assert!(second_reader::apply(&old, &made.file) == *new);
}

#[test]
fn the_commands_make_and_apply_a_delta() {
    let folder = Folder::new();
    let random = &mut StdRng::seed_from_u64(9);
    let edit = Edit { share: 0.9, equipment: Some((true, true)), ..Edit::default() };
    let old = edited(&small(), edit, random);
    let new = edited(&old, edit, random);
    std::fs::write(folder.path("old.nadir"), &old).unwrap();
    std::fs::write(folder.path("other.nadir"), edited(&old, edit, random)).unwrap();
    std::fs::write(folder.path("new.nadir"), &new).unwrap();
    for key in ["key.pem", "public.pem", "other.pem"] {
        std::fs::copy(Path::new(KEYS).join(key), folder.path(key)).unwrap();
    }
    let told = folder.good("delta old.nadir new.nadir --out d.delta --key key.pem");
    assert!(told.contains(" patch ") && told.contains("block CRCs") && told.contains("UHF link"), "{told}");
    let told = folder.good("apply old.nadir d.delta --out made.nadir --key public.pem --at-least 3");
    assert!(told.contains("good, with key") && told.contains("self-test    passed"), "{told}");
    assert!(std::fs::read(folder.path("made.nadir")).unwrap() == new);
    let told: serde_json::Value =
        serde_json::from_str(&folder.good("delta old.nadir new.nadir --out e.delta --json")).unwrap();
    assert_eq!(told["delta_bytes"], std::fs::metadata(folder.path("e.delta")).unwrap().len());
    assert!(told["parts"].as_array().unwrap().len() > 30);

    folder.bad("delta old.nadir old.nadir --out x.delta", &["old.nadir and old.nadir: both are the same file"]);
    folder.bad("delta old.nadir d.delta --out x.delta", &["d.delta: not a .nadir model"]);
    folder.bad("apply other.nadir d.delta --out x.nadir", &["other.nadir: the slot holds", "nothing was written"]);
    folder.bad("apply old.nadir old.nadir --out x.nadir", &["old.nadir: not a delta"]);
    folder.bad(
        "apply old.nadir d.delta --out x.nadir --at-least 9",
        &["d.delta: the delta makes version 3", "at least 9"],
    );
    folder.bad("apply old.nadir d.delta --out x.nadir --key other.pem", &["d.delta: the file was signed with key"]);
    let mut damaged = std::fs::read(folder.path("d.delta")).unwrap();
    let end = damaged.len() - SEAL_BYTES;
    damaged[end - 1] ^= 1;
    std::fs::write(folder.path("damaged.delta"), &damaged).unwrap();
    folder.bad("apply old.nadir damaged.delta --out x.nadir", &["damaged.delta: block", "of the delta", "is damaged"]);
    damaged[end - 1 - 1024] ^= 1;
    std::fs::write(folder.path("damaged.delta"), &damaged).unwrap();
    folder.bad("apply old.nadir damaged.delta --out x.nadir", &["; 2 blocks are: "]);
    assert!(!folder.path("x.nadir").exists() && !folder.path("x.delta").exists());
}
