//! One tile through the encoder, and a model file through the parser, which checks every CRC: every shipped model, and a random int8
//! atto of 12 bands and patch 8 (3.5 MB); one thread.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nadir::encoder::Encoder;
use nadir::model::{Architecture, Model};
use nadir_formats::{AlignedBytes, Tiles};
use nadir_quantize::testing::{random_int8_model, random_tiles};

fn encoder(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tiles = Tiles::read(&root.join("samples/eurosat-rgb/tiles.npy")).expect("the sample tiles");
    for size in ["yocto", "zepto"] {
        for precision in ["int8", "f16", "f32"] {
            let name = format!("{size}-rgb-{precision}");
            let bytes = AlignedBytes::read(&root.join(format!("models/{name}.nadir"))).expect("a shipped model");
            model(criterion, &name, &bytes, &tiles);
        }
    }
    let atto = Architecture::named("atto", 56, 8).expect("a named size");
    let bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"];
    let bytes = AlignedBytes::copy_of(&random_int8_model("atto", atto, &bands, 1));
    model(criterion, "atto-56-8-int8", &bytes, &random_tiles(16, bands.len(), 56, 1));
}

fn model(criterion: &mut Criterion, name: &str, bytes: &AlignedBytes, tiles: &Tiles) {
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(name, |b| b.iter(|| Model::parse(black_box(bytes)).map(|m| m.file_crc())));
    group.finish();

    let model = Model::parse(bytes).expect("a good model");
    let engine = Encoder::new(&model);
    let mut arena = AlignedBytes::zeroed(engine.arena_bytes());
    let mut embedding = vec![0.0; model.embedding_dimension()];
    let mut group = criterion.benchmark_group("embed");
    // Elements are multiply-accumulates.
    group.throughput(Throughput::Elements(model.architecture().macs(model.bands().len())));
    let mut next = 0;
    group.bench_function(name, |b| {
        b.iter(|| {
            next = (next + 1) % tiles.len();
            engine.embed(tiles.tile(next), &mut arena, black_box(&mut embedding))
        });
    });
    group.finish();
}

criterion_group!(benches, encoder);
criterion_main!(benches);
