//! The layers of a model: what each costs, and how near its map is to the float encoder's.

use std::collections::BTreeMap;

use nadir::model::{Architecture, Model, Place, STAGES};
use nadir::plan::cost::model_steps;
use nadir::plan::int8::Passes;
use nadir::plan::regions::places;
use nadir_formats::{Encoder, Tiles};
use rayon::prelude::*;

use crate::integers::{Integers, Seen, Watcher};
use crate::reference::{BlockTap, DownsampleTap, Observer, Reference, Tap};

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Where it is: `block 2.0`.
    pub place: String,
    /// What it is: `pointwise 1, GELU`.
    pub name: &'static str,
    /// Bytes of the file's sections that belong to it.
    pub bytes: u64,
    /// Multiply-adds of the kernels, stored channels and inputs that only fill up included; within a place shared out as the architecture's.
    pub macs: u64,
    /// Its map against the float encoder's; nothing for f32 and f16 models.
    pub map: Option<MapError>,
}

/// How near a map is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapError {
    /// Energy of the float map over energy of the difference, in decibels.
    pub decibels: f64,
    /// Mean over tiles of the cosine between the two maps.
    pub cosine: f64,
    /// Share of values that were cut off at the end of their range.
    pub saturated: f64,
    /// Least and largest value of the float map.
    pub range: [f64; 2],
}

/// A kind of layer: its name, its tap, the beginnings of its sections' names, and its multiply-adds by the architecture.
struct Kind {
    name: &'static str,
    tap: Tap,
    sections: &'static [&'static str],
    macs: u64,
}

fn kinds(arch: &Architecture, bands: usize, place: Place) -> Vec<Kind> {
    let kind = |name, tap, sections, macs: usize| Kind { name, tap, sections, macs: macs as u64 };
    match place {
        Place::Stem if arch.is_patchify() => {
            let stem = arch.patchify_inputs(bands) * arch.dim(0) * arch.grid(0).pow(2);
            vec![
                kind("input", Tap::Input, &["input"], 0),
                kind("convolution", Tap::StemConvolution, &["stem weight", "stem bias", "stem mult"], stem),
                kind("norm", Tap::StemNorm, &["stem norm"], 0),
            ]
        }
        Place::Stem => {
            let initial = 9 * bands * arch.dim(0) * arch.initial_grid().pow(2);
            let stem = arch.stem_stride().pow(2) * arch.dim(0) * arch.grid(0).pow(2);
            vec![
                kind("input", Tap::Input, &["input"], 0),
                kind("convolution 3x3", Tap::InitialConvolution, &["initial convolution"], initial),
                kind("norm, GELU", Tap::InitialActivation, &["initial norm", "GELU"], 0),
                kind("depthwise", Tap::StemConvolution, &["stem weight", "stem bias", "stem mult"], stem),
                kind("norm", Tap::StemNorm, &[], 0),
            ]
        }
        Place::Downsample { stage } => {
            let stage = usize::from(stage);
            let tap = |part| Tap::Downsample { stage, part };
            vec![
                kind("norm", tap(DownsampleTap::Normalised), &["norm"], 0),
                kind(
                    "convolution 2x2",
                    tap(DownsampleTap::Output),
                    &[],
                    4 * arch.dim(stage - 1) * arch.dim(stage) * arch.grid(stage).pow(2),
                ),
            ]
        }
        Place::Block { stage, block } => {
            let (stage, block) = (usize::from(stage), usize::from(block));
            let tap = |part| Tap::Block { stage, block, part };
            let (channels, positions) = (arch.dim(stage), arch.grid(stage).pow(2));
            let dense = 4 * channels.pow(2) * positions;
            vec![
                kind("depthwise 7x7", tap(BlockTap::Depthwise), &["depthwise"], 49 * channels * positions),
                kind("norm", tap(BlockTap::Normalised), &["norm"], 0),
                kind("pointwise 1, GELU", tap(BlockTap::Activation), &["pointwise 1", "GELU"], dense),
                kind("GRN", tap(BlockTap::GrnOutput), &["GRN"], 0),
                kind("pointwise 2", tap(BlockTap::Pointwise2), &["pointwise 2"], dense),
                kind("sum", tap(BlockTap::Output), &[], 0),
            ]
        }
        Place::Head => vec![kind("mean", Tap::Pooled, &[], 0), kind("norm", Tap::Embedding, &["norm"], 0)],
    }
}

/// The layers of `model`, compared with `encoder`'s on `tiles`; `done` is called after each tile.
pub fn compare(model: &Model<'_>, encoder: &Encoder, tiles: &Tiles, done: &(dyn Fn() + Sync)) -> Vec<Layer> {
    layers(model, &map_errors(model, encoder, tiles, done))
}

/// The layers of `model` without their maps: what each costs.
pub fn costs(model: &Model<'_>) -> Vec<Layer> {
    layers(model, &BTreeMap::new())
}

fn layers(model: &Model<'_>, errors: &BTreeMap<Tap, Sums>) -> Vec<Layer> {
    let (arch, bands) = (model.architecture(), model.bands().len());
    let mut layers = Vec::new();
    for place in places(arch) {
        let first = layers.len();
        let mut kinds = kinds(arch, bands, place);
        if model.is_raised(place) {
            let raised = kinds.iter_mut().filter(|kind| kind.name == "pointwise 2");
            raised.for_each(|kind| (kind.name, kind.macs) = ("pointwise 2, 14 bits", 2 * kind.macs));
        }
        let steps = model_steps(model, [Passes::One; STAGES]);
        let planned: u64 = steps.filter(|step| step.place == place).map(|step| step.total.macs).sum();
        let of_place = kinds.iter().map(|kind| kind.macs).sum::<u64>().max(1);
        let mut rest = planned;
        for kind in &kinds {
            let (name, map) = (kind.name, errors.get(&kind.tap).map(Sums::error));
            // What the kernels do is known for the place; its layers have their share of it, what rounding leaves goes to the heaviest.
            let macs = planned * kind.macs / of_place;
            rest -= macs;
            layers.push(Layer { place: place.to_string(), name, bytes: 0, macs, map });
        }
        for index in 0..model.section_count() {
            let (Some(spec), Some(entry)) = (model.expected(index), model.section_entry(index)) else { continue };
            if spec.place != place {
                continue;
            }
            // Constants belong to the last layer of the place.
            let of_kind = |kind: &Kind| kind.sections.iter().any(|start| spec.name.starts_with(start));
            let at = kinds.iter().position(of_kind).unwrap_or(kinds.len() - 1);
            layers[first + at].bytes += entry.bytes() as u64;
        }
        if let Some(heaviest) = layers[first..].iter_mut().max_by_key(|layer| layer.macs) {
            heaviest.macs += rest;
        }
    }
    layers
}

/// Sums over a pair of maps, x of the float encoder and q of the integers.
#[derive(Clone, Copy, Default)]
struct Sums {
    xx: f64,
    xq: f64,
    qq: f64,
    cosines: f64,
    tiles: f64,
    saturated: f64,
    values: f64,
    range: [f64; 2],
}

impl Sums {
    fn of(exact: &[f64], found: &[f64], saturated: f64, stored: f64) -> Self {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (xx, xq, qq) = (dot(exact, exact), dot(exact, found), dot(found, found));
        let cosine = if xx * qq > 0.0 { xq / (xx * qq).sqrt() } else { f64::from(u8::from(xx == qq)) };
        let range = exact.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], &v| [l.min(v), h.max(v)]);
        Self { xx, xq, qq, cosines: cosine, tiles: 1.0, saturated, values: stored, range }
    }

    fn add(&mut self, other: &Self) {
        let sums = [self.xx + other.xx, self.xq + other.xq, self.qq + other.qq, self.cosines + other.cosines];
        [self.xx, self.xq, self.qq, self.cosines] = sums;
        self.range = match self.tiles {
            0.0 => other.range,
            _ => [self.range[0].min(other.range[0]), self.range[1].max(other.range[1])],
        };
        self.tiles += other.tiles;
        self.saturated += other.saturated;
        self.values += other.values;
    }

    fn error(&self) -> MapError {
        // The difference left when q has the scale xq / qq.
        let noise = if self.qq > 0.0 { self.xx - self.xq * self.xq / self.qq } else { self.xx };
        MapError {
            decibels: 10.0 * (self.xx / noise.max(f64::MIN_POSITIVE)).log10(),
            cosine: self.cosines / self.tiles.max(1.0),
            saturated: self.saturated / self.values.max(1.0),
            range: self.range,
        }
    }
}

fn map_errors(model: &Model<'_>, encoder: &Encoder, tiles: &Tiles, done: &(dyn Fn() + Sync)) -> BTreeMap<Tap, Sums> {
    let reference = Reference::new(encoder);
    let of_tile = |index: usize| {
        let integers = Integers::new(model)?;
        let mut float = Float::default();
        reference.embed(tiles.tile(index), &mut float);
        let mut pair = Pair { encoder, integers: &integers, exact: float.maps, sums: BTreeMap::new() };
        integers.embed(tiles.tile(index), &mut pair);
        done();
        Some(pair.sums)
    };
    // Whoever finishes first, the sums are in the order of the tiles.
    let each: Vec<_> = (0..tiles.len()).into_par_iter().map(of_tile).collect();
    let mut all: BTreeMap<Tap, Sums> = BTreeMap::new();
    each.iter().flatten().flatten().for_each(|(tap, sums)| all.entry(*tap).or_default().add(sums));
    all
}

/// Keeps the maps of one tile in float.
#[derive(Default)]
struct Float {
    maps: BTreeMap<Tap, Vec<f64>>,
}

impl Observer for Float {
    fn observe(&mut self, tap: Tap, _: usize, values: &[f64]) {
        self.maps.insert(tap, values.to_vec());
    }
}

/// Compares the integers' maps of a tile with those.
struct Pair<'a> {
    encoder: &'a Encoder,
    integers: &'a Integers<'a>,
    exact: BTreeMap<Tap, Vec<f64>>,
    sums: BTreeMap<Tap, Sums>,
}

impl Watcher for Pair<'_> {
    fn watch(&mut self, tap: Tap, seen: Seen<'_>) {
        let Some(mut exact) = self.exact.remove(&tap) else { return };
        let divisors = self.integers.divisors(tap);
        let positions = seen.values.chunks_exact(seen.stored);
        let found: Vec<f64> = positions
            .flat_map(|values| values[..seen.channels].iter().enumerate())
            .map(|(c, &v)| v as f64 * divisors.as_ref().map_or(1.0, |divisors| divisors[c]))
            .collect();
        if let Tap::Block { stage, block, part: BlockTap::GrnOutput } = tap {
            // GRN's beta is in the next layer's bias.
            let beta = &self.encoder.tensor(&format!("stages.{stage}.{block}.grn.beta")).data;
            exact.iter_mut().enumerate().for_each(|(i, v)| *v -= f64::from(beta[i % beta.len()]));
        }
        self.sums.insert(tap, Sums::of(&exact, &found, seen.saturated as f64, seen.values.len() as f64));
    }
}
