//! What the fused operations share: access to tensors, and the split of a batch.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// The f32 values of a contiguous tensor's storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("a fused operation takes contiguous f32 tensors"),
    }
}

/// Calls `f` with the f32 values of the tensors, which lie on the host.
pub fn with_values<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor?);
    }
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            Storage::Cpu(storage) => *slice = values(storage, layout)?,
            _ => candle_core::bail!("a fused operation takes tensors of the host"),
        }
    }
    Ok(f(slices))
}

/// Samples that are computed together: enough rows that matrix products are efficient, but at least four groups for
/// the processor's cores. It depends on the shape alone, so sums come out the same on every machine.
pub fn group(batch: usize, rows: usize) -> usize {
    (512 / rows.max(1)).clamp(1, batch.div_ceil(4).max(1))
}

/// Sums vectors of equal length in their order.
pub fn sum(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    total
}

/// `[a, b, c]` row-major as `[a, c, b]`.
pub fn swap_last(x: &[f32], [a, b, c]: [usize; 3]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for i in 0..a {
        for k in 0..c {
            out.extend((0..b).map(|j| x[(i * b + j) * c + k]));
        }
    }
    out
}

/// Cuts `values` into consecutive parts of the given lengths.
pub fn split<const N: usize>(mut values: &[f32], lengths: [usize; N]) -> [&[f32]; N] {
    lengths.map(|n| {
        let (part, rest) = values.split_at(n);
        values = rest;
        part
    })
}

/// Cuts `values` into consecutive parts of the given lengths.
pub fn split_mut<const N: usize>(values: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = Some(values);
    lengths.map(|n| {
        let (part, after) = rest.take().unwrap_or_default().split_at_mut(n);
        rest = Some(after);
        part
    })
}
