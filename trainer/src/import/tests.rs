//! What is wrong with a checkpoint is said, all of it. That a good one computes what PyTorch computes is tested in
//! `tests/checkpoints.rs`.

use std::sync::Arc;

use nadir::model::Architecture;

use super::source::Entry;
use super::*;

/// A small checkpoint of MMEarth's structure: all twelve modalities, patches of 8 pixels.
fn source() -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/all-p8.pth");
    Source::read(&path).unwrap()
}

fn read(source: &Source) -> Result<Imported> {
    from_source(source, "checkpoint-199.pth", &Options { tile_size: Some(24), ..Options::default() })
}

fn refused(source: &Source, parts: &[&str]) {
    refused_with(source, &Options { tile_size: Some(24), ..Options::default() }, parts);
}

fn refused_with(source: &Source, options: &Options, parts: &[&str]) {
    let error = format!("{:#}", from_source(source, "checkpoint-199.pth", options).unwrap_err());
    for part in parts {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

fn entry<'a>(source: &'a mut Source, name: &str) -> &'a mut Entry {
    source.entries.iter_mut().find(|e| e.name == name).unwrap()
}

#[test]
fn good_checkpoints_are_taken() {
    let source = source();
    let imported = read(&source).unwrap();
    assert_eq!((imported.naming, imported.size, imported.tensors), (Naming::Sparse, None, 70));
    assert_eq!(imported.encoder.card.name, "mmearth-custom-p8-12");
    assert_eq!(imported.encoder.card.band_names(), TWELVE);
    assert!(imported.encoder.card.provenance.licence.contains("CC BY-NC 4.0"));
    assert_eq!(imported.encoder.tensor("norm.weight").data, [1.0; 16]);
    let whole = imported.whole.unwrap();
    assert_eq!((whole.decoders, whole.tasks.len(), whole.config.decoder_dim), (12, 12, 8));
    assert_eq!(whole.tasks[7].name, "lon");
    let model = whole.model(&candle_core::Device::Cpu).unwrap();
    assert_eq!(model.params().count(), whole.count());
}

#[test]
fn all_wrong_tensors_are_listed() {
    let mut bad = source();
    let gone = ["encoder.stages.2.1.grn.gamma", "pred_dict.biome.bias", "decoder_dict.lat.0.norm.weight"];
    bad.entries.retain(|e| !gone.contains(&e.name.as_str()));
    refused(&bad, &["3 tensors are missing", gone[0], gone[1], gone[2]]);
    entry(&mut bad, "proj.weight").shape = vec![4, 32, 1, 1];
    entry(&mut bad, "encoder.stem.0.bias").shape = vec![2, 2];
    refused(
        &bad,
        &["2 tensors are of another shape", "proj.weight [4, 32, 1, 1] instead of [8, 16]", "encoder.stem.0.bias"],
    );
    for name in ["encoder.head.weight", "pred_dict.weather.bias", "extra"] {
        let data: Arc<[f32]> = Arc::new([0.0]);
        bad.entries.push(Entry { name: name.into(), shape: vec![1], data });
    }
    let unexpected = "3 tensors are unexpected: encoder.head.weight, pred_dict.weather.bias, extra";
    refused(&bad, &["3 tensors are missing", "of another shape", unexpected]);
}

#[test]
fn released_sizes_need_all_their_blocks() {
    // The channels of atto, and a block too few.
    let atto = Architecture { tile_size: 56, ..Architecture::named("atto", 56, 8).unwrap() };
    let entries = names::wanted(Naming::Sparse, &atto, 12).into_iter().map(|w| {
        let data = vec![0.5; w.shape.iter().product()].into();
        Entry { name: w.from, shape: w.shape, data }
    });
    let mut source = Source { entries: entries.collect() };
    let imported = from_source(&source, "", &Options::default()).unwrap();
    assert_eq!((imported.size, imported.tensors, imported.parameters), (Some("atto"), 140, 3_389_320));
    assert!(imported.whole.is_none());
    source.entries.retain(|e| !e.name.starts_with("encoder.stages.2.5."));
    refused(&source, &["10 tensors are missing", "encoder.stages.2.5.dwconv.kernel", "encoder.stages.2.5.grn.beta"]);
}

#[test]
fn encoders_alone_are_taken_with_what_was_left_behind() {
    let mut alone = source();
    alone.entries.retain(|e| ["encoder.", "loss_fn.", "layer_norm_tmp."].iter().any(|p| e.name.starts_with(p)));
    let imported = read(&alone).unwrap();
    assert!(imported.whole.is_none());
    assert_eq!(imported.encoder, read(&source()).unwrap().encoder);
}

#[test]
fn decoders_must_be_one() {
    let mut bad = source();
    for name in ["decoder_dict.month.0.pwconv1.bias", "decoder_dict.era5.0.grn.beta"] {
        let entry = entry(&mut bad, name);
        entry.data = entry.data.iter().map(|v| v + 1e-7).collect();
    }
    refused(
        &bad,
        &["2 tensors differ from those of sentinel2", "decoder_dict.month.0.pwconv1.bias", "era5.0.grn.beta"],
    );
}

#[test]
fn bands_and_values_are_checked() {
    let mut bad = source();
    let kernel = entry(&mut bad, "encoder.initial_conv.0.kernel");
    kernel.shape = vec![9, 13, 4];
    kernel.data = vec![0.1; 9 * 13 * 4].into();
    refused(&bad, &["takes 13 bands, MMEarth's take 12 (B1,B2,B3,B4,B5,B6,B7,B8A,B8,B9,B11,B12) or 3 (B2,B3,B4)"]);
    let mut bad = source();
    for name in ["proj.bias", "encoder.stem.0.bias"] {
        let entry = entry(&mut bad, name);
        entry.data = entry.data.iter().map(|v| v / 0.0).collect();
    }
    let error = bad.checked().unwrap_err().to_string();
    assert!(error.contains("not finite in encoder.stem.0.bias, proj.bias"), "{error}");
}

#[test]
fn other_stems_are_refused_with_the_reason() {
    let file = |entries: &[(&str, &[usize])]| Source {
        entries: entries
            .iter()
            .map(|(name, shape)| {
                let data = vec![0.1; shape.iter().product()].into();
                Entry { name: (*name).into(), shape: shape.to_vec(), data }
            })
            .collect(),
    };
    let why = "no weights make these compute what another stem computes";
    let (meta, timm) = (("stages.0.0.dwconv.weight", &[40, 1, 7, 7][..]), "stages.0.blocks.0.conv_dw.weight");
    // Patches that Nadir does not have, windows that overlap, and one that is not square.
    for shape in [[40, 3, 8, 8], [40, 3, 3, 3], [40, 3, 2, 4]] {
        let other = file(&[("downsample_layers.0.0.weight", &shape), meta]);
        refused(&other, &[&format!("its stem is one convolution (downsample_layers.0.0.weight {shape:?})"), why]);
        let other = file(&[("stem.0.weight", &shape), (timm, meta.1)]);
        refused(&other, &[&format!("its stem is one convolution (stem.0.weight {shape:?})"), why]);
    }
    let sparse = file(&[("encoder.stem.0.kernel", &[16, 3, 40]), ("encoder.stages.0.0.dwconv.kernel", &[49, 40])]);
    refused(&sparse, &["its stem is one convolution (encoder.stem.0.kernel [16, 3, 40])", why]);
    refused(&file(&[meta]), &["it has neither initial_conv.0.weight nor downsample_layers.0.0.weight", why]);
    refused(&file(&[("conv1.weight", &[64, 3, 7, 7])]), &["no ConvNeXt V2 encoder", "conv1.weight"]);
}

/// An encoder of this shape under the given names.
fn dense(naming: Naming, architecture: &Architecture, bands: usize) -> Source {
    let wanted = names::wanted(naming, architecture, bands).into_iter().chain(names::final_norm(naming, architecture));
    let entries =
        wanted.map(|w| Entry { data: vec![0.5; w.shape.iter().product()].into(), name: w.from, shape: w.shape });
    Source { entries: entries.collect() }
}

#[test]
fn patchify_stems_are_taken_at_their_published_size() {
    let named = Architecture::named("atto", 224, 32).unwrap();
    let atto = Architecture { stem_padding: StemPadding::Patchify, ..named };
    for naming in [Naming::Meta, Naming::Timm] {
        let mut source = dense(naming, &atto, 3);
        let imported = from_source(&source, "atto.pt", &Options::default()).unwrap();
        assert_eq!(imported.encoder.card.architecture, atto);
        // 3 708 400 with the classifier.
        assert_eq!((imported.size, imported.tensors, imported.parameters), (Some("atto"), 138, 3_387_400));
        assert!(imported.final_norm && imported.whole.is_none());
        let card = imported.encoder.card;
        assert_eq!((card.name.as_str(), card.band_names()), ("imported-atto-p32-3", vec!["B4", "B3", "B2"]));
        let p = card.provenance;
        assert_eq!(p.recipe, "import of atto.pt, patchify stem, statistics of ImageNet");
        assert!(p.data == "not said by the file" && p.licence.contains("CC BY-NC 4.0"), "{p:?}");
        source.entries.retain(|e| !e.name.contains("downsample_layers.3.") && !e.name.contains("stages.3.downsample"));
        refused_with(&source, &Options::default(), &["4 tensors are missing"]);
    }
    let mut of_v1 = dense(Naming::Timm, &atto, 3);
    of_v1.entries.retain(|e| !e.name.contains(".grn."));
    refused_with(&of_v1, &Options::default(), &["24 tensors are missing", "stages.0.blocks.0.mlp.grn.weight"]);
}

#[test]
fn options_for_a_patchify_stem_are_checked() {
    let named = Architecture { dims: [4, 8, 8, 16], depths: [1; 4], ..Architecture::named("atto", 112, 16).unwrap() };
    let shape = Architecture { stem_padding: StemPadding::Patchify, ..named };
    let source = |bands| dense(Naming::Timm, &shape, bands);
    let patchify = StemPadding::Patchify;
    for (file, padding, why) in [
        (source(3), StemPadding::Same, "--stem-padding same, but the stem of this file is one convolution"),
        (source(3), StemPadding::None, "--stem-padding none, but the stem of this file is one convolution"),
        (self::source(), patchify, "--stem-padding patchify, but the stem of this file is MMEarth's"),
    ] {
        refused_with(&file, &Options { stem_padding: Some(padding), ..Options::default() }, &[why]);
    }
    let why = "takes 12 bands, ImageNet's models take 3 (red, green, blue); name them with --bands";
    refused_with(&source(12), &Options::default(), &[why]);
    // Bands that are named have MMEarth's statistics.
    let named = Options { bands: Some(TWELVE.map(str::to_owned).into()), ..Options::default() };
    let card = from_source(&source(12), "", &named).unwrap().encoder.card;
    assert_eq!((card.bands[3].mean, card.architecture.tile_size), (1899.1848, 112));
    assert!(card.provenance.recipe.contains("statistics of level L2A"));
}
