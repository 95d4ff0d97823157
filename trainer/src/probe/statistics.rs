//! The floor that embeddings must beat: plain statistics of each band.

use nadir_formats::{BandCard, Matrix, Tiles};
use rayon::prelude::*;

use super::Standardiser;

/// Statistics a band: mean, standard deviation, least, greatest, and the 10th, 50th and 90th percentile (numpy's linear
/// interpolation).
pub const EACH: usize = 7;

/// The statistics of the stored values of every band, `[tiles, bands * 7]`, without no-data and non-finite pixels; 0 for a band
/// that has no others. Each column is then standardised over the tiles `rows`.
pub fn band_statistics(tiles: &Tiles, bands: &[BandCard], rows: &[usize]) -> Matrix {
    let plane = tiles.tile_len() / bands.len();
    let of_tile = |index: usize| -> Vec<f32> {
        let tile = tiles.tile(index);
        let of_band = |(band, card): (usize, &BandCard)| {
            let values = (band * plane..(band + 1) * plane).filter_map(|at| tile.value(at));
            let mut known: Vec<f32> = values.filter(|v| v.is_finite() && Some(*v) != card.no_data).collect();
            statistics(&mut known)
        };
        bands.iter().enumerate().flat_map(of_band).collect()
    };
    let data = (0..tiles.len()).into_par_iter().flat_map_iter(of_tile).collect();
    let raw = Matrix { rows: tiles.len(), columns: bands.len() * EACH, data };
    let all: Vec<usize> = (0..raw.rows).collect();
    let data = Standardiser::fit(&raw, rows).apply(&raw, &all).into_iter().map(|v| v as f32).collect();
    Matrix { data, ..raw }
}

fn statistics(values: &mut [f32]) -> [f32; EACH] {
    let Some(last) = values.len().checked_sub(1) else { return [0.0; EACH] };
    values.sort_unstable_by(f32::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let std = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let percentile = |share: f64| {
        let at = share * last as f64;
        let (low, high) = (f64::from(values[at as usize]), f64::from(values[(at as usize + 1).min(last)]));
        (low + (high - low) * at.fract()) as f32
    };
    [mean as f32, std as f32, values[0], values[last], percentile(0.1), percentile(0.5), percentile(0.9)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_numpys() {
        // numpy: v = [7, 1, 4, 9, 2, 2]; v.mean(), v.std(), v.min(), v.max(), np.percentile(v, [10, 50, 90])
        let expected = [4.166_666_5, 2.910_708_2, 1.0, 9.0, 1.5, 3.0, 8.0];
        let is = statistics(&mut [7.0, 1.0, 4.0, 9.0, 2.0, 2.0]);
        is.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{is:?}"));
        assert_eq!(statistics(&mut []), [0.0; EACH]);
    }
}
