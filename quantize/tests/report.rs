//! `quantize report` and `quantize diff`, against the engine, the plan and float64.

mod common;

use common::Folder;
use nadir::encoder::{Encoder as Engine, Step};
use nadir::model::{Architecture, Model, Precision, STAGES};
use nadir::plan::{cost::total, int8::Passes};
use nadir_formats::{AlignedBytes, Encoder, Matrix, Tiles, write_integers};
use nadir_quantize::compare::Agreement;
use nadir_quantize::diff::Diff;
use nadir_quantize::float;
use nadir_quantize::int8::convert;
use nadir_quantize::reference::{BlockTap, Observer, Reference, Tap};
use nadir_quantize::report::{Report, json};
use nadir_quantize::testing::{random_encoder, random_tiles};

fn encoder() -> Encoder {
    let named = Architecture::named("yocto", 32, 16).unwrap();
    random_encoder(Architecture { dims: [8, 16, 24, 32], ..named }, &["B4", "B3", "B2"], 3)
}

fn tiles() -> Tiles {
    random_tiles(24, 3, 32, 4)
}

fn int8(encoder: &Encoder) -> AlignedBytes {
    AlignedBytes::copy_of(&convert(encoder, &tiles()).unwrap())
}

fn report<'m>(model: &'m Model<'m>, encoder: &Encoder) -> Report<'m> {
    Report::of(model, encoder, &tiles(), 5, None, None, &|| {}).unwrap()
}

#[test]
fn layers_share_the_bytes_and_the_work_of_the_model() {
    let encoder = encoder();
    let float = |precision| AlignedBytes::copy_of(&float::convert(&encoder, precision).unwrap());
    for file in [int8(&encoder), float(Precision::F32), float(Precision::F16)] {
        let model = Model::parse(&file).unwrap();
        let report = report(&model, &encoder);
        let sections: u64 = (0..model.section_count()).map(|i| model.section_entry(i).unwrap().bytes() as u64).sum();
        assert_eq!(report.layers.iter().map(|layer| layer.bytes).sum::<u64>(), sections);
        let planned = total(model.architecture(), 3, model.precision(), [Passes::One; STAGES]).macs;
        let macs = report.layers.iter().map(|layer| layer.macs).sum::<u64>();
        assert_eq!(macs, planned);
        assert!(report.layers.iter().all(|layer| layer.map.is_some() == (model.precision() == Precision::Int8)));
    }
}

/// Keeps the map of one tap.
struct Keep(Tap, Vec<f64>);

impl Observer for Keep {
    fn wants(&self, tap: Tap) -> bool {
        tap == self.0
    }

    fn observe(&mut self, _: Tap, _: usize, values: &[f64]) {
        self.1.extend(values);
    }
}

/// The engine's residual map after block 1.0 on the tiles that the report looks at, channels that fill up left out.
fn engine_maps(model: &Model<'_>, picked: &[usize], channels: usize) -> Vec<f64> {
    let (tiles, engine) = (tiles(), Engine::new(model));
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    let mut embedding = vec![0.0; model.embedding_dimension()];
    let mut found = Vec::new();
    for &tile in picked {
        let mut run = engine.start(tiles.tile(tile), &mut arena, &mut embedding).unwrap();
        loop {
            let before = run.place().map(|place| place.to_string());
            assert_eq!(run.step().unwrap(), Step::More);
            let after = run.place().map(|place| place.to_string());
            if before.as_deref() == Some("block 1.0") && after != before {
                let stored = channels.next_multiple_of(8);
                let positions = run.residual().unwrap().chunks_exact(stored);
                found.extend(positions.flat_map(|p| &p[..channels]).map(|&v| f64::from(v)));
                break;
            }
        }
    }
    found
}

#[test]
fn errors_are_those_of_the_engine() {
    let encoder = encoder();
    let file = int8(&encoder);
    let model = Model::parse(&file).unwrap();
    let report = report(&model, &encoder);
    let (tiles, reference) = (tiles(), Reference::new(&encoder));

    let picked: Vec<usize> = (0..5).map(|i| i * 24 / 5).collect();
    let mut exact = Keep(Tap::Block { stage: 1, block: 0, part: BlockTap::Output }, Vec::new());
    picked.iter().for_each(|&tile| drop(reference.embed(tiles.tile(tile), &mut exact)));
    let (exact, found) = (exact.1, engine_maps(&model, &picked, 16));
    assert_eq!(exact.len(), found.len());
    // The least error over all scales, found by trying.
    let noise = |scale: f64| exact.iter().zip(&found).map(|(x, q)| (x - scale * q).powi(2)).sum::<f64>();
    let start = exact.iter().map(|v| v.abs()).sum::<f64>() / found.iter().map(|v| v.abs()).sum::<f64>();
    let least = (-2000..2000).map(|i| noise(start * (1.0 + f64::from(i) * 1e-5))).fold(f64::INFINITY, f64::min);
    let decibels = 10.0 * (exact.iter().map(|v| v * v).sum::<f64>() / least).log10();
    let layer = report.layers.iter().find(|layer| layer.place == "block 1.0" && layer.name == "sum").unwrap();
    let map = layer.map.unwrap();
    assert!((map.decibels - decibels).abs() < 0.01, "{} and {decibels}", map.decibels);
    let (low, high) = exact.iter().fold((0.0f64, 0.0f64), |(l, h), &v| (l.min(v), h.max(v)));
    assert_eq!(map.range, [low, high]);

    let embeddings = nadir_quantize::embed::embed(&model, &tiles, || {}).unwrap();
    let rows: Vec<Vec<f64>> = (0..24).map(|i| embeddings.row(i).iter().map(|&v| f64::from(v)).collect()).collect();
    let expected = Agreement::of(&rows, &reference.embed_all(&tiles));
    let agreement = &report.ends.agreement;
    assert!((agreement.mean() - expected.mean()).abs() < 1e-6 && agreement.worst() == expected.worst());
    // The head's error is that of the embeddings, but for the tiles.
    let head = report.layers.last().unwrap().map.unwrap();
    assert!((head.decibels - agreement.signal_to_noise_db).abs() < 3.0);
}

/// Another weight in one layer shows from that layer on, and nowhere before.
#[test]
fn a_wrong_layer_is_found() {
    let encoder = encoder();
    let mut wrong = encoder.clone();
    let tensor = wrong.tensors.get_mut("stages.2.1.pwconv2.weight").unwrap();
    tensor.data.iter_mut().for_each(|w| *w *= 1.5);
    let [good, bad] = [&encoder, &wrong].map(int8);
    let [good, bad] = [&good, &bad].map(|file| Model::parse(file).unwrap());
    let [a, b] = [&good, &bad].map(|model| report(model, &encoder));
    let at = a.layers.iter().position(|layer| layer.place == "block 2.1" && layer.name == "pointwise 2").unwrap();
    let loss = |i: usize| a.layers[i].map.unwrap().decibels - b.layers[i].map.unwrap().decibels;
    assert!((0..at).all(|i| loss(i).abs() < 1.0), "before it");
    // Of a map 1.5 times as large the fitted scale takes it all; the sum it enters is wrong.
    assert!(loss(at).abs() < 3.0 && loss(at + 1) > 5.0, "{} {}", loss(at), loss(at + 1));
    assert!(b.ends.agreement.mean() < a.ends.agreement.mean());

    let diff = Diff::of(&good, &bad);
    let differ: Vec<&str> = diff.sections.iter().filter(|s| !s.equal()).map(|s| s.name.as_str()).collect();
    assert!(differ.contains(&"block 2.1 pointwise 2 multiplier"), "{differ:?}");
    // Its stage's scale is another, and nothing before that stage.
    let before = ["stem", "block 0", "downsample 1", "block 1"];
    assert!(differ.iter().all(|name| before.iter().all(|place| !name.starts_with(place))), "{differ:?}");
    assert!(diff.same_architecture && diff.same_space && diff.same_bands && !diff.same_bytes && diff.fields.is_empty());
}

#[test]
fn differences_are_counted() {
    let encoder = encoder();
    let mut other = encoder.clone();
    let bias = &mut other.tensors.get_mut("norm.bias").unwrap().data;
    (bias[3], bias[7]) = (bias[3] + 0.5, bias[7] - 0.25);
    other.card.embedding_space = "other".into();
    other.card.bands[1].mean = 91.0;
    let [a, b] = [&encoder, &other].map(|e| AlignedBytes::copy_of(&float::convert(e, Precision::F32).unwrap()));
    let [a, b] = [&a, &b].map(|file| Model::parse(file).unwrap());
    let diff = Diff::of(&a, &b);
    let section = diff.sections.iter().find(|section| !section.equal()).unwrap();
    let elements = section.elements.unwrap();
    assert_eq!((section.name.as_str(), elements.differ), ("head norm bias", 2));
    assert!((elements.largest - 0.5).abs() < 1e-6);
    let energy: f64 = encoder.tensor("norm.bias").data.iter().map(|&v| f64::from(v).powi(2)).sum();
    assert!((elements.relative - ((0.25 + 0.0625) / energy).sqrt()).abs() < 1e-6);
    assert_eq!(diff.sections.iter().filter(|section| !section.equal()).count(), 1);
    let fields: Vec<&str> = diff.fields.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(fields, ["bands.1.mean", "embedding_space"]);
    assert!(diff.same_architecture && !diff.same_space && !diff.same_bands);
    assert_eq!(Diff::of(&a, &a).sections.iter().filter(|section| section.equal()).count(), a.section_count());
}

fn folder() -> Folder {
    let folder = Folder::new();
    encoder().write(&folder.path("m.safetensors")).unwrap();
    tiles().write(&folder.path("t.npy")).unwrap();
    folder.good("convert --model m.safetensors --precision int8 --calibrate t.npy --out q.nadir");
    folder.good("convert --model m.safetensors --precision f16 --out h.nadir");
    folder
}

#[test]
fn reports_are_written() {
    let folder = folder();
    let classes: Vec<i64> = (0..24).map(|i| [3, 10, 11][i % 3]).collect();
    let split: Vec<i64> = (0..24).map(|i| [0, 0, 0, 1, 2, 2][i / 4]).collect();
    write_integers(&folder.path("l.npy"), &classes).unwrap();
    write_integers(&folder.path("s.npy"), &split).unwrap();
    let text = folder.good(
        "report q.nadir --float m.safetensors --tiles t.npy --labels l.npy --split s.npy --layer-tiles 2 --json r.json --html r.html",
    );
    for part in ["block 2.1", "pointwise 1, GELU", "neighbour overlap", "20-NN", "logistic regression", "2 tiles"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let value: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path("r.json")).unwrap()).unwrap();
    assert_eq!((value["precision"].as_str(), value["layer_tiles"].as_u64()), (Some("int8"), Some(2)));
    assert!(value["places"][0]["layers"][1]["signal_to_noise_db"].as_f64().unwrap() > 10.0);
    // What the probes say of the embeddings, from the embeddings themselves.
    folder.good("embed --model q.nadir --tiles t.npy --out q.npy");
    let e = Matrix::read(&folder.path("q.npy")).unwrap();
    let near = |test: usize| {
        let cosine = |row: usize| {
            let dot = |a: usize, b: usize| e.row(a).iter().zip(e.row(b)).map(|(x, y)| x * y).sum::<f32>();
            dot(test, row) / dot(row, row).sqrt()
        };
        // Of 12 training rows all 12 vote: four of each class, of which the nearest row's wins.
        let nearest = (0..12).max_by(|&a, &b| cosine(a).total_cmp(&cosine(b))).unwrap();
        classes[nearest] == classes[test]
    };
    let expected = (16..24).filter(|&test| near(test)).count() as f64 / 8.0;
    assert_eq!(value["accuracy"]["quantized"]["knn"].as_f64(), Some(expected));

    let page = std::fs::read_to_string(folder.path("r.html")).unwrap();
    for (open, close) in
        [("<svg", "</svg>"), ("<table", "</table>"), ("<tr", "</tr>"), ("<div", "</div>"), ("<text", "</text>")]
    {
        assert!(page.matches(open).count() > 0 && page.matches(open).count() == page.matches(close).count(), "{open}");
    }
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"), "all within");
    assert!(folder.good("report h.nadir --float m.safetensors --tiles t.npy").contains("f16"));
}

#[test]
fn reports_that_cannot_be_are_refused() {
    let folder = folder();
    write_integers(&folder.path("short.npy"), &[0, 1]).unwrap();
    write_integers(&folder.path("l.npy"), &[1; 24]).unwrap();
    let report = "report q.nadir --float m.safetensors --tiles t.npy";
    folder.bad(&format!("{report} --labels short.npy --split l.npy"), &["short.npy", "2 entries", "24 tiles"]);
    folder.bad(&format!("{report} --labels l.npy --split l.npy"), &["l.npy", "no row is 0 (train)"]);
    folder.bad(&format!("{report} --target nothing --counts t.npy"), &["t.npy"]);
    folder.bad(&format!("{report} --html no/r.html"), &["no/r.html"]);
    folder.bad("report q.nadir --float m.safetensors --tiles q.nadir", &["q.nadir"]);
    let mut other = encoder();
    other.card.embedding_space = "other".into();
    other.write(&folder.path("o.safetensors")).unwrap();
    folder.bad("report q.nadir --float o.safetensors --tiles t.npy", &["q.nadir", "o.safetensors", "embedding space"]);
    folder.bad("diff q.nadir t.npy", &["t.npy"]);
    for arguments in ["report q.nadir", &format!("{report} --labels l.npy"), &format!("{report} --layer-tiles 0")] {
        assert_eq!(folder.run(arguments).status.code(), Some(2), "{arguments}");
    }
}

#[test]
fn differences_are_printed() {
    let folder = folder();
    let same = folder.good("diff q.nadir q.nadir");
    assert!(same.contains("same file, to the byte") && same.contains("embeddings may be compared"), "{same}");
    let other = folder.good("diff q.nadir h.nadir");
    for part in ["precision", "int8", "f16", "same architecture", "same embedding space", "i8 against"] {
        assert!(other.contains(part), "{part} in {other}");
    }
    let value: serde_json::Value = serde_json::from_str(&folder.good("diff q.nadir h.nadir --json")).unwrap();
    assert_eq!((value["same_file"].as_bool(), value["same_architecture"].as_bool()), (Some(false), Some(true)));
    let encoder = encoder();
    let file = int8(&encoder);
    assert!(json(&report(&Model::parse(&file).unwrap(), &encoder))["accuracy"].is_null());
}
