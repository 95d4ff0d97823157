//! AdamW as MMEarth pretrains with it, and the learning rate.

use std::collections::BTreeMap;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var};
use nadir_formats::Tensor as Array;
use rayon::prelude::*;

use crate::params::{Params, to_array};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub eps: f64,
    /// Decoupled weight decay. Tensors of at most one dimension (so `log_vars` too) and names ending in `.bias` are
    /// exempt.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// One parameter and its moments.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    mean: Tensor,
    square: Tensor,
    steps: u64,
    decays: bool,
}

/// AdamW over named parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    steps: u64,
}

impl AdamW {
    /// An optimiser of `params` that has done no step.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let slot = |(name, var): (&str, &Var)| {
            Ok(Slot {
                name: name.to_owned(),
                var: var.clone(),
                mean: var.zeros_like()?,
                square: var.zeros_like()?,
                steps: 0,
                decays: var.rank() > 1 && !name.ends_with(".bias"),
            })
        };
        Ok(Self { config, slots: params.vars().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    /// One step along the gradients with learning rate `lr`. A parameter without a gradient is left as it is.
    pub fn step(&mut self, gradients: &GradStore, lr: f64) -> Result<()> {
        self.steps += 1;
        for slot in &mut self.slots {
            if let Some(gradient) = gradients.get(slot.var.as_tensor()) {
                slot.step(&gradient.detach().contiguous()?, lr, &self.config)?;
            }
        }
        Ok(())
    }

    /// Computes the gradients of `loss` and does one step along them.
    pub fn backward_step(&mut self, loss: &Tensor, lr: f64) -> Result<()> {
        self.step(&loss.backward()?, lr)
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state beside the parameters: for each `NAME.mean`, `NAME.square` and `NAME.steps`, and `steps` of all.
    ///
    /// Counts are exact up to 2^24 steps.
    pub fn export_state(&self) -> Result<BTreeMap<String, Array>> {
        let count = |steps: u64| Array { shape: vec![1], data: vec![steps as f32] };
        let mut state = BTreeMap::from([("steps".to_owned(), count(self.steps))]);
        for slot in &self.slots {
            state.insert(format!("{}.mean", slot.name), to_array(&slot.mean)?);
            state.insert(format!("{}.square", slot.name), to_array(&slot.square)?);
            state.insert(format!("{}.steps", slot.name), count(slot.steps));
        }
        Ok(state)
    }

    /// Takes up the state of [`export_state`](Self::export_state); a run then continues bit for bit.
    ///
    /// Fails, changing nothing, if an entry is missing, unexpected or of another shape.
    pub fn load_state(&mut self, state: &BTreeMap<String, Array>) -> Result<()> {
        let find = |name: &str, shape: &[usize]| match state.get(name) {
            Some(array) if array.shape == shape => Ok(array),
            Some(array) => candle_core::bail!("optimiser state {name} has shape {:?}, expected {shape:?}", array.shape),
            None => candle_core::bail!("optimiser state {name} is missing"),
        };
        if state.len() != 3 * self.slots.len() + 1 {
            candle_core::bail!("optimiser state has {} entries, expected {}", state.len(), 3 * self.slots.len() + 1);
        }
        let load = |slot: &Slot| {
            let tensor = |part: &str| {
                let array = find(&format!("{}.{part}", slot.name), slot.var.dims())?;
                Tensor::from_slice(&array.data, slot.var.shape(), slot.var.device())
            };
            let steps = find(&format!("{}.steps", slot.name), &[1])?.data[0] as u64;
            Ok((tensor("mean")?, tensor("square")?, steps))
        };
        let loaded = self.slots.iter().map(load).collect::<Result<Vec<_>>>()?;
        self.steps = find("steps", &[1])?.data[0] as u64;
        for (slot, (mean, square, steps)) in self.slots.iter_mut().zip(loaded) {
            (slot.mean, slot.square, slot.steps) = (mean, square, steps);
        }
        Ok(())
    }
}

impl Slot {
    fn step(&mut self, gradient: &Tensor, lr: f64, c: &AdamWConfig) -> Result<()> {
        self.steps += 1;
        let t = self.steps as f64;
        let keep = if self.decays { 1.0 - lr * c.weight_decay } else { 1.0 };
        let (rate, root) = (lr / (1.0 - c.beta1.powf(t)), (1.0 - c.beta2.powf(t)).sqrt());
        self.mean.inplace_op2(gradient, &Blend { keep: c.beta1, square: false })?;
        self.square.inplace_op2(gradient, &Blend { keep: c.beta2, square: true })?;
        self.var.inplace_op3(&self.mean, &self.square, &Update { keep, rate, root, eps: c.eps })
    }
}

/// The f32 values of a contiguous tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected a contiguous f32 tensor"),
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("expected a contiguous f32 tensor"),
    }
}

/// Values that one task updates.
const CHUNK: usize = 1 << 14;

/// A moment becomes `keep` times itself plus `1 - keep` times the gradient, or its square.
struct Blend {
    keep: f64,
    square: bool,
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "adamw-moment"
    }

    fn cpu_fwd(&self, m: &mut CpuStorage, ml: &Layout, g: &CpuStorage, gl: &Layout) -> Result<()> {
        let (moment, gradient) = (values_mut(m, ml)?, values(g, gl)?);
        let (keep, add, square) = (self.keep as f32, (1.0 - self.keep) as f32, self.square);
        moment.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).for_each(|(moment, gradient)| {
            for (m, g) in moment.iter_mut().zip(gradient) {
                *m = *m * keep + add * if square { g * g } else { *g };
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, m: &mut CudaStorage, ml: &Layout, g: &CudaStorage, gl: &Layout) -> Result<()> {
        crate::ops::adamw_moment((m, ml), (g, gl), self.keep, self.square)
    }
}

/// A parameter becomes `keep` times itself less `rate` times mean over (root of square / `root` + `eps`).
struct Update {
    keep: f64,
    rate: f64,
    root: f64,
    eps: f64,
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw-update"
    }

    fn cpu_fwd(
        &self,
        p: &mut CpuStorage,
        pl: &Layout,
        m: &CpuStorage,
        ml: &Layout,
        s: &CpuStorage,
        sl: &Layout,
    ) -> Result<()> {
        let (param, mean, square) = (values_mut(p, pl)?, values(m, ml)?, values(s, sl)?);
        let (keep, rate, root, eps) = (self.keep as f32, self.rate as f32, 1.0 / self.root as f32, self.eps as f32);
        param.par_chunks_mut(CHUNK).zip(mean.par_chunks(CHUNK)).zip(square.par_chunks(CHUNK)).for_each(
            |((param, mean), square)| {
                for ((p, m), s) in param.iter_mut().zip(mean).zip(square) {
                    *p = *p * keep - rate * m / (s.sqrt() * root + eps);
                }
            },
        );
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        p: &mut CudaStorage,
        pl: &Layout,
        m: &CudaStorage,
        ml: &Layout,
        s: &CudaStorage,
        sl: &Layout,
    ) -> Result<()> {
        crate::ops::adamw_update([(p, pl), (m, ml), (s, sl)], [self.keep, self.rate, 1.0 / self.root, self.eps])
    }
}

/// The learning rate of step `step` (from 0) out of `total`: linear from 0 over `warmup` steps, then half a cosine from
/// `base` to 0.
pub fn learning_rate(step: u64, total: u64, warmup: u64, base: f64) -> f64 {
    if step < warmup {
        return base * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total.saturating_sub(warmup)).max(1) as f64;
    base * 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}
