//! Linear layers and LayerNorm as layers of their own.

use candle_core::Result;

use super::block::taken;
use super::chain::{DeviceLayer, Weights};
use super::{Arg, Launcher, Memory, Places, View, rows, transposed};
use crate::mask::Mask;

/// See [`crate::ops::elementary::linear`]; weight, then bias.
pub struct Linear {
    /// Channels before.
    pub inputs: usize,
    /// Channels after.
    pub outputs: usize,
}

impl DeviceLayer for Linear {
    fn values(&self) -> usize {
        (self.inputs + 1) * self.outputs
    }

    fn mask(&self) -> Option<&Mask> {
        None
    }

    /// Keeps nothing.
    fn forward_on(&self, l: &Launcher, _: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)> {
        let (c, d, n) = (self.inputs, self.outputs, x.len() / self.inputs);
        let [_, bias] = weights.plain.split([c * d, d])?;
        let out = l.rows(n * d)?;
        l.tiled("add_bias", n, d, &[(&out).into(), Arg::Null, bias.into(), n.into(), d.into()])?;
        let weight = weights.narrow.part(0, c * d)?;
        l.multiply(out.view(), [n, d, c], rows(x, c), transposed(weight, c), true)?;
        Ok((out, Vec::new()))
    }

    fn backward_on(
        &self,
        l: &Launcher,
        _: &Places,
        x: View,
        weights: &Weights,
        g: View,
        _: Vec<Memory>,
        grad: View,
    ) -> Result<Option<Memory>> {
        let (c, d, n) = (self.inputs, self.outputs, x.len() / self.inputs);
        let [weight_g, bias_g] = grad.split([c * d, d])?;
        l.column_sums(bias_g, g, d)?;
        l.multiply(weight_g, [d, c, n], transposed(g, d), rows(x, c), false)?;
        let x_grad = l.rows(n * c)?;
        l.multiply(x_grad.view(), [n, c, d], rows(g, d), rows(weights.narrow.part(0, c * d)?, c), false)?;
        Ok(Some(x_grad))
    }
}

/// See [`crate::ops::elementary::layer_norm`]; weight, then bias.
pub struct LayerNorm {
    /// Channels.
    pub channels: usize,
    /// Its epsilon.
    pub eps: f32,
}

impl DeviceLayer for LayerNorm {
    fn values(&self) -> usize {
        2 * self.channels
    }

    fn mask(&self) -> Option<&Mask> {
        None
    }

    /// Keeps mean and factor.
    fn forward_on(&self, l: &Launcher, _: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)> {
        let (d, n) = (self.channels, x.len() / self.channels);
        let [weight, bias] = weights.plain.split([d, d])?;
        let (out, mean, scale) = (l.rows(n * d)?, l.floats(n)?, l.floats(n)?);
        let arguments = [(&out).into(), (&mean).into(), (&scale).into(), x.into(), Arg::Null];
        let rest = [weight.into(), bias.into(), n.into(), d.into(), self.eps.into()];
        l.by_row("layer_norm", n, &[arguments, rest].concat())?;
        Ok((out, vec![mean, scale]))
    }

    fn backward_on(
        &self,
        l: &Launcher,
        _: &Places,
        x: View,
        weights: &Weights,
        g: View,
        kept: Vec<Memory>,
        grad: View,
    ) -> Result<Option<Memory>> {
        let (d, n) = (self.channels, x.len() / self.channels);
        let [weight, _] = weights.plain.split([d, d])?;
        let [mean, scale] = taken(kept)?;
        let arguments = [g.into(), x.into(), Arg::Null, (&mean).into(), (&scale).into()];
        let both = [&arguments[..], &[n.into(), d.into()]].concat();
        l.sums("layer_norm_sums", n, d, 2 * d, &both, &grad.split([d, d])?)?;
        let x_grad = l.rows(n * d)?;
        let arguments = [&[(&x_grad).into()], &arguments[..], &[weight.into(), n.into(), d.into()]].concat();
        l.by_row("layer_norm_backward", n, &arguments)?;
        Ok(Some(x_grad))
    }
}
