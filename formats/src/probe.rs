//! Probes: how well the classes of tiles can be read from frozen embeddings.

mod logistic;

use rayon::prelude::*;

pub use logistic::{Logistic, Standardiser, dot, lbfgs, strengths};

use crate::Matrix;

/// The rows of a split: 0 trains, 1 validates, 2 tests, -1 is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Rows of the training split.
    pub train: Vec<usize>,
    /// Rows of the validation split; may be empty.
    pub validation: Vec<usize>,
    /// Rows of the test split.
    pub test: Vec<usize>,
}

impl Split {
    /// Sorts the rows by their code.
    ///
    /// # Errors
    /// On a code other than these, and if nothing trains or tests.
    pub fn new(codes: &[i64]) -> Result<Self, String> {
        let rows = |code| (0..codes.len()).filter(|&i| codes[i] == code).collect::<Vec<_>>();
        if let Some(at) = codes.iter().position(|c| !(-1..=2).contains(c)) {
            return Err(format!(
                "entry {at} is {}, expected 0 (train), 1 (validation), 2 (test) or -1 (not used)",
                codes[at]
            ));
        }
        let split = Self { train: rows(0), validation: rows(1), test: rows(2) };
        match split {
            Self { ref train, .. } if train.is_empty() => Err("no row is 0 (train)".into()),
            Self { ref test, .. } if test.is_empty() => Err("no row is 2 (test)".into()),
            split => Ok(split),
        }
    }
}

/// Hits and misses of a classifier: `counts[truth][prediction]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// One row a true class.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    /// Counts predictions against the truth, all below `classes`.
    pub fn new(classes: usize, truth: impl IntoIterator<Item = usize>, predicted: &[usize]) -> Self {
        let mut counts = vec![vec![0; classes]; classes];
        truth.into_iter().zip(predicted).for_each(|(t, p)| counts[t][*p] += 1);
        Self { counts }
    }

    /// Share of right predictions.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = self.counts.iter().enumerate().map(|(i, row)| row[i]).sum();
        right as f64 / self.counts.iter().flatten().sum::<u64>().max(1) as f64
    }

    /// Macro Jaccard index: the mean, over the classes that are there or were predicted, of hits over all that are there or
    /// were predicted.
    pub fn mean_iou(&self) -> f64 {
        let hits = |i: usize| self.counts[i][i] as f64;
        let union = |i: usize| {
            let (there, said): (u64, u64) = (self.counts[i].iter().sum(), self.counts.iter().map(|row| row[i]).sum());
            (there + said) as f64 - hits(i)
        };
        let each: Vec<f64> = (0..self.counts.len()).filter(|i| union(*i) > 0.0).map(|i| hits(i) / union(i)).collect();
        each.iter().sum::<f64>() / each.len().max(1) as f64
    }

    /// Share of each class's rows that were recognised; `None` for a class without rows.
    pub fn recall(&self) -> Vec<Option<f64>> {
        let recall = |(i, row): (usize, &Vec<u64>)| {
            let all = row.iter().sum::<u64>();
            (all > 0).then(|| row[i] as f64 / all as f64)
        };
        self.counts.iter().enumerate().map(recall).collect()
    }
}

/// The class of each row of `test`, by majority among its `k` nearest rows of `train` in cosine similarity.
///
/// Of classes with equally many votes the one with the nearest neighbour wins. A zero row is similar to none.
pub fn nearest_neighbours(e: &Matrix, labels: &[usize], train: &[usize], test: &[usize], k: usize) -> Vec<usize> {
    neighbours(e, train, test, k).iter().map(|near| vote(near.iter().map(|i| labels[*i]))).collect()
}

/// For each row of `test` its `k` nearest other rows of `train` in cosine similarity (all, if those are fewer), nearest first; of equally
/// near ones the one with the lower number.
pub fn neighbours(e: &Matrix, train: &[usize], test: &[usize], k: usize) -> Vec<Vec<usize>> {
    let unit: Vec<f32> = e.data.par_chunks(e.columns).flat_map_iter(unit_row).collect();
    let row = |i: usize| &unit[i * e.columns..][..e.columns];
    test.par_iter()
        .map(|&t| {
            let dot = |i: usize| row(t).iter().zip(row(i)).map(|(a, b)| a * b).sum::<f32>();
            let mut near: Vec<(f32, usize)> = train.iter().filter(|&&i| i != t).map(|&i| (dot(i), i)).collect();
            let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if k < near.len() {
                near.select_nth_unstable_by(k, order);
                near.truncate(k);
            }
            near.sort_unstable_by(order);
            near.into_iter().map(|(_, i)| i).collect()
        })
        .collect()
}

/// Mean share of a row's neighbours in `exact` that are among those in `found`.
pub fn overlap(exact: &[Vec<usize>], found: &[Vec<usize>]) -> f64 {
    let shared = |(a, b): (&Vec<usize>, &Vec<usize>)| a.iter().filter(|row| b.contains(row)).count();
    let all: usize = exact.iter().map(Vec::len).sum();
    exact.iter().zip(found).map(shared).sum::<usize>() as f64 / all.max(1) as f64
}

/// The most frequent class; of several, the one that comes first. 0 without any.
pub fn vote(nearest_first: impl Iterator<Item = usize>) -> usize {
    let mut votes: Vec<(usize, u32)> = Vec::new();
    for class in nearest_first {
        match votes.iter_mut().find(|(c, _)| *c == class) {
            Some((_, n)) => *n += 1,
            None => votes.push((class, 1)),
        }
    }
    let most = votes.iter().map(|(_, n)| *n).max();
    votes.iter().find(|(_, n)| Some(*n) == most).map_or(0, |(class, _)| *class)
}

/// `row` divided by its Euclidean norm; zeros stay.
pub fn unit_row(row: &[f32]) -> impl Iterator<Item = f32> {
    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
    row.iter().map(move |v| v * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_those_of_a_full_sort() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let (n, d, k) = (120, 6, 7);
        let e = Matrix { rows: n, columns: d, data: (0..n * d).map(|_| random()).collect() };
        let labels: Vec<usize> = (0..n).map(|i| i * i % 4).collect();
        let train: Vec<usize> = (0..n).filter(|i| i % 3 != 0).collect();
        let test: Vec<usize> = (0..n).filter(|i| i % 3 == 0).collect();
        let predicted = nearest_neighbours(&e, &labels, &train, &test, k);
        for (t, p) in test.iter().zip(&predicted) {
            let cosine = |i: usize| {
                let (a, b) = (e.row(*t), e.row(i));
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
            };
            let mut order = train.clone();
            order.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
            let near: Vec<usize> = order[..k].iter().map(|i| labels[*i]).collect();
            let votes = |c: usize| near.iter().filter(|l| **l == c).count();
            let most = (0..4).map(votes).max().unwrap();
            assert_eq!(*p, *near.iter().find(|c| votes(**c) == most).unwrap());
        }
    }

    #[test]
    fn a_row_is_no_neighbour_of_its_own() {
        let e = Matrix { rows: 3, columns: 2, data: vec![1.0, 0.0, 0.9, 0.1, 0.0, 1.0] };
        let near = neighbours(&e, &[0, 1, 2], &[0, 1, 2], 3);
        assert_eq!(near, [[1, 2], [0, 2], [1, 0]]);
        assert_eq!(overlap(&near, &near), 1.0);
        assert_eq!(overlap(&near, &[vec![1], vec![], vec![1, 2]]), 2.0 / 6.0);
        assert_eq!(neighbours(&e, &[1], &[1], 3), [[0usize; 0]]);
    }

    #[test]
    fn ties_go_to_the_nearest() {
        assert_eq!(vote([3, 1, 1, 3, 2].into_iter()), 3);
        assert_eq!(vote([3, 1, 1].into_iter()), 1);
    }

    #[test]
    fn confusion_is_counted() {
        let c = Confusion::new(3, [0, 0, 1, 1], &[0, 1, 1, 1]);
        assert_eq!(c.accuracy(), 0.75);
        assert_eq!(c.recall(), [Some(0.5), Some(1.0), None]);
        assert!(Split::new(&[0, 1, 3]).unwrap_err().contains("entry 2 is 3"));
        assert!(Split::new(&[0, 1]).is_err());
    }
}
