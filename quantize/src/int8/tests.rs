//! The integer engine against the float64 reference.

use nadir::model::{Architecture, Dtype, Model, StemPadding};
use nadir_formats::AlignedBytes;

use super::convert;
use crate::reference::Reference;
use crate::testing::{Random, random_encoder, random_tiles};
use crate::writer::{SectionData, write_model};

/// Mean cosine between the integer embeddings of held-out tiles and the reference's.
fn cosine(architecture: Architecture, bands: &[&str], seed: u64) -> f64 {
    let side = usize::from(architecture.tile_size);
    let encoder = random_encoder(architecture, bands, seed);
    let bytes = AlignedBytes::copy_of(&convert(&encoder, &random_tiles(8, bands.len(), side, seed)).unwrap());
    let model = Model::parse(&bytes).unwrap();
    let engine = nadir::encoder::Encoder::new(&model);
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    let tiles = random_tiles(4, bands.len(), side, seed + 1);
    let exact = Reference::new(&encoder).embed_all(&tiles);
    let mut sum = 0.0;
    for (i, exact) in exact.iter().enumerate() {
        let mut embedding = vec![0.0f32; exact.len()];
        engine.embed(tiles.tile(i), &mut arena, &mut embedding).unwrap();
        let dot: f64 = embedding.iter().zip(exact).map(|(&a, b)| f64::from(a) * b).sum();
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        sum += dot / norm(&mut embedding.iter().map(|&v| f64::from(v))) / norm(&mut exact.iter().copied());
    }
    sum / exact.len() as f64
}

#[test]
fn integers_follow_the_reference() {
    for (size, tile, patch, padding, bands) in [
        ("yocto", 64, 16, StemPadding::Same, 3),
        ("yocto", 58, 8, StemPadding::None, 5),
        ("yocto", 50, 16, StemPadding::None, 2),
        ("yocto", 96, 32, StemPadding::Same, 1),
        ("zepto", 48, 8, StemPadding::Same, 12),
    ] {
        let architecture = Architecture { stem_padding: padding, ..Architecture::named(size, tile, patch).unwrap() };
        let names = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"];
        let cosine = cosine(architecture, &names[..bands], 7);
        println!("{size} {tile}/{patch} {padding:?} {bands} bands: {cosine:.5}");
        assert!(cosine > 0.998, "{size} {tile}/{patch} {padding:?}: {cosine}");
    }
}

/// A model with right checksums and random weights in every section: an embedding comes out, and no arithmetic overflows (tests run
/// with overflow checks).
#[test]
fn hostile_weights_cannot_break_the_engine() {
    let mut random = Random::new(3);
    let architecture = Architecture { dims: [8, 8, 16, 24], ..Architecture::named("yocto", 32, 16).unwrap() };
    let encoder = random_encoder(architecture, &["B2", "B3"], 1);
    let bytes = AlignedBytes::copy_of(&convert(&encoder, &random_tiles(2, 2, 32, 1)).unwrap());
    let honest = Model::parse(&bytes).unwrap();
    let tile = random_tiles(1, 2, 32, 9);
    for round in 0..60 {
        let extreme = round % 3 == 0;
        let sections: Vec<SectionData> = (0..honest.section_count())
            .map(|i| {
                let spec = honest.expected(i).unwrap();
                let mut bits = || match random.below(3) {
                    0 if extreme => i64::MIN,
                    1 if extreme => i64::MAX,
                    _ => random.bits() as i64,
                };
                // The shift keeps the extremes of i64 the extremes of the narrower type.
                match (spec.name, spec.dtype) {
                    ("constants", _) => SectionData::I32(hostile_constants(honest.section(i), &mut bits)),
                    (_, Dtype::I8) => SectionData::I8((0..spec.elements).map(|_| (bits() >> 56) as i8).collect()),
                    (_, Dtype::I16) => SectionData::I16((0..spec.elements).map(|_| (bits() >> 48) as i16).collect()),
                    (_, Dtype::I32) => SectionData::I32((0..spec.elements).map(|_| (bits() >> 32) as i32).collect()),
                    _ => SectionData::I64((0..spec.elements).map(|_| bits()).collect()),
                }
            })
            .collect();
        let bytes = AlignedBytes::copy_of(&write_model(honest.header(), &sections).unwrap());
        let model = Model::parse(&bytes).unwrap();
        let engine = nadir::encoder::Encoder::new(&model);
        let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
        let mut embedding = [0.0f32; 24];
        engine.embed(tile.tile(0), &mut arena, &mut embedding).unwrap();
        assert!(embedding.iter().all(|v| v.is_finite()));
    }
}

/// Some constants changed as far as the parser lets them.
fn hostile_constants(honest: &[i32], bits: &mut dyn FnMut() -> i64) -> Vec<i32> {
    let mut constants = honest.to_vec();
    for value in &mut constants {
        if bits() & 1 == 0 {
            // Shifts, exponents and high words: any small number that every range holds.
            *value = match *value {
                1..=30 => 1 + (bits() & 15) as i32,
                v => v,
            };
        }
    }
    constants
}
