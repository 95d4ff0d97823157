//! Products of embeddings: against numpy and scikit-learn, in the model's file, on the command line, and with all kernels.

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use common::Folder;
use nadir::encoder::Encoder as Engine;
use nadir::guard::verify_signature;
use nadir::kernels::int8::Int8Kernels;
use nadir::model::products::Products;
use nadir::model::{Architecture, KIND_PRODUCTS, Model, Precision};
use nadir::triage::products::Product;
use nadir_formats::{AlignedBytes, Matrix, Tiles, Values, read_integers, read_values, write_integers};
use nadir_quantize::batch::embed_all;
use nadir_quantize::conformance::{Case, FIRST};
use nadir_quantize::flight::{Equipment, equip, run_self_test, sign};
use nadir_quantize::products::change::{Alteration, average_precision, partners};
use nadir_quantize::products::measure::{Pairs, Rung, Sample, measure};
use nadir_quantize::products::{Name, decode, encode, fit, fraction_bits, store};
use nadir_quantize::report::Labelled;
use nadir_quantize::testing::{random_encoder, random_tiles};
use nadir_quantize::{float, int8, keys};
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An array of `tests/reference/products.npz`.
fn array(name: &str) -> PathBuf {
    root().join(format!("tests/reference/products.npz:{name}"))
}

fn bytes(name: &str) -> Vec<u8> {
    read_integers(&array(name)).unwrap().into_iter().map(|v| v as u8).collect()
}

/// Rows to which the reference was fitted.
const FITTED: usize = 200;

fn tiny() -> (AlignedBytes, Tiles) {
    let named = Architecture::named("yocto", 16, 8).unwrap();
    let encoder = random_encoder(Architecture { dims: [8, 8, 16, 24], ..named }, &["B4", "B3", "B2"], 5);
    let tiles = random_tiles(60, 3, 16, 6);
    let plain = AlignedBytes::copy_of(&int8::convert(&encoder, &tiles).unwrap());
    let equipment = Equipment { model_version: Some(3), parity: true, key: None };
    (AlignedBytes::copy_of(&equip(&Model::parse(&plain).unwrap(), &equipment).unwrap()), tiles)
}

fn embed(model: &Model<'_>, tiles: &Tiles) -> Matrix {
    embed_all(&Engine::new(model), tiles, 2, || {}).unwrap()
}

#[test]
fn codes_are_those_of_numpy() {
    let embeddings = Matrix::read(&array("embeddings")).unwrap();
    let section = bytes("section");
    let products = Products::read(&section, embeddings.columns).unwrap();
    for (name, product) in
        [("int8", Product::Int8(embeddings.columns)), ("pca", Product::Pca(8)), ("binary", Product::Binary)]
    {
        assert_eq!(encode(&products, product, &embeddings).unwrap(), bytes(name), "{name}");
    }
}

#[test]
fn the_fit_is_that_of_numpy_and_scikit_learn() {
    let embeddings = Matrix::read(&array("embeddings")).unwrap();
    let fitted = fit(&embeddings, &(0..FITTED).collect::<Vec<_>>(), 8, 10).unwrap();
    assert_eq!(fitted.to_bytes(), bytes("section"));
    let explained = Matrix::read(&array("explained")).unwrap();
    for (found, expected) in fitted.explained.iter().zip(&explained.data) {
        // The centre is rounded to a unit of the fixed point.
        assert!((found - f64::from(*expected)).abs() < 1e-6, "{found} instead of {expected}");
    }
}

#[test]
fn average_precision_is_that_of_scikit_learn() {
    let scores = Matrix::read(&array("scores")).unwrap();
    let changed = read_integers(&array("changed")).unwrap();
    let scored: Vec<_> = scores.data.iter().zip(changed).map(|(&score, c)| (f64::from(score), c == 1)).collect();
    let expected = Matrix::read(&array("average_precision")).unwrap().data[0];
    assert!((average_precision(&scored) - f64::from(expected)).abs() < 1e-6);
}

/// Half a step for numbers within the fitted range; all components together give the embedding back, within the rounding of the matrix.
#[test]
fn codes_are_decoded_within_their_steps() {
    let embeddings = Matrix::read(&array("embeddings")).unwrap();
    let dimension = embeddings.columns;
    let rows: Vec<usize> = (0..FITTED).collect();
    let section = fit(&embeddings, &rows, dimension, 10).unwrap().to_bytes();
    let products = Products::read(&section, dimension).unwrap();
    let back = |product: Product| {
        let codes = encode(&products, product, &embeddings).unwrap();
        decode(&products, product, &codes, product.bytes(dimension)).unwrap()
    };
    let (whole, prefix) = (back(Product::Int8(dimension)), back(Product::Int8(5)));
    let steps: Vec<f64> = products.multipliers().map(|m| (1u64 << 28) as f64 / f64::from(m) / 1024.0).collect();
    for &row in &rows {
        for d in 0..dimension {
            let error = (f64::from(whole.row(row)[d]) - f64::from(embeddings.row(row)[d])).abs();
            assert!(error <= 0.501 * steps[d], "{error}, half a step is {}", 0.5 * steps[d]);
        }
        assert_eq!(prefix.row(row), &whole.row(row)[..5]);
    }
    let energy = |m: &Matrix| {
        rows.iter()
            .flat_map(|&r| m.row(r).iter().zip(embeddings.row(r)))
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
    };
    let zero = Matrix { data: vec![0.0; embeddings.data.len()], ..embeddings.clone() };
    let (pca, none) = (energy(&back(Product::Pca(dimension))), energy(&zero));
    assert!(pca < 2e-3 * none, "{pca} of {none}");
    assert!(energy(&back(Product::Pca(4))) > 10.0 * pca);
    let signs = back(Product::Binary);
    let centre: Vec<f32> = products.centre().map(|c| f32::from(c) / 1024.0).collect();
    for (sign, (value, centre)) in signs.row(7).iter().zip(embeddings.row(7).iter().zip(&centre)) {
        assert_eq!(*sign, if value > centre { 1.0 } else { -1.0 });
    }
    assert!(decode(&products, Product::Pca(dimension + 1), &[], dimension + 1).is_err());
    assert!(decode(&products, Product::Pca(3), &[0; 4], 4).is_err());
}

#[test]
fn products_are_stored_beside_what_a_file_has() {
    let (file, tiles) = tiny();
    let model = Model::parse(&file).unwrap();
    let embeddings = embed(&model, &tiles);
    let rows: Vec<usize> = (0..40).collect();
    let fitted = fit(&embeddings, &rows, 6, fraction_bits(&model, &embeddings)).unwrap();
    let key = keys::read_private(&root().join("tests/reference/signature/key.pem")).unwrap();
    let public = key.verifying_key().to_bytes();
    let signed = AlignedBytes::copy_of(&sign(&model, &key).unwrap());
    let with = AlignedBytes::copy_of(&store(&Model::parse(&signed).unwrap(), &fitted).unwrap());
    let read = Model::parse(&with).unwrap();
    let products = read.products().unwrap();
    assert_eq!((products.dimension(), products.components()), (24, 6));
    assert!(nadir::guard::signed_key(&read).is_none(), "the signature would be wrong");
    assert_eq!((file[10], with[10]), (0, 1), "minor versions");
    assert!(model.products().is_none());
    assert_eq!((read.block_crcs(), read.has_parity()), (model.block_crcs(), true));
    run_self_test(&Engine::new(&read)).unwrap();
    assert_eq!(embed(&read, &tiles), embeddings);
    // Nothing of an int8 embedding is lost to the fixed point.
    let unit = f64::from(products.fraction_bits()).exp2();
    assert!(
        embeddings.data.iter().all(|&v| (f64::from(v) * unit).fract() == 0.0 && f64::from(v).abs() * unit < 32768.5)
    );

    let again = AlignedBytes::copy_of(&sign(&read, &key).unwrap());
    verify_signature(&Model::parse(&again).unwrap(), &public, 3).unwrap();
    // Other products take the place of the first.
    let fewer = fit(&embeddings, &rows, 2, products.fraction_bits()).unwrap();
    let fewer = AlignedBytes::copy_of(&store(&Model::parse(&again).unwrap(), &fewer).unwrap());
    assert_eq!(Model::parse(&fewer).unwrap().products().unwrap().components(), 2);

    // Numbers beyond their limits are refused with right CRCs, too.
    let mut wrong = fit(&embeddings, &rows, 2, products.fraction_bits()).unwrap();
    wrong.multipliers[3] = 0;
    let error = format!("{:#}", store(&model, &wrong).unwrap_err());
    assert!(error.contains("products: multiplier is 0, limits are 1 to 268435456"), "{error}");
    wrong.multipliers.pop();
    assert!(format!("{:#}", store(&model, &wrong).unwrap_err()).contains("elements"));
    assert_eq!(read.ancillary(KIND_PRODUCTS).unwrap().bytes(), fitted.to_bytes().len());
}

#[test]
fn fraction_bits_of_float_models_leave_room() {
    let named = Architecture::named("yocto", 16, 8).unwrap();
    let encoder = random_encoder(Architecture { dims: [8, 8, 16, 24], ..named }, &["B4", "B3", "B2"], 5);
    let file = AlignedBytes::copy_of(&float::convert(&encoder, Precision::F32).unwrap());
    let model = Model::parse(&file).unwrap();
    let embeddings = |largest| Matrix { rows: 1, columns: 24, data: vec![largest; 24] };
    for (largest, bits) in [(1.0, 13), (3.0, 12), (0.0, 24), (20000.0, 0)] {
        assert_eq!(fraction_bits(&model, &embeddings(largest)), bits, "{largest}");
    }
    assert!(fit(&embeddings(1.0), &[0], 0, 13).is_err());
    let two = Matrix { rows: 2, columns: 24, data: vec![1.0; 48] };
    assert!(fit(&two, &[0, 1], 2, 13).unwrap_err().to_string().contains("at most 1"));
    assert!(
        fit(&Matrix { data: vec![f32::NAN; 48], ..two }, &[0, 1], 1, 13)
            .unwrap_err()
            .to_string()
            .contains("not finite")
    );
}

/// Rungs that keep less find fewer neighbours; two groups far apart are told apart by all.
#[test]
fn rungs_are_measured() {
    let mut random = nadir_quantize::testing::Random::new(3);
    let (rows, columns) = (120, 16);
    let group = |row: usize| if row.is_multiple_of(2) { 3.0 } else { -3.0 };
    let data = (0..rows * columns).map(|i| (group(i / columns) * (i % 3) as f64 + random.normal()) as f32).collect();
    let embeddings = Matrix { rows, columns, data };
    let fitted: Vec<usize> = (0..60).collect();
    let held_out: Vec<usize> = (60..rows).collect();
    let section = fit(&embeddings, &fitted, 8, 11).unwrap().to_bytes();
    let products = Products::read(&section, columns).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [labels, split] = ["labels.npy", "split.npy"].map(|name| folder.path().join(name));
    write_integers(&labels, &(0..rows as i64).map(|i| i % 2).collect::<Vec<_>>()).unwrap();
    write_integers(&split, &(0..rows as i64).map(|i| i / 60 * 2).collect::<Vec<_>>()).unwrap();
    let labelled = Labelled::read(&labels, &split, rows).unwrap();
    let rungs = [
        Rung::Float,
        Rung::Product(Name::Int8),
        Rung::Product(Name::Pca(8)),
        Rung::Product(Name::Pca(2)),
        Rung::Product(Name::Binary),
        Rung::Reranked,
    ];
    // Seen again without any alteration, but for a tile of the other group where something changed.
    let pairs = || Pairs {
        first: embeddings.clone(),
        again: vec![(Alteration::Flip, embeddings.clone())],
        partners: (0..rows).map(|row| row ^ 1).collect(),
    };
    let sample =
        |labels| Sample { embeddings: &embeddings, fitted: &fitted, held_out: &held_out, labels, pairs: pairs() };
    let kept = measure(&products, &rungs, &sample(Some(&labelled))).unwrap();
    let recall: Vec<f64> = kept.iter().map(|row| row.recall).collect();
    assert_eq!(recall[0], 1.0);
    assert!(recall[..5].windows(2).all(|pair| pair[0] > pair[1]), "{recall:?}");
    assert!(recall[1] > 0.98 && recall[4] < 0.8 && recall[5] > 0.98, "{recall:?}");
    for row in &kept {
        assert_eq!(row.accuracy, Some(1.0), "{}", row.rung);
        // A sum of 120 shares.
        let whole = |area: f64| (area - 1.0).abs() < 1e-9;
        assert!(row.change.as_ref().is_none_or(|(each, all)| whole(*all) && whole(each[0])), "{:?}", row);
    }
    assert_eq!(kept.iter().map(|row| row.bytes).collect::<Vec<_>>(), [64, 16, 8, 2, 2, 18]);
    let blind = measure(&products, &rungs[..1], &sample(None)).unwrap();
    assert_eq!(blind[0].accuracy, None);
}

#[test]
fn alterations_are_what_they_are_called() {
    let tiles = random_tiles(2, 1, 8, 4);
    let bands = tiny();
    let bands = Model::parse(&bands.0).unwrap().bands()[..1].to_vec();
    let value = |tiles: &Tiles, i: usize| tiles.tile(i / 64).value(i % 64).unwrap();
    let altered = |alteration: Alteration| alteration.of(&tiles, &bands);
    let (light, shift, shift2, flip) = (
        altered(Alteration::Light),
        altered(Alteration::Shift1),
        altered(Alteration::Shift2),
        altered(Alteration::Flip),
    );
    let noise = altered(Alteration::Noise);
    let mut moved = 0.0;
    for i in 0..128 {
        let (y, x) = (i % 64 / 8, i % 8);
        let gain = if i < 64 { 0.85 } else { 1.15 };
        assert_eq!(value(&light, i), (gain * value(&tiles, i)).round().min(255.0));
        assert_eq!(value(&shift, i), value(&tiles, i - x + x.max(1) - 1));
        assert_eq!(value(&shift2, i), value(&tiles, i - 8 * y - x + 8 * (y.max(2) - 2) + x.max(2) - 2));
        assert_eq!(value(&flip, i), value(&tiles, i - x + 7 - x));
        moved += (value(&noise, i) - value(&tiles, i)).powi(2) / 128.0;
    }
    // A tenth of 40, and the rounding to whole numbers.
    assert!((moved.sqrt() - 4.0).abs() < 1.0, "{moved}");
    // Where there is no data nothing changes.
    let empty = Tiles { pixels: nadir_formats::Pixels::U8(vec![0; 128]), ..tiles.clone() };
    assert!(Alteration::ALL.iter().all(|alteration| alteration.of(&empty, &bands) == empty));

    let classes = [0, 1, 0, 1, 2];
    for (tile, other) in partners(5, Some(&classes)).into_iter().enumerate() {
        assert!(other != tile && (tile == 4 || classes[other] == classes[tile]));
    }
    assert!(partners(5, None).into_iter().enumerate().all(|(tile, other)| tile != other));
}

/// The codes of the conformance models, whose embeddings are those of every set of kernels.
#[test]
fn codes_conform_with_all_kernels() {
    let case = Case::load(&root(), "atto").unwrap();
    let model = case.model().unwrap();
    let d = model.embedding_dimension();
    let section = conformance_section(d, 64);
    let products = Products::read(&section, d).unwrap();
    let table = std::fs::read_to_string(root().join("tests/conformance/products.csv")).unwrap();
    for set in Int8Kernels::available() {
        let engine = Engine::new(&model).with_kernels(set.name).unwrap();
        let tiles = case.tiles.pick(&(0..FIRST).collect::<Vec<_>>());
        let embeddings = embed_all(&engine, &tiles, 2, || {}).unwrap();
        let mut found = "product,sha256_of_first_4\n".to_owned();
        for name in ["int8", "prefix-64", "binary", "pca-64", "pca-16"] {
            let product = name.parse::<Name>().unwrap().product(d);
            let hash = Sha256::digest(encode(&products, product, &embeddings).unwrap());
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(found, "{name},{hash}").unwrap();
        }
        assert_eq!(found, table, "{}", set.name);
    }
}

/// The products of `docs/integer-arithmetic.md`, section 10.
fn conformance_section(d: usize, n: usize) -> Vec<u8> {
    let mut bytes = Vec::from(10u32.to_le_bytes());
    bytes.extend((0..d as u32).flat_map(|i| ((1 << 23) + 4099 * i).to_le_bytes()));
    bytes.extend((0..n as u32).flat_map(|j| ((1 << 23) + 521 * j).to_le_bytes()));
    bytes.extend((0..d as i16).flat_map(|i| (i * 37 % 101 - 50).to_le_bytes()));
    bytes.extend((0..n * d).map(|i| ((i * 73 % 255) as i16 - 127) as i8 as u8));
    bytes
}

#[test]
fn a_newcomer_gets_codes_and_errors() {
    let folder = Folder::new();
    let (file, tiles) = tiny();
    std::fs::write(folder.path("m.nadir"), &file[..]).unwrap();
    tiles.write(&folder.path("t.npy")).unwrap();
    tiles.pick(&(40..60).collect::<Vec<_>>()).write(&folder.path("test.npy")).unwrap();
    let write = |name: &str, value: fn(i64) -> i64| {
        write_integers(&folder.path(name), &(0..60).map(value).collect::<Vec<_>>()).unwrap()
    };
    write("labels.npy", |i| i % 3);
    write("split.npy", |i| if i < 40 { 0 } else { 2 });
    let text =
        folder.good("products --model m.nadir --tiles t.npy --labels labels.npy --split split.npy --store p.nadir");
    for part in
        ["fitted to 40 tiles", "measured on 20 tiles", "recall@10", "int8", "pca-16", "binary+int8", "p.nadir: written"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let json = folder.good("products --model m.nadir --tiles t.npy --test test.npy --pca 4,2 --prefix 5 --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rungs: Vec<&str> = json["rungs"].as_array().unwrap().iter().map(|row| row["rung"].as_str().unwrap()).collect();
    assert_eq!(rungs, ["f32", "int8", "prefix-5", "pca-2", "pca-4", "binary", "binary+int8"]);
    assert_eq!(json["rungs"][0]["recall_at_10"], 1.0);
    assert_eq!((&json["fitted_tiles"], &json["measured_tiles"]), (&60.into(), &20.into()));

    assert!(folder.good("inspect p.nadir").contains("16 principal components"));
    folder.good("check p.nadir");
    folder.good("embed --model p.nadir --tiles t.npy --out e.npy");
    folder.good("encode --model p.nadir --product pca-16 --embeddings e.npy --out c.npy");
    let (shape, codes) = read_values(&folder.path("c.npy")).unwrap();
    assert_eq!(shape, [60, 16]);
    assert!(matches!(codes, Values::Integers(_)));
    folder.good("decode --model p.nadir --product pca-16 --codes c.npy --out d.npy");
    assert_eq!(Matrix::read(&folder.path("d.npy")).unwrap().columns, 24);

    folder.bad("products --model m.nadir --tiles t.npy", &["--test", "--store"]);
    folder
        .bad("products --model m.nadir --tiles t.npy --split split.npy --pca 25", &["--pca", "25 numbers", "1 to 24"]);
    folder.bad("products --model m.nadir --tiles absent.npy --split split.npy", &["absent.npy"]);
    folder
        .bad("encode --model m.nadir --product int8 --embeddings e.npy --out x.npy", &["m.nadir", "holds no products"]);
    folder.bad(
        "encode --model p.nadir --product pca-17 --embeddings e.npy --out x.npy",
        &["e.npy", "17 numbers", "1 to 16"],
    );
    folder.bad(
        "encode --model p.nadir --product prefix-999999999999999 --embeddings e.npy --out x.npy",
        &["e.npy", "999999999999999 numbers", "1 to 24"],
    );
    folder.bad("decode --model p.nadir --product int8 --codes c.npy --out x.npy", &["c.npy", "16 bytes", "24"]);
    folder.bad("decode --model p.nadir --product int8 --codes e.npy --out x.npy", &["e.npy", "expected u8"]);
}
