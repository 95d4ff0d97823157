//! What quantization lost in the end: embeddings, their neighbours, and what can be read from them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nadir::encoder::Encoder as Engine;
use nadir::model::{Model, Precision};
use nadir_formats::probe::{
    Confusion, Logistic, Split, Standardiser, nearest_neighbours, neighbours, overlap, strengths,
};
use nadir_formats::{AlignedBytes, Encoder, Matrix, Tiles, read_integers};

use crate::batch::{available_threads, embed_all};
use crate::compare::Agreement;
use crate::float;

/// Neighbours whose overlap is measured.
pub const OVERLAP: usize = 10;
/// Neighbours that vote for a class.
pub const VOTES: usize = 20;

/// Labels of tiles, one class each, and their split.
pub struct Labelled {
    /// Class of each tile, from 0 on.
    pub classes: Vec<usize>,
    /// Number of classes.
    pub count: usize,
    /// Rows that train, validate and test.
    pub split: Split,
}

impl Labelled {
    /// Reads labels (any integers) and a split (0 train, 1 validation, 2 test, -1 not used) of `tiles` tiles.
    ///
    /// # Errors
    /// If a file cannot be read, is not as long as the tiles, or no row trains or tests.
    pub fn read(labels: &Path, split: &Path, tiles: usize) -> Result<Self> {
        let read = |path: &Path| -> Result<Vec<i64>> {
            let values = read_integers(path)?;
            ensure!(values.len() == tiles, "{}: has {} entries for {tiles} tiles", path.display(), values.len());
            Ok(values)
        };
        let values = read(labels)?;
        let split =
            Split::new(&read(split)?).map_err(anyhow::Error::msg).with_context(|| split.display().to_string())?;
        let mut known: BTreeMap<i64, usize> = values.iter().map(|&value| (value, 0)).collect();
        known.values_mut().enumerate().for_each(|(class, index)| *index = class);
        Ok(Self { classes: values.iter().map(|value| known[value]).collect(), count: known.len(), split })
    }

    /// The test rows.
    fn tested(&self, predicted: &[usize]) -> f64 {
        Confusion::new(self.count, self.split.test.iter().map(|&row| self.classes[row]), predicted).accuracy()
    }

    fn accuracy(&self, e: &Matrix) -> Accuracy {
        let Split { train, validation, test } = &self.split;
        let neighbours = self.tested(&nearest_neighbours(e, &self.classes, train, test, VOTES));
        let standardiser = Standardiser::fit(e, train);
        let [x, to_validate, to_test] = [train, validation, test].map(|rows| standardiser.apply(e, rows));
        let labels: Vec<usize> = train.iter().map(|&row| self.classes[row]).collect();
        let mut last: Option<Logistic> = None;
        let mut best: Option<(f64, f64)> = None;
        for c in strengths(None, !validation.is_empty()) {
            let fit = Logistic::fit(&x, e.columns, &labels, self.count, c, last.as_ref());
            let truth = validation.iter().map(|&row| self.classes[row]);
            let score = Confusion::new(self.count, truth, &fit.predict(&to_validate)).accuracy();
            // Of equally good ones the strongest penalty stays.
            if best.is_none_or(|(before, _)| score > before) {
                best = Some((score, self.tested(&fit.predict(&to_test))));
            }
            last = Some(fit);
        }
        Accuracy { neighbours, logistic: best.map_or(f64::NAN, |(_, accuracy)| accuracy) }
    }
}

/// Shares of test tiles whose class was read rightly from embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// By the majority of the [`VOTES`] nearest neighbours in cosine similarity.
    pub neighbours: f64,
    /// By logistic regression; its penalty is chosen on the validation rows, if there are any.
    pub logistic: f64,
}

/// The end metrics.
pub struct Ends {
    /// Of the embeddings with the float encoder's.
    pub agreement: Agreement,
    /// Mean share of the [`OVERLAP`] nearest tiles that are the same for both; nothing with fewer tiles.
    pub overlap: Option<f64>,
    /// With labels: of the float encoder, and of the quantized model.
    pub accuracy: Option<[Accuracy; 2]>,
}

/// Compares the embeddings of `engine` with `encoder`'s: the latter by the runtime in f32, which is within 1e-5 of float64.
///
/// # Errors
/// If the tiles do not have the model's shape.
pub fn compare(
    engine: &Engine<'_>,
    encoder: &Encoder,
    tiles: &Tiles,
    labels: Option<&Labelled>,
    done: &(dyn Fn() + Sync),
) -> Result<Ends> {
    let found = embed_all(engine, tiles, available_threads(), done)?;
    let bytes = AlignedBytes::copy_of(&float::convert(encoder, Precision::F32)?);
    let exact = embed_all(&Engine::new(&Model::parse(&bytes)?), tiles, available_threads(), || {})?;
    let rows = |e: &Matrix| -> Vec<Vec<f64>> {
        (0..e.rows).map(|i| e.row(i).iter().map(|&v| f64::from(v)).collect()).collect()
    };
    Ok(Ends {
        agreement: Agreement::of(&rows(&found), &rows(&exact)),
        overlap: (tiles.len() > OVERLAP).then(|| shared(&exact, &found)),
        accuracy: labels.map(|labels| [&exact, &found].map(|e| labels.accuracy(e))),
    })
}

/// Mean share of the [`OVERLAP`] nearest rows, other than itself, that a row has in both.
fn shared(a: &Matrix, b: &Matrix) -> f64 {
    let all: Vec<usize> = (0..a.rows).collect();
    let near = |e: &Matrix| neighbours(e, &all, &all, OVERLAP);
    overlap(&near(a), &near(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_of_the_nearest() {
        // Directions on a circle, 3 degrees apart: the neighbours of a row are those beside it.
        let circle = |turn: &dyn Fn(usize) -> f64| {
            let angle = |i: usize| turn(i).to_radians();
            let data = (0..60).flat_map(|i| [angle(i).cos() as f32, angle(i).sin() as f32]).collect();
            Matrix { rows: 60, columns: 2, data }
        };
        let plain = circle(&|i| 3.0 * i as f64);
        assert_eq!(shared(&plain, &plain), 1.0);
        // Lengths do not matter.
        let longer = Matrix { data: plain.data.iter().map(|v| 7.0 * v).collect(), ..plain.clone() };
        assert_eq!(shared(&plain, &longer), 1.0);
        // The second half turned around: rows in the middle of either half keep all, those at the seam lose some.
        let torn = circle(&|i| if i < 30 { 3.0 * i as f64 } else { 180.0 + 3.0 * i as f64 });
        let found = shared(&plain, &torn);
        assert!((0.85..0.97).contains(&found), "{found}");
    }
}
