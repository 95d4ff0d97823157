//! The arena of a model, explained: each kind of step, what it needs, and what less memory would cost.

use std::fmt::Write;

use nadir::encoder::Encoder;
use nadir::model::{Model, Place, Precision, STAGES};
use nadir::plan::cost::{StepKind, model_steps};
use nadir::plan::int8::{Passes, StagePasses, int8_arena_bytes, recomputed};
use nadir::plan::regions::{Region, places, regions};

use crate::inspect::thousands;
use crate::options::passes_text;

/// One place with its regions.
#[derive(Clone, Debug)]
pub struct PlacePlan {
    /// Where.
    pub place: Place,
    /// What lies in the arena meanwhile.
    pub regions: Vec<Region>,
}

impl PlacePlan {
    /// The first byte behind the last region.
    pub fn end(&self) -> usize {
        self.regions
            .last()
            .map_or(0, |last| (last.offset + last.bytes).next_multiple_of(nadir::encoder::ARENA_ALIGNMENT))
    }
}

/// The regions of each place.
pub fn place_plans(encoder: &Encoder<'_>) -> Vec<PlacePlan> {
    let model = encoder.model();
    let (arch, bands) = (model.architecture(), model.bands().len());
    let plan = |place| PlacePlan {
        place,
        regions: regions(arch, bands, model.precision(), encoder.passes(), place).collect(),
    };
    places(arch).map(plan).collect()
}

/// The kinds of steps of a run.
pub fn step_kinds(encoder: &Encoder<'_>) -> Vec<StepKind> {
    model_steps(encoder.model(), encoder.passes()).collect()
}

/// A choice of passes: its arena, and the multiply-adds that it does twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TradeOff {
    /// Passes of each stage.
    pub passes: StagePasses,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Multiply-adds more than in one pass everywhere.
    pub extra_macs: u64,
}

/// The choices of passes than which no other needs less memory at no more multiply-adds: the fewest multiply-adds first. An f32 or f16 model has
/// one.
pub fn trade_offs(model: &Model<'_>) -> Vec<TradeOff> {
    let (arch, bands) = (model.architecture(), model.bands().len());
    if model.precision() != Precision::Int8 {
        let arena_bytes = Encoder::new(model).arena_bytes();
        return vec![TradeOff { passes: [Passes::One; STAGES], arena_bytes, extra_macs: 0 }];
    }
    let mut all: Vec<TradeOff> = (0..1 << STAGES)
        .map(|choice| {
            let passes = std::array::from_fn(|stage| if choice >> stage & 1 == 1 { Passes::Two } else { Passes::One });
            let twice = (0..STAGES).filter(|&stage| passes[stage] == Passes::Two);
            let extra_macs = twice.map(|stage| recomputed(arch, stage)).sum();
            TradeOff { passes, arena_bytes: int8_arena_bytes(arch, bands, passes), extra_macs }
        })
        .collect();
    all.sort_by_key(|choice| (choice.extra_macs, choice.arena_bytes));
    let mut front: Vec<TradeOff> = Vec::new();
    for choice in all {
        if front.last().is_none_or(|last| choice.arena_bytes < last.arena_bytes) {
            front.push(choice);
        }
    }
    front
}

/// The plan as a table for people.
pub fn text(encoder: &Encoder<'_>) -> String {
    let model = encoder.model();
    let (arena, int8) = (encoder.arena_bytes(), model.precision() == Precision::Int8);
    let mut out = format!("{} {}: arena {} bytes", model.name(), model.precision().name(), thousands(arena as u64));
    if int8 {
        let _ = write!(out, ", passes {}", passes_text(encoder.passes()));
    }
    let kinds = step_kinds(encoder);
    let macs = kinds.iter().map(|kind| kind.total.macs).sum();
    let count: usize = kinds.iter().map(|kind| kind.steps).sum();
    let _ = writeln!(out, ", {} steps, {} multiply-adds\n", thousands(count as u64), thousands(macs));

    let _ = writeln!(
        out,
        "{:<14} {:>6} {:>6} {:>8} {:>14} {:>14} {:>12}  regions (bytes)",
        "place", "pass", "steps", "strip", "MACs a step", "MACs", "arena"
    );
    let plans = place_plans(encoder);
    for kind in &kinds {
        let Some(plan) = plans.iter().find(|plan| plan.place == kind.place) else { continue };
        let pass = match (kind.place, kind.passes) {
            (Place::Block { .. }, Passes::One) => format!("{} of 1", kind.pass + 1),
            (Place::Block { .. }, Passes::Two) => format!("{} of 2", kind.pass + 1),
            _ => "-".to_owned(),
        };
        // One pass: the second kind of step finishes what the first has kept.
        let pass = if pass == "2 of 1" { "finish".to_owned() } else { pass };
        let regions: Vec<String> =
            plan.regions.iter().map(|region| format!("{} {}", region.name, thousands(region.bytes as u64))).collect();
        let _ = writeln!(
            out,
            "{:<14} {pass:>6} {:>6} {:>8} {:>14} {:>14} {:>12}{} {}",
            kind.place.to_string(),
            kind.steps,
            format!("{}x{}", kind.rows, kind.columns),
            thousands(kind.largest.macs),
            thousands(kind.total.macs),
            thousands(plan.end() as u64),
            if plan.end() == arena { '*' } else { ' ' },
            regions.join(", ")
        );
    }
    out.push_str("* this place makes the arena as large as it is\n");
    if int8 {
        let one = model_macs(model);
        let _ = writeln!(out, "\n{:<10} {:>12} {:>16} {:>8}", "passes", "arena", "MACs more", "");
        for choice in trade_offs(model) {
            let _ = writeln!(
                out,
                "{:<10} {:>12} {:>16} {:>7.1}%{}",
                passes_text(choice.passes),
                thousands(choice.arena_bytes as u64),
                thousands(choice.extra_macs),
                100.0 * choice.extra_macs as f64 / one as f64,
                if choice.passes == encoder.passes() { "  <-" } else { "" }
            );
        }
    }
    out
}

fn model_macs(model: &Model<'_>) -> u64 {
    model_steps(model, [Passes::One; STAGES]).map(|kind| kind.total.macs).sum()
}
