//! Embeddings on a plane: the two principal components, or t-SNE.

use std::collections::HashMap;

use bhtsne::{Neighbor, tSNE};
use nadir_formats::Matrix;

use super::Standardiser;

/// Steps of the power iteration at most.
const STEPS: usize = 2000;
/// The accuracy of t-SNE's approximation: usual.
const THETA: f32 = 0.5;

/// The rows `rows` on their two principal components, each dimension at unit variance before; the component's greatest weight
/// is positive. Accurate to 1e-5 of the first component's spread, unless a component is as wide as the next.
pub fn principal_components(e: &Matrix, rows: &[usize]) -> Vec<[f32; 2]> {
    let (n, d) = (rows.len(), e.columns);
    let x = Standardiser::fit(e, rows).apply(e, rows);
    let mut covariance = vec![0.0; d * d];
    for row in x.chunks_exact(d) {
        for (i, a) in row.iter().enumerate() {
            covariance[i * d..][..d].iter_mut().zip(row).for_each(|(c, b)| *c += a * b / n as f64);
        }
    }
    let first = leading(&covariance, d, &[]);
    let second = leading(&covariance, d, &first);
    let along = |row: &[f64], axis: &[f64]| row.iter().zip(axis).map(|(a, b)| a * b).sum::<f64>() as f32;
    x.chunks_exact(d).map(|row| [along(row, &first), along(row, &second)]).collect()
}

/// The unit vector that a symmetric matrix lengthens most, among those orthogonal to `not`.
fn leading(matrix: &[f64], d: usize, not: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let unit = |mut v: Vec<f64>| {
        let along = dot(&v, not);
        v.iter_mut().zip(not).for_each(|(v, n)| *v -= along * n);
        let norm = dot(&v, &v).sqrt().max(f64::MIN_POSITIVE);
        v.iter_mut().for_each(|v| *v /= norm);
        v
    };
    // No direction of note is orthogonal to a start of uneven weights.
    let mut v = unit((0..d).map(|i| 1.0 + (i as f64 * 0.7).sin() * 0.5).collect());
    for _ in 0..STEPS {
        let next = unit(matrix.chunks_exact(d).map(|row| dot(row, &v)).collect());
        let moved: f64 = next.iter().zip(&v).map(|(a, b)| (a - b).abs()).sum();
        v = next;
        if moved < 1e-12 {
            break;
        }
    }
    let greatest = v.iter().copied().fold(0.0, |m: f64, x| if x.abs() > m.abs() { x } else { m });
    if greatest < 0.0 {
        v.iter_mut().for_each(|x| *x = -*x);
    }
    v
}

/// The rows `rows` by t-SNE (Barnes-Hut, cosine distances), started from the principal components, so that equal
/// embeddings give equal maps. With too few rows for t-SNE's neighbourhoods the principal components themselves.
pub fn neighbourhoods(e: &Matrix, rows: &[usize]) -> Vec<[f32; 2]> {
    let start = principal_components(e, rows);
    let perplexity = 30f32.min((rows.len() as f32 - 1.0) / 3.0 - 1.0);
    if perplexity < 2.0 {
        return start;
    }
    let spread = (start.iter().map(|p| p[0] * p[0]).sum::<f32>() / start.len() as f32).sqrt().max(1e-12);
    let small: Vec<f32> = start.iter().flatten().map(|v| v / spread * 1e-4).collect();
    // The crate's own search for neighbours starts at random.
    let unit: Vec<Vec<f32>> = rows.iter().map(|row| super::unit_row(e.row(*row)).collect()).collect();
    let place: HashMap<usize, usize> = rows.iter().enumerate().map(|(at, row)| (*row, at)).collect();
    let wanted = (3.0 * perplexity) as usize;
    // Of unit rows the Euclidean distance grows with the angle between them.
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
    let near = super::neighbours(e, rows, rows, wanted + 1).into_iter().enumerate().map(|(at, near)| {
        let others = near.iter().map(|row| place[row]).filter(|index| *index != at).take(wanted);
        let mut others: Vec<_> =
            others.map(|index| Neighbor { index, distance: distance(&unit[at], &unit[index]) }).collect();
        others.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.index.cmp(&b.index)));
        others
    });
    let near: Vec<Vec<Neighbor<f32>>> = near.collect();
    let fit = || {
        let mut tsne: tSNE<f32, Vec<f32>> = tSNE::new(&unit);
        tsne.perplexity(perplexity).initial_embedding(small).barnes_hut_with_neighbors(THETA, &near);
        tsne.embedding().chunks_exact(2).map(|p| [p[0], p[1]]).collect()
    };
    // On several threads the order of the crate's sums, and so the map, would be another each time.
    match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(alone) => alone.install(fit),
        Err(_) => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clouds of four dimensions, apart along the first two.
    fn clouds() -> Matrix {
        let wave = |i: usize, a: f32| (i as f32 * a).sin();
        let row = |i: usize| {
            let far = if i.is_multiple_of(2) { 3.0 } else { -3.0 };
            [far + wave(i, 1.3), far + wave(i, 2.1), 1.0 + wave(i, 3.7), 2.0 * wave(i, 0.9)]
        };
        Matrix { rows: 60, columns: 4, data: (0..60).flat_map(row).collect() }
    }

    #[test]
    fn principal_components_carry_the_greatest_variance() {
        let e = clouds();
        let rows: Vec<usize> = (0..60).collect();
        let points = principal_components(&e, &rows);
        let moment = |a: usize, b: usize| points.iter().map(|p| f64::from(p[a] * p[b])).sum::<f64>() / 60.0;
        assert!(moment(0, 1).abs() < 1e-5, "{}", moment(0, 1));
        // numpy: np.linalg.eigvalsh(np.corrcoef(clouds.T))[-2:]
        let expected = [1.951642, 1.002911];
        for (is, should) in [moment(0, 0), moment(1, 1)].into_iter().zip(expected) {
            assert!((is - should).abs() < 1e-4, "{is}, not {should}");
        }
    }

    #[test]
    fn t_sne_keeps_clouds_apart_and_gives_the_same_again() {
        let e = clouds();
        let rows: Vec<usize> = (0..60).collect();
        let points = neighbourhoods(&e, &rows);
        assert_eq!(points, neighbourhoods(&e, &rows));
        let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        for i in 0..60 {
            let others = rows.iter().filter(|j| **j != i);
            let nearest = others
                .min_by(|a, b| distance(points[i], points[**a]).total_cmp(&distance(points[i], points[**b])))
                .unwrap();
            assert_eq!(nearest % 2, i % 2, "tile {i} lies in the other cloud");
        }
        assert_eq!(neighbourhoods(&e, &rows[..5]), principal_components(&e, &rows[..5]));
    }
}
