//! Facts and properties of the policies.

use super::*;
use crate::routing::affinity::Marks;
use crate::routing::candidate::{Foreign, Head, PoolRatios};
use crate::routing::cost::Shape;
use crate::routing::estimate::Evidence;
use crate::routing::facts::{ArmIndex, Kind};
use crate::units::BackendId;
use proptest::prelude::*;
use std::time::Duration;

const NOW: Time = Time::from_micros(100_000_000);
/// Every policy, with its name.
fn all() -> impl Iterator<Item = (PolicyName, &'static dyn Policy)> {
    PolicyName::ALL.iter().map(|name| (*name, name.policy()))
}

fn facts(est_tokens: u32) -> RequestFacts {
    RequestFacts { est_tokens, sequences: 1, kind: Kind::Stream, arm: ArmIndex(0), pinned: None, marks: Marks::NONE }
}

fn rows(count: u16) -> Vec<Candidate> {
    (0..count).map(|place| Candidate::idle(BackendId(u32::from(place)), place)).collect()
}

fn pick(policy: &dyn Policy, rows: &[Candidate], seed: u64) -> Choice {
    policy.pick(rows, &facts(500), NOW, &mut fastrand::Rng::with_seed(seed)).unwrap()
}

#[test]
fn a_policy_without_rows_picks_nothing_and_with_one_picks_it() {
    for (name, policy) in all() {
        assert_eq!(policy.pick(&[], &facts(1), NOW, &mut fastrand::Rng::with_seed(0)), None, "{name}");
        assert_eq!(pick(policy, &rows(1), 0), Choice { index: 0, reason: Reason::Only }, "{name}");
    }
}

#[test]
fn predicted_ttft_prefers_the_shorter_prompt_queue_and_least_inflight_does_not() {
    let mut rows = rows(2);
    rows[0] = Candidate { prefilling: 1, queued_tokens: 16_000, ..rows[0] };
    rows[1] = Candidate { prefilling: 3, queued_tokens: 300, ..rows[1] };
    assert_eq!(pick(&PredictedTtft, &rows, 1).index, 1);
    assert_eq!(pick(&LeastTokens, &rows, 1).index, 1);
    assert_eq!(pick(&LeastInflight, &rows, 1).index, 0);
}

#[test]
fn predicted_ttft_avoids_a_backend_that_measures_slow_in_first_tokens_or_in_gaps() {
    let mut slow_start = rows(2);
    slow_start[0].ttft = Evidence { measured: 30.0, expected: 10.0 };
    slow_start[1].ttft = Evidence { measured: 10.0, expected: 10.0 };
    PoolRatios::of(&slow_start).fill(&mut slow_start);
    let mut slow_gaps = rows(2);
    slow_gaps[0].gap = Evidence { measured: 10.0, expected: 2.0 };
    slow_gaps[0].gap_slow = slow_gaps[0].gap;
    PoolRatios::of(&slow_gaps).fill(&mut slow_gaps);
    for seed in 0..50 {
        assert_eq!(pick(&PredictedTtft, &slow_start, seed).index, 1);
        assert_eq!(pick(&PredictedTtft, &slow_gaps, seed).index, 1);
    }
}

#[test]
fn predicted_ttft_sees_foreign_load_and_the_configured_speed() {
    let mut foreign = rows(2);
    foreign[0].foreign = Foreign { running: 30.0, waiting: 4.0, prompt_tokens: 2000.0, kv_tokens: 0.0 };
    assert_eq!(pick(&PredictedTtft, &foreign, 1).index, 1);
    let mut fast = rows(2);
    fast[0].shape = Shape::with_speed(1.4);
    assert!((0..50).all(|seed| pick(&PredictedTtft, &fast, seed).index == 0));
}

#[test]
fn least_tokens_breaks_ties_by_in_flight() {
    let mut rows = rows(3);
    rows[0].decoding = 2;
    rows[1].decoding = 1;
    rows[2] = Candidate { queued_tokens: 1, ..rows[2] };
    assert_eq!(pick(&LeastTokens, &rows, 5), Choice { index: 1, reason: Reason::Lowest });
}

#[test]
fn p2c_never_takes_the_most_loaded_of_all() {
    let mut rows = rows(5);
    for (row, load) in rows.iter_mut().zip([3, 9, 1, 2, 4]) {
        row.decoding = load;
    }
    assert!((0..2000).all(|seed| pick(&P2c, &rows, seed).index != 1));
    assert!((0..2000).any(|seed| pick(&P2c, &rows, seed).index != 2), "it is not argmin");
}

#[test]
fn round_robin_goes_round_and_a_newcomer_is_next() {
    let mut rows = rows(3);
    let mut seen = Vec::new();
    for turn in 1..=6 {
        let choice = pick(&RoundRobin, &rows, 0);
        rows[choice.index].turn = turn;
        seen.push(choice.index);
    }
    assert_eq!(seen, [0, 1, 2, 0, 1, 2]);
    rows.push(Candidate::idle(BackendId(9), 3));
    assert_eq!(pick(&RoundRobin, &rows, 0).index, 3);
}

#[test]
fn equal_idle_backends_share_evenly() {
    for (name, policy) in all() {
        let (mut rows, mut rng) = (rows(5), fastrand::Rng::with_seed(42));
        let mut counts = [0_u32; 5];
        for turn in 1..=200_000 {
            let choice = policy.pick(&rows, &facts(500), NOW, &mut rng).unwrap();
            rows[choice.index].turn = turn;
            counts[choice.index] += 1;
        }
        for count in counts {
            let share = f64::from(count) / 200_000.0;
            assert!((share - 0.2).abs() < 0.02 * 0.2, "{name}: {counts:?}");
        }
    }
}

#[test]
fn ties_reach_past_the_scores_kept_on_the_stack() {
    let rows = rows(2000);
    let mut rng = fastrand::Rng::with_seed(2);
    let picks: Vec<usize> =
        (0..20_000).map(|_| PredictedTtft.pick(&rows, &facts(9), NOW, &mut rng).unwrap().index).collect();
    let beyond = picks.iter().filter(|&&index| index >= 1000).count();
    assert!((9_000..11_000).contains(&beyond), "{beyond}");
    assert_eq!(pick(&PredictedTtft, &rows, 1).reason, Reason::Tie(2000));
}

/// A row of anything that a load can hold, absurd measurements included. Made from a seed and not by strategies, which are
/// ten times slower: a failing case is its seed.
fn any_row(rng: &mut fastrand::Rng) -> Candidate {
    let number = |rng: &mut fastrand::Rng| rng.f64() * [0.0, 1.0, 1e3, 1e9][rng.usize(..4)];
    let evidence =
        |rng: &mut fastrand::Rng| Evidence { measured: number(rng).min(1e4), expected: number(rng).min(1e4) };
    Candidate {
        prefilling: rng.u32(..5000),
        decoding: rng.u32(..5000),
        queued_tokens: rng.u64(..5_000_000),
        kv_tokens: rng.u64(..5_000_000),
        kv_capacity: rng.bool().then(|| rng.u64(..5_000_000)),
        foreign: Foreign {
            running: number(rng),
            waiting: number(rng),
            prompt_tokens: number(rng),
            kv_tokens: number(rng),
        },
        head: rng.bool().then(|| Head { since: Time::from_micros(rng.u64(..200_000_000)), tokens: rng.u32(..) }),
        done_per_second: number(rng),
        ttft: evidence(rng),
        gap: evidence(rng),
        gap_slow: evidence(rng),
        shape: Shape::with_speed(0.01 + 100.0 * rng.f64()),
        turn: rng.u64(..9),
        ..Candidate::idle(BackendId(0), 0)
    }
}

fn any_table(rng: &mut fastrand::Rng) -> (Vec<Candidate>, RequestFacts) {
    let mut rows: Vec<Candidate> = (0..rng.usize(1..9)).map(|_| any_row(rng)).collect();
    if rng.bool() {
        // Rows that are close, so that ties and small changes matter.
        let first = rows[0];
        for row in &mut rows {
            *row = Candidate { queued_tokens: rng.u64(..50), decoding: rng.u32(..3), ..first };
        }
    }
    PoolRatios::of(&rows).fill(&mut rows);
    let kind = [Kind::Stream, Kind::Unary, Kind::NoDecode, Kind::Light][rng.usize(..4)];
    let facts = RequestFacts { est_tokens: rng.u32(..200_000), sequences: rng.u32(1..9), kind, ..facts(0) };
    (rows, facts)
}

/// The chance of `index`, exactly: one over the number of ties that it is among.
fn chance(rows: &[Candidate], facts: &RequestFacts, index: usize) -> f64 {
    let scores: Vec<f64> = rows.iter().map(|row| cost_of(row, facts)).collect();
    let limit = scores.iter().copied().fold(f64::MAX, f64::min) * (1.0 + TIE);
    if scores[index] > limit {
        return 0.0;
    }
    1.0 / scores.iter().filter(|&&score| score <= limit).count() as f64
}

fn cost_of(row: &Candidate, facts: &RequestFacts) -> f64 {
    crate::routing::cost::terms(row, facts, NOW).score()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_table_of_facts_gives_a_number_and_a_row_that_was_given(
        seed in any::<u64>(),
    ) {
        let (rows, facts) = any_table(&mut fastrand::Rng::with_seed(seed));
        for row in &rows {
            let terms = crate::routing::cost::terms(row, &facts, NOW);
            prop_assert!(terms.score() >= 0.0 && terms.score().is_finite() && terms.raw > 0.0, "{terms:?}");
        }
        for (name, policy) in all() {
            let mut rng = fastrand::Rng::with_seed(seed);
            let choice = policy.pick(&rows, &facts, NOW, &mut rng);
            prop_assert!(choice.is_some_and(|choice| choice.index < rows.len()), "{name}");
            let again = policy.pick(&rows, &facts, NOW, &mut fastrand::Rng::with_seed(seed));
            prop_assert_eq!(choice, again, "{}", name);
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let choice = PredictedTtft.pick(&rows, &facts, NOW, &mut rng).unwrap();
        prop_assert!(chance(&rows, &facts, choice.index) > 0.0);
    }

    #[test]
    fn more_queue_more_decoding_or_a_slower_ratio_never_raises_a_chance(
        seed in any::<u64>(),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (rows, facts) = any_table(&mut rng);
        let (index, size) = (rng.usize(..rows.len()), [1e-3, 1.0][rng.usize(..2)]);
        let (q, n, k) = ((rng.f64() * size * 1e5) as u64, (rng.f64() * size * 500.0) as u32, rng.f64() * size * 50.0);
        let before = chance(&rows, &facts, index);
        let with = |change: &dyn Fn(&mut Candidate)| {
            let mut rows = rows.clone();
            change(&mut rows[index]);
            chance(&rows, &facts, index)
        };
        prop_assert!(with(&|row| row.queued_tokens += q) <= before);
        prop_assert!(with(&|row| row.decoding += n) <= before);
        prop_assert!(with(&|row| row.k += k) <= before);
    }
}

#[test]
fn the_moment_matters_only_for_the_prompt_in_progress() {
    let mut rows = rows(2);
    rows[0] = Candidate { queued_tokens: 1000, head: Some(Head { since: NOW, tokens: 1000 }), ..rows[0] };
    rows[1] = Candidate { queued_tokens: 600, ..rows[1] };
    let at =
        |ms| PredictedTtft.pick(&rows, &facts(100), NOW + Duration::from_millis(ms), &mut fastrand::Rng::with_seed(1));
    assert_eq!(at(0).unwrap().index, 1);
    assert_eq!(at(80).unwrap().index, 0);
}
