//! Every kernel of every set that this processor can run, against float64.

extern crate std;

use std::vec;
use std::vec::Vec;
use std::{print, println};

use super::*;

/// Half a unit of the last place of 1.
const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Numbers in [-1, 1) from a seed.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `[panels, pixels, 16]` with the channels of the last panel that do not exist at zero.
fn panels(pixels: usize, channels: usize, seed: u32) -> Vec<f32> {
    let mut values = numbers(pixels * channels.next_multiple_of(PANEL), seed);
    for (i, v) in values.iter_mut().enumerate() {
        if i / (pixels * PANEL) * PANEL + i % PANEL >= channels {
            *v = 0.0;
        }
    }
    values
}

/// Where channel `c` of pixel `p` stands.
fn place(pixels: usize, p: usize, c: usize) -> usize {
    (c / PANEL * pixels + p) * PANEL + c % PANEL
}

#[test]
fn sets_are_found_by_name() {
    let known: &[&str] = match () {
        _ if cfg!(target_arch = "x86_64") => &["avx512", "avx2", "scalar"],
        _ if cfg!(target_arch = "aarch64") => &["neon", "scalar"],
        _ => &["scalar"],
    };
    for name in known {
        match FloatKernels::by_name(name) {
            Some(set) => assert_eq!(set.name, *name),
            None => println!("SKIPPED: this processor cannot run the {name} kernels"),
        }
    }
    assert!(FloatKernels::by_name("none").is_none());
    assert_eq!(FloatKernels::detect().name, FloatKernels::available().last().unwrap().name);
    assert_eq!(FloatKernels::available().next().unwrap().name, "scalar");
    print!("{:?}", FloatKernels::detect());
}

/// The runs of `inputs` channels that stand panel by panel.
fn runs(pixels: usize, inputs: usize) -> Vec<Run> {
    let run = |start: usize| Run { start: start * pixels, len: PANEL.min(inputs - start) };
    (0..inputs).step_by(PANEL).map(run).collect()
}

#[test]
fn dense_is_within_its_bound() {
    for set in FloatKernels::available() {
        for (case, (inputs, count)) in [(1, 1), (7, 2), (27, 3), (40, 2), (200, 3), (256, 1)].into_iter().enumerate() {
            for pixels in (1..=30).chain([54, 65]) {
                let (x, w) = (panels(pixels, inputs, 1), numbers(count * (inputs * PANEL + 8), 2));
                let bias: Vec<[f32; PANEL]> =
                    (0..count).map(|i| *numbers(PANEL, 3 + i as u32).first_chunk().unwrap()).collect();
                let (bias, add) = (if pixels % 3 == 0 { &[][..] } else { &bias[..] }, pixels % 2 == case % 2);
                // A gap after each panel.
                let output_stride = pixels * PANEL + 5;
                let before = numbers(count * output_stride, 4);
                let mut out = before.clone();
                let job = Dense {
                    input: &x,
                    runs: &runs(pixels, inputs),
                    pixels,
                    weights: &w,
                    weight_stride: inputs * PANEL + 8,
                    next: &[],
                    panels: count,
                    bias,
                    output_stride,
                    add,
                };
                (set.dense)(&job, &mut out);
                for (i, (&found, &before)) in out.iter().zip(&before).enumerate() {
                    let (panel, p, o) = (i / output_stride, i % output_stride / PANEL, i % output_stride % PANEL);
                    if p >= pixels {
                        assert_eq!(found, before, "{}: nothing is written beyond the pixels", set.name);
                        continue;
                    }
                    let product = |c: usize| {
                        f64::from(x[place(pixels, p, c)]) * f64::from(w[panel * job.weight_stride + c * PANEL + o])
                    };
                    let rest = [bias.get(panel).map_or(0.0, |b| b[o]), if add { before } else { 0.0 }].map(f64::from);
                    let expected = (0..inputs).map(product).sum::<f64>() + rest[0] + rest[1];
                    let magnitude = (0..inputs).map(|c| product(c).abs()).sum::<f64>() + rest[0].abs() + rest[1].abs();
                    let bound = (inputs + 3) as f64 * ROUNDING * magnitude;
                    let error = (f64::from(found) - expected).abs();
                    assert!(error <= bound, "{} {inputs} inputs, {pixels} pixels: {found} {expected}", set.name);
                }
            }
        }
    }
}

/// Pixels of a tile of any size get the bits that they get alone.
#[test]
fn dense_does_not_depend_on_the_strip() {
    for set in FloatKernels::available() {
        let (pixels, inputs) = (37, 45);
        let (x, w) = (panels(pixels, inputs, 1), numbers(3 * inputs * PANEL, 2));
        for count in 1..=GROUP {
            let job = Dense {
                input: &x,
                runs: &runs(pixels, inputs),
                pixels,
                weights: &w,
                weight_stride: inputs * PANEL,
                next: &w,
                panels: count,
                bias: &[],
                output_stride: pixels * PANEL,
                add: false,
            };
            let mut whole = vec![0.0; count * pixels * PANEL];
            (set.dense)(&job, &mut whole);
            for first in 0..pixels {
                let mut alone = vec![0.0; count * PANEL];
                let input = &x[first * PANEL..];
                (set.dense)(&Dense { input, pixels: 1, output_stride: PANEL, ..job }, &mut alone);
                for (panel, alone) in alone.chunks_exact(PANEL).enumerate() {
                    assert_eq!(alone, &whole[(panel * pixels + first) * PANEL..][..PANEL], "{}", set.name);
                }
            }
        }
    }
}

#[test]
fn depthwise_is_a_padded_convolution() {
    for set in FloatKernels::available() {
        for side in (1..=18).chain([27, 54]) {
            let (values, weights) = (numbers(side * side * PANEL, 4), numbers(49 * PANEL, 5));
            let bias = *numbers(PANEL, 6).first_chunk().unwrap();
            let job = Depthwise { input: &values, side, first: 0, rows: side, weights: &weights, bias: &bias };
            let mut whole = vec![0.0; side * side * PANEL];
            (set.depthwise)(&job, &mut whole);
            for (i, &found) in whole.iter().enumerate() {
                let (y, x, c) = (i / PANEL / side, i / PANEL % side, i % PANEL);
                let (mut expected, mut magnitude) = (f64::from(bias[c]), f64::from(bias[c].abs()));
                for (ky, kx) in (0..49).map(|t| (t / 7, t % 7)) {
                    let (iy, ix) = (y + ky, x + kx);
                    if (3..side + 3).contains(&iy) && (3..side + 3).contains(&ix) {
                        let v = f64::from(values[((iy - 3) * side + ix - 3) * PANEL + c]);
                        let product = v * f64::from(weights[(ky * 7 + kx) * PANEL + c]);
                        expected += product;
                        magnitude += product.abs();
                    }
                }
                let bound = 51.0 * ROUNDING * magnitude;
                assert!((f64::from(found) - expected).abs() <= bound, "{} {side} {y} {x}: {found}", set.name);
            }
            // Rows one by one and in threes get the same bits.
            for rows in [1, 3] {
                for first in (0..side).step_by(rows) {
                    let job = Depthwise { first, rows: rows.min(side - first), ..job };
                    let mut strip = vec![0.0; job.rows * side * PANEL];
                    (set.depthwise)(&job, &mut strip);
                    assert_eq!(strip, whole[first * side * PANEL..][..strip.len()], "{}", set.name);
                }
            }
        }
    }
}

#[test]
fn stem_is_a_strided_convolution() {
    for set in FloatKernels::available() {
        for (kernel, padding, width) in [(1, 0, 5), (2, 1, 9), (2, 0, 8), (4, 2, 21), (4, 0, 16)] {
            let grid = (width + 2 * padding - kernel) / kernel + 1;
            let map = numbers(width * width * PANEL, 1);
            let weights = numbers(kernel * kernel * PANEL, 2);
            let bias = *numbers(PANEL, 3).first_chunk().unwrap();
            for y in 0..grid {
                // What stands in the padding must not matter.
                let mut rows = vec![f32::NAN; kernel * width * PANEL];
                for (ky, row) in rows.chunks_exact_mut(width * PANEL).enumerate() {
                    if let Some(at) = (y * kernel + ky).checked_sub(padding).filter(|&at| at < width) {
                        row.copy_from_slice(&map[at * width * PANEL..][..width * PANEL]);
                    }
                }
                let first = y * kernel;
                let job = Stem { input: &rows, width, first, kernel, padding, weights: &weights, bias: &bias };
                let mut out = vec![0.0; grid * PANEL];
                (set.stem)(&job, &mut out);
                for (i, &found) in out.iter().enumerate() {
                    let (x, c) = (i / PANEL, i % PANEL);
                    let mut expected = f64::from(bias[c]);
                    for (ky, kx) in (0..kernel * kernel).map(|t| (t / kernel, t % kernel)) {
                        let at = [y * kernel + ky, x * kernel + kx].map(|at| at.wrapping_sub(padding));
                        if at[0] < width && at[1] < width {
                            let v = f64::from(map[(at[0] * width + at[1]) * PANEL + c]);
                            expected += v * f64::from(weights[(ky * kernel + kx) * PANEL + c]);
                        }
                    }
                    let error = (f64::from(found) - expected).abs();
                    assert!(error <= 18.0 * ROUNDING * 17.0, "{} {kernel} {y} {x}: {found} {expected}", set.name);
                }
            }
        }
    }
}

/// Within `8 sqrt(n) * 2^-24` of the largest normalised value, for values around 3 with a deviation of about 0.6.
#[test]
fn layer_norm_centres_and_scales() {
    for set in FloatKernels::available() {
        for channels in [1, 2, 15, 16, 17, 37, 40, 80, 128, 331] {
            for pixels in [1, 2, 15, 16, 17, 33] {
                let mut original = panels(pixels, channels, 9);
                (0..pixels * channels).for_each(|i| original[place(pixels, i % pixels, i / pixels)] += 3.0);
                let (weight, bias) = (numbers(channels, 10), numbers(channels, 11));
                let mut values = original.clone();
                let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-6 };
                (set.layer_norm)(&norm, &mut values, pixels, pixels * PANEL);
                for p in 0..pixels {
                    let n = channels as f64;
                    let value = |c: usize| f64::from(original[place(pixels, p, c)]);
                    let mean = (0..channels).map(value).sum::<f64>() / n;
                    let variance = (0..channels).map(|c| (value(c) - mean).powi(2)).sum::<f64>() / n;
                    let scale = 1.0 / (variance + 1e-6).sqrt();
                    // Rounding of the mean shows in full where the deviation is small.
                    let bound = 8.0 * n.sqrt() * ROUNDING * (1.0 + 3.0 * scale);
                    for c in 0..channels.next_multiple_of(PANEL) {
                        let found = f64::from(values[place(pixels, p, c)]);
                        if c >= channels {
                            assert_eq!(found, 0.0, "{}: channels that fill up stay zero", set.name);
                            continue;
                        }
                        let expected = (value(c) - mean) * scale * f64::from(weight[c]) + f64::from(bias[c]);
                        assert!((found - expected).abs() <= bound, "{} {channels}: {found} {expected}", set.name);
                    }
                }
            }
        }
    }
}

fn exact_gelu(x: f64) -> f64 {
    0.5 * x * libm::erfc(-x * core::f64::consts::FRAC_1_SQRT_2)
}

#[test]
fn gelu_is_within_its_bound_everywhere() {
    for set in FloatKernels::available() {
        // A dense sweep, every power of two of both signs, and the edges of the intervals.
        let sweep = (-400_000..=400_000).map(|i| i as f32 * 2e-5);
        let powers = (-149..=127).flat_map(|e| [libm::scalbnf(1.0, e), -libm::scalbnf(1.0, e)]);
        let edges = (0..64).flat_map(|i| {
            let edge = i as f32 * 0.09;
            [edge, edge.next_up(), edge.next_down(), -edge]
        });
        let original: Vec<f32> = sweep.chain(powers).chain(edges).chain([0.0, -0.0, 5.625, -5.625, f32::MAX]).collect();
        let mut values = original.clone();
        values.resize(values.len().next_multiple_of(PANEL), 0.0);
        (set.gelu)(&mut values, 54, &mut [0.0; PANEL]);
        let mut worst = 0f64;
        for (&x, &found) in original.iter().zip(&values) {
            let error = (f64::from(found) - exact_gelu(x.into())).abs() / f64::from(x.abs()).max(1.0);
            assert!(error <= 3e-7, "{} at {x}: {found}", set.name);
            worst = worst.max(error);
        }
        println!("{}: GELU within {worst:.2e} max(1, |x|)", set.name);
        let mut nan = [f32::NAN; PANEL];
        (set.gelu)(&mut nan, 1, &mut [0.0; PANEL]);
        assert!(nan.iter().all(|v| v.is_nan()), "{}: what is not a number stays so", set.name);
    }
}

#[test]
fn squares_are_summed_row_by_row() {
    for set in FloatKernels::available() {
        for (rows, row) in [(1, 1), (3, 7), (2, 54), (13, 13)] {
            let mut values = numbers(rows * row * PANEL, 5);
            let mut split = values.clone();
            let mut sums = *numbers(PANEL, 6).first_chunk::<PANEL>().unwrap();
            let before = sums;
            let mut split_sums = sums;
            (set.gelu)(&mut values, row, &mut sums);
            for split in split.chunks_exact_mut(row * PANEL) {
                (set.gelu)(split, row, &mut split_sums);
            }
            assert_eq!((&split, split_sums), (&values, sums), "{}: strips do not show", set.name);
            for c in 0..PANEL {
                let squares = values.iter().skip(c).step_by(PANEL).map(|&v| f64::from(v) * f64::from(v));
                let expected = f64::from(before[c]) + squares.sum::<f64>();
                let bound = (rows + row + 1) as f64 * ROUNDING * (expected.abs() + 2.0);
                assert!((f64::from(sums[c]) - expected).abs() <= bound, "{} {} {expected}", set.name, sums[c]);
            }
        }
    }
}

#[test]
fn grn_divides_by_the_mean_norm() {
    for set in FloatKernels::available() {
        for channels in [1, 12, 16, 20, 160, 1280] {
            let mut squares = panels(1, channels, 3);
            squares.iter_mut().for_each(|v| *v = 100.0 * v.abs());
            let gamma = numbers(channels, 4);
            let norms: Vec<f64> = squares.iter().map(|&v| f64::from(v).sqrt()).collect();
            let mean = norms.iter().sum::<f64>() / channels as f64;
            (set.grn)(&mut squares, &gamma, 1e-4);
            for (c, &found) in squares.iter().enumerate() {
                let term = f64::from(gamma.get(c).copied().unwrap_or(0.0)) * norms[c] / (mean + 1e-4);
                let bound = (16.0 + channels as f64 / 4.0) * ROUNDING * (1.0 + term.abs());
                assert!((f64::from(found) - 1.0 - term).abs() <= bound, "{} {channels} {c}: {found}", set.name);
            }
        }
    }
}

#[test]
fn scale_multiplies_and_adds() {
    for set in FloatKernels::available() {
        for (channels, pixels) in [(1, 1), (16, 3), (20, 9), (37, 5)] {
            let original = panels(pixels, channels, 1);
            let (multiplier, offset) = (numbers(channels.next_multiple_of(PANEL), 2), numbers(channels, 3));
            let mut values = original.clone();
            (set.scale)(&mut values, &multiplier, &offset);
            for (p, c) in (0..pixels).flat_map(|p| (0..channels.next_multiple_of(PANEL)).map(move |c| (p, c))) {
                let (found, before) = (values[place(pixels, p, c)], original[place(pixels, p, c)]);
                let expected =
                    f64::from(before) * f64::from(multiplier[c]) + f64::from(offset.get(c).copied().unwrap_or(0.0));
                assert!((f64::from(found) - expected).abs() <= 3.0 * ROUNDING, "{}: {found} {expected}", set.name);
            }
        }
    }
}

#[test]
fn every_finite_f16_widens_exactly() {
    let bits: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    for set in FloatKernels::available() {
        // Also a length that fills no register.
        for bits in [&bits[..], &bits[1..8]] {
            let mut values = vec![0.0; bits.len()];
            (set.widen)(bits, &mut values);
            for (bits, value) in bits.iter().zip(&values) {
                let expected = half::f16::from_bits(*bits).to_f32();
                assert_eq!(value.to_bits(), expected.to_bits(), "{} {bits:#06x}", set.name);
            }
        }
    }
}

#[test]
fn parts_are_even() {
    for total in 0..100 {
        for most in 1..15 {
            let parts: Vec<_> = shared::parts(total, most).collect();
            assert_eq!(parts.len(), total.div_ceil(most));
            let mut next = 0;
            for &(start, len) in &parts {
                assert!(start == next && len <= most && len + 1 >= parts[0].1);
                next += len;
            }
            assert_eq!(next, total);
        }
    }
}
