//! The integer engine against the float64 reference.

use nadir::model::{Architecture, Model, StemPadding};
use nadir_formats::AlignedBytes;
use nadir_formats::scales::{Ends, HEADROOM, I16_MAX, MAX_CALIBRATION_TILES};

use super::layer::Layer;
use super::{Correction, convert};
use crate::reference::Reference;
use crate::testing::{random_encoder, random_tiles};

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
        ("yocto", 64, 32, StemPadding::Patchify, 3),
        ("zepto", 50, 16, StemPadding::Patchify, 12),
    ] {
        let architecture = Architecture { stem_padding: padding, ..Architecture::named(size, tile, patch).unwrap() };
        let names = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"];
        let cosine = cosine(architecture, &names[..bands], 7);
        println!("{size} {tile}/{patch} {padding:?} {bands} bands: {cosine:.5}");
        assert!(cosine > 0.998, "{size} {tile}/{patch} {padding:?}: {cosine}");
    }
}

/// A channel that training left without weights still gives its bias, and accumulators stay within i32.
#[test]
fn channels_without_weights_keep_their_bias() {
    let bias = [0.5, -0.5, 0.25, 0.0, 3.0];
    let largest = bias.map(f64::abs);
    let ends = Ends::of_values(0.01, 3.0 * HEADROOM / I16_MAX, &largest);
    let layer = Layer::new(
        &[1e-14, -1e-14, 0.0, 0.0, 0.5, 0.25, 0.0, 0.0, 1e-7, 0.0],
        2,
        &bias,
        &ends,
        None,
        Correction::default(),
    );
    for (i, bias) in bias.into_iter().enumerate() {
        assert!(layer.bias[i].abs() <= 1 << 30);
        let got = f64::from(nadir::kernels::fixed::requantize(layer.bias[i], layer.multiplier[i], layer.shift as u32));
        assert!((got * ends.output - bias).abs() <= 1e-3 * bias.abs() + ends.output, "channel {i}: {got} for {bias}");
    }
    assert_eq!([layer.weight[4] > 120, layer.weight[5] > 60], [true; 2], "{:?}", layer.weight);
}

/// Of many tiles a part, spread over all of them, sets the scales.
#[test]
fn calibration_takes_tiles_from_everywhere() {
    let named = Architecture::named("yocto", 16, 8).unwrap();
    let architecture = Architecture { depths: [1; 4], dims: [2, 2, 3, 3], ..named };
    let encoder = random_encoder(architecture, &["B4"], 1);
    let tiles = random_tiles(MAX_CALIBRATION_TILES, 1, 16, 1);
    // Each tile twice: every second of them are the tiles again.
    let twice: Vec<usize> = (0..2 * tiles.len()).map(|i| i / 2).collect();
    let model = convert(&encoder, &tiles).unwrap();
    assert!(convert(&encoder, &tiles.pick(&twice)).unwrap() == model);
    assert!(convert(&encoder, &random_tiles(9, 1, 16, 2)).unwrap() != model, "the tiles matter");
}
