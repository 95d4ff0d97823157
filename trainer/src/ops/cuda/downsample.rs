//! LayerNorm and 2x2 convolution with stride 2.

use candle_core::Result;

use super::block::taken;
use super::chain::{DeviceLayer, Weights};
use super::{Arg, Launcher, Memory, Places, View, rows, transposed};
use crate::mask::Mask;
use crate::ops::downsample::Downsample;

impl Downsample {
    /// The kernels' arguments for both grids.
    fn both_grids(&self, places: &Places) -> Result<Vec<Arg>> {
        let (fine, coarse) = (&self.geometry.grids[self.stage], &self.geometry.grids[self.stage + 1]);
        if coarse.side != fine.side / 2 {
            candle_core::bail!("a map of {} positions a side is not half of one of {}", coarse.side, fine.side);
        }
        Ok([&places.of(fine)?[..], &[coarse.rows.into()]].concat())
    }

    /// Rows before and after.
    fn all_rows(&self) -> [usize; 2] {
        [0, 1].map(|at| &self.geometry.grids[self.stage + at]).map(|grid| grid.batch * grid.rows)
    }
}

impl DeviceLayer for Downsample {
    fn values(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn mask(&self) -> Option<&Mask> {
        self.geometry.mask.as_ref()
    }

    /// Keeps mean and factor of the normalisation, the columns that enter the product, and its weight.
    fn forward_on(&self, l: &Launcher, places: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)> {
        let (c, d, [n, m]) = (self.before, self.after, self.all_rows());
        let [norm, norm_bias, weight, bias] = weights.plain.split(self.lengths())?;
        let (y, mean, scale) = (l.rows(n * c)?, l.floats(n)?, l.floats(n)?);
        let arguments = [(&y).into(), (&mean).into(), (&scale).into(), x.into(), Arg::Null];
        let rest = [norm.into(), norm_bias.into(), n.into(), c.into(), self.ln_eps.into()];
        l.by_row("layer_norm", n, &[arguments, rest].concat())?;
        let columns = l.rows(m * 4 * c)?;
        let arguments = [&[(&columns).into(), (&y).into()], &self.both_grids(places)?[..]].concat();
        l.tiled("children", 4 * m, c, &[&arguments[..], &[m.into(), c.into()]].concat())?;
        let swapped = l.floats(weight.len())?;
        l.swap_last(swapped.view(), weight, [c, 4])?;
        let weight = l.narrow(swapped)?;
        let out = l.rows(m * d)?;
        l.tiled("add_bias", m, d, &[(&out).into(), Arg::Null, bias.into(), m.into(), d.into()])?;
        let sides = [m, d, 4 * c];
        l.multiply(out.view(), sides, rows(columns.view(), 4 * c), transposed(weight.view(), 4 * c), true)?;
        Ok((out, vec![mean, scale, columns, weight]))
    }

    fn backward_on(
        &self,
        l: &Launcher,
        places: &Places,
        x: View,
        weights: &Weights,
        g: View,
        kept: Vec<Memory>,
        grad: View,
    ) -> Result<Option<Memory>> {
        let (c, d, [n, m]) = (self.before, self.after, self.all_rows());
        let [norm, ..] = weights.plain.split(self.lengths())?;
        let [norm_g, norm_bias_g, weight_g, bias_g] = grad.split(self.lengths())?;
        let [mean, scale, columns, weight] = taken(kept)?;
        l.column_sums(bias_g, g, d)?;
        let swapped = l.floats(weight_g.len())?;
        l.multiply(swapped.view(), [d, 4 * c, m], transposed(g, d), rows(columns.view(), 4 * c), false)?;
        l.swap_last(weight_g, swapped.view(), [4, c])?;
        // From here on `columns` holds the gradient of what it held.
        l.multiply(columns.view(), [m, 4 * c, d], rows(g, d), rows(weight.view(), 4 * c), false)?;
        let y_grad = l.rows(n * c)?;
        let arguments = [&[(&y_grad).into(), (&columns).into()], &self.both_grids(places)?[..]].concat();
        l.tiled("children_backward", n, c, &[&arguments[..], &[n.into(), c.into()]].concat())?;
        let arguments = [(&y_grad).into(), x.into(), Arg::Null, (&mean).into(), (&scale).into()];
        let both = [&arguments[..], &[n.into(), c.into()]].concat();
        l.sums("layer_norm_sums", n, c, 2 * c, &both, &[norm_g, norm_bias_g])?;
        let x_grad = l.rows(n * c)?;
        let arguments = [&[(&x_grad).into()], &arguments[..], &[norm.into(), n.into(), c.into()]].concat();
        l.by_row("layer_norm_backward", n, &arguments)?;
        Ok(Some(x_grad))
    }
}
