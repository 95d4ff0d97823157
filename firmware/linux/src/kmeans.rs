//! Spherical k-means: the prototypes of a class.
//!
//! I. S. Dhillon and D. S. Modha, Concept decompositions for large sparse text data using clustering, Machine Learning 42, 2001;
//! seeded as k-means++ does (D. Arthur and S. Vassilvitskii, SODA 2007).

/// A small generator (SplitMix64), the same on every machine.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The most rounds; the assignment usually settles in about ten.
const ROUNDS: usize = 50;

/// At most `k` unit vectors that stand for the unit vectors `points`; fewer if there are fewer different points.
pub(crate) fn spherical_kmeans(points: &[Vec<f32>], k: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut centres = seeds(points, k, random);
    let mut assignment = vec![usize::MAX; points.len()];
    for _ in 0..ROUNDS {
        let nearest: Vec<usize> = points.iter().map(|p| nearest(p, &centres).0).collect();
        if nearest == assignment {
            break;
        }
        assignment = nearest;
        for (index, centre) in centres.iter_mut().enumerate() {
            let mut sum = vec![0f32; centre.len()];
            for (point, _) in points.iter().zip(&assignment).filter(|(_, a)| **a == index) {
                sum.iter_mut().zip(point).for_each(|(s, p)| *s += p);
            }
            // An empty cluster, or one whose points cancel, keeps its centre.
            if let Some(unit) = normalised(&sum) {
                *centre = unit;
            }
        }
    }
    centres
}

/// The vector of length 1 in the direction of `v`; `None` if `v` is zero or not finite.
pub(crate) fn normalised(v: &[f32]) -> Option<Vec<f32>> {
    let norm = v.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    (norm > 0.0 && norm.is_finite()).then(|| v.iter().map(|x| (f64::from(*x) / norm) as f32).collect())
}

fn seeds(points: &[Vec<f32>], k: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut centres: Vec<Vec<f32>> = Vec::new();
    while centres.len() < k {
        // The first evenly, each further one in proportion to its squared distance, 2 - 2 cosine.
        let weights: Vec<f64> = points
            .iter()
            .map(|p| if centres.is_empty() { 1.0 } else { f64::from(1.0 - nearest(p, &centres).1).max(0.0) })
            .map(|w| if w < 1e-6 { 0.0 } else { w })
            .collect();
        let total: f64 = weights.iter().sum();
        if total == 0.0 {
            break;
        }
        let mut left = random.unit() * total;
        let mut chosen = None;
        for (point, weight) in points.iter().zip(&weights).filter(|(_, w)| **w > 0.0) {
            chosen = Some(point);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        match chosen {
            Some(point) => centres.push(point.clone()),
            None => break,
        }
    }
    centres
}

/// Index of the centre of largest cosine to `point`, the first of equal ones, and that cosine.
fn nearest(point: &[f32], centres: &[Vec<f32>]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, centre) in centres.iter().enumerate() {
        let cosine = point.iter().zip(centre).map(|(a, b)| a * b).sum();
        if cosine > best.1 {
            best = (index, cosine);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_found() {
        let mut random = Random(4);
        let directions = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]];
        let points: Vec<Vec<f32>> = (0..90)
            .map(|i| {
                let noisy: Vec<f32> =
                    directions[i % 3].iter().map(|d| d + 0.2 * (random.unit() as f32 - 0.5)).collect();
                normalised(&noisy).unwrap()
            })
            .collect();
        let centres = spherical_kmeans(&points, 3, &mut random);
        assert_eq!(centres.len(), 3);
        for direction in directions {
            assert!(nearest(&direction, &centres).1 > 0.99);
        }
        assert_eq!(spherical_kmeans(&points, 3, &mut Random(1)), spherical_kmeans(&points, 3, &mut Random(1)));
    }

    #[test]
    fn no_more_centres_than_points() {
        let points = vec![vec![1.0, 0.0], vec![1.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(spherical_kmeans(&points, 8, &mut Random(1)).len(), 2);
        assert!(spherical_kmeans(&[], 8, &mut Random(1)).is_empty());
        assert_eq!(normalised(&[0.0, 0.0]), None);
        assert_eq!(normalised(&[f32::NAN, 0.0]), None);
    }
}
