//! What a probe is judged by; each over the whole test split, never as a mean over batches.

/// Micro F1 over `[tiles, classes]` decisions: `2 TP / (2 TP + FP + FN)`; 0 where nothing is true or predicted.
pub fn micro_f1(truth: &[bool], predicted: &[bool]) -> f64 {
    let count = |t: bool, p: bool| truth.iter().zip(predicted).filter(|pair| *pair == (&t, &p)).count() as f64;
    let (hits, false_alarms, misses) = (count(true, true), count(false, true), count(true, false));
    if hits + false_alarms + misses == 0.0 { 0.0 } else { 2.0 * hits / (2.0 * hits + false_alarms + misses) }
}

/// Micro average precision: all `[tiles, classes]` scores in one list, the sum over its distinct scores, from the highest,
/// of precision times gain in recall (no interpolation, as scikit-learn's `average_precision_score`); 0 where nothing is true.
pub fn micro_average_precision(truth: &[bool], scores: &[f64]) -> f64 {
    let all = truth.iter().filter(|t| **t).count();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (mut hits, mut seen, mut sum) = (0, 0, 0.0);
    for equal in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let more = equal.iter().filter(|i| truth[**i]).count();
        hits += more;
        seen += equal.len();
        sum += more as f64 / all.max(1) as f64 * hits as f64 / seen as f64;
    }
    sum
}

/// Root mean squared error and coefficient of determination of `predicted` against `truth`; entries that are NaN in `truth`
/// are left out. R2 is against the mean of the truth, and 0 where that does not vary.
pub fn regression(truth: &[f32], predicted: &[f32]) -> (f64, f64) {
    let pairs =
        || truth.iter().zip(predicted).filter(|(t, _)| !t.is_nan()).map(|(t, p)| (f64::from(*t), f64::from(*p)));
    let n = pairs().count().max(1) as f64;
    let mean = pairs().map(|(t, _)| t).sum::<f64>() / n;
    let squares = pairs().map(|(t, p)| (t - p).powi(2)).sum::<f64>();
    let spread = pairs().map(|(t, _)| (t - mean).powi(2)).sum::<f64>();
    ((squares / n).sqrt(), if spread > 0.0 { 1.0 - squares / spread } else { 0.0 })
}

/// Mean and sample standard deviation (n - 1); a single value has none.
pub fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}
