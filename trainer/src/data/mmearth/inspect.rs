//! What is in a release: shares of no data, ranges, means and histograms, a band at a time.

use anyhow::Result;
use rayon::prelude::*;

use super::modality::{Kind, Modality};
use super::release::Release;
use super::statistics::BandStatistics;
use super::values::{Rules, Values, Window, append};
use crate::data::AS_IS;

/// Bins of a histogram.
pub const BINS: usize = 16;
/// Rows read before their figures are added up.
const CHUNK: usize = 256;

/// Figures of one channel, in stored units.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    /// The channel's name.
    pub name: &'static str,
    /// Values that are known.
    pub known: u64,
    /// Values that are missing.
    pub missing: u64,
    /// Smallest known value, infinity if none is known.
    pub min: f64,
    /// Largest known value, minus infinity if none is known.
    pub max: f64,
    /// Mean of the known values, summed in f64, NaN if none is known.
    pub mean: f64,
    /// Known values in bins of equal width from `min` to `max`.
    pub histogram: [u64; BINS],
}

/// Figures of one modality.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The modality.
    pub modality: Modality,
    /// Tiles of which nothing is known.
    pub tiles_without: usize,
    /// A numeric modality's channels.
    pub channels: Vec<Channel>,
    /// A classification's number of pixels or tiles a class.
    pub classes: Vec<u64>,
    /// A classification's pixels or tiles without a class.
    pub unclassified: u64,
}

/// Summaries of `rows` of a release, a modality each.
///
/// # Errors
/// If a row cannot be read.
pub fn summarise(release: &Release, rows: &[usize]) -> Result<Vec<Summary>> {
    release.modalities().into_iter().map(|modality| one(release, rows, modality)).collect()
}

/// Stored values of a tile, NaN or -1 where missing.
pub(super) fn stored(release: &Release, row: usize, modality: Modality) -> Result<Values> {
    let n = modality.channels();
    let identity = BandStatistics { mean: vec![0.0; n], std: vec![1.0; n], min: vec![], max: vec![] };
    let (mut raw, mut out) = (Vec::new(), Values::empty(modality));
    release.read_bytes(modality.name(), row, &mut raw)?;
    let window = Window { top: 0, left: 0, side: release.side(), symmetry: AS_IS };
    let channels: Vec<usize> = (0..n).collect();
    // All stored types fit into f32 exactly.
    append(modality, &raw, release.side(), &channels, window, Some(&identity), Rules::Masked, &mut out);
    Ok(out)
}

/// Calls `add` with the stored values of each row, in the order of the rows; the reading is parallel.
fn for_each_row(release: &Release, rows: &[usize], modality: Modality, mut add: impl FnMut(Values)) -> Result<()> {
    for chunk in rows.chunks(CHUNK) {
        let values: Vec<Values> = chunk.par_iter().map(|&row| stored(release, row, modality)).collect::<Result<_>>()?;
        values.into_iter().for_each(&mut add);
    }
    Ok(())
}

fn one(release: &Release, rows: &[usize], modality: Modality) -> Result<Summary> {
    let count = match modality.kind() {
        Kind::Numbers => 0,
        Kind::PixelClasses { classes } | Kind::OneHot { classes } => classes,
    };
    let channels = if count == 0 { modality.channel_names() } else { &[] };
    let new = |name| Channel {
        name,
        known: 0,
        missing: 0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        mean: 0.0,
        histogram: [0; BINS],
    };
    let mut summary = Summary {
        modality,
        tiles_without: 0,
        channels: channels.iter().copied().map(new).collect(),
        classes: vec![0; count],
        unclassified: 0,
    };
    let plane = if modality.per_pixel() { release.side() * release.side() } else { 1 };
    for_each_row(release, rows, modality, |values| {
        summary.tiles_without += usize::from(!values.any_known(0));
        match values {
            Values::Numbers(values) => {
                for (channel, values) in summary.channels.iter_mut().zip(values.chunks_exact(plane)) {
                    for value in values.iter().filter(|v| !v.is_nan()).map(|v| f64::from(*v)) {
                        channel.known += 1;
                        channel.mean += value;
                        channel.min = channel.min.min(value);
                        channel.max = channel.max.max(value);
                    }
                    channel.missing += values.iter().filter(|v| v.is_nan()).count() as u64;
                }
            }
            Values::Classes(values) => {
                for class in values {
                    match usize::try_from(class) {
                        Ok(class) => summary.classes[class] += 1,
                        Err(_) => summary.unclassified += 1,
                    }
                }
            }
        }
    })?;
    summary.channels.iter_mut().for_each(|c| c.mean /= c.known as f64);
    if summary.channels.iter().any(|c| c.known > 0) {
        for_each_row(release, rows, modality, |values| {
            let Values::Numbers(values) = values else { return };
            for (channel, values) in summary.channels.iter_mut().zip(values.chunks_exact(plane)) {
                let scale = BINS as f64 / (channel.max - channel.min).max(f64::MIN_POSITIVE);
                for value in values.iter().filter(|v| !v.is_nan()) {
                    let bin = ((f64::from(*value) - channel.min) * scale) as usize;
                    channel.histogram[bin.min(BINS - 1)] += 1;
                }
            }
        })?;
    }
    Ok(summary)
}

/// A histogram as a line of blocks, the highest bin full.
pub fn blocks(histogram: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    let height = |&n: &u64| BLOCKS[(n as f64 / most as f64 * 8.0).ceil() as usize];
    histogram.iter().map(height).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_count_is_seen() {
        assert_eq!(super::blocks(&[0, 1, 400, 800]), " ▁▄█");
        assert_eq!(super::blocks(&[0, 0]), "  ");
    }
}
