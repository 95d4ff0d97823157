//! What the float64 encoder's maps look like on real tiles: ranges and samples, for every place that gets a scale.

use std::collections::BTreeMap;

use nadir_formats::Tiles;
use nadir_formats::scales::Sampling;
use rayon::prelude::*;

use crate::reference::{BlockTap, DownsampleTap, Observer, Reference, Tap};

/// What was seen at one place.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Values of a position.
    pub channels: usize,
    /// Largest magnitude.
    pub largest: f64,
    /// Largest magnitude of each channel.
    pub channel_largest: Vec<f64>,
    /// Values of some positions, `[positions, channels]`.
    pub samples: Vec<f32>,
    /// Inputs of the convolution that reads this place, `[positions, taps, channels]`, for the dense ones with more than one tap.
    pub patches: Vec<f32>,
}

/// What was seen at all places.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    seen: BTreeMap<Tap, Seen>,
    /// What is kept of each tile.
    sampling: Sampling,
    /// Kernel, stride and padding of the convolution that reads the tile.
    first: [usize; 3],
}

impl Calibration {
    /// Shows `tiles` to the encoder; `done` is called after each, from any thread. The result does not depend on the number of threads.
    ///
    /// # Panics
    /// If the tiles do not have the encoder's shape.
    pub fn of(reference: &Reference, tiles: &Tiles, done: &(dyn Fn() + Sync)) -> Self {
        let sampling = Sampling::of(tiles.len());
        let arch = reference.architecture();
        let first = match arch.is_patchify() {
            true => [arch.stem_stride(), arch.stem_stride(), 0],
            false => [3, 1, arch.initial_padding()],
        };
        let empty = || Self { seen: BTreeMap::new(), sampling, first };
        let mut all = empty();
        let of_tile = |tile: usize| {
            let mut one = empty();
            reference.embed(tiles.tile(tile), &mut one);
            done();
            one
        };
        for one in (0..tiles.len()).into_par_iter().map(of_tile).collect::<Vec<_>>() {
            for (tap, seen) in one.seen {
                all.seen.entry(tap).or_default().merge(seen);
            }
        }
        all
    }

    /// What was seen at `tap`.
    ///
    /// # Panics
    /// If the place was not looked at.
    pub fn at(&self, tap: Tap) -> &Seen {
        &self.seen[&tap]
    }
}

impl Seen {
    fn merge(&mut self, other: Self) {
        self.channels = other.channels;
        self.largest = self.largest.max(other.largest);
        self.channel_largest.resize(other.channels, 0.0);
        self.channel_largest.iter_mut().zip(&other.channel_largest).for_each(|(a, b)| *a = a.max(*b));
        self.samples.extend(other.samples);
        self.patches.extend(other.patches);
    }
}

impl Observer for Calibration {
    fn wants(&self, tap: Tap) -> bool {
        match tap {
            Tap::InitialConvolution | Tap::StemConvolution | Tap::StemNorm | Tap::Embedding => true,
            Tap::Downsample { .. } => true,
            Tap::Block { part, .. } => matches!(
                part,
                BlockTap::Depthwise
                    | BlockTap::Normalised
                    | BlockTap::Hidden
                    | BlockTap::GrnNorm
                    | BlockTap::GrnOutput
                    | BlockTap::Pointwise2
                    | BlockTap::Output
            ),
            Tap::Input => true,
            Tap::InitialActivation | Tap::Pooled => false,
        }
    }

    fn observe(&mut self, tap: Tap, channels: usize, values: &[f64]) {
        let mut seen = Seen { channels, channel_largest: vec![0.0; channels], ..Seen::default() };
        let sampled = matches!(
            tap,
            Tap::InitialConvolution
                | Tap::Downsample { part: DownsampleTap::Normalised, .. }
                | Tap::Block { part: BlockTap::Normalised | BlockTap::Hidden | BlockTap::GrnOutput, .. }
        );
        for values in values.chunks_exact(channels) {
            for (largest, value) in seen.channel_largest.iter_mut().zip(values) {
                *largest = largest.max(value.abs());
            }
        }
        if sampled {
            let is_input = matches!(tap, Tap::Block { part: BlockTap::Normalised | BlockTap::GrnOutput, .. });
            for position in self.sampling.positions(values.len() / channels, channels, is_input) {
                seen.samples.extend(values[position * channels..][..channels].iter().map(|&v| v as f32));
            }
        }
        match tap {
            Tap::Input => {
                let [kernel, stride, padding] = self.first;
                seen.patches = patches(values, channels, kernel, stride, padding, self.sampling.rows);
            }
            Tap::Downsample { part: DownsampleTap::Normalised, .. } => {
                seen.patches = patches(values, channels, 2, 2, 0, self.sampling.rows);
            }
            _ => {}
        }
        seen.largest = seen.channel_largest.iter().fold(0.0, |m, &v| m.max(v));
        self.seen.entry(tap).or_default().merge(seen);
    }
}

/// What a convolution reads at about `rows` of its positions, evenly spread, of a square map `[positions, channels]`: `[positions, taps,
/// channels]`.
fn patches(map: &[f64], channels: usize, kernel: usize, stride: usize, padding: usize, rows: usize) -> Vec<f32> {
    let side = (map.len() / channels).isqrt();
    let outputs = (side + 2 * padding - kernel) / stride + 1;
    let rows = rows.min(outputs * outputs);
    let mut result = Vec::with_capacity(rows * kernel * kernel * channels);
    for row in 0..rows {
        let position = row * outputs * outputs / rows;
        let (y, x) = (position / outputs * stride, position % outputs * stride);
        for tap in 0..kernel * kernel {
            let (y, x) = (y + tap / kernel, x + tap % kernel);
            let inside = |v: usize| (padding..padding + side).contains(&v);
            if inside(y) && inside(x) {
                let position = (y - padding) * side + x - padding;
                result.extend(map[position * channels..][..channels].iter().map(|&v| v as f32));
            } else {
                result.extend(std::iter::repeat_n(0.0, channels));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_what_a_convolution_reads() {
        // A map of 3x3 positions and 2 channels: 0 1 | 2 3 | 4 5, 6 7 | ...
        let map: Vec<f64> = (0..18).map(f64::from).collect();
        assert_eq!(patches(&map, 2, 2, 2, 0, 99), [0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        let all = patches(&map, 2, 3, 1, 1, 99);
        assert_eq!(all.len(), 9 * 18);
        assert_eq!(all[..8], [0.0; 8]);
        assert_eq!(all[8..12], [0.0, 1.0, 2.0, 3.0]);
        // The centre reads the map itself.
        assert_eq!(all[4 * 18..5 * 18], map.iter().map(|&v| v as f32).collect::<Vec<_>>());
        assert_eq!(patches(&map, 2, 3, 1, 1, 3), [&all[..18], &all[3 * 18..4 * 18], &all[6 * 18..7 * 18]].concat());
    }
}
