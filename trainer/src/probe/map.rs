//! Embeddings on a plane: the two principal components, or t-SNE.

use std::collections::HashMap;

use bhtsne::{Neighbor, tSNE};
use nadir_formats::Matrix;
use nalgebra::{DMatrix, SymmetricEigen};

use nadir_formats::probe::{Standardiser, neighbours};

/// The accuracy of t-SNE's approximation: usual.
const THETA: f32 = 0.5;

/// The rows `rows` on their two principal components, each dimension at unit variance before; the component's greatest weight
/// is positive.
pub fn principal_components(e: &Matrix, rows: &[usize]) -> Vec<[f32; 2]> {
    let (n, d) = (rows.len(), e.columns);
    let x = Standardiser::fit(e, rows).apply(e, rows);
    let x = DMatrix::from_row_slice(n, d, &x);
    let eigen = SymmetricEigen::new(x.tr_mul(&x) / n.max(1) as f64);
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let along = |k: usize| {
        let Some(at) = order.get(k) else { return vec![0.0; n] };
        let axis = eigen.eigenvectors.column(*at);
        let sign = if axis[axis.iamax()] < 0.0 { -1.0 } else { 1.0 };
        (&x * axis).iter().map(|v| (sign * v) as f32).collect()
    };
    along(0).into_iter().zip(along(1)).map(|(a, b)| [a, b]).collect()
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
    let unit: Vec<Vec<f32>> = rows.iter().map(|row| nadir_formats::probe::unit_row(e.row(*row)).collect()).collect();
    let place: HashMap<usize, usize> = rows.iter().enumerate().map(|(at, row)| (*row, at)).collect();
    let wanted = (3.0 * perplexity) as usize;
    // Of unit rows the Euclidean distance grows with the angle between them.
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>().sqrt();
    let near = neighbours(e, rows, rows, wanted).into_iter().enumerate().map(|(at, near)| {
        let others = near.iter().map(|row| place[row]);
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
