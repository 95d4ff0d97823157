//! Where in the encoder the work stands: what a run that was stopped needs to go on.

use crate::model::{Architecture, Place, STAGES};

/// The next step of an engine. The rest of the state is the arena.
///
/// One step is a strip of one pass over one part of the encoder, so that its time is bounded. A run that stops between any
/// two steps and goes on later, with the arena untouched, gives the same embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The part of the encoder.
    pub place: Place,
    /// The pass over its map.
    pub pass: u8,
    /// The first row of the strip, or in the integer engine the index of the strip.
    pub row: usize,
}

impl Cursor {
    /// Before the first step.
    pub const START: Cursor = Cursor::first_of(Place::Stem);

    const fn first_of(place: Place) -> Cursor {
        Cursor { place, pass: 0, row: 0 }
    }

    /// The same pass from another row on.
    pub fn at_row(self, row: usize) -> Cursor {
        Cursor { row, ..self }
    }

    /// The beginning of the next pass over the same part.
    pub fn next_pass(self) -> Cursor {
        Cursor { pass: self.pass + 1, row: 0, ..self }
    }

    /// The beginning of the next part: stem; then per stage its downsampling (not before stage 0) and its blocks; then the
    /// head, after which there is none.
    pub fn next_place(self, arch: &Architecture) -> Option<Cursor> {
        let place = match self.place {
            Place::Stem => Place::Block { stage: 0, block: 0 },
            Place::Downsample { stage } => Place::Block { stage, block: 0 },
            Place::Block { stage, block } if usize::from(block) + 1 < arch.depth(stage.into()) => {
                Place::Block { stage, block: block + 1 }
            }
            Place::Block { stage, .. } if usize::from(stage) + 1 < STAGES => Place::Downsample { stage: stage + 1 },
            Place::Block { .. } => Place::Head,
            Place::Head => return None,
        };
        Some(Cursor::first_of(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let arch = Architecture { depths: [1, 2, 1, 1], ..Architecture::named("yocto", 64, 16).unwrap() };
        let mut at = Cursor::START.next_pass().at_row(3);
        assert_eq!((at.pass, at.row), (1, 3));
        let block = |stage, block| Place::Block { stage, block };
        let down = |stage| Place::Downsample { stage };
        let expected =
            [block(0, 0), down(1), block(1, 0), block(1, 1), down(2), block(2, 0), down(3), block(3, 0), Place::Head];
        for place in expected {
            at = at.next_place(&arch).unwrap();
            assert_eq!(at, Cursor { place, pass: 0, row: 0 });
        }
        assert_eq!(at.next_place(&arch), None);
    }
}
