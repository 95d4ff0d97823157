//! Checks an ONNX file by running it in tract, which shares no code with our encoder.

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::Device;
use nadir_formats::{BandCard, Encoder as EncoderFile, Pixels, Tiles};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tract_onnx::prelude::*;

use crate::data::{AS_IS, input};
use crate::encoder::Encoder;

/// How far two embeddings may lie apart, as the norm of their difference over the norm of ours: both compute in f32, but
/// add in another order.
pub const BOUND: f64 = 1e-5;

/// Tiles of a check if the batch is free: more than one, and none of the sizes that a graph might have been made for.
const TILES: usize = 3;
/// Share of the pixels without data.
const MISSING: f64 = 0.02;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verified {
    /// Number of tiles.
    pub tiles: usize,
    /// The largest relative error of a tile's embedding: `|tract - ours| / |ours|`.
    pub error: f64,
}

/// Runs the ONNX file `bytes` in tract on random tiles and compares the embeddings with those of our f32 encoder: one batch
/// of `batch` tiles, or of 3 if it is free. Some pixels hold no data and some are NaN.
///
/// # Errors
/// If tract cannot read or run the file, or the embeddings have another shape or are not finite. An error beyond
/// [`BOUND`] is reported, not refused.
pub fn verify(bytes: &[u8], file: &EncoderFile, batch: Option<usize>) -> Result<Verified> {
    let card = &file.card;
    let (count, side) = (batch.unwrap_or(TILES), usize::from(card.architecture.tile_size));
    let shape = [count, card.bands.len(), side, side];
    let tiles = random_tiles(shape, &card.bands);
    let Pixels::F32(values) = &tiles.pixels else { unreachable!("random tiles are f32") };
    let theirs = run(bytes, shape, values).map_err(|e| anyhow!("tract cannot run the graph: {e:#}"))?;

    let encoder = Encoder::from_tensors(&card.architecture, card.bands.len(), &file.tensors, &Device::Cpu)?.frozen();
    let draws: Vec<_> = (0..count).map(|i| (i, AS_IS)).collect();
    let ours: Vec<f32> = encoder.embed(&input(&tiles, &card.bands, &draws, &Device::Cpu)?)?.flatten_all()?.to_vec1()?;
    ensure!(theirs.len() == ours.len(), "tract gives {} values, expected {}", theirs.len(), ours.len());
    let d = card.architecture.embedding_dimension();
    let errors = theirs.chunks(d).zip(ours.chunks(d)).map(|(a, b)| relative(a, b));
    let error = errors.fold(0.0, f64::max);
    ensure!(theirs.iter().chain(&ours).all(|v| v.is_finite()), "the embeddings of random tiles are not finite");
    Ok(Verified { tiles: count, error })
}

fn run(bytes: &[u8], shape: [usize; 4], values: &[f32]) -> Result<Vec<f32>> {
    let model = tract_onnx::onnx()
        .model_for_read(&mut &bytes[..])?
        .with_input_fact(0, f32::fact(shape).into())?
        .into_optimized()?
        .into_runnable()?;
    let outputs = model.run(tvec!(Tensor::from_shape(&shape, values)?.into()))?;
    let output = outputs.first().context("the graph has no output")?;
    Ok(output.to_plain_array_view::<f32>()?.iter().copied().collect())
}

/// Values around each band's mean, as far as its standard deviation goes, with missing ones among them.
fn random_tiles(shape: [usize; 4], bands: &[BandCard]) -> Tiles {
    let mut random = StdRng::seed_from_u64(7);
    let plane = shape[2] * shape[3];
    let mut value = |at: usize| {
        let band = &bands[at / plane % bands.len()];
        let (u, v): (f64, f64) = (random.random(), random.random());
        match (v < MISSING, band.no_data) {
            (true, Some(no_data)) if v < MISSING / 2.0 => no_data,
            (true, _) => f32::NAN,
            _ => band.mean + band.std * (4.0 * u - 2.0) as f32,
        }
    };
    let pixels = (0..shape.iter().product()).map(&mut value).collect();
    Tiles { shape, pixels: Pixels::F32(pixels) }
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{onnx, write_onnx, write_pytorch};
    use nadir::model::{Architecture, StemPadding};
    use nadir_formats::{ModelCard, Provenance, Tensor as Array};

    /// An encoder none of whose tensors is at its usual start.
    fn file(patch: u8, padding: StemPadding) -> EncoderFile {
        let mut random = StdRng::seed_from_u64(3);
        let architecture = Architecture {
            tile_size: 4 * u16::from(patch),
            patch_size: patch,
            stem_padding: padding,
            depths: [1, 1, 2, 1],
            dims: [8, 8, 16, 24],
            grn_eps: 1e-4,
            ln_eps: 1e-6,
        };
        let band = |(name, no_data): (&str, Option<f32>)| BandCard {
            name: name.into(),
            unit: "grey level".into(),
            mean: 800.0,
            std: 300.0,
            no_data,
            saturation: None,
        };
        let bands = [("B2", Some(0.0)), ("B3", None), ("B4", Some(65535.0))].map(band);
        let mut value = |shape: Vec<usize>| {
            let fan: usize = shape.iter().skip(1).product();
            let scale = if shape.len() == 1 { 0.5 } else { 2.0 / (fan as f32).sqrt() };
            let data = (0..shape.iter().product()).map(|_| scale * (random.random::<f32>() - 0.4)).collect();
            Array { shape, data }
        };
        let shapes = nadir_formats::expected_shapes(&architecture, bands.len());
        let tensors = shapes.into_iter().map(|(name, shape)| (name, value(shape))).collect();
        let card = ModelCard {
            name: "random".into(),
            architecture,
            bands: bands.into(),
            embedding_space: "random".into(),
            provenance: Provenance::default(),
        };
        EncoderFile { card, tensors }
    }

    #[test]
    fn tract_gives_our_embeddings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.onnx");
        for (patch, padding) in [
            (8, StemPadding::Same),
            (8, StemPadding::None),
            (16, StemPadding::None),
            (32, StemPadding::Same),
            (16, StemPadding::Patchify),
            (32, StemPadding::Patchify),
        ] {
            for batch in [None, Some(2)] {
                let file = file(patch, padding);
                let found = write_onnx(&file, batch, &path).unwrap();
                println!("patch {patch}, {padding:?}, batch {batch:?}: relative error {:.2e}", found.error);
                assert!(found.tiles == batch.unwrap_or(3) && found.error <= BOUND);
                assert_eq!(std::fs::read(&path).unwrap(), onnx(&file, batch).unwrap());
            }
        }
    }

    #[test]
    fn a_graph_of_another_encoder_is_found_out() {
        let file = file(8, StemPadding::Same);
        let bytes = onnx(&file, None).unwrap();
        for name in ["stages.2.1.grn.beta", "norm.bias", "initial_conv.0.weight"] {
            let mut other = file.clone();
            other.tensors.get_mut(name).unwrap().data[0] += 0.5;
            let error = verify(&bytes, &other, None).unwrap().error;
            assert!(error > BOUND, "{name}: {error}");
        }
        let error = verify(&bytes[..bytes.len() / 2], &file, None).unwrap_err().to_string();
        assert!(error.contains("tract cannot run the graph"), "{error}");
    }

    #[test]
    fn pytorch_files_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("e.safetensors"), file(16, StemPadding::Same));
        let card = write_pytorch(&file, &path).unwrap();
        assert_eq!(card, dir.path().join("e.card.json"));
        assert_eq!(EncoderFile::read(&path).unwrap(), file);
    }
}
