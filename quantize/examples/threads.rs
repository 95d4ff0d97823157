//! Embeddings a second on one thread and on more, each thread with its own arena, all with one encoder.
//!
//!     cargo run --release -p nadir-quantize --example threads [MODEL.nadir TILES.npy [ROUNDS]]
//!
//! Without arguments a random atto of 12 bands and 56 x 56 pixels; always in batches of 8. In each round every number of threads takes
//! several batches, one number after the other, in an order that turns from round to round: whatever disturbs the machine disturbs
//! all alike. The gain is the median over the rounds of the ratio within a round; the ratio of the fastest batches stands beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nadir::encoder::Encoder;
use nadir::model::{Architecture, Model};
use nadir_formats::{AlignedBytes, Tiles};
use nadir_quantize::batch::{available_threads, embed_all};
use nadir_quantize::testing::{random_int8_model, random_tiles};

const BATCH: usize = 8;
/// Batches in a row; the first of them, which wakes the processors, does not count.
const IN_A_ROW: usize = 6;
const ROUNDS: usize = 31;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = match arguments.get(2) {
        Some(rounds) => rounds.parse().with_context(|| format!("not a number of rounds: {rounds}"))?,
        None => ROUNDS,
    };
    ensure!(rounds > 0, "0 rounds");
    let (file, tiles) = match &arguments[..] {
        [model, tiles, ..] => (AlignedBytes::read(Path::new(model))?, Tiles::read(Path::new(tiles))?),
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
    // A row of times for each number of threads, one a round.
    let mut medians = vec![Vec::with_capacity(rounds); counts.len()];
    let mut best = vec![Duration::MAX; counts.len()];
    for round in 0..rounds {
        for turn in 0..counts.len() {
            let at = (round + turn) % counts.len();
            let mut times = Vec::with_capacity(IN_A_ROW);
            for _ in 0..IN_A_ROW {
                let started = Instant::now();
                let found = embed_all(&encoder, &tiles, counts[at], || ())?;
                times.push(started.elapsed());
                ensure!(found == expected, "{} threads give other embeddings than one", counts[at]);
            }
            best[at] = times[1..].iter().copied().fold(best[at], Duration::min);
            medians[at].push(median(times[1..].iter().map(Duration::as_secs_f64)));
        }
    }
    for (at, threads) in counts.iter().enumerate() {
        let rate = BATCH as f64 / median(medians[at].iter().copied());
        let gain = median(medians[0].iter().zip(&medians[at]).map(|(one, time)| one / time));
        let fastest = best[0].as_secs_f64() / best[at].as_secs_f64();
        println!(
            "{threads} threads: {rate:.1} tiles/s, {gain:.2} times one thread (median of {rounds} rounds; of the fastest batches {fastest:.2})"
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
