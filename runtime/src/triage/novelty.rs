//! Novelty: how far an embedding lies from what was seen before.

use super::prototypes::{Query, Vectors};

/// Over how many neighbours novelty is averaged when thresholds are set and tiles are judged: the same everywhere, or a
/// threshold would mean something else on the device than where it was set.
pub const NEIGHBOURS: usize = 3;

/// The most neighbours that [`novelty`] averages over.
pub const MAX_NEIGHBOURS: usize = 16;

/// Mean cosine distance, 1 - cosine, from `query` to its `neighbours` nearest vectors in `bank`: 0 (a copy) to 2.
///
/// `neighbours` is taken as at least 1 and at most [`MAX_NEIGHBOURS`] and the size of the bank. `None` if the bank is
/// empty. O(bank x dimension).
pub fn novelty(query: &Query<'_>, bank: Vectors<'_>, neighbours: usize) -> Option<f32> {
    // The largest cosines so far, falling; only the first `held` are set.
    let mut nearest = [f32::NEG_INFINITY; MAX_NEIGHBOURS];
    let wanted = neighbours.clamp(1, MAX_NEIGHBOURS);
    let mut held = 0;
    for cosine in bank.iter().map(|vector| query.cosine(vector)) {
        held = wanted.min(held + 1);
        let mut carried = cosine;
        for slot in nearest.iter_mut().take(held) {
            if carried > *slot {
                core::mem::swap(&mut carried, slot);
            }
        }
    }
    if held == 0 {
        return None;
    }
    let sum: f32 = nearest.iter().take(held).map(|cosine| 1.0 - cosine).sum();
    Some(sum / held as f32)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::triage::test_random::Random;

    #[test]
    fn novelty_matches_a_sorted_float64_reference() {
        let mut random = Random(23);
        for case in 0..if cfg!(miri) { 10 } else { 200 } {
            let (dimension, size) = (1 + random.below(40) as usize, 1 + random.below(30) as usize);
            let bank: Vec<i8> = (0..dimension * size).map(|_| random.below(254) as i8).map(|v| v.max(-127)).collect();
            let bytes: Vec<u8> = bank.iter().map(|v| *v as u8).collect();
            let centre: Vec<f32> = (0..dimension).map(|_| random.signed()).collect();
            let query: Vec<f32> = (0..dimension).map(|_| random.normal()).collect();
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let q: Vec<f64> = query.iter().zip(&centre).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            let mut distances: Vec<f64> = bank
                .chunks(dimension)
                .map(|v| {
                    let v: Vec<f64> = v.iter().map(|v| f64::from(*v)).collect();
                    let dot: f64 = v.iter().zip(&q).map(|(a, b)| a * b).sum();
                    if norm(&v) == 0.0 { 1.0 } else { 1.0 - dot / norm(&v) / norm(&q) }
                })
                .collect();
            distances.sort_by(f64::total_cmp);
            let k = case % 20;
            let held = k.clamp(1, MAX_NEIGHBOURS).min(size);
            let expected = distances[..held].iter().sum::<f64>() / held as f64;
            let centre: Vec<u8> = centre.iter().flat_map(|v| v.to_le_bytes()).collect();
            let found = novelty(&Query::new(&query, &centre).unwrap(), Vectors::new(&bytes, dimension), k).unwrap();
            assert!((f64::from(found) - expected).abs() < 2e-6, "{found} instead of {expected}");
        }
    }

    #[test]
    fn empty_banks_have_no_novelty() {
        let centre = [0; 8];
        let query = Query::new(&[1.0, 2.0], &centre).unwrap();
        assert_eq!(novelty(&query, Vectors::new(&[], 2), 3), None);
        assert_eq!(novelty(&query, Vectors::new(&[1], 2), 3), None);
    }
}
