//! What passes through an encoder on one tile, at the places that get scales in the integer engine.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};
use nadir::model::{Architecture, STAGES};
use nadir_formats::scales::Sampling;

use super::block::{self, Block};
use super::chain::Layer;
use super::downsample::Downsample;
use super::fused::with_values;
use super::grid::Geometry;
use super::kernels::{affine_rows, normalise_rows, scale_rows, stem_rows};
use super::stem::Stem;
use super::{BlockParams, DownsampleParams, PatchifyParams, StemParams, layer_norm, patchify};
use crate::params::Params;

/// What was seen at one place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Largest magnitude of each channel.
    pub largest: Vec<f64>,
    /// Values of some positions, `[positions, channels]`.
    pub samples: Vec<f32>,
}

impl Seen {
    /// Takes in what was seen at the same place of another tile.
    pub fn merge(&mut self, other: Self) {
        self.largest.resize(other.largest.len(), 0.0);
        self.largest.iter_mut().zip(other.largest).for_each(|(a, b)| *a = a.max(b));
        self.samples.extend(other.samples);
    }
}

/// Collects by name. A layer's name stands for its output; where a LayerNorm is folded into the layer that follows, its name
/// stands for the rows before its weight and bias.
struct Notes {
    seen: BTreeMap<String, Seen>,
    sampling: Sampling,
}

impl Notes {
    /// Notes the largest values of `[positions, channels]`.
    fn largest(&mut self, name: String, channels: usize, values: &[f32]) -> &mut Seen {
        let mut largest = vec![0.0f32; channels];
        for row in values.chunks_exact(channels) {
            largest.iter_mut().zip(row).for_each(|(largest, v)| *largest = largest.max(v.abs()));
        }
        let seen = self.seen.entry(name).or_default();
        seen.largest = largest.into_iter().map(f64::from).collect();
        seen
    }

    /// The same, and samples of them.
    fn sample(&mut self, name: String, channels: usize, values: &[f32], is_input: bool) {
        let kept = self.sampling.positions(values.len() / channels, channels, is_input);
        let samples = kept.flat_map(|position| &values[position * channels..][..channels]).copied().collect();
        self.largest(name, channels, values).samples = samples;
    }
}

/// What is seen of one tile `[1, bands, side, side]` (f32, on the host), by the names of layers:
///
/// - largest outputs of `initial_conv.0` (MMEarth's stem alone), `stem.0`, `stem.1` and of `downsample_layers.N.1`; in a block, of
///   `dwconv`, `pwconv2` and, as `output`, of the block itself; and as `grn.relative` the ratios of the norms to the mean norm;
/// - samples of what enters the stem's GELU as `initial_conv.1` (MMEarth's stem alone), of the normalised rows `downsample_layers.N.0`
///   and `norm`, of what enters a block's GELU as `pwconv1`, and of `grn` without its beta.
pub fn observe(
    x: &Tensor,
    params: &Params,
    architecture: &Architecture,
    geometry: &Geometry,
    sampling: Sampling,
) -> Result<BTreeMap<String, Seen>> {
    let (ln_eps, grn_eps) = (architecture.ln_eps, architecture.grn_eps);
    let mut notes = Notes { seen: BTreeMap::new(), sampling };
    let flat = |tensors: &[&Tensor]| -> Result<Vec<f32>> {
        let flat = tensors.iter().map(|t| t.flatten_all()).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&flat, 0)?.to_vec1()
    };
    let (bands, channels) = (x.dim(1)?, architecture.dim(0));
    let mut map = match architecture.is_patchify() {
        true => {
            let p = PatchifyParams::of(params);
            let rows = patchify::convolve(x, &p, geometry)?;
            let map = layer_norm(&rows, &p.norm_weight, &p.norm_bias, ln_eps)?;
            let [rows, map] = [flat(&[&rows])?, flat(&[&map])?];
            notes.largest("stem.0".into(), channels, &rows);
            notes.largest("stem.1".into(), channels, &map);
            map
        }
        false => {
            let stem = Stem { geometry: geometry.clone(), bands, channels, ln_eps, rounding: None };
            let own = flat(&StemParams::of(params).all())?;
            with_values([x], |[x]| stem.observe(x, &own, &mut notes))?
        }
    };
    for stage in 0..STAGES {
        let channels = architecture.dim(stage);
        if stage > 0 {
            let (geometry, before) = (geometry.clone(), architecture.dim(stage - 1));
            let layer = Downsample { geometry, stage: stage - 1, before, after: channels, ln_eps, rounding: None };
            let own = flat(&DownsampleParams::of(params, stage - 1).all())?;
            let unit = layer.columns(&map, 0, [&own[..before], &own[before..2 * before]]).0;
            let name = format!("downsample_layers.{}", stage - 1);
            notes.sample(format!("{name}.0"), before, &unit, false);
            map = layer.forward(&map, &own, false).0;
            notes.largest(format!("{name}.1"), channels, &map);
        }
        for at in 0..architecture.depths[stage] {
            let grid = geometry.grids[stage].clone();
            let layer = Block { grid, channels, grn: geometry.grn, ln_eps, grn_eps, rounding: None };
            let name = format!("stages.{stage}.{at}");
            map = layer.observe(&map, &flat(&BlockParams::of(params, &name).all())?, &name, &mut notes);
        }
    }
    Ok(notes.seen)
}

impl Stem {
    /// The rows of stage 0.
    fn observe(&self, tile: &[f32], flat: &[f32], notes: &mut Notes) -> Vec<f32> {
        let (w, d) = (self.weights(flat), self.channels);
        let (_, exists, mut unit) = self.first_sites(&w, tile, 0);
        let sites = exists.len();
        notes.largest("initial_conv.0".into(), d, &unit);
        normalise_rows(&mut unit, &mut vec![0.0; sites], self.ln_eps);
        let mut entering = vec![0f32; sites * d];
        affine_rows(&mut entering, &unit, w.norm1[0], w.norm1[1]);
        // Row by row, so that the same positions are sampled as of any other map.
        let side = self.geometry.initial_side;
        let mut placed: Vec<_> =
            self.read_sites(0).enumerate().filter_map(|(i, site)| site.map(|[y, x]| (y * side + x, i))).collect();
        placed.sort_unstable();
        let in_rows: Vec<f32> = placed.iter().flat_map(|(_, i)| &entering[i * d..][..d]).copied().collect();
        notes.sample("initial_conv.1".into(), d, &in_rows, false);
        let mut out = vec![0f32; self.geometry.grids[0].rows * d];
        stem_rows(&mut unit, &mut vec![0.0; sites * d], &mut out, &exists, w.norm1, &w.stem, w.stem_bias);
        notes.largest("stem.0".into(), d, &out);
        let (map, _) = self.forward(tile, flat, false);
        notes.largest("stem.1".into(), d, &map);
        map
    }
}

impl Block {
    /// The map after the block.
    fn observe(&self, x: &[f32], flat: &[f32], name: &str, notes: &mut Notes) -> Vec<f32> {
        let (w, d) = (block::Weights::new(flat, self.channels), self.channels);
        let n = x.len() / d;
        let (mut unit, mut scale, mut wide) = (vec![0f32; n * d], vec![0f32; n], vec![0f32; n * 4 * d]);
        self.convolve(&w, 0, x, &mut unit);
        notes.largest(format!("{name}.dwconv"), d, &unit);
        let (mut active, squares) = self.to_wide(&w, 0, x, &mut unit, &mut scale, &mut wide);
        notes.sample(format!("{name}.norm"), d, &unit, true);
        notes.sample(format!("{name}.pwconv1"), 4 * d, &wide, false);
        let responses = self.responses(&w, &squares);
        notes.largest(format!("{name}.grn.relative"), 4 * d, &responses[0].relative);
        scale_rows(&mut active, &responses[0].factors, &vec![0.0; 4 * d]);
        notes.sample(format!("{name}.grn"), 4 * d, &active, true);
        let (out, _) = self.forward(x, flat, false);
        let added: Vec<f32> = out.iter().zip(x).map(|(out, x)| out - x).collect();
        notes.largest(format!("{name}.pwconv2"), d, &added);
        notes.largest(format!("{name}.output"), d, &out);
        out
    }
}
