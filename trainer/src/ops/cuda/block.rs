//! The ConvNeXt V2 block.

use candle_core::Result;

use super::chain::{DeviceLayer, Weights};
use super::{Arg, Launcher, Memory, Places, View, rows, transposed};
use crate::mask::Mask;
use crate::ops::Grn;
use crate::ops::block::{Block, lengths};

impl Block {
    /// Rows of a run of the depthwise kernels: they lie beside each other on a line of the map, and in one patch.
    fn run(&self) -> usize {
        let line = self.grid.mask().map_or(self.grid.side, |(_, cells)| cells);
        [7, 4, 2].into_iter().find(|run| line.is_multiple_of(*run)).unwrap_or(1)
    }
}

impl DeviceLayer for Block {
    fn values(&self) -> usize {
        lengths(self.channels).iter().sum()
    }

    fn mask(&self) -> Option<&Mask> {
        self.grid.mask().map(|(mask, _)| mask)
    }

    /// Keeps the depthwise weight `[49, d]`, the convolution's rows with mean and factor of their normalisation, the rows
    /// that enter the first product, what leaves it, norms, mean norm and factors of the response by group, and the rows
    /// that enter the second product.
    fn forward_on(&self, l: &Launcher, places: &Places, x: View, weights: &Weights) -> Result<(Memory, Vec<Memory>)> {
        let (d, batch, n) = (self.channels, self.grid.batch, x.len() / self.channels);
        let [dw, dw_bias, norm, norm_bias, _, pw1_bias, gamma, beta, _, pw2_bias] = weights.plain.split(lengths(d))?;
        let [_, _, _, _, pw1, _, _, _, pw2, _] = weights.narrow.split(lengths(d))?;
        let taps = l.floats(49 * d)?;
        l.swap_last(taps.view(), dw, [d, 49])?;
        let convolved = l.rows(n * d)?;
        self.depthwise(l, places, [convolved.view(), x, taps.view()], Some(dw_bias), None)?;
        let (narrow, mean, scale) = (l.rows(n * d)?, l.floats(n)?, l.floats(n)?);
        let arguments = [(&narrow).into(), (&mean).into(), (&scale).into(), (&convolved).into(), Arg::Null];
        let rest = [norm.into(), norm_bias.into(), n.into(), d.into(), self.ln_eps.into()];
        l.by_row("layer_norm", n, &[arguments, rest].concat())?;
        let wide = l.rows(n * 4 * d)?;
        l.multiply(wide.view(), [n, 4 * d, d], rows(narrow.view(), d), transposed(pw1, d), false)?;

        let c = 4 * d;
        let mut norms = l.floats(batch * c)?;
        let tiles = [batch, c.div_ceil(super::BLOCK[0])];
        let h = [(&wide).into(), pw1_bias.into()];
        l.typed("gelu_squares", tiles, &[(&norms).into(), h[0], h[1], self.grid.rows.into(), c.into()])?;
        if self.shared() {
            let sum = l.floats(c)?;
            l.sum_parts(sum.view(), norms.view(), batch, c)?;
            norms = sum;
        }
        let groups = self.groups();
        let (middle, factor) = (l.floats(groups)?, l.floats(groups * c)?);
        let arguments = [(&norms).into(), (&middle).into(), (&factor).into(), gamma.into(), c.into()];
        l.by_group("response", groups, &[&arguments[..], &[self.grn_eps.into()]].concat())?;
        let active = l.rows(n * c)?;
        let arguments = [(&active).into(), h[0], h[1], (&factor).into(), beta.into()];
        l.tiled("gelu_scale", n, c, &[&arguments[..], &[n.into(), c.into(), (n / groups).into()]].concat())?;

        let out = l.rows(n * d)?;
        l.tiled("add_bias", n, d, &[(&out).into(), x.into(), pw2_bias.into(), n.into(), d.into()])?;
        l.multiply(out.view(), [n, d, c], rows(active.view(), c), transposed(pw2, c), true)?;
        Ok((out, vec![taps, convolved, mean, scale, narrow, wide, norms, middle, factor, active]))
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
        let (d, batch, n) = (self.channels, self.grid.batch, x.len() / self.channels);
        let c = 4 * d;
        let [_, _, norm, _, _, pw1_bias, gamma, ..] = weights.plain.split(lengths(d))?;
        let [_, _, _, _, pw1, _, _, _, pw2, _] = weights.narrow.split(lengths(d))?;
        let [dw_g, dw_bias_g, norm_g, norm_bias_g, pw1_g, pw1_bias_g, gamma_g, beta_g, pw2_g, pw2_bias_g] =
            grad.split(lengths(d))?;
        let [taps, convolved, mean, scale, narrow, wide, norms, middle, factor, active] = taken(kept)?;

        l.column_sums(pw2_bias_g, g, d)?;
        l.multiply(pw2_g, [d, c, n], transposed(g, d), rows(active.view(), c), false)?;
        // From here on `active` holds the gradient of what it held.
        l.multiply(active.view(), [n, c, d], rows(g, d), rows(pw2, c), false)?;

        let tiles = [batch, c.div_ceil(super::BLOCK[0])];
        let (mut dots, sums) = (l.floats(batch * c)?, l.floats(batch * c)?);
        let h = [(&wide).into(), pw1_bias.into()];
        let last = [self.grid.rows.into(), c.into()];
        l.typed(
            "gelu_dots",
            tiles,
            &[&[(&dots).into(), (&sums).into(), (&active).into()], &h[..], &last[..]].concat(),
        )?;
        l.sum_parts(beta_g, sums.view(), batch, c)?;
        if self.shared() {
            let sum = l.floats(c)?;
            l.sum_parts(sum.view(), dots.view(), batch, c)?;
            dots = sum;
        }
        let groups = self.groups();
        let along = l.floats(groups * c)?;
        let arguments = [&dots, &along, &norms, &middle].map(Arg::from);
        l.by_group("response_backward", groups, &[&arguments[..], &[gamma.into(), c.into()]].concat())?;
        l.sum_parts(gamma_g, dots.view(), groups, c)?;
        let arguments = [(&active).into(), (&sums).into(), h[0], h[1], (&factor).into(), (&along).into()];
        l.typed("gelu_scale_backward", tiles, &[&arguments[..], &last[..], &[self.shared().into()]].concat())?;
        l.sum_parts(pw1_bias_g, sums.view(), batch, c)?;

        l.multiply(pw1_g, [c, d, n], transposed(active.view(), c), rows(narrow.view(), d), false)?;
        // From here on `narrow` holds the gradient of what it held.
        l.multiply(narrow.view(), [n, d, c], rows(active.view(), c), rows(pw1, d), false)?;
        let arguments = [(&narrow).into(), (&convolved).into(), Arg::Null, (&mean).into(), (&scale).into()];
        let both = [&arguments[..], &[n.into(), d.into()]].concat();
        l.sums("layer_norm_sums", n, d, 2 * d, &both, &[norm_g, norm_bias_g])?;
        let g_convolved = l.rows(n * d)?;
        let arguments = [&[(&g_convolved).into()], &arguments[..], &[norm.into(), n.into(), d.into()]].concat();
        l.by_row("layer_norm_backward", n, &arguments)?;

        let (run, taps_g) = (self.run(), l.floats(49 * d)?);
        let arguments = [(&g_convolved).into(), x.into()];
        let arguments = [&arguments[..], &places.of(&self.grid)?, &[n.into(), d.into(), run.into()]].concat();
        l.sums("depthwise_sums", n / run, d, 50 * d, &arguments, &[taps_g.view(), dw_bias_g])?;
        l.swap_last(dw_g, taps_g.view(), [49, d])?;
        let x_grad = l.rows(n * d)?;
        self.depthwise(l, places, [x_grad.view(), g_convolved.view(), taps.view()], None, Some(g))?;
        Ok(Some(x_grad))
    }
}

impl Block {
    /// Whether all samples share the norms of Global Response Normalization.
    fn shared(&self) -> bool {
        self.grn == Grn::Batch
    }

    fn groups(&self) -> usize {
        if self.shared() { 1 } else { self.grid.batch }
    }

    /// The convolution of `x` with a bias, or the way back with what is added to it.
    fn depthwise(
        &self,
        l: &Launcher,
        places: &Places,
        [out, x, taps]: [View; 3],
        bias: Option<View>,
        start: Option<View>,
    ) -> Result<()> {
        let (d, run, n) = (self.channels, self.run(), x.len() / self.channels);
        let arguments = [out.into(), x.into(), taps.into(), bias.map_or(Arg::Null, Arg::from)];
        let rest = [n.into(), d.into(), run.into(), start.is_some().into()];
        let start = [start.map_or(Arg::Null, Arg::from)];
        let arguments = [&arguments[..], &start, &places.of(&self.grid)?, &rest].concat();
        l.typed("depthwise", [(n / run).div_ceil(super::BLOCK[1]), d.div_ceil(super::BLOCK[0])], &arguments)
    }
}

/// What a forward pass kept, as that many memories.
pub(super) fn taken<const N: usize>(kept: Vec<Memory>) -> Result<[Memory; N]> {
    let n = kept.len();
    kept.try_into().map_err(|_| candle_core::Error::msg(format!("the forward pass kept {n} memories, not {N}")))
}
