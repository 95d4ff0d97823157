//! Initial convolution, LayerNorm, GELU, depthwise stem and LayerNorm.

use candle_core::Result;

use super::block::taken;
use super::chain::{DeviceLayer, Weights};
use super::{Arg, Launcher, Memory, Places, View, rows, transposed};
use crate::mask::Mask;
use crate::ops::stem::Stem;

impl Stem {
    /// Taps of the stem, and width of what the initial convolution sees.
    fn sizes(&self) -> [usize; 2] {
        [self.geometry.stride * self.geometry.stride, 9 * self.bands]
    }

    /// The kernels' arguments for grid and sites.
    fn sites(&self, places: &Places) -> Result<Vec<Arg>> {
        let g = &self.geometry;
        let sites = [g.stride, g.stem_padding, g.initial_side].map(Arg::from);
        Ok([&places.of(&g.grids[0])?[..], &sites[..]].concat())
    }
}

impl DeviceLayer for Stem {
    fn values(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn mask(&self) -> Option<&Mask> {
        self.geometry.mask.as_ref()
    }

    /// Keeps what the initial convolution sees and gives with mean and factor of its normalisation, the normalised sites,
    /// and the stem's rows with theirs.
    fn forward_on(&self, l: &Launcher, places: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)> {
        let (d, g, [taps, width]) = (self.channels, &self.geometry, self.sizes());
        let n = g.grids[0].batch * g.grids[0].rows;
        let sites = n * taps;
        let [conv, conv_bias, norm1, norm1_bias, stem, stem_bias, norm2, norm2_bias] =
            weights.plain.split(self.lengths())?;
        let own_sites = self.sites(places)?;

        let columns = l.rows(sites * width)?;
        let arguments = [&[(&columns).into(), x.into()], &own_sites[..]].concat();
        let rest = [g.initial_padding, g.tile, self.bands, sites].map(Arg::from);
        l.tiled("stem_columns", sites, width, &[&arguments[..], &rest].concat())?;
        let swapped = l.floats(conv.len())?;
        l.swap_last(swapped.view(), conv, [self.bands, 9])?;
        let conv = l.narrow(swapped)?;
        let convolved = l.rows(sites * d)?;
        let sides = [sites, d, width];
        l.multiply(convolved.view(), sides, rows(columns.view(), width), transposed(conv.view(), width), false)?;

        let (unit, mean1, scale1) = (l.rows(sites * d)?, l.floats(sites)?, l.floats(sites)?);
        let arguments = [(&unit).into(), (&mean1).into(), (&scale1).into(), (&convolved).into(), conv_bias.into()];
        let rest = [norm1.into(), norm1_bias.into(), sites.into(), d.into(), self.ln_eps.into()];
        l.by_row("layer_norm", sites, &[arguments, rest].concat())?;
        let (stem_rows, stem_weight) = (l.rows(n * d)?, l.floats(taps * d)?);
        l.swap_last(stem_weight.view(), stem, [d, taps])?;
        let arguments = [(&stem_rows).into(), (&unit).into(), (&stem_weight).into(), stem_bias.into()];
        l.tiled("stem_forward", n, d, &[&arguments[..], &own_sites, &[n.into(), d.into()]].concat())?;
        let (out, mean2, scale2) = (l.rows(n * d)?, l.floats(n)?, l.floats(n)?);
        let arguments = [(&out).into(), (&mean2).into(), (&scale2).into(), (&stem_rows).into(), Arg::Null];
        let rest = [norm2.into(), norm2_bias.into(), n.into(), d.into(), self.ln_eps.into()];
        l.by_row("layer_norm", n, &[arguments, rest].concat())?;
        Ok((out, vec![columns, convolved, mean1, scale1, unit, stem_weight, stem_rows, mean2, scale2]))
    }

    fn backward_on(
        &self,
        l: &Launcher,
        places: &Places,
        _: View,
        weights: &Weights,
        g: View,
        kept: Vec<Memory>,
        grad: View,
    ) -> Result<Option<Memory>> {
        let (d, n, [taps, width]) = (self.channels, g.len() / self.channels, self.sizes());
        let sites = n * taps;
        let [_, conv_bias, norm1, _, _, _, norm2, _] = weights.plain.split(self.lengths())?;
        let [conv_g, conv_bias_g, norm1_g, norm1_bias_g, stem_g, stem_bias_g, norm2_g, norm2_bias_g] =
            grad.split(self.lengths())?;
        let [columns, convolved, mean1, scale1, unit, stem_weight, stem_rows, mean2, scale2] = taken(kept)?;
        let own_sites = self.sites(places)?;

        let arguments = [g.into(), (&stem_rows).into(), Arg::Null, (&mean2).into(), (&scale2).into()];
        let both = [&arguments[..], &[n.into(), d.into()]].concat();
        l.sums("layer_norm_sums", n, d, 2 * d, &both, &[norm2_g, norm2_bias_g])?;
        let g_rows = l.rows(n * d)?;
        let arguments = [&[(&g_rows).into()], &arguments[..], &[norm2.into(), n.into(), d.into()]].concat();
        l.by_row("layer_norm_backward", n, &arguments)?;

        let stem_weight_g = l.floats(taps * d)?;
        let arguments = [&[(&g_rows).into(), (&unit).into()], &own_sites[..], &[n.into(), d.into()]].concat();
        l.sums("stem_sums", n, d, (taps + 1) * d, &arguments, &[stem_weight_g.view(), stem_bias_g])?;
        l.swap_last(stem_g, stem_weight_g.view(), [taps, d])?;
        // From here on `unit` holds the gradient of what it held.
        let arguments = [(&unit).into(), (&g_rows).into(), (&stem_weight).into()];
        l.tiled("stem_backward", sites, d, &[&arguments[..], &own_sites, &[sites.into(), d.into()]].concat())?;

        let arguments = [(&unit).into(), (&convolved).into(), conv_bias.into(), (&mean1).into(), (&scale1).into()];
        let both = [&arguments[..], &[sites.into(), d.into()]].concat();
        l.sums("layer_norm_sums", sites, d, 2 * d, &both, &[norm1_g, norm1_bias_g])?;
        let g_convolved = l.rows(sites * d)?;
        let arguments = [&[(&g_convolved).into()], &arguments[..], &[norm1.into(), sites.into(), d.into()]].concat();
        l.by_row("layer_norm_backward", sites, &arguments)?;
        l.column_sums(conv_bias_g, g_convolved.view(), d)?;
        let swapped = l.floats(d * width)?;
        let sides = [d, width, sites];
        l.multiply(swapped.view(), sides, transposed(g_convolved.view(), d), rows(columns.view(), width), false)?;
        l.swap_last(conv_g, swapped.view(), [9, self.bands])?;
        Ok(None)
    }
}
