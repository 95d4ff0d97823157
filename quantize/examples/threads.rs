//! Embeddings a second on one thread and on more, each thread with its own arena, all with one encoder.
//!
//!     cargo run --release -p nadir-quantize --example threads [MODEL.nadir TILES.npy]
//!
//! Without arguments a random atto of 12 bands and 56 x 56 pixels, in batches of 8.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nadir::encoder::Encoder;
use nadir::model::{Architecture, Model};
use nadir_formats::{AlignedBytes, Tiles};
use nadir_quantize::batch::{available_threads, embed_all};
use nadir_quantize::testing::{random_int8_model, random_tiles};

const BATCH: usize = 8;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (file, tiles) = match &arguments[..] {
        [model, tiles] => (AlignedBytes::read(Path::new(model))?, Tiles::read(Path::new(tiles))?),
        _ => {
            let atto = Architecture::named("atto", 56, 8).expect("a named size");
            let bands = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"];
            let model = random_int8_model("atto", atto, &bands, 1);
            (AlignedBytes::copy_of(&model), random_tiles(BATCH, bands.len(), 56, 1))
        }
    };
    let model = Model::parse(&file)?;
    ensure!(!tiles.is_empty(), "there is no tile");
    let batch: Vec<usize> = (0..BATCH).map(|i| i % tiles.len()).collect();
    let tiles = tiles.pick(&batch);
    let encoder = Encoder::new(&model);
    println!("{} {}, kernels {}, batch of {BATCH}", model.name(), model.precision().name(), encoder.kernels());
    let expected = embed_all(&encoder, &tiles, 1, || ())?;
    let counts: Vec<usize> = (1..=available_threads()).collect();
    let mut best = vec![Duration::MAX; counts.len()];
    // Taken in turn, so that what else the machine does meets all of them.
    for _ in 0..ROUNDS {
        for (&threads, best) in counts.iter().zip(&mut best) {
            let started = Instant::now();
            let found = embed_all(&encoder, &tiles, threads, || ())?;
            *best = started.elapsed().min(*best);
            ensure!(found == expected, "{threads} threads give other embeddings than one");
        }
    }
    for (threads, time) in counts.iter().zip(&best) {
        let (rate, gain) = (BATCH as f64 / time.as_secs_f64(), best[0].as_secs_f64() / time.as_secs_f64());
        println!("{threads} threads: {rate:.1} tiles/s, {gain:.2} times one thread (best of {ROUNDS})");
    }
    Ok(())
}
