//! What a run costs, step by step: multiply-adds, bytes of weights, bytes of activations. Known before anything is computed.
//!
//! - Multiply-adds are those that the kernels do: over stored channels and inputs, taps beyond the border included. They are a few percent more
//!   than [`Architecture::macs`] counts, and in two passes the recomputed ones come on top.
//! - Bytes of weights (with biases, multipliers and tables) count once a step: kernels read a layer's weights once a strip.
//! - Bytes of activations count every value that an operation reads or writes in the arena, once an operation.
//!
//! Steps of f32 and f16 models are the strips of their engine.

use super::int8::{Passes, StagePasses, Strips, downsample_strips, input_row};
use super::regions::places;
use super::strip_rows;
use crate::kernels::int8::{Area, DEPTHWISE_SIDE};
use crate::model::int8_layout::{TABLE, initial_segment, panels, patchify_inputs, stored};
use crate::model::{Architecture, Model, Place, Precision};

/// What a piece of work costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-adds.
    pub macs: u64,
    /// Bytes of the model file that are read.
    pub weights: u64,
    /// Bytes of the arena that are read and written.
    pub activations: u64,
}

impl core::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            macs: self.macs + other.macs,
            weights: self.weights + other.weights,
            activations: self.activations + other.activations,
        }
    }
}

impl core::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |sum, cost| sum + cost)
    }
}

/// All steps of one kind: those of one pass over one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKind {
    /// Where.
    pub place: Place,
    /// In a block: 0 up to GRN's sums, 1 from GRN on.
    pub pass: u8,
    /// How the place's stage keeps its hidden maps.
    pub passes: Passes,
    /// Number of steps.
    pub steps: usize,
    /// Rows of the largest step's strip.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// What the step with the most multiply-adds costs.
    pub largest: Cost,
    /// What all of them cost.
    pub total: Cost,
}

/// The kinds of steps of a run, in its order, where no layer is raised. `passes` count for int8 only.
pub fn steps<'a>(
    arch: &'a Architecture,
    bands: usize,
    precision: Precision,
    passes: StagePasses,
) -> impl Iterator<Item = StepKind> + 'a {
    kinds(arch, bands, precision, passes, |_| false)
}

/// The kinds of steps of a run of `model`, in its order: as [`steps`], but a raised layer is computed twice.
pub fn model_steps<'a>(model: &'a Model<'a>, passes: StagePasses) -> impl Iterator<Item = StepKind> + 'a {
    kinds(model.architecture(), model.bands().len(), model.precision(), passes, |place| model.is_raised(place))
}

fn kinds<'a>(
    arch: &'a Architecture,
    bands: usize,
    precision: Precision,
    passes: StagePasses,
    raised: impl Fn(Place) -> bool + 'a,
) -> impl Iterator<Item = StepKind> + 'a {
    places(arch).flat_map(move |place| {
        let raised = raised(place);
        let kinds = if matches!(place, Place::Block { .. }) { 2 } else { 1 };
        (0..kinds).map(move |pass| match precision {
            Precision::Int8 => int8(arch, bands, passes, place, pass, raised),
            Precision::F32 => float(arch, bands, 4, place, pass),
            Precision::F16 => float(arch, bands, 2, place, pass),
        })
    })
}

/// What a whole run costs where no layer is raised.
pub fn total(arch: &Architecture, bands: usize, precision: Precision, passes: StagePasses) -> Cost {
    steps(arch, bands, precision, passes).map(|kind| kind.total).sum()
}

/// Adds up the strips of a pass.
fn sum(place: Place, pass: u8, passes: Passes, strips: Strips, cost: impl Fn(&Area) -> Cost) -> StepKind {
    let (mut largest, mut total) = (Cost::default(), Cost::default());
    for index in 0..strips.count() {
        let cost = cost(&strips.area(index));
        if index == 0 || cost.macs > largest.macs {
            largest = cost;
        }
        total = total + cost;
    }
    StepKind { place, pass, passes, steps: strips.count(), rows: strips.rows, columns: strips.columns, largest, total }
}

/// Bias and multiplier of a dense or depthwise layer.
const PER_OUTPUT: usize = size_of::<i32>() + size_of::<i16>();
const TABLE_BYTES: usize = TABLE * size_of::<i16>();

/// The product, also where it does not fit the addresses of a small processor.
fn product(factors: [usize; 3]) -> u64 {
    factors.iter().map(|&factor| factor as u64).product()
}

fn cost(macs: u64, weights: usize, activations: usize) -> Cost {
    Cost { macs, weights: weights as u64, activations: activations as u64 }
}

/// Pixels of the map that the depthwise convolution of an area reads.
fn window(area: &Area, grid: usize) -> usize {
    let half = DEPTHWISE_SIDE / 2;
    let grown = |range: &core::ops::Range<usize>| (range.end + half).min(grid) - range.start.saturating_sub(half);
    grown(&area.y) * grown(&area.x)
}

fn int8(arch: &Architecture, bands: usize, passes: StagePasses, place: Place, pass: u8, raised: bool) -> StepKind {
    match place {
        Place::Stem if arch.is_patchify() => {
            let (d, grid, inputs) = (stored(arch.dim(0)), arch.grids()[0], patchify_inputs(arch, bands));
            let weights = panels(d) * (inputs + PER_OUTPUT) + 2 * size_of::<i32>() * d;
            // Rows of the input, gathered into patches; the convolution and two operations in place.
            let activations = 2 * (2 * arch.stem_stride() * input_row(arch, bands) + 2 * grid * inputs + 5 * grid * d);
            let strips = Strips { grid, rows: 1, columns: grid };
            sum(place, pass, Passes::One, strips, |_| cost(product([grid, inputs, d]), weights, activations))
        }
        Place::Stem => {
            let (d, k, width, grid) = (stored(arch.dim(0)), arch.stem_stride(), arch.initial_grid(), arch.grids()[0]);
            let (inputs, row) = (3 * initial_segment(bands), input_row(arch, bands));
            let macs = product([k * width, inputs, d]) + product([grid * k, k, d]);
            let affine = 2 * 2 * size_of::<i32>() * d;
            let weights = panels(d) * (inputs + PER_OUTPUT) + d * (k * k + PER_OUTPUT) + affine + TABLE_BYTES;
            // Rows of the input; the initial convolution and three operations in place; the stem and two.
            let (values, output) = (2 * k * width * d, 2 * grid * d);
            let activations = 2 * row * (2 * k + 2) + 8 * values + 5 * output;
            let strips = Strips { grid, rows: 1, columns: grid };
            sum(place, pass, Passes::One, strips, |_| cost(macs, weights, activations))
        }
        Place::Downsample { stage } => {
            let stage = usize::from(stage);
            let (before, d, grid) = (stored(arch.dim(stage - 1)), stored(arch.dim(stage)), arch.grids()[stage]);
            let weights = panels(d) * (4 * before + PER_OUTPUT);
            sum(place, pass, Passes::One, downsample_strips(grid), |area| {
                let pixels = area.y.len() * area.x.len();
                let patches = pixels * 4 * before;
                // LayerNorm from i16 to i8, gathered into patches, read by the convolution, whose result is cleared and added to.
                cost(product([pixels, 4 * before, d]), weights, 2 * patches + 4 * patches + 3 * 2 * pixels * d)
            })
        }
        Place::Block { stage, .. } => {
            let stage = usize::from(stage);
            let (d, grid, passes) = (stored(arch.dim(stage)), arch.grids()[stage], passes[stage]);
            let wide = 4 * d;
            let first = |area: &Area| {
                let pixels = area.y.len() * area.x.len();
                let weights = d * (DEPTHWISE_SIDE.pow(2) + PER_OUTPUT) + wide * (d + PER_OUTPUT) + TABLE_BYTES;
                // Depthwise, LayerNorm, pointwise, and the sums of squares.
                let activations = 2 * window(area, grid) * d + (2 + 2 + 1 + 1) * pixels * d + pixels * wide + 16 * wide;
                cost(product([pixels, d, DEPTHWISE_SIDE.pow(2) + wide]), weights, activations)
            };
            let second = |area: &Area| {
                let pixels = area.y.len() * area.x.len();
                // Of a raised layer twice, with the upper and with the lower part of its inputs.
                let parts = if raised { 2 } else { 1 };
                let weights = parts * panels(d) * (wide + PER_OUTPUT) + TABLE_BYTES;
                // Activation in place, pointwise, the residual map.
                let activations = (1 + 2 * parts) * pixels * wide + 2 * wide + parts * 2 * 2 * pixels * d;
                cost(product([parts * pixels, wide, d]), weights, activations)
            };
            let strips = Strips::of(grid, passes);
            sum(place, pass, passes, strips, |area| match (pass, passes) {
                (0, _) => first(area),
                (_, Passes::One) => second(area),
                // The row that is about to change is kept aside.
                (_, Passes::Two) => {
                    first(area) + second(area) + cost(0, 0, if area.x.start == 0 { 4 * grid * d } else { 0 })
                }
            })
        }
        Place::Head => {
            let (d, grid) = (stored(arch.dim(3)), arch.grids()[3]);
            let strips = Strips { grid, rows: grid, columns: grid };
            sum(place, pass, Passes::One, strips, |_| cost(0, 12 * arch.dim(3), 2 * grid * grid * d + 16 * d))
        }
    }
}

/// `weight`: bytes of a weight of a convolution.
fn float(arch: &Architecture, bands: usize, weight: usize, place: Place, pass: u8) -> StepKind {
    const F32: usize = size_of::<f32>();
    let whole_rows = |grid: usize| Strips { grid, rows: strip_rows(grid), columns: grid };
    match place {
        Place::Stem if arch.is_patchify() => {
            let (d, grid, inputs) = (arch.dim(0), arch.grids()[0], arch.patchify_inputs(bands));
            let weights = d * (inputs * weight + 3 * F32);
            let strips = Strips { grid, rows: 1, columns: grid };
            let activations = F32 * grid * (3 * inputs + 3 * d);
            sum(place, pass, Passes::One, strips, |_| cost(product([grid, inputs, d]), weights, activations))
        }
        Place::Stem => {
            let (d, k, width, grid) = (arch.dim(0), arch.stem_stride(), arch.initial_grid(), arch.grids()[0]);
            let macs = product([k * width, 9 * bands, d]) + product([grid * k, k, d]);
            let weights = d * ((9 * bands + k * k) * weight + 6 * F32);
            let activations = F32 * (k * width * (2 * 9 * bands + 6 * d) + 3 * grid * d);
            let strips = Strips { grid, rows: 1, columns: grid };
            sum(place, pass, Passes::One, strips, |_| cost(macs, weights, activations))
        }
        Place::Downsample { stage } => {
            let stage = usize::from(stage);
            let (before, d, grid) = (arch.dim(stage - 1), arch.dim(stage), arch.grids()[stage]);
            let weights = 4 * before * d * weight + F32 * (2 * before + d);
            sum(place, pass, Passes::One, whole_rows(grid), |area| {
                let pixels = area.y.len() * area.x.len();
                cost(product([pixels, 4 * before, d]), weights, F32 * pixels * (5 * 4 * before + 3 * d))
            })
        }
        Place::Block { stage, .. } => {
            let (d, grid) = (arch.dim(stage.into()), arch.grids()[usize::from(stage)]);
            sum(place, pass, Passes::One, whole_rows(grid), |area| {
                let pixels = area.y.len() * area.x.len();
                if pass == 0 {
                    let weights = d * (49 * weight + 3 * F32) + 4 * d * (d * weight + F32);
                    let activations = F32 * (window(area, grid) * d + pixels * (4 * d + 4 * 4 * d));
                    cost(product([pixels, d, 49 + 4 * d]), weights, activations)
                } else {
                    let weights = 4 * d * d * weight + F32 * (d + 2 * 4 * d);
                    cost(product([pixels, 4 * d, d]), weights, F32 * pixels * (3 * 4 * d + 4 * d))
                }
            })
        }
        Place::Head => {
            let (d, grid) = (arch.dim(3), arch.grids()[3]);
            let strips = Strips { grid, rows: grid, columns: grid };
            sum(place, pass, Passes::One, strips, |_| cost(0, 2 * F32 * d, F32 * d * (grid * grid + 4)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{STAGES, StemPadding};
    use crate::plan::int8::recomputed;
    use Passes::{One, Two};

    #[test]
    fn multiply_adds_are_those_of_the_architecture() {
        let same = [("yocto", 64, 16), ("zepto", 64, 16), ("atto", 56, 8)]
            .map(|(size, tile, patch)| Architecture::named(size, tile, patch).unwrap());
        let patchify = Architecture { stem_padding: StemPadding::Patchify, patch_size: 32, ..same[0] };
        for arch in same.into_iter().chain([patchify]) {
            // Stored channels are the architecture's, and 12 bands fill their inputs.
            for precision in [Precision::Int8, Precision::F16, Precision::F32] {
                assert_eq!(total(&arch, 12, precision, [One; STAGES]).macs, arch.macs(12), "{arch:?} {precision:?}");
            }
            for stage in 0..STAGES {
                let mut passes = [One; STAGES];
                passes[stage] = Two;
                let two = total(&arch, 12, Precision::Int8, passes).macs;
                assert_eq!(two, arch.macs(12) + recomputed(&arch, stage), "{arch:?}");
            }
        }
    }

    #[test]
    fn the_parts_make_the_whole() {
        let arch = Architecture::named("atto", 56, 8).unwrap();
        for kind in steps(&arch, 12, Precision::Int8, [Two, One, Two, One]) {
            assert!(kind.largest.macs * kind.steps as u64 >= kind.total.macs, "{kind:?}");
            assert!(kind.largest.macs <= kind.total.macs && kind.total.activations > 0, "{kind:?}");
            assert_eq!(kind.total.weights, kind.largest.weights * kind.steps as u64, "{kind:?}");
            assert!(kind.rows * kind.columns <= 64 || !matches!(kind.place, Place::Block { .. }));
        }
    }
}
