//! The kernels, written once over [`Vector`]; each set's file compiles them for its instructions and chooses the tile.
//!
//! **Dense.** A tile of `N` registers of outputs by `M` pixels stays in registers for a whole run of inputs: each input of a
//! pixel is put into all lanes once and multiplied with `N` registers of weights, each register of weights with `M` inputs.
//! Because a strip is stored panel by panel, the inputs of the tile's pixels are [`PANEL`] values apart, so that their
//! addresses are constants from one pointer. What remains of a strip is shared out evenly among its tiles (54 pixels in
//! tiles of at most 14: 14, 14, 13, 13).
//!
//! **Depthwise.** The 7 weights of a kernel row stay in registers; each input that a run of `W` outputs can see is read once
//! and goes into up to 7 of them. With two output rows at a time it goes into up to 14. Columns and rows beyond the border
//! are left out, by a branch a column that is predicted well.
//!
//! Every function here is compiled into its caller, which is compiled for the instruction set of `V`.
#![allow(unsafe_code)]

use super::vector::Vector;
use super::{DEPTHWISE_SIDE, Dense, Depthwise, LayerNorm, PANEL, Stem};

/// Half of the depthwise kernel, without its centre.
const HALF: usize = DEPTHWISE_SIDE / 2;

/// Registers of a panel.
const fn registers<V: Vector>() -> usize {
    PANEL / V::LANES
}

/// `total` in as few parts as possible, none above `most`, all nearly equal: where each begins, and its length.
pub(super) fn parts(total: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = total.div_ceil(most);
    let (each, longer) = (total.checked_div(count).unwrap_or(0), total.checked_rem(count).unwrap_or(0));
    (0..count).map(move |i| (i * each + i.min(longer), each + usize::from(i < longer)))
}

/// The set of the functions of a module.
#[cfg(target_arch = "x86_64")]
macro_rules! set {
    ($name:literal) => {
        // SAFETY, for each: a set is handed out only after its instructions were found.
        $crate::kernels::float::FloatKernels {
            name: $name,
            dense: |job, output| unsafe { dense(job, output) },
            depthwise: |job, output| unsafe { depthwise(job, output) },
            stem: |job, output| unsafe { stem(job, output) },
            layer_norm: |norm, values, pixels, stride| unsafe { layer_norm(norm, values, pixels, stride) },
            gelu: |values, row, sums| unsafe { gelu(values, row, sums) },
            grn: |squares, gamma, eps| unsafe { grn(squares, gamma, eps) },
            scale: |values, multiplier, offset| unsafe { scale(values, multiplier, offset) },
            widen: |bits, values| unsafe { widen(bits, values) },
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use set;

/// Runs a dense job in tiles of `$n` registers (`$group` panels) by each of the numbers of pixels listed, which are 1, 2, 3
/// and so on.
macro_rules! tiles {
    ($vector:ty, $n:literal, $group:literal: [$($m:literal),+], $job:expr, $output:expr) => {{
        let (job, output): (&$crate::kernels::float::Dense<'_>, &mut [f32]) = ($job, $output);
        job.check(output);
        for panel in (0..job.panels).step_by($group) {
            let tiles = $crate::kernels::float::shared::parts(job.pixels, [$($m),+].len());
            for (index, (pixel, count)) in tiles.enumerate() {
                match count {
                    // SAFETY: the job was checked, the tile lies in it, and the set is handed out only where its
                    // instructions exist.
                    $($m => unsafe {
                        $crate::kernels::float::shared::tile::<$vector, $n, $m>(job, panel, pixel, index, output)
                    },)+
                    _ => {}
                }
            }
        }
    }};
}
pub(super) use tiles;

/// Runs a depthwise job in blocks of `$rows` output rows by each of the widths listed, which are 1, 2, 3 and so on.
macro_rules! blocks {
    ($vector:ty, $rows:literal: [$($w:literal),+], $job:expr, $output:expr) => {{
        let (job, output): (&$crate::kernels::float::Depthwise<'_>, &mut [f32]) = ($job, $output);
        job.check(output);
        const LANES: usize = <$vector as $crate::kernels::float::vector::Vector>::LANES;
        let mut row = 0;
        while row < job.rows {
            let pair = job.rows - row >= $rows;
            for lane in (0..$crate::kernels::float::PANEL).step_by(LANES) {
                for (x, width) in $crate::kernels::float::shared::parts(job.side, [$($w),+].len()) {
                    match (width, pair) {
                        // SAFETY: the job was checked, the block lies in it, and the set is handed out only where its
                        // instructions exist.
                        $(($w, true) => unsafe {
                            $crate::kernels::float::shared::block::<$vector, $w, $rows>(job, row, x, lane, output)
                        },
                        // SAFETY: as above.
                        ($w, false) => unsafe {
                            $crate::kernels::float::shared::block::<$vector, $w, 1>(job, row, x, lane, output)
                        },)+
                        _ => {}
                    }
                }
            }
            row += if pair { $rows } else { 1 };
        }
    }};
}
pub(super) use blocks;

/// `N` registers of outputs from panel `panel` on, by `M` pixels from `pixel` on.
///
/// # Safety
/// `job` was checked with this output, has `N` registers from `panel` on and `M` pixels from `pixel` on; the processor has `V`.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const N: usize, const M: usize>(
    job: &Dense<'_>,
    panel: usize,
    pixel: usize,
    index: usize,
    output: &mut [f32],
) {
    let per_panel = registers::<V>();
    // SAFETY: the caller vouches for the tile, and the check covered what it reads and writes.
    unsafe {
        let mut acc = [[V::splat(0.0); M]; N];
        let input = job.input.as_ptr().add(pixel * PANEL);
        let mut weights = job.weights.as_ptr().add(panel * job.weight_stride);
        let mut next = job.next.as_ptr().wrapping_add(index * job.weights_of_a_panel() / 4);
        let place = |n: usize, stride: usize| n / per_panel * stride + n % per_panel * V::LANES;
        for run in job.runs {
            let mut x = input.add(run.start);
            let mut left = run.len;
            macro_rules! input {
                ($k:literal) => {
                    let mut w = [V::splat(0.0); N];
                    for n in 0..N {
                        w[n] = V::load(weights.add(place(n, job.weight_stride) + $k * PANEL));
                    }
                    for m in 0..M {
                        let v = V::splat(*x.add(m * PANEL + $k));
                        for n in 0..N {
                            acc[n][m] = v.mul_add(w[n], acc[n][m]);
                        }
                    }
                };
            }
            while left >= 4 {
                input!(0);
                input!(1);
                input!(2);
                input!(3);
                for n in (0..N).step_by(per_panel) {
                    V::prefetch(next.wrapping_add(place(n, job.weight_stride)));
                }
                next = next.wrapping_add(PANEL);
                x = x.add(4);
                weights = weights.add(4 * PANEL);
                left -= 4;
            }
            while left > 0 {
                input!(0);
                x = x.add(1);
                weights = weights.add(PANEL);
                left -= 1;
            }
        }
        let output = output.as_mut_ptr().add(panel * job.output_stride + pixel * PANEL);
        for n in 0..N {
            let bias = match job.bias.get(panel + n / per_panel) {
                Some(bias) => V::load(bias.as_ptr().add(n % per_panel * V::LANES)),
                None => V::splat(0.0),
            };
            for m in 0..M {
                let at = output.add(place(n, job.output_stride) + m * PANEL);
                let mut v = acc[n][m].add(bias);
                if job.add {
                    v = v.add(V::load(at));
                }
                v.store(at);
            }
        }
    }
}

/// `W` outputs from column `x` on in each of `R` rows from row `row` of the job on, for the register of channels that begins
/// at `lane`.
///
/// # Safety
/// `job` was checked with this output and has these rows, columns and lanes; the processor has `V`.
#[inline(always)]
pub(super) unsafe fn block<V: Vector, const W: usize, const R: usize>(
    job: &Depthwise<'_>,
    row: usize,
    x: usize,
    lane: usize,
    output: &mut [f32],
) {
    let y = job.first + row;
    // SAFETY: the caller vouches for the block, and the check covered map, weights and output.
    unsafe {
        let mut acc = [[V::splat(0.0); W]; R];
        let input = job.input.as_ptr().add(lane);
        let weights = job.weights.as_ptr().add(lane);
        // One input row into the output rows A..B of the block.
        macro_rules! row {
            ($d:tt $a:expr, $b:expr, $iy:expr) => {
                let mut w = [[V::splat(0.0); DEPTHWISE_SIDE]; R];
                for r in $a..$b {
                    for kx in 0..DEPTHWISE_SIDE {
                        w[r][kx] = V::load(weights.add((($iy + HALF - y - r) * DEPTHWISE_SIDE + kx) * PANEL));
                    }
                }
                let line = input.add($iy * job.side * PANEL);
                // Every number below is a constant once compiled, so that all accumulators have their register.
                macro_rules! column {
                    ($j:literal: $d($kx:literal)+) => {
                        // Left of the border wraps around to beyond the right one.
                        let ix = (x + $j).wrapping_sub(HALF);
                        if $j < W + DEPTHWISE_SIDE - 1 && ix < job.side {
                            let v = V::load(line.add(ix * PANEL));
                            $d(
                                let o = usize::wrapping_sub($j, $kx);
                                if o < W {
                                    for r in $a..$b {
                                        acc[r][o] = v.mul_add(w[r][$kx], acc[r][o]);
                                    }
                                }
                            )+
                        }
                    };
                }
                macro_rules! columns {
                    ($d($j:literal)+) => { $d(column!($j: 0 1 2 3 4 5 6);)+ };
                }
                columns!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
            };
        }
        if R == 1 {
            for iy in y.saturating_sub(HALF)..(y + HALF + 1).min(job.side) {
                row!($ 0, 1, iy);
            }
        } else {
            if y >= HALF {
                row!($ 0, 1, y - HALF);
            }
            for iy in (y + 1).saturating_sub(HALF)..(y + HALF + 1).min(job.side) {
                row!($ 0, R, iy);
            }
            if y + HALF + 1 < job.side {
                row!($ 1, R, y + HALF + 1);
            }
        }
        let bias = V::load(job.bias.as_ptr().add(lane));
        for r in 0..R {
            let at = output.as_mut_ptr().add(((row + r) * job.side + x) * PANEL + lane);
            for o in 0..W {
                acc[r][o].add(bias).store(at.add(o * PANEL));
            }
        }
    }
}

/// See [`super::FloatKernels::stem`].
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
pub(super) unsafe fn stem<V: Vector>(job: &Stem<'_>, output: &mut [f32]) {
    job.check(output);
    let k = job.kernel;
    for (x, pixel) in output.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
        for lane in (0..PANEL).step_by(V::LANES) {
            // SAFETY: taps and columns are kept in the rows, whose lengths were checked; the caller vouches for `V`.
            unsafe {
                let mut acc = V::splat(0.0);
                for ky in 0..k {
                    if (job.first + ky).checked_sub(job.padding).is_none_or(|row| row >= job.width) {
                        continue;
                    }
                    for kx in 0..k {
                        let column = (x * k + kx).wrapping_sub(job.padding);
                        if column < job.width {
                            let v = V::load(job.input.as_ptr().add((ky * job.width + column) * PANEL + lane));
                            let w = V::load(job.weights.as_ptr().add((ky * k + kx) * PANEL + lane));
                            acc = v.mul_add(w, acc);
                        }
                    }
                }
                acc.add(V::load(job.bias.as_ptr().add(lane))).store(pixel.as_mut_ptr().add(lane));
            }
        }
    }
}

/// The last panel of `values`, filled up with zeros.
pub(super) fn last_panel(values: &[f32]) -> [f32; PANEL] {
    super::lanes(values, values.len().div_ceil(PANEL).saturating_sub(1))
}

/// See [`super::FloatKernels::layer_norm`].
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
pub(super) unsafe fn layer_norm<V: Vector>(norm: &LayerNorm<'_>, values: &mut [f32], pixels: usize, stride: usize) {
    norm.check(values, pixels, stride);
    let channels = norm.weight.len();
    let panels = channels.div_ceil(PANEL);
    let (weight, bias) = (last_panel(norm.weight), last_panel(norm.bias));
    let mut present = [0.0; PANEL];
    present[..channels - (panels - 1) * PANEL].fill(1.0);
    let n = channels as f32;
    for pixel in 0..pixels {
        // SAFETY: the check covered every panel of every pixel; weight and bias are read in place only where a whole panel
        // is left, and the caller vouches for `V`.
        unsafe {
            let at = values.as_mut_ptr().add(pixel * PANEL);
            let mut sum = V::splat(0.0);
            for panel in 0..panels {
                for lane in (0..PANEL).step_by(V::LANES) {
                    sum = sum.add(V::load(at.add(panel * stride + lane)));
                }
            }
            let mean = V::splat(sum.sum() / n);
            let mut squares = V::splat(0.0);
            for panel in 0..panels - 1 {
                for lane in (0..PANEL).step_by(V::LANES) {
                    let deviation = V::load(at.add(panel * stride + lane)).sub(mean);
                    squares = deviation.mul_add(deviation, squares);
                }
            }
            for lane in (0..PANEL).step_by(V::LANES) {
                let deviation = V::load(at.add((panels - 1) * stride + lane)).sub(mean);
                squares = deviation.mul_add(deviation.mul(V::load(present.as_ptr().add(lane))), squares);
            }
            let scale = V::inverse_root(squares.sum() / n + norm.eps);
            for panel in 0..panels {
                let (weight, bias) = if panel + 1 < panels {
                    (norm.weight.as_ptr().add(panel * PANEL), norm.bias.as_ptr().add(panel * PANEL))
                } else {
                    (weight.as_ptr(), bias.as_ptr())
                };
                for lane in (0..PANEL).step_by(V::LANES) {
                    let at = at.add(panel * stride + lane);
                    let v = V::load(at).sub(mean).mul(scale);
                    v.mul_add(V::load(weight.add(lane)), V::load(bias.add(lane))).store(at);
                }
            }
        }
    }
}

/// From here on the normal distribution's tail is below half a unit of the last place of 1.
const TAIL: f32 = 5.625;
/// Numerator and denominator, in powers of `x^2`, of a rational function `N / D` for which `x N / D + 1/2` is the normal
/// distribution function on 0 to [`TAIL`], fitted for this project: within 3.1e-8 before rounding, 2e-7 in f32.
const NUMERATOR: [f32; 6] =
    [0.398_941_96, 0.035_940_617, 0.004_810_968, 0.000_191_022_48, 6.587_453_8e-6, 2.158_813_2e-8];
const DENOMINATOR: [f32; 6] = [1.0, 0.256_752_82, 0.029_856_728, 0.002_008_535_4, 0.000_081_234_444, 1.181_292_3e-6];

/// See [`super::FloatKernels::gelu`]: `x / 2 + |x| (F(|x|) - 1/2)`, where `F` is the normal distribution function.
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
pub(super) unsafe fn gelu<V: Vector>(values: &mut [f32], row: usize, sums: &mut [f32; PANEL]) {
    for row in values.chunks_mut((row * PANEL).max(PANEL)) {
        for lane in (0..PANEL).step_by(V::LANES) {
            // SAFETY: each address is that of a lane of a whole panel in `row` or `sums`; the caller vouches for `V`.
            unsafe {
                let half = V::splat(0.5);
                let mut squares = V::splat(0.0);
                for pixel in row.as_chunks_mut::<PANEL>().0 {
                    let at = pixel.as_mut_ptr().add(lane);
                    let x = V::load(at);
                    let a = x.abs();
                    let q = a.mul(a);
                    let (mut numerator, mut denominator) = (V::splat(NUMERATOR[5]), V::splat(DENOMINATOR[5]));
                    for i in (0..5).rev() {
                        numerator = numerator.mul_add(q, V::splat(NUMERATOR[i]));
                        denominator = denominator.mul_add(q, V::splat(DENOMINATOR[i]));
                    }
                    let p = a.mul(numerator).div(denominator).where_less(a, V::splat(TAIL), half);
                    let y = a.mul_add(p, x.mul(half));
                    squares = y.mul_add(y, squares);
                    y.store(at);
                }
                let sum = sums.as_mut_ptr().add(lane);
                V::load(sum).add(squares).store(sum);
            }
        }
    }
}

/// See [`super::FloatKernels::grn`].
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
pub(super) unsafe fn grn<V: Vector>(squares: &mut [f32], gamma: &[f32], eps: f32) {
    assert_eq!(squares.len(), gamma.len().next_multiple_of(PANEL), "one sum a lane of gamma's panels");
    let last = last_panel(gamma);
    // SAFETY: each address is that of a register's lanes in a panel of `squares`, `gamma` or `last`; the caller vouches for
    // `V`.
    unsafe {
        let mut total = V::splat(0.0);
        for run in squares.chunks_exact_mut(V::LANES) {
            let norm = V::load(run.as_ptr()).sqrt();
            norm.store(run.as_mut_ptr());
            total = total.add(norm);
        }
        let inverse = V::splat(1.0 / (total.sum() / gamma.len() as f32 + eps));
        for (panel, norms) in squares.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let gamma = gamma.get(panel * PANEL..(panel + 1) * PANEL).unwrap_or(&last);
            for lane in (0..PANEL).step_by(V::LANES) {
                let norm = V::load(norms.as_ptr().add(lane)).mul(inverse);
                let multiplier = norm.mul_add(V::load(gamma.as_ptr().add(lane)), V::splat(1.0));
                multiplier.store(norms.as_mut_ptr().add(lane));
            }
        }
    }
}

/// See [`super::FloatKernels::scale`].
///
/// # Safety
/// The processor has `V`.
#[inline(always)]
pub(super) unsafe fn scale<V: Vector>(values: &mut [f32], multiplier: &[f32], offset: &[f32]) {
    let multipliers = multiplier.as_chunks::<PANEL>().0;
    assert_eq!(multiplier.len(), offset.len().next_multiple_of(PANEL), "one multiplier a lane of the offset's panels");
    assert!(values.len().is_multiple_of(multiplier.len()), "whole pixels");
    let pixels = values.len() / multiplier.len();
    for (panel, (run, multiplier)) in values.chunks_exact_mut((pixels * PANEL).max(1)).zip(multipliers).enumerate() {
        let offset = super::lanes(offset, panel);
        for lane in (0..PANEL).step_by(V::LANES) {
            // SAFETY: each address is that of a lane of a whole panel; the caller vouches for `V`.
            unsafe {
                let (m, b) = (V::load(multiplier.as_ptr().add(lane)), V::load(offset.as_ptr().add(lane)));
                for pixel in run.as_chunks_mut::<PANEL>().0 {
                    let at = pixel.as_mut_ptr().add(lane);
                    V::load(at).mul_add(m, b).store(at);
                }
            }
        }
    }
}
