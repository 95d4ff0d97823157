//! The header of a model file: what the encoder is, apart from its weights.

use serde::{Deserialize, Serialize};

use super::{Architecture, Bands, ModelError, is_canonical_band};

/// The most bytes of a model's name, and of the name of its embedding space.
pub const MAX_NAME: usize = 32;
/// The most bytes of each provenance text.
pub const MAX_PROVENANCE: usize = 512;

/// How the weights are stored and the encoder computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights and arithmetic in f32.
    F32,
    /// Weights of convolutions stored as f16, all arithmetic and statistics in f32.
    F16,
    /// Integers throughout, as `docs/integer-arithmetic.md` lays down.
    Int8,
}

impl Precision {
    /// `f32`, `f16` or `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        }
    }
}

/// Who made the weights, from what; free text, at most [`MAX_PROVENANCE`] bytes each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance<'a> {
    /// Program and version.
    pub made_by: &'a str,
    /// The training data.
    pub data: &'a str,
    /// Recipe, epochs, seed, teacher; and how it was quantized.
    pub recipe: &'a str,
    /// Licence of the weights.
    pub licence: &'a str,
}

/// The header, encoded with postcard. The order of the fields is part of the file format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header<'a> {
    /// Name of the model, 1 to [`MAX_NAME`] bytes.
    pub name: &'a str,
    /// Embeddings may be compared only within one embedding space; 1 to [`MAX_NAME`] bytes.
    pub embedding_space: &'a str,
    /// Counts up whenever the model is replaced, so that an older one with a good signature can be refused.
    pub model_version: u32,
    /// Form of the weights.
    pub precision: Precision,
    /// Shape of the encoder.
    pub architecture: Architecture,
    /// Length of the embedding; must be the channels of the last stage.
    pub embedding_dimension: u16,
    /// Input bands, in order, with their normalisation.
    pub bands: Bands,
    /// Where the weights come from.
    pub provenance: Provenance<'a>,
}

impl Header<'_> {
    /// Checks every field against its limits.
    ///
    /// # Errors
    /// The first field beyond its limits.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.architecture.validate()?;
        let p = &self.provenance;
        let texts = [
            ("name", self.name, 1, MAX_NAME),
            ("embedding_space", self.embedding_space, 1, MAX_NAME),
            ("made_by", p.made_by, 0, MAX_PROVENANCE),
            ("data", p.data, 0, MAX_PROVENANCE),
            ("recipe", p.recipe, 0, MAX_PROVENANCE),
            ("licence", p.licence, 0, MAX_PROVENANCE),
        ];
        for (field, text, min, max) in texts {
            if text.len() < min || text.len() > max {
                return Err(ModelError::TextLength { field, length: text.len(), min, max });
            }
        }
        let expected = self.architecture.embedding_dimension();
        if usize::from(self.embedding_dimension) != expected {
            return Err(ModelError::EmbeddingDimension { found: self.embedding_dimension, expected });
        }
        if self.bands.is_empty() {
            return Err(ModelError::NoBand);
        }
        self.architecture.validate_bands(self.bands.len())?;
        for (index, band) in self.bands.iter().enumerate() {
            if band.name.is_empty() || self.bands.iter().take(index).any(|b| b.name == band.name) {
                return Err(ModelError::BandName { index });
            }
            if !is_canonical_band(&band.name) {
                return Err(ModelError::BandSpelling { index });
            }
            let optional = |v: Option<f32>| v.unwrap_or(0.0);
            let numbers = [
                ("mean", band.mean, band.mean.is_finite()),
                ("std", band.std, band.std.is_finite() && band.std > 0.0),
                ("no_data", optional(band.no_data), optional(band.no_data).is_finite()),
                ("saturation", optional(band.saturation), optional(band.saturation).is_finite()),
            ];
            if let Some(&(field, value, _)) = numbers.iter().find(|(_, _, good)| !good) {
                return Err(ModelError::BandNumber { index, field, value });
            }
        }
        Ok(())
    }
}
