//! Distillation: a small encoder learns to give the embeddings of a larger one.
//!
//! Two losses on the teacher's embeddings of the tiles:
//! - `feature`: a linear projection of the student's embedding, used only while training, against the teacher's
//!   embedding with each dimension at zero mean and unit variance over the tiles; mean squared error. With
//!   [`Options::keep_space`] there is no projection: the student gives the teacher's embedding itself.
//! - `relation`: the cosine similarities of all pairs of a batch, student's against teacher's, both with each dimension
//!   at zero mean and unit variance; mean squared error. It needs no projection, so it shapes the student's own space.
//!
//! With [`Options::prefixes`] both losses are also taken on the first numbers of the student's embedding (Kusupati et al.,
//! "Matryoshka Representation Learning", NeurIPS 2022), so that an embedding can be cut short after training.
//!
//! Values per tile may be predicted besides ([`Pretext`]), from the student's embedding by linear heads used only while training.
//!
//! With [`Distillation::quantized`] the student computes as the integer engine will, so that it learns to do well there.
//!
//! The student may see other bands, another size, and with [`Options::band_dropout`] not all of its bands ([`View`]). With
//! flips it sees a tile under a random symmetry. Unless the teacher runs along ([`Teacher::Live`]), the target stays the
//! teacher's embedding of the tile as it is (or its mean over several symmetries): the student so learns that the
//! orientation does not matter, and the teacher runs once a tile instead of once a step.

mod pretext;
mod view;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, Tensor};
use nadir_formats::{BandCard, Matrix, Tensor as Array, Tiles};
use nalgebra::{Cholesky, DMatrix, DVector};
use rand::RngExt;

use crate::data::{Stream, Symmetry, generator, input};
use crate::encoder::Encoder;
use crate::mpmae::Losses;
use crate::params::{Init, Params, fresh};
use crate::quantization::Quantization;
use crate::run::{Objective, column_statistics, embed_tiles};

pub use pretext::Pretext;
pub use view::{Fit, View};

/// Share of the average diagonal that is added to it when the first projection is solved for.
const RIDGE: f64 = 1e-2;
/// Deviations up to this count as none: the dimension says nothing.
const FLAT: f64 = 1e-6;

/// How much each loss counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Weight of the feature loss.
    pub feature: f64,
    /// Weight of the relation loss.
    pub relation: f64,
}

/// What is free in a distillation.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How much each loss counts.
    pub weights: Weights,
    /// Lengths at which the student's embedding may be cut, ascending, each below its dimension.
    pub prefixes: Vec<usize>,
    /// The student gives the teacher's embedding itself; both have the same dimension then, and there are no prefixes.
    pub keep_space: bool,
    /// Probability (0 to below 1) that a band of a tile is hidden from the student; one band at least stays.
    pub band_dropout: f64,
    /// Seed of the projection, of hidden bands and of crops.
    pub seed: u64,
}

/// Where the teacher's embeddings come from.
pub enum Teacher {
    /// Computed before, one row a tile.
    Cached(Matrix),
    /// Computed at every step, of the tile under the symmetry under which the student sees it.
    Live {
        /// The teacher.
        encoder: Encoder,
        /// Its embeddings of the tiles as they are, which give the statistics of each dimension.
        plain: Matrix,
    },
}

/// The tiles as teacher and student see them.
pub struct Sight<'a> {
    /// The tiles as the teacher takes them.
    pub tiles: &'a Tiles,
    /// Its bands.
    pub bands: &'a [BandCard],
    /// What the student sees of them.
    pub view: &'a View,
}

/// The student, its projections, and what the teacher says of every tile.
pub struct Distillation<'a> {
    student: &'a Encoder,
    sight: Sight<'a>,
    teacher: Teacher,
    /// Mean and deviation of each dimension of the teacher; deviation 0 if it says nothing.
    mean: Tensor,
    std: Vec<f64>,
    reciprocal: Tensor,
    /// What is told beside the teacher's embedding, one row a tile.
    beside: Option<Matrix>,
    options: Options,
    pretext: Pretext,
    quantization: Option<Quantization>,
    params: Params,
}

/// The teacher's embeddings, `[tiles, d]`, averaged over the first `views` (1 to 8) symmetries of each tile.
pub fn teacher_embeddings(teacher: &Encoder, tiles: &Tiles, bands: &[BandCard], views: u8) -> Result<Matrix> {
    let mut mean = embed_tiles(teacher, tiles, bands, 0, "teacher's embeddings")?;
    for symmetry in 1..views {
        let more = embed_tiles(teacher, tiles, bands, symmetry, "teacher's embeddings")?;
        mean.data.iter_mut().zip(&more.data).for_each(|(m, v)| *m += v);
    }
    mean.data.iter_mut().for_each(|m| *m /= f32::from(views.max(1)));
    Ok(mean)
}

impl<'a> Distillation<'a> {
    /// A distillation with small random projections.
    ///
    /// `beside` has further numbers that the student is to tell, one row a tile and each column at zero mean and unit variance. They
    /// are scaled so that all of them vary as much as the teacher's whole embedding.
    ///
    /// # Errors
    /// If the tiles and the teacher's embeddings differ in number, if a prefix is not shorter than the student's embedding, or if the space
    /// is to be kept and the dimensions differ.
    pub fn new(
        student: &'a Encoder,
        sight: Sight<'a>,
        teacher: Teacher,
        beside: Option<Matrix>,
        options: Options,
        pretext: Pretext,
    ) -> Result<Self> {
        let plain = match &teacher {
            Teacher::Cached(matrix) | Teacher::Live { plain: matrix, .. } => matrix,
        };
        let (tiles, own) = (sight.tiles.len(), student.architecture().embedding_dimension());
        ensure!(plain.rows == tiles, "{} embeddings of the teacher for {tiles} tiles", plain.rows);
        let ascending = options.prefixes.windows(2).all(|pair| pair[0] < pair[1]);
        let fitting = options.prefixes.iter().all(|n| (1..own).contains(n));
        ensure!(ascending && fitting, "prefixes {:?}: must rise, and be below {own}", options.prefixes);
        if options.keep_space {
            let wanted = plain.columns;
            ensure!(own == wanted, "the student's embedding has {own} dimensions, the teacher's space {wanted}");
            ensure!(beside.is_none(), "nothing can be told beside an embedding in the teacher's space");
            ensure!(options.prefixes.is_empty(), "a prefix of the teacher's space has no meaning of its own");
        }
        let (mean, std) = column_statistics(plain);
        let reciprocal: Vec<f32> = std.iter().map(|s| if *s > FLAT { (1.0 / s) as f32 } else { 0.0 }).collect();
        let device = student.device();
        let row = |values: Vec<f32>| Tensor::from_vec(values, (1, plain.columns), device);
        let (mean, reciprocal) = (row(mean.iter().map(|m| *m as f32).collect())?, row(reciprocal)?);
        if let Some(beside) = &beside {
            ensure!(beside.rows == tiles, "{} rows beside the teacher's embeddings of {tiles} tiles", beside.rows);
        }
        let outputs = plain.columns + beside.as_ref().map_or(0, |beside| beside.columns);
        let mut arrays = BTreeMap::new();
        if !options.keep_space {
            let mut random = generator(options.seed, Stream::Projection, 0);
            for (name, from) in heads(&options.prefixes, own) {
                // Uniform with the deviation that keeps unit variance.
                let bound = (3.0 / from as f32).sqrt();
                let weight = (0..from * outputs).map(|_| random.random_range(-bound..bound)).collect();
                arrays.insert(format!("{name}.weight"), Array { shape: vec![outputs, from], data: weight });
                let bias = Array { shape: vec![outputs], data: vec![0.0; outputs] };
                arrays.insert(format!("{name}.bias"), bias);
            }
        }
        let mut random = generator(options.seed, Stream::Projection, 1);
        arrays.extend(fresh(&pretext.shapes(own), Init::Small, |_| false, &mut random));
        let mut params = Params::from_arrays(&arrays, device)?;
        params.extend("encoder.", student.params(), |_| true);
        Ok(Self {
            student,
            sight,
            teacher,
            mean,
            std,
            reciprocal,
            beside,
            options,
            pretext,
            quantization: None,
            params,
        })
    }

    /// From now on the student computes rounded, as the integer engine will.
    pub fn quantized(self, quantization: Quantization) -> Self {
        Self { quantization: Some(quantization), ..self }
    }

    /// Replaces the projections by the linear regressions from the student's present embeddings to the teacher's, so that
    /// a trained student goes on from where it is.
    pub fn fit_projection(&self) -> Result<()> {
        let (tiles, bands) = (self.sight.view.tiles(), self.sight.view.bands());
        let student = embed_tiles(self.student, tiles, bands, 0, "student's embeddings")?;
        let wanted = self.wanted(&(0..tiles.len()).map(|i| (i, 0)).collect::<Vec<_>>())?;
        let wanted =
            Matrix { rows: tiles.len(), columns: wanted.dim(1)?, data: wanted.flatten_all()?.to_vec1::<f32>()? };
        for (name, from) in heads(&self.options.prefixes, student.columns) {
            let prefix = (0..student.rows).flat_map(|row| &student.row(row)[..from]).copied().collect();
            let (weight, bias) = regression(&Matrix { rows: student.rows, columns: from, data: prefix }, &wanted)?;
            self.params.set(&format!("{name}.weight"), &weight)?;
            self.params.set(&format!("{name}.bias"), &bias)?;
        }
        Ok(())
    }

    /// The teacher's embeddings of the drawn tiles, each dimension at zero mean and unit variance over all tiles, and what is told
    /// beside them, `[batch, outputs]`.
    fn wanted(&self, draws: &[(usize, Symmetry)]) -> Result<Tensor> {
        let device = self.student.device();
        let rows_of = |matrix: &Matrix| {
            let rows: Vec<f32> = draws.iter().flat_map(|(i, _)| matrix.row(*i)).copied().collect();
            Tensor::from_vec(rows, (draws.len(), matrix.columns), device)
        };
        let raw = match &self.teacher {
            Teacher::Cached(matrix) => rows_of(matrix)?,
            Teacher::Live { encoder, .. } => {
                encoder.embed(&input(self.sight.tiles, self.sight.bands, draws, device)?)?.detach()
            }
        };
        let wanted = raw.broadcast_sub(&self.mean)?.broadcast_mul(&self.reciprocal)?;
        let Some(beside) = &self.beside else { return Ok(wanted) };
        let varying = self.std.iter().filter(|std| **std > FLAT).count();
        let scale = (varying as f64 / beside.columns as f64).sqrt();
        Ok(Tensor::cat(&[wanted, (rows_of(beside)? * scale)?], 1)?)
    }
}

/// Names and widths of the projections: of the whole embedding, and of each prefix.
fn heads(prefixes: &[usize], dimension: usize) -> Vec<(String, usize)> {
    let prefixes = prefixes.iter().map(|n| (format!("projection-{n}"), *n));
    std::iter::once(("projection".to_owned(), dimension)).chain(prefixes).collect()
}

impl Objective for Distillation<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn loss(&self, step: u64, draws: &[(usize, Symmetry)]) -> Result<Losses> {
        let x = self.sight.view.input(draws, step, &self.options, self.student.device())?;
        let wanted = self.wanted(draws)?;
        let relations = similarities(&wanted)?;
        let embedding = match &self.quantization {
            Some(quantization) => quantization.apply(self.student)?.embed(&x)?,
            None => self.student.embed(&x)?,
        };
        let own = embedding.dim(1)?;
        let lengths = heads(&self.options.prefixes, own);
        let mut total = Tensor::zeros((), wanted.dtype(), wanted.device())?;
        let mut tasks = Vec::new();
        for (name, length) in &lengths {
            let prefix = embedding.narrow(1, 0, *length)?;
            let given = match self.options.keep_space {
                true => prefix.broadcast_sub(&self.mean)?.broadcast_mul(&self.reciprocal)?,
                false => prefix
                    .matmul(&self.params.get(&format!("{name}.weight")).t()?)?
                    .broadcast_add(self.params.get(&format!("{name}.bias")))?,
            };
            let feature = (given - &wanted)?.sqr()?.mean_all()?;
            let relation = (similarities(&standardised(&prefix)?)? - &relations)?.sqr()?.mean_all()?;
            let weights = self.options.weights;
            total = (total + ((&feature * weights.feature)? + (&relation * weights.relation)?)?)?;
            let suffix = name.strip_prefix("projection").unwrap_or_default();
            for (task, loss) in [("feature", feature), ("relation", relation)] {
                tasks.push((format!("{task}{suffix}"), loss.to_scalar()?));
            }
        }
        let mut total = (total / lengths.len() as f64)?;
        let rows: Vec<usize> = draws.iter().map(|(tile, _)| *tile).collect();
        let (pretext, more) = self.pretext.loss(&embedding, &rows, &self.params)?;
        if let Some(pretext) = pretext {
            total = (total + (pretext * self.pretext.weight())?)?;
        }
        tasks.extend(more);
        Ok(Losses { total, tasks })
    }
}

/// Each dimension of `[batch, d]` at zero mean and unit variance over the batch.
fn standardised(x: &Tensor) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(0)?)?;
    let variance = (centred.sqr()?.mean_keepdim(0)? + 1e-5)?;
    centred.broadcast_div(&variance.sqrt()?)
}

/// Cosine similarities of all pairs of rows, `[batch, batch]`.
fn similarities(x: &Tensor) -> candle_core::Result<Tensor> {
    let norm = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
    let unit = x.broadcast_div(&norm)?;
    unit.matmul(&unit.t()?)
}

/// Weight `[to, from]` and bias `[to]` of the ridge regression of `y` on `x`, solved in f64.
fn regression(x: &Matrix, y: &Matrix) -> Result<(Vec<f32>, Vec<f32>)> {
    let matrix = |m: &Matrix| {
        let (mean, _) = column_statistics(m);
        let centred = DMatrix::from_fn(m.rows, m.columns, |i, j| f64::from(m.row(i)[j]) - mean[j]);
        (centred, DVector::from_vec(mean))
    };
    let ((x, x_mean), (y, y_mean)) = (matrix(x), matrix(y));
    let mut gram = x.tr_mul(&x);
    let ridge = RIDGE * gram.trace() / gram.nrows() as f64;
    (0..gram.nrows()).for_each(|i| gram[(i, i)] += ridge);
    let factor = Cholesky::new(gram).context("the student's embeddings do not vary over the tiles")?;
    let weight = factor.solve(&x.tr_mul(&y)).transpose();
    let bias = y_mean - &weight * x_mean;
    let single = |v: &f64| *v as f32;
    // Stored column by column, wanted row by row.
    Ok((weight.transpose().iter().map(single).collect(), bias.iter().map(single).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_projection_is_the_linear_map_that_made_the_targets() {
        // y = 2 a - b + 3 and y = 0.5 b - 1, on points that span the plane.
        let x: Vec<f32> = (0..40).flat_map(|i| [(i % 7) as f32 - 2.0, (i % 5) as f32 * 0.5]).collect();
        let y = x.chunks(2).flat_map(|v| [2.0 * v[0] - v[1] + 3.0, 0.5 * v[1] - 1.0]).collect();
        let x = Matrix { rows: 40, columns: 2, data: x };
        let y = Matrix { rows: 40, columns: 2, data: y };
        let (weight, bias) = regression(&x, &y).unwrap();
        // The ridge pulls a little towards 0.
        for (is, should) in weight.iter().chain(&bias).zip([2.0, -1.0, 0.0, 0.5, 3.0, -1.0]) {
            assert!((is - should).abs() < 0.08, "{weight:?} {bias:?}");
        }
        let flat = Matrix { rows: 40, columns: 2, data: vec![1.0; 80] };
        assert!(regression(&flat, &y).is_err());
    }

    #[test]
    fn similarities_are_cosines() {
        let x = Tensor::new(&[[3.0f32, 4.0], [4.0, -3.0], [-6.0, -8.0]], &Device::Cpu).unwrap();
        let s: Vec<Vec<f32>> = similarities(&x).unwrap().to_vec2().unwrap();
        for (row, should) in s.iter().zip([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]) {
            row.iter().zip(should).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{s:?}"));
        }
        let z: Vec<Vec<f32>> = standardised(&x).unwrap().to_vec2().unwrap();
        for d in 0..2 {
            let mean: f32 = z.iter().map(|r| r[d]).sum::<f32>() / 3.0;
            let variance: f32 = z.iter().map(|r| r[d] * r[d]).sum::<f32>() / 3.0;
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-4);
        }
    }

    #[test]
    fn what_is_told_beside_counts_as_much_as_the_teacher() {
        let n = 50;
        let architecture = nadir::model::Architecture {
            dims: [4; 4],
            depths: [1; 4],
            ..nadir::model::Architecture::named("yocto", 16, 8).unwrap()
        };
        let tiles = Tiles { shape: [n, 1, 16, 16], pixels: nadir_formats::Pixels::U8(vec![0; n * 256]) };
        let bands =
            [BandCard { name: "B4".into(), unit: "1".into(), mean: 0.0, std: 1.0, no_data: None, saturation: None }];
        let student = Encoder::init(&architecture, 1, &mut generator(1, Stream::Weights, 0), &Device::Cpu).unwrap();
        let view = View::new(&tiles, &bands, &bands, 16, Fit::Resize).unwrap();
        let value = |i: usize, seed: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
        // Six dimensions of the teacher, of which one says nothing.
        let mut teacher = Matrix { rows: n, columns: 6, data: (0..n * 6).map(|i| 5.0 * value(i, 1) + 3.0).collect() };
        (0..n).for_each(|row| teacher.data[row * 6 + 2] = 1.5);
        let mut beside = Matrix { rows: n, columns: 2, data: (0..n * 2).map(|i| value(i, 2)).collect() };
        let (mean, std) = column_statistics(&beside);
        beside.data.iter_mut().enumerate().for_each(|(i, v)| *v = ((f64::from(*v) - mean[i % 2]) / std[i % 2]) as f32);
        let options = Options {
            weights: Weights { feature: 1.0, relation: 1.0 },
            prefixes: Vec::new(),
            keep_space: false,
            band_dropout: 0.0,
            seed: 1,
        };
        let sight = || Sight { tiles: &tiles, bands: &bands, view: &view };
        let pretext = || Pretext::new(Vec::new(), 1.0).unwrap();
        let of = |beside, options: &Options| {
            Distillation::new(&student, sight(), Teacher::Cached(teacher.clone()), beside, options.clone(), pretext())
        };
        let distillation = of(Some(beside.clone()), &options).unwrap();
        let draws: Vec<_> = (0..n).map(|i| (i, 0)).collect();
        let wanted = distillation.wanted(&draws).unwrap();
        assert_eq!(wanted.dims(), [n, 8]);
        let squares: Vec<f32> = wanted.sqr().unwrap().mean(0).unwrap().to_vec1().unwrap();
        let (teacher_part, beside_part) = (squares[..6].iter().sum::<f32>(), squares[6..].iter().sum::<f32>());
        assert!((teacher_part - 5.0).abs() < 1e-3 && (beside_part - 5.0).abs() < 1e-3, "{squares:?}");
        beside.rows -= 1;
        assert!(of(Some(beside.clone()), &options).err().unwrap().to_string().contains("49 rows beside"));
        beside.rows += 1;
        let kept = Options { keep_space: true, ..options };
        assert!(of(Some(beside), &kept).is_err());
    }
}
