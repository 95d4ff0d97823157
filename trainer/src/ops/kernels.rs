//! Loops over rows of f32, written so that the compiler turns them into vector instructions.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Defines functions whose bodies are compiled for the widest vectors of this machine; `[simd: S]` names these.
///
/// What the bodies call must be `#[inline(always)]`: a call that remains is compiled without wide vectors, and every
/// fused multiply-add in it is slow.
macro_rules! vectorised {
    ($($(#[$meta:meta])* pub fn $name:ident[$simd:ident: $S:ident]($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($argument: $type),*) {
            struct Call<T>(T);
            impl WithSimd for Call<($($type,)*)> {
                type Output = ();
                #[inline(always)]
                fn with_simd<$S: Simd>(self, $simd: $S) {
                    let ($($argument,)*) = self.0;
                    $body
                }
            }
            Arch::new().dispatch(Call(($($argument,)*)));
        }
    )*};
}

/// Sums over vectors and what is left of a row: `f` makes the terms from a vector, `g` from a number.
#[inline(always)]
fn reduce<S: Simd>(
    simd: S,
    a: &[f32],
    b: &[f32],
    f: impl Fn(S::f32s, S::f32s, S::f32s) -> S::f32s,
    g: impl Fn(f32, f32) -> f32,
) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sum = simd.splat_f32s(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = f(*a, *b, sum);
    }
    let mut rest = [0f32; 4];
    let ((a, a_last), (b, b_last)) = (a_rest.as_chunks::<4>(), b_rest.as_chunks::<4>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..4 {
            rest[i] += g(a[i], b[i]);
        }
    }
    let last: f32 = a_last.iter().zip(b_last).map(|(a, b)| g(*a, *b)).sum();
    simd.reduce_sum_f32s(sum) + (rest[0] + rest[2]) + (rest[1] + rest[3]) + last
}

/// The sum of a row.
#[inline(always)]
fn sum<S: Simd>(simd: S, a: &[f32]) -> f32 {
    reduce(simd, a, a, |a, _, sum| simd.add_f32s(sum, a), |a, _| a)
}

/// The sum of the products of two rows.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    reduce(simd, a, b, |a, b, sum| simd.mul_add_f32s(a, b, sum), |a, b| a * b)
}

/// e to the power of `x`, for `x` of at most 0; relative error below 1e-6, 0 far below.
#[inline(always)]
fn exp_negative(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = x.max(-87.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n times the first is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.0 / 720.0;
    let p = r.mul_add(p, 1.0 / 120.0);
    let p = r.mul_add(p, 1.0 / 24.0);
    let p = r.mul_add(p, 1.0 / 6.0);
    let p = r.mul_add(p, 0.5);
    let p = r.mul_add(p, 1.0);
    let p = r.mul_add(p, 1.0);
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// The standard normal distribution's share below `x`, and its density at `x`; absolute errors below 3e-7.
///
/// Abramowitz and Stegun, formula 7.1.26, for the tail, so that nothing cancels.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let p = t.mul_add(1.061_405_4, -1.453_152);
    let p = t.mul_add(p, 1.421_413_7);
    let p = t.mul_add(p, -0.284_496_74);
    let p = t.mul_add(p, 0.254_829_6);
    let e = exp_negative(-z * z);
    let tail = 0.5 * t * p * e;
    (if x >= 0.0 { 1.0 - tail } else { tail }, 0.398_942_3 * e)
}

/// GELU with the error function.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// GELU and its derivative.
#[inline(always)]
fn gelu_and_slope(x: f32) -> (f32, f32) {
    let (share, density) = normal(x);
    (x * share, x.mul_add(density, share))
}

/// Brings a row to zero mean and unit variance; gives the factor that it applied.
#[inline(always)]
fn normalise<S: Simd>(simd: S, row: &mut [f32], eps: f32) -> f32 {
    let n = row.len() as f32;
    let mean = sum(simd, row) / n;
    row.iter_mut().for_each(|v| *v -= mean);
    let scale = 1.0 / (dot(simd, row, row) / n + eps).sqrt();
    row.iter_mut().for_each(|v| *v *= scale);
    scale
}

/// `out = x * weight + bias`, element by element.
#[inline(always)]
fn affine(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = x.mul_add(*w, *b);
    }
}

/// LayerNorm backwards: `g` comes as the gradient of the affine output and leaves as that of the input. `unit` is the
/// normalised row, `scale` what [`normalise`] gave. Adds to the gradients of weight and bias.
#[inline(always)]
fn normalise_backward<S: Simd>(
    simd: S,
    g: &mut [f32],
    unit: &[f32],
    scale: f32,
    weight: &[f32],
    weight_grad: &mut [f32],
    bias_grad: &mut [f32],
) {
    for ((((g, u), w), wg), bg) in g.iter_mut().zip(unit).zip(weight).zip(weight_grad).zip(bias_grad) {
        *wg += *g * u;
        *bg += *g;
        *g *= w;
    }
    let n = g.len() as f32;
    let mean = sum(simd, g) / n;
    let slope = dot(simd, g, unit) / n;
    for (g, u) in g.iter_mut().zip(unit) {
        *g = scale * (*g - mean - u * slope);
    }
}

/// `sum += row`.
#[inline(always)]
fn add(sum: &mut [f32], row: &[f32]) {
    for (s, v) in sum.iter_mut().zip(row) {
        *s += v;
    }
}

/// Channels are rounded up to a multiple of this in what the depthwise loops read, so that vectors are always full.
const FULL: usize = 16;

/// A row's `channels`, rounded up.
pub fn stride(channels: usize) -> usize {
    channels.next_multiple_of(FULL)
}

/// Rows of `channels` values as rows of [`stride`] values, the rest 0.
pub fn widen(rows: &[f32], channels: usize) -> Vec<f32> {
    let mut out = vec![0f32; rows.len() / channels * stride(channels)];
    for (out, row) in out.chunks_exact_mut(stride(channels)).zip(rows.chunks_exact(channels)) {
        out[..channels].copy_from_slice(row);
    }
    out
}

/// The map of one sample with a border of three zeros, `[side + 6, side + 6, stride]`.
pub struct Padded {
    side: usize,
    channels: usize,
    /// Length of a position and of a line with its border.
    step: usize,
    line: usize,
    values: Vec<f32>,
    /// The positions that may hold anything but zeros.
    filled: Vec<u32>,
}

/// The 7x7 window of a position.
struct Window {
    /// Where it begins.
    corner: usize,
    /// Its rows and columns inside of the map; the others are zeros.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Padded {
    /// A map of zeros.
    pub fn new(side: usize, channels: usize) -> Self {
        let step = stride(channels);
        let line = (side + 6) * step;
        Self { side, channels, step, line, values: vec![0.0; (side + 6) * line], filled: Vec::new() }
    }

    /// Puts `rows` at `positions`, zeros elsewhere.
    pub fn fill(&mut self, rows: &[f32], positions: &[u32]) {
        if self.filled != positions {
            for position in std::mem::replace(&mut self.filled, positions.to_vec()) {
                let at = self.centre(position);
                self.values[at..at + self.channels].fill(0.0);
            }
        }
        for (row, position) in rows.chunks_exact(self.channels).zip(positions) {
            let at = self.centre(*position);
            self.values[at..at + self.channels].copy_from_slice(row);
        }
    }

    fn centre(&self, position: u32) -> usize {
        self.window(position).corner + 3 * (self.line + self.step)
    }

    #[inline(always)]
    fn window(&self, position: u32) -> Window {
        let (y, x) = (position as usize / self.side, position as usize % self.side);
        let inside = |at: usize| 3usize.saturating_sub(at)..7.min(self.side + 3 - at);
        Window { corner: y * self.line + x * self.step, rows: inside(y), columns: inside(x) }
    }
}

/// The sums over the window of `weight * map` for the `N` vectors from `at` on of one position.
///
/// `map` is cut to begin at the window's corner; `step` and `line` count vectors.
#[inline(always)]
fn window_sums<S: Simd, const N: usize>(
    simd: S,
    map: &[S::f32s],
    weight: &[S::f32s],
    window: &Window,
    [at, step, line]: [usize; 3],
) -> [S::f32s; N] {
    let mut sums = [simd.splat_f32s(0.0); N];
    for dy in window.rows.clone() {
        let (first, taps) = (window.columns.start * step, window.columns.len() * step);
        let x = &map[dy * line + first..][..taps];
        let w = &weight[dy * 7 * step + first..][..taps];
        for (x, w) in x.chunks_exact(step).zip(w.chunks_exact(step)) {
            let (x, w) = (&x[at..at + N], &w[at..at + N]);
            for i in 0..N {
                sums[i] = simd.mul_add_f32s(x[i], w[i], sums[i]);
            }
        }
    }
    sums
}

vectorised! {
    /// 7x7 depthwise convolution at `positions`: `out = start + sum over taps of weight[tap] * map`.
    ///
    /// `weight` is `[49, stride]`; with its taps backwards this is the gradient of the input. `start` is a row for all
    /// or as long as `out`.
    pub fn depthwise[simd: S](out: &mut [f32], start: &[f32], map: &Padded, positions: &[u32], weight: &[f32]) {
        let c = map.channels;
        let (step, line) = (map.step / S::F32_LANES, map.line / S::F32_LANES);
        let (values, weight) = (S::as_simd_f32s(&map.values).0, S::as_simd_f32s(weight).0);
        let mut wide = vec![0f32; map.step];
        for (r, (out, position)) in out.chunks_exact_mut(c).zip(positions).enumerate() {
            let window = map.window(*position);
            let values = &values[window.corner / S::F32_LANES..];
            let sums = S::as_mut_simd_f32s(&mut wide).0;
            let mut at = 0;
            while at + 4 <= step {
                sums[at..at + 4].copy_from_slice(&window_sums::<S, 4>(simd, values, weight, &window, [at, step, line]));
                at += 4;
            }
            while at + 2 <= step {
                sums[at..at + 2].copy_from_slice(&window_sums::<S, 2>(simd, values, weight, &window, [at, step, line]));
                at += 2;
            }
            if at < step {
                sums[at..].copy_from_slice(&window_sums::<S, 1>(simd, values, weight, &window, [at, step, line]));
            }
            let start = if start.len() == c { start } else { &start[r * c..][..c] };
            for ((out, start), sum) in out.iter_mut().zip(start).zip(&wide) {
                *out = start + sum;
            }
        }
    }

    /// The gradient of the depthwise weight: adds `sum over rows of g * map` to `weight_grad`, `[49, stride]`. `g` is a
    /// map too.
    pub fn depthwise_weight[simd: S](weight_grad: &mut [f32], g: &Padded, map: &Padded, positions: &[u32]) {
        let (step, line) = (map.step / S::F32_LANES, map.line / S::F32_LANES);
        let (values, g) = (S::as_simd_f32s(&map.values).0, S::as_simd_f32s(&g.values).0);
        let weight_grad = S::as_mut_simd_f32s(weight_grad).0;
        for dy in 0..7 {
            for at in 0..step {
                let mut sums = [simd.splat_f32s(0.0); 7];
                for position in positions {
                    let window = map.window(*position);
                    if !window.rows.contains(&dy) {
                        continue;
                    }
                    let corner = window.corner / S::F32_LANES + at;
                    let g = g[corner + 3 * (line + step)];
                    let x = &values[corner + dy * line..][..6 * step + 1];
                    for (dx, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.mul_add_f32s(x[dx * step], g, *sum);
                    }
                }
                for (dx, sum) in sums.iter().enumerate() {
                    let grad = &mut weight_grad[(dy * 7 + dx) * step + at];
                    *grad = simd.add_f32s(*grad, *sum);
                }
            }
        }
    }

    /// `sum += row` for every row of `rows`.
    pub fn add_rows[_simd: S](sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            add(sum, row);
        }
    }

    /// `out = x + bias` for every row.
    pub fn add_to_rows[_simd: S](out: &mut [f32], x: &[f32], bias: &[f32]) {
        for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
            for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
                *out = x + bias;
            }
        }
    }

    /// Normalises every row in place; `scale` gets the factors.
    pub fn normalise_rows[simd: S](rows: &mut [f32], scale: &mut [f32], eps: f32) {
        let c = rows.len() / scale.len();
        for (row, scale) in rows.chunks_exact_mut(c).zip(scale) {
            *scale = normalise(simd, row, eps);
        }
    }

    /// `out = x * weight + bias` for every row.
    pub fn affine_rows[_simd: S](out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
        let c = bias.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            affine(out, x, weight, bias);
        }
    }

    /// `x = x * weight + bias` for every row.
    pub fn scale_rows[_simd: S](x: &mut [f32], weight: &[f32], bias: &[f32]) {
        for row in x.chunks_exact_mut(bias.len()) {
            for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *v = v.mul_add(*w, *b);
            }
        }
    }

    /// The rows `pick` of `x`, times `weight` plus `bias`.
    pub fn affine_picked[_simd: S](out: &mut [f32], x: &[f32], pick: &[u32], weight: &[f32], bias: &[f32]) {
        let c = bias.len();
        for (out, pick) in out.chunks_exact_mut(c).zip(pick) {
            affine(out, &x[*pick as usize * c..][..c], weight, bias);
        }
    }

    /// LayerNorm of every row in place.
    pub fn layer_norm_rows[simd: S](rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        for row in rows.chunks_exact_mut(bias.len()) {
            normalise(simd, row, eps);
            for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *v = v.mul_add(*w, *b);
            }
        }
    }

    /// LayerNorm backwards for every row: `g` comes as the gradient of the affine output and leaves as that of the input.
    /// `unit` are the normalised rows, `scale` their factors. Adds to the gradients of weight and bias.
    pub fn normalise_rows_backward[simd: S](
        g: &mut [f32],
        unit: &[f32],
        scale: &[f32],
        weight: &[f32],
        weight_grad: &mut [f32],
        bias_grad: &mut [f32],
    ) {
        let c = weight.len();
        for ((g, unit), scale) in g.chunks_exact_mut(c).zip(unit.chunks_exact(c)).zip(scale) {
            normalise_backward(simd, g, unit, *scale, weight, weight_grad, bias_grad);
        }
    }

    /// Adds `bias` to `x`, puts GELU of that into `out` and adds GELU's squares to `squares`, channel by channel.
    pub fn bias_gelu_rows[_simd: S](x: &mut [f32], out: &mut [f32], bias: &[f32], squares: &mut [f32]) {
        let c = bias.len();
        for (x, out) in x.chunks_exact_mut(c).zip(out.chunks_exact_mut(c)) {
            for (((x, out), bias), square) in x.iter_mut().zip(out).zip(bias).zip(squares.iter_mut()) {
                *x += bias;
                *out = gelu(*x);
                *square = out.mul_add(*out, *square);
            }
        }
    }

    /// GELU and its slope of values.
    pub fn gelu_rows[_simd: S](out: &mut [f32], slope: &mut [f32], x: &[f32]) {
        for ((out, slope), x) in out.iter_mut().zip(slope).zip(x) {
            (*out, *slope) = gelu_and_slope(*x);
        }
    }

    /// Every row's sums over the rows of `g * x` and of `g`, channel by channel, added to `dots` and `sums`.
    pub fn dot_rows[_simd: S](g: &[f32], x: &[f32], dots: &mut [f32], sums: &mut [f32]) {
        let c = dots.len();
        for (g, x) in g.chunks_exact(c).zip(x.chunks_exact(c)) {
            for (((g, x), dot), sum) in g.iter().zip(x).zip(dots.iter_mut()).zip(sums.iter_mut()) {
                *dot = g.mul_add(*x, *dot);
                *sum += g;
            }
        }
    }

    /// `g = (g * factors + x * along) * slope` for every row; adds the result to `sums`.
    pub fn response_rows_backward[_simd: S](
        g: &mut [f32],
        x: &[f32],
        slope: &[f32],
        factors: &[f32],
        along: &[f32],
        sums: &mut [f32],
    ) {
        let c = factors.len();
        for ((g, x), slope) in g.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(slope.chunks_exact(c)) {
            let constants = factors.iter().zip(along).zip(sums.iter_mut());
            for (((g, x), slope), ((factor, along), sum)) in g.iter_mut().zip(x).zip(slope).zip(constants) {
                *g = g.mul_add(*factor, x * along) * slope;
                *sum += *g;
            }
        }
    }

    /// The stem forwards: `active` comes as normalised sites and leaves as GELU of their affine map, 0 where no site
    /// `exists`; `slope` gets GELU's slope; `out` the weighted sum over each row's sites plus `bias`.
    pub fn stem_rows[_simd: S](
        active: &mut [f32],
        slope: &mut [f32],
        out: &mut [f32],
        exists: &[bool],
        affine: [&[f32]; 2],
        weight: &[f32],
        bias: &[f32],
    ) {
        let (c, taps) = (bias.len(), weight.len() / bias.len());
        for (row, out) in out.chunks_exact_mut(c).enumerate() {
            out.copy_from_slice(bias);
            for (tap, weight) in weight.chunks_exact(c).enumerate() {
                let site = row * taps + tap;
                let active = &mut active[site * c..][..c];
                if !exists[site] {
                    active.fill(0.0);
                    continue;
                }
                let slope = &mut slope[site * c..][..c];
                for ((a, slope), (w, b)) in active.iter_mut().zip(slope).zip(affine[0].iter().zip(affine[1])) {
                    (*a, *slope) = gelu_and_slope(a.mul_add(*w, *b));
                }
                for ((out, active), weight) in out.iter_mut().zip(active).zip(weight) {
                    *out = active.mul_add(*weight, *out);
                }
            }
        }
    }

    /// The stem backwards, from the gradient `g` of [`stem_rows`]'s output: `site_g` gets the gradient of the affine map
    /// of each site. Adds to the gradient of the weight.
    pub fn stem_rows_backward[_simd: S](
        site_g: &mut [f32],
        g: &[f32],
        active: &[f32],
        slope: &[f32],
        exists: &[bool],
        weight: &[f32],
        weight_grad: &mut [f32],
        channels: usize,
    ) {
        let (c, taps) = (channels, weight.len() / channels);
        for (row, g) in g.chunks_exact(c).enumerate() {
            let weights = weight.chunks_exact(c).zip(weight_grad.chunks_exact_mut(c));
            for (tap, (weight, weight_grad)) in weights.enumerate() {
                let site = row * taps + tap;
                if !exists[site] {
                    continue;
                }
                let span = site * c..(site + 1) * c;
                let (site_g, active, slope) = (&mut site_g[span.clone()], &active[span.clone()], &slope[span]);
                for (((sg, g), w), (s, (a, wg))) in
                    site_g.iter_mut().zip(g).zip(weight).zip(slope.iter().zip(active.iter().zip(weight_grad)))
                {
                    *wg = g.mul_add(*a, *wg);
                    *sg = g * w * s;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_and_its_slope_are_accurate() {
        for i in -12_000..=12_000 {
            let x = i as f32 * 1e-3;
            let (value, slope) = gelu_and_slope(x);
            let x = f64::from(x);
            let share = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
            let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(value) - x * share).abs() <= 1e-6 * (1.0 + x.abs()), "gelu({x}) = {value}");
            assert!((f64::from(slope) - share - x * density).abs() <= 1e-6, "slope({x}) = {slope}");
            assert_eq!(value, gelu(x as f32));
        }
    }
}
