//! Named trainable tensors.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use nadir_formats::Tensor as Array;

/// Trainable tensors in the order of their names. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// Makes trainable f32 tensors from `arrays` on `device`.
    pub fn from_arrays(arrays: &BTreeMap<String, Array>, device: &Device) -> Result<Self> {
        let mut params = Self::default();
        for (name, array) in arrays {
            params.insert(name, Tensor::from_slice(&array.data, array.shape.as_slice(), device)?)?;
        }
        Ok(params)
    }

    /// Adds `value` as the trainable tensor `name`, in place of any before.
    pub fn insert(&mut self, name: &str, value: Tensor) -> Result<()> {
        self.vars.insert(name.to_owned(), Var::from_tensor(&value)?);
        Ok(())
    }

    /// Adds the tensors of `other`, shared and not copied, with `prefix` before their names.
    pub fn extend(&mut self, prefix: &str, other: &Self) {
        self.vars.extend(other.vars.iter().map(|(name, var)| (format!("{prefix}{name}"), var.clone())));
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// If there is none: the names are fixed by the model's own construction.
    pub fn get(&self, name: &str) -> &Tensor {
        match self.vars.get(name) {
            Some(var) => var.as_tensor(),
            None => panic!("no parameter is named {name}"),
        }
    }

    /// All tensors with their names, in order.
    pub fn vars(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Copies of all tensors, on the host.
    pub fn export(&self) -> Result<BTreeMap<String, Array>> {
        self.vars.iter().map(|(name, var)| Ok((name.clone(), to_array(var)?))).collect()
    }

    /// Overwrites all tensors. Fails, changing nothing, unless names and shapes are exactly these parameters'.
    pub fn load(&self, arrays: &BTreeMap<String, Array>) -> Result<()> {
        for (name, var) in &self.vars {
            match arrays.get(name) {
                None => candle_core::bail!("parameter {name} is missing"),
                Some(a) if a.shape != var.dims() || a.data.len() != var.elem_count() => {
                    candle_core::bail!("parameter {name} has shape {:?}, expected {:?}", a.shape, var.dims())
                }
                Some(_) => {}
            }
        }
        if let Some(name) = arrays.keys().find(|name| !self.vars.contains_key(*name)) {
            candle_core::bail!("parameter {name} is unexpected");
        }
        for (name, var) in &self.vars {
            self.set(name, &arrays[name].data)?;
            debug_assert_eq!(var.dims(), arrays[name].shape);
        }
        Ok(())
    }

    /// Overwrites the tensor `name` with `values`, row-major. Fails if it is absent or has another number of elements.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<()> {
        match self.vars.get(name) {
            Some(var) if var.elem_count() == values.len() => {
                var.set(&Tensor::from_slice(values, var.shape(), var.device())?)
            }
            Some(var) => candle_core::bail!("parameter {name} has {} elements, not {}", var.elem_count(), values.len()),
            None => candle_core::bail!("no parameter is named {name}"),
        }
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }
}

/// Copies an f32 tensor to the host.
pub(crate) fn to_array(tensor: &Tensor) -> Result<Array> {
    Ok(Array { shape: tensor.dims().to_vec(), data: tensor.flatten_all()?.to_vec1()? })
}
