//! The encoder's stages with stochastic depth, each stage's map at hand.

use candle_core::{Device, Result, Tensor};
use nadir::model::{Architecture, STAGES};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::ops::grid::Geometry;
use crate::ops::{self, BlockParams, DownsampleParams, Grn};
use crate::params::Params;

/// Which blocks leave out their branch for which samples: a factor a block and sample, 0 or one over the share kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropped(Vec<Vec<f32>>);

impl Dropped {
    /// Draws for `batch` samples. The chance to be left out rises linearly from 0 at the first block to `rate` at the last.
    pub fn draw(architecture: &Architecture, batch: usize, rate: f64, rng: &mut StdRng) -> Self {
        let blocks: usize = architecture.depths.iter().map(|d| usize::from(*d)).sum();
        let of_block = |block: usize| {
            let keep = 1.0 - rate * block as f64 / (blocks - 1).max(1) as f64;
            let draw = |rng: &mut StdRng| if rng.random::<f64>() < keep { (1.0 / keep) as f32 } else { 0.0 };
            (0..batch).map(|_| draw(rng)).collect()
        };
        Self((0..blocks).map(of_block).collect())
    }

    /// The given factors, `[blocks][samples]`.
    pub fn from_factors(factors: Vec<Vec<f32>>) -> Self {
        Self(factors)
    }
}

/// The maps after each stage as rows, from those that enter stage 0.
pub(super) fn stages(
    mut rows: Tensor,
    params: &Params,
    architecture: &Architecture,
    geometry: &Geometry,
    dropped: Option<&Dropped>,
) -> Result<Vec<Tensor>> {
    let (ln_eps, grn_eps) = (architecture.ln_eps, architecture.grn_eps);
    let mut maps = Vec::with_capacity(STAGES);
    let mut block = 0;
    for stage in 0..STAGES {
        if stage > 0 {
            rows = ops::downsample(&rows, &DownsampleParams::of(params, stage - 1), geometry, stage - 1, ln_eps)?;
        }
        let grid = &geometry.grids[stage];
        for at in 0..architecture.depths[stage] {
            let p = BlockParams::of(params, &format!("stages.{stage}.{at}"));
            let after = ops::block(&rows, &p, grid, Grn::Sample, ln_eps, grn_eps)?;
            let factors = dropped.map(|d| &d.0[block]).filter(|factors| factors.iter().any(|f| *f != 1.0));
            rows = match factors {
                None => after,
                Some(factors) => {
                    let factors = each_row(factors, grid.rows, rows.device())?;
                    (&rows + (after - &rows)?.broadcast_mul(&factors)?)?
                }
            };
            block += 1;
        }
        maps.push(rows.clone());
    }
    Ok(maps)
}

/// A factor a sample as a column with one a row.
fn each_row(factors: &[f32], rows: usize, device: &Device) -> Result<Tensor> {
    let each: Vec<f32> = factors.iter().flat_map(|f| std::iter::repeat_n(*f, rows)).collect();
    Tensor::from_vec(each, (factors.len() * rows, 1), device)
}
