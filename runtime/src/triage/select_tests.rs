//! Tests of [`super`], against every possible selection on small instances.
extern crate std;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::triage::test_random::Random;

fn run(candidates: &[Candidate], policy: &Policy, budget: u64) -> (Selection, Vec<Rung>) {
    let mut steps = vec![Step::EMPTY; candidates.len()];
    let mut rungs = vec![Rung::Tile; candidates.len()];
    let selection = select(candidates, policy, budget, &mut steps, &mut rungs).unwrap();
    let spent: u64 =
        candidates.iter().zip(&rungs).map(|(c, r)| u64::from(bytes(c, *r).expect("a rung that is there"))).sum();
    assert_eq!(spent, selection.bytes);
    assert!(spent <= budget);
    (selection, rungs)
}

/// The best sum of values over all selections, and the largest value of one option.
fn brute_force(candidates: &[Candidate], policy: &Policy, budget: u64, least: Rung) -> f64 {
    fn go(rest: &[Candidate], policy: &Policy, left: u64, least: Rung) -> Option<f64> {
        let Some((first, rest)) = rest.split_first() else { return Some(0.0) };
        Rung::ALL
            .into_iter()
            .filter(|r| *r >= least)
            .filter_map(|r| {
                let left = left.checked_sub(bytes(first, r)?.into())?;
                Some(f64::from(first.worth) * f64::from(policy.fidelity[r.index()]) + go(rest, policy, left, least)?)
            })
            .max_by(f64::total_cmp)
    }
    go(candidates, policy, budget, least).unwrap()
}

fn random_candidate(random: &mut Random, whole: bool) -> Candidate {
    let mut sizes = [20, 40, 160, 160 + random.below(3000) as u32];
    for size in &mut sizes {
        *size += random.below(30) as u32;
    }
    let mut bytes = [Some(0), Some(sizes[0]), Some(sizes[1]), Some(sizes[2]), Some(sizes[3])];
    if !whole {
        let gone = random.below(9) as usize;
        bytes.iter_mut().skip(1).for_each(|b| *b = b.filter(|_| gone != 8));
        if (1..RUNGS).contains(&gone) {
            bytes[gone] = None;
        }
    }
    Candidate { worth: random.unit(), bytes }
}

#[test]
fn within_one_step_of_the_best_selection() {
    let mut random = Random(17);
    let (mut sum, mut best_sum) = (0.0, 0.0);
    for _ in 0..if cfg!(miri) { 10 } else { 400 } {
        let n = 1 + random.below(5) as usize;
        let candidates: Vec<_> = (0..n).map(|_| random_candidate(&mut random, false)).collect();
        let mut fidelity = [0.0, random.unit(), random.unit(), random.unit(), 1.0];
        fidelity.sort_by(f32::total_cmp);
        let policy = Policy { fidelity, always_record: false, ..Policy::default() };
        let budget = random.below(6000);
        let (found, _) = run(&candidates, &policy, budget);
        let best = brute_force(&candidates, &policy, budget, Rung::Nothing);
        let one = candidates.iter().map(|c| f64::from(c.worth)).fold(0.0, f64::max);
        assert!(found.value <= best + 1e-9 && found.value + one >= best, "{} of {best}, one is {one}", found.value);
        sum += found.value;
        best_sum += best;
    }
    assert!(sum > 0.9 * best_sum, "{sum} of {best_sum}");
}

#[test]
fn records_come_first_when_asked_for() {
    let mut random = Random(19);
    for _ in 0..if cfg!(miri) { 10 } else { 200 } {
        let n = 1 + random.below(5) as usize;
        let candidates: Vec<_> = (0..n).map(|_| random_candidate(&mut random, true)).collect();
        let policy = Policy::default();
        let records: u64 = candidates.iter().map(|c| u64::from(c.bytes[1].unwrap())).sum();
        let budget = records + random.below(3000);
        let (found, rungs) = run(&candidates, &policy, budget);
        assert!(rungs.iter().all(|r| *r >= Rung::Record));
        let best = brute_force(&candidates, &policy, budget, Rung::Record);
        let one = candidates.iter().map(|c| f64::from(c.worth)).fold(0.0, f64::max);
        assert!(found.value <= best + 1e-9 && found.value + one >= best);
    }
    // Too little for all: the worthiest get theirs.
    let candidate = |worth| Candidate { worth, bytes: [Some(0), Some(10), None, None, None] };
    let (_, rungs) = run(&[candidate(0.1), candidate(0.9), candidate(0.5)], &Policy::default(), 25);
    assert_eq!(rungs, [Rung::Nothing, Rung::Record, Rung::Record]);
}

#[test]
fn many_tiles_stay_within_the_budget() {
    let mut random = Random(29);
    for n in [0, 1, 2, 1000, 5000] {
        let mut candidates: Vec<_> = (0..n).map(|_| random_candidate(&mut random, false)).collect();
        for candidate in &mut candidates {
            match random.below(8) {
                0 => candidate.worth = f32::NAN,
                1 => candidate.worth = f32::INFINITY,
                2 => candidate.worth = -1.0,
                3 => candidate.bytes = [None; RUNGS],
                4 => candidate.bytes[4] = Some(u32::MAX),
                5 => candidate.bytes[4] = candidate.bytes[1], // A better rung for nothing more.
                _ => {}
            }
        }
        for budget in [0, 1, 19, 1000, 100_000, u64::MAX] {
            for always_record in [false, true] {
                let policy = Policy { always_record, ..Policy::default() };
                let first = run(&candidates, &policy, budget);
                assert_eq!(first, run(&candidates, &policy, budget));
                if budget == u64::MAX {
                    // All that has a worth goes up as far as it can.
                    for (c, r) in candidates.iter().zip(&first.1).filter(|(c, _)| c.worth > 0.0) {
                        assert_eq!(*r, Rung::ALL.into_iter().rfind(|r| bytes(c, *r).is_some()).unwrap());
                    }
                }
            }
        }
    }
}

#[test]
fn worthless_tiles_get_a_record_at_most() {
    let tile = |worth| Candidate { worth, bytes: [0, 10, 20, 30, 40].map(Some) };
    let worths = [0.0, f32::NAN, -3.0, 1.0].map(tile);
    assert_eq!(run(&worths, &Policy::default(), 1000).1, [Rung::Record, Rung::Record, Rung::Record, Rung::Tile]);
    let policy = Policy { always_record: false, ..Policy::default() };
    assert_eq!(run(&worths, &policy, 1000).1, [Rung::Nothing, Rung::Nothing, Rung::Nothing, Rung::Tile]);
}

#[test]
fn ties_go_to_the_tile_captured_first() {
    let same = [Candidate { worth: 1.0, bytes: [0, 10, 20, 100, 1000].map(Some) }; 7];
    let (_, rungs) = run(&same, &Policy::default(), 3 * 1000 + 4 * 20);
    assert_eq!(rungs[..3], [Rung::Tile; 3]);
    assert_eq!(rungs[3..], [Rung::Code; 4]);
}

#[test]
fn the_wrong_room_is_refused() {
    let one = [Candidate { worth: 1.0, bytes: [None; RUNGS] }];
    let error = select(&one, &Policy::default(), 9, &mut [], &mut [Rung::Nothing]).unwrap_err();
    assert_eq!(error, SelectError { tiles: 1, steps: 0, rungs: 1 });
}

#[test]
fn worth_follows_the_table() {
    let policy = Policy::default();
    let worth = |probability, novelty| policy.worth(Verdict::Pass, Some(&Signals { probability, novelty }));
    assert_eq!(worth(0.0, 0.0), 0.02);
    assert_eq!(worth(1.0, 0.0), 1.02);
    assert!((worth(0.5, 0.75) - (0.02 + 0.5 + 0.15)).abs() < 1e-6);
    assert!((worth(0.0, 2.0) - 0.32).abs() < 1e-6);
    assert_eq!(worth(f32::NAN, f32::NAN), 0.02);
    assert_eq!(policy.worth(Verdict::NoData, Some(&Signals { probability: 1.0, novelty: 1.0 })), 0.0);
    assert_eq!(policy.worth(Verdict::Pass, None), 0.02);
    let odd = Policy { novel_from: 0.0, base: f32::NAN, ..policy };
    let worth = odd.worth(Verdict::Pass, Some(&Signals { probability: 1.0, novelty: 0.0 }));
    assert!(worth.is_finite());
}

#[test]
fn reasons_tell_why() {
    let policy = Policy::default();
    let reason =
        |verdict, probability, novelty, rung| policy.reason(verdict, Some(&Signals { probability, novelty }), rung);
    use Verdict::*;
    assert_eq!(reason(NoData, 1.0, 1.0, Rung::Record), Reason::VetoedNoData);
    assert_eq!(reason(Saturated, 1.0, 1.0, Rung::Nothing), Reason::VetoedSaturated);
    assert_eq!(reason(Pass, 0.9, 0.9, Rung::Tile), Reason::Wanted);
    assert_eq!(reason(Pass, 0.1, 0.9, Rung::Tile), Reason::Novel);
    assert_eq!(reason(Pass, 0.9, 0.1, Rung::Embedding), Reason::BudgetExhausted);
    assert_eq!(reason(Pass, 0.1, 0.1, Rung::Record), Reason::Routine);
    assert_eq!(reason(Pass, 0.1, 0.1, Rung::Nothing), Reason::BudgetExhausted);
    assert_eq!(reason(Pass, f32::NAN, f32::NAN, Rung::Code), Reason::Routine);
    assert_eq!(policy.reason(Pass, None, Rung::Record), Reason::Routine);
}
