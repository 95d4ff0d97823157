//! Float to int8: static scales from calibration tiles, one file of integers (`docs/integer-arithmetic.md`).
//!
//! - Weights: int8, symmetric, one scale an output channel.
//! - The weight and bias of a LayerNorm go into the layer that follows, GRN's beta into the bias of the second pointwise layer.
//! - The input of each matrix product has one scale, the one with the least squared error on the samples, clipped values counting more; that of the second
//!   pointwise layer is first balanced channel by channel against the layer's weights (as SmoothQuant does), which costs
//!   nothing at run time because GRN multiplies each channel anyway.
//! - The weights of dense layers are rounded together, so that the errors of one take back those of another (`rounding`), and their
//!   biases take up what is left of the mean error.
//! - The residual stream is int16 with one scale a stage, and room for values half as large again as any seen.

mod calibration;
mod hessian;
mod rounding;
mod scale;

use anyhow::{Result, ensure};
use nadir::model::int8_layout::{
    INPUT_FRACTION_BITS, NORM_BITS, POOL_BITS, RESIDUAL_GAIN_BITS, STEM_NORM_FRACTION_BITS, VALUE_GAIN_BITS,
};
use nadir::model::{Precision, STAGES};
use nadir_formats::{Encoder, Tiles};

use crate::reference::{BlockTap, DownsampleTap, Reference, Tap};
use crate::writer::{SectionData, header, write_model};
use calibration::Calibration;
use hessian::Inputs;
use rounding::round_rows;
use scale::*;

/// Room above the largest value seen, for i16 values.
const HEADROOM: f64 = 1.5;
/// Largest bias in units of its accumulator. A channel with hardly any weights gets a coarser scale, so that its bias is not lost;
/// and since the products of a layer sum to less than 1.3e9 (32 bands of i16, 9 taps), no accumulator overflows.
const BIAS_MAX: f64 = (1u32 << 29) as f64;
/// Largest i16.
const I16_MAX: f64 = 32767.0;
/// Power of two of the head's gain.
const HEAD_SHIFT: i32 = 24;

/// The most tiles that calibrate; the samples of more would fill the memory without moving a scale.
pub const MAX_CALIBRATION_TILES: usize = 512;

/// A whole int8 `.nadir` file from float weights; `tiles` calibrate the scales, in the order of the encoder's bands. Of more than
/// [`MAX_CALIBRATION_TILES`] that many are used, evenly spaced.
///
/// # Errors
/// If the tiles do not have the encoder's shape.
pub fn convert(encoder: &Encoder, tiles: &Tiles) -> Result<Vec<u8>> {
    let (arch, bands) = (&encoder.card.architecture, encoder.card.bands.len());
    let side = usize::from(arch.tile_size);
    ensure!(
        tiles.shape[1..] == [bands, side, side] && !tiles.is_empty(),
        "calibration tiles have shape {:?}, the encoder takes [tiles, {bands}, {side}, {side}]",
        tiles.shape
    );
    let used = tiles.len().min(MAX_CALIBRATION_TILES);
    let picked: Vec<usize> = (0..used).map(|i| i * tiles.len() / used).collect();
    let calibration = Calibration::of(&Reference::new(encoder), &tiles.pick(&picked));
    let mut conversion = Conversion { encoder, calibration, sections: Vec::new(), residual: 0.0 };
    conversion.stem();
    for stage in 0..STAGES {
        if stage > 0 {
            conversion.downsample(stage);
        }
        for block in 0..usize::from(arch.depths[stage]) {
            conversion.block(stage, block);
        }
    }
    conversion.head();
    write_model(&header(&encoder.card, Precision::Int8)?, &conversion.sections)
}

/// The sections written so far.
struct Conversion<'a> {
    encoder: &'a Encoder,
    calibration: Calibration,
    sections: Vec<SectionData>,
    /// Scale of the residual stream of the stage at hand.
    residual: f64,
}

/// A matrix product or convolution, quantized.
struct Layer {
    weight: Vec<i8>,
    bias: Vec<i32>,
    /// Scale of the accumulators, one an output.
    scale: Vec<f64>,
}

impl Layer {
    /// `weight` is `[outputs, columns]`, already folded; `input` is the scale of the inputs.
    fn new(weight: &[f64], columns: usize, bias: &[f64], input: f64) -> Self {
        let rows = quantize_rows(weight, columns, bias.iter().map(|b| b.abs() / (BIAS_MAX * input)));
        let scale: Vec<f64> = rows.scale.iter().map(|s| s * input).collect();
        Self { weight: rows.weight, bias: bias.iter().zip(&scale).map(|(b, s)| to_i32(b / s)).collect(), scale }
    }

    /// As [`Layer::new`], with weights rounded for small errors in the outputs on `inputs`, and a bias that takes up their mean.
    fn rounded(weight: &[f64], columns: usize, bias: &[f64], input: f64, inputs: &Inputs) -> Self {
        let rows = quantize_rows(weight, columns, bias.iter().map(|b| b.abs() / (BIAS_MAX * input)));
        let rounded = round_rows(weight, columns, &rows.scale, &inputs.hessian);
        let exact = weight.chunks_exact(columns).map(|row| dot(row.iter().copied(), &inputs.exact_mean));
        let found = rounded.chunks_exact(columns).zip(&rows.scale);
        let found = found.map(|(row, scale)| dot(row.iter().map(|&w| f64::from(w)), &inputs.mean) * scale);
        let scale: Vec<f64> = rows.scale.iter().map(|s| s * input).collect();
        let bias = bias.iter().zip(exact.zip(found)).map(|(b, (exact, found))| b + exact - found);
        let bias = bias.zip(&scale).map(|(b, s)| to_i32((b / s).clamp(-BIAS_MAX, BIAS_MAX))).collect();
        Self { weight: rounded, bias, scale }
    }

    /// Multipliers from the accumulators to values of scale `output`.
    fn multipliers(&self, output: f64) -> (Vec<i32>, i32) {
        multipliers(&self.scale.iter().map(|s| s / output).collect::<Vec<_>>())
    }
}

impl Conversion<'_> {
    fn tensor(&self, name: &str) -> Vec<f64> {
        self.encoder.tensor(name).data.iter().map(|&v| f64::from(v)).collect()
    }

    fn push_i8(&mut self, values: Vec<i8>) {
        self.sections.push(SectionData::I8(values));
    }

    fn push_i32(&mut self, values: Vec<i32>) {
        self.sections.push(SectionData::I32(values));
    }

    /// Scale of the residual stream of `stage`, which `entry` is the first to write.
    fn residual_scale(&self, stage: usize, entry: Tap) -> f64 {
        let blocks = 0..usize::from(self.encoder.card.architecture.depths[stage]);
        let outputs = blocks.map(|block| Tap::Block { stage, block, part: BlockTap::Output });
        let largest = outputs.chain([entry]).fold(0.0f64, |m, tap| m.max(self.calibration.at(tap).largest));
        value_scale(largest)
    }

    fn stem(&mut self) {
        let arch = self.encoder.card.architecture;
        let (d0, bands, taps) = (arch.dim(0), self.encoder.card.bands.len(), arch.stem_stride().pow(2));
        let unit = 2f64.powi(-(INPUT_FRACTION_BITS as i32));
        let per_value: Vec<f64> = self.encoder.card.bands.iter().map(|b| 1.0 / (f64::from(b.std) * unit)).collect();
        let (input_multiplier, input_shift) = multipliers(&per_value);
        let half = 2f64.powi(input_shift - 1);
        let offset =
            |(band, m): (&nadir_formats::BandCard, &i32)| (half - f64::from(band.mean) * f64::from(*m)).round() as i64;
        let input_offset = self.encoder.card.bands.iter().zip(&input_multiplier).map(offset).collect();
        self.push_i32(input_multiplier);
        self.sections.push(SectionData::I64(input_offset));

        // [outputs, bands, 9] to [outputs, 9, bands].
        let weight: Vec<f64> =
            self.tensor("initial_conv.0.weight").chunks_exact(9 * bands).flat_map(|row| transpose(row, 9)).collect();
        let inputs = Inputs::fine(&self.calibration.at(Tap::Input).patches, 9 * bands, 16.0 * unit);
        let initial = Layer::rounded(&weight, 9 * bands, &self.tensor("initial_conv.0.bias"), unit, &inputs);
        let initial_scale = value_scale(self.calibration.at(Tap::InitialConvolution).largest);
        let (initial_multiplier, initial_shift) = initial.multipliers(initial_scale);
        let normalised = 2f64.powi(-(STEM_NORM_FRACTION_BITS as i32));
        let initial_norm = layer_norm(d0, initial_scale, normalised, arch.ln_eps);
        let (gain, offset) = (self.tensor("initial_conv.1.weight"), self.tensor("initial_conv.1.bias"));
        let samples = layer_normed(&self.calibration.at(Tap::InitialConvolution).samples, &gain, &offset, arch.ln_eps);
        let (index_scale, zero_point) = gelu_clip(&samples);
        let (table, activation_scale) = gelu_table(index_scale, zero_point);
        let shifted: Vec<f64> = offset.iter().map(|o| o + f64::from(zero_point) * index_scale).collect();
        let (initial_gain, initial_offset) = affine(&gain, &shifted, normalised, index_scale, VALUE_GAIN_BITS);
        self.push_i8(initial.weight);
        self.push_i32(initial.bias);
        self.push_i32(initial_multiplier);
        self.push_i32(initial_gain);
        self.push_i32(initial_offset);
        self.sections.push(SectionData::I16(table));

        let stem = Layer::new(&self.tensor("stem.0.weight"), taps, &self.tensor("stem.0.bias"), activation_scale);
        let stem_scale = value_scale(self.calibration.at(Tap::StemConvolution).largest);
        let (stem_multiplier, stem_shift) = stem.multipliers(stem_scale);
        let stem_norm = layer_norm(d0, stem_scale, normalised, arch.ln_eps);
        self.residual = self.residual_scale(0, Tap::StemNorm);
        let (gain, offset) = (self.tensor("stem.1.weight"), self.tensor("stem.1.bias"));
        let (stem_gain, stem_offset) = affine(&gain, &offset, normalised, self.residual, RESIDUAL_GAIN_BITS);
        self.push_i8(transpose(&stem.weight, taps));
        self.push_i32(stem.bias);
        self.push_i32(stem_multiplier);
        self.push_i32(stem_gain);
        self.push_i32(stem_offset);
        let constants = [&[input_shift, initial_shift][..], &initial_norm, &[stem_shift], &stem_norm];
        self.push_i32(constants.concat());
    }

    /// Folds the weight and bias of the LayerNorm `norm` into a layer `[outputs, columns]` whose inputs repeat the norm's channels.
    fn fold(&self, norm: &str, weight: &mut [f64], columns: usize, bias: &mut [f64]) {
        let (gain, offset) = (self.tensor(&format!("{norm}.weight")), self.tensor(&format!("{norm}.bias")));
        for (row, bias) in weight.chunks_exact_mut(columns).zip(bias) {
            for (i, w) in row.iter_mut().enumerate() {
                *bias += *w * offset[i % offset.len()];
                *w *= gain[i % gain.len()];
            }
        }
    }

    fn downsample(&mut self, stage: usize) {
        let arch = self.encoder.card.architecture;
        let before = arch.dim(stage - 1);
        let name = format!("downsample_layers.{}", stage - 1);
        let tap = |part| Tap::Downsample { stage, part };
        // [outputs, channels, 4] to [outputs, 4, channels].
        let weight = self.tensor(&format!("{name}.1.weight"));
        let mut weight: Vec<f64> = weight.chunks_exact(4 * before).flat_map(|row| transpose(row, 4)).collect();
        let mut bias = self.tensor(&format!("{name}.1.bias"));
        self.fold(&format!("{name}.0"), &mut weight, 4 * before, &mut bias);
        let normalised = clip(&self.calibration.at(tap(DownsampleTap::Normalised)).samples);
        let norm = layer_norm(before, self.residual, normalised, arch.ln_eps);
        self.residual = self.residual_scale(stage, tap(DownsampleTap::Output));
        let inputs = Inputs::int8(&self.calibration.at(tap(DownsampleTap::Normalised)).patches, 4 * before, normalised);
        let layer = Layer::rounded(&weight, 4 * before, &bias, normalised, &inputs);
        let (multiplier, shift) = layer.multipliers(self.residual);
        self.push_i8(layer.weight);
        self.push_i32(layer.bias);
        self.push_i32(multiplier);
        self.push_i32([&norm[..], &[shift]].concat());
    }

    fn block(&mut self, stage: usize, block: usize) {
        let arch = self.encoder.card.architecture;
        let channels = arch.dim(stage);
        let wide_channels = 4 * channels;
        let name = format!("stages.{stage}.{block}");
        let tap = |part| Tap::Block { stage, block, part };
        let named = |part: &str| format!("{name}.{part}");

        let weight = self.tensor(&named("dwconv.weight"));
        let depthwise = Layer::new(&weight, 49, &self.tensor(&named("dwconv.bias")), self.residual);
        let depthwise_scale = value_scale(self.calibration.at(tap(BlockTap::Depthwise)).largest);
        let (depthwise_multiplier, depthwise_shift) = depthwise.multipliers(depthwise_scale);
        let normalised = clip(&self.calibration.at(tap(BlockTap::Normalised)).samples);
        let norm = layer_norm(channels, depthwise_scale, normalised, arch.ln_eps);

        let mut weight = self.tensor(&named("pwconv1.weight"));
        let mut bias = self.tensor(&named("pwconv1.bias"));
        self.fold(&named("norm"), &mut weight, channels, &mut bias);
        let (index_scale, zero_point) = gelu_clip(&self.calibration.at(tap(BlockTap::Hidden)).samples);
        let (table, activation) = gelu_table(index_scale, zero_point);
        let inputs = Inputs::int8(&self.calibration.at(tap(BlockTap::Normalised)).samples, channels, normalised);
        let expand = Layer::rounded(&weight, channels, &bias, normalised, &inputs);
        let (expand_multiplier, expand_shift) = expand.multipliers(index_scale);

        // GRN: y = h (1 + gamma N) + beta; beta goes into the bias, the rest is a multiplier that also divides by `balance`.
        let (gamma, beta) = (self.tensor(&named("grn.gamma")), self.tensor(&named("grn.beta")));
        let mut weight = self.tensor(&named("pwconv2.weight"));
        let mut bias = self.tensor(&named("pwconv2.bias"));
        for (row, bias) in weight.chunks_exact(wide_channels).zip(&mut bias) {
            *bias += row.iter().zip(&beta).map(|(w, b)| w * b).sum::<f64>();
        }
        let outputs = self.calibration.at(tap(BlockTap::GrnOutput));
        let samples: Vec<f32> =
            outputs.samples.iter().enumerate().map(|(i, v)| v - beta[i % wide_channels] as f32).collect();
        let balance = balance(&samples, &weight, wide_channels);
        let balanced: Vec<f32> =
            samples.iter().enumerate().map(|(i, v)| v / balance[i % wide_channels] as f32).collect();
        let projected = clip(&balanced);
        let real: Vec<f64> = balance.iter().map(|b| activation / (projected * b)).collect();
        let norms = &self.calibration.at(tap(BlockTap::GrnNorm)).channel_largest;
        let multipliers = real.iter().zip(&gamma).zip(norms);
        let largest = multipliers.map(|((r, g), n)| r * (1.0f64).max((1.0 + g * n).abs())).fold(0.0f64, f64::max);
        // Half of i16 is room for larger norms than any seen.
        let grn_shift = ((I16_MAX / 2.0 / largest).log2().floor() as i32).clamp(1, 30);
        let grn_gain: Vec<f64> = real.iter().map(|r| r * 2f64.powi(grn_shift)).collect();
        let grn_slope = grn_gain.iter().zip(&gamma).map(|(r, g)| to_i32(r * g)).collect();
        let grn_epsilon =
            wide(wide_channels as f64 * f64::from(arch.grn_eps) / activation * 2f64.powi(NORM_BITS as i32));
        for row in weight.chunks_exact_mut(wide_channels) {
            row.iter_mut().zip(&balance).for_each(|(w, b)| *w *= b);
        }
        let inputs = Inputs::int8(&balanced, wide_channels, projected);
        let project = Layer::rounded(&weight, wide_channels, &bias, projected, &inputs);
        let (project_multiplier, project_shift) = project.multipliers(self.residual);

        self.push_i8(transpose(&depthwise.weight, 49));
        self.push_i32(depthwise.bias);
        self.push_i32(depthwise_multiplier);
        self.push_i8(expand.weight);
        self.push_i32(expand.bias);
        self.push_i32(expand_multiplier);
        self.sections.push(SectionData::I16(table));
        self.push_i32(grn_gain.into_iter().map(to_i32).collect());
        self.push_i32(grn_slope);
        self.push_i8(project.weight);
        self.push_i32(project.bias);
        self.push_i32(project_multiplier);
        let constants =
            [&[depthwise_shift][..], &norm, &[expand_shift, zero_point], &grn_epsilon, &[grn_shift, project_shift]];
        self.push_i32(constants.concat());
    }

    fn head(&mut self) {
        let arch = self.encoder.card.architecture;
        let channels = arch.embedding_dimension() as f64;
        let unit = self.residual * 2f64.powi(-(POOL_BITS as i32));
        let epsilon = wide((channels / unit).powi(2) * f64::from(arch.ln_eps));
        let largest = self.calibration.at(Tap::Embedding).largest.max(1e-3);
        let bits = ((I16_MAX / HEADROOM / largest).log2().floor() as i32).clamp(0, 14);
        let gain = self.tensor("norm.weight").iter().map(|g| to_i32(g * 2f64.powi(bits + HEAD_SHIFT - 16))).collect();
        let half = 2f64.powi(HEAD_SHIFT - 1);
        let offset =
            self.tensor("norm.bias").iter().map(|o| (o * 2f64.powi(bits + HEAD_SHIFT) + half).round() as i64).collect();
        self.push_i32(gain);
        self.sections.push(SectionData::I64(offset));
        self.push_i32([&epsilon[..], &[HEAD_SHIFT, bits]].concat());
    }
}

fn dot(a: impl Iterator<Item = f64>, b: &[f64]) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

/// Scale of i16 values that may grow by [`HEADROOM`] above the `largest` seen.
fn value_scale(largest: f64) -> f64 {
    (largest * HEADROOM).max(1e-6) / I16_MAX
}

/// Gain and offset (with the rounding half) of `(value * gain + offset) >> bits` from scale `input` to scale `output`.
fn affine(gain: &[f64], offset: &[f64], input: f64, output: f64, bits: u32) -> (Vec<i32>, Vec<i32>) {
    let one = 2f64.powi(bits as i32);
    let gain = gain.iter().map(|g| to_i32(g * input / output * one)).collect();
    (gain, offset.iter().map(|o| to_i32(o / output * one + one / 2.0)).collect())
}

/// LayerNorm of samples `[positions, channels]`.
fn layer_normed(samples: &[f32], gain: &[f64], offset: &[f64], eps: f32) -> Vec<f32> {
    let n = gain.len() as f64;
    let normed = |row: &[f32]| {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        let value = |(i, &v): (usize, &f32)| ((f64::from(v) - mean) * scale * gain[i] + offset[i]) as f32;
        row.iter().enumerate().map(value).collect::<Vec<_>>()
    };
    samples.chunks_exact(gain.len()).flat_map(normed).collect()
}

/// Divisors for the input channels of `weight` `[outputs, columns]` that share the spread of values between inputs and weights: the
/// square root of the ratio of their ranges, normalised to a geometric mean of 1.
fn balance(samples: &[f32], weight: &[f64], columns: usize) -> Vec<f64> {
    let mut inputs = vec![0.0f64; columns];
    samples.iter().enumerate().for_each(|(i, v)| inputs[i % columns] = inputs[i % columns].max(f64::from(v.abs())));
    let mut weights = vec![0.0f64; columns];
    weight.iter().enumerate().for_each(|(i, w)| weights[i % columns] = weights[i % columns].max(w.abs()));
    let ratio = |(&x, &w): (&f64, &f64)| if x > 0.0 && w > 0.0 { (x / w).sqrt() } else { 1.0 };
    let ratios: Vec<f64> = inputs.iter().zip(&weights).map(ratio).collect();
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / columns as f64).exp();
    ratios.iter().map(|r| (r / mean).clamp(1.0 / 16.0, 16.0)).collect()
}

#[cfg(test)]
mod tests;
