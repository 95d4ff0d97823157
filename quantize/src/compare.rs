//! How far embeddings are from those of the float encoder.

use serde_json::{Value, json};

/// Agreement of two sets of embeddings, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Cosine of each pair of rows.
    pub cosines: Vec<f64>,
    /// Relative L2 error over everything: `|found - expected| / |expected|`.
    pub relative_error: f64,
    /// Energy of the expected embeddings over energy of the difference, in decibels; infinite if they are equal.
    pub signal_to_noise_db: f64,
}

impl Agreement {
    /// Compares `found` with `expected`; rows are paired in order.
    pub fn of(found: &[Vec<f64>], expected: &[Vec<f64>]) -> Self {
        let (mut signal, mut noise) = (0.0, 0.0);
        let mut cosines = Vec::with_capacity(expected.len());
        for (f, e) in found.iter().zip(expected) {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let norms = (dot(f, f) * dot(e, e)).sqrt();
            cosines.push(if norms > 0.0 { dot(f, e) / norms } else { 0.0 });
            signal += dot(e, e);
            noise += f.iter().zip(e).map(|(f, e)| (f - e) * (f - e)).sum::<f64>();
        }
        let ratio = noise / signal;
        Self { cosines, relative_error: ratio.sqrt(), signal_to_noise_db: -10.0 * ratio.log10() }
    }

    /// Mean cosine.
    pub fn mean(&self) -> f64 {
        self.cosines.iter().sum::<f64>() / self.cosines.len().max(1) as f64
    }

    /// The cosine below which `percent` of the tiles lie; 0 gives the least.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.cosines.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (percent / 100.0 * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The tile with the least cosine.
    pub fn worst(&self) -> usize {
        (0..self.cosines.len()).min_by(|&a, &b| self.cosines[a].total_cmp(&self.cosines[b])).unwrap_or(0)
    }

    /// As JSON; an infinite signal-to-noise ratio is null.
    pub fn json(&self) -> Value {
        json!({
            "tiles": self.cosines.len(),
            "cosine_mean": self.mean(),
            "cosine_min": self.percentile(0.0),
            "cosine_p1": self.percentile(1.0),
            "cosine_p5": self.percentile(5.0),
            "cosine_p50": self.percentile(50.0),
            "worst_tile": self.worst(),
            "relative_error": self.relative_error,
            "signal_to_noise_db": self.signal_to_noise_db,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_is_measured() {
        let expected = vec![vec![3.0, 4.0], vec![1.0, 0.0], vec![0.0, 2.0]];
        let same = Agreement::of(&expected, &expected);
        assert_eq!((same.mean(), same.relative_error, same.signal_to_noise_db), (1.0, 0.0, f64::INFINITY));
        let found = vec![vec![3.0, 4.0], vec![0.0, 1.0], vec![0.0, 1.0]];
        let other = Agreement::of(&found, &expected);
        assert_eq!(other.cosines, [1.0, 0.0, 1.0]);
        assert_eq!((other.worst(), other.percentile(0.0), other.percentile(100.0)), (1, 0.0, 1.0));
        // Energies: 25 + 1 + 4 expected, 0 + 2 + 1 differ.
        assert!((other.relative_error - 0.1f64.sqrt()).abs() < 1e-12);
        assert!((other.signal_to_noise_db - 10.0).abs() < 1e-9);
    }
}
