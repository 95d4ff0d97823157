//! AdamW as MMEarth pretrains with it, and the learning rate.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use nadir_formats::Tensor as Array;

use crate::params::Params;

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub eps: f64,
    /// Decoupled weight decay. Tensors of at most one dimension, names ending in `.bias` and `log_vars` are exempt.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// AdamW over named parameters.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
}

impl AdamW {
    /// An optimiser of `params` that has done no step.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let _ = params;
        Ok(Self { config, steps: 0 })
    }

    /// One step along the gradients with learning rate `lr`. A parameter without a gradient is left as it is.
    pub fn step(&mut self, gradients: &GradStore, lr: f64) -> Result<()> {
        let _ = (gradients, lr, self.config);
        todo!()
    }

    /// Computes the gradients of `loss` and does one step along them.
    pub fn backward_step(&mut self, loss: &Tensor, lr: f64) -> Result<()> {
        self.step(&loss.backward()?, lr)
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state beside the parameters: `NAME.mean`, `NAME.square` of each and `steps`.
    pub fn export_state(&self) -> Result<BTreeMap<String, Array>> {
        todo!()
    }

    /// Takes up the state of [`export_state`](Self::export_state); a run then continues bit for bit.
    pub fn load_state(&mut self, state: &BTreeMap<String, Array>) -> Result<()> {
        let _ = state;
        todo!()
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
