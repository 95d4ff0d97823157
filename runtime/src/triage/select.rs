//! What goes down: each tile gets one rung, so that the sum of values is as large as the byte budget allows.
//!
//! This is the multiple-choice knapsack. A tile's rungs are points (bytes, value); from the rung it stands on, its next
//! step is the one of most value per byte, which walks the upper convex hull of these points. Of all tiles' next steps
//! the one of most value per byte is taken, again and again (D. Pisinger, A minimal algorithm for the multiple-choice
//! knapsack problem, EJOR 83, 1995, section 2). A step that no longer fits is replaced by the best smaller one of its tile.
//! The sum falls short of the best possible one by less than the value of one step.
//!
//! Value = worth of the tile ([`Policy::worth`]) x fidelity of the rung ([`Policy::fidelity`]). Ties go to the tile that was
//! captured first, so that ground can replay every decision. O(n log n) time, one [`Step`] a tile of memory.

use core::cmp::Ordering;

use super::quality::Verdict;
use super::record::{RUNGS, Reason, Rung};

/// What the operator wants: the table that turns scores into value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Worth of any tile that passed the quality check.
    pub base: f32,
    /// Added at probability 1 of being wanted, in proportion below.
    pub wanted: f32,
    /// Added at twice [`Policy::novel_from`], nothing at it, in proportion between.
    pub novel: f32,
    /// Probability from which a tile is called wanted.
    pub wanted_from: f32,
    /// Novelty from which a tile is called novel.
    pub novel_from: f32,
    /// Share of a tile's worth that each rung keeps, in the order of [`Rung::ALL`]; should not fall.
    pub fidelity: [f32; RUNGS],
    /// Give every tile its record before anything else, most worth first, as far as the budget goes.
    pub always_record: bool,
}

impl Default for Policy {
    /// A wanted tile is worth 50 routine ones, a novel one 15; an embedding keeps 3 % of a tile's worth.
    ///
    /// So, at 12 KiB a tile and 128 dimensions, a tile worth 0.1 or more goes down in full before the embedding of one
    /// worth 0.04, and that before a routine tile in full.
    fn default() -> Self {
        Self {
            base: 0.02,
            wanted: 1.0,
            novel: 0.3,
            wanted_from: 0.5,
            novel_from: 0.5,
            fidelity: [0.0, 0.005, 0.01, 0.03, 1.0],
            always_record: true,
        }
    }
}

/// What the embedding of a tile said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signals {
    /// Probability of being wanted ([`super::prototypes::Prototypes::probability`]).
    pub probability: f32,
    /// Novelty ([`super::novelty::novelty`]).
    pub novelty: f32,
}

impl Policy {
    /// Worth of a tile: 0 if vetoed, else base + wanted x probability + novel x how far it is beyond the threshold.
    ///
    /// Finite and not negative whatever comes in: a NaN counts as 0.
    pub fn worth(&self, verdict: Verdict, signals: Option<&Signals>) -> f32 {
        if verdict != Verdict::Pass {
            return 0.0;
        }
        let mut worth = self.base;
        if let Some(signals) = signals {
            let beyond = (signals.novelty - self.novel_from) / self.novel_from;
            worth += self.wanted * share(signals.probability) + self.novel * share(beyond);
        }
        positive(worth)
    }

    /// Why a tile stands on `rung`.
    pub fn reason(&self, verdict: Verdict, signals: Option<&Signals>, rung: Rung) -> Reason {
        let wanted = signals.is_some_and(|s| s.probability >= self.wanted_from);
        let novel = signals.is_some_and(|s| s.novelty >= self.novel_from);
        match (verdict, rung) {
            (Verdict::NoData, _) => Reason::VetoedNoData,
            (Verdict::Saturated, _) => Reason::VetoedSaturated,
            (Verdict::Pass, Rung::Nothing) => Reason::BudgetExhausted,
            (Verdict::Pass, rung) if (wanted || novel) && rung != Rung::Tile => Reason::BudgetExhausted,
            _ if wanted => Reason::Wanted,
            _ if novel => Reason::Novel,
            _ => Reason::Routine,
        }
    }
}

/// In 0 to 1; NaN is 0.
fn share(v: f32) -> f32 {
    if v > 0.0 { v.min(1.0) } else { 0.0 }
}

/// Finite and not negative; NaN is 0.
fn positive(v: f32) -> f32 {
    if v > 0.0 { v.min(f32::MAX) } else { 0.0 }
}

/// One tile of a selection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// From [`Policy::worth`].
    pub worth: f32,
    /// Bytes down on each rung, record and frames included, in the order of [`Rung::ALL`]; `None` if the tile does not
    /// have the rung. The entry of [`Rung::Nothing`] is taken as 0.
    pub bytes: [Option<u32>; RUNGS],
}

/// Working memory of [`select`] for one tile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Value gained per byte.
    density: f64,
    tile: u32,
    bytes: u32,
    to: Rung,
}

impl Step {
    /// For making the working memory.
    pub const EMPTY: Self = Self { density: 0.0, tile: 0, bytes: 0, to: Rung::Nothing };

    /// Denser first, then captured earlier first.
    fn order(&self, other: &Self) -> Ordering {
        other.density.total_cmp(&self.density).then(self.tile.cmp(&other.tile))
    }
}

/// What a selection came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selection {
    /// Bytes down, at most the budget.
    pub bytes: u64,
    /// Sum of worth x fidelity.
    pub value: f64,
}

/// The slices given to [`select`] do not fit the number of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selection of {tiles} tiles was given room for {steps} steps and {rungs} rungs")]
pub struct SelectError {
    /// Candidates.
    pub tiles: usize,
    /// Length of the working memory.
    pub steps: usize,
    /// Length of the result.
    pub rungs: usize,
}

/// Writes the rung of each candidate to `rungs`; `steps` is working memory. Both have as many items as `candidates`.
///
/// Tiles are told apart by their place in `candidates`. Never more than `budget` bytes are given out.
pub fn select(
    candidates: &[Candidate],
    policy: &Policy,
    budget: u64,
    steps: &mut [Step],
    rungs: &mut [Rung],
) -> Result<Selection, SelectError> {
    let tiles = candidates.len();
    if steps.len() != tiles || rungs.len() != tiles || u32::try_from(tiles).is_err() {
        return Err(SelectError { tiles, steps: steps.len(), rungs: rungs.len() });
    }
    rungs.fill(Rung::Nothing);
    let mut left = budget;
    if policy.always_record {
        for ((tile, step), candidate) in (0..).zip(steps.iter_mut()).zip(candidates) {
            *step = Step { density: positive(candidate.worth).into(), tile, ..Step::EMPTY };
        }
        heap(steps, tiles);
        for held in (0..tiles).rev() {
            let Some(&step) = steps.first() else { break };
            let at = step.tile as usize;
            if let (Some(candidate), Some(rung)) = (candidates.get(at), rungs.get_mut(at))
                && let Some(bytes) = candidate.bytes[Rung::Record.index()]
                && let Some(rest) = left.checked_sub(bytes.into())
            {
                (left, *rung) = (rest, Rung::Record);
            }
            swap(steps, 0, held);
            sift_down(steps, held, 0);
        }
    }

    // A heap of every tile's next step, the densest at the root; tiles at their end leave it.
    let mut held = 0;
    for ((tile, candidate), rung) in (0..).zip(candidates).zip(rungs.iter()) {
        if let Some(step) = next_step(candidate, tile, *rung, policy, left)
            && let Some(slot) = steps.get_mut(held)
        {
            *slot = step;
            held += 1;
        }
    }
    heap(steps, held);
    while held > 0 {
        let Some(&step) = steps.first() else { break };
        let at = step.tile as usize;
        let (Some(candidate), Some(rung)) = (candidates.get(at), rungs.get_mut(at)) else { break };
        if let Some(rest) = left.checked_sub(step.bytes.into()) {
            (left, *rung) = (rest, step.to);
        }
        match (next_step(candidate, step.tile, *rung, policy, left), steps.first_mut()) {
            (Some(next), Some(root)) => *root = next,
            _ => {
                held -= 1;
                swap(steps, 0, held);
            }
        }
        sift_down(steps, held, 0);
    }
    let value = candidates.iter().zip(rungs.iter()).map(|(c, r)| value(c, *r, policy)).sum();
    Ok(Selection { bytes: budget - left, value })
}

fn value(candidate: &Candidate, rung: Rung, policy: &Policy) -> f64 {
    // Exact: the product of two f32 fits an f64.
    f64::from(positive(candidate.worth)) * f64::from(positive(policy.fidelity[rung.index()]))
}

fn bytes(candidate: &Candidate, rung: Rung) -> Option<u32> {
    if rung == Rung::Nothing { Some(0) } else { candidate.bytes[rung.index()] }
}

/// The step up from `from` of most value per byte among those that fit `left`; of equal ones the smallest.
fn next_step(candidate: &Candidate, tile: u32, from: Rung, policy: &Policy, left: u64) -> Option<Step> {
    let (value_from, bytes_from) = (value(candidate, from, policy), bytes(candidate, from)?);
    let mut best: Option<Step> = None;
    for to in Rung::ALL {
        let gain = value(candidate, to, policy) - value_from;
        let more = bytes(candidate, to).and_then(|bytes| bytes.checked_sub(bytes_from));
        let Some(more) = more.filter(|&more| u64::from(more) <= left && gain > 0.0) else { continue };
        // A gain that costs nothing is the densest of all.
        let step = Step { density: gain / f64::from(more), tile, bytes: more, to };
        if best.is_none_or(|b| step.density > b.density || step.density == b.density && more < b.bytes) {
            best = Some(step);
        }
    }
    best
}

/// Makes a heap of the first `held` steps, the first of [`Step::order`] at its root.
fn heap(steps: &mut [Step], held: usize) {
    for root in (0..held / 2).rev() {
        sift_down(steps, held, root);
    }
}

/// Swaps two steps that are there; [`slice::swap`] would panic for others.
fn swap(steps: &mut [Step], a: usize, b: usize) {
    if let Ok([a, b]) = steps.get_disjoint_mut([a, b]) {
        core::mem::swap(a, b);
    }
}

/// Puts the step at `root` of the heap in the first `held` steps where it belongs among its descendants.
fn sift_down(steps: &mut [Step], held: usize, mut root: usize) {
    let Some(heap) = steps.get_mut(..held) else { return };
    loop {
        let mut first = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if let (Some(a), Some(b)) = (heap.get(child), heap.get(first))
                && a.order(b).is_lt()
            {
                first = child;
            }
        }
        if first == root {
            return;
        }
        swap(heap, root, first);
        root = first;
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
