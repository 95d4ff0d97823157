//! Many tiles on several threads. The runtime starts none itself; an [`Encoder`] is shared, and each thread has its own arena.

use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};
use nadir::encoder::Encoder;
use nadir_formats::{AlignedBytes, Matrix, Tiles};

use crate::embed::check_shape;

/// Threads that the machine offers.
pub fn available_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The embeddings `[tiles, dimension]` of `tiles`, whose bands are in the model's order, on `threads` threads (at least one, at most one a
/// tile). Tiles are taken one by one, so that no thread waits for a slower one; the result is in the order of the tiles and does
/// not depend on the number of threads. `done` is called after each tile, from any thread.
///
/// # Errors
/// If the tiles do not have the model's shape.
pub fn embed_all(encoder: &Encoder<'_>, tiles: &Tiles, threads: usize, done: impl Fn() + Sync) -> Result<Matrix> {
    check_shape(encoder.model(), tiles)?;
    let columns = encoder.model().embedding_dimension();
    let mut data = vec![0.0; tiles.len() * columns];
    let work = Mutex::new(data.chunks_exact_mut(columns).enumerate());
    let worker = || {
        let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
        loop {
            // A thread that panicked has left the iterator as it was.
            let next = work.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((index, embedding)) = next else { return Ok(()) };
            encoder.embed(tiles.tile(index), &mut arena, embedding).with_context(|| format!("tile {index}"))?;
            done();
        }
    };
    thread::scope(|scope| {
        // The calling thread works too.
        let others: Vec<_> = (1..threads.min(tiles.len())).map(|_| scope.spawn(worker)).collect();
        let own: Result<()> = worker();
        others.into_iter().fold(own, |result, thread| match thread.join() {
            Ok(other) => result.and(other),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Matrix { rows: tiles.len(), columns, data })
}
