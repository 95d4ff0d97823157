//! What a model computes at each place, in real units: the residual map after the stem, each downsampling and each block, and the embedding.
//!
//! The maps of f32 and f16 models are real numbers. Those of int8 models are integers with one scale a stage, and the file does not hold the
//! scales: LayerNorm divides them out, and only its epsilon, an integer `C^2 eps / scale^2`, tells how large they are. So a file gives
//! a range for each, narrow where the integer is large. [`residual_scales`] chooses within that range the factor for which the stage's first
//! map lies nearest to the reference's.

use anyhow::{Context, Result, bail, ensure};
use nadir::Tile;
use nadir::encoder::{Encoder, Step};
use nadir::model::float_layout::PANEL;
use nadir::model::int8_layout::{DOWNSAMPLE_SECTIONS, HEAD_SECTIONS, POOL_BITS, start, stored};
use nadir::model::{Model, Place, Precision, STAGES};
use nadir_formats::{AlignedBytes, Tiles};

use crate::reference::{BlockTap, DownsampleTap, Observer, Reference, Tap};

/// A map of one tile.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceMap {
    /// The place that the map leaves; the head's is the embedding, one position.
    pub place: Place,
    /// Channels of a position.
    pub channels: usize,
    /// `[positions, channels]`, positions row by row.
    pub values: Vec<f64>,
}

/// Scale of the residual map of each stage.
pub type ResidualScales = [f64; STAGES];

/// The places of a run in order.
pub fn places(model: &Model<'_>) -> Vec<Place> {
    let mut places = vec![Place::Stem];
    for (stage, &depth) in (0u8..).zip(&model.architecture().depths) {
        places.extend((stage > 0).then_some(Place::Downsample { stage }));
        places.extend((0..depth).map(|block| Place::Block { stage, block }));
    }
    places.push(Place::Head);
    places
}

/// The stage whose residual map a place leaves; that of the head is its input's.
pub fn stage_of(place: Place) -> usize {
    match place {
        Place::Stem => 0,
        Place::Downsample { stage } | Place::Block { stage, .. } => stage.into(),
        Place::Head => STAGES - 1,
    }
}

/// Where the reference shows what leaves a place.
pub fn tap_of(place: Place) -> Tap {
    match place {
        Place::Stem => Tap::StemNorm,
        Place::Downsample { stage } => Tap::Downsample { stage: stage.into(), part: DownsampleTap::Output },
        Place::Block { stage, block } => {
            Tap::Block { stage: stage.into(), block: block.into(), part: BlockTap::Output }
        }
        Place::Head => Tap::Embedding,
    }
}

/// The maps of one tile `[bands, height, width]`, a place after the other. `scales` are those of [`residual_scales`]; float models need none.
///
/// # Errors
/// If the tile does not have the model's shape.
pub fn maps(encoder: &Encoder<'_>, scales: &ResidualScales, tile: Tile<'_>) -> Result<Vec<PlaceMap>> {
    let mut maps = stored_maps(encoder, tile)?;
    if encoder.model().precision() == Precision::Int8 {
        for map in maps.iter_mut().filter(|map| map.place != Place::Head) {
            let scale = scales[stage_of(map.place)];
            map.values.iter_mut().for_each(|v| *v *= scale);
        }
    }
    Ok(maps)
}

/// The same as the engine stores them: integers for an int8 model, but for the embedding.
fn stored_maps(encoder: &Encoder<'_>, tile: Tile<'_>) -> Result<Vec<PlaceMap>> {
    let arch = encoder.model().architecture();
    let mut arena = AlignedBytes::zeroed(encoder.arena_bytes());
    let mut embedding = vec![0.0; encoder.model().embedding_dimension()];
    let mut maps = Vec::new();
    let mut run = encoder.start(tile, &mut arena, &mut embedding)?;
    while let Some(place) = run.place() {
        if run.step()? == Step::Done {
            break;
        }
        if run.place() == Some(place) {
            continue;
        }
        let stage = stage_of(place);
        let (channels, positions) = (arch.dim(stage), arch.grid(stage).pow(2));
        let values = match (run.residual(), run.float_residual()) {
            (Some(map), _) => rows(map, stored(channels), channels),
            (None, Some(map)) => unpanelled(map, positions, channels),
            (None, None) => bail!("no residual map after {place}"),
        };
        ensure!(values.len() == positions * channels, "the map after {place} has {} values", values.len());
        maps.push(PlaceMap { place, channels, values });
    }
    let values: Vec<f64> = embedding.iter().map(|&v| f64::from(v)).collect();
    maps.push(PlaceMap { place: Place::Head, channels: values.len(), values });
    Ok(maps)
}

/// `[positions, stored]` without what fills up the channels.
fn rows(map: &[i16], stored: usize, channels: usize) -> Vec<f64> {
    map.chunks_exact(stored).flat_map(|row| row[..channels].iter().map(|&v| f64::from(v))).collect()
}

/// `[panels, positions, 16]` to `[positions, channels]`.
fn unpanelled(map: &[f32], positions: usize, channels: usize) -> Vec<f64> {
    let at = |position: usize, c: usize| map[(c / PANEL * positions + position) * PANEL + c % PANEL];
    (0..positions).flat_map(|p| (0..channels).map(move |c| f64::from(at(p, c)))).collect()
}

/// Scales of the residual maps of an int8 model: in the range that the file allows, the factors by which the first map of each stage is
/// nearest to the reference's on `tiles` (least squares). Ones for a float model.
///
/// # Errors
/// If the tiles do not have the model's shape.
pub fn residual_scales(encoder: &Encoder<'_>, reference: &Reference, tiles: &Tiles) -> Result<ResidualScales> {
    let model = encoder.model();
    if model.precision() != Precision::Int8 {
        return Ok([1.0; STAGES]);
    }
    // Of each stage, the products of stored and real values, and of stored values with themselves.
    let mut sums = [(0.0, 0.0); STAGES];
    for tile in 0..tiles.len() {
        let stored = stored_maps(encoder, tiles.tile(tile))?;
        let real = reference_maps(reference, tiles.tile(tile));
        for (stored, real) in stored.iter().zip(&real) {
            if matches!(stored.place, Place::Stem | Place::Downsample { .. }) {
                let sum = &mut sums[stage_of(stored.place)];
                sum.0 += stored.values.iter().zip(&real.values).map(|(q, v)| q * v).sum::<f64>();
                sum.1 += stored.values.iter().map(|q| q * q).sum::<f64>();
            }
        }
    }
    let mut scales = [0.0; STAGES];
    for (stage, (scale, (product, square))) in scales.iter_mut().zip(sums).enumerate() {
        let [low, high] = scale_range(model, stage).context("an int8 model without constants")?;
        *scale = if square > 0.0 { (product / square).clamp(low, high) } else { low };
    }
    Ok(scales)
}

/// The scales of a stage's residual map with which the file's epsilons agree: lowest and highest, which is infinite where the integer is too small
/// to tell.
pub fn scale_range(model: &Model<'_>, stage: usize) -> Option<[f64; 2]> {
    let arch = model.architecture();
    // The LayerNorm that reads the stage's last map: its section of constants, where the epsilon stands in it, and the bits that the pooled
    // mean has beyond the map's.
    let (section, at, bits) = match stage as u8 + 1 {
        stage if usize::from(stage) < STAGES => (start(arch, Place::Downsample { stage }) + DOWNSAMPLE_SECTIONS, 2, 0),
        _ => (start(arch, Place::Head) + HEAD_SECTIONS, 0, POOL_BITS as i32),
    };
    let constants: &[i32] = model.section(section - 1);
    let words = constants.get(at..at + 2)?;
    let epsilon = (u64::from(words[0] as u32) | u64::from(words[1] as u32) << 32) as f64;
    let scale = |epsilon: f64| arch.dim(stage) as f64 * (f64::from(arch.ln_eps) / epsilon).sqrt() * 2f64.powi(bits);
    // 1 stands for everything below.
    let high = if epsilon > 1.0 { scale(epsilon - 0.5) } else { f64::INFINITY };
    Some([scale(epsilon + 0.5), high])
}

/// The same places as the reference computes them.
///
/// # Panics
/// If the tile does not have the encoder's shape.
pub fn reference_maps(reference: &Reference, tile: Tile<'_>) -> Vec<PlaceMap> {
    let mut seen = Seen { maps: Vec::new() };
    reference.embed(tile, &mut seen);
    seen.maps
}

struct Seen {
    maps: Vec<PlaceMap>,
}

impl Observer for Seen {
    fn wants(&self, tap: Tap) -> bool {
        place_of(tap).is_some()
    }

    fn observe(&mut self, tap: Tap, channels: usize, values: &[f64]) {
        if let Some(place) = place_of(tap) {
            self.maps.push(PlaceMap { place, channels, values: values.to_vec() });
        }
    }
}

/// The place that `tap` shows as it leaves it.
fn place_of(tap: Tap) -> Option<Place> {
    Some(match tap {
        Tap::StemNorm => Place::Stem,
        Tap::Downsample { stage, part: DownsampleTap::Output } => Place::Downsample { stage: stage as u8 },
        Tap::Block { stage, block, part: BlockTap::Output } => Place::Block { stage: stage as u8, block: block as u8 },
        Tap::Embedding => Place::Head,
        _ => return None,
    })
}
