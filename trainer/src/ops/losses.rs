//! The two losses as operations of their own.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::fused::{values, with_values};

/// Values that one task computes.
const CHUNK: usize = 1 << 13;

/// See [`super::elementary::weighted_squares`].
pub fn weighted_squares(x: &Tensor, truth: &Tensor, weights: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(truth, weights, WeightedSquares)
}

struct WeightedSquares;

impl CustomOp3 for WeightedSquares {
    fn name(&self) -> &'static str {
        "weighted-squares"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        t: &CpuStorage,
        tl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, t, w) = (values(x, xl)?, values(t, tl)?, values(w, wl)?);
        let term = |((x, t), w): ((&f32, &f32), &f32)| f64::from(w * (x - t) * (x - t));
        let parts: Vec<f64> = x
            .par_chunks(CHUNK)
            .zip(t.par_chunks(CHUNK))
            .zip(w.par_chunks(CHUNK))
            .map(|((x, t), w)| x.iter().zip(t).zip(w).map(term).sum())
            .collect();
        Ok((CpuStorage::F32(vec![parts.iter().sum::<f64>() as f32]), ().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        t: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let factor = 2.0 * g.to_scalar::<f32>()?;
        let mut grad = vec![0f32; x.elem_count()];
        with_values([x, t, w], |[x, t, w]| {
            let chunks = x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK)).zip(w.par_chunks(CHUNK));
            grad.par_chunks_mut(CHUNK).zip(chunks).for_each(|(grad, ((x, t), w))| {
                for (((grad, x), t), w) in grad.iter_mut().zip(x).zip(t).zip(w) {
                    *grad = factor * w * (x - t);
                }
            });
        })?;
        Ok((Some(Tensor::from_vec(grad, x.shape(), x.device())?), None, None))
    }
}

/// See [`super::elementary::cross_entropy`].
pub fn cross_entropy(logits: &Tensor, labels: Vec<u32>, known: usize) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy { labels, known })
}

struct CrossEntropy {
    labels: Vec<u32>,
    known: usize,
}

impl CrossEntropy {
    /// The largest logit and the sum of the exponentials of what all are below it.
    fn shifted_sum(row: &[f32]) -> (f32, f32) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (top, row.iter().map(|v| (v - top).exp()).sum())
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, xl)?;
        let classes = x.len() / self.labels.len();
        let term = |(row, label): (&[f32], &u32)| {
            let (top, sum) = Self::shifted_sum(row);
            // An unknown label is none of the classes.
            row.get(*label as usize).map_or(0.0, |v| f64::from(sum.ln() + top - v))
        };
        let parts: Vec<f64> = x
            .par_chunks(CHUNK * classes)
            .zip(self.labels.par_chunks(CHUNK))
            .map(|(x, labels)| x.chunks_exact(classes).zip(labels).map(term).sum())
            .collect();
        Ok((CpuStorage::F32(vec![(parts.iter().sum::<f64>() / self.known as f64) as f32]), ().into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let factor = g.to_scalar::<f32>()? / self.known as f32;
        let classes = x.elem_count() / self.labels.len();
        let mut grad = vec![0f32; x.elem_count()];
        with_values([x], |[x]| {
            grad.par_chunks_mut(classes).zip(x.par_chunks(classes)).zip(&self.labels).with_min_len(CHUNK).for_each(
                |((grad, row), label)| {
                    if *label as usize >= classes {
                        return;
                    }
                    let (top, sum) = Self::shifted_sum(row);
                    for (grad, v) in grad.iter_mut().zip(row) {
                        *grad = factor * (v - top).exp() / sum;
                    }
                    grad[*label as usize] -= factor;
                },
            );
        })?;
        Ok(Some(Tensor::from_vec(grad, x.shape(), x.device())?))
    }
}
