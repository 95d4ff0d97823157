//! What an encoder looks like: the few numbers that fix every shape in it.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// The most bands that a model may take.
pub const MAX_BANDS: usize = 32;
/// The most channels that a stage may have (ConvNeXt V2 huge has 2816).
pub const MAX_CHANNELS: usize = 2816;
/// The most blocks that a stage may have.
pub const MAX_DEPTH: usize = 27;
/// The longest side of a tile, in pixels.
pub const MAX_TILE_SIZE: usize = 256;
/// Number of stages of every ConvNeXt V2 encoder.
pub const STAGES: usize = 4;

/// Which stem an encoder has: one of the two geometries of MMEarth's (initial 3x3 convolution, LayerNorm, GELU, depthwise convolution,
/// LayerNorm), or that of the original ConvNeXt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StemPadding {
    /// Initial convolution padded by 1, stem unpadded: the geometry of MP-MAE pretraining.
    Same,
    /// Initial convolution unpadded, stem padded by half its kernel: the geometry of MMEarth's released classifier.
    None,
    /// No initial convolution: the stem is one convolution of all bands, unpadded, whose stride is its kernel, and LayerNorm. Meta's and
    /// timm's ImageNet models have it with a kernel of 4.
    Patchify,
}

/// The most inputs of an output of a patchify stem, kernel times kernel times bands: more could overflow 32-bit accumulators.
pub const MAX_PATCHIFY_INPUTS: usize = 320;

/// The most pixels that an output of a patchify stem reads.
pub const MAX_PATCHIFY_TAPS: usize = 16;

/// The shape of a ConvNeXt V2 encoder.
///
/// The number of input channels is the number of bands, which the model carries by name beside this.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Side of the square tile, in pixels.
    pub tile_size: u16,
    /// Side of an MP-MAE patch in pixels, 8, 16 or 32: the total stride of the encoder.
    pub patch_size: u8,
    /// Which stem, and how it treats the border of the tile.
    pub stem_padding: StemPadding,
    /// Blocks in each stage.
    pub depths: [u8; STAGES],
    /// Channels in each stage.
    pub dims: [u16; STAGES],
    /// Added to the mean channel norm in Global Response Normalization.
    pub grn_eps: f32,
    /// Added to the variance in every LayerNorm.
    pub ln_eps: f32,
}

/// Depths and dims of the named sizes, smallest first.
///
/// From atto on they are ConvNeXt V2's (Woo et al., 2023), whose smallest is atto.
pub const SIZES: [(&str, [u8; STAGES], [u16; STAGES]); 10] = [
    ("yocto", [1, 1, 3, 1], [16, 32, 64, 128]),
    ("zepto", [2, 2, 4, 2], [24, 48, 96, 192]),
    ("atto", [2, 2, 6, 2], [40, 80, 160, 320]),
    ("femto", [2, 2, 6, 2], [48, 96, 192, 384]),
    ("pico", [2, 2, 6, 2], [64, 128, 256, 512]),
    ("nano", [2, 2, 8, 2], [80, 160, 320, 640]),
    ("tiny", [3, 3, 9, 3], [96, 192, 384, 768]),
    ("base", [3, 3, 27, 3], [128, 256, 512, 1024]),
    ("large", [3, 3, 27, 3], [192, 384, 768, 1536]),
    ("huge", [3, 3, 27, 3], [352, 704, 1408, 2816]),
];

/// Why an architecture cannot be executed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ArchitectureError {
    /// The tile is empty, too large, or smaller than what the strides need.
    #[error("tile size {0} is not possible: need at least 2 patches a side and at most {MAX_TILE_SIZE} pixels")]
    TileSize(u16),
    /// The patch is none of 8, 16 and 32.
    #[error("patch size {0} is not 8, 16 or 32")]
    PatchSize(u8),
    /// A stage has no block, or too many.
    #[error("stage {stage} has {depth} blocks, limits are 1 to {MAX_DEPTH}")]
    Depth {
        /// Index of the stage.
        stage: usize,
        /// Its number of blocks.
        depth: u8,
    },
    /// A stage has no channel, or too many.
    #[error("stage {stage} has {dim} channels, limits are 1 to {MAX_CHANNELS}")]
    Dim {
        /// Index of the stage.
        stage: usize,
        /// Its number of channels.
        dim: u16,
    },
    /// An epsilon is not a positive finite number.
    #[error("{name} is {value}, must be positive and at most 1")]
    Epsilon {
        /// `grn_eps` or `ln_eps`.
        name: &'static str,
        /// Its value.
        value: f32,
    },
    /// A patchify stem has more inputs than its accumulators bear.
    #[error(
        "a patchify stem of {kernel} x {kernel} pixels and {bands} bands has more than {MAX_PATCHIFY_INPUTS} inputs"
    )]
    PatchifyInputs {
        /// Kernel of the stem.
        kernel: usize,
        /// Bands of the tiles.
        bands: usize,
    },
}

impl Architecture {
    /// A named size (one of [`SIZES`]) with same-padded stem and both epsilons at 1e-6.
    pub fn named(size: &str, tile_size: u16, patch_size: u8) -> Option<Self> {
        let (_, depths, dims) = SIZES.into_iter().find(|(name, ..)| *name == size)?;
        Some(Self { tile_size, patch_size, stem_padding: StemPadding::Same, depths, dims, grn_eps: 1e-6, ln_eps: 1e-6 })
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// The first limit that does not hold.
    pub fn validate(&self) -> Result<(), ArchitectureError> {
        if !matches!(self.patch_size, 8 | 16 | 32) {
            return Err(ArchitectureError::PatchSize(self.patch_size));
        }
        if usize::from(self.tile_size) > MAX_TILE_SIZE || self.tile_size < 2 * u16::from(self.patch_size) {
            return Err(ArchitectureError::TileSize(self.tile_size));
        }
        for stage in 0..STAGES {
            let (depth, dim) = (self.depths[stage], self.dims[stage]);
            if depth == 0 || usize::from(depth) > MAX_DEPTH {
                return Err(ArchitectureError::Depth { stage, depth });
            }
            if dim == 0 || usize::from(dim) > MAX_CHANNELS {
                return Err(ArchitectureError::Dim { stage, dim });
            }
        }
        for (name, value) in [("grn_eps", self.grn_eps), ("ln_eps", self.ln_eps)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(ArchitectureError::Epsilon { name, value });
            }
        }
        Ok(())
    }

    /// Checks that a stem of this kind takes `bands` bands.
    ///
    /// # Errors
    /// [`ArchitectureError::PatchifyInputs`].
    pub fn validate_bands(&self, bands: usize) -> Result<(), ArchitectureError> {
        match self.is_patchify() && self.patchify_inputs(bands) > MAX_PATCHIFY_INPUTS {
            true => Err(ArchitectureError::PatchifyInputs { kernel: self.stem_stride(), bands }),
            false => Ok(()),
        }
    }

    /// Whether the stem is one convolution of whole patches ([`StemPadding::Patchify`]).
    pub const fn is_patchify(&self) -> bool {
        matches!(self.stem_padding, StemPadding::Patchify)
    }

    /// Inputs of an output of a patchify stem with `bands` bands.
    pub const fn patchify_inputs(&self, bands: usize) -> usize {
        self.stem_stride() * self.stem_stride() * bands
    }

    /// Kernel and stride of the stem: 1, 2 or 4.
    pub const fn stem_stride(&self) -> usize {
        let stride = self.patch_size as usize / 8;
        // No patch that is allowed has fewer than 8 pixels; nobody divides by zero for one that is not.
        if stride == 0 { 1 } else { stride }
    }

    /// Padding of the initial 3x3 convolution: 1 or 0.
    pub const fn initial_padding(&self) -> usize {
        match self.stem_padding {
            StemPadding::Same => 1,
            StemPadding::None | StemPadding::Patchify => 0,
        }
    }

    /// Padding of the stem: 0, or half its kernel.
    pub const fn stem_pad(&self) -> usize {
        match self.stem_padding {
            StemPadding::Same | StemPadding::Patchify => 0,
            StemPadding::None => self.stem_stride() / 2,
        }
    }

    /// Side of the map that the stem reads: that after the initial convolution, or the tile.
    pub const fn initial_grid(&self) -> usize {
        match self.stem_padding {
            StemPadding::Same | StemPadding::Patchify => self.tile_size as usize,
            StemPadding::None => self.tile_size as usize - 2,
        }
    }

    /// Side of the square map in each stage. Odd remainders of a stride-2 step are dropped.
    pub const fn grids(&self) -> [usize; STAGES] {
        let stride = self.stem_stride();
        let first = (self.initial_grid() + 2 * self.stem_pad() - stride) / stride + 1;
        [first, first / 2, first / 4, first / 8]
    }

    /// Side of the map in stage `stage`; 0 past the last.
    pub const fn grid(&self, stage: usize) -> usize {
        if stage < STAGES { self.grids()[stage] } else { 0 }
    }

    /// Channels of stage `stage`; 0 past the last.
    pub const fn dim(&self, stage: usize) -> usize {
        if stage < STAGES { self.dims[stage] as usize } else { 0 }
    }

    /// Blocks of stage `stage`; 0 past the last.
    pub const fn depth(&self, stage: usize) -> usize {
        if stage < STAGES { self.depths[stage] as usize } else { 0 }
    }

    /// Length of the embedding: the channels of the last stage.
    pub const fn embedding_dimension(&self) -> usize {
        self.dims[STAGES - 1] as usize
    }

    /// Number of weights and biases, the final LayerNorm included, for `bands` input bands.
    pub fn parameters(&self, bands: usize) -> u64 {
        let d0 = self.dim(0) as u64;
        let k = self.stem_stride() as u64;
        let mut n = match self.stem_padding {
            StemPadding::Patchify => d0 * self.patchify_inputs(bands) as u64 + d0 + 2 * d0,
            _ => d0 * 9 * bands as u64 + d0 + 2 * d0 + d0 * k * k + d0 + 2 * d0,
        };
        for stage in 0..STAGES {
            let d = self.dim(stage) as u64;
            n += u64::from(self.depths[stage]) * (d * 49 + d + 2 * d + (4 * d * d + 4 * d) + 8 * d + (4 * d * d + d));
            if stage > 0 {
                let before = self.dim(stage - 1) as u64;
                n += 2 * before + 4 * before * d + d;
            }
        }
        n + 2 * self.embedding_dimension() as u64
    }

    /// Multiply-accumulates for one tile of `bands` bands.
    pub fn macs(&self, bands: usize) -> u64 {
        let grids = self.grids().map(|g| (g * g) as u64);
        let d0 = self.dim(0) as u64;
        let initial = (self.initial_grid() * self.initial_grid()) as u64;
        let k = self.stem_stride() as u64;
        let mut n = match self.stem_padding {
            StemPadding::Patchify => grids[0] * self.patchify_inputs(bands) as u64 * d0,
            _ => initial * 9 * bands as u64 * d0 + grids[0] * k * k * d0,
        };
        for stage in 0..STAGES {
            let d = self.dim(stage) as u64;
            n += u64::from(self.depths[stage]) * grids[stage] * (49 * d + 8 * d * d);
            if stage > 0 {
                n += grids[stage] * 4 * self.dim(stage - 1) as u64 * d;
            }
        }
        n
    }
}

/// One input band: its name, what its numbers mean, and how the encoder normalises them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// Canonical name, 1 to 8 bytes, for instance `B4` or `B8A` ([`is_canonical_band`]).
    pub name: String<8>,
    /// What a stored value counts, for instance `grey level` or `reflectance x 10000`.
    pub unit: String<24>,
    /// Subtracted from the stored value.
    pub mean: f32,
    /// Divides the difference; positive.
    pub std: f32,
    /// Stored value that means "no data"; such pixels enter the encoder as the mean.
    pub no_data: Option<f32>,
    /// Stored value at and above which the sensor is saturated.
    pub saturation: Option<f32>,
}

/// Whether `name` is the one spelling of a band's name: visible ASCII characters and no comma, and where it is a `B` and a number as
/// Sentinel-2's are, then in capitals and without leading zeros: `B4` and `B8A`, not `B04`, `b4` or `B8a`. Says nothing of its length.
pub fn is_canonical_band(name: &str) -> bool {
    let numbered = matches!(name.as_bytes(), [b'B' | b'b', digit, ..] if digit.is_ascii_digit());
    let leading_zero = matches!(name.as_bytes(), [_, b'0', digit, ..] if digit.is_ascii_digit());
    name.bytes().all(|c| c.is_ascii_graphic() && c != b',')
        && !(numbered && (leading_zero || name.bytes().any(|c| c.is_ascii_lowercase())))
}

/// The bands of a model, in the order in which the encoder reads them.
pub type Bands = Vec<Band, MAX_BANDS>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_match_mmearth() {
        let mut atto = Architecture::named("atto", 56, 8).unwrap();
        let norm = 2 * 320;
        assert_eq!(atto.parameters(12), 3_389_320 + norm);
        assert_eq!(atto.parameters(3), 3_386_080 + norm);
        atto.patch_size = 16;
        atto.tile_size = 112;
        assert_eq!(atto.parameters(12), 3_389_440 + norm);
        // From ConvNeXt V2's shapes with MMEarth's stem; patch 8, then 16.
        for (size, eight, sixteen) in [
            ("femto", 4_850_544, 4_850_688),
            ("pico", 8_556_352, 8_556_544),
            ("nano", 14_986_640, 14_986_880),
            ("tiny", 27_871_104, 27_871_392),
            ("base", 87_698_944, 87_699_328),
            ("large", 196_429_056, 196_429_632),
            ("huge", 657_489_536, 657_490_592),
        ] {
            for (tile, patch, expected) in [(56, 8, eight), (112, 16, sixteen)] {
                let a = Architecture::named(size, tile, patch).unwrap();
                assert_eq!((a.parameters(12) - 2 * a.embedding_dimension() as u64, a.validate()), (expected, Ok(())));
            }
        }
        assert!(Architecture::named("micro", 56, 8).is_none());
    }

    #[test]
    fn counts_of_a_patchify_stem_are_those_of_imagenet_models() {
        // Meta's and timm's models less their classifier of 1000 classes.
        for (size, with_classifier) in [("atto", 3_708_400), ("femto", 5_233_240), ("tiny", 28_635_496)] {
            let named = Architecture::named(size, 224, 32).unwrap();
            let a = Architecture { stem_padding: StemPadding::Patchify, ..named };
            assert_eq!(a.parameters(3), with_classifier - 1000 * (a.embedding_dimension() as u64 + 1), "{size}");
            assert_eq!((a.grids(), a.validate()), ([56, 28, 14, 7], Ok(())));
        }
    }

    #[test]
    fn grids_match_mmearth() {
        let grid = |tile_size, patch_size, stem_padding| {
            Architecture { stem_padding, ..Architecture::named("atto", tile_size, patch_size).unwrap() }.grids()
        };
        assert_eq!(grid(56, 8, StemPadding::Same), [56, 28, 14, 7]);
        assert_eq!(grid(56, 8, StemPadding::None), [54, 27, 13, 6]);
        assert_eq!(grid(112, 16, StemPadding::Same), [56, 28, 14, 7]);
        assert_eq!(grid(112, 16, StemPadding::None), [56, 28, 14, 7]);
        assert_eq!(grid(128, 32, StemPadding::Same), [32, 16, 8, 4]);
    }

    #[test]
    fn band_names_have_one_spelling() {
        for good in ["B4", "B8A", "B10", "B0", "VV", "nir", "band12", "Bx", "b"] {
            assert!(is_canonical_band(good), "{good}");
        }
        for bad in ["B04", "B00", "b4", "B8a", "B4 ", " B4", "B4,B3", "B\n", "\u{e9}"] {
            assert!(!is_canonical_band(bad), "{bad:?}");
        }
    }

    #[test]
    fn limits_are_checked() {
        let good = Architecture::named("yocto", 64, 16).unwrap();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(Architecture { patch_size: 7, ..good }.validate(), Err(ArchitectureError::PatchSize(7)));
        assert_eq!(Architecture { tile_size: 16, ..good }.validate(), Err(ArchitectureError::TileSize(16)));
        assert!(Architecture { dims: [16, 0, 64, 128], ..good }.validate().is_err());
        assert!(Architecture { depths: [1, 1, 200, 1], ..good }.validate().is_err());
        assert!(Architecture { grn_eps: f32::NAN, ..good }.validate().is_err());
        let patchify = Architecture { stem_padding: StemPadding::Patchify, patch_size: 32, ..good };
        assert_eq!((good.validate_bands(32), patchify.validate_bands(20)), (Ok(()), Ok(())));
        let error = ArchitectureError::PatchifyInputs { kernel: 4, bands: 21 };
        assert_eq!(patchify.validate_bands(21), Err(error));
    }
}
