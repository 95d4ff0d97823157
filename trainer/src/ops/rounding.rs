//! Activations rounded where the integer engine rounds them to eight bits, in training with its arithmetic in view.
//!
//! The backward pass takes rounding for the identity within the range and for a constant outside (the straight-through
//! estimator of Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013, with the cut of Hubara et
//! al., "Quantized Neural Networks", 2018). What the engine keeps in 10 bits and more is not rounded.

use std::borrow::Cow;

/// Adding and taking away this rounds an f32 below 2^22 to the nearest integer, ties to even.
const WHOLE: f32 = 1.5 * (1 << 23) as f32;

/// The values that integers stand for, by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// The step of each channel, above 0.
    pub sizes: Vec<f32>,
    /// The lowest and the highest integer, below 2^22 in magnitude.
    pub range: [f32; 2],
}

impl Steps {
    /// Symmetric int8 with one step for each channel.
    pub fn int8(sizes: Vec<f32>) -> Self {
        Self { sizes, range: [-128.0, 127.0] }
    }

    /// The index of a GELU table: `(index - zero_point) * size` for all indices of eight bits.
    pub fn index(size: f32, zero_point: i32, channels: usize) -> Self {
        Self { sizes: vec![size; channels], range: [(-128 - zero_point) as f32, (127 - zero_point) as f32] }
    }

    /// Rounds `[rows, channels]` to the nearest of the values.
    pub fn round(&self, values: &mut [f32]) {
        let ([low, high], reciprocals) = (self.range, self.reciprocals());
        for row in values.chunks_exact_mut(self.sizes.len()) {
            for ((value, size), reciprocal) in row.iter_mut().zip(&self.sizes).zip(&reciprocals) {
                *value = (((*value * reciprocal).clamp(low, high) + WHOLE) - WHOLE) * size;
            }
        }
    }

    /// Makes a gradient `[rows, channels]` zero where the value before rounding was out of range.
    pub fn cut(&self, gradient: &mut [f32], values: &[f32]) {
        let ([low, high], reciprocals) = ([self.range[0] - 0.5, self.range[1] + 0.5], self.reciprocals());
        let c = self.sizes.len();
        for (gradient, values) in gradient.chunks_exact_mut(c).zip(values.chunks_exact(c)) {
            for ((gradient, value), reciprocal) in gradient.iter_mut().zip(values).zip(&reciprocals) {
                let whole = value * reciprocal;
                *gradient = if low <= whole && whole <= high { *gradient } else { 0.0 };
            }
        }
    }

    fn reciprocals(&self) -> Vec<f32> {
        self.sizes.iter().map(|size| 1.0 / size).collect()
    }
}

/// The values rounded, or as they are.
pub(super) fn rounded<'a>(steps: Option<&Steps>, values: &'a [f32]) -> Cow<'a, [f32]> {
    match steps {
        None => Cow::Borrowed(values),
        Some(steps) => {
            let mut values = values.to_vec();
            steps.round(&mut values);
            Cow::Owned(values)
        }
    }
}

/// Where a block rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRounding {
    /// What LayerNorm gives before its weight and bias, `d` channels. The gradients of that weight and bias are those of the exact rows: they
    /// are to be folded into the layer that follows, and 1 and 0 here.
    pub normalised: Steps,
    /// What enters GELU, `4d` channels.
    pub hidden: Steps,
    /// What enters the second pointwise layer, `4d` channels.
    pub projected: Steps,
}

/// Where an encoder rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounding {
    /// What enters the stem's GELU, if it has one: a patchify stem has none.
    pub stem: Option<Steps>,
    /// What the LayerNorm of each downsampling gives before its weight and bias.
    pub downsamples: Vec<Steps>,
    /// The blocks of each stage.
    pub blocks: Vec<Vec<BlockRounding>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_pass_where_a_value_rounds_into_the_range() {
        // From 0 to 255, and from -255 to 0.
        for (zero_point, inside, outside) in [(-128, [-0.4, 255.4], [-0.6, 255.6]), (127, [-255.4, 0.4], [-255.6, 0.6])]
        {
            let steps = Steps::index(1.0, zero_point, 1);
            let mut gradient = [1.0; 4];
            steps.cut(&mut gradient, &[inside[0], inside[1], outside[0], outside[1]]);
            assert_eq!(gradient, [1.0, 1.0, 0.0, 0.0], "{zero_point}");
            let mut values = [inside[0], outside[1]];
            steps.round(&mut values);
            assert_eq!(values.map(|v| v.clamp(-128.0 - zero_point as f32, 127.0 - zero_point as f32)), values);
        }
    }
}
