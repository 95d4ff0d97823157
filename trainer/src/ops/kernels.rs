//! Loops over rows of f32, written so that the compiler turns them into vector instructions.

use pulp::{Arch, Simd, WithSimd};

/// Defines functions whose bodies are compiled for the widest vectors of this machine. What they call must be
/// `#[inline(always)]`: a call that remains is compiled without them, and every fused multiply-add in it is slow.
macro_rules! vectorised {
    ($($(#[$meta:meta])* pub fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub fn $name($($argument: $type),*) {
            struct Call<T>(T);
            impl WithSimd for Call<($($type,)*)> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: Simd>(self, _: S) {
                    let ($($argument,)*) = self.0;
                    $body
                }
            }
            Arch::new().dispatch(Call(($($argument,)*)));
        }
    )*};
}

const LANES: usize = 8;

/// The sum of `f(a, b)` over two rows.
#[inline(always)]
fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| f(*a, *b)).sum();
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h)) + rest
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
fn normalise(row: &mut [f32], eps: f32) -> f32 {
    let n = row.len() as f32;
    let mean = sum2(row, row, |a, _| a) / n;
    let variance = sum2(row, row, |a, _| (a - mean) * (a - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
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
fn normalise_backward(
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
    let mean = sum2(g, g, |a, _| a) / n;
    let slope = sum2(g, unit, |a, b| a * b) / n;
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

/// The map of one sample with a border of three zeros, `[side + 6, side + 6, channels]`.
pub struct Padded {
    /// Side of the map without border.
    pub side: usize,
    /// Channels.
    pub channels: usize,
    /// The values.
    pub values: Vec<f32>,
}

impl Padded {
    /// A map of zeros.
    pub fn new(side: usize, channels: usize) -> Self {
        Self { side, channels, values: vec![0.0; (side + 6) * (side + 6) * channels] }
    }

    /// Puts `rows` at `positions`, zeros elsewhere.
    pub fn fill(&mut self, rows: &[f32], positions: &[u32]) {
        if positions.len() < self.side * self.side {
            self.values.fill(0.0);
        }
        for (row, position) in rows.chunks_exact(self.channels).zip(positions) {
            let at = self.corner(*position) + (3 * (self.side + 6) + 3) * self.channels;
            self.values[at..at + self.channels].copy_from_slice(row);
        }
    }

    /// Where the 7x7 window of `position` begins.
    #[inline(always)]
    fn corner(&self, position: u32) -> usize {
        let position = position as usize;
        (position / self.side * (self.side + 6) + position % self.side) * self.channels
    }
}

/// Calls `$body` with `$w` lanes for `$c0` in steps over `0..$channels`.
macro_rules! channel_blocks {
    ($channels:expr, |$c0:ident, $w:ident| $body:expr) => {{
        let mut $c0 = 0;
        while $c0 + 16 <= $channels {
            const $w: usize = 16;
            $body;
            $c0 += 16;
        }
        while $c0 + 8 <= $channels {
            const $w: usize = 8;
            $body;
            $c0 += 8;
        }
        while $c0 < $channels {
            const $w: usize = 1;
            $body;
            $c0 += 1;
        }
    }};
}

vectorised! {
    /// 7x7 depthwise convolution at `positions`: `out = start + sum over taps of weight[tap] * map`.
    ///
    /// `weight` is `[49, channels]`; with `flip` its taps run backwards, which makes it the gradient of the input.
    /// `start` is a row for all or as long as `out`.
    pub fn depthwise(out: &mut [f32], start: &[f32], map: &Padded, positions: &[u32], weight: &[f32], flip: bool) {
        let (c, width) = (map.channels, map.side + 6);
        for (r, (out, position)) in out.chunks_exact_mut(c).zip(positions).enumerate() {
            let corner = map.corner(*position);
            let start = if start.len() == c { start } else { &start[r * c..][..c] };
            channel_blocks!(c, |c0, W| {
                let mut sum = [0f32; W];
                sum.copy_from_slice(&start[c0..c0 + W]);
                for dy in 0..7 {
                    let line = &map.values[corner + dy * width * c + c0..][..6 * c + W];
                    for dx in 0..7 {
                        let tap = if flip { 48 - dy * 7 - dx } else { dy * 7 + dx };
                        let (x, w) = (&line[dx * c..][..W], &weight[tap * c + c0..][..W]);
                        for i in 0..W {
                            sum[i] = x[i].mul_add(w[i], sum[i]);
                        }
                    }
                }
                out[c0..c0 + W].copy_from_slice(&sum);
            });
        }
    }

    /// The gradient of the depthwise weight: adds `sum over rows of g * map` to `weight_grad`, `[49, channels]`.
    pub fn depthwise_weight(weight_grad: &mut [f32], g: &[f32], map: &Padded, positions: &[u32]) {
        let (c, width) = (map.channels, map.side + 6);
        channel_blocks!(c, |c0, W| {
            for dy in 0..7 {
                let mut sums = [[0f32; W]; 7];
                for (g, position) in g.chunks_exact(c).zip(positions) {
                    let line = &map.values[map.corner(*position) + dy * width * c + c0..][..6 * c + W];
                    let g = &g[c0..c0 + W];
                    for (dx, sum) in sums.iter_mut().enumerate() {
                        let x = &line[dx * c..][..W];
                        for i in 0..W {
                            sum[i] = x[i].mul_add(g[i], sum[i]);
                        }
                    }
                }
                for (dx, sum) in sums.iter().enumerate() {
                    add(&mut weight_grad[(dy * 7 + dx) * c + c0..][..W], sum);
                }
            }
        });
    }

    /// `sum += row` for every row of `rows`.
    pub fn add_rows(sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            add(sum, row);
        }
    }

    /// `out = x + bias` for every row.
    pub fn add_to_rows(out: &mut [f32], x: &[f32], bias: &[f32]) {
        for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
            for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
                *out = x + bias;
            }
        }
    }

    /// Normalises every row in place; `scale` gets the factors.
    pub fn normalise_rows(rows: &mut [f32], scale: &mut [f32], eps: f32) {
        let c = rows.len() / scale.len();
        for (row, scale) in rows.chunks_exact_mut(c).zip(scale) {
            *scale = normalise(row, eps);
        }
    }

    /// `out = x * weight + bias` for every row.
    pub fn affine_rows(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
        let c = bias.len();
        for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            affine(out, x, weight, bias);
        }
    }

    /// `x = x * weight + bias` for every row.
    pub fn scale_rows(x: &mut [f32], weight: &[f32], bias: &[f32]) {
        for row in x.chunks_exact_mut(bias.len()) {
            for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *v = v.mul_add(*w, *b);
            }
        }
    }

    /// The rows `pick` of `x`, times `weight` plus `bias`.
    pub fn affine_picked(out: &mut [f32], x: &[f32], pick: &[u32], weight: &[f32], bias: &[f32]) {
        let c = bias.len();
        for (out, pick) in out.chunks_exact_mut(c).zip(pick) {
            affine(out, &x[*pick as usize * c..][..c], weight, bias);
        }
    }

    /// LayerNorm of every row in place.
    pub fn layer_norm_rows(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        for row in rows.chunks_exact_mut(bias.len()) {
            normalise(row, eps);
            for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
                *v = v.mul_add(*w, *b);
            }
        }
    }

    /// LayerNorm backwards for every row: `g` comes as the gradient of the affine output and leaves as that of the input.
    /// `unit` are the normalised rows, `scale` their factors. Adds to the gradients of weight and bias.
    pub fn normalise_rows_backward(
        g: &mut [f32],
        unit: &[f32],
        scale: &[f32],
        weight: &[f32],
        weight_grad: &mut [f32],
        bias_grad: &mut [f32],
    ) {
        let c = weight.len();
        for ((g, unit), scale) in g.chunks_exact_mut(c).zip(unit.chunks_exact(c)).zip(scale) {
            normalise_backward(g, unit, *scale, weight, weight_grad, bias_grad);
        }
    }

    /// Adds `bias` to `x`, puts GELU of that into `out` and adds GELU's squares to `squares`, channel by channel.
    pub fn bias_gelu_rows(x: &mut [f32], out: &mut [f32], bias: &[f32], squares: &mut [f32]) {
        let c = bias.len();
        for (x, out) in x.chunks_exact_mut(c).zip(out.chunks_exact_mut(c)) {
            for (((x, out), bias), square) in x.iter_mut().zip(out).zip(bias).zip(squares.iter_mut()) {
                *x += bias;
                *out = gelu(*x);
                *square = out.mul_add(*out, *square);
            }
        }
    }

    /// GELU and its slope of rows; adds GELU's squares to `squares`, channel by channel.
    pub fn gelu_rows(out: &mut [f32], slope: &mut [f32], x: &[f32], squares: &mut [f32]) {
        let c = squares.len();
        for ((out, slope), x) in out.chunks_exact_mut(c).zip(slope.chunks_exact_mut(c)).zip(x.chunks_exact(c)) {
            for (((out, slope), x), square) in out.iter_mut().zip(slope).zip(x).zip(squares.iter_mut()) {
                (*out, *slope) = gelu_and_slope(*x);
                *square = out.mul_add(*out, *square);
            }
        }
    }

    /// Every row's sums over the rows of `g * x` and of `g`, channel by channel, added to `dots` and `sums`.
    pub fn dot_rows(g: &[f32], x: &[f32], dots: &mut [f32], sums: &mut [f32]) {
        let c = dots.len();
        for (g, x) in g.chunks_exact(c).zip(x.chunks_exact(c)) {
            for (((g, x), dot), sum) in g.iter().zip(x).zip(dots.iter_mut()).zip(sums.iter_mut()) {
                *dot = g.mul_add(*x, *dot);
                *sum += g;
            }
        }
    }

    /// `g = (g * factors + x * along) * slope` for every row; adds the result to `sums`.
    pub fn response_rows_backward(
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
    pub fn stem_rows(
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
    pub fn stem_rows_backward(
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
