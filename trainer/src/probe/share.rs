//! Few labels: a share of the training rows.

use rand::seq::SliceRandom;

use crate::data::{Labels, Stream, generator};

/// `share` (above 0, at most 1) of the rows `train`, drawn by `seed`, in ascending order.
///
/// Classes are drawn from one by one, each in proportion, to the nearest row and at least one; other labels are drawn from as
/// a whole. A smaller share of the same seed is part of a larger one.
pub fn share_of_labels(labels: &Labels, train: &[usize], share: f64, seed: u64) -> Vec<usize> {
    if share >= 1.0 {
        return train.to_vec();
    }
    let groups: Vec<Vec<usize>> = match labels {
        Labels::Classes { names, of } => {
            (0..names.len()).map(|class| train.iter().copied().filter(|i| of[*i] == class).collect()).collect()
        }
        _ => vec![train.to_vec()],
    };
    let mut rows = Vec::new();
    for (at, mut group) in groups.into_iter().enumerate() {
        group.shuffle(&mut generator(seed, Stream::Labels, at as u64));
        let wanted = (group.len() as f64 * share).round().max(1.0) as usize;
        rows.extend(group.into_iter().take(wanted));
    }
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_gives_its_share() {
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let labels = Labels::Classes { names, of: (0..120).map(|i| if i < 100 { 0 } else { 1 + i % 2 }).collect() };
        let train: Vec<usize> = (0..118).collect();
        let few = share_of_labels(&labels, &train, 0.1, 3);
        let Labels::Classes { of, .. } = &labels else { unreachable!() };
        assert_eq!([0, 1, 2].map(|c| few.iter().filter(|i| of[**i] == c).count()), [10, 1, 1]);
        assert!(few.is_sorted() && few.iter().all(|i| train.contains(i)));
        let more = share_of_labels(&labels, &train, 0.5, 3);
        assert!(few.iter().all(|i| more.contains(i)) && more.len() == 60);
        assert_ne!(few, share_of_labels(&labels, &train, 0.1, 4));
        assert_eq!(share_of_labels(&labels, &train, 1.0, 3), train);
        assert_eq!(share_of_labels(&labels, &train, 0.001, 3).len(), 3);
    }
}
