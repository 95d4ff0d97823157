//! Linear layers and LayerNorm as operations of their own.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::fused::{sum, values, with_values};
use super::gemm::{multiply, rows, transposed};
use super::kernels::{add_rows, layer_norm_rows, normalise_rows, normalise_rows_backward};

/// Rows that one task computes.
const ROWS: usize = 64;

/// See [`super::elementary::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    x.contiguous()?.apply_op3(weight, bias, Linear { inputs, outputs })
}

struct Linear {
    inputs: usize,
    outputs: usize,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b, k, n) = (values(x, xl)?, values(w, wl)?, values(b, bl)?, self.inputs, self.outputs);
        let m = x.len() / k;
        let mut out = vec![0f32; m * n];
        out.par_chunks_mut(n * ROWS).for_each(|rows| rows.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(b)));
        multiply(&mut out, [m, n, k], rows(x, k), transposed(w, k), true, true);
        Ok((CpuStorage::F32(out), (m, n).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (k, n) = (self.inputs, self.outputs);
        let mut x_grad = vec![0f32; x.elem_count()];
        let mut w_grad = vec![0f32; w.elem_count()];
        let mut b_grad = vec![0f32; n];
        with_values([x, w, g], |[x, w, g]| {
            let m = x.len() / k;
            multiply(&mut x_grad, [m, k, n], rows(g, n), rows(w, k), false, true);
            multiply(&mut w_grad, [n, k, m], transposed(g, n), rows(x, k), false, true);
            add_rows(&mut b_grad, g);
        })?;
        Ok((
            Some(Tensor::from_vec(x_grad, x.shape(), x.device())?),
            Some(Tensor::from_vec(w_grad, w.shape(), w.device())?),
            Some(Tensor::from_vec(b_grad, b.shape(), b.device())?),
        ))
    }
}

/// See [`super::elementary::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps })
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut out, w, b) = (values(x, xl)?.to_vec(), values(w, wl)?, values(b, bl)?);
        out.par_chunks_mut(w.len() * ROWS).for_each(|rows| layer_norm_rows(rows, w, b, self.eps));
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let n = w.elem_count();
        let (x_grad, wb_grad) = with_values([x, w, g], |[x, w, g]| {
            let mut x_grad = g.to_vec();
            let parts = x_grad
                .par_chunks_mut(n * ROWS)
                .zip(x.par_chunks(n * ROWS))
                .map(|(g, x)| {
                    let (mut unit, mut scale, mut wb) = (x.to_vec(), vec![0f32; x.len() / n], vec![0f32; 2 * n]);
                    let (w_grad, b_grad) = wb.split_at_mut(n);
                    normalise_rows(&mut unit, &mut scale, self.eps);
                    normalise_rows_backward(g, &unit, &scale, w, w_grad, b_grad);
                    wb
                })
                .collect();
            (x_grad, sum(parts))
        })?;
        Ok((
            Some(Tensor::from_vec(x_grad, x.shape(), x.device())?),
            Some(Tensor::from_slice(&wb_grad[..n], w.shape(), w.device())?),
            Some(Tensor::from_slice(&wb_grad[n..], b.shape(), b.device())?),
        ))
    }
}
