//! The protocol of the peer scripts, from the side of the engine that is measured.
//!
//! A worker is started with `... x.npy y.npy threads` at the end of its arguments: tiles `[tiles, bands, height, width]`, and the embeddings
//! `[tiles, dimension]` that a reference gave for them. It loads its model, embeds all tiles, and writes one line of JSON:
//! version, times of loading, memory, cosines with the reference. Then it answers each line:
//!
//! | line | answer |
//! | --- | --- |
//! | `run N` | `[[wall, cpu], ...]`: N calls, each in milliseconds a tile, going round the tiles |
//! | anything else, or the end | `{"hwm_kb": N}`, the peak of memory, and the worker ends |
//!
//! The environment's `PEER_BATCH` (1) is the number of tiles in a call. `threads` is how many threads an engine may use for a call.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nadir::Tile;
use nadir_formats::{Matrix, Tiles};
use serde_json::json;

use crate::clock::{cpu, peak_memory};

/// An engine with its model.
pub trait Peer {
    /// Version of the engine.
    fn version(&self) -> String;
    /// Embeds one tile `[bands, height, width]` and appends the embedding to `out`.
    ///
    /// # Errors
    /// If the engine refuses the tile.
    fn embed(&mut self, tile: Tile<'_>, out: &mut Vec<f32>) -> Result<()>;
    /// Embeds the tiles of one call and appends the embeddings to `out`, in their order. An engine that uses several threads
    /// does so here.
    ///
    /// # Errors
    /// As [`Peer::embed`].
    fn embed_batch(&mut self, tiles: &[Tile<'_>], out: &mut Vec<f32>) -> Result<()> {
        tiles.iter().try_for_each(|&tile| self.embed(tile, out))
    }
}

/// Agreement with the reference: mean and least cosine, largest absolute difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Mean cosine over the tiles.
    pub cos_mean: f64,
    /// Least cosine.
    pub cos_min: f64,
    /// Largest absolute difference of two values.
    pub max_abs: f64,
}

/// Compares embeddings row by row.
///
/// # Errors
/// If the two do not have the same shape, or hold no row.
pub fn agreement(found: &[f32], expected: &Matrix) -> Result<Agreement> {
    ensure!(expected.rows > 0 && expected.columns > 0, "the reference holds no embedding");
    ensure!(
        found.len() == expected.data.len(),
        "{} values were embedded, the reference has {} of dimension {}",
        found.len(),
        expected.data.len(),
        expected.columns
    );
    let mut all = Agreement { cos_mean: 0.0, cos_min: f64::INFINITY, max_abs: 0.0 };
    for (i, row) in found.chunks_exact(expected.columns).enumerate() {
        let (mut dot, mut a2, mut b2) = (0.0, 0.0, 0.0);
        for (&a, &b) in row.iter().zip(expected.row(i)) {
            let (a, b) = (f64::from(a), f64::from(b));
            dot += a * b;
            a2 += a * a;
            b2 += b * b;
            all.max_abs = all.max_abs.max((a - b).abs());
        }
        let cosine = dot / (a2 * b2).sqrt();
        all.cos_mean += cosine / expected.rows as f64;
        all.cos_min = all.cos_min.min(cosine);
    }
    Ok(all)
}

/// Serves requests until `requests` ends or asks for the end. `load` makes the engine; its time is reported.
///
/// # Errors
/// If a file, the engine or the protocol fails.
pub fn serve<P: Peer>(
    tiles: &Path,
    reference: &Path,
    batch: usize,
    load: impl FnOnce(&Tiles) -> Result<P>,
    requests: impl BufRead,
    mut answers: impl Write,
) -> Result<()> {
    let tiles = Tiles::read(tiles)?;
    let expected = Matrix::read(reference)?;
    ensure!(batch > 0 && batch <= tiles.len(), "a batch of {batch}, and {} tiles", tiles.len());

    let empty = peak_memory();
    let start = Instant::now();
    let mut peer = load(&tiles)?;
    let load_ms = milliseconds(start);
    let loaded = peak_memory();
    let start = Instant::now();
    peer.embed_batch(&[tiles.tile(0)], &mut vec![])?;
    let first_ms = milliseconds(start);
    let all: Vec<Tile<'_>> = (0..tiles.len()).map(|index| tiles.tile(index)).collect();
    let mut found = vec![];
    for tiles in all.chunks(batch) {
        peer.embed_batch(tiles, &mut found)?;
    }
    let Agreement { cos_mean, cos_min, max_abs } = agreement(&found, &expected)?;
    let ready = json!({
        "version": peer.version(), "import_ms": 0.0, "load_ms": load_ms, "first_ms": first_ms, "rss0_kb": empty,
        "rss_import_kb": empty, "rss_load_kb": loaded, "cos_mean": cos_mean, "cos_min": cos_min, "max_abs": max_abs,
    });
    writeln!(answers, "{ready}")?;
    answers.flush()?;

    // The tiles go round.
    let mut next = all.iter().copied().cycle();
    let mut call = Vec::with_capacity(batch);
    let mut out = Vec::with_capacity(batch * expected.columns);
    for line in requests.lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        if words.next() != Some("run") {
            break;
        }
        let calls: usize =
            words.next().and_then(|n| n.parse().ok()).with_context(|| format!("not a request: {line:?}"))?;
        let mut times = Vec::with_capacity(calls);
        for _ in 0..calls {
            out.clear();
            call.clear();
            call.extend(next.by_ref().take(batch));
            let (wall, before) = (Instant::now(), cpu());
            peer.embed_batch(&call, &mut out)?;
            let used = cpu() - before;
            let wall_ms = milliseconds(wall);
            black_box(&out);
            times.push([wall_ms / batch as f64, used.as_secs_f64() * 1e3 / batch as f64]);
        }
        writeln!(answers, "{}", json!(times))?;
        answers.flush()?;
    }
    writeln!(answers, "{}", json!({ "hwm_kb": peak_memory() }))?;
    answers.flush()?;
    Ok(())
}

/// The batch that the script asks for in `PEER_BATCH`.
///
/// # Errors
/// If that is not a number.
pub fn batch() -> Result<usize> {
    let text = std::env::var("PEER_BATCH").unwrap_or_else(|_| "1".into());
    text.parse().with_context(|| format!("PEER_BATCH is {text:?}, expected a number of tiles"))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use nadir_formats::Pixels;

    use super::*;

    /// Gives the first two values of a tile.
    struct FirstTwo;

    impl Peer for FirstTwo {
        fn version(&self) -> String {
            "1".into()
        }

        fn embed(&mut self, tile: Tile<'_>, out: &mut Vec<f32>) -> Result<()> {
            out.extend([tile.value(0).unwrap(), tile.value(1).unwrap()]);
            Ok(())
        }
    }

    fn session(batch: usize, requests: &str) -> Result<Vec<serde_json::Value>> {
        let dir = tempfile::tempdir().unwrap();
        let (x, y) = (dir.path().join("x.npy"), dir.path().join("y.npy"));
        Tiles { shape: [3, 1, 1, 2], pixels: Pixels::U8(vec![3, 4, 1, 0, 0, 9]) }.write(&x).unwrap();
        // The second row is at a right angle to what the peer gives.
        Matrix { rows: 3, columns: 2, data: vec![3.0, 4.0, 0.0, 1.0, 0.0, 9.0] }.write(&y).unwrap();
        let mut answers = vec![];
        serve(&x, &y, batch, |_| Ok(FirstTwo), requests.as_bytes(), &mut answers)?;
        Ok(String::from_utf8(answers).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    #[test]
    fn a_session_is_as_the_scripts_expect() {
        let answers = session(2, "run 3\nrun 1\nquit\nrun 9\n").unwrap();
        assert_eq!(answers.len(), 4);
        assert!((answers[0]["cos_mean"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(answers[0]["cos_min"], 0.0);
        assert_eq!(answers[0]["max_abs"], 1.0);
        for key in ["version", "import_ms", "load_ms", "first_ms", "rss0_kb", "rss_import_kb", "rss_load_kb"] {
            assert!(!answers[0][key].is_null(), "{key}");
        }
        for (answer, calls) in [(&answers[1], 3), (&answers[2], 1)] {
            let rows = answer.as_array().unwrap();
            assert_eq!(rows.len(), calls);
            assert!(rows.iter().all(|row| row.as_array().unwrap().len() == 2 && row[0].as_f64().unwrap() >= 0.0));
        }
        assert!(answers[3]["hwm_kb"].is_u64());
        assert_eq!(session(1, "").unwrap().len(), 2, "the end of the input is a `quit`");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert!(session(4, "").unwrap_err().to_string().contains("a batch of 4, and 3 tiles"));
        assert!(session(1, "run many\n").unwrap_err().to_string().contains("run many"));
        let two = Matrix { rows: 1, columns: 2, data: vec![1.0, 2.0] };
        assert!(agreement(&[1.0], &two).unwrap_err().to_string().contains("1 values"));
    }
}
