//! Named trainable tensors.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use nadir_formats::Tensor as Array;
use rand::RngExt;
use rand::rngs::StdRng;

/// Trainable tensors in the order of their names. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
    /// If not empty, what [`get`](Self::get) gives out: the same tensors without gradients.
    frozen: BTreeMap<String, Tensor>,
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

    /// Named tensors as they are, for computing with them alone: there is nothing to train, export or load.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { vars: BTreeMap::new(), frozen: tensors }
    }

    /// Adds `value` as the trainable tensor `name`, in place of any before.
    pub fn insert(&mut self, name: &str, value: Tensor) -> Result<()> {
        self.vars.insert(name.to_owned(), Var::from_tensor(&value)?);
        Ok(())
    }

    /// Adds those tensors of `other` whose names `pick` accepts, shared and not copied, with `prefix` before their names.
    pub fn extend(&mut self, prefix: &str, other: &Self, pick: impl Fn(&str) -> bool) {
        let picked = other.vars.iter().filter(|(name, _)| pick(name));
        self.vars.extend(picked.map(|(name, var)| (format!("{prefix}{name}"), var.clone())));
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// If there is none: the names are fixed by the model's own construction.
    pub fn get(&self, name: &str) -> &Tensor {
        match self.frozen.get(name).or_else(|| self.vars.get(name).map(Var::as_tensor)) {
            Some(tensor) => tensor,
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

    /// The same tensors, shared, without gradients.
    pub fn frozen(&self) -> Self {
        Self { frozen: self.vars.iter().map(|(name, var)| (name.clone(), var.detach())).collect(), ..self.clone() }
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }
}

/// Standard deviation of a standard normal number that is cut at two deviations.
const CUT_DEVIATION: f32 = 0.8796;

/// How weights are drawn at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Init {
    /// Standard deviation 0.02 everywhere, cut at two deviations: ConvNeXt V2's dense models
    #[default]
    Small,
    /// As MMEarth's pretraining: depthwise kernels and the encoder's pointwise layers 1, full convolutions 0.02; cut at 2
    Mmearth,
    /// Variance one over the inputs of a weight, cut at two deviations, so that signals keep their size through narrow layers
    FanIn,
}

impl Init {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Mmearth => "mmearth",
            Self::FanIn => "fan-in",
        }
    }

    /// One weight of the tensor `name` with `shape`. `stem` is the convolution that reads the tile; `pixel_head` says whether it is the
    /// head of a task of pixels.
    fn draw(self, name: &str, shape: &[usize], stem: &str, pixel_head: bool, rng: &mut StdRng) -> f32 {
        match self {
            Self::Small => return 0.02 * truncated_normal(rng),
            Self::FanIn => {
                let inputs: usize = shape[1..].iter().product();
                return truncated_normal(rng) / CUT_DEVIATION / (inputs as f32).sqrt();
            }
            Self::Mmearth => {}
        }
        let dense = name == "mask_token" || name.ends_with(stem);
        let depthwise = shape.len() == 4 && shape[1] == 1 && !dense;
        let pointwise = name.starts_with("encoder.") && shape.len() == 2;
        // The decoder's own linear layers are dense ones, with 0.02; `proj` and the heads of pixels are convolutions.
        match depthwise || pointwise || pixel_head || name == "proj.weight" {
            true => truncated_normal(rng),
            // A cut at 2 is a hundred deviations away.
            false => 0.02 * normal(rng),
        }
    }
}

/// Initial values for tensors by name and shape: LayerNorm scales (1-D weights) 1; biases, Global Response Normalization
/// and log variances 0; all else as `init` says. The encoder's names begin with `encoder.`; `pixel_head` tells which
/// are heads of tasks of pixels.
pub(crate) fn fresh(
    shapes: &BTreeMap<String, Vec<usize>>,
    init: Init,
    pixel_head: impl Fn(&str) -> bool,
    rng: &mut StdRng,
) -> BTreeMap<String, Array> {
    let mmearth = shapes.keys().any(|name| name.ends_with("initial_conv.0.weight"));
    let stem = if mmearth { "initial_conv.0.weight" } else { "stem.0.weight" };
    let mut values = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let zero = [".bias", ".gamma", ".beta", "log_vars"].iter().any(|end| name.ends_with(end));
        match (zero, shape.len()) {
            (true, _) => vec![0.0; n],
            (false, 1) => vec![1.0; n],
            (false, _) => (0..n).map(|_| init.draw(name, shape, stem, pixel_head(name), rng)).collect(),
        }
    };
    shapes.iter().map(|(name, s)| (name.clone(), Array { shape: s.clone(), data: values(name, s) })).collect()
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut StdRng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    // 1 - u is never 0.
    ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// A standard normal number, drawn again until it is within two deviations.
fn truncated_normal(rng: &mut StdRng) -> f32 {
    loop {
        let z = normal(rng);
        if z.abs() <= 2.0 {
            return z;
        }
    }
}

/// Copies an f32 tensor to the host.
pub(crate) fn to_array(tensor: &Tensor) -> Result<Array> {
    Ok(Array { shape: tensor.dims().to_vec(), data: tensor.flatten_all()?.to_vec1()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn weights_start_as_asked() {
        let shapes: BTreeMap<String, Vec<usize>> = [
            ("encoder.initial_conv.0.weight", vec![480, 1, 3, 3]),
            ("encoder.stages.0.0.dwconv.weight", vec![80, 1, 7, 7]),
            ("encoder.stages.0.0.pwconv1.weight", vec![80, 40]),
            ("decoder.0.dwconv.weight", vec![80, 1, 7, 7]),
            ("decoder.0.pwconv1.weight", vec![80, 40]),
            ("proj.weight", vec![80, 40]),
            ("pred.aster.weight", vec![80, 40]),
            ("pred.lat.weight", vec![80, 40]),
            ("mask_token", vec![1, 4000, 1, 1]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into();
        // The deviation of a normal distribution that is cut at two of its own is 0.8796 of it.
        let wide = ["initial_conv", "decoder.0.pwconv1", "pred.lat", "mask_token"];
        for init in [Init::Small, Init::Mmearth, Init::FanIn] {
            let values = fresh(&shapes, init, |n| n.contains("aster"), &mut StdRng::seed_from_u64(1));
            for (name, array) in &values {
                let n = array.data.len() as f64;
                let std = (array.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
                let expected = match init {
                    Init::Small => 0.8796 * 0.02,
                    Init::Mmearth if wide.iter().any(|part| name.contains(part)) => 0.02,
                    Init::Mmearth => 0.8796,
                    Init::FanIn => (array.shape[1..].iter().product::<usize>() as f64).powf(-0.5),
                };
                assert!((std / expected - 1.0).abs() < 0.05, "{init:?} {name}: {std}, expected {expected}");
            }
        }
    }
}
