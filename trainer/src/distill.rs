//! Distillation: a small encoder learns to give the embeddings of a larger one.
//!
//! Two losses on the teacher's embeddings of the tiles, which are computed once:
//! - `feature`: a linear projection of the student's embedding, used only while training, against the teacher's
//!   embedding with each dimension at zero mean and unit variance over the tiles; mean squared error.
//! - `relation`: the cosine similarities of all pairs of a batch, student's against teacher's, both with each dimension
//!   at zero mean and unit variance; mean squared error. It needs no projection, so it shapes the student's own space.
//!
//! With flips the student sees a tile under a random symmetry, but the target stays the teacher's embedding of the tile
//! as it is (or its mean over several symmetries): the student so learns that the orientation does not matter, and the
//! teacher runs once a tile instead of eight times.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::{D, Tensor};
use nadir_formats::{BandCard, Matrix, Tensor as Array, Tiles};

use crate::data::{Stream, Symmetry, generator, input};
use crate::encoder::Encoder;
use crate::mpmae::Losses;
use crate::params::Params;
use crate::run::{Objective, column_statistics, embed_tiles};

/// Share of the average diagonal that is added to it when the first projection is solved for.
const RIDGE: f64 = 1e-2;

/// How much each loss counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Weight of the feature loss.
    pub feature: f64,
    /// Weight of the relation loss.
    pub relation: f64,
}

/// The student, its projection, and what the teacher says of every tile.
pub struct Distillation<'a> {
    student: &'a Encoder,
    tiles: &'a Tiles,
    bands: &'a [BandCard],
    /// Standardised embeddings of the teacher, `[tiles, teacher's dimension]`.
    teacher: Matrix,
    weights: Weights,
    params: Params,
}

/// The teacher's embeddings, averaged over the first `views` (1 to 8) symmetries of each tile, each dimension brought to
/// zero mean and unit variance over the tiles; a dimension that does not vary becomes 0.
pub fn teacher_embeddings(teacher: &Encoder, tiles: &Tiles, bands: &[BandCard], views: u8) -> Result<Matrix> {
    let mut mean = embed_tiles(teacher, tiles, bands, 0, "teacher's embeddings")?;
    for symmetry in 1..views {
        let more = embed_tiles(teacher, tiles, bands, symmetry, "teacher's embeddings")?;
        mean.data.iter_mut().zip(&more.data).for_each(|(m, v)| *m += v);
    }
    standardise(&mut mean);
    Ok(mean)
}

fn standardise(matrix: &mut Matrix) {
    let (mean, std) = column_statistics(matrix);
    for row in matrix.data.chunks_exact_mut(matrix.columns) {
        for ((v, m), s) in row.iter_mut().zip(&mean).zip(&std) {
            *v = if *s > 1e-6 { ((f64::from(*v) - m) / s) as f32 } else { 0.0 };
        }
    }
}

impl<'a> Distillation<'a> {
    /// A distillation with a small random projection, drawn from `seed`.
    ///
    /// # Errors
    /// If the tiles and the teacher's embeddings differ in number.
    pub fn new(
        student: &'a Encoder,
        tiles: &'a Tiles,
        bands: &'a [BandCard],
        teacher: Matrix,
        weights: Weights,
        seed: u64,
    ) -> Result<Self> {
        ensure!(teacher.rows == tiles.len(), "{} embeddings of the teacher for {} tiles", teacher.rows, tiles.len());
        let (from, to) = (student.architecture().embedding_dimension(), teacher.columns);
        let mut random = generator(seed, Stream::Projection, 0);
        // Uniform with the deviation that keeps unit variance.
        let bound = (3.0 / from as f32).sqrt();
        let uniform = |_| (rand::Rng::next_u32(&mut random) as f32 / u32::MAX as f32 * 2.0 - 1.0) * bound;
        let weight = Array { shape: vec![to, from], data: (0..from * to).map(uniform).collect() };
        let bias = Array { shape: vec![to], data: vec![0.0; to] };
        let arrays = BTreeMap::from([("projection.weight".into(), weight), ("projection.bias".into(), bias)]);
        let mut params = Params::from_arrays(&arrays, student.device())?;
        params.extend("encoder.", student.params(), |_| true);
        Ok(Self { student, tiles, bands, teacher, weights, params })
    }

    /// Replaces the projection by the linear regression from the student's present embeddings to the teacher's, so that
    /// a trained student goes on from where it is.
    pub fn fit_projection(&self) -> Result<()> {
        let student = embed_tiles(self.student, self.tiles, self.bands, 0, "student's embeddings")?;
        let (weight, bias) = regression(&student, &self.teacher)?;
        self.params.set("projection.weight", &weight)?;
        self.params.set("projection.bias", &bias)?;
        Ok(())
    }
}

impl Objective for Distillation<'_> {
    fn params(&self) -> &Params {
        &self.params
    }

    fn loss(&self, _step: u64, draws: &[(usize, Symmetry)]) -> Result<Losses> {
        let device = self.student.device();
        let wanted: Vec<f32> = draws.iter().flat_map(|(i, _)| self.teacher.row(*i)).copied().collect();
        let wanted = Tensor::from_vec(wanted, (draws.len(), self.teacher.columns), device)?;
        let embedding = self.student.embed(&input(self.tiles, self.bands, draws, device)?)?;
        let projected = embedding
            .matmul(&self.params.get("projection.weight").t()?)?
            .broadcast_add(self.params.get("projection.bias"))?;
        let feature = (projected - &wanted)?.sqr()?.mean_all()?;
        let relation = (similarities(&standardised(&embedding)?)? - similarities(&wanted)?)?.sqr()?.mean_all()?;
        let total = ((&feature * self.weights.feature)? + (&relation * self.weights.relation)?)?;
        let tasks = vec![("feature".into(), feature.to_scalar()?), ("relation".into(), relation.to_scalar()?)];
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
    let (from, to) = (x.columns, y.columns);
    let (x_mean, _) = column_statistics(x);
    let (y_mean, _) = column_statistics(y);
    let mut gram = vec![0.0; from * from];
    let mut cross = vec![0.0; from * to];
    for row in 0..x.rows {
        let centred: Vec<f64> = x.row(row).iter().zip(&x_mean).map(|(v, m)| f64::from(*v) - m).collect();
        for i in 0..from {
            for j in 0..=i {
                gram[i * from + j] += centred[i] * centred[j];
            }
            for (c, v) in cross[i * to..][..to].iter_mut().zip(y.row(row)) {
                *c += centred[i] * f64::from(*v);
            }
        }
    }
    let trace: f64 = (0..from).map(|i| gram[i * from + i]).sum();
    for i in 0..from {
        gram[i * from + i] += RIDGE * trace / from as f64;
    }
    cholesky(&mut gram, from)?;
    // Solves L z = cross, then L' w = z, all columns at once.
    for i in 0..from {
        for k in 0..i {
            let l = gram[i * from + k];
            (0..to).for_each(|t| cross[i * to + t] -= l * cross[k * to + t]);
        }
        (0..to).for_each(|t| cross[i * to + t] /= gram[i * from + i]);
    }
    for i in (0..from).rev() {
        for k in i + 1..from {
            let l = gram[k * from + i];
            (0..to).for_each(|t| cross[i * to + t] -= l * cross[k * to + t]);
        }
        (0..to).for_each(|t| cross[i * to + t] /= gram[i * from + i]);
    }
    let weight = (0..to).flat_map(|t| (0..from).map(move |i| (t, i))).map(|(t, i)| cross[i * to + t] as f32).collect();
    let bias =
        (0..to).map(|t| (y_mean[t] - (0..from).map(|i| x_mean[i] * cross[i * to + t]).sum::<f64>()) as f32).collect();
    Ok((weight, bias))
}

/// Overwrites the lower triangle of a symmetric matrix by its Cholesky factor.
fn cholesky(a: &mut [f64], n: usize) -> Result<()> {
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - dot;
            if i == j {
                ensure!(rest > 0.0, "the student's embeddings do not vary over the tiles");
                a[i * n + i] = rest.sqrt();
            } else {
                a[i * n + j] = rest / a[j * n + j];
            }
        }
    }
    Ok(())
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
}
