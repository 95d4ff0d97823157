//! The f32 and f16 engines against the float64 reference; the arena of all three.

use std::path::Path;

use nadir::encoder::{EmbedError, Encoder as Engine};
use nadir::kernels::float::FloatKernels;
use nadir::model::{Architecture, Model, Precision, StemPadding};
use nadir_formats::{AlignedBytes, BandCard, Encoder, Matrix, ModelCard, Pixels, Provenance, Tensor, Tiles};
use nadir_quantize::compare::Agreement;
use nadir_quantize::embed::embed;
use nadir_quantize::float::convert;
use nadir_quantize::int8;
use nadir_quantize::reference::Reference;
use nadir_quantize::testing::{random_encoder, random_tiles};

/// The embeddings by one set of kernels.
fn embed_with(kernels: &'static FloatKernels, model: &Model<'_>, tiles: &Tiles) -> Vec<Vec<f64>> {
    let engine = Engine::new(model).with_kernels(kernels.name).unwrap();
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    let mut out = vec![0.0; model.embedding_dimension()];
    let mut one = |i| {
        engine.embed(tiles.tile(i), &mut arena, &mut out).unwrap();
        out.iter().map(|&v| f64::from(v)).collect()
    };
    (0..tiles.len()).map(&mut one).collect()
}

/// Of each set of kernels that this processor can run, with the reference.
fn agreements(encoder: &Encoder, tiles: &Tiles, precision: Precision) -> Vec<(&'static str, Agreement)> {
    let bytes = AlignedBytes::copy_of(&convert(encoder, precision).unwrap());
    let model = Model::parse(&bytes).unwrap();
    let expected = Reference::new(encoder).embed_all(tiles);
    FloatKernels::available().map(|set| (set.name, Agreement::of(&embed_with(set, &model, tiles), &expected))).collect()
}

/// Every border: even and odd maps, each stem, channels that fill no panel, bands from 1 to 20.
fn cases() -> Vec<(Architecture, usize)> {
    let yocto = Architecture::named("yocto", 64, 16).unwrap();
    let small = Architecture { depths: [1, 1, 2, 1], dims: [5, 12, 17, 30], ..yocto };
    vec![
        (yocto, 3),
        (Architecture { patch_size: 8, tile_size: 40, ..yocto }, 13),
        (Architecture { patch_size: 8, tile_size: 61, stem_padding: StemPadding::None, ..small }, 2),
        (Architecture { patch_size: 8, tile_size: 16, stem_padding: StemPadding::None, ..small }, 1),
        (Architecture { patch_size: 16, tile_size: 75, stem_padding: StemPadding::None, ..small }, 3),
        (Architecture { patch_size: 16, tile_size: 33, ..small }, 4),
        (Architecture { patch_size: 32, tile_size: 131, stem_padding: StemPadding::None, ..small }, 3),
        (Architecture { patch_size: 32, tile_size: 64, grn_eps: 1e-4, ..small }, 3),
        (Architecture { patch_size: 32, tile_size: 75, stem_padding: StemPadding::Patchify, ..small }, 3),
        (Architecture { patch_size: 32, tile_size: 64, stem_padding: StemPadding::Patchify, ..yocto }, 20),
        (Architecture { patch_size: 16, tile_size: 41, stem_padding: StemPadding::Patchify, ..small }, 13),
        (Architecture { patch_size: 8, tile_size: 17, stem_padding: StemPadding::Patchify, ..small }, 1),
    ]
}

const BANDS: [&str; 20] = [
    "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12", "VV", "VH", "slope", "aspect",
    "height", "age", "water",
];

#[test]
fn f32_equals_the_reference() {
    for (i, (architecture, bands)) in cases().into_iter().enumerate() {
        let encoder = random_encoder(architecture, &BANDS[..bands], i as u64);
        let tiles = random_tiles(3, bands, usize::from(architecture.tile_size), 7 + i as u64);
        for (set, found) in agreements(&encoder, &tiles, Precision::F32) {
            println!("{set} {architecture:?}: relative error {:.2e}", found.relative_error);
            assert!(found.relative_error <= 2e-6, "{set} {architecture:?}: {}", found.relative_error);
        }
    }
}

#[test]
fn f16_is_near_the_reference() {
    for (i, (architecture, bands)) in cases().into_iter().enumerate() {
        let encoder = random_encoder(architecture, &BANDS[..bands], i as u64);
        let tiles = random_tiles(3, bands, usize::from(architecture.tile_size), 7 + i as u64);
        for (set, found) in agreements(&encoder, &tiles, Precision::F16) {
            println!("{set} {architecture:?}: least cosine {:.6}", found.percentile(0.0));
            assert!(found.percentile(0.0) >= 0.9999, "{set} {architecture:?}: {}", found.percentile(0.0));
        }
    }
}

#[test]
fn all_pixel_types_and_no_data_agree() {
    let architecture = Architecture::named("yocto", 32, 16).unwrap();
    let encoder = random_encoder(architecture, &["B4", "B3", "B2"], 1);
    let Tiles { shape, pixels: Pixels::U8(mut bytes) } = random_tiles(2, 3, 32, 2) else { unreachable!() };
    // 0 is no data.
    bytes[100..300].fill(0);
    let bytes_as = |pixels| Tiles { shape, pixels };
    let u8s = bytes_as(Pixels::U8(bytes.clone()));
    let u16s = bytes_as(Pixels::U16(bytes.iter().map(|&v| v.into()).collect()));
    let mut floats: Vec<f32> = bytes.iter().map(|&v| v.into()).collect();
    let f32s = bytes_as(Pixels::F32(floats.clone()));
    floats[150] = f32::NAN;
    floats[151] = f32::INFINITY;
    let missing = bytes_as(Pixels::F32(floats));
    for (set, found) in agreements(&encoder, &u8s, Precision::F32) {
        assert!(found.relative_error <= 2e-6, "{set}: {}", found.relative_error);
    }

    let file = AlignedBytes::copy_of(&convert(&encoder, Precision::F32).unwrap());
    let model = Model::parse(&file).unwrap();
    let expected = embed(&model, &u8s, || ()).unwrap();
    for tiles in [u16s, f32s, missing] {
        assert_eq!(embed(&model, &tiles, || ()).unwrap(), expected);
    }
    // The mean in place of no data: the same again.
    bytes[100..300].fill(90);
    assert_eq!(embed(&model, &bytes_as(Pixels::U8(bytes)), || ()).unwrap(), expected);
}

#[test]
fn the_arena_is_exactly_as_large_as_said() {
    for (i, (architecture, bands)) in cases().into_iter().enumerate() {
        let encoder = random_encoder(architecture, &BANDS[..bands], i as u64);
        let tiles = random_tiles(1, bands, usize::from(architecture.tile_size), 3);
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            let file = AlignedBytes::copy_of(&match precision {
                Precision::Int8 => int8::convert(&encoder, &tiles).unwrap(),
                _ => convert(&encoder, precision).unwrap(),
            });
            let model = Model::parse(&file).unwrap();
            let engine = Engine::new(&model);
            let needed = engine.arena_bytes();
            let mut memory = AlignedBytes::zeroed(needed + 64);
            memory.fill(0xa5);
            let mut out = vec![0.0; model.embedding_dimension()];
            engine.embed(tiles.tile(0), &mut memory, &mut out).unwrap();
            assert!(memory[needed..].iter().all(|&b| b == 0xa5), "written beyond the arena");
            // The last region of an int8 arena is for four pixels at once, which the smallest maps do not have.
            let untouched = memory[..needed].iter().rev().take_while(|&&b| b == 0xa5).count();
            let spare = if precision == Precision::Int8 && architecture.grids()[3] < 2 { 1024 } else { 64 };
            assert!(untouched < spare, "{untouched} bytes at the end of the arena were never used");
            // What the arena held before does not show.
            memory.fill(0x7f);
            let mut again = vec![0.0; out.len()];
            engine.embed(tiles.tile(0), &mut memory, &mut again).unwrap();
            assert!(out == again && out.iter().all(|v| v.is_finite()));
            let short = engine.embed(tiles.tile(0), &mut memory[..needed - 1], &mut out);
            assert_eq!(short, Err(EmbedError::ArenaTooSmall { found: needed - 1, needed }));
        }
    }
}

#[test]
fn wrong_buffers_are_named() {
    let encoder = random_encoder(Architecture::named("yocto", 32, 16).unwrap(), &["B4", "B3", "B2"], 1);
    let file = AlignedBytes::copy_of(&convert(&encoder, Precision::F32).unwrap());
    let model = Model::parse(&file).unwrap();
    let engine = Engine::new(&model);
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes() + 16);
    let (tile, mut out) = (random_tiles(1, 3, 32, 1), vec![0.0; 128]);
    let error = |tile, arena: &mut [u8], out: &mut [f32]| engine.embed(tile, arena, out).unwrap_err().to_string();
    let short = nadir::Tile::U8(&[0; 3 * 31 * 32]);
    assert_eq!(
        error(short, &mut arena, &mut out),
        "tile has 2976 values, the model takes 3072 (3 bands of 32x32 pixels)"
    );
    assert_eq!(error(tile.tile(0), &mut arena, &mut out[1..]), "embedding has 128 values, there is place for 127");
    assert!(error(tile.tile(0), &mut arena[8..], &mut out).contains("must be a multiple of 16"));
    assert!(error(tile.tile(0), &mut arena[..160], &mut out).starts_with("arena has 160 bytes, "));
}

/// Vectors computed by PyTorch from MMEarth's own code, outside this repository.
#[test]
fn f32_equals_mmearth_vectors() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/peers/models");
    let weights = folder.join("weights_p8.safetensors");
    if !weights.exists() {
        println!("SKIPPED: {} is not there, MMEarth's vectors were not compared", weights.display());
        return;
    }
    let architecture =
        Architecture { grn_eps: 1e-4, stem_padding: StemPadding::None, ..Architecture::named("atto", 56, 8).unwrap() };
    let band = |name: usize| BandCard {
        name: format!("band{name}"),
        unit: "normalised".into(),
        mean: 0.0,
        std: 1.0,
        no_data: None,
        saturation: None,
    };
    let card = ModelCard {
        name: "mmearth-atto".into(),
        architecture,
        bands: (0..12).map(band).collect(),
        embedding_space: "mmearth".into(),
        provenance: Provenance::default(),
    };
    let bytes = std::fs::read(weights).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        (name.to_owned(), Tensor { shape: view.shape().to_vec(), data })
    });
    let encoder = Encoder { card, tensors: tensors.collect() };
    let tiles = Tiles::read(&folder.join("x_p8_56.npy")).unwrap();
    let expected = Matrix::read(&folder.join("y_p8_56.npy")).unwrap();
    let rows = |m: &Matrix| -> Vec<Vec<f64>> {
        (0..m.rows).map(|i| m.row(i).iter().map(|&v| f64::from(v)).collect()).collect()
    };
    let file = AlignedBytes::copy_of(&convert(&encoder, Precision::F32).unwrap());
    let model = Model::parse(&file).unwrap();
    let expected = rows(&expected);
    let exact = Reference::new(&encoder).embed_all(&tiles);
    let reference = Agreement::of(&exact, &expected).relative_error;
    assert!(reference <= 2e-6, "{reference}");
    for set in FloatKernels::available() {
        let found = embed_with(set, &model, &tiles);
        let pytorch = Agreement::of(&found, &expected).relative_error;
        let float64 = Agreement::of(&found, &exact).relative_error;
        println!("{}: relative error {pytorch:.2e} against PyTorch, {float64:.2e} against float64", set.name);
        assert!(pytorch <= 2e-6 && float64 <= 2e-6, "{}: {pytorch} {float64}", set.name);
    }
}
