//! The maps of every place against the reference's, and the scales that an int8 file tells.

use nadir::encoder::Encoder;
use nadir::model::{Architecture, Model, Place, Precision, STAGES, StemPadding};
use nadir_formats::AlignedBytes;
use nadir_quantize::maps::{maps, places, reference_maps, residual_scales, scale_range, stage_of};
use nadir_quantize::reference::Reference;
use nadir_quantize::testing::{random_encoder, random_tiles};
use nadir_quantize::{float, int8};

fn architecture() -> Architecture {
    Architecture {
        tile_size: 40,
        patch_size: 8,
        stem_padding: StemPadding::Same,
        depths: [1, 1, 2, 1],
        dims: [12, 20, 36, 40],
        grn_eps: 1e-6,
        ln_eps: 1e-6,
    }
}

#[test]
fn every_map_is_the_references() {
    let encoder = random_encoder(architecture(), &["B4", "B3", "B2"], 5);
    let reference = Reference::new(&encoder);
    let tiles = random_tiles(4, 3, 40, 6);
    let cases = [
        (float::convert(&encoder, Precision::F32).unwrap(), 1e-5),
        (float::convert(&encoder, Precision::F16).unwrap(), 3e-3),
        (int8::convert(&encoder, &tiles).unwrap(), 0.1),
    ];
    for (file, bound) in cases {
        let file = AlignedBytes::copy_of(&file);
        let model = Model::parse(&file).unwrap();
        let engine = Encoder::new(&model);
        let scales = residual_scales(&engine, &reference, &tiles).unwrap();
        let found = maps(&engine, &scales, tiles.tile(1)).unwrap();
        let expected = reference_maps(&reference, tiles.tile(1));
        assert_eq!(found.iter().map(|m| m.place).collect::<Vec<_>>(), places(&model));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.place, found.channels), (expected.place, expected.channels));
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
            let error = square(&mut found.values.iter().zip(&expected.values).map(|(f, e)| f - e));
            let relative = (error / square(&mut expected.values.iter().copied())).sqrt();
            assert!(relative < bound, "{} {}: {relative}", model.precision().name(), found.place);
        }
    }
}

/// The scale that a file was made with lies in the range that its epsilons give.
#[test]
fn a_file_tells_its_scales() {
    let encoder = random_encoder(architecture(), &["B4", "B3", "B2"], 5);
    let tiles = random_tiles(4, 3, 40, 6);
    let file = AlignedBytes::copy_of(&int8::convert(&encoder, &tiles).unwrap());
    let model = Model::parse(&file).unwrap();
    let reference = Reference::new(&encoder);
    for stage in 0..STAGES {
        let largest = (0..4).flat_map(|i| reference_maps(&reference, tiles.tile(i)));
        let of_stage = largest.filter(|map| map.place != Place::Head && stage_of(map.place) == stage);
        let largest = of_stage.flat_map(|map| map.values).fold(0.0f64, |m, v| m.max(v.abs()));
        let made_with = nadir_formats::scales::value_scale(largest);
        let [low, high] = scale_range(&model, stage).unwrap();
        println!("stage {stage}: {made_with:.4e} in {low:.4e} to {high:.4e}");
        assert!(low <= made_with && made_with <= high, "stage {stage}: {made_with} not in {low} to {high}");
    }
}
