//! What the float64 encoder's maps look like on real tiles: ranges and samples, for every place that gets a scale.

use std::collections::BTreeMap;

use nadir_formats::Tiles;

use crate::reference::{BlockTap, DownsampleTap, Observer, Reference, Tap};

/// Samples kept of all tiles at one place, about, and the fewest of one tile. Too few miss the rare large values that decide a clip.
const SAMPLES: usize = 1 << 20;
const SAMPLES_OF_A_TILE: usize = 4096;

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
}

/// What was seen at all places.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    seen: BTreeMap<Tap, Seen>,
    /// Samples kept of one tile at one place.
    samples: usize,
}

impl Calibration {
    /// Shows `tiles` to the encoder. The result does not depend on the number of threads.
    ///
    /// # Panics
    /// If the tiles do not have the encoder's shape.
    pub fn of(reference: &Reference, tiles: &Tiles) -> Self {
        let samples = (SAMPLES / tiles.len().max(1)).max(SAMPLES_OF_A_TILE);
        let empty = || Self { seen: BTreeMap::new(), samples };
        let mut all = empty();
        for one in reference.observe_all(tiles, 1, empty) {
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
            Tap::Input | Tap::InitialActivation | Tap::Pooled => false,
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
        let positions = values.len() / channels;
        let every = positions.div_ceil((self.samples / channels).max(1));
        for (position, values) in values.chunks_exact(channels).enumerate() {
            for (largest, value) in seen.channel_largest.iter_mut().zip(values) {
                *largest = largest.max(value.abs());
            }
            // Every n-th position, but not always the same columns of a map whose width n divides.
            if sampled && (position + position / every).is_multiple_of(every) {
                seen.samples.extend(values.iter().map(|&v| v as f32));
            }
        }
        seen.largest = seen.channel_largest.iter().fold(0.0, |m, &v| m.max(v));
        self.seen.entry(tap).or_default().merge(seen);
    }
}
