//! What each rung keeps of the embeddings: neighbours, classes, and the difference between change and none.

use std::fmt;

use anyhow::{Result, ensure};
use nadir::model::products::Products;
use nadir::triage::codes::hamming;
use nadir::triage::products::Product;
use nadir_formats::Matrix;
use nadir_formats::probe::{Confusion, neighbours, overlap, unit_row, vote};
use rayon::prelude::*;

use super::change::{Alteration, average_precision};
use super::{Name, decode, encode};
use crate::report::{Labelled, OVERLAP, VOTES};

/// Length of the shortlist by signs that int8 ranks again.
pub const SHORTLIST: usize = 100;

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The embedding as the runtime gives it.
    Float,
    /// A product alone.
    Product(Name),
    /// The [`SHORTLIST`] nearest by signs, ranked by int8: both codes are there.
    Reranked,
}

impl Rung {
    /// Bytes a tile, for embeddings of `dimension` numbers.
    pub fn bytes(self, dimension: usize) -> usize {
        match self {
            Rung::Float => 4 * dimension,
            Rung::Product(name) => name.product(dimension).bytes(dimension),
            Rung::Reranked => dimension + Product::Binary.bytes(dimension),
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rung::Float => f.pad("f32"),
            Rung::Product(name) => name.fmt(f),
            Rung::Reranked => f.pad("binary+int8"),
        }
    }
}

/// What is measured on.
pub struct Sample<'a> {
    /// Of all tiles, fitted and not.
    pub embeddings: &'a Matrix,
    /// Rows to which the products were fitted.
    pub fitted: &'a [usize],
    /// Rows to which they were not.
    pub held_out: &'a [usize],
    /// Classes of all tiles.
    pub labels: Option<&'a Labelled>,
    /// The pairs of the measure of change.
    pub pairs: Pairs,
}

/// Tiles seen once and again.
pub struct Pairs {
    /// Embeddings of the tiles.
    pub first: Matrix,
    /// Of the same tiles, altered.
    pub again: Vec<(Alteration, Matrix)>,
    /// For each tile the one that stands in for it where it changed.
    pub partners: Vec<usize>,
}

/// What one rung keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The rung.
    pub rung: Rung,
    /// Bytes a tile.
    pub bytes: usize,
    /// Mean share of a tile's [`OVERLAP`] nearest in float that are among its nearest by the rung; both among held-out tiles.
    pub recall: f64,
    /// Share of held-out tiles whose class the majority of the [`VOTES`] nearest fitted tiles has.
    pub accuracy: Option<f64>,
    /// Average precision of "changed" for each alteration, and for all pairs together; none for a ranking of neighbours only.
    pub change: Option<(Vec<f64>, f64)>,
}

/// Measures every rung.
///
/// # Errors
/// If there are too few held-out tiles, or a rung asks for more numbers than the products have.
pub fn measure(products: &Products<'_>, rungs: &[Rung], sample: &Sample<'_>) -> Result<Vec<Kept>> {
    let tiles = sample.held_out.len();
    ensure!(tiles > OVERLAP, "{tiles} tiles to measure on, more than {OVERLAP} are needed");
    let exact = Form::of(products, Rung::Float, sample.embeddings)?.nearest(sample.held_out, sample.held_out, OVERLAP);
    rungs
        .iter()
        .map(|&rung| {
            let form = Form::of(products, rung, sample.embeddings)?;
            let recall = overlap(&exact, &form.nearest(sample.held_out, sample.held_out, OVERLAP));
            let accuracy = sample.labels.map(|labels| {
                let near = form.nearest(sample.fitted, sample.held_out, VOTES);
                let said: Vec<usize> =
                    near.iter().map(|near| vote(near.iter().map(|&row| labels.classes[row]))).collect();
                let truth = sample.held_out.iter().map(|&row| labels.classes[row]);
                Confusion::new(labels.count, truth, &said).accuracy()
            });
            let change = (rung != Rung::Reranked).then(|| change(products, rung, &sample.pairs)).transpose()?;
            Ok(Kept { rung, bytes: rung.bytes(sample.embeddings.columns), recall, accuracy, change })
        })
        .collect()
}

/// Average precision for each alteration, and for all pairs.
fn change(products: &Products<'_>, rung: Rung, pairs: &Pairs) -> Result<(Vec<f64>, f64)> {
    let first = Form::of(products, rung, &pairs.first)?;
    let mut all = Vec::new();
    let mut each = Vec::new();
    for (_, again) in &pairs.again {
        let again = Form::of(products, rung, again)?;
        let rows = pairs.partners.iter().enumerate();
        let scored: Vec<(f64, bool)> = rows
            .flat_map(|(row, &other)| {
                [(first.distance(row, &again, row), false), (first.distance(row, &again, other), true)]
            })
            .collect();
        each.push(average_precision(&scored));
        all.extend(scored);
    }
    Ok((each, average_precision(&all)))
}

/// Tiles as a rung holds them.
struct Form {
    /// Numbers about the centre, to be compared by cosine; none for signs alone.
    numbers: Option<Matrix>,
    /// Signs, so many bytes a tile, to be compared by the bits in which they differ.
    signs: Option<(Vec<u8>, usize)>,
}

impl Form {
    fn of(products: &Products<'_>, rung: Rung, embeddings: &Matrix) -> Result<Self> {
        let dimension = embeddings.columns;
        let numbers = match rung {
            Rung::Float => Some(embeddings.clone()),
            Rung::Product(Name::Binary) => None,
            Rung::Product(name) => Some(decoded(products, name.product(dimension), embeddings)?),
            Rung::Reranked => Some(decoded(products, Product::Int8(dimension), embeddings)?),
        };
        let signs = match rung {
            Rung::Product(Name::Binary) | Rung::Reranked => Some(encode(products, Product::Binary, embeddings)?),
            _ => None,
        };
        let unit = f64::from(products.fraction_bits()).exp2().recip() as f32;
        let centre: Vec<f32> = products.centre().map(|c| f32::from(c) * unit).collect();
        let about = |mut numbers: Matrix| {
            for row in numbers.data.chunks_exact_mut(numbers.columns) {
                row.iter_mut().zip(&centre).for_each(|(v, c)| *v -= c);
            }
            numbers
        };
        let bytes = Product::Binary.bytes(dimension);
        Ok(Self { numbers: numbers.map(about), signs: signs.map(|signs| (signs, bytes)) })
    }

    /// For each row of `queries` the `k` nearest others of `gallery`, nearest first; of equally near ones the first.
    fn nearest(&self, gallery: &[usize], queries: &[usize], k: usize) -> Vec<Vec<usize>> {
        let Some((signs, bytes)) = &self.signs else {
            return self.numbers.as_ref().map_or_else(Vec::new, |numbers| neighbours(numbers, gallery, queries, k));
        };
        let code = |row: usize| &signs[row * bytes..(row + 1) * bytes];
        let one = |&query: &usize| {
            let others = gallery.iter().filter(|&&row| row != query);
            let mut near: Vec<(u32, usize)> = others.map(|&row| (hamming(code(query), code(row)), row)).collect();
            near.sort_unstable();
            let mut near: Vec<usize> = near.into_iter().map(|(_, row)| row).collect();
            if let Some(numbers) = &self.numbers {
                near.truncate(SHORTLIST);
                let cosine = |&row: &usize| cosine(numbers.row(query), numbers.row(row));
                near.sort_by(|a, b| cosine(b).total_cmp(&cosine(a)));
            }
            near.truncate(k);
            near
        };
        queries.par_iter().map(one).collect()
    }

    /// 1 - cosine of numbers, or the share of signs that differ.
    fn distance(&self, row: usize, other: &Self, of_other: usize) -> f64 {
        if let (Some(a), Some(b)) = (&self.numbers, &other.numbers) {
            return 1.0 - cosine(a.row(row), b.row(of_other));
        }
        let code = |form: &Self, row: usize| {
            form.signs.as_ref().map_or_else(Vec::new, |(signs, bytes)| signs[row * bytes..(row + 1) * bytes].to_vec())
        };
        f64::from(hamming(&code(self, row), &code(other, of_other)))
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    unit_row(a).zip(unit_row(b)).map(|(a, b)| f64::from(a) * f64::from(b)).sum()
}

fn decoded(products: &Products<'_>, product: Product, embeddings: &Matrix) -> Result<Matrix> {
    decode(products, product, &encode(products, product, embeddings)?, product.bytes(embeddings.columns))
}
