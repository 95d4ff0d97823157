//! One layer in integers.

use nadir::kernels::int8::LOW_BITS;
use nadir::model::int8_layout::MAX_RAISED_SHIFT;
use nadir_formats::scales::{BIAS_MAX, Ends, RowScales};

use super::hessian::Inputs;
use super::rounding::round_rows;
use super::scale::to_i32;

/// How the weights of dense layers are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest integer.
    Nearest,
    /// Together, so that the errors of one take back those of another (`rounding`).
    Gptq,
}

/// What is done about the errors of rounded weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// How dense layers are rounded.
    pub rounding: Rounding,
    /// Whether their biases take up the mean of the error that is left.
    pub bias: bool,
}

impl Default for Correction {
    fn default() -> Self {
        Self { rounding: Rounding::Gptq, bias: true }
    }
}

/// A matrix product or convolution, quantized: `value = round((acc >> shift) * multiplier / 2^15)`.
pub struct Layer {
    /// `[outputs, columns]`.
    pub weight: Vec<i8>,
    /// With half a unit of the shifted accumulator, which rounds down.
    pub bias: Vec<i32>,
    pub multiplier: Vec<i16>,
    pub shift: i32,
}

impl Layer {
    /// `weight` is `[outputs, columns]`, already folded.
    ///
    /// With `inputs` the errors of the weights are corrected as `correction` says; without, weights get the nearest integers.
    pub fn new(
        weight: &[f64],
        columns: usize,
        bias: &[f64],
        ends: &Ends,
        inputs: Option<&Inputs>,
        correction: Correction,
    ) -> Self {
        let RowScales { scale, multiplier, shift } = RowScales::of(weight, columns, bias, ends);
        let half = if shift > 0 { 2f64.powi(shift - 1) } else { 0.0 };
        let rounded = match inputs {
            Some(inputs) if correction.rounding == Rounding::Gptq => {
                round_rows(weight, columns, &scale, &inputs.hessian)
            }
            _ => quantize_rows(weight, columns, &scale),
        };
        let mut bias = bias.to_vec();
        if let Some(inputs) = inputs.filter(|_| correction.bias) {
            let rows = weight.chunks_exact(columns).zip(rounded.chunks_exact(columns)).zip(&scale);
            for (bias, ((exact, rounded), scale)) in bias.iter_mut().zip(rows) {
                let found = dot(rounded.iter().map(|&w| f64::from(w)), &inputs.mean) * scale;
                *bias += dot(exact.iter().copied(), &inputs.exact_mean) - found;
            }
        }
        let stored = |(b, s): (&f64, &f64)| to_i32((b / (s * ends.input)).clamp(-BIAS_MAX, BIAS_MAX) + half);
        Self {
            bias: bias.iter().zip(&scale).map(stored).collect(),
            weight: rounded,
            multiplier: multiplier.iter().map(|&m| m as i16).collect(),
            shift,
        }
    }

    /// The layer for inputs of 14 bits, whose upper 8 it was made for: the bias counts in both products, in that with the lower bits for a 64th,
    /// and holds a half for each of the two that are rounded. Nothing if its shift leaves no room for those bits.
    pub fn raised(mut self) -> Option<Self> {
        if self.shift > MAX_RAISED_SHIFT {
            return None;
        }
        let (half, parts) = (2f64.powi(self.shift - 1), 2f64.powi(LOW_BITS as i32));
        self.bias.iter_mut().for_each(|b| *b = to_i32((f64::from(*b) + half) * parts / (parts + 1.0)));
        Some(self)
    }

    /// Bias and multiplier of whole panels, or of `stored` channels.
    pub fn padded(&self, len: usize) -> (Vec<i32>, Vec<i16>) {
        let (mut bias, mut multiplier) = (self.bias.clone(), self.multiplier.clone());
        bias.resize(len, 0);
        multiplier.resize(len, 0);
        (bias, multiplier)
    }
}

fn dot(a: impl Iterator<Item = f64>, b: &[f64]) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

/// Weights in units of each row's scale, -127..=127.
fn quantize_rows(weight: &[f64], columns: usize, scale: &[f64]) -> Vec<i8> {
    let rows = weight.chunks_exact(columns).zip(scale);
    rows.flat_map(|(row, scale)| row.iter().map(move |w| (w / scale).round().clamp(-127.0, 127.0) as i8)).collect()
}
