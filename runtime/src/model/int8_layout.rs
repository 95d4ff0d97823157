//! Which sections an int8 model has, and typed views of them.
//!
//! The engine stores every channel count rounded up to a multiple of 8 ([`stored`]); the weights of channels beyond the
//! architecture's are zero. Dense weights are in panels (`kernels/int8/mod.rs` says how), depthwise weights `[taps, channels]`; inputs of the
//! 3x3 and 2x2 convolutions are ordered `(row, column, channel)`, each of the three rows of the 3x3 one rounded up to a multiple of 4; so
//! are those of a patchify stem, all of them rounded up to a multiple of 12. What each number means is in `docs/integer-arithmetic.md`; the
//! last section of each unit holds its scalar constants, whose ranges [`check`] asserts when a model is parsed.

use super::{Architecture, Dtype, Model, ModelError, Place, STAGES, SectionSpec, VERSION_MAJOR};
use crate::kernels::fixed::LayerNorm;
use crate::kernels::int8::{Dense, Depthwise, GROUP, LOW_BITS, Norm, PANEL, Table};

/// Fractional bits of the normalised input.
pub const INPUT_FRACTION_BITS: u32 = 11;
/// Fractional bits of the normalised values of the stem's LayerNorms.
pub const STEM_NORM_FRACTION_BITS: u32 = 10;
/// Fractional bits of the pooled mean on its way into the final LayerNorm.
pub const POOL_BITS: u32 = 4;
/// Fractional bits of a GRN norm.
pub const NORM_BITS: u32 = 8;
/// Fractional bits of a GRN norm's ratio to the mean norm.
pub const RATIO_BITS: u32 = 16;
/// Entries of a GELU table.
pub const TABLE: usize = 256;
/// Largest magnitude of an entry.
pub const TABLE_MAX: i16 = 4095;
/// Channel counts are multiples of this.
pub const CHANNELS: usize = 8;

/// A channel count as the engine stores it: rounded up to a multiple of [`CHANNELS`].
pub const fn stored(channels: usize) -> usize {
    channels.next_multiple_of(CHANNELS)
}

/// Inputs that a row of the initial 3x3 convolution takes in its weights.
pub const fn initial_segment(bands: usize) -> usize {
    (3 * bands).next_multiple_of(GROUP)
}

/// Inputs that a patchify stem takes in its weights: rounded up so that a patch has three parts of whole groups, as
/// [`Int8Kernels::initial`](crate::kernels::int8::Int8Kernels::initial) reads them.
pub const fn patchify_inputs(arch: &Architecture, bands: usize) -> usize {
    arch.patchify_inputs(bands).next_multiple_of(3 * GROUP)
}

/// Values of a per-output section of a dense layer: whole panels.
pub const fn panels(outputs: usize) -> usize {
    outputs.next_multiple_of(PANEL)
}

/// Sections of MMEarth's stem.
const STEM_SECTIONS: usize = 14;
/// Sections of a patchify stem.
const PATCHIFY_SECTIONS: usize = 8;
/// Sections of the stem.
pub const fn stem_sections(arch: &Architecture) -> usize {
    if arch.is_patchify() { PATCHIFY_SECTIONS } else { STEM_SECTIONS }
}

/// Sections of a downsampling.
pub const DOWNSAMPLE_SECTIONS: usize = 4;
/// Sections of a block.
pub const BLOCK_SECTIONS: usize = 13;
/// Sections of the head.
pub const HEAD_SECTIONS: usize = 3;

/// What the shift of a raised layer has in addition, in files of versions 2 and 3.
pub const RAISED: i32 = 32;
/// Largest shift of a raised layer: that of the lower parts of its inputs is [`LOW_BITS`] more, and at most 31.
pub const MAX_RAISED_SHIFT: i32 = 31 - LOW_BITS as i32;

const STEM_CONSTANTS: usize = 13;
const PATCHIFY_CONSTANTS: usize = 7;
const DOWNSAMPLE_CONSTANTS: usize = 5;
const BLOCK_CONSTANTS: usize = 10;
const HEAD_CONSTANTS: usize = 4;

/// Index of the first section of `place`.
pub fn start(arch: &Architecture, place: Place) -> usize {
    let stage_start = |stage: usize| {
        let blocks: usize = arch.depths.iter().take(stage).map(|&d| usize::from(d)).sum();
        stem_sections(arch) + blocks * BLOCK_SECTIONS + stage.saturating_sub(1) * DOWNSAMPLE_SECTIONS
    };
    match place {
        Place::Stem => 0,
        Place::Downsample { stage } => stage_start(stage.into()),
        Place::Block { stage, block } => {
            stage_start(stage.into())
                + usize::from(stage > 0) * DOWNSAMPLE_SECTIONS
                + usize::from(block) * BLOCK_SECTIONS
        }
        Place::Head => stage_start(STAGES),
    }
}

/// Every place of an encoder in the order of its sections, with the number of its sections.
fn places(arch: &Architecture) -> impl Iterator<Item = (Place, usize)> + '_ {
    let stages = (0..STAGES as u8).flat_map(|stage| {
        let down = (stage > 0).then_some((Place::Downsample { stage }, DOWNSAMPLE_SECTIONS));
        let blocks = 0..arch.depth(stage.into()) as u8;
        down.into_iter().chain(blocks.map(move |block| (Place::Block { stage, block }, BLOCK_SECTIONS)))
    });
    [(Place::Stem, stem_sections(arch))].into_iter().chain(stages).chain([(Place::Head, HEAD_SECTIONS)])
}

/// What section `index` must be, or `None` past the last.
pub fn expected_section(arch: &Architecture, bands: usize, index: usize) -> Option<SectionSpec> {
    let mut first = 0;
    let (place, within) = places(arch).find_map(|(place, sections)| {
        let within = index - first;
        first += sections;
        (index < first).then_some((place, within))
    })?;
    let (name, dtype, elements) = match place {
        Place::Stem if arch.is_patchify() => patchify_section(arch, bands, within),
        Place::Stem => stem_section(arch, bands, within),
        Place::Downsample { stage } => downsample_section(arch, stage.into(), within),
        Place::Block { stage, .. } => block_section(arch.dim(stage.into()), within),
        Place::Head => head_section(arch, within),
    };
    Some(SectionSpec { place, name, dtype, elements })
}

type Section = (&'static str, Dtype, usize);

fn stem_section(arch: &Architecture, bands: usize, index: usize) -> Section {
    let (d, k) = (stored(arch.dim(0)), arch.stem_stride());
    match index {
        0 => ("input multiplier", Dtype::I32, bands),
        1 => ("input offset", Dtype::I64, bands),
        2 => ("initial convolution weight", Dtype::I8, panels(d) * 3 * initial_segment(bands)),
        3 => ("initial convolution bias", Dtype::I32, panels(d)),
        4 => ("initial convolution multiplier", Dtype::I16, panels(d)),
        5 => ("initial norm gain", Dtype::I32, d),
        6 => ("initial norm offset", Dtype::I32, d),
        7 => ("GELU table", Dtype::I16, TABLE),
        8 => ("stem weight", Dtype::I8, k * k * d),
        9 => ("stem bias", Dtype::I32, d),
        10 => ("stem multiplier", Dtype::I16, d),
        11 => ("stem norm gain", Dtype::I32, d),
        12 => ("stem norm offset", Dtype::I32, d),
        _ => ("constants", Dtype::I32, STEM_CONSTANTS),
    }
}

fn patchify_section(arch: &Architecture, bands: usize, index: usize) -> Section {
    let d = stored(arch.dim(0));
    match index {
        0 => ("input multiplier", Dtype::I32, bands),
        1 => ("input offset", Dtype::I64, bands),
        2 => ("stem weight", Dtype::I8, panels(d) * patchify_inputs(arch, bands)),
        3 => ("stem bias", Dtype::I32, panels(d)),
        4 => ("stem multiplier", Dtype::I16, panels(d)),
        5 => ("stem norm gain", Dtype::I32, d),
        6 => ("stem norm offset", Dtype::I32, d),
        _ => ("constants", Dtype::I32, PATCHIFY_CONSTANTS),
    }
}

fn downsample_section(arch: &Architecture, stage: usize, index: usize) -> Section {
    let (before, d) = (stored(arch.dim(stage - 1)), stored(arch.dim(stage)));
    match index {
        0 => ("convolution weight", Dtype::I8, panels(d) * 4 * before),
        1 => ("convolution bias", Dtype::I32, panels(d)),
        2 => ("convolution multiplier", Dtype::I16, panels(d)),
        _ => ("constants", Dtype::I32, DOWNSAMPLE_CONSTANTS),
    }
}

fn block_section(d: usize, index: usize) -> Section {
    let d = stored(d);
    match index {
        0 => ("depthwise weight", Dtype::I8, 49 * d),
        1 => ("depthwise bias", Dtype::I32, d),
        2 => ("depthwise multiplier", Dtype::I16, d),
        3 => ("pointwise 1 weight", Dtype::I8, 4 * d * d),
        4 => ("pointwise 1 bias", Dtype::I32, 4 * d),
        5 => ("pointwise 1 multiplier", Dtype::I16, 4 * d),
        6 => ("GELU table", Dtype::I16, TABLE),
        7 => ("GRN gain", Dtype::I32, 4 * d),
        8 => ("GRN slope", Dtype::I32, 4 * d),
        9 => ("pointwise 2 weight", Dtype::I8, panels(d) * 4 * d),
        10 => ("pointwise 2 bias", Dtype::I32, panels(d)),
        11 => ("pointwise 2 multiplier", Dtype::I16, panels(d)),
        _ => ("constants", Dtype::I32, BLOCK_CONSTANTS),
    }
}

fn head_section(arch: &Architecture, index: usize) -> Section {
    match index {
        0 => ("norm gain", Dtype::I32, arch.embedding_dimension()),
        1 => ("norm offset", Dtype::I64, arch.embedding_dimension()),
        _ => ("constants", Dtype::I32, HEAD_CONSTANTS),
    }
}

/// Reads constants in order and remembers the first that is out of its range.
struct Reader<'a> {
    values: &'a [i32],
    next: usize,
    bad: Option<usize>,
    /// Whether layers of this file may be raised.
    raises: bool,
}

impl<'a> Reader<'a> {
    /// The constants of section `index`.
    fn new(model: &Model<'a>, index: usize) -> Self {
        Self { values: model.section(index), next: 0, bad: None, raises: model.version_major() > VERSION_MAJOR }
    }

    /// The next constant, pulled into `min..=max`.
    fn next(&mut self, min: i32, max: i32) -> i32 {
        let value = self.values.get(self.next).copied().unwrap_or(min);
        if !(min..=max).contains(&value) {
            self.bad.get_or_insert(self.next);
        }
        self.next += 1;
        value.clamp(min, max)
    }

    /// Of an accumulator.
    fn shift(&mut self) -> u32 {
        self.next(0, 31) as u32
    }

    /// Of the second pointwise layer of a block, and whether it is raised.
    fn raisable_shift(&mut self) -> (u32, bool) {
        let value = self.next(0, if self.raises { RAISED + MAX_RAISED_SHIFT } else { 31 });
        (value as u32 & 31, value >= RAISED)
    }

    /// Of a 64-bit product.
    fn wide_shift(&mut self) -> u32 {
        self.next(1, 62) as u32
    }

    /// Two words, low first, below 2^62.
    fn wide(&mut self) -> u64 {
        let low = self.next(i32::MIN, i32::MAX) as u32;
        u64::from(low) | (self.next(0, (1 << 30) - 1) as u64) << 32
    }

    fn layer_norm(&mut self) -> LayerNorm {
        let gain = self.next(1 << 28, (1 << 29) - 1) as u32;
        LayerNorm { gain, exponent: self.next(-64, 64), epsilon: self.wide() }
    }
}

/// Checks the ranges of all constants, multipliers and tables of an int8 model.
pub fn check(model: &Model<'_>) -> Result<(), ModelError> {
    let arch = model.architecture();
    for (place, sections) in places(arch) {
        let index = start(arch, place) + sections - 1;
        let mut reader = Reader::new(model, index);
        match place {
            Place::Stem if arch.is_patchify() => drop(PatchifyConstants::read(&mut reader)),
            Place::Stem => drop(StemConstants::read(&mut reader)),
            Place::Downsample { .. } => drop(DownsampleConstants::read(&mut reader)),
            Place::Block { .. } => drop(BlockConstants::read(&mut reader)),
            Place::Head => drop(HeadConstants::read(&mut reader)),
        }
        if let (Some(element), Some(spec)) = (reader.bad, model.expected(index)) {
            return Err(ModelError::OutOfRange { index, spec, element });
        }
        // The sections of i16 are multipliers, which are not negative, and tables, which have 256 entries of 12 bits and a sign.
        for index in start(arch, place)..index {
            let Some(spec) = model.expected(index).filter(|spec| spec.dtype == Dtype::I16) else { continue };
            let range = if spec.name == "GELU table" { -TABLE_MAX..=TABLE_MAX } else { 0..=i16::MAX };
            let values: &[i16] = model.section(index);
            if let Some(element) = values.iter().position(|v| !range.contains(v)) {
                return Err(ModelError::OutOfRange { index, spec, element });
            }
        }
    }
    Ok(())
}

static ZERO_TABLE: Table = [0; TABLE];

fn table<'a>(model: &Model<'a>, index: usize) -> &'a Table {
    model.section(index).try_into().unwrap_or(&ZERO_TABLE)
}

macro_rules! unit {
    ($(#[$doc:meta])* $unit:ident, $constants:ident {
        $($section:ident: $type:ty = $index:literal,)*
    } $($table:ident = $table_index:literal)? ; { $($constant:ident: $constant_type:ty = |$reader:ident| $read:expr,)* }) => {
        struct $constants { $($constant: $constant_type,)* }

        impl $constants {
            fn read(reader: &mut Reader<'_>) -> Self {
                Self { $($constant: { let $reader = &mut *reader; $read },)* }
            }
        }

        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $unit<'a> {
            $(pub $section: &'a [$type],)*
            $(pub $table: &'a Table,)?
            $(pub $constant: $constant_type,)*
        }

        impl<'a> $unit<'a> {
            fn at(model: &Model<'a>, start: usize, sections: usize) -> Self {
                let constants = $constants::read(&mut Reader::new(model, start + sections - 1));
                Self {
                    $($section: model.section(start + $index),)*
                    $($table: table(model, start + $table_index),)?
                    $($constant: constants.$constant,)*
                }
            }
        }
    };
}

unit! {
    /// Input and a patchify stem.
    Patchify, PatchifyConstants {
        input_multiplier: i32 = 0,
        input_offset: i64 = 1,
        weight: i8 = 2,
        bias: i32 = 3,
        multiplier: i16 = 4,
        gain: i32 = 5,
        offset: i32 = 6,
    }; {
        input_shift: u32 = |r| r.wide_shift(),
        shift: u32 = |r| r.shift(),
        norm: LayerNorm = |r| r.layer_norm(),
        affine_shift: u32 = |r| r.shift(),
    }
}

unit! {
    /// Input, initial convolution and stem.
    Stem, StemConstants {
        input_multiplier: i32 = 0,
        input_offset: i64 = 1,
        initial_weight: i8 = 2,
        initial_bias: i32 = 3,
        initial_multiplier: i16 = 4,
        initial_gain: i32 = 5,
        initial_offset: i32 = 6,
        stem_weight: i8 = 8,
        stem_bias: i32 = 9,
        stem_multiplier: i16 = 10,
        stem_gain: i32 = 11,
        stem_offset: i32 = 12,
    } gelu = 7; {
        input_shift: u32 = |r| r.wide_shift(),
        initial_shift: u32 = |r| r.shift(),
        initial_norm: LayerNorm = |r| r.layer_norm(),
        initial_affine_shift: u32 = |r| r.shift(),
        stem_shift: u32 = |r| r.shift(),
        stem_norm: LayerNorm = |r| r.layer_norm(),
        stem_affine_shift: u32 = |r| r.shift(),
    }
}

unit! {
    /// A downsampling.
    Downsample, DownsampleConstants {
        weight: i8 = 0,
        bias: i32 = 1,
        multiplier: i16 = 2,
    }; {
        norm: LayerNorm = |r| r.layer_norm(),
        shift: u32 = |r| r.shift(),
    }
}

unit! {
    /// A block.
    Block, BlockConstants {
        depthwise_weight: i8 = 0,
        depthwise_bias: i32 = 1,
        depthwise_multiplier: i16 = 2,
        expand_weight: i8 = 3,
        expand_bias: i32 = 4,
        expand_multiplier: i16 = 5,
        grn_gain: i32 = 7,
        grn_slope: i32 = 8,
        project_weight: i8 = 9,
        project_bias: i32 = 10,
        project_multiplier: i16 = 11,
    } gelu = 6; {
        depthwise_shift: u32 = |r| r.shift(),
        norm: LayerNorm = |r| r.layer_norm(),
        expand_shift: u32 = |r| r.shift(),
        zero_point: i32 = |r| r.next(-128, 127),
        grn_epsilon: u64 = |r| r.wide(),
        project_shift: (u32, bool) = |r| r.raisable_shift(),
    }
}

unit! {
    /// The LayerNorm after the global mean.
    Head, HeadConstants {
        gain: i32 = 0,
        offset: i64 = 1,
    }; {
        epsilon: u64 = |r| r.wide(),
        shift: u32 = |r| r.wide_shift(),
        fraction_bits: u32 = |r| r.next(0, 24) as u32,
    }
}

/// The constants of a LayerNorm over `channels` channels.
fn norm(constants: LayerNorm, channels: usize) -> Norm {
    Norm { constants, count: channels as u32, channels: stored(channels) }
}

/// How stored integers enter the network.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// A value for each band.
    pub multiplier: &'a [i32],
    /// A value for each band.
    pub offset: &'a [i64],
    /// Of the product.
    pub shift: u32,
}

impl<'a> Patchify<'a> {
    /// The input.
    pub(crate) fn input(&self) -> Input<'a> {
        Input { multiplier: self.input_multiplier, offset: self.input_offset, shift: self.input_shift }
    }

    /// The convolution of whole patches, and the LayerNorm.
    pub(crate) fn layers(&self, arch: &Architecture, bands: usize) -> (Dense<'a>, Norm) {
        let layer = Dense {
            weight: self.weight,
            bias: self.bias,
            multiplier: self.multiplier,
            shift: self.shift,
            inputs: patchify_inputs(arch, bands),
            outputs: stored(arch.dim(0)),
        };
        (layer, norm(self.norm, arch.dim(0)))
    }

    /// The stem of an int8 model.
    pub(crate) fn of(model: &Model<'a>) -> Self {
        Self::at(model, start(model.architecture(), Place::Stem), PATCHIFY_SECTIONS)
    }
}

impl<'a> Stem<'a> {
    /// The input.
    pub(crate) fn input(&self) -> Input<'a> {
        Input { multiplier: self.input_multiplier, offset: self.input_offset, shift: self.input_shift }
    }

    /// The initial convolution.
    pub(crate) fn initial(&self, arch: &Architecture, bands: usize) -> Dense<'a> {
        Dense {
            weight: self.initial_weight,
            bias: self.initial_bias,
            multiplier: self.initial_multiplier,
            shift: self.initial_shift,
            inputs: 3 * initial_segment(bands),
            outputs: stored(arch.dim(0)),
        }
    }

    /// The depthwise stem.
    pub(crate) fn stem(&self) -> Depthwise<'a> {
        Depthwise {
            weight: self.stem_weight,
            bias: self.stem_bias,
            multiplier: self.stem_multiplier,
            shift: self.stem_shift,
        }
    }

    /// The LayerNorms after the two.
    pub(crate) fn norms(&self, arch: &Architecture) -> [Norm; 2] {
        [self.initial_norm, self.stem_norm].map(|constants| norm(constants, arch.dim(0)))
    }

    /// The stem of an int8 model.
    pub(crate) fn of(model: &Model<'a>) -> Self {
        Self::at(model, start(model.architecture(), Place::Stem), STEM_SECTIONS)
    }
}

impl<'a> Downsample<'a> {
    /// The LayerNorm and the convolution.
    pub(crate) fn layers(&self, arch: &Architecture, stage: usize) -> (Norm, Dense<'a>) {
        let layer = Dense {
            weight: self.weight,
            bias: self.bias,
            multiplier: self.multiplier,
            shift: self.shift,
            inputs: 4 * stored(arch.dim(stage - 1)),
            outputs: stored(arch.dim(stage)),
        };
        (norm(self.norm, arch.dim(stage - 1)), layer)
    }

    /// The downsampling before `stage`, 1 to 3.
    pub(crate) fn of(model: &Model<'a>, stage: usize) -> Self {
        Self::at(model, start(model.architecture(), Place::Downsample { stage: stage as u8 }), DOWNSAMPLE_SECTIONS)
    }
}

impl<'a> Block<'a> {
    /// The depthwise convolution and the LayerNorm over `channels` channels.
    pub(crate) fn spatial(&self, channels: usize) -> (Depthwise<'a>, Norm) {
        let layer = Depthwise {
            weight: self.depthwise_weight,
            bias: self.depthwise_bias,
            multiplier: self.depthwise_multiplier,
            shift: self.depthwise_shift,
        };
        (layer, norm(self.norm, channels))
    }

    /// The first pointwise layer.
    pub(crate) fn expand(&self, channels: usize) -> Dense<'a> {
        Dense {
            weight: self.expand_weight,
            bias: self.expand_bias,
            multiplier: self.expand_multiplier,
            shift: self.expand_shift,
            inputs: stored(channels),
            outputs: 4 * stored(channels),
        }
    }

    /// The second pointwise layer.
    pub(crate) fn project(&self, channels: usize) -> Dense<'a> {
        Dense {
            weight: self.project_weight,
            bias: self.project_bias,
            multiplier: self.project_multiplier,
            shift: self.project_shift.0,
            inputs: 4 * stored(channels),
            outputs: stored(channels),
        }
    }

    /// Whether the inputs of the second pointwise layer have 14 bits.
    pub(crate) fn is_raised(&self) -> bool {
        self.project_shift.1
    }

    /// Block `block` of `stage`.
    pub(crate) fn of(model: &Model<'a>, stage: usize, block: usize) -> Self {
        let place = Place::Block { stage: stage as u8, block: block as u8 };
        Self::at(model, start(model.architecture(), place), BLOCK_SECTIONS)
    }
}

impl<'a> Head<'a> {
    /// The head.
    pub(crate) fn of(model: &Model<'a>) -> Self {
        Self::at(model, start(model.architecture(), Place::Head), HEAD_SECTIONS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StemPadding;

    #[test]
    fn starts_agree_with_the_order() {
        for stem_padding in [StemPadding::Same, StemPadding::Patchify] {
            let arch = Architecture { stem_padding, ..Architecture::named("atto", 64, 16).unwrap() };
            let mut index = 0;
            for (place, sections) in places(&arch) {
                assert_eq!(start(&arch, place), index);
                for within in 0..sections {
                    assert_eq!(expected_section(&arch, 12, index + within).unwrap().place, place);
                }
                index += sections;
            }
            assert_eq!(expected_section(&arch, 12, index), None);
        }
    }
}
