//! Float to int8: static scales from calibration tiles, one file of integers (`docs/integer-arithmetic.md`).
//!
//! - Weights: int8, symmetric, one scale an output channel.
//! - The weight and bias of a LayerNorm go into the layer that follows, GRN's beta into the bias of the second pointwise layer.
//! - The input of each matrix product has one scale, set by one of several [`methods`]; that of the second
//!   pointwise layer is first balanced channel by channel against the layer's weights (as SmoothQuant does), which costs
//!   nothing at run time because GRN multiplies each channel anyway.
//! - The weights of dense layers are rounded together, so that the errors of one take back those of another (`rounding`), and their
//!   biases take up what is left of the mean error.
//! - The second pointwise layer of a block may be raised to inputs of 14 bits ([`Mixable`]); nothing else of the file changes with it.
//! - The residual stream is int16 with one scale a stage, and room for values half as large again as any seen.

mod calibration;
pub mod coverage;
mod hessian;
mod layer;
pub mod methods;
mod mixable;
mod rounding;
mod scale;
pub mod select;

use anyhow::{Result, ensure};
use nadir::model::int8_layout::{
    INPUT_FRACTION_BITS, NORM_BITS, POOL_BITS, RAISED, STEM_NORM_FRACTION_BITS, initial_segment, panels,
    patchify_inputs, stored,
};
use nadir::model::{Place, STAGES};
use nadir_formats::scales::{Balance, Ends, HEADROOM, I16_MAX, calibration_tiles, gelu_table, value_scale};
use nadir_formats::{Encoder, Tiles};

use crate::reference::{BlockTap, DownsampleTap, Reference, Tap};
use crate::writer::SectionData;
use calibration::{Calibration, Seen};
use hessian::Inputs;
use layer::Layer;
use methods::Method;
use mixable::Raisable;
use scale::*;
use select::{Chosen, choose, gelu_ratio, layer_ratio};

pub use layer::{Correction, Rounding};
pub use mixable::Mixable;
pub use select::Choice;

/// Power of two of the head's gain.
const HEAD_SHIFT: i32 = 24;

/// How a model is converted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// What sets the scales of int8 values.
    pub calibration: Choice,
    /// What is done about the errors of rounded weights.
    pub correction: Correction,
}

impl Default for Options {
    fn default() -> Self {
        Self { calibration: Choice::Fixed(Method::DEFAULT), correction: Correction::default() }
    }
}

/// A converted model.
pub struct Converted {
    /// The file.
    pub file: Vec<u8>,
    /// What set the scale of each place that has one in int8.
    pub chosen: Vec<Chosen>,
}

/// A whole int8 `.nadir` file from float weights; `tiles` calibrate the scales, in the order of the encoder's bands. Of more than
/// [`MAX_CALIBRATION_TILES`](nadir_formats::scales::MAX_CALIBRATION_TILES) that many are used, evenly spaced.
///
/// # Errors
/// If the tiles do not have the encoder's shape.
pub fn convert(encoder: &Encoder, tiles: &Tiles) -> Result<Vec<u8>> {
    Ok(convert_with(encoder, tiles, Options::default(), &|| {})?.file)
}

/// Steps of a conversion with this many tiles: the tiles used, then the places of the network.
pub fn steps(encoder: &Encoder, tiles: usize) -> usize {
    let blocks: usize = encoder.card.architecture.depths.iter().map(|&d| usize::from(d)).sum();
    calibration_tiles(tiles).len() + blocks + STAGES + 1
}

/// As [`convert`], with `options`; `done` is called after each of the [`steps`], from any thread.
///
/// # Errors
/// As [`convert`].
pub fn convert_with(encoder: &Encoder, tiles: &Tiles, options: Options, done: &(dyn Fn() + Sync)) -> Result<Converted> {
    let mixable = Mixable::convert(encoder, tiles, options, false, done)?;
    Ok(Converted { file: mixable.file(&[])?, chosen: mixable.chosen })
}

/// Makes the sections of a model; with `raise` also those that second pointwise layers have if they are raised.
fn run<'e>(
    encoder: &'e Encoder,
    tiles: &Tiles,
    options: Options,
    raise: bool,
    done: &(dyn Fn() + Sync),
) -> Result<Mixable<'e>> {
    let (arch, bands) = (&encoder.card.architecture, encoder.card.bands.len());
    let side = usize::from(arch.tile_size);
    ensure!(
        tiles.shape[1..] == [bands, side, side] && !tiles.is_empty(),
        "calibration tiles have shape {:?}, the encoder takes [tiles, {bands}, {side}, {side}]",
        tiles.shape
    );
    let tiles = tiles.pick(&calibration_tiles(tiles.len()));
    let mut conversion = Conversion {
        encoder,
        options,
        calibration: &Calibration::of(&Reference::new(encoder), &tiles, done),
        tiles: tiles.len(),
        sections: Vec::new(),
        chosen: Vec::new(),
        raise,
        raisable: Vec::new(),
        residual: 0.0,
    };
    conversion.stem();
    done();
    for stage in 0..STAGES {
        if stage > 0 {
            conversion.downsample(stage);
            done();
        }
        for block in 0..usize::from(arch.depths[stage]) {
            conversion.block(stage, block);
            done();
        }
    }
    conversion.head();
    done();
    let Conversion { sections, raisable, chosen, .. } = conversion;
    Ok(Mixable { encoder, sections, raisable, chosen })
}

/// The sections written so far.
struct Conversion<'a> {
    encoder: &'a Encoder,
    options: Options,
    calibration: &'a Calibration,
    /// Tiles that calibrate.
    tiles: usize,
    sections: Vec<SectionData>,
    chosen: Vec<Chosen>,
    /// Whether to make what the second pointwise layers are if they are raised.
    raise: bool,
    raisable: Vec<Raisable>,
    /// Scale of the residual stream of the stage at hand.
    residual: f64,
}

impl Conversion<'_> {
    fn tensor(&self, name: &str) -> Vec<f64> {
        self.encoder.tensor(name).data.iter().map(|&v| f64::from(v)).collect()
    }

    fn push_i8(&mut self, values: Vec<i8>) {
        self.sections.push(SectionData::I8(values));
    }

    fn push_i16(&mut self, values: Vec<i16>) {
        self.sections.push(SectionData::I16(values));
    }

    /// A dense layer whose rows are runs of `run` inputs, each to be `padded` long, and which has `outputs` outputs.
    fn push_dense(&mut self, layer: &Layer, run: usize, padded: usize, outputs: usize) {
        self.sections.extend(dense(layer, run, padded, outputs));
    }

    /// A depthwise layer of `taps` taps.
    fn push_depthwise(&mut self, layer: &Layer, taps: usize) {
        let channels = stored(layer.bias.len());
        let mut weight = layer.weight.clone();
        weight.resize(channels * taps, 0);
        self.push_i8(transpose(&weight, taps));
        let (bias, multiplier) = layer.padded(channels);
        self.push_i32(bias);
        self.push_i16(multiplier);
    }

    /// One value a channel.
    fn push_channels(&mut self, mut values: Vec<i32>) {
        values.resize(stored(values.len()), 0);
        self.push_i32(values);
    }

    fn push_i32(&mut self, values: Vec<i32>) {
        self.sections.push(SectionData::I32(values));
    }

    /// Scale of the int8 inputs of a layer `weight` `[outputs, columns]`, from `samples` of them; `rows` `[positions, columns]` are what the
    /// layer reads.
    fn input_scale(
        &self,
        place: String,
        samples: &[f32],
        rows: &[f32],
        weight: &[f64],
        columns: usize,
    ) -> (f64, Chosen) {
        let chosen = choose(self.options.calibration, place, self.tiles, |method, split| {
            let scale = method.symmetric(&split.calibrating(samples));
            layer_ratio(weight, columns, &split.judging(rows), split.judges(), scale)
        });
        (chosen.method.symmetric(samples), chosen)
    }

    /// Scale and zero point of a GELU table's index, from `samples`.
    fn index_scale(&mut self, place: String, samples: &[f32], channels: usize) -> (f64, i32) {
        let chosen = choose(self.options.calibration, place, self.tiles, |method, split| {
            let index = method.index(&split.calibrating(samples));
            gelu_ratio(&split.judging(samples), channels, split.judges(), index)
        });
        let index = chosen.method.index(samples);
        self.chosen.push(chosen);
        index
    }

    fn layer(&self, weight: &[f64], columns: usize, bias: &[f64], ends: &Ends, inputs: Option<&Inputs>) -> Layer {
        Layer::new(weight, columns, bias, ends, inputs, self.options.correction)
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
        if arch.is_patchify() {
            return self.patchify(input_shift);
        }

        // [outputs, bands, 9] to [outputs, 9, bands].
        let weight: Vec<f64> =
            self.tensor("initial_conv.0.weight").chunks_exact(9 * bands).flat_map(|row| transpose(row, 9)).collect();
        let seen = self.calibration.at(Tap::InitialConvolution);
        let initial_scale = value_scale(seen.largest);
        let ends = Ends::of_values(unit, initial_scale, &seen.channel_largest);
        let inputs = Inputs::fine(&self.calibration.at(Tap::Input).patches, 9 * bands, 16.0 * unit);
        let initial = self.layer(&weight, 9 * bands, &self.tensor("initial_conv.0.bias"), &ends, Some(&inputs));
        let normalised = 2f64.powi(-(STEM_NORM_FRACTION_BITS as i32));
        let initial_norm = layer_norm(d0, initial_scale, normalised, arch.ln_eps);
        let (gain, offset) = (self.tensor("initial_conv.1.weight"), self.tensor("initial_conv.1.bias"));
        let samples = layer_normed(&seen.samples, &gain, &offset, arch.ln_eps);
        let (index_scale, zero_point) = self.index_scale("stem GELU".into(), &samples, d0);
        let (table, activation_scale) = gelu_table(index_scale, zero_point);
        let shifted: Vec<f64> = offset.iter().map(|o| o + f64::from(zero_point) * index_scale).collect();
        let (initial_gain, initial_offset, initial_affine) = affine(&gain, &shifted, normalised, index_scale);
        self.push_dense(&initial, 3 * bands, initial_segment(bands), stored(d0));
        self.push_channels(initial_gain);
        self.push_channels(initial_offset);
        self.push_i16(table);

        let seen = self.calibration.at(Tap::StemConvolution);
        let stem_scale = value_scale(seen.largest);
        let ends = Ends::of_values(activation_scale, stem_scale, &seen.channel_largest);
        let stem = self.layer(&self.tensor("stem.0.weight"), taps, &self.tensor("stem.0.bias"), &ends, None);
        self.push_depthwise(&stem, taps);
        let (stem_norm, stem_affine) = self.stem_norm(stem_scale);
        let constants = [
            &[input_shift, initial.shift][..],
            &initial_norm,
            &[initial_affine, stem.shift],
            &stem_norm,
            &[stem_affine],
        ];
        self.push_i32(constants.concat());
    }

    /// What follows the input in a patchify stem.
    fn patchify(&mut self, input_shift: i32) {
        let (arch, bands) = (self.encoder.card.architecture, self.encoder.card.bands.len());
        let (taps, columns) = (arch.stem_stride().pow(2), arch.patchify_inputs(bands));
        let unit = 2f64.powi(-(INPUT_FRACTION_BITS as i32));
        // [outputs, bands, taps] to [outputs, taps, bands].
        let weight: Vec<f64> =
            self.tensor("stem.0.weight").chunks_exact(columns).flat_map(|row| transpose(row, taps)).collect();
        let seen = self.calibration.at(Tap::StemConvolution);
        let stem_scale = value_scale(seen.largest);
        let ends = Ends::of_values(unit, stem_scale, &seen.channel_largest);
        let inputs = Inputs::fine(&self.calibration.at(Tap::Input).patches, columns, 16.0 * unit);
        let stem = self.layer(&weight, columns, &self.tensor("stem.0.bias"), &ends, Some(&inputs));
        self.push_dense(&stem, columns, patchify_inputs(&arch, bands), stored(arch.dim(0)));
        let (norm, affine) = self.stem_norm(stem_scale);
        self.push_i32([&[input_shift, stem.shift][..], &norm, &[affine]].concat());
    }

    /// The LayerNorm that ends a stem, of values with scale `input`: pushes its gain and offset, and gives its constants and the power of two of
    /// its affine step. Sets the scale of the residual stream.
    fn stem_norm(&mut self, input: f64) -> ([i32; 4], i32) {
        let arch = self.encoder.card.architecture;
        let normalised = 2f64.powi(-(STEM_NORM_FRACTION_BITS as i32));
        self.residual = self.residual_scale(0, Tap::StemNorm);
        let (gain, offset) = (self.tensor("stem.1.weight"), self.tensor("stem.1.bias"));
        let (gain, offset, shift) = affine(&gain, &offset, normalised, self.residual);
        self.push_channels(gain);
        self.push_channels(offset);
        (layer_norm(arch.dim(0), input, normalised, arch.ln_eps), shift)
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
        let Seen { samples, patches, .. } = self.calibration.at(tap(DownsampleTap::Normalised));
        let place = format!("downsample {stage} norm");
        let (normalised, chosen) = self.input_scale(place, samples, patches, &weight, 4 * before);
        self.chosen.push(chosen);
        let norm = layer_norm(before, self.residual, normalised, arch.ln_eps);
        let seen = self.calibration.at(tap(DownsampleTap::Output));
        let output = self.residual_scale(stage, tap(DownsampleTap::Output));
        let ends = Ends::of_values(normalised, output, &seen.channel_largest);
        let inputs = Inputs::int8(patches, 4 * before, normalised);
        let layer = self.layer(&weight, 4 * before, &bias, &ends, Some(&inputs));
        self.residual = output;
        self.push_dense(&layer, before, stored(before), stored(arch.dim(stage)));
        self.push_i32([&norm[..], &[layer.shift]].concat());
    }

    fn block(&mut self, stage: usize, block: usize) {
        let arch = self.encoder.card.architecture;
        let channels = arch.dim(stage);
        let wide_channels = 4 * channels;
        let name = format!("stages.{stage}.{block}");
        let tap = |part| Tap::Block { stage, block, part };
        let (named, place) = (|part: &str| format!("{name}.{part}"), format!("block {stage}.{block}"));

        let weight = self.tensor(&named("dwconv.weight"));
        let seen = self.calibration.at(tap(BlockTap::Depthwise));
        let depthwise_scale = value_scale(seen.largest);
        let ends = Ends::of_values(self.residual, depthwise_scale, &seen.channel_largest);
        let depthwise = self.layer(&weight, 49, &self.tensor(&named("dwconv.bias")), &ends, None);

        let mut weight = self.tensor(&named("pwconv1.weight"));
        let mut bias = self.tensor(&named("pwconv1.bias"));
        self.fold(&named("norm"), &mut weight, channels, &mut bias);
        let samples = &self.calibration.at(tap(BlockTap::Normalised)).samples;
        let (normalised, chosen) = self.input_scale(format!("{place} norm"), samples, samples, &weight, channels);
        self.chosen.push(chosen);
        let norm = layer_norm(channels, depthwise_scale, normalised, arch.ln_eps);
        let hidden = &self.calibration.at(tap(BlockTap::Hidden)).samples;
        let (index_scale, zero_point) = self.index_scale(format!("{place} GELU"), hidden, wide_channels);
        let (table, activation) = gelu_table(index_scale, zero_point);
        let ends = Ends::of_indices(normalised, index_scale, wide_channels);
        let inputs = Inputs::int8(samples, channels, normalised);
        let expand = self.layer(&weight, channels, &bias, &ends, Some(&inputs));

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
        let norms = &self.calibration.at(tap(BlockTap::GrnNorm)).channel_largest;
        let mut chosen = None;
        let clip = |balanced: &[f32], divisors: &[f64]| {
            let weight: Vec<f64> = weight.iter().enumerate().map(|(i, w)| w * divisors[i % wide_channels]).collect();
            let (scale, of_place) =
                self.input_scale(format!("{place} GRN"), balanced, balanced, &weight, wide_channels);
            chosen = Some(of_place);
            scale
        };
        let Balance { divisors, scale: projected, unit } =
            Balance::of(&samples, &weight, &gamma, norms, activation, clip);
        self.chosen.extend(chosen);
        let balanced: Vec<f32> =
            samples.iter().enumerate().map(|(i, v)| v / divisors[i % wide_channels] as f32).collect();
        let grn_gain: Vec<f64> = divisors.iter().map(|d| unit / d).collect();
        let mut grn_slope: Vec<i32> = grn_gain.iter().zip(&gamma).map(|(r, g)| to_i32(r * g)).collect();
        let mut grn_gain: Vec<i32> = grn_gain.into_iter().map(to_i32).collect();
        grn_slope.resize(4 * stored(channels), 0);
        grn_gain.resize(4 * stored(channels), 0);
        let grn_epsilon =
            wide(wide_channels as f64 * f64::from(arch.grn_eps) / activation * 2f64.powi(NORM_BITS as i32));
        for row in weight.chunks_exact_mut(wide_channels) {
            row.iter_mut().zip(&divisors).for_each(|(w, d)| *w *= d);
        }
        let seen = self.calibration.at(tap(BlockTap::Pointwise2));
        let ends = Ends::of_values(projected, self.residual, &seen.channel_largest);
        let inputs = Inputs::int8(&balanced, wide_channels, projected);
        let project = self.layer(&weight, wide_channels, &bias, &ends, Some(&inputs));
        let raised = self.raise.then(|| {
            // Their multipliers are the same, and their range is twice as large: with 14 bits there is room for what calibration has not seen.
            let ends = Ends::of_values(2.0 * projected, self.residual, &seen.channel_largest);
            let inputs = Inputs::raised(&balanced, wide_channels, 2.0 * projected);
            self.layer(&weight, wide_channels, &bias, &ends, Some(&inputs)).raised()
        });

        self.push_depthwise(&depthwise, 49);
        self.push_dense(&expand, channels, stored(channels), 4 * stored(channels));
        self.push_i16(table);
        self.push_i32(grn_gain);
        self.push_i32(grn_slope);
        let constants = [&[depthwise.shift][..], &norm, &[expand.shift, zero_point], &grn_epsilon].concat();
        let second = |layer: &Layer, shift: i32| {
            let constants = SectionData::I32([&constants[..], &[shift]].concat());
            let [weight, bias, multiplier] = dense(layer, wide_channels, 4 * stored(channels), stored(channels));
            [weight, bias, multiplier, constants]
        };
        if let Some(layer) = raised.flatten() {
            let place = Place::Block { stage: stage as u8, block: block as u8 };
            let sections = second(&layer, RAISED + layer.shift);
            self.raisable.push(Raisable { place, first: self.sections.len(), sections });
        }
        self.sections.extend(second(&project, project.shift));
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

/// Weight, bias and multiplier of a dense layer whose rows are runs of `run` inputs, each to be `padded` long, and which has `outputs` outputs.
fn dense(layer: &Layer, run: usize, padded: usize, outputs: usize) -> [SectionData; 3] {
    let columns = layer.weight.len() / layer.bias.len() / run * padded;
    let mut weight = pad(&layer.weight, run, padded);
    weight.resize(outputs * columns, 0);
    let (bias, multiplier) = layer.padded(panels(outputs));
    [SectionData::I8(pack(&weight, columns)), SectionData::I32(bias), SectionData::I16(multiplier)]
}

/// Gain, offset (with the rounding half) and shift of `(value * gain + offset) >> shift` from scale `input` to scale `output`: for
/// values of 14 bits the sum stays within i32.
fn affine(gain: &[f64], offset: &[f64], input: f64, output: f64) -> (Vec<i32>, Vec<i32>, i32) {
    let largest = |values: &[f64], scale: f64| values.iter().fold(1e-30f64, |m, v| m.max(v.abs() * scale));
    let room = (2f64.powi(17) / largest(gain, input / output)).min(2f64.powi(29) / largest(offset, 1.0 / output));
    let shift = (room.log2().floor() as i32).clamp(0, 29);
    let one = 2f64.powi(shift);
    let gain = gain.iter().map(|g| to_i32(g * input / output * one)).collect();
    (gain, offset.iter().map(|o| to_i32(o / output * one + one / 2.0)).collect(), shift)
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

#[cfg(test)]
mod tests;
