//! The bodies of the fuzz targets: each takes any bytes, and panics only if something is wrong.

use std::sync::OnceLock;

use nadir::encoder::Encoder;
use nadir::guard::{Progress, Scrub, SelfTest, Survey, repair, verify_signature};
use nadir::kernels::fixed;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::{
    Architecture, END_BYTES, ENTRY_BYTES, HEAD_CRC_BYTES, KIND_ANCILLARY, Model, ModelError, Precision, StemPadding,
    crc32c,
};
use nadir::plan::int8::Passes;
use nadir::triage::{frame, products::Product, prototypes::Prototypes, record::Message};
use nadir_formats::{AlignedBytes, Matrix};
use nadir_quantize::flight::{Equipment, equip};
use nadir_quantize::products::{fit, store};
use nadir_quantize::testing::{Random, random_encoder, random_tiles};
use nadir_quantize::writer::parity_bytes;
use nadir_quantize::{float, int8};

/// What a fuzzer calls.
pub type Body = fn(&[u8]);

/// The bodies, by name.
pub const TARGETS: [(&str, Body); 4] = [
    ("parser", parser),
    ("hostile_model", hostile_model),
    ("flipped_bits", flipped_bits),
    ("fixed_point", fixed_point),
];

/// The smallest models with every kind of layer and all that a file can have besides: int8, f32 without parity, and int8 with a patchify
/// stem and without parity.
fn seeds() -> &'static [Vec<u8>; 3] {
    static SEEDS: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let named = Architecture::named("yocto", 16, 8).unwrap();
        let architecture = Architecture { depths: [1; 4], dims: [6, 8, 8, 9], ..named };
        let encoder = random_encoder(architecture, &["B4", "B3"], 3);
        let architecture = Architecture { stem_padding: StemPadding::Patchify, ..architecture };
        let patchify = random_encoder(architecture, &["B4", "B3"], 3);
        let tiles = random_tiles(4, 2, 16, 4);
        let equipped = |file: Vec<u8>, parity| {
            let file = AlignedBytes::copy_of(&file);
            let file =
                equip(&Model::parse(&file).unwrap(), &Equipment { model_version: None, parity, key: None }).unwrap();
            let embeddings = Matrix { rows: 4, columns: 9, data: (0..36).map(|i| (i * i % 7) as f32).collect() };
            let fitted = fit(&embeddings, &[0, 1, 2, 3], 3, 8).unwrap();
            store(&Model::parse(&AlignedBytes::copy_of(&file)).unwrap(), &fitted).unwrap()
        };
        [
            equipped(int8::convert(&encoder, &tiles).unwrap(), true),
            equipped(float::convert(&encoder, Precision::F32).unwrap(), false),
            equipped(int8::convert(&patchify, &tiles).unwrap(), false),
        ]
    })
}

/// Where head, table and body of a file lie, if it has room for them: table, its end, first section.
fn layout(file: &[u8]) -> Option<(usize, usize, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().unwrap()) as usize);
    let table = number(12)?.checked_add(32)?.checked_next_multiple_of(64)?;
    let end = number(16)?.checked_mul(ENTRY_BYTES)?.checked_add(table)?;
    let first = end.checked_add(HEAD_CRC_BYTES)?.checked_next_multiple_of(64)?;
    (first.checked_add(END_BYTES)? <= data_len(file)).then_some((table, end, first))
}

/// Bytes without the parity, if the prefix says that there is one.
fn data_len(file: &[u8]) -> usize {
    if file.get(20..24) == Some(&[0xff; 4]) { file.len() / 72 * 64 } else { file.len() }
}

/// First byte and bytes of section `index`, by the table.
fn section(file: &[u8], index: usize) -> Option<(usize, usize)> {
    let (table, end, _) = layout(file)?;
    let row = table + index.checked_mul(ENTRY_BYTES)?;
    if row >= end {
        return None;
    }
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let bytes = [4, 2, 1, 2, 4, 8].get(usize::from(file[row + 1])).copied().unwrap_or(1);
    let (offset, elements) = (number(row + 8) as usize, number(row + 16) as usize);
    let len = elements.checked_mul(bytes)?;
    (offset.checked_add(len)? <= file.len()).then_some((offset, len))
}

/// Makes every CRC and the parity right again, so that what is wrong elsewhere is reached.
fn reseal(file: &mut [u8]) {
    let Some((table, end, _)) = layout(file) else { return };
    for index in 0..(end - table) / ENTRY_BYTES {
        if let Some((offset, len)) = section(file, index) {
            let crc = crc32c(&file[offset..offset + len]);
            file[table + index * ENTRY_BYTES + 24..][..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = crc32c(&file[..end]);
    file[end + 4..end + 8].copy_from_slice(&crc.to_le_bytes());
    let (data, parity) = file.split_at_mut(data_len(file));
    let last = data.len() - END_BYTES;
    let crc = crc32c(&data[..last]);
    data[last..last + 4].copy_from_slice(&crc.to_le_bytes());
    parity.iter_mut().zip(parity_bytes(data)).for_each(|(to, from)| *to = from);
}

/// Reads everything that a parsed model offers.
fn look(bytes: &[u8]) {
    let Ok(model) = Model::parse(bytes) else { return };
    let mut sections = 0;
    while let Some(spec) = model.expected(sections) {
        assert_eq!(model.section_entry(sections).unwrap().elements, spec.elements);
        sections += 1;
    }
    assert!(sections <= model.section_count());
    let _ = model.architecture().macs(model.bands().len());
    let least = Encoder::new(&model).with_passes([Passes::Two; 4]).arena_bytes();
    assert!(Encoder::new(&model).within(least).is_ok());
    let _ = (SelfTest::of(&model), model.checksum_columns(3, 0), verify_signature(&model, &[9; 32], 0).unwrap_err());
    if let Some(products) = model.products() {
        let (product, embedding) = (Product::Pca(products.components()), vec![1.0; products.dimension()]);
        let _ = products.encode(product, &embedding, &mut vec![0; product.bytes(embedding.len())]);
    }
}

/// A scrub of any bytes ends, and after as many steps as they have blocks.
fn scrub(mut scrub: Scrub, bytes: &[u8]) -> bool {
    let mut clean = true;
    for _ in 0..2 * bytes.len() / 4096 + 8 {
        match scrub.step(bytes) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return clean,
            Err(_) => clean = false,
        }
    }
    panic!("a scrub that does not end");
}

/// Any bytes, alone and written over a real model (with the CRCs made right), as a model; and as a prototype file and as frames.
pub fn parser(data: &[u8]) {
    look(&AlignedBytes::copy_of(data));
    let _ = Prototypes::parse(data);
    for payload in frame::frames(&mut data.to_vec()).flatten() {
        let _ = frame::parse::<Message<'_>>(payload);
    }
    let [kind, rest @ ..] = data else { return };
    let mut file = AlignedBytes::copy_of(&seeds()[usize::from(kind % 3)]);
    for edit in rest.chunks_exact(3) {
        // Most edits where most is decided: prefix, header and table.
        let reach = if edit[0] & 0x80 == 0 { file.len().min(1024) } else { file.len() };
        let at = (usize::from(edit[0] & 0x7f) * 256 + usize::from(edit[1])) % reach;
        file[at] ^= edit[2];
    }
    look(&file);
    reseal(&mut file);
    look(&file);
}

/// A real model with parity, of which some bits are flipped: what the repair gives back is the model or an error, never another model.
pub fn flipped_bits(data: &[u8]) {
    let good = &seeds()[0];
    let mut file = AlignedBytes::copy_of(good);
    let mut memory = Scrub::new(&Model::parse(&file).unwrap());
    assert!(scrub(memory.clone(), &file));
    let mut words = std::collections::BTreeMap::<usize, std::collections::BTreeSet<usize>>::new();
    let parity = data_len(good);
    for flip in data.chunks_exact(4).take(24) {
        let bit = u32::from_le_bytes(flip.try_into().unwrap()) as usize % (8 * good.len());
        file[bit / 8] ^= 1 << (bit % 8);
        let word = if bit / 8 < parity { bit / 64 } else { bit / 8 - parity };
        let flipped = words.entry(word).or_default();
        if !flipped.remove(&bit) {
            flipped.insert(bit);
        }
    }
    words.retain(|_, flipped| !flipped.is_empty());
    assert_eq!(Model::parse(&file).is_ok(), words.is_empty());
    let _ = memory.step(&file);
    assert_eq!(scrub(memory, &file), words.is_empty() || *file == **good);
    if let Ok(survey) = Survey::of(&file) {
        scrub(survey.scrub(), &file);
    }
    let result = repair(&mut file);
    match words.values().map(|flipped| flipped.len()).max().unwrap_or(0) {
        0 | 1 => {
            assert_eq!(result.map(|repaired| repaired.bits), Ok(words.len()));
            assert_eq!(*file, **good);
        }
        2 => assert!(result.is_err()),
        _ => {}
    }
    assert!(*file == **good || Model::parse(&file).is_err());
}

/// A real model with values of its sections overwritten, and right CRCs: what parses must run, with the same bits on every set
/// of kernels and in one pass or two.
pub fn hostile_model(data: &[u8]) {
    let [kind, pixel, rest @ ..] = data else { return };
    let seed = usize::from(kind % 3);
    let mut file = AlignedBytes::copy_of(&seeds()[seed]);
    let sections = {
        let model = Model::parse(&file).unwrap();
        // Those that the encoder reads.
        (0..model.section_count()).take_while(|&i| model.section_entry(i).unwrap().kind < KIND_ANCILLARY).count()
    };
    for edit in rest.chunks_exact(5).take(64) {
        let Some((offset, len)) = section(&file, usize::from(edit[0]) % sections) else { continue };
        let value = edit[3];
        match edit[4] % 4 {
            // One byte, one word of extremes, or all of a section.
            0 => file[offset + usize::from(u16::from_le_bytes([edit[1], edit[2]])) % len] = value,
            1 => {
                let word = [i32::MAX, i32::MIN, -1, 0x7fff, -0x8000, 0, 1, 0x0fff][usize::from(value % 8)];
                let at = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % len / 4 * 4;
                for (to, from) in file[offset + at..offset + len].iter_mut().zip(word.to_le_bytes()) {
                    *to = from;
                }
            }
            2 => file[offset..offset + len].fill(value),
            // Values of 12 bits, which multipliers and GELU tables may have.
            3 if edit[2] & 0x80 == 0 => {
                let value = u16::from_le_bytes([edit[1], edit[2] & 0x0f]).to_le_bytes();
                file[offset..offset + len].chunks_mut(2).for_each(|pair| pair.copy_from_slice(&value[..pair.len()]));
            }
            _ => {
                file[offset..offset + len].chunks_mut(2).for_each(|pair| pair.copy_from_slice(&edit[1..1 + pair.len()]))
            }
        }
    }
    reseal(&mut file);
    // What the parser refuses it gets back as it was, so that the rest is run.
    while let Err(ModelError::OutOfRange { index, .. } | ModelError::NotFinite { index, .. }) = Model::parse(&file) {
        let (offset, len) = section(&file, index).unwrap();
        file[offset..offset + len].copy_from_slice(&seeds()[seed][offset..offset + len]);
        reseal(&mut file);
    }
    let model = Model::parse(&file).unwrap();
    let mut random = Random::new(u64::from(*pixel));
    let tile: Vec<u8> = (0..model.tile_len())
        .map(|_| match pixel % 4 {
            0 => 255 * random.below(2) as u8,
            1 => *pixel,
            _ => random.below(256) as u8,
        })
        .collect();
    let run = |kernels: Option<&str>, passes| {
        let mut encoder = Encoder::new(&model).with_passes([passes; 4]);
        if let Some(name) = kernels {
            encoder = encoder.with_kernels(name).unwrap();
        }
        let mut out = vec![0.0; model.embedding_dimension()];
        encoder.embed(nadir::Tile::U8(&tile), &mut AlignedBytes::zeroed(encoder.arena_bytes()), &mut out).unwrap();
        out.iter().map(|v: &f32| v.to_bits()).collect::<Vec<u32>>()
    };
    if model.precision() != Precision::Int8 {
        run(None, Passes::One);
        return;
    }
    let expected = run(Some("scalar"), Passes::One);
    for set in Int8Kernels::available() {
        for passes in [Passes::One, Passes::Two] {
            assert_eq!(run(Some(set.name), passes), expected, "{} {passes:?}", set.name);
        }
    }
}

/// Fixed-point functions against arithmetic in 128 bits.
pub fn fixed_point(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut word = || u64::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    let (a, b, c) = (word(), word(), word());
    let wide = |v: i64| i128::from(v);

    let (acc, multiplier, shift) = (a as i32, (b as i16) & i16::MAX, c as u32 % 32);
    let narrow = wide(i64::from(acc)).div_euclid(1 << shift).clamp(-0x8000, 0x7fff);
    let exact = (narrow * wide(multiplier.into()) + (1 << 14)).div_euclid(1 << 15);
    assert_eq!(i128::from(fixed::requantize(acc, multiplier, shift)), exact);
    assert!((-0x8000..=0x7fff).contains(&exact));
    let any = b as i16;
    let exact = (wide((a as i16).into()) * wide(any.into()) + (1 << 14)).div_euclid(1 << 15);
    assert_eq!(i128::from(fixed::multiply_q15(a as i16, any)), exact);

    for value in [a, b, c, a >> (b % 64)] {
        let root = u128::from(fixed::isqrt64(value));
        assert!(root * root <= value.into() && (root + 1) * (root + 1) > value.into(), "{value}");
        let (value, root) = (u128::from(value as u32), u128::from(fixed::isqrt32(value as u32)));
        assert!(root * root <= value && (root + 1) * (root + 1) > value, "{value}");
    }
    let value = a >> (b % 64);
    let scaled = fixed::shift_by(value, fixed::even_scale(value));
    assert!(value == 0 || (1 << 30..1 << 32).contains(&scaled), "{value} {scaled}");
    let divisor = a as u32 | 1 << 31;
    assert_eq!(u128::from(fixed::reciprocal_q63(divisor)), (u64::MAX >> 1) as u128 / u128::from(divisor));

    // LayerNorm of a position: no overflow for any values and allowed constants, and the text's formula.
    let channels = 1 + (c as u32) % 2816;
    let norm = fixed::LayerNorm {
        gain: (1 << 28) | (a as u32 & ((1 << 28) - 1)),
        exponent: (b as i8 / 2).into(),
        epsilon: (a ^ b) & ((1 << 62) - 1),
    };
    let (low, high) = (c as i16, (c >> 16) as i16);
    let highs = (c >> 32) as u32 % (channels + 1);
    let sum = wide(low.into()) * i128::from(channels - highs) + wide(high.into()) * i128::from(highs);
    let squares = wide(low.into()).pow(2) * i128::from(channels - highs) + wide(high.into()).pow(2) * i128::from(highs);
    let reciprocal = fixed::reciprocal(channels);
    let found = norm.normalizer(sum as i32, squares as u64, channels, reciprocal);
    let spread =
        (i128::from(channels) * squares - sum * sum + i128::from(norm.epsilon)).clamp(1, u64::MAX.into()) as u64;
    let scale = fixed::even_scale(spread);
    let mantissa = if scale < 0 { u128::from(spread) << -scale } else { u128::from(spread) >> scale };
    let root = i128::from(fixed::isqrt32(mantissa as u32));
    assert_eq!(i128::from(found.factor), (i128::from(norm.gain) + root / 2) / root);
    assert!(found.factor <= 1 << 14 && (1..=30).contains(&found.shift));
    let mean = (sum * i128::from(reciprocal)).div_euclid(1 << 16);
    let offset = (1 << (found.shift - 1)) - (mean * i128::from(found.factor)).div_euclid(1 << 15);
    assert_eq!(i128::from(found.offset), offset, "the offset fits i32");
    for value in [low, high] {
        let exact = (wide(value.into()) * i128::from(found.factor) + offset).div_euclid(1 << found.shift);
        assert_eq!(i128::from(found.apply(value)), exact, "no product overflows");
    }

    let mut pooled: Vec<i32> = data.chunks_exact(3).map(|v| i32::from_be_bytes([v[0], v[1], v[2], 0]) >> 11).collect();
    pooled.truncate(2816);
    fixed::pooled_layer_norm(&mut pooled, norm.epsilon);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2000 inputs of each body, the same on every machine.
    #[test]
    fn seeded_inputs_pass() {
        for (name, body) in TARGETS {
            for seed in 0..2000 {
                let mut random = Random::new(seed);
                let len = random.below(120);
                let data: Vec<u8> = (0..len).map(|_| random.bits() as u8).collect();
                let result = std::panic::catch_unwind(|| body(&data));
                assert!(result.is_ok(), "{name}, seed {seed}: {data:?}");
            }
        }
    }

    /// The seeds parse and run as they are, and repairing them changes nothing.
    #[test]
    fn the_seeds_are_good() {
        for seed in seeds() {
            let mut file = AlignedBytes::copy_of(seed);
            reseal(&mut file);
            assert_eq!(&*file, seed.as_slice());
            assert!(Model::parse(&file).is_ok());
        }
        hostile_model(&[0, 2]);
        hostile_model(&[1, 2]);
        hostile_model(&[2, 2]);
    }
}
