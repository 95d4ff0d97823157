//! Loops over rows of f32, written so that the compiler turns them into vector instructions.

use pulp::Arch;

/// Runs `f` compiled for the widest vectors of this machine. What `f` calls must be `#[inline(always)]`.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
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
pub fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// GELU and its derivative.
#[inline(always)]
pub fn gelu_and_slope(x: f32) -> (f32, f32) {
    let (share, density) = normal(x);
    (x * share, x.mul_add(density, share))
}

/// Brings a row to zero mean and unit variance; gives the factor that it applied.
#[inline(always)]
pub fn normalise(row: &mut [f32], eps: f32) -> f32 {
    let n = row.len() as f32;
    let mean = sum2(row, row, |a, _| a) / n;
    let variance = sum2(row, row, |a, _| (a - mean) * (a - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
    scale
}

/// `out = x * weight + bias`, element by element.
#[inline(always)]
pub fn affine(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) {
    for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = x.mul_add(*w, *b);
    }
}

/// LayerNorm backwards: `g` comes as the gradient of the affine output and leaves as that of the input. `unit` is the
/// normalised row, `scale` what [`normalise`] gave. Adds to the gradients of weight and bias.
#[inline(always)]
pub fn normalise_backward(
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

/// `sum += row` for every row of `rows`.
#[inline(always)]
pub fn add_rows(sum: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sum.len()) {
        add(sum, row);
    }
}

/// `sum += row`.
#[inline(always)]
pub fn add(sum: &mut [f32], row: &[f32]) {
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

/// 7x7 depthwise convolution at `positions`: `out = start + sum over taps of weight[tap] * map`.
///
/// `weight` is `[49, channels]`; with `flip` its taps run backwards, which makes it the gradient of the input.
/// `start` is a row for all or as long as `out`.
#[inline(always)]
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
#[inline(always)]
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
