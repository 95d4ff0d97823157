//! Import and export of checkpoints as a user runs them, against PyTorch (`tests/scripts/make_checkpoints.py`).

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use nadir::model::StemPadding;
use nadir_formats::{Encoder as EncoderFile, Matrix, Pixels, Tiles};
use nadir_trainer::encoder::Encoder;
use nadir_trainer::import::{Imported, Naming, Options, Whole, import};
use nadir_trainer::mask::Mask;
use nadir_trainer::mpmae::{Target, TaskKind};
use safetensors::SafeTensors;

use common::relative;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

/// What PyTorch computed.
fn expected() -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixture("expected.safetensors")).unwrap();
    let values = |b: &[u8]| b.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    SafeTensors::deserialize(&bytes).unwrap().iter().map(|(k, v)| (k.to_owned(), values(v.data()))).collect()
}

/// The script's `series`: numbers from -1 to 1.
fn series(from: usize, n: usize) -> Vec<f64> {
    (from..from + n).map(|i| (i * 7919 % 2003) as f64 / 1001.0 - 1.0).collect()
}

fn tensor(from: usize, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = series(from, shape.iter().product()).iter().map(|v| *v as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn read(name: &str, stem_padding: StemPadding, tile_size: u16) -> Imported {
    import(
        &fixture(name),
        &Options { stem_padding: Some(stem_padding), tile_size: Some(tile_size), ..Options::default() },
    )
    .unwrap()
}

fn embed(imported: &Imported, x: &Tensor) -> Vec<f32> {
    let (card, tensors) = (&imported.encoder.card, &imported.encoder.tensors);
    let encoder = Encoder::from_tensors(&card.architecture, card.bands.len(), tensors, &Device::Cpu).unwrap();
    encoder.frozen().embed(x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn imported_encoders_embed_as_pytorch_does() {
    let expected = expected();
    for (name, side, bands) in [("all-p8", 24u16, 12), ("rgb-p16", 48, 3)] {
        let x = tensor(17, &[2, bands, side.into(), side.into()]);
        for (padding, key) in [(StemPadding::Same, "same"), (StemPadding::None, "none")] {
            let imported = read(&format!("{name}.pth"), padding, side);
            let error = relative(&embed(&imported, &x), &expected[&format!("{name}.{key}")]);
            println!("{name}, {key}: relative error {error:.2e}");
            assert!(error <= 1e-5, "{name}, {key}: {error}");
        }
    }
}

#[test]
fn dense_names_of_meta_and_timm_give_the_same_encoder() {
    let expected = expected();
    let x = tensor(17, &[2, 3, 48, 48]);
    for name in ["meta.pth", "timm.safetensors"] {
        let imported = read(name, StemPadding::None, 48);
        // Its final norm doubles and adds a half.
        let wanted: Vec<f32> = expected["rgb-p16.none"].iter().map(|v| 2.0 * v + 0.5).collect();
        let error = relative(&embed(&imported, &x), &wanted);
        println!("{name}: relative error {error:.2e}");
        assert!(error <= 1e-5 && imported.final_norm, "{name}: {error}");
        let sparse = read("rgb-p16.pth", StemPadding::None, 48);
        for (name, tensor) in sparse.encoder.tensors.iter().filter(|(name, _)| !name.starts_with("norm.")) {
            assert_eq!(tensor, imported.encoder.tensor(name), "{name}");
        }
    }
}

#[test]
fn patchify_stems_of_meta_and_timm_embed_as_timm_does() {
    let (expected, x) = (&expected()["patchify"], tensor(17, &[2, 3, 64, 64]));
    for (name, naming) in [("patchify-meta.pth", Naming::Meta), ("patchify-timm.safetensors", Naming::Timm)] {
        let options = Options { tile_size: Some(64), ..Options::default() };
        let imported = import(&fixture(name), &options).unwrap();
        let error = relative(&embed(&imported, &x), expected);
        println!("{name}: relative error {error:.2e}");
        assert!(error <= 1e-5 && imported.final_norm && imported.naming == naming, "{name}: {error}");
        let a = imported.encoder.card.architecture;
        assert_eq!((a.stem_padding, a.patch_size, a.grn_eps), (StemPadding::Patchify, 32, 1e-6));
    }
}

/// The targets that the script makes.
fn targets(whole: &Whole, batch: usize, side: usize) -> Vec<Target> {
    let class = |at: usize, shape: &[usize], classes: usize| {
        let all = series(at * 1000, shape.iter().product());
        let all: Vec<i64> = all.iter().map(|v| ((v + 1.0) * 0.499999 * classes as f64) as i64).collect();
        Target::Classes(Tensor::from_vec(all, shape, &Device::Cpu).unwrap())
    };
    let target = |(at, kind): (usize, TaskKind)| match kind {
        TaskKind::PixelRegression { channels, .. } => Target::Values(tensor(at * 1000, &[batch, channels, side, side])),
        TaskKind::ImageRegression { width } => Target::Values(tensor(at * 1000, &[batch, width])),
        TaskKind::PixelClassification { classes } => class(at, &[batch, side, side], classes),
        TaskKind::ImageClassification { classes } => class(at, &[batch], classes),
        TaskKind::EmbeddingRegression { .. } => unreachable!("none of MMEarth's tasks"),
    };
    whole.tasks.iter().map(|t| t.kind).enumerate().map(target).collect()
}

#[test]
fn whole_models_have_pytorchs_losses() {
    let expected = expected();
    for (name, side, bands) in [("all-p8", 24usize, 12), ("rgb-p16", 48, 3)] {
        let imported = read(&format!("{name}.pth"), StemPadding::Same, side as u16);
        let whole = imported.whole.unwrap();
        let model = whole.model(&Device::Cpu).unwrap();
        let mask = Mask::from_visible(3, &[vec![0, 4, 7], vec![2, 3, 8]]).unwrap();
        let x = tensor(17, &[2, bands, side, side]);
        let losses = model.loss(&x, &mask, &targets(&whole, 2, side)).unwrap();
        let total = ("total".to_owned(), losses.total.to_scalar::<f32>().unwrap());
        let wanted = &expected[&format!("{name}.losses")];
        assert_eq!(wanted.len(), losses.tasks.len() + 1);
        for ((task, value), wanted) in losses.tasks.into_iter().chain([total]).zip(wanted) {
            let error = f64::from((value - wanted) / wanted).abs();
            println!("{name}, {task}: {value}, PyTorch {wanted}, relative error {error:.2e}");
            assert!(error <= 1e-5, "{name}, {task}: {value}, PyTorch {wanted}");
        }
    }
}

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().unwrap()
}

fn succeed(arguments: &[&str]) -> (String, String) {
    let output = trainer(arguments);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{arguments:?}\n{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// A command that must fail with one error line that holds all `parts`, and exit code 2.
fn refuse(arguments: &[&str], parts: &[&str]) {
    let output = trainer(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}\n{text}");
    assert!(text.starts_with("trainer: ") && text.lines().count() == 1, "{arguments:?}\n{text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?}\nno {part:?} in {text}");
    }
}

#[test]
fn a_checkpoint_goes_in_and_comes_out_as_onnx_and_for_pytorch() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, whole) = (path("m.safetensors"), path("w.safetensors"));
    let checkpoint = fixture("all-p8.pth");
    let checkpoint = checkpoint.to_str().unwrap();
    let base = ["import", "--checkpoint", checkpoint, "--out", &model, "--tile-size", "24"];
    let (said, warned) = succeed(&[&base[..], &["--whole", &whole, "--level", "l1c"]].concat());
    for part in
        ["patch 8, 12 bands", "70 encoder tensors", "12 decoder entries are one block", "predicts sentinel2, sentinel1"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(warned.contains("licence of these weights is not clear") && warned.contains("CC BY-NC 4.0"), "{warned}");
    let file = EncoderFile::read(Path::new(&model)).unwrap();
    assert_eq!((file.card.bands[7].name.as_str(), file.card.bands[7].mean), ("B8A", 2907.5098));
    assert!(file.card.provenance.recipe.contains("level L1C"));
    let bytes = std::fs::read(&whole).unwrap();
    let entries = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(entries.iter().filter(|(name, _)| name.starts_with("decoder.")).count(), 10);

    let pixels = (0..2 * 12 * 24 * 24).map(|i| 1 + (i * 7919 % 5003) as u16).collect();
    Tiles { shape: [2, 12, 24, 24], pixels: Pixels::U16(pixels) }.write(Path::new(&path("t.npy"))).unwrap();
    succeed(&["embed", "--model", &model, "--tiles", &path("t.npy"), "--out", &path("y.npy")]);
    let ours = Matrix::read(Path::new(&path("y.npy"))).unwrap();

    let (onnx, again) = (path("m.onnx"), path("p.safetensors"));
    let (said, _) = succeed(&["export", "--model", &model, "--onnx", &onnx, "--safetensors", &again, "--batch", "2"]);
    assert!(said.contains("2 random tiles have our embeddings") && said.contains("p.card.json"), "{said}");
    assert!(std::fs::metadata(&onnx).unwrap().len() > 10_000);
    // What PyTorch gets embeds the same.
    succeed(&["embed", "--model", &again, "--tiles", &path("t.npy"), "--out", &path("z.npy")]);
    assert_eq!(Matrix::read(Path::new(&path("z.npy"))).unwrap().data, ours.data);
    // The other geometry is another space.
    succeed(&[&base[..], &["--stem-padding", "none", "--name", "other"]].concat());
    let other = EncoderFile::read(Path::new(&model)).unwrap().card;
    assert_eq!((other.name.as_str(), other.architecture.grn_eps), ("other", 1e-4));
    assert_eq!(other.embedding_space, file.card.embedding_space + "-none");
}

#[test]
fn a_patchify_stem_goes_in_and_comes_out_by_metas_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, again, third) = (path("m.safetensors"), path("p.safetensors"), path("n.safetensors"));
    let timm = fixture("patchify-timm.safetensors");
    let base = ["import", "--checkpoint", timm.to_str().unwrap(), "--out", &model, "--tile-size", "64"];
    let (said, warned) = succeed(&base);
    for part in ["patch 32, patchify stem, 3 bands, timm's names", "68 encoder tensors"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(warned.contains("is not said by the file; Meta's weights") && warned.contains("CC BY-NC 4.0"), "{warned}");
    let (said, _) = succeed(&["info", "--model", &model]);
    for part in ["patches of 32, patchify stem of 4 x 4", "stem   -       4         16 x 16         204", "grey level"]
    {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let onnx = path("m.onnx");
    let (said, _) = succeed(&["export", "--model", &model, "--onnx", &onnx, "--safetensors", &again]);
    assert!(said.contains("3 random tiles have our embeddings") && said.contains("68 tensors"), "{said}");
    let bytes = std::fs::read(&again).unwrap();
    let names = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(names.tensor("downsample_layers.0.0.weight").unwrap().shape(), [4, 3, 4, 4]);
    // What Meta's model takes is what it gives.
    let (said, _) = succeed(&["import", "--checkpoint", &again, "--out", &third, "--tile-size", "64"]);
    assert!(said.contains("Meta's names"), "{said}");
    let [model, third] = [model.clone(), third].map(|path| EncoderFile::read(Path::new(&path)).unwrap());
    assert_eq!((model.tensors, model.card.embedding_space), (third.tensors, third.card.embedding_space));
    refuse(&[&base[..], &["--stem-padding", "same"]].concat(), &["--stem-padding same, but the stem of this file is"]);
}

/// A zip archive as PyTorch writes it, with this pickle.
fn archive(path: &Path, pickle: &[u8], storages: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let plain = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", plain).unwrap();
    zip.write_all(pickle).unwrap();
    for (name, bytes) in storages {
        zip.start_file(format!("archive/data/{name}"), plain).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn bad_files_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (bad, out) = (path("bad.pth"), path("out.safetensors"));
    let refuse = |parts: &[&str]| {
        refuse(&["import", "--checkpoint", &bad, "--out", &out], &[&["bad.pth"], parts].concat());
        assert!(!Path::new(&out).exists());
    };
    refuse(&["No such file"]);
    std::fs::write(&bad, b"no zip").unwrap();
    refuse(&["is neither a PyTorch file"]);
    std::fs::write(&bad, b"").unwrap();
    refuse(&["is neither a PyTorch file"]);
    let good = std::fs::read(fixture("rgb-p16.pth")).unwrap();
    for cut in [10, 1000, good.len() / 2, good.len() - 1] {
        std::fs::write(&bad, &good[..cut]).unwrap();
        refuse(&["is no whole zip archive"]);
    }
    // A changed byte of a weight: the archive has a checksum of every entry.
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    std::fs::write(&bad, &changed).unwrap();
    refuse(&[]);

    // Calls of the system, as the whole and in place of a tensor.
    let made = path("made");
    let call = |argument: &str| {
        let length = (argument.len() as u32).to_le_bytes();
        [&b"cposix\nsystem\nX"[..], &length, argument.as_bytes(), b"\x85R"].concat()
    };
    let command = call(&format!("touch {made}"));
    archive(Path::new(&bad), &[b"\x80\x02", &command[..], b"."].concat(), &[]);
    refuse(&["holds a call of posix.system (which was not made), expected a dictionary of tensors"]);
    archive(Path::new(&bad), &[b"\x80\x02}X\x01\x00\x00\x00w", &command[..], b"s."].concat(), &[]);
    refuse(&["tensor w: is a call of posix.system (which was not made), expected a tensor"]);
    archive(Path::new(&bad), b"\x80\x02}X\x01\x00\x00\x00w", &[]);
    refuse(&["its pickle is damaged: ends early"]);
    assert!(!Path::new(&made).exists());

    // A tensor of 2 x 3 elements in a storage of 4.
    let tensor = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
          X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89NtRs.";
    archive(Path::new(&bad), tensor, &[("0", &[0; 16])]);
    refuse(&["tensor w: has shape [2, 3] and strides [3, 1] from element 0 on in a storage of 4"]);
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    let checkpoint = fixture("rgb-p16.pth");
    let base = ["import", "--checkpoint", checkpoint.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let with = |more: &[&str], parts: &[&str]| refuse(&[&base[..], more].concat(), parts);
    with(&["--bands", "B4,B3"], &["takes 3 bands, 2 are named"]);
    with(&["--bands", "B4,B3,B10"], &["band B10: is none of those"]);
    with(&["--tile-size", "50"], &["tiles of 50 pixels are not whole patches of 16"]);
    with(&["--tile-size", "16"], &["tile size 16"]);
    let model = dir.path().join("missing.safetensors");
    refuse(&["export", "--model", model.to_str().unwrap(), "--onnx", "y.onnx"], &["missing.safetensors"]);
    let alone = fixture("meta.pth");
    let alone = ["import", "--checkpoint", alone.to_str().unwrap(), "--out", out.to_str().unwrap()];
    refuse(&[&alone[..], &["--whole", "w.safetensors"]].concat(), &["has an encoder, but no decoder"]);
    assert!(!out.exists());
}
