//! The gradients of a step: the mean over its micro-batches, and their norm.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Result, Storage, Tensor, Var};
use rayon::prelude::*;

use crate::parallel::Group;
use crate::params::Params;

/// Sums of gradients.
#[derive(Default)]
pub struct Gradients {
    sum: Option<GradStore>,
    count: usize,
}

impl Gradients {
    /// Adds those of one micro-batch. A parameter that has none in it counts as one whose gradient is 0.
    ///
    /// Gives the name of the first parameter whose gradient is not finite, if there is one; nothing is added then.
    pub fn add(&mut self, params: &Params, mut store: GradStore) -> Result<Option<String>> {
        let known = params.vars().filter_map(|(name, var)| Some((name, store.get(var)?)));
        let (names, gradients): (Vec<&str>, Vec<&Tensor>) = known.unzip();
        if let Some(at) = sums_of_squares(&gradients)?.iter().position(|sum| !sum.is_finite()) {
            return Ok(Some(names[at].to_owned()));
        }
        self.count += 1;
        match &mut self.sum {
            None => self.sum = Some(store),
            Some(sum) => {
                for (_, var) in params.vars() {
                    if let Some(gradient) = store.remove(var) {
                        let gradient = match sum.remove(var) {
                            Some(before) => (before + gradient)?,
                            None => gradient,
                        };
                        sum.insert(var, gradient);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Adds the sums of all processes of the group up; each then has the same.
    pub fn gather(&mut self, params: &Params, group: &Group) -> anyhow::Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        let sum = self.sum.get_or_insert_default();
        let own = |var: &Var| sum.get(var).is_some();
        let mut present: Vec<f64> = params.vars().map(|(_, var)| f64::from(u8::from(own(var)))).collect();
        group.sum(&mut present)?;
        let flat = |(_, var): (&str, &Var)| match sum.get(var) {
            Some(gradient) => gradient.detach().flatten_all(),
            None => Tensor::zeros(var.elem_count(), var.dtype(), var.device()),
        };
        let flat = params.vars().map(flat).collect::<Result<Vec<_>>>()?;
        let flat = group.sum_tensor(&Tensor::cat(&flat, 0)?)?;
        let mut at = 0;
        for ((_, var), present) in params.vars().zip(present) {
            // A parameter that no process has a gradient of has none.
            if present > 0.0 {
                sum.insert(var, flat.narrow(0, at, var.elem_count())?.reshape(var.shape())?);
            }
            at += var.elem_count();
        }
        Ok(())
    }

    /// The mean of what was added, and its norm over all parameters.
    pub fn mean(self, params: &Params) -> Result<(GradStore, f64)> {
        let mut mean = self.sum.unwrap_or_default();
        if self.count > 1 {
            for (_, var) in params.vars() {
                if let Some(gradient) = mean.remove(var) {
                    mean.insert(var, (gradient / self.count as f64)?);
                }
            }
        }
        let gradients: Vec<&Tensor> = params.vars().filter_map(|(_, var)| mean.get(var)).collect();
        let norm = sums_of_squares(&gradients)?.iter().sum::<f64>().sqrt();
        Ok((mean, norm))
    }
}

/// The sum of squares of each tensor: on the host in f64 and in an order that does not depend on the number of threads, on a GPU
/// with one answer for all.
fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    const CHUNK: usize = 1 << 14;
    if tensors.first().is_some_and(|tensor| !tensor.device().is_cpu()) {
        let sums = tensors.iter().map(|tensor| tensor.detach().sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
        return Ok(Tensor::stack(&sums, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect());
    }
    let sum_of = |tensor: &&Tensor| {
        let tensor = tensor.detach().contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("a gradient of {:?}, expected F32", tensor.dtype());
        };
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let parts: Vec<f64> = values[start..end].par_chunks(CHUNK).map(sum).collect();
        Ok(parts.iter().sum())
    };
    tensors.iter().map(sum_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn gradients_are_averaged_and_checked() {
        let mut params = Params::default();
        params.insert("a", Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        params.insert("b", Tensor::new(&[1f32], &Device::Cpu).unwrap()).unwrap();
        let of = |name: &str, by: f64| -> GradStore {
            let var: &Var = params.vars().find(|(n, _)| *n == name).unwrap().1;
            (var.as_tensor().sqr().unwrap().sum_all().unwrap() * by).unwrap().backward().unwrap()
        };
        let mut sum = Gradients::default();
        for (name, by) in [("a", 1.0), ("a", 2.0), ("b", 3.0)] {
            assert_eq!(sum.add(&params, of(name, by)).unwrap(), None);
        }
        let (mean, norm) = sum.mean(&params).unwrap();
        let value = |name: &str| mean.get(params.get(name)).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((value("a"), value("b")), (vec![2.0, 4.0], vec![2.0]));
        assert!((norm - 24f64.sqrt()).abs() < 1e-6);
        for by in [f64::NAN, f64::INFINITY] {
            assert_eq!(Gradients::default().add(&params, of("a", by)).unwrap().as_deref(), Some("a"));
        }
    }
}
