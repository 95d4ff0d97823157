//! Training rounds as the quantizer and the integer engine do: the shipped student, calibrated on the train tiles of the samples
//! and looked at on the held-out ones.

use candle_core::Device;
use nadir::model::Model;
use nadir_formats::{AlignedBytes, Encoder as EncoderFile, Matrix, Tiles, read_integers};
use nadir_quantize::int8::methods::Method;
use nadir_quantize::int8::{Choice, Correction, Options, Rounding, convert_with};
use nadir_tests::{cosine, root};
use nadir_trainer::data::{AS_IS, input};
use nadir_trainer::encoder::Encoder;
use nadir_trainer::quantization::Quantization;
use nadir_trainer::run::embed_tiles;

/// 1 less the mean cosine.
fn distance(a: &Matrix, b: &Matrix) -> f64 {
    (0..a.rows).map(|i| 1.0 - cosine(a.row(i), b.row(i))).sum::<f64>() / a.rows as f64
}

/// The encoder's embeddings of `held` in float, as training computes them rounded, and by the integer engine.
fn three(file: &EncoderFile, encoder: &Encoder, train: &Tiles, held: &Tiles) -> [Matrix; 3] {
    let bands = &file.card.bands;
    let float = embed_tiles(encoder, held, bands, AS_IS, "").unwrap();
    let quantization = Quantization::calibrate(encoder, train, bands).unwrap();
    let rounded = quantization.apply(encoder).unwrap();
    let draws: Vec<_> = (0..held.len()).map(|i| (i, AS_IS)).collect();
    let embed = |draws: &[_]| rounded.embed(&input(held, bands, draws, &Device::Cpu).unwrap()).unwrap();
    let embed = |draws: &[_]| embed(draws).detach().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let rounded = Matrix { data: draws.chunks(8).flat_map(embed).collect(), ..float };
    let tensors = encoder.params().export().unwrap();
    // Training rounds each weight by itself, by the scales of least squared error.
    let correction = Correction { rounding: Rounding::Nearest, ..Correction::default() };
    let options = Options { calibration: Choice::Fixed(Method::MeanSquare), correction };
    let file = EncoderFile { card: file.card.clone(), tensors };
    let bytes = AlignedBytes::copy_of(&convert_with(&file, train, options, &|| {}).unwrap().file);
    let int8 = nadir_quantize::embed::embed(&Model::parse(&bytes).unwrap(), held, || {}).unwrap();
    [float, rounded, int8]
}

#[test]
fn training_rounds_as_the_engine_does() {
    let folder = root().join("samples/eurosat-rgb");
    let (tiles, split) =
        (Tiles::read(&folder.join("tiles.npy")).unwrap(), read_integers(&folder.join("split.npy")).unwrap());
    let of_split = |code| tiles.pick(&(0..split.len()).filter(|&i| split[i] == code).collect::<Vec<_>>());
    let (train, held) = (of_split(0), of_split(2));
    let file = EncoderFile::read(&root().join("models/yocto-rgb.safetensors")).unwrap();
    let card = &file.card;
    let encoder = Encoder::from_tensors(&card.architecture, card.bands.len(), &file.tensors, &Device::Cpu).unwrap();
    let [float, rounded, int8] = three(&file, &encoder, &train, &held);
    println!(
        "float from int8 {:.2e}, rounded from int8 {:.2e}, rounded from float {:.2e}",
        distance(&float, &int8),
        distance(&rounded, &int8),
        distance(&rounded, &float),
    );
    // 0.21 of it; the rest is what the engine rounds in more than eight bits.
    assert!(distance(&rounded, &int8) < 0.25 * distance(&float, &int8));
}
