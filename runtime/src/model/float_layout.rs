//! Which sections an f32 or f16 model has.
//!
//! All maps are `[panels, height, width, 16]` in the runtime, and weights are stored in the order in which the kernels read
//! them. A *panel* is a group of [`PANEL`] output channels; the last panel of a tensor is filled with zeros.
//!
//! | tensor | shape | element (...) at |
//! | --- | --- | --- |
//! | dense weight (`n` outputs, `k` inputs) | `[panels, k, 16]` | output `o`, input `i`: `(o / 16 * k + i) * 16 + o % 16` |
//! | depthwise weight (`c` channels, `t` taps) | `[panels, t, 16]` | channel `c`, tap `i`: `(c / 16 * t + i) * 16 + c % 16` |
//! | everything else | `[channels]` | channel |
//!
//! Inputs of the initial 3x3 convolution and of a patchify stem are ordered `(row, column, band)`, those of a 2x2 downsampling `(row, column,
//! channel)`, taps `(row, column)`. In an f16 model the weights of the convolutions are f16; biases, LayerNorm and GRN stay
//! f32.

use super::{Architecture, Dtype, Place, STAGES, SectionSpec};

/// Output channels that stand side by side in a weight tensor.
pub const PANEL: usize = 16;

/// Sections of the stem.
pub const fn stem_sections(arch: &Architecture) -> usize {
    if arch.is_patchify() { 4 } else { 8 }
}

/// Sections of a downsampling.
pub const DOWNSAMPLE_SECTIONS: usize = 4;
/// Sections of a block.
pub const BLOCK_SECTIONS: usize = 10;
/// Sections of the head.
pub const HEAD_SECTIONS: usize = 2;

/// Elements of a weight tensor with `outputs` output channels and `inputs` values (or taps) for each.
pub const fn panel_elements(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(PANEL) * PANEL * inputs
}

/// Index of the first section of the downsampling before `stage` (1 to 3), or of stage 0's first block.
pub const fn stage_start(arch: &Architecture, stage: usize) -> usize {
    let mut index = stem_sections(arch);
    let mut before = 0;
    while before < stage {
        index += arch.depths[before] as usize * BLOCK_SECTIONS;
        if before > 0 {
            index += DOWNSAMPLE_SECTIONS;
        }
        before += 1;
    }
    index
}

/// Index of the first section of a block.
pub const fn block_start(arch: &Architecture, stage: usize, block: usize) -> usize {
    stage_start(arch, stage) + if stage > 0 { DOWNSAMPLE_SECTIONS } else { 0 } + block * BLOCK_SECTIONS
}

/// Index of the first section of the head.
pub const fn head_start(arch: &Architecture) -> usize {
    stage_start(arch, STAGES)
}

/// What section `index` must be, or `None` past the last; `weights` is the type of the convolutions' weights.
pub fn expected_section(arch: &Architecture, bands: usize, weights: Dtype, index: usize) -> Option<SectionSpec> {
    let weight = |name, outputs, inputs| SectionSpec {
        place: Place::Stem,
        name,
        dtype: weights,
        elements: panel_elements(outputs, inputs),
    };
    let vector = |name, elements| SectionSpec { place: Place::Stem, name, dtype: Dtype::F32, elements };
    if index < stem_sections(arch) {
        let (d, k) = (arch.dim(0), arch.stem_stride());
        return Some(match if arch.is_patchify() { index + 4 } else { index } {
            0 => weight("initial convolution weight", d, 9 * bands),
            1 => vector("initial convolution bias", d),
            2 => vector("initial norm weight", d),
            3 => vector("initial norm bias", d),
            4 => weight("stem weight", d, if arch.is_patchify() { arch.patchify_inputs(bands) } else { k * k }),
            5 => vector("stem bias", d),
            6 => vector("stem norm weight", d),
            _ => vector("stem norm bias", d),
        });
    }
    for stage in 0..STAGES {
        let (start, d) = (stage_start(arch, stage), arch.dim(stage));
        let blocks = block_start(arch, stage, 0);
        if index < blocks {
            let before = arch.dim(stage - 1);
            let spec = match index - start {
                0 => vector("norm weight", before),
                1 => vector("norm bias", before),
                2 => weight("convolution weight", d, 4 * before),
                _ => vector("convolution bias", d),
            };
            return Some(SectionSpec { place: Place::Downsample { stage: stage as u8 }, ..spec });
        }
        let within = index - blocks;
        let block = within / BLOCK_SECTIONS;
        if block < usize::from(arch.depths[stage]) {
            let spec = match within % BLOCK_SECTIONS {
                0 => weight("depthwise weight", d, 49),
                1 => vector("depthwise bias", d),
                2 => vector("norm weight", d),
                3 => vector("norm bias", d),
                4 => weight("pointwise 1 weight", 4 * d, d),
                5 => vector("pointwise 1 bias", 4 * d),
                6 => vector("GRN gamma", 4 * d),
                7 => vector("GRN beta", 4 * d),
                8 => weight("pointwise 2 weight", d, 4 * d),
                _ => vector("pointwise 2 bias", d),
            };
            return Some(SectionSpec { place: Place::Block { stage: stage as u8, block: block as u8 }, ..spec });
        }
    }
    let spec = match index - head_start(arch) {
        0 => vector("norm weight", arch.embedding_dimension()),
        1 => vector("norm bias", arch.embedding_dimension()),
        _ => return None,
    };
    Some(SectionSpec { place: Place::Head, ..spec })
}
