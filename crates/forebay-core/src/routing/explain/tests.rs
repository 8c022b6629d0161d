//! Facts of the words, and of decisions made over recorded rows.

use std::time::Duration;

use super::*;
use crate::clock::Time;
use crate::routing::affinity::{Index, Marks};
use crate::routing::candidate::Foreign;
use crate::routing::estimate::Evidence;
use crate::routing::facts::{ArmIndex, Kind, RequestFacts};
use crate::routing::policy::PolicyName;
use crate::routing::rows::Rows;

const NOW: Time = Time::from_micros(50_000_000);

fn facts() -> RequestFacts {
    RequestFacts {
        est_tokens: 500,
        sequences: 1,
        kind: Kind::Stream,
        arm: ArmIndex(0),
        pinned: None,
        marks: Marks::NONE,
    }
}

/// A pool as it stands.
struct Standings {
    seats: Vec<Seat>,
    rows: Vec<Candidate>,
    policy: PolicyName,
}

impl Loads for Standings {
    fn slot(&self, member: u16) -> usize {
        usize::from(member)
    }

    fn row(&self, member: u16) -> Candidate {
        self.rows[usize::from(member)]
    }

    fn changed_since(&self, _: u64) -> Option<&[usize]> {
        None
    }

    fn next_change(&self) -> u64 {
        0
    }
}

/// A pool of two arms, two backends each.
fn pool(change: impl FnOnce(&mut Standings)) -> Standings {
    let id = BackendId;
    let seats = (0..4).map(|n| Seat { id: id(n), arm: ArmIndex((n / 2) as u16), standing: Standing::In }).collect();
    let rows = (0..4).map(|n| Candidate::idle(id(n), n as u16)).collect();
    let mut pool = Standings { seats, rows, policy: PolicyName::PredictedTtft };
    change(&mut pool);
    pool
}

fn ask(pool: &Standings, tried: &[BackendId]) -> Explained {
    let rules = PoolRules {
        oversized: false,
        seats: &pool.seats,
        cross_arm: true,
        policy: pool.policy,
        max_in_flight: None,
        held: &[],
        generation: 1,
    };
    let (mut admitted, mut rows, mut affinity) = (Vec::new(), Rows::default(), Index::default());
    let buffers = Buffers { admitted: &mut admitted, rows: &mut rows, affinity: &mut affinity };
    let query = Query { facts: &facts(), tried, now: NOW };
    explain(rules, query, pool, buffers, &mut fastrand::Rng::with_seed(5), &mut affinity::compare)
}

fn why(pool: &Standings) -> String {
    let explained = ask(pool, &[]);
    explained.trace.why(&explained.decision.unwrap())
}

#[test]
fn the_queue_is_named_where_it_is_the_reason() {
    let pool = pool(|pool| {
        pool.rows[0].queued_tokens = 3200;
        pool.rows[1].ttft = Evidence { measured: 1.0, expected: 1.0 };
    });
    let text = why(&pool);
    assert!(
        text.starts_with("b1: least predicted TTFT 0.10 s; b0 (0.42 s) waits behind 3,200 queued prompt tokens"),
        "{text}"
    );
}

#[test]
fn other_reasons_have_their_words() {
    let reason = |change: fn(&mut Candidate)| {
        why(&pool(|pool| {
            pool.rows[1].ttft = Evidence { measured: 10.0, expected: 10.0 };
            pool.rows[0].ttft = pool.rows[1].ttft;
            change(&mut pool.rows[0]);
        }))
    };
    for (text, wanted) in [
        (reason(|row| row.ttft = Evidence { measured: 30.0, expected: 10.0 }), "was measured 2.7 times as slow"),
        (reason(|row| row.foreign = Foreign { running: 60.0, ..Foreign::default() }), "has 60 sequences running"),
        (
            reason(|row| {
                row.kv_capacity = Some(1000);
                row.kv_tokens = 900;
            }),
            "waits for room in its KV cache",
        ),
        (reason(|row| row.gap = Evidence { measured: 9.0, expected: 3.0 }), "takes longer for a step"),
        (
            reason(|row| row.open_for = Duration::from_secs(2)),
            "b1: the only eligible backend, predicted TTFT 0.10 s; 1 left alone after failures",
        ),
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text:?}");
    }
    let cached = why(&pool(|pool| pool.rows[1].matched = 480));
    assert!(cached.contains("b0 (0.10 s) would compute 500 prompt tokens"), "{cached}");
}

#[test]
fn policies_say_what_they_compare() {
    let tokens = pool(|pool| {
        pool.policy = PolicyName::LeastTokens;
        pool.rows[0].queued_tokens = 3200;
    });
    assert_eq!(why(&tokens), "b1: least outstanding prompt tokens, 0; b0 has 3,200");
    let turns = pool(|pool| {
        pool.policy = PolicyName::RoundRobin;
        pool.rows[0].turn = 7;
    });
    assert_eq!(why(&turns), "b1: its turn; b0 has 0 in flight");
    let alike = why(&pool(|_| ()));
    assert!(alike.contains("drawn from 2 that are alike") && alike.contains("would do as well"), "{alike}");
    assert!(alike.ends_with("nothing was measured, so prompt tokens decide"));
}

#[test]
fn every_member_has_a_fate() {
    let pool = pool(|pool| {
        pool.rows[0].open_for = Duration::from_secs(1);
        pool.seats[3].standing = Standing::Drained;
    });
    let fates = |tried: &[BackendId]| ask(&pool, tried).members.iter().map(|m| m.0).collect::<Vec<_>>();
    assert_eq!(fates(&[]), [Fate::BackingOff, Fate::Chosen, Fate::OtherArm, Fate::Drained]);
    let tried = [BackendId(0), BackendId(1)];
    assert_eq!(fates(&tried), [Fate::Tried, Fate::Tried, Fate::Chosen, Fate::Drained]);
    let crossed = ask(&pool, &tried);
    assert!(crossed.trace.why(&crossed.decision.unwrap()).contains("of another arm, since its own has none left"));
    let none = ask(&pool, &[BackendId(0), BackendId(1), BackendId(2)]);
    assert_eq!(none.decision, None);
}

#[test]
fn words_are_visible_ascii() {
    let text = why(&pool(|pool| pool.rows[0].queued_tokens = u64::MAX));
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
    assert_eq!((grouped(0.0), grouped(999.0), grouped(1_234_567.0)), ("0".into(), "999".into(), "1,234,567".into()));
}
