//! Which sections an int8 model has.

use super::{Architecture, SectionSpec};

/// What section `index` must be, or `None` past the last.
pub fn expected_section(_arch: &Architecture, _bands: usize, _index: usize) -> Option<SectionSpec> {
    None
}
