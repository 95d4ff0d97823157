//! An int8 model whose second pointwise layers can still be raised to inputs of 14 bits, each by itself.
//!
//! Layers are calibrated on the float encoder's maps and not on one another's integers, so that a layer's sections do not depend on which others are
//! raised: one conversion makes both forms of each, and any mixture is put together from them.

use anyhow::{Context, Result};
use nadir::model::{Place, Precision};
use nadir_formats::{Encoder, Tiles};

use super::select::Chosen;
use super::{Options, run};
use crate::writer::{SectionData, header, write_model};

/// The raised form of a block's second pointwise layer.
pub(super) struct Raisable {
    pub place: Place,
    /// Index of the first of the sections that it replaces.
    pub first: usize,
    /// Weight, bias, multiplier, and the block's constants.
    pub sections: [SectionData; 4],
}

/// An int8 model whose layers can still be raised.
pub struct Mixable<'e> {
    pub(super) encoder: &'e Encoder,
    pub(super) sections: Vec<SectionData>,
    pub(super) raisable: Vec<Raisable>,
    /// What set the scale of each place that has one in int8.
    pub chosen: Vec<Chosen>,
}

impl<'e> Mixable<'e> {
    /// As [`super::convert_with`]; with `raise` layers can be raised, which takes a second rounding of their weights.
    ///
    /// # Errors
    /// As [`super::convert`].
    pub fn convert(
        encoder: &'e Encoder,
        tiles: &Tiles,
        options: Options,
        raise: bool,
        done: &(dyn Fn() + Sync),
    ) -> Result<Self> {
        run(encoder, tiles, options, raise, done)
    }

    /// The blocks whose second pointwise layer can be raised, in the order of a run.
    pub fn raisable(&self) -> Vec<Place> {
        self.raisable.iter().map(|layer| layer.place).collect()
    }

    /// The file with the second pointwise layers of the blocks `raised`.
    ///
    /// # Errors
    /// If one of them cannot be raised.
    pub fn file(&self, raised: &[Place]) -> Result<Vec<u8>> {
        let mut sections = self.sections.clone();
        for place in raised {
            let layer = self.raisable.iter().find(|layer| layer.place == *place);
            let layer = layer.with_context(|| format!("{place} has no layer that can be raised"))?;
            sections[layer.first..][..layer.sections.len()].clone_from_slice(&layer.sections);
        }
        write_model(&header(&self.encoder.card, Precision::Int8)?, &sections)
    }
}
