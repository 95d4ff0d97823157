//! The int8 engine against `docs/integer-arithmetic.md`, bit for bit.
//!
//! [`Integers`] was written from the text, in 128-bit integers and without the engine's code or its order of steps: where the two
//! differ, one of them is not what the text says.

use nadir::Tile;
use nadir::encoder::Encoder as Engine;
use nadir::model::{Architecture, Dtype, Model, ModelError, Place, StemPadding};
use nadir::plan::int8::Passes;
use nadir_formats::{AlignedBytes, Encoder, Pixels, Tiles};
use nadir_quantize::int8::{Mixable, Options, convert};
use nadir_quantize::integers::{Integers, Nowhere};
use nadir_quantize::testing::{Random, raise, random_encoder, random_tiles};
use nadir_quantize::writer::{SectionData, write_model};

/// The engine's embedding, from an arena full of anything.
fn engine(model: &Model<'_>, tile: Tile<'_>) -> Vec<f32> {
    let engine = Engine::new(model);
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    arena.fill(0xa5);
    let mut embedding = vec![0.0; model.embedding_dimension()];
    engine.embed(tile, &mut arena, &mut embedding).unwrap();
    embedding
}

fn same(model: &Model<'_>, tile: Tile<'_>, what: &str) {
    let (found, expected) = (engine(model, tile), Integers::new(model).unwrap().embed(tile, &mut Nowhere));
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{what}: value {i} is {f}, by the text {e}");
    }
}

/// The tile as u16, and as f32 with values that are not finite in place of some; the 8-bit values hold "no data".
fn other_types(tiles: &Tiles) -> Vec<Tiles> {
    let Pixels::U8(bytes) = &tiles.pixels else { unreachable!("tiles of bytes") };
    let wide = bytes.iter().map(|&v| u16::from(v) * 257).collect();
    let mut floats: Vec<f32> = bytes.iter().map(|&v| f32::from(v) * 1.37 - 20.0).collect();
    floats[5] = f32::NAN;
    floats[6] = f32::NEG_INFINITY;
    floats[7] = f32::MAX;
    [Pixels::U16(wide), Pixels::F32(floats)].map(|pixels| Tiles { shape: tiles.shape, pixels }).into()
}

#[test]
fn the_engine_follows_the_text() {
    let small = Architecture { dims: [6, 9, 12, 17], ..Architecture::named("yocto", 32, 16).unwrap() };
    for (tile_size, patch_size, stem_padding, bands) in [
        (32, 16, StemPadding::Same, 3),
        (21, 8, StemPadding::Same, 1),
        (23, 8, StemPadding::None, 2),
        (37, 16, StemPadding::None, 4),
        (66, 32, StemPadding::Same, 2),
        (75, 32, StemPadding::None, 3),
        (66, 32, StemPadding::Patchify, 3),
        (37, 16, StemPadding::Patchify, 4),
        (23, 8, StemPadding::Patchify, 1),
    ] {
        let architecture = Architecture { tile_size, patch_size, stem_padding, ..small };
        let names = ["B4", "B3", "B2", "B8A"];
        let encoder = random_encoder(architecture, &names[..bands], 3);
        let mut tiles = random_tiles(3, bands, tile_size.into(), 4);
        let Pixels::U8(bytes) = &mut tiles.pixels else { unreachable!("tiles of bytes") };
        bytes[40..90].fill(0);
        let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
        let model = Model::parse(&file).unwrap();
        let what = format!("{tile_size}/{patch_size} {stem_padding:?} {bands} bands");
        same(&model, tiles.tile(0), &what);
        other_types(&tiles).iter().for_each(|tiles| same(&model, tiles.tile(0), &what));
        let (one, other) = (engine(&model, tiles.tile(0)), engine(&model, tiles.tile(1)));
        assert!(one != other && one.iter().any(|&v| v != one[0]), "{what}: embeddings tell tiles apart");
    }
}

/// As many inputs as a patchify stem may have, and pixels at the ends of their range: nothing overflows (tests run with overflow checks).
#[test]
fn the_largest_patchify_stem_follows_the_text() {
    let (named, stem_padding) = (Architecture::named("yocto", 64, 32).unwrap(), StemPadding::Patchify);
    let architecture = Architecture { dims: [6, 9, 12, 17], stem_padding, ..named };
    let names: Vec<String> = (1..=20).map(|i| format!("B{i}")).collect();
    let encoder = random_encoder(architecture, &names.iter().map(String::as_str).collect::<Vec<_>>(), 3);
    let file = AlignedBytes::copy_of(&convert(&encoder, &random_tiles(3, 20, 64, 4)).unwrap());
    let model = Model::parse(&file).unwrap();
    for ends in [[0, u16::MAX], [u16::MAX, u16::MAX]] {
        let mut random = Random::new(6);
        let pixels: Vec<u16> = (0..model.tile_len()).map(|_| ends[random.below(2)]).collect();
        same(&model, Tile::U16(&pixels), &format!("{ends:?}"));
    }
}

/// Layers raised by themselves and together, calibrated and not, in one pass and in two.
#[test]
fn raised_layers_follow_the_text() {
    let small = Architecture { dims: [6, 9, 12, 17], ..Architecture::named("yocto", 32, 16).unwrap() };
    for (tile_size, patch_size, stem_padding) in [
        (32, 16, StemPadding::Same),
        (23, 8, StemPadding::None),
        (70, 8, StemPadding::Same),
        (65, 32, StemPadding::Patchify),
    ] {
        let architecture = Architecture { tile_size, patch_size, stem_padding, ..small };
        let encoder = random_encoder(architecture, &["B4", "B3"], 3);
        let tiles = random_tiles(3, 2, tile_size.into(), 4);
        let mixable = Mixable::convert(&encoder, &tiles, Options::default(), true, &|| {}).unwrap();
        let (plain, all) = (mixable.file(&[]).unwrap(), mixable.raisable());
        assert_eq!((all.len(), &plain), (6, &convert(&encoder, &tiles).unwrap()));
        let embedding = |file: &[u8]| {
            let file = AlignedBytes::copy_of(file);
            engine(&Model::parse(&file).unwrap(), tiles.tile(0))
        };
        let alone = all.iter().map(|place| vec![*place]);
        for raised in alone.chain([all.clone()]) {
            for file in [mixable.file(&raised).unwrap(), raise(&plain, &raised)] {
                assert_eq!(file.len(), plain.len(), "raised layers cost no bytes");
                assert_ne!(embedding(&file), embedding(&plain), "{raised:?}");
                let file = AlignedBytes::copy_of(&file);
                let model = Model::parse(&file).unwrap();
                assert_eq!(model.version_major(), if architecture.is_patchify() { 3 } else { 2 });
                assert!(all.iter().all(|place| model.is_raised(*place) == raised.contains(place)));
                same(&model, tiles.tile(0), &format!("{tile_size}/{patch_size} {raised:?}"));
                let scalar = Engine::new(&model).with_kernels("scalar").unwrap().with_passes([Passes::Two; 4]);
                let mut arena = AlignedBytes::zeroed(scalar.arena_bytes());
                let mut found = vec![0.0; model.embedding_dimension()];
                scalar.embed(tiles.tile(0), &mut arena, &mut found).unwrap();
                assert_eq!(found, engine(&model, tiles.tile(0)), "{raised:?}");
            }
        }
    }
}

fn hostile_base(stem_padding: StemPadding) -> (Encoder, Tiles) {
    let named = Architecture::named("yocto", 32, 16).unwrap();
    let architecture = Architecture { dims: [6, 8, 13, 24], stem_padding, ..named };
    (random_encoder(architecture, &["B2", "B3"], 1), random_tiles(2, 2, 32, 1))
}

/// Section 8's limits of the constants of a unit, in order.
fn limits(place: Place, stem: StemPadding) -> Vec<(i32, i32)> {
    const SHIFT: (i32, i32) = (0, 31);
    const WIDE_SHIFT: (i32, i32) = (1, 62);
    const WIDE: [(i32, i32); 2] = [(i32::MIN, i32::MAX), (0, (1 << 30) - 1)];
    let norm = [&[(1 << 28, (1 << 29) - 1), (-64, 64)][..], &WIDE].concat();
    match place {
        Place::Stem if stem == StemPadding::Patchify => [&[WIDE_SHIFT, SHIFT][..], &norm, &[SHIFT]].concat(),
        Place::Stem => [&[WIDE_SHIFT, SHIFT][..], &norm, &[SHIFT, SHIFT], &norm, &[SHIFT]].concat(),
        Place::Downsample { .. } => [&norm[..], &[SHIFT]].concat(),
        // From 32 on the layer is raised, and the file of version 2 (or 3).
        Place::Block { .. } => [&[SHIFT][..], &norm, &[SHIFT, (-128, 127)], &WIDE, &[(0, 57)]].concat(),
        Place::Head => [&WIDE[..], &[WIDE_SHIFT, (0, 24)]].concat(),
    }
}

/// The sections of a model, to be changed and written again.
fn sections(model: &Model<'_>) -> Vec<SectionData> {
    let section = |i| match model.expected(i).unwrap().dtype {
        Dtype::I8 => SectionData::I8(model.section(i).to_vec()),
        Dtype::I16 => SectionData::I16(model.section(i).to_vec()),
        Dtype::I32 => SectionData::I32(model.section(i).to_vec()),
        Dtype::I64 => SectionData::I64(model.section(i).to_vec()),
        other => panic!("{other} in an int8 model"),
    };
    (0..model.section_count()).map(section).collect()
}

/// Models with right checksums, random weights in every section, and constants anywhere within the limits: the engine does what the
/// text says, and nothing overflows (tests run with overflow checks).
#[test]
fn hostile_weights_cannot_break_the_engine() {
    [StemPadding::Same, StemPadding::Patchify].into_iter().for_each(hostile_weights);
}

fn hostile_weights(stem: StemPadding) {
    let mut random = Random::new(3);
    let (encoder, tiles) = hostile_base(stem);
    let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
    let honest = Model::parse(&file).unwrap();
    let tiles = random_tiles(1, 2, 32, 9);
    let mut alive = 0;
    for round in 0..90 {
        let (extreme, keep) = (round % 3 == 0, round % 4);
        let mut sections = sections(&honest);
        for (i, section) in sections.iter_mut().enumerate() {
            let spec = honest.expected(i).unwrap();
            let mut bits = || match random.below(3) {
                0 if extreme => i64::MIN,
                1 if extreme => i64::MAX,
                _ => random.bits() as i64,
            };
            // The shift keeps the extremes of i64 the extremes of the narrower type.
            match section {
                SectionData::I32(constants) if spec.name == "constants" => {
                    for (value, (min, max)) in constants.iter_mut().zip(limits(spec.place, stem)) {
                        let among = i64::from(max) - i64::from(min) + 1;
                        *value = match random.below(4) {
                            choice if choice < keep => *value,
                            0 => min,
                            1 => max,
                            _ => (i64::from(min) + (random.bits() >> 1) as i64 % among) as i32,
                        };
                    }
                }
                // Half of the rounds keep the weights, so that not everything saturates at once.
                _ if round % 2 == 1 && spec.dtype == Dtype::I8 => {}
                SectionData::I8(values) => values.iter_mut().for_each(|v| *v = (bits() >> 56) as i8),
                SectionData::I16(values) if spec.name == "GELU table" => {
                    values.iter_mut().for_each(|v| *v = ((bits() >> 48) as i16).clamp(-4095, 4095));
                }
                SectionData::I16(values) => values.iter_mut().for_each(|v| *v = (bits() >> 49) as i16 & i16::MAX),
                SectionData::I32(values) => values.iter_mut().for_each(|v| *v = (bits() >> 32) as i32),
                SectionData::I64(values) => values.iter_mut().for_each(|v| *v = bits()),
                SectionData::F32(_) | SectionData::F16(_) => unreachable!("an int8 model"),
            }
        }
        let file = AlignedBytes::copy_of(&write_model(honest.header(), &sections).unwrap());
        let model = Model::parse(&file).unwrap();
        same(&model, tiles.tile(0), &format!("round {round}"));
        let embedding = engine(&model, tiles.tile(0));
        alive += usize::from(embedding.iter().any(|&v| v != embedding[0]));
        other_types(&tiles).iter().for_each(|tiles| same(&model, tiles.tile(0), &format!("round {round}")));
    }
    assert!(alive > 45, "in only {alive} rounds the values differ at all");
}

/// Each constant at its limits is read; one beyond is refused, and named.
#[test]
fn constants_have_the_limits_of_the_text() {
    [StemPadding::Same, StemPadding::Patchify].into_iter().for_each(limits_of_constants);
}

fn limits_of_constants(stem: StemPadding) {
    let (encoder, tiles) = hostile_base(stem);
    let file = AlignedBytes::copy_of(&convert(&encoder, &tiles).unwrap());
    let honest = Model::parse(&file).unwrap();
    let mut units = 0;
    for index in (0..honest.section_count()).filter(|&i| honest.expected(i).unwrap().name == "constants") {
        let limits = limits(honest.expected(index).unwrap().place, stem);
        assert_eq!(honest.section::<i32>(index).len(), limits.len());
        for (at, (min, max)) in limits.into_iter().enumerate() {
            let with = |value: i32| {
                let mut sections = sections(&honest);
                let SectionData::I32(constants) = &mut sections[index] else { unreachable!("constants are i32") };
                constants[at] = value;
                write_model(honest.header(), &sections).map(drop)
            };
            with(min).unwrap();
            with(max).unwrap();
            for beyond in [min.checked_sub(1), max.checked_add(1)].into_iter().flatten() {
                let error = with(beyond).unwrap_err();
                match error.downcast_ref::<ModelError>() {
                    Some(ModelError::OutOfRange { index: i, element, .. }) => assert_eq!((*i, *element), (index, at)),
                    other => panic!("{other:?}"),
                }
            }
        }
        units += 1;
    }
    // Stem, three downsamplings, six blocks, head.
    assert_eq!(units, 1 + 3 + 6 + 1);
}
