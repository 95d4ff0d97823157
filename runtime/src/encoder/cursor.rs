//! Where in the encoder a run stands.

use crate::model::{Architecture, Place, STAGES};

/// The next piece of work of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Stem, downsampling, block or head.
    pub place: Place,
    /// In a block: 0 up to GRN's sums, 1 from GRN on.
    pub pass: u8,
    /// Strip or row of the map within the pass.
    pub row: usize,
}

impl Cursor {
    /// The beginning of a place.
    pub(crate) const fn start(place: Place) -> Self {
        Self { place, pass: 0, row: 0 }
    }

    /// The beginning of a run.
    pub(crate) const FIRST: Self = Self::start(Place::Stem);

    /// The beginning of the place after `place`.
    pub(crate) fn after(arch: &Architecture, place: Place) -> Self {
        Self::start(match place {
            Place::Stem => Place::Block { stage: 0, block: 0 },
            Place::Downsample { stage } => Place::Block { stage, block: 0 },
            Place::Block { stage, block } if usize::from(block) + 1 < arch.depth(stage.into()) => {
                Place::Block { stage, block: block + 1 }
            }
            Place::Block { stage, .. } if usize::from(stage) + 1 < STAGES => Place::Downsample { stage: stage + 1 },
            Place::Block { .. } | Place::Head => Place::Head,
        })
    }
}
