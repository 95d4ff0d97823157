//! Encoders and tiles made from a seed, for tests of this and other crates.

use nadir::model::int8_layout::{BLOCK_SECTIONS, RAISED, STEM_NORM_FRACTION_BITS, start};
use nadir::model::{Architecture, Band, Dtype, Header, Model, Place, Precision, SectionSpec, expected_section};
use nadir_formats::{AlignedBytes, BandCard, Encoder, ModelCard, Pixels, Provenance, Tensor, Tiles, expected_shapes};

use crate::writer::{Section, SectionData, write_file, write_model};

/// A small generator (SplitMix64): the same numbers on every machine.
pub struct Random(u64);

impl Random {
    /// A generator whose sequence is fixed by `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x6a09_e667_f3bc_c909)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n; `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Mean 0, variance 1, nearly normal (the sum of twelve uniform numbers), at most 6 in magnitude.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// An encoder with random weights of the scale of trained ones: every layer keeps the scale of its input, LayerNorm weights and GRN
/// gammas spread as training leaves them. Each band is 8-bit, mean 90, standard deviation 40, no data 0, saturation 255.
///
/// # Panics
/// If `architecture` is not valid.
pub fn random_encoder(architecture: Architecture, bands: &[&str], seed: u64) -> Encoder {
    architecture.validate().expect("a valid architecture");
    let mut random = Random::new(seed);
    let mut tensors = std::collections::BTreeMap::new();
    for (name, shape) in expected_shapes(&architecture, bands.len()) {
        let inputs: usize = shape[1..].iter().product();
        let mut value = || {
            let n = random.normal();
            if name.ends_with(".grn.gamma") {
                0.5 * n
            } else if name.ends_with(".bias") || name.ends_with(".grn.beta") {
                0.1 * n
            } else if shape.len() > 1 {
                n / (inputs as f64).sqrt()
            } else {
                // The weight of a LayerNorm.
                (0.3 * n).exp()
            }
        };
        let data = (0..shape.iter().product()).map(|_| value() as f32).collect();
        tensors.insert(name, Tensor { shape, data });
    }
    let band = |name: &&str| BandCard {
        name: (*name).into(),
        unit: "grey level".into(),
        mean: 90.0,
        std: 40.0,
        no_data: Some(0.0),
        saturation: Some(255.0),
    };
    let card = ModelCard {
        name: format!("random-{seed}"),
        architecture,
        bands: bands.iter().map(band).collect(),
        embedding_space: String::new(),
        provenance: Provenance {
            made_by: "nadir_quantize::testing".into(),
            data: "none".into(),
            recipe: format!("random, seed {seed}"),
            licence: "MIT OR Apache-2.0".into(),
        },
    };
    let mut encoder = Encoder { card, tensors };
    encoder.card.embedding_space = encoder.space_of_weights();
    encoder
}

/// `count` u8 tiles `[bands, size, size]` that differ from each other: a few waves in each, and noise.
pub fn random_tiles(count: usize, bands: usize, size: usize, seed: u64) -> Tiles {
    let mut random = Random::new(seed);
    let mut pixels = Vec::with_capacity(count * bands * size * size);
    for _ in 0..count {
        let level = 60.0 + 60.0 * random.uniform();
        let waves: Vec<[f64; 4]> = (0..4)
            .map(|_| [random.normal() * 0.2, random.normal() * 0.2, random.uniform() * 6.3, 30.0 * random.uniform()])
            .collect();
        for _ in 0..bands {
            let mix: Vec<f64> = waves.iter().map(|_| random.normal()).collect();
            for i in 0..size * size {
                let (y, x) = ((i / size) as f64, (i % size) as f64);
                let wave = |(w, m): (&[f64; 4], &f64)| m * w[3] * (w[0] * y + w[1] * x + w[2]).sin();
                let value = level + waves.iter().zip(&mix).map(wave).sum::<f64>() + 6.0 * random.normal();
                pixels.push(value.clamp(1.0, 255.0) as u8);
            }
        }
    }
    Tiles { shape: [count, bands, size, size], pixels: Pixels::U8(pixels) }
}

/// An int8 model file made of integers alone: no rounding of floats, hence the same bytes on every machine and with every compiler.
///
/// All sections hold random numbers of the scale of trained ones, also where weights fill up panels and inputs. Hard swish stands for GELU, because
/// it can be computed with integers. Bands count 16-bit reflectances of mean 1500 and standard deviation 900.
///
/// # Panics
/// If `architecture` is not valid, or has channels that are not multiples of 8.
pub fn random_int8_model(name: &str, architecture: Architecture, bands: &[&str], seed: u64) -> Vec<u8> {
    architecture.validate().expect("a valid architecture");
    assert!(architecture.dims.iter().all(|d| d % 8 == 0), "channels must be multiples of 8");
    let band = |name: &&str| Band {
        name: (*name).try_into().expect("a short name"),
        unit: "reflectance x 10000".try_into().expect("a short unit"),
        mean: MEAN as f32,
        std: STD as f32,
        no_data: Some(0.0),
        saturation: None,
    };
    let header = Header {
        name,
        embedding_space: name,
        model_version: 1,
        precision: Precision::Int8,
        architecture,
        embedding_dimension: architecture.dims[3],
        bands: bands.iter().map(band).collect(),
        provenance: nadir::model::Provenance { made_by: "nadir_quantize::testing", ..Default::default() },
    };
    let mut random = Random::new(seed);
    let sections = (0..).map_while(|i| expected_section(&architecture, bands.len(), Precision::Int8, i));
    let sections: Vec<_> =
        sections.map(|spec| random_section(&spec, &architecture, bands.len(), &mut random)).collect();
    write_model(&header, &sections).expect("all limits are kept")
}

/// The tensors of the int8 model `file` with the second pointwise layers of `blocks` raised, and nothing else changed: with biases that were not made
/// for it, which changes the embeddings a little.
///
/// # Panics
/// If it is no int8 model, or a place is no block of it.
pub fn raise(file: &[u8], blocks: &[Place]) -> Vec<u8> {
    let file = AlignedBytes::copy_of(file);
    let model = Model::parse(&file).expect("a model");
    let mut sections = Section::all_of(&model);
    sections.truncate((0..).take_while(|&i| model.expected(i).is_some()).count());
    for &place in blocks {
        let constants = &mut sections[start(model.architecture(), place) + BLOCK_SECTIONS - 1].bytes;
        let shift = constants.last_chunk_mut().expect("constants");
        *shift = (i32::from_le_bytes(*shift) + RAISED).to_le_bytes();
    }
    write_file(model.header(), &sections, false).expect("an int8 model")
}

/// Of every band of [`random_int8_model`].
const MEAN: i64 = 1500;
const STD: i64 = 900;
/// The power of two of its input multipliers.
const INPUT_SHIFT: i32 = 16;
/// Standard deviation of the inputs of its matrix layers, and of the indices of its tables.
const SPREAD: i64 = 32;
/// Its tables' index of zero.
const ZERO_POINT: i32 = -64;
/// Powers of two of the stem's two affine steps.
const AFFINE_SHIFTS: [i32; 2] = [20, 14];
/// Power of two of the head's gain.
const HEAD_SHIFT: i32 = 24;

/// Uniform in `low..=high`.
fn between(random: &mut Random, low: i64, high: i64) -> i64 {
    low + random.below((high - low + 1) as usize) as i64
}

/// The largest accumulator that is usual, and the shift that brings it to `target`.
fn usual(inputs: usize, input: i64, target: i64) -> (i64, i32) {
    // Weights are uniform in -127..=127: 73 is their root mean square.
    let accumulator = (inputs as i64).isqrt().max(1) * 73 * input;
    (accumulator, (accumulator / target).max(1).ilog2() as i32)
}

/// The usual accumulator and the shift of the layer that a section or constant belongs to.
fn layer(place: Place, name: &str, arch: &Architecture, bands: usize) -> (i64, i32) {
    let dim = |stage: u8| arch.dim(stage.into());
    match place {
        Place::Stem if arch.is_patchify() => usual(arch.patchify_inputs(bands), 2048, 4096),
        Place::Stem if name.starts_with("initial") => usual(9 * bands, 2048, 4096),
        Place::Stem => usual(arch.stem_stride().pow(2), 1000, 4096),
        Place::Downsample { stage } => usual(4 * dim(stage - 1), SPREAD, 2000),
        Place::Block { .. } if name.starts_with("depthwise") => usual(49, 2000, 4096),
        Place::Block { stage, .. } if name.starts_with("pointwise 1") => usual(dim(stage), SPREAD, SPREAD),
        Place::Block { stage, .. } => usual(4 * dim(stage), SPREAD, 500),
        Place::Head => (0, 0),
    }
}

/// The four constants of a LayerNorm over `channels` with `bits` fractional bits.
fn norm_constants(channels: usize, bits: u32) -> [i32; 4] {
    let log = channels.ilog2();
    [(channels as i32) << (28 - log), 28 - (log + bits) as i32, (channels * channels * 16) as i32, 0]
}

fn random_section(spec: &SectionSpec, arch: &Architecture, bands: usize, random: &mut Random) -> SectionData {
    let SectionSpec { place, name, dtype, elements } = *spec;
    let (accumulator, shift) = layer(place, name, arch, bands);
    let mut draw = |low: i64, high: i64| -> Vec<i64> { (0..elements).map(|_| between(random, low, high)).collect() };
    let values: Vec<i64> = match name {
        "input multiplier" => vec![2048 * (1 << INPUT_SHIFT) / STD; elements],
        "input offset" => vec![(1 << (INPUT_SHIFT - 1)) - MEAN * (2048 * (1 << INPUT_SHIFT) / STD); elements],
        "GELU table" => (-128..128)
            .map(|i| {
                let x = i - i64::from(ZERO_POINT);
                x * (x + 96).clamp(0, 192) * 21 / 192
            })
            .collect(),
        "initial norm gain" => draw(1 << 14, 3 << 14),
        "initial norm offset" => {
            let zero = (i64::from(ZERO_POINT) << AFFINE_SHIFTS[0]) + (1 << (AFFINE_SHIFTS[0] - 1));
            draw(zero - (8 << AFFINE_SHIFTS[0]), zero + (8 << AFFINE_SHIFTS[0]))
        }
        "stem norm gain" => draw(1 << 14, 3 << 14),
        "stem norm offset" => draw(-(100 << AFFINE_SHIFTS[1]), 100 << AFFINE_SHIFTS[1]),
        "GRN gain" => draw(700, 2100),
        "GRN slope" => draw(-700, 700),
        "norm gain" => draw(1 << 19, 3 << 19),
        "norm offset" => draw(0, 1 << (HEAD_SHIFT + 8)),
        "constants" => constants(place, arch, bands),
        _ if name.ends_with("weight") => draw(-127, 127),
        _ if name.ends_with("bias") => draw(-accumulator / 4, accumulator / 4 + (1 << shift)),
        _ => draw(20_000, 32_767),
    };
    match dtype {
        Dtype::I8 => SectionData::I8(values.into_iter().map(|v| v as i8).collect()),
        Dtype::I16 => SectionData::I16(values.into_iter().map(|v| v as i16).collect()),
        Dtype::I32 => SectionData::I32(values.into_iter().map(|v| v as i32).collect()),
        Dtype::I64 => SectionData::I64(values),
        Dtype::F32 | Dtype::F16 => unreachable!("an int8 model"),
    }
}

fn constants(place: Place, arch: &Architecture, bands: usize) -> Vec<i64> {
    let shift = |name: &str| layer(place, name, arch, bands).1;
    let values = match place {
        Place::Stem => {
            let norm = norm_constants(arch.dim(0), STEM_NORM_FRACTION_BITS);
            let [first, second] = AFFINE_SHIFTS;
            if arch.is_patchify() {
                return [&[INPUT_SHIFT, shift("stem")][..], &norm, &[second]]
                    .concat()
                    .into_iter()
                    .map(i64::from)
                    .collect();
            }
            [&[INPUT_SHIFT, shift("initial")][..], &norm, &[first, shift("stem")], &norm, &[second]].concat()
        }
        Place::Downsample { stage } => {
            [&norm_constants(arch.dim(usize::from(stage) - 1), SPREAD.ilog2())[..], &[shift("")]].concat()
        }
        Place::Block { stage, .. } => {
            let norm = norm_constants(arch.dim(stage.into()), SPREAD.ilog2());
            let rest = [shift("pointwise 1"), ZERO_POINT, 1, 0, shift("pointwise 2")];
            [&[shift("depthwise")][..], &norm, &rest].concat()
        }
        Place::Head => vec![1, 0, HEAD_SHIFT, 10],
    };
    values.into_iter().map(i64::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nadir::encoder::Encoder as Engine;
    use nadir::model::StemPadding;

    /// No map of a random integer model is saturated or dead, so that its hashes tell wrong kernels from right ones.
    #[test]
    fn random_integer_models_are_alive() {
        for architecture in [
            Architecture::named("atto", 56, 8).unwrap(),
            Architecture { stem_padding: StemPadding::Patchify, ..Architecture::named("atto", 128, 32).unwrap() },
        ] {
            alive(architecture);
        }
    }

    fn alive(architecture: Architecture) {
        let side = architecture.tile_size.into();
        let file = AlignedBytes::copy_of(&random_int8_model("random", architecture, &["B2", "B3", "B4"], 1));
        let model = Model::parse(&file).unwrap();
        let Pixels::U8(bytes) = random_tiles(1, 3, side, 1).pixels else { unreachable!("tiles of bytes") };
        let pixels: Vec<u16> = bytes.iter().map(|&v| 20 * u16::from(v)).collect();
        let engine = Engine::new(&model);
        let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
        let mut embedding = vec![0.0; model.embedding_dimension()];
        let mut run = engine.start(nadir::Tile::U16(&pixels), &mut arena, &mut embedding).unwrap();
        let mut place = run.place();
        while run.step().unwrap() == nadir::encoder::Step::More {
            if run.place() == place {
                continue;
            }
            let map = run.residual().unwrap();
            let n = map.len();
            let saturated = map.iter().filter(|v| v.unsigned_abs() > 32_000).count();
            let distinct = map.iter().collect::<std::collections::BTreeSet<_>>().len();
            println!("{}: {saturated} of {n} saturated, {distinct} distinct", place.unwrap());
            assert!(saturated < n / 100 && distinct > 500, "{}: {saturated} of {n}, {distinct}", place.unwrap());
            place = run.place();
        }
        embedding.sort_by(f32::total_cmp);
        embedding.dedup();
        assert!(embedding.len() > 200, "{} distinct values", embedding.len());
    }
}
