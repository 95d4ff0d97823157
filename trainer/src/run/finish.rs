//! From trained weights to a finished encoder: embeddings, and the affine of the final LayerNorm.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use nadir_formats::{BandCard, Matrix, Tiles};
use rayon::prelude::*;

use super::Progress;
use super::training::leave_if_asked;
use crate::data::{AS_IS, Symmetry, input};
use crate::encoder::Encoder;

/// Program and version, as provenance names them.
pub fn made_by() -> String {
    format!("nadir trainer {}", env!("CARGO_PKG_VERSION"))
}

/// Tiles between two reports of progress, and the batch on a GPU.
const CHUNK: usize = 64;

/// The embeddings of `tiles` under `symmetry`, `[tiles, d]`.
///
/// On the CPU each tile passes through the encoder alone, several at once on as many cores: in a batch, how matrix
/// products are cut would change the last digits of an embedding with the number of tiles beside it.
pub fn embed_tiles(
    encoder: &Encoder,
    tiles: &Tiles,
    bands: &[BandCard],
    symmetry: Symmetry,
    what: &str,
) -> Result<Matrix> {
    let all: Vec<usize> = (0..tiles.len()).collect();
    let read = |chosen: &[usize]| {
        let draws: Vec<_> = chosen.iter().map(|i| (*i, symmetry)).collect();
        input(tiles, bands, &draws, encoder.device())
    };
    embed_each(encoder, &all, read, what)
}

/// The embeddings of the tiles `chosen`, `[tiles, d]`; `read` makes the encoder's input of some of them.
fn embed_each(
    encoder: &Encoder,
    chosen: &[usize],
    read: impl Fn(&[usize]) -> Result<Tensor> + Sync,
    what: &str,
) -> Result<Matrix> {
    // Without trainable weights no graph is kept.
    let encoder = encoder.frozen();
    let columns = encoder.architecture().embedding_dimension();
    let mut data = Vec::with_capacity(chosen.len() * columns);
    let mut progress = Progress::new(what, "tiles", 0, chosen.len() as u64);
    let embed = |chosen: &[usize]| -> Result<Vec<f32>> { Ok(encoder.embed(&read(chosen)?)?.flatten_all()?.to_vec1()?) };
    for chosen in chosen.chunks(CHUNK) {
        leave_if_asked(what);
        if encoder.device().is_cpu() {
            let each = chosen.par_chunks(1).map(embed).collect::<Result<Vec<_>>>()?;
            data.extend(each.into_iter().flatten());
        } else {
            data.extend(embed(chosen)?);
        }
        progress.at((data.len() / columns) as u64, "");
    }
    ensure!(data.iter().all(|v| v.is_finite()), "the encoder gives embeddings that are not finite");
    Ok(Matrix { rows: chosen.len(), columns, data })
}

/// Sets weight and bias of the encoder's final LayerNorm `norm` so that over `tiles` each embedding dimension has zero
/// mean and unit variance: a diagonal standardisation, which cosine similarity, signs and linear probes gain from.
///
/// A dimension that does not vary keeps weight 1.
pub fn fit_norm(encoder: &Encoder, tiles: &Tiles, bands: &[BandCard]) -> Result<()> {
    let all: Vec<usize> = (0..tiles.len()).collect();
    fit_norm_to(encoder, &all, |chosen| {
        let draws: Vec<_> = chosen.iter().map(|i| (*i, AS_IS)).collect();
        input(tiles, bands, &draws, encoder.device())
    })
}

/// [`fit_norm`] over the tiles `chosen`; `read` makes the encoder's input of some of them.
pub fn fit_norm_to(
    encoder: &Encoder,
    chosen: &[usize],
    read: impl Fn(&[usize]) -> Result<Tensor> + Sync,
) -> Result<()> {
    let d = encoder.architecture().embedding_dimension();
    encoder.params().set("norm.weight", &vec![1.0; d])?;
    encoder.params().set("norm.bias", &vec![0.0; d])?;
    let embeddings = embed_each(encoder, chosen, read, "fitting the final norm")?;
    let (mean, std) = column_statistics(&embeddings);
    let weight: Vec<f32> = std.iter().map(|s| if *s > 1e-6 { (1.0 / s) as f32 } else { 1.0 }).collect();
    let bias: Vec<f32> = mean.iter().zip(&weight).map(|(m, w)| (-m * f64::from(*w)) as f32).collect();
    encoder.params().set("norm.weight", &weight)?;
    encoder.params().set("norm.bias", &bias)?;
    Ok(())
}

/// Mean and standard deviation of every column, in f64.
pub(crate) fn column_statistics(matrix: &Matrix) -> (Vec<f64>, Vec<f64>) {
    let mut mean = vec![0.0; matrix.columns];
    for row in matrix.data.chunks_exact(matrix.columns) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
    }
    mean.iter_mut().for_each(|m| *m /= matrix.rows as f64);
    let mut variance = vec![0.0; matrix.columns];
    for row in matrix.data.chunks_exact(matrix.columns) {
        for ((s, m), v) in variance.iter_mut().zip(&mean).zip(row) {
            *s += (f64::from(*v) - m).powi(2);
        }
    }
    let std = variance.into_iter().map(|s| (s / matrix.rows as f64).sqrt()).collect();
    (mean, std)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_measured() {
        let matrix = Matrix { rows: 2, columns: 2, data: vec![1.0, 5.0, 3.0, 5.0] };
        assert_eq!(column_statistics(&matrix), (vec![2.0, 5.0], vec![1.0, 0.0]));
    }
}
