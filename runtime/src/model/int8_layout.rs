//! Which sections an int8 model has, and typed views of them.
//!
//! Dense weights are `[outputs, inputs]`, depthwise weights `[taps, channels]`; inputs of the 3x3 and 2x2 convolutions are ordered
//! `(row, column, channel)`. What each number means is in `docs/integer-arithmetic.md`; the last section of each unit holds its
//! scalar constants, whose ranges [`check`] asserts when a model is parsed.

use super::{Architecture, Dtype, Model, ModelError, Place, STAGES, SectionSpec};
use crate::kernels::fixed::LayerNorm;

/// Fractional bits of the normalised input.
pub const INPUT_FRACTION_BITS: u32 = 11;
/// Fractional bits of the normalised values of the stem's two LayerNorms.
pub const STEM_NORM_FRACTION_BITS: u32 = 10;
/// Power of two of `initial gain` and `initial offset`.
pub const VALUE_GAIN_BITS: u32 = 20;
/// Power of two of `stem gain` and `stem offset`.
pub const RESIDUAL_GAIN_BITS: u32 = 14;
/// Fractional bits of the pooled mean on its way into the final LayerNorm.
pub const POOL_BITS: u32 = 4;
/// Fractional bits of a GRN norm.
pub const NORM_BITS: u32 = 8;
/// Entries of a GELU table.
pub const TABLE: usize = 256;

/// Sections of the stem.
pub const STEM_SECTIONS: usize = 14;
/// Sections of a downsampling.
pub const DOWNSAMPLE_SECTIONS: usize = 4;
/// Sections of a block.
pub const BLOCK_SECTIONS: usize = 13;
/// Sections of the head.
pub const HEAD_SECTIONS: usize = 3;

const STEM_CONSTANTS: usize = 11;
const DOWNSAMPLE_CONSTANTS: usize = 5;
const BLOCK_CONSTANTS: usize = 11;
const HEAD_CONSTANTS: usize = 4;

/// Index of the first section of `place`.
pub fn start(arch: &Architecture, place: Place) -> usize {
    let stage_start = |stage: usize| {
        let blocks: usize = arch.depths[..stage].iter().map(|&d| usize::from(d)).sum();
        STEM_SECTIONS + blocks * BLOCK_SECTIONS + stage.saturating_sub(1) * DOWNSAMPLE_SECTIONS
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
        let blocks = 0..arch.depths[usize::from(stage)];
        down.into_iter().chain(blocks.map(move |block| (Place::Block { stage, block }, BLOCK_SECTIONS)))
    });
    [(Place::Stem, STEM_SECTIONS)].into_iter().chain(stages).chain([(Place::Head, HEAD_SECTIONS)])
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
        Place::Stem => stem_section(arch, bands, within),
        Place::Downsample { stage } => downsample_section(arch, stage.into(), within),
        Place::Block { stage, .. } => block_section(arch.dim(stage.into()), within),
        Place::Head => head_section(arch, within),
    };
    Some(SectionSpec { place, name, dtype, elements })
}

type Section = (&'static str, Dtype, usize);

fn stem_section(arch: &Architecture, bands: usize, index: usize) -> Section {
    let (d, k) = (arch.dim(0), arch.stem_stride());
    match index {
        0 => ("input multiplier", Dtype::I32, bands),
        1 => ("input offset", Dtype::I64, bands),
        2 => ("initial convolution weight", Dtype::I8, d * 9 * bands),
        3 => ("initial convolution bias", Dtype::I32, d),
        4 => ("initial convolution multiplier", Dtype::I32, d),
        5 => ("initial norm gain", Dtype::I32, d),
        6 => ("initial norm offset", Dtype::I32, d),
        7 => ("GELU table", Dtype::I16, TABLE),
        8 => ("stem weight", Dtype::I8, k * k * d),
        9 => ("stem bias", Dtype::I32, d),
        10 => ("stem multiplier", Dtype::I32, d),
        11 => ("stem norm gain", Dtype::I32, d),
        12 => ("stem norm offset", Dtype::I32, d),
        _ => ("constants", Dtype::I32, STEM_CONSTANTS),
    }
}

fn downsample_section(arch: &Architecture, stage: usize, index: usize) -> Section {
    let (before, d) = (arch.dim(stage - 1), arch.dim(stage));
    match index {
        0 => ("convolution weight", Dtype::I8, d * 4 * before),
        1 => ("convolution bias", Dtype::I32, d),
        2 => ("convolution multiplier", Dtype::I32, d),
        _ => ("constants", Dtype::I32, DOWNSAMPLE_CONSTANTS),
    }
}

fn block_section(d: usize, index: usize) -> Section {
    match index {
        0 => ("depthwise weight", Dtype::I8, 49 * d),
        1 => ("depthwise bias", Dtype::I32, d),
        2 => ("depthwise multiplier", Dtype::I32, d),
        3 => ("pointwise 1 weight", Dtype::I8, 4 * d * d),
        4 => ("pointwise 1 bias", Dtype::I32, 4 * d),
        5 => ("pointwise 1 multiplier", Dtype::I32, 4 * d),
        6 => ("GELU table", Dtype::I16, TABLE),
        7 => ("GRN gain", Dtype::I32, 4 * d),
        8 => ("GRN slope", Dtype::I32, 4 * d),
        9 => ("pointwise 2 weight", Dtype::I8, 4 * d * d),
        10 => ("pointwise 2 bias", Dtype::I32, d),
        11 => ("pointwise 2 multiplier", Dtype::I32, d),
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
}

impl<'a> Reader<'a> {
    fn new(values: &'a [i32]) -> Self {
        Self { values, next: 0, bad: None }
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

    fn shift(&mut self) -> u32 {
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

/// Checks the ranges of all constants of an int8 model.
pub fn check(model: &Model<'_>) -> Result<(), ModelError> {
    let arch = model.architecture();
    for (place, sections) in places(arch) {
        let index = start(arch, place) + sections - 1;
        let mut reader = Reader::new(model.section(index));
        match place {
            Place::Stem => drop(StemConstants::read(&mut reader)),
            Place::Downsample { .. } => drop(DownsampleConstants::read(&mut reader)),
            Place::Block { .. } => drop(BlockConstants::read(&mut reader)),
            Place::Head => drop(HeadConstants::read(&mut reader)),
        }
        if let (Some(element), Some(spec)) = (reader.bad, model.expected(index)) {
            return Err(ModelError::OutOfRange { index, spec, element });
        }
    }
    Ok(())
}

static ZERO_TABLE: [i16; TABLE] = [0; TABLE];

fn table<'a>(model: &Model<'a>, index: usize) -> &'a [i16; TABLE] {
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
            $(pub $table: &'a [i16; TABLE],)?
            $(pub $constant: $constant_type,)*
        }

        impl<'a> $unit<'a> {
            fn at(model: &Model<'a>, start: usize, sections: usize) -> Self {
                let constants = $constants::read(&mut Reader::new(model.section(start + sections - 1)));
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
    /// Input, initial convolution and stem.
    Stem, StemConstants {
        input_multiplier: i32 = 0,
        input_offset: i64 = 1,
        initial_weight: i8 = 2,
        initial_bias: i32 = 3,
        initial_multiplier: i32 = 4,
        initial_gain: i32 = 5,
        initial_offset: i32 = 6,
        stem_weight: i8 = 8,
        stem_bias: i32 = 9,
        stem_multiplier: i32 = 10,
        stem_gain: i32 = 11,
        stem_offset: i32 = 12,
    } gelu = 7; {
        input_shift: u32 = |r| r.shift(),
        initial_shift: u32 = |r| r.shift(),
        initial_norm: LayerNorm = |r| r.layer_norm(),
        stem_shift: u32 = |r| r.shift(),
        stem_norm: LayerNorm = |r| r.layer_norm(),
    }
}

unit! {
    /// A downsampling.
    Downsample, DownsampleConstants {
        weight: i8 = 0,
        bias: i32 = 1,
        multiplier: i32 = 2,
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
        depthwise_multiplier: i32 = 2,
        expand_weight: i8 = 3,
        expand_bias: i32 = 4,
        expand_multiplier: i32 = 5,
        grn_gain: i32 = 7,
        grn_slope: i32 = 8,
        project_weight: i8 = 9,
        project_bias: i32 = 10,
        project_multiplier: i32 = 11,
    } gelu = 6; {
        depthwise_shift: u32 = |r| r.shift(),
        norm: LayerNorm = |r| r.layer_norm(),
        expand_shift: u32 = |r| r.shift(),
        zero_point: i32 = |r| r.next(-128, 127),
        grn_epsilon: u64 = |r| r.wide(),
        grn_shift: u32 = |r| r.next(1, 30) as u32,
        project_shift: u32 = |r| r.shift(),
    }
}

unit! {
    /// The LayerNorm after the global mean.
    Head, HeadConstants {
        gain: i32 = 0,
        offset: i64 = 1,
    }; {
        epsilon: u64 = |r| r.wide(),
        shift: u32 = |r| r.shift(),
        fraction_bits: u32 = |r| r.next(0, 24) as u32,
    }
}

impl<'a> Stem<'a> {
    /// The stem of an int8 model.
    pub(crate) fn of(model: &Model<'a>) -> Self {
        Self::at(model, start(model.architecture(), Place::Stem), STEM_SECTIONS)
    }
}

impl<'a> Downsample<'a> {
    /// The downsampling before `stage`, 1 to 3.
    pub(crate) fn of(model: &Model<'a>, stage: usize) -> Self {
        Self::at(model, start(model.architecture(), Place::Downsample { stage: stage as u8 }), DOWNSAMPLE_SECTIONS)
    }
}

impl<'a> Block<'a> {
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

    #[test]
    fn starts_agree_with_the_order() {
        let arch = Architecture::named("atto", 64, 16).unwrap();
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
