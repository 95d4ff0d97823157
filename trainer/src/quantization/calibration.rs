//! The scales of an encoder from what passes through it on some tiles, as the quantizer chooses them.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use nadir::model::STAGES;
use nadir::model::int8_layout::INPUT_FRACTION_BITS;
use nadir_formats::scales::{Balance, Ends, Sampling, calibration_tiles, clip, gelu_clip, gelu_table, value_scale};
use nadir_formats::{BandCard, Tiles};
use rayon::prelude::*;

use super::{Fold, Layer, Quantization};
use crate::data::{AS_IS, input};
use crate::encoder::Encoder;
use crate::ops::grid::Geometry;
use crate::ops::observe::{Seen, observe};
use crate::ops::rounding::{BlockRounding, Rounding, Steps};

impl Quantization {
    /// The scales that the quantizer would choose for `encoder` as it is, on `tiles` with `bands`, the encoder's; of many tiles, those that it
    /// would take.
    ///
    /// # Errors
    /// If the tiles do not fit the encoder, or it does not compute on the CPU.
    pub fn calibrate(encoder: &Encoder, tiles: &Tiles, bands: &[BandCard]) -> Result<Self> {
        let arch = encoder.architecture();
        let seen = Observed::of(encoder, tiles, bands)?;
        let dim = |stage: usize| arch.dim(stage);
        let mut layers = BTreeMap::new();
        let mut layer = |name: &str, ends, fold, means| layers.insert(name.to_owned(), Layer { ends, fold, means });

        let unit = 2f64.powi(-(INPUT_FRACTION_BITS as i32));
        let stem = seen.at("stem.0");
        let of_stem = match arch.is_patchify() {
            true => {
                layer("stem.0", values(unit, stem), Fold::Nothing, None);
                None
            }
            false => {
                let (index, zero_point) = gelu_clip(&seen.at("initial_conv.1").samples);
                let activation = gelu_table(index, zero_point).1;
                layer("initial_conv.0", values(unit, seen.at("initial_conv.0")), Fold::Nothing, None);
                layer("stem.0", values(activation, stem), Fold::Nothing, None);
                Some(Steps::index(index as f32, zero_point, dim(0)))
            }
        };

        let (mut downsamples, mut blocks) = (Vec::new(), Vec::new());
        for stage in 0..STAGES {
            let depth = usize::from(arch.depths[stage]);
            let names: Vec<String> = (0..depth).map(|at| format!("stages.{stage}.{at}")).collect();
            let entry = match stage {
                0 => "stem.1".to_owned(),
                _ => format!("downsample_layers.{}.1", stage - 1),
            };
            let outputs = names.iter().map(|name| seen.at(&format!("{name}.output")));
            let largest = outputs.chain([seen.at(&entry)]).flat_map(|seen| &seen.largest);
            let residual = value_scale(largest.fold(0.0, |m, v| m.max(*v)));
            if stage > 0 {
                let norm = format!("downsample_layers.{}.0", stage - 1);
                let samples = &seen.at(&norm).samples;
                let scale = clip(samples);
                let steps = Steps::int8(vec![scale as f32; dim(stage - 1)]);
                let taps = means(samples, &steps).map(|means| means.iter().flat_map(|m| [*m; 4]).collect());
                let ends = Ends::of_values(scale, residual, &seen.at(&entry).largest);
                layer(&entry, ends, Fold::Norm(norm), Some(taps));
                downsamples.push(steps);
            }
            let mut of_stage = Vec::new();
            for name in &names {
                let (channels, wide) = (dim(stage), 4 * dim(stage));
                let named = |part: &str| format!("{name}.{part}");
                let at = |part: &str| seen.at(&named(part));
                let depthwise = Ends::of_values(residual, value_scale(largest_of(at("dwconv"))), &at("dwconv").largest);
                layer(&named("dwconv"), depthwise, Fold::Nothing, None);

                let scale = clip(&at("norm").samples);
                let normalised = Steps::int8(vec![scale as f32; channels]);
                let (index, zero_point) = gelu_clip(&at("pwconv1").samples);
                let of_inputs = means(&at("norm").samples, &normalised);
                let ends = Ends::of_indices(scale, index, wide);
                layer(&named("pwconv1"), ends, Fold::Norm(named("norm")), Some(of_inputs));

                let [weight, gamma] = ["pwconv2.weight", "grn.gamma"].map(|part| seen.tensor(&named(part)));
                let (samples, norms) = (&at("grn").samples, &at("grn.relative").largest);
                let activation = gelu_table(index, zero_point).1;
                let balance = Balance::of(samples, weight, gamma, norms, activation, |balanced, _| clip(balanced));
                let divisors: Vec<f32> = balance.divisors.iter().map(|d| *d as f32).collect();
                let projected = Steps::int8(divisors.iter().map(|d| d * balance.scale as f32).collect());
                let of_inputs = means(samples, &projected);
                let ends = Ends::of_values(balance.scale, residual, &at("pwconv2").largest);
                layer(&named("pwconv2"), ends, Fold::Beta(named("grn.beta"), divisors), Some(of_inputs));
                of_stage.push(BlockRounding {
                    normalised,
                    hidden: Steps::index(index as f32, zero_point, wide),
                    projected,
                });
            }
            blocks.push(of_stage);
        }
        let rounding = Arc::new(Rounding { stem: of_stem, downsamples, blocks });
        Ok(Self { rounding, layers })
    }
}

/// What was seen on all calibration tiles, and the weights with which.
struct Observed {
    seen: BTreeMap<String, Seen>,
    weights: BTreeMap<String, Vec<f64>>,
}

impl Observed {
    fn of(encoder: &Encoder, tiles: &Tiles, bands: &[BandCard]) -> Result<Self> {
        let chosen = calibration_tiles(tiles.len());
        let (arch, frozen) = (encoder.architecture(), encoder.frozen());
        let (geometry, sampling) = (Geometry::new(arch, 1, None)?, Sampling::of(chosen.len()));
        let each = chosen.into_par_iter().map(|tile| -> Result<_> {
            let x = input(tiles, bands, &[(tile, AS_IS)], &Device::Cpu)?;
            Ok(observe(&x, frozen.params(), arch, &geometry, sampling)?)
        });
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for of_tile in each.collect::<Result<Vec<_>>>()? {
            for (name, more) in of_tile {
                seen.entry(name).or_default().merge(more);
            }
        }
        let arrays = encoder.params().export()?;
        let weights = arrays.into_iter().map(|(name, a)| (name, a.data.into_iter().map(f64::from).collect()));
        Ok(Self { seen, weights: weights.collect() })
    }

    fn at(&self, name: &str) -> &Seen {
        &self.seen[name]
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }
}

fn largest_of(seen: &Seen) -> f64 {
    seen.largest.iter().fold(0.0, |m, v| m.max(*v))
}

/// The ends of a layer whose output has a scale of its own.
fn values(input: f64, output: &Seen) -> Ends {
    Ends::of_values(input, value_scale(largest_of(output)), &output.largest)
}

/// Means of samples `[positions, channels]`, as they are and rounded.
fn means(samples: &[f32], steps: &Steps) -> [Vec<f32>; 2] {
    let mut rounded = samples.to_vec();
    steps.round(&mut rounded);
    let channels = steps.sizes.len();
    [samples, &rounded].map(|samples| {
        let mut sums = vec![0f64; channels];
        for row in samples.chunks_exact(channels) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
        }
        let rows = (samples.len() / channels).max(1) as f64;
        sums.into_iter().map(|sum| (sum / rows) as f32).collect()
    })
}
