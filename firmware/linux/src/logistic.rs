//! The probability of being wanted as a logistic curve of the margin.

/// Fits `p = 1 / (1 + exp((midpoint - margin) / temperature))` by Newton's method; returns `(midpoint, temperature)`.
///
/// The targets are drawn in from 0 and 1 as J. Platt does (Probabilistic outputs for support vector machines, 1999), so that
/// margins which separate the two sides perfectly still give a finite slope. `None` if one side is empty, or if the margin
/// hardly rises with being wanted: a curve that a prototype file cannot hold.
pub(crate) fn fit(margins: &[(f32, bool)]) -> Option<(f32, f32)> {
    let wanted = margins.iter().filter(|(_, w)| *w).count() as f64;
    let others = margins.len() as f64 - wanted;
    if wanted == 0.0 || others == 0.0 {
        return None;
    }
    let (high, low) = ((wanted + 1.0) / (wanted + 2.0), 1.0 / (others + 2.0));
    let target = |is_wanted: bool| if is_wanted { high } else { low };
    let loss = |slope: f64, shift: f64| -> f64 {
        margins
            .iter()
            .map(|(m, w)| {
                let z = slope * f64::from(*m) + shift;
                // log(1 + exp(z)) - t z, without overflow.
                z.max(0.0) + (-z.abs()).exp().ln_1p() - target(*w) * z
            })
            .sum()
    };
    let (mut slope, mut shift) = (0.0, ((wanted + 1.0) / (others + 1.0)).ln());
    for _ in 0..100 {
        let (mut g0, mut g1, mut h00, mut h01, mut h11) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for (m, w) in margins {
            let m = f64::from(*m);
            let p = 1.0 / (1.0 + (-(slope * m + shift)).exp());
            let (g, h) = (p - target(*w), p * (1.0 - p));
            g0 += g * m;
            g1 += g;
            h00 += h * m * m;
            h01 += h * m;
            h11 += h;
        }
        let det = h00 * h11 - h01 * h01;
        let (d0, d1) = ((g0 * h11 - g1 * h01) / det, (g1 * h00 - g0 * h01) / det);
        let before = loss(slope, shift);
        let Some(step) =
            (0..30).map(|i| 0.5f64.powi(i)).find(|s| loss(slope - s * d0, shift - s * d1) <= before - 1e-12)
        else {
            break;
        };
        slope -= step * d0;
        shift -= step * d1;
    }
    let (midpoint, temperature) = (-shift / slope, 1.0 / slope);
    ((1e-3..=100.0).contains(&temperature) && midpoint.abs() <= 100.0).then_some((midpoint as f32, temperature as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmeans::Random;

    /// Margins and answers drawn from a known curve: the curve comes back.
    #[test]
    fn a_known_curve_is_found() {
        let mut state = Random(8);
        let (midpoint, temperature) = (0.12, 0.06);
        let drawn: Vec<_> = (0..20_000)
            .map(|_| {
                let margin = state.unit() - 0.5;
                (margin as f32, state.unit() < 1.0 / (1.0 + ((midpoint - margin) / temperature).exp()))
            })
            .collect();
        let (m, t) = fit(&drawn).unwrap();
        assert!((f64::from(m) - midpoint).abs() < 0.005 && (f64::from(t) - temperature).abs() < 0.003, "{m} {t}");
    }

    #[test]
    fn hopeless_and_perfect_margins() {
        let perfect: Vec<_> = (0..100).map(|i| (if i < 50 { -0.5 } else { 0.5 }, i >= 50)).collect();
        let (m, t) = fit(&perfect).unwrap();
        assert!(m.abs() < 1e-3 && t > 0.01 && t < 0.5, "{m} {t}");
        let reversed: Vec<_> = perfect.iter().map(|(m, w)| (-m, *w)).collect();
        assert_eq!(fit(&reversed), None);
        assert_eq!(fit(&[(0.5, true)]), None);
        assert_eq!(fit(&[]), None);
    }
}
