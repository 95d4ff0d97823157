//! The plan, place by place: which region lies where while the encoder works there.

use super::int8::{Int8Regions, StagePasses, int8_arena_bytes};
use super::{FloatRegions, float_arena_bytes};
use crate::encoder::ARENA_ALIGNMENT;
use crate::model::{Architecture, Place, Precision, STAGES};

/// A part of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it holds, as the tables of [`crate::plan`] and [`crate::plan::int8`] call it.
    pub name: &'static str,
    /// Its first byte.
    pub offset: usize,
    /// Its length, without what rounds it up to [`ARENA_ALIGNMENT`].
    pub bytes: usize,
}

/// Every place of an encoder, in the order of a run.
pub fn places(arch: &Architecture) -> impl Iterator<Item = Place> + '_ {
    let stages = (0..STAGES as u8).flat_map(|stage| {
        let blocks = (0..arch.depths[usize::from(stage)]).map(move |block| Place::Block { stage, block });
        (stage > 0).then_some(Place::Downsample { stage }).into_iter().chain(blocks)
    });
    [Place::Stem].into_iter().chain(stages).chain([Place::Head])
}

/// Bytes of the arena of a model of any precision; `passes` count for int8 only.
pub const fn arena_bytes(arch: &Architecture, bands: usize, precision: Precision, passes: StagePasses) -> usize {
    match precision {
        Precision::Int8 => int8_arena_bytes(arch, bands, passes),
        Precision::F16 => float_arena_bytes(arch, bands, true),
        Precision::F32 => float_arena_bytes(arch, bands, false),
    }
}

/// The regions of a place in their order, without empty ones. The end of the last, rounded up to [`ARENA_ALIGNMENT`], is what the place
/// needs; the largest such end is [`arena_bytes`].
pub fn regions(
    arch: &Architecture,
    bands: usize,
    precision: Precision,
    passes: StagePasses,
    place: Place,
) -> impl Iterator<Item = Region> {
    let lengths = match precision {
        Precision::Int8 => int8(arch, bands, passes, place),
        Precision::F16 | Precision::F32 => float(arch, bands, precision, place),
    };
    let mut next = 0usize;
    let placed = lengths.map(|(name, bytes)| {
        let offset = next;
        next = next.saturating_add(bytes.checked_next_multiple_of(ARENA_ALIGNMENT).unwrap_or(usize::MAX));
        Region { name, offset, bytes }
    });
    placed.into_iter().filter(|region| region.bytes > 0)
}

type Lengths = [(&'static str, usize); 8];

fn int8(arch: &Architecture, bands: usize, passes: StagePasses, place: Place) -> Lengths {
    let regions = match place {
        Place::Stem => Int8Regions::stem(arch, bands),
        Place::Downsample { stage } => Int8Regions::downsample(arch, stage.into()),
        Place::Block { stage, .. } => Int8Regions::block(arch, stage.into(), passes[usize::from(stage)]),
        Place::Head => Int8Regions::head(arch),
    };
    [
        ("map", 2 * regions.map),
        ("rows", 2 * regions.rows),
        ("values", 2 * regions.values),
        ("bytes", regions.bytes),
        ("hidden", regions.hidden),
        ("bias", 4 * regions.bias),
        ("squares", 8 * regions.squares),
        ("multipliers", 2 * regions.multipliers),
    ]
}

fn float(arch: &Architecture, bands: usize, precision: Precision, place: Place) -> Lengths {
    let half = matches!(precision, Precision::F16);
    let regions = match place {
        Place::Stem => FloatRegions::stem(arch, bands, half),
        Place::Downsample { stage } => FloatRegions::downsample(arch, stage.into(), half),
        Place::Block { stage, .. } => FloatRegions::block(arch, stage.into(), half),
        Place::Head => {
            let map = FloatRegions::block(arch, STAGES - 1, half).map;
            FloatRegions { map, hidden: 0, strip: 0, aside: 0, wide: 0 }
        }
    };
    let bytes = |floats: usize| floats.saturating_mul(size_of::<f32>());
    [
        ("map", bytes(regions.map)),
        ("hidden", bytes(regions.hidden)),
        ("strip", bytes(regions.strip)),
        ("aside", bytes(regions.aside)),
        ("wide", bytes(regions.wide)),
        ("", 0),
        ("", 0),
        ("", 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::int8::Passes::{One, Two};

    #[test]
    fn the_largest_place_is_the_arena() {
        for (size, tile, patch) in [("yocto", 64, 16), ("zepto", 75, 32), ("atto", 56, 8)] {
            let arch = Architecture::named(size, tile, patch).unwrap();
            for precision in [Precision::Int8, Precision::F16, Precision::F32] {
                for passes in [[One; 4], [Two; 4], [Two, One, Two, One]] {
                    let end = |place| {
                        let last = regions(&arch, 12, precision, passes, place).last().unwrap();
                        (last.offset + last.bytes).next_multiple_of(ARENA_ALIGNMENT)
                    };
                    let largest = places(&arch).map(end).max();
                    assert_eq!(largest, Some(arena_bytes(&arch, 12, precision, passes)));
                }
            }
        }
    }

    #[test]
    fn places_come_in_the_order_of_a_run() {
        let arch = Architecture { depths: [1, 2, 1, 1], ..Architecture::named("yocto", 64, 16).unwrap() };
        let block = |stage, block| Place::Block { stage, block };
        let down = |stage| Place::Downsample { stage };
        let expected = [
            Place::Stem,
            block(0, 0),
            down(1),
            block(1, 0),
            block(1, 1),
            down(2),
            block(2, 0),
            down(3),
            block(3, 0),
            Place::Head,
        ];
        assert!(places(&arch).eq(expected));
    }
}
