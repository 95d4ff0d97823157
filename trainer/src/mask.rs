//! Which patches of a tile are hidden from the encoder.

use candle_core::Result;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// The visible patches of every sample of a batch; each sample has the same number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    side: usize,
    batch: usize,
    kept: usize,
    /// `batch` runs of `kept` patch indices (row times `side` plus column), ascending within a run.
    visible: Vec<u32>,
}

impl Mask {
    /// Hides the share `ratio` (0 to 1) of the `patches_per_side` squared patches of each sample, drawn anew per sample:
    /// `floor(patches * (1 - ratio))` stay visible, at least one.
    pub fn random(batch: usize, patches_per_side: usize, ratio: f64, rng: &mut StdRng) -> Self {
        let patches = patches_per_side * patches_per_side;
        // The small term keeps 49 * 0.4 and its like on the side of exact arithmetic.
        let kept = ((patches as f64 * (1.0 - ratio) + 1e-9) as usize).clamp(1, patches);
        let mut order: Vec<u32> = (0..patches as u32).collect();
        let mut visible = Vec::with_capacity(batch * kept);
        for _ in 0..batch {
            order.shuffle(rng);
            let start = visible.len();
            visible.extend_from_slice(&order[..kept]);
            visible[start..].sort_unstable();
        }
        Self { side: patches_per_side, batch, kept, visible }
    }

    /// The mask in which exactly the patches `visible[sample]` (row times side plus column) are visible.
    ///
    /// Fails unless every sample has the same positive number of distinct patches inside the grid.
    pub fn from_visible(patches_per_side: usize, visible: &[Vec<u32>]) -> Result<Self> {
        let kept = visible.first().map_or(0, Vec::len);
        let mut flat = Vec::with_capacity(visible.len() * kept);
        for (sample, patches) in visible.iter().enumerate() {
            let mut patches = patches.clone();
            patches.sort_unstable();
            patches.dedup();
            let inside = patches.iter().all(|p| (*p as usize) < patches_per_side * patches_per_side);
            if patches.len() != kept || kept == 0 || !inside {
                candle_core::bail!("mask: sample {sample} does not have {kept} distinct patches inside the grid");
            }
            flat.extend(patches);
        }
        Ok(Self { side: patches_per_side, batch: visible.len(), kept, visible: flat })
    }

    /// The mask of the samples in `part` alone.
    pub fn part(&self, part: std::ops::Range<usize>) -> Self {
        let visible = self.visible[part.start * self.kept..part.end * self.kept].to_vec();
        Self { batch: part.len(), visible, ..*self }
    }

    /// Number of samples.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Patches along one side of the tile.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Visible patches of every sample.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The visible patches of `sample`, ascending.
    pub fn visible(&self, sample: usize) -> &[u32] {
        &self.visible[sample * self.kept..][..self.kept]
    }

    /// The hidden patches of `sample`, ascending.
    pub fn hidden(&self, sample: usize) -> Vec<u32> {
        let visible = self.visible(sample);
        (0..(self.side * self.side) as u32).filter(|p| visible.binary_search(p).is_err()).collect()
    }
}
