//! The operations of `docs/integer-arithmetic.md`, sections 1 and 3, and maps to do them on.

/// Wide enough for everything that the text computes.
pub type Int = i128;

pub fn sat8(x: Int) -> Int {
    x.clamp(-128, 127)
}

pub fn sat14(x: Int) -> Int {
    x.clamp(-8192, 8191)
}

pub fn sat16(x: Int) -> Int {
    x.clamp(-32768, 32767)
}

pub fn requantize(a: Int, m: Int, s: Int) -> Int {
    (sat16(a >> s) * m + (1 << 14)) >> 15
}

/// Channel counts as they are stored.
pub fn stored(channels: usize) -> usize {
    channels.div_ceil(8) * 8
}

pub fn isqrt(x: Int) -> Int {
    x.unsigned_abs().isqrt() as Int
}

/// Two words, low first.
pub fn wide_word(low: Int, high: Int) -> Int {
    (low & 0xffff_ffff) + (high << 32)
}

/// `v >> t`, to the left for a negative `t`.
pub fn shifted(v: Int, t: Int) -> Int {
    if t < 0 { v << -t } else { v >> t }
}

/// Accumulators of i32, which wrap.
pub fn wrap(acc: Int) -> Int {
    acc as i32 as Int
}

/// The first even number in -62..=62 for which `v >> t` lies in 2^30..2^32; there is one for 1 <= v < 2^63.
pub fn even_shift(v: Int) -> Int {
    (-62..=62).step_by(2).find(|&t| (1 << 30..1 << 32).contains(&shifted(v, t))).unwrap_or(62)
}

/// Section 3: gain, exponent, epsilon low, epsilon high; `c` channels count.
pub fn layer_norm(x: &[Int], c: usize, constants: &[Int]) -> Vec<Int> {
    let [g, e, low, high] = [constants[0], constants[1], constants[2], constants[3]];
    let c = c as Int;
    let sum: Int = x.iter().sum();
    let squares: Int = x.iter().map(|x| x * x).sum();
    let v = ((c * squares - sum * sum).max(0) + wide_word(low, high)).max(1);
    let t = even_shift(v);
    let r = isqrt(shifted(v, t));
    debug_assert!((1 << 15..1 << 16).contains(&r));
    let a = (g + r / 2) / r;
    let n = (e + t / 2).clamp(1, 30);
    let reciprocal = ((1 << 31) + c / 2) / c;
    let u = (sum * reciprocal) >> 16;
    let b = wrap((1 << (n - 1)) - ((u * a) >> 15));
    // Only channels that do not count and are not zero can make it overflow.
    let fits = |v: &Int| debug_assert!(x.len() > c as usize || i32::try_from(*v).is_ok(), "in 32 bits");
    x.iter().map(|x| x * a + b).inspect(fits).map(|v| wrap(v) >> n).collect()
}

/// `[height, width, channels]`, square.
pub struct Map {
    pub side: usize,
    pub channels: usize,
    pub values: Vec<Int>,
}

impl Map {
    pub fn new(side: usize, channels: usize, mut pixel: impl FnMut(isize, isize) -> Vec<Int>) -> Self {
        let places = (0..side * side).map(|i| ((i / side) as isize, (i % side) as isize));
        let values: Vec<Int> = places.flat_map(|(y, x)| pixel(y, x)).collect();
        debug_assert_eq!(values.len(), side * side * channels);
        Self { side, channels, values }
    }

    pub fn pixels(&self) -> impl Iterator<Item = &[Int]> {
        self.values.chunks_exact(self.channels)
    }

    /// Zeros outside.
    pub fn at(&self, y: isize, x: isize) -> Vec<Int> {
        let inside = |v: isize| (0..self.side as isize).contains(&v);
        let index = || (y as usize * self.side + x as usize) * self.channels;
        if inside(y) && inside(x) { self.values[index()..][..self.channels].to_vec() } else { vec![0; self.channels] }
    }

    /// The `k` x `k` pixels from (y, x) on, one after the other.
    pub fn window(&self, y: isize, x: isize, k: isize) -> Vec<Int> {
        (0..k * k).flat_map(|tap| self.at(y + tap / k, x + tap % k)).collect()
    }

    /// Every pixel by itself.
    pub fn map(&self, f: impl Fn(&[Int]) -> Vec<Int>) -> Self {
        let values: Vec<Int> = self.pixels().flat_map(f).collect();
        Self { side: self.side, channels: values.len() / (self.side * self.side), values }
    }
}

/// Weights in panels of sixteen outputs and groups of four inputs; as many outputs as `outputs`. Sums wrap in 32 bits.
pub fn dense(x: &[Int], weight: &[i8], bias: &[Int], outputs: usize) -> Vec<Int> {
    let x: Vec<i32> = x.iter().map(|&x| x as i32).collect();
    let mut acc: Vec<i32> = bias.iter().map(|&b| b as i32).collect();
    for (acc, panel) in acc.chunks_mut(16).zip(weight.chunks(16 * x.len())) {
        for (x, group) in x.chunks_exact(4).zip(panel.chunks_exact(64)) {
            for (acc, w) in acc.iter_mut().zip(group.chunks_exact(4)) {
                let product = |i: usize| i32::from(w[i]).wrapping_mul(x[i]);
                let sum = product(0).wrapping_add(product(1)).wrapping_add(product(2)).wrapping_add(product(3));
                *acc = acc.wrapping_add(sum);
            }
        }
    }
    acc[..outputs].iter().map(|&a| a.into()).collect()
}

/// Weights `[tap, channel]` over a window of as many taps.
pub fn depthwise(window: &[Int], weight: &[i8], bias: &[Int]) -> Vec<Int> {
    let c = bias.len();
    let sum = |i: usize| (i..window.len()).step_by(c).map(|at| Int::from(weight[at]) * window[at]).sum::<Int>();
    (0..c).map(|i| wrap(bias[i] + sum(i))).collect()
}

pub fn each(x: Vec<Int>, f: impl Fn(Int) -> Int) -> Vec<Int> {
    x.into_iter().map(f).collect()
}
