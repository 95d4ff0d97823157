//! Encoders and tiles made from a seed, for tests of this and other crates.

use nadir::model::Architecture;
use nadir_formats::{BandCard, Encoder, ModelCard, Pixels, Provenance, Tensor, Tiles, expected_shapes};

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
