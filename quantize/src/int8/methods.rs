//! How far the range of an int8 scale reaches: four methods, each over the values seen at one place.
//!
//! Values beyond the range saturate; a wider range makes every step coarser.
//!
//! | method | the range holds |
//! | --- | --- |
//! | min-max | every value seen |
//! | percentile | all but that share of the values, the ones largest in magnitude |
//! | entropy | what loses the least information: Kullback-Leibler divergence of the histogram before and after rounding (S. Migacz, "8-bit inference with TensorRT", GTC 2017) |
//! | mse | what has the least squared error, clipped values counting more ([`nadir_formats::scales::clip`]) |

use nadir_formats::scales::{clip, gelu_clip};

/// A way to set a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// All values seen.
    MinMax,
    /// This share of them, in per cent.
    Percentile(f64),
    /// Least Kullback-Leibler divergence.
    Entropy,
    /// Least squared error.
    MeanSquare,
}

impl Method {
    /// The one that loses least on the worst tiles (`docs/quantization.md`).
    pub const DEFAULT: Self = Self::MinMax;

    /// All of them, [`Self::DEFAULT`] first.
    pub const ALL: [Self; 5] =
        [Self::MinMax, Self::MeanSquare, Self::Percentile(99.9), Self::Percentile(99.99), Self::Entropy];

    /// For people: `percentile 99.9`.
    pub fn name(self) -> String {
        match self {
            Self::MinMax => "minmax".into(),
            Self::Percentile(percent) => format!("percentile {percent}"),
            Self::Entropy => "entropy".into(),
            Self::MeanSquare => "mse".into(),
        }
    }

    /// Scale of symmetric int8 for `samples`.
    pub fn symmetric(self, samples: &[f32]) -> f64 {
        let magnitudes = || samples.iter().map(|v| v.abs());
        let limit = match self {
            Self::MeanSquare => return clip(samples),
            Self::MinMax => magnitudes().fold(0.0, f32::max),
            Self::Percentile(percent) => percentile(magnitudes(), percent),
            Self::Entropy => Histogram::of(magnitudes(), 0.0).range(0..1, 128).1,
        };
        // Nothing but zeros.
        if limit > 0.0 { f64::from(limit) / 127.0 } else { 1.0 / 127.0 }
    }

    /// Scale and zero point of a GELU table's index for `samples`: `real = (index - zero_point) * scale`. Below -6 GELU is 0.
    pub fn index(self, samples: &[f32]) -> (f64, i32) {
        const LOWEST: f32 = -6.0;
        let values = || samples.iter().map(|v| v.max(LOWEST));
        let (low, high) = match self {
            Self::MeanSquare => return gelu_clip(samples),
            Self::MinMax => (values().fold(0.0, f32::min), values().fold(0.0, f32::max)),
            Self::Percentile(percent) => {
                // The share is cut off half at either end.
                let half = (100.0 + percent) / 2.0;
                (-percentile(values().map(|v| -v), half), percentile(values(), half))
            }
            Self::Entropy => {
                let histogram = Histogram::of(values(), LOWEST);
                // Zero stays within the range.
                let zero = histogram.bin(0.0);
                histogram.range(0..zero.max(1), 256)
            }
        };
        let (low, high) = (low.min(-0.5), high.max(0.5));
        let scale = (high - low) / 255.0;
        let zero_point = (-128.0 - low / scale).round().clamp(-128.0, 127.0);
        (f64::from(scale), zero_point as i32)
    }
}

/// The value that `percent` of the values do not exceed; at least 0.
fn percentile(values: impl Iterator<Item = f32>, percent: f64) -> f32 {
    let mut values: Vec<f32> = values.collect();
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = (percent / 100.0 * last as f64).ceil() as usize;
    let (_, value, _) = values.select_nth_unstable_by(at.min(last), f32::total_cmp);
    value.max(0.0)
}

/// Bins of a histogram.
const BINS: usize = 2048;
/// Ranges are tried in steps of this many bins.
const STEP: usize = 32;

/// How often values occurred, in [`BINS`] equal bins from `low` to `high`.
struct Histogram {
    counts: Vec<f64>,
    low: f32,
    high: f32,
}

impl Histogram {
    /// Of values that are at least `lowest`; the first bin begins at the least of them, or at 0 if that is less.
    fn of(values: impl Iterator<Item = f32> + Clone, lowest: f32) -> Self {
        let low = values.clone().fold(0.0f32, f32::min).max(lowest);
        let high = values.clone().fold(low, f32::max);
        let mut histogram = Self { counts: vec![0.0; BINS], low, high };
        values.for_each(|value| {
            let bin = histogram.bin(value);
            histogram.counts[bin] += 1.0;
        });
        histogram
    }

    fn bin(&self, value: f32) -> usize {
        let width = (self.high - self.low).max(f32::MIN_POSITIVE);
        (((value - self.low) / width * BINS as f32) as usize).min(BINS - 1)
    }

    fn edge(&self, bin: usize) -> f32 {
        self.low + (self.high - self.low) * bin as f32 / BINS as f32
    }

    /// The range of bins with the least divergence when its values are rounded to `levels`; it begins in `starts`.
    fn range(&self, starts: std::ops::Range<usize>, levels: usize) -> (f32, f32) {
        let ends = || (levels.max(starts.end)..BINS).step_by(STEP).chain([BINS]);
        let ranges = starts.clone().step_by(STEP).flat_map(|first| ends().map(move |end| (first, end)));
        let found = ranges.map(|(first, end)| (self.divergence(first, end, levels), first, end));
        let (_, first, end) = found.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 0, BINS));
        (self.edge(first), self.edge(end))
    }

    /// Kullback-Leibler divergence of the bins `first..end`, which take up all values beyond them, from the same rounded to
    /// `levels`: the values of a level spread evenly over its bins that are not empty.
    fn divergence(&self, first: usize, end: usize, levels: usize) -> f64 {
        let (kept, total) = (&self.counts[first..end], self.counts.iter().sum::<f64>());
        let mut exact = kept.to_vec();
        exact[0] += self.counts[..first].iter().sum::<f64>();
        exact[end - first - 1] += self.counts[end..].iter().sum::<f64>();
        let inside: f64 = kept.iter().sum();
        let mut divergence = 0.0;
        for level in 0..levels {
            let bins = level * kept.len() / levels..(level + 1) * kept.len() / levels;
            let filled = bins.clone().filter(|&bin| exact[bin] > 0.0).count().max(1) as f64;
            let share = kept[bins.clone()].iter().sum::<f64>() / filled / inside.max(1.0);
            for bin in bins.filter(|&bin| exact[bin] > 0.0) {
                let p = exact[bin] / total;
                // What only saturated values reach has a share of nearly nothing.
                divergence += p * (p / share.max(1e-12)).ln();
            }
        }
        divergence
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Normal values, a few of them far out.
    fn samples() -> Vec<f32> {
        let mut random = Random::new(3);
        let mut values: Vec<f32> = (0..100_000).map(|_| random.normal() as f32).collect();
        values.extend([30.0, -28.0, 25.0]);
        values
    }

    #[test]
    fn ranges_are_those_of_the_values() {
        let samples = samples();
        let limit = |method: Method| method.symmetric(&samples) * 127.0;
        assert_eq!(limit(Method::MinMax), 30.0);
        // Of 100,003 sorted magnitudes.
        let mut sorted: Vec<f32> = samples.iter().map(|v| v.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        for percent in [99.9, 99.99] {
            let expected = f64::from(sorted[(percent / 100.0 * 100_002.0f64).ceil() as usize]);
            assert!((limit(Method::Percentile(percent)) - expected).abs() < 1e-6);
        }
        // Outliers are cut off, the body is kept.
        assert!((3.0..8.0).contains(&limit(Method::Entropy)), "{}", limit(Method::Entropy));
        for method in Method::ALL {
            assert_eq!(method.symmetric(&[0.0; 9]), 1.0 / 127.0, "{}", method.name());
            assert!(method.symmetric(&[]) > 0.0);
        }
    }

    #[test]
    fn indices_reach_from_low_to_high() {
        let samples = samples();
        for method in Method::ALL {
            let (scale, zero_point) = method.index(&samples);
            let real = |index: i32| f64::from(index - zero_point) * scale;
            assert!(real(-128) <= -0.5 + scale && real(127) >= 0.5 - scale, "{}", method.name());
            assert!(real(-128) >= -6.0 - scale && real(127) <= 30.0 + scale, "{}", method.name());
        }
        let (scale, zero_point) = Method::MinMax.index(&samples);
        assert!((f64::from(127 - zero_point) * scale - 30.0).abs() < scale);
        assert!((f64::from(-128 - zero_point) * scale + 6.0).abs() < scale);
        // Nothing seen.
        assert!(Method::ALL.iter().all(|method| method.index(&[]).0 > 0.0));
    }

    /// A uniform distribution loses nothing when it is rounded in whole steps, and much when half of it is cut off.
    #[test]
    fn divergence_is_that_of_the_definition() {
        let histogram = Histogram { counts: vec![1.0; BINS], low: 0.0, high: 1.0 };
        assert!(histogram.divergence(0, BINS, 128).abs() < 1e-9);
        // 1024 bins with 1 of 2048 each, the last 1025; rounded: all 1 of 1024.
        let (p, q) = (1.0 / 2048.0, 1.0 / 1024.0);
        let level = (1.0f64 + 7.0) / 8.0 / 1024.0;
        let last = 1025.0f64 / 2048.0;
        let expected = 1023.0 * p * f64::ln(p / q) + last * f64::ln(last / level);
        assert!((histogram.divergence(0, 1024, 128) - expected).abs() < 1e-9);
    }
}
