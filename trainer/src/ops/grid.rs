//! Where the rows of a map lie: maps are held as `[batch * rows, channels]`, hidden positions left out.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use nadir::model::{Architecture, STAGES, StemPadding};

use super::Grn;
use crate::mask::Mask;

/// The rows of one stage's map. Every sample has the same number of rows.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Side of the square map.
    pub side: usize,
    /// Rows of each sample.
    pub rows: usize,
    /// Number of samples.
    pub batch: usize,
    /// For each row its position (row of the map times side plus column): of one sample if all are equal, else of all.
    positions: Arc<Vec<u32>>,
    /// Where rows are left out: the mask, and positions a side of a patch.
    mask: Option<(Arc<Mask>, usize)>,
}

impl Grid {
    /// The full map of `batch` samples.
    pub fn full(side: usize, batch: usize) -> Self {
        let positions = Arc::new((0..(side * side) as u32).collect());
        Self { side, rows: side * side, batch, positions, mask: None }
    }

    /// The map with `cells` by `cells` positions per patch, hidden patches left out.
    pub fn masked(mask: &Mask, cells: usize) -> Self {
        let side = mask.side() * cells;
        let mut positions = Vec::with_capacity(mask.batch() * mask.kept() * cells * cells);
        for sample in 0..mask.batch() {
            for &patch in mask.visible(sample) {
                let (top, left) = (patch as usize / mask.side() * cells, patch as usize % mask.side() * cells);
                for y in top..top + cells {
                    positions.extend((left..left + cells).map(|x| (y * side + x) as u32));
                }
            }
        }
        let rows = mask.kept() * cells * cells;
        let (positions, batch) = (Arc::new(positions), mask.batch());
        Self { side, rows, batch, positions, mask: Some((Arc::new(mask.clone()), cells)) }
    }

    /// The mask that hides positions, and positions a side of a patch; nothing if no position is hidden.
    pub fn mask(&self) -> Option<(&Mask, usize)> {
        self.mask.as_ref().map(|(mask, cells)| (&**mask, *cells))
    }

    /// The positions of `sample`'s rows.
    pub fn positions(&self, sample: usize) -> &[u32] {
        match self.positions.len() == self.rows {
            true => &self.positions,
            false => &self.positions[sample * self.rows..][..self.rows],
        }
    }

    /// Whether every position of every sample has a row, in order.
    pub fn is_full(&self) -> bool {
        self.rows == self.side * self.side
    }

    /// For every position of every sample its row in the whole batch, or `batch * rows` where there is none.
    pub fn row_of_position(&self) -> Vec<u32> {
        let absent = (self.batch * self.rows) as u32;
        let mut rows = vec![absent; self.batch * self.side * self.side];
        for sample in 0..self.batch {
            for (row, &position) in self.positions(sample).iter().enumerate() {
                rows[sample * self.side * self.side + position as usize] = (sample * self.rows + row) as u32;
            }
        }
        rows
    }

    /// For each row of `self`, the four rows (within the sample) of the finer map `fine` under it: top left, top right,
    /// bottom left, bottom right. Fails if one is hidden.
    pub fn children(&self, fine: &Grid) -> Result<Vec<u32>> {
        let samples = if self.positions.len() == self.rows { 1 } else { self.batch };
        let mut children = Vec::with_capacity(samples * self.rows * 4);
        let mut row_of = vec![u32::MAX; fine.side * fine.side];
        for sample in 0..samples {
            row_of.fill(u32::MAX);
            for (row, &position) in fine.positions(sample).iter().enumerate() {
                row_of[position as usize] = row as u32;
            }
            for &position in self.positions(sample) {
                let (y, x) = (position as usize / self.side * 2, position as usize % self.side * 2);
                for at in
                    [y * fine.side + x, y * fine.side + x + 1, (y + 1) * fine.side + x, (y + 1) * fine.side + x + 1]
                {
                    match row_of[at] {
                        u32::MAX => candle_core::bail!("a visible position lies over a hidden one"),
                        row => children.push(row),
                    }
                }
            }
        }
        Ok(children)
    }
}

/// All maps of an encoder over one batch.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Side of the tile in pixels.
    pub tile: usize,
    /// Zero padding of the initial 3x3 convolution, 0 or 1; 0 where there is none.
    pub initial_padding: usize,
    /// Side of the map that the stem reads: after the initial convolution, or the tile.
    pub initial_side: usize,
    /// Kernel and stride of the stem.
    pub stride: usize,
    /// Zero padding of the stem.
    pub stem_padding: usize,
    /// The four stages' maps.
    pub grids: [Grid; STAGES],
    /// Before stages 1, 2 and 3: [`Grid::children`], of one sample if all are equal, else of all.
    pub children: [Arc<Vec<u32>>; STAGES - 1],
    /// Which patches are hidden, if any.
    pub mask: Option<Mask>,
    /// Over what Global Response Normalization takes its norms.
    pub grn: Grn,
}

impl Geometry {
    /// The maps of `architecture` for `batch` tiles. A mask needs a geometry of pretraining: same padding or a patchify
    /// stem, and a tile of whole patches.
    pub fn new(architecture: &Architecture, batch: usize, mask: Option<&Mask>) -> Result<Self> {
        let a = architecture;
        let sides = a.grids();
        let patches = usize::from(a.tile_size) / usize::from(a.patch_size);
        let grids = match mask {
            None => sides.map(|side| Grid::full(side, batch)),
            Some(mask) => {
                let whole = a.tile_size.is_multiple_of(a.patch_size.into());
                if !whole || a.stem_padding == StemPadding::None {
                    candle_core::bail!("a mask needs same padding or a patchify stem, and a tile of whole patches");
                }
                if mask.batch() != batch || mask.side() != patches {
                    let (b, s) = (mask.batch(), mask.side());
                    candle_core::bail!(
                        "the mask is for {b} tiles of {s}x{s} patches, not {batch} of {patches}x{patches}"
                    );
                }
                [8, 4, 2, 1].map(|cells| Grid::masked(mask, cells))
            }
        };
        let child = |stage: usize| Ok::<_, candle_core::Error>(Arc::new(grids[stage + 1].children(&grids[stage])?));
        let children = [child(0)?, child(1)?, child(2)?];
        Ok(Self {
            tile: a.tile_size.into(),
            initial_padding: a.initial_padding(),
            initial_side: a.initial_grid(),
            stride: a.stem_stride(),
            stem_padding: a.stem_pad(),
            grids,
            children,
            mask: mask.cloned(),
            grn: Grn::Sample,
        })
    }

    /// Number of samples.
    pub fn batch(&self) -> usize {
        self.grids[0].batch
    }

    /// Before stage `stage + 1`: the children of `sample`'s rows.
    pub fn children(&self, stage: usize, sample: usize) -> &[u32] {
        let n = self.grids[stage + 1].rows * 4;
        match self.children[stage].len() == n {
            true => &self.children[stage],
            false => &self.children[stage][sample * n..][..n],
        }
    }

    /// 1 for pixels of visible patches, else 0, `[batch, 1, tile, tile]`; nothing if all are visible.
    pub fn pixel_mask(&self, device: &Device) -> Result<Option<Tensor>> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let patch = self.tile / mask.side();
        let mut pixels = vec![0f32; mask.batch() * self.tile * self.tile];
        for sample in 0..mask.batch() {
            for &p in mask.visible(sample) {
                let (top, left) = (p as usize / mask.side() * patch, p as usize % mask.side() * patch);
                for y in top..top + patch {
                    pixels[(sample * self.tile + y) * self.tile + left..][..patch].fill(1.0);
                }
            }
        }
        Ok(Some(Tensor::from_vec(pixels, (mask.batch(), 1, self.tile, self.tile), device)?))
    }
}
