//! Losses, and the picking of rows.

use candle_core::Result;

use super::{Arg, Launcher, Memory, View};

/// Blocks of a sum over all values.
const BLOCKS: usize = 512;

/// The sum of `weights * (x - truth)^2`, one f32.
pub fn weighted_squares(l: &Launcher, x: View, truth: View, weights: View) -> Result<Memory> {
    let (parts, sum) = (l.floats(BLOCKS)?, l.floats(1)?);
    let arguments = [(&parts).into(), x.into(), truth.into(), weights.into(), Arg::Size(x.len())];
    l.typed("weighted_squares", [BLOCKS, 1], &arguments)?;
    l.sum_parts(sum.view(), parts.view(), BLOCKS, 1)?;
    Ok(sum)
}

/// The gradient of `x` from that of the sum.
pub fn weighted_squares_backward(l: &Launcher, x: View, truth: View, weights: View, g: View) -> Result<Memory> {
    let grad = l.rows(x.len())?;
    let arguments = [(&grad).into(), x.into(), truth.into(), weights.into(), g.into(), Arg::Size(x.len())];
    l.typed("weighted_squares_backward", [BLOCKS, 1], &arguments)?;
    Ok(grad)
}

/// The mean cross entropy of `x`, a row of logits a label, over the `known` labels that are classes; one f32.
pub fn cross_entropy(l: &Launcher, x: View, labels: View, known: usize) -> Result<Memory> {
    let (n, classes) = (labels.len(), x.len() / labels.len());
    let sum = l.floats(1)?;
    let each = n.div_ceil(BLOCKS);
    let count = n.div_ceil(each);
    let parts = l.floats(count)?;
    let arguments = [(&parts).into(), x.into(), labels.into(), n.into(), classes.into(), each.into()];
    l.typed("cross_entropy", [count, 1], &[&arguments[..], &[(1.0 / known as f32).into()]].concat())?;
    l.sum_parts(sum.view(), parts.view(), count, 1)?;
    Ok(sum)
}

/// The gradient of the logits from that of the mean.
pub fn cross_entropy_backward(l: &Launcher, x: View, labels: View, known: usize, g: View) -> Result<Memory> {
    let (n, grad) = (labels.len(), l.rows(x.len())?);
    let arguments = [(&grad).into(), x.into(), labels.into(), g.into(), n.into(), (x.len() / n).into()];
    l.by_row("cross_entropy_backward", n, &[&arguments[..], &[(1.0 / known as f32).into()]].concat())?;
    Ok(grad)
}

/// Rows of `x`, `d` channels each: row `i` is the `index[i]`-th, or `fill` (zeros without) where that is absent.
pub fn pick(l: &Launcher, x: View, index: View, fill: Option<View>, d: usize) -> Result<Memory> {
    let n = index.len();
    let out = l.rows(n * d)?;
    let fill = fill.map_or(Arg::Null, Arg::from);
    l.tiled("pick", n, d, &[(&out).into(), x.into(), index.into(), fill, n.into(), d.into()])?;
    Ok(out)
}

/// The gradient of [`pick`]'s `fill`, `[d]`.
pub fn fill_sums(l: &Launcher, g: View, index: View, d: usize) -> Result<Memory> {
    let (n, out) = (index.len(), l.floats(d)?);
    l.sums("column_sums", n, d, d, &[g.into(), index.into(), n.into(), d.into()], &[out.view()])?;
    Ok(out)
}
