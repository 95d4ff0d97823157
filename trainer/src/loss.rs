//! The losses of MP-MAE: weighted squared error and cross entropy, with missing values left out.

use candle_core::{Device, Result, Tensor};

use crate::mask::Mask;
use crate::mpmae::{Target, Task, TaskKind};
use crate::ops;

/// Added to the variance of a patch when its target is normalised.
const PATCH_EPS: f64 = 1e-6;

/// A task's target in the order of its prediction.
pub(crate) enum Truth {
    /// The loss is the sum of `weights * (prediction - values)^2`; both shaped like the prediction. It is a mean over
    /// `known` patches or values.
    Values { values: Tensor, weights: Tensor, known: usize },
    /// The loss is the mean cross entropy over the labels that are classes; one label per row of logits.
    Labels { labels: Vec<u32>, classes: usize },
    /// Nothing is known.
    Nothing,
}

/// Stands for a label that is not known: it is none of the classes.
const IGNORED: u32 = u32::MAX;

impl Truth {
    /// Brings `target` into the order of the predictions: for pixel tasks one row per hidden patch, ordered by (row in
    /// the patch, column in the patch, channel).
    pub fn new(task: &Task, target: &Target, mask: &Mask, patch: usize, device: &Device) -> Result<Self> {
        let side = mask.side() * patch;
        let expected: &[usize] = match task.kind {
            TaskKind::PixelRegression { channels, .. } => &[mask.batch(), channels, side, side],
            TaskKind::PixelClassification { .. } => &[mask.batch(), side, side],
            TaskKind::ImageRegression { width } => &[mask.batch(), width],
            TaskKind::ImageClassification { .. } => &[mask.batch()],
            TaskKind::EmbeddingRegression { width } => &[mask.batch(), width, mask.side(), mask.side()],
        };
        let (tensor, values) = match target {
            Target::Values(t) => (t, true),
            Target::Classes(t) => (t, false),
        };
        let regression =
            !matches!(task.kind, TaskKind::PixelClassification { .. } | TaskKind::ImageClassification { .. });
        if tensor.dims() != expected || values != regression {
            let kind = if regression { "values" } else { "classes" };
            candle_core::bail!("task {}: target {:?}, expected {kind} {expected:?}", task.name, tensor.dims());
        }
        let flat = tensor.flatten_all()?;
        match task.kind {
            TaskKind::PixelRegression { channels, normalise_patches } => {
                let flat: Vec<f32> = flat.to_vec1()?;
                let mut rows = gather(&flat, channels, mask, patch);
                let width = patch * patch * channels;
                let (weights, known) = weigh_patches(&mut rows, width, normalise_patches);
                Self::values(rows, weights, known, width, device)
            }
            TaskKind::ImageRegression { width } | TaskKind::EmbeddingRegression { width } => {
                let values: Vec<f32> = flat.to_vec1()?;
                match task.kind {
                    TaskKind::EmbeddingRegression { .. } => {
                        Self::of_values(visible_means(&values, width, mask), width, device)
                    }
                    _ => Self::of_values(values, width, device),
                }
            }
            TaskKind::PixelClassification { classes } => {
                let labels = checked(&flat.to_vec1()?, classes, &task.name)?;
                Ok(Self::labels(gather(&labels, 1, mask, patch), classes))
            }
            TaskKind::ImageClassification { classes } => Self::of_classes(&flat.to_vec1()?, classes, &task.name),
        }
    }

    /// `width` values a tile; NaN is missing.
    pub fn of_values(mut values: Vec<f32>, width: usize, device: &Device) -> Result<Self> {
        let known = values.iter().filter(|v| !v.is_nan()).count();
        let weight = 1.0 / known.max(1) as f32;
        let weights = values.iter().map(|v| if v.is_nan() { 0.0 } else { weight }).collect();
        values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.0);
        Self::values(values, weights, known, width, device)
    }

    /// A class a tile; -1 is missing.
    pub fn of_classes(labels: &[i64], classes: usize, task: &str) -> Result<Self> {
        Ok(Self::labels(checked(labels, classes, task)?, classes))
    }

    fn values(values: Vec<f32>, weights: Vec<f32>, known: usize, width: usize, device: &Device) -> Result<Self> {
        if known == 0 {
            return Ok(Self::Nothing);
        }
        let shape = (values.len() / width, width);
        let (values, weights) = (Tensor::from_vec(values, shape, device)?, Tensor::from_vec(weights, shape, device)?);
        Ok(Self::Values { values, weights, known })
    }

    fn labels(labels: Vec<u32>, classes: usize) -> Self {
        match labels.iter().all(|l| *l == IGNORED) {
            true => Self::Nothing,
            false => Self::Labels { labels, classes },
        }
    }

    /// Over how many patches, values or labels the loss is a mean.
    pub fn known(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Values { known, .. } => *known,
            Self::Labels { labels, .. } => labels.iter().filter(|label| **label != IGNORED).count(),
        }
    }

    /// The scalar loss of the prediction, which is only computed if anything is known.
    pub fn loss(&self, prediction: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Values { values, weights, .. } => Ok(Some(ops::weighted_squares(&prediction()?, values, weights)?)),
            Self::Labels { labels, classes } => {
                let logits = prediction()?.reshape((labels.len(), *classes))?;
                Ok(Some(ops::cross_entropy(&logits, labels)?))
            }
        }
    }
}

/// Labels as indices; -1 becomes [`IGNORED`].
fn checked(labels: &[i64], classes: usize, task: &str) -> Result<Vec<u32>> {
    let check = |label: &i64| match *label {
        -1 => Ok(IGNORED),
        label if (0..classes as i64).contains(&label) => Ok(label as u32),
        label => candle_core::bail!("task {task}: class {label} is not -1 or one of 0 to {}", classes - 1),
    };
    labels.iter().map(check).collect()
}

/// The means over visible patches, `[batch, width]`, of `[batch, width, patches, patches]`.
fn visible_means(maps: &[f32], width: usize, mask: &Mask) -> Vec<f32> {
    let patches = mask.side() * mask.side();
    let mut means = Vec::with_capacity(mask.batch() * width);
    for (at, map) in maps.chunks_exact(patches).enumerate() {
        let visible = mask.visible(at / width);
        means.push(visible.iter().map(|p| map[*p as usize]).sum::<f32>() / visible.len() as f32);
    }
    means
}

/// The pixels of hidden patches from `[batch, channels, side, side]`: patch by patch, row by row, channels fastest.
fn gather<T: Copy>(flat: &[T], channels: usize, mask: &Mask, patch: usize) -> Vec<T> {
    let side = mask.side() * patch;
    let mut rows =
        Vec::with_capacity(mask.batch() * (mask.side() * mask.side() - mask.kept()) * patch * patch * channels);
    for sample in 0..mask.batch() {
        let map = &flat[sample * channels * side * side..][..channels * side * side];
        for hidden in mask.hidden(sample) {
            let (top, left) = (hidden as usize / mask.side() * patch, hidden as usize % mask.side() * patch);
            for y in top..top + patch {
                for x in left..left + patch {
                    rows.extend((0..channels).map(|c| map[(c * side + y) * side + x]));
                }
            }
        }
    }
    rows
}

/// The weights that make a weighted sum of squared errors the mean over patches of the mean over a patch's known
/// values, and the number of patches. Unknown values become 0; with `normalise` each patch's known values get zero mean and unit variance.
fn weigh_patches(rows: &mut [f32], width: usize, normalise: bool) -> (Vec<f32>, usize) {
    let mut weights = vec![0f32; rows.len()];
    let mut patches = 0usize;
    for (row, weights) in rows.chunks_exact_mut(width).zip(weights.chunks_exact_mut(width)) {
        let known = row.iter().filter(|v| !v.is_nan()).count();
        if known > 0 {
            patches += 1;
        }
        if normalise && known > 0 {
            let values = || row.iter().filter(|v| !v.is_nan()).map(|v| f64::from(*v));
            let mean = values().sum::<f64>() / known as f64;
            let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / (known.max(2) - 1) as f64;
            let scale = 1.0 / (variance + PATCH_EPS).sqrt();
            row.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
        }
        for (value, weight) in row.iter_mut().zip(weights) {
            match value.is_nan() {
                true => *value = 0.0,
                false => *weight = 1.0 / known as f32,
            }
        }
    }
    let scale = 1.0 / patches.max(1) as f32;
    weights.iter_mut().for_each(|w| *w *= scale);
    (weights, patches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_visible_patches_are_averaged() {
        let mask = Mask::from_visible(2, &[vec![0, 3], vec![1, 2]]).unwrap();
        let task = Task { name: "features".into(), kind: TaskKind::EmbeddingRegression { width: 2 } };
        let maps: Vec<f32> = (0..16).map(|i| (i * i) as f32).collect();
        let target = |shape: &[usize]| Target::Values(Tensor::from_vec(maps.clone(), shape, &Device::Cpu).unwrap());
        let truth = Truth::new(&task, &target(&[2, 2, 2, 2]), &mask, 8, &Device::Cpu).unwrap();
        assert_eq!(truth.known(), 4);
        // Maps of 4 patches: 0 1 4 9, 16 25 36 49; 64 81 100 121, 144 169 196 225.
        let means = [(0.0 + 9.0) / 2.0, (16.0 + 49.0) / 2.0, (81.0 + 100.0) / 2.0, (169.0 + 196.0) / 2.0];
        let prediction = |by: f32| Tensor::from_vec(means.map(|m| m + by).to_vec(), (2, 2), &Device::Cpu);
        let loss = |by: f32| truth.loss(|| prediction(by)).unwrap().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(loss(0.0), 0.0);
        assert!((loss(3.0) - 9.0).abs() < 1e-5);
        assert!(Truth::new(&task, &target(&[4, 4]), &mask, 8, &Device::Cpu).is_err());
    }
}
