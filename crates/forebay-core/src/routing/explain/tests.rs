//! Facts of the words, and of decisions made over recorded rows.

use super::*;
use crate::routing::affinity::Marks;
use crate::routing::candidate::Foreign;
use crate::routing::estimate::Evidence;
use crate::routing::facts::{ArmIndex, Kind};
use crate::routing::policy::{LeastTokens, PredictedTtft, RoundRobin};
use std::time::Duration;

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

/// A pool of two arms, two backends each.
fn book(change: impl FnOnce(&mut Book)) -> Book {
    let id = BackendId;
    let seats = (0..4).map(|n| Seat { id: id(n), arm: ArmIndex((n / 2) as u16), standing: Standing::In }).collect();
    let rows = (0..4).map(|n| Candidate::idle(id(n), n as u16)).collect();
    let mut book =
        Book { seats, rows, cross_arm: true, policy: "predicted_ttft", max_in_flight: None, held: Vec::new() };
    change(&mut book);
    book
}

fn decide(book: &Book, policy: &dyn Policy, tried: &[BackendId]) -> Explained {
    explain(book, policy, &facts(), tried, NOW, &mut fastrand::Rng::with_seed(5))
}

fn why(book: &Book, policy: &dyn Policy) -> String {
    let explained = decide(book, policy, &[]);
    explained.trace.why(&explained.decision.unwrap())
}

#[test]
fn the_queue_is_named_where_it_is_the_reason() {
    let book = book(|book| {
        book.rows[0].queued_tokens = 3200;
        book.rows[1].ttft = Evidence { measured: 1.0, expected: 1.0 };
    });
    let text = why(&book, &PredictedTtft);
    assert!(
        text.starts_with("b1: least predicted TTFT 0.10 s; b0 (0.42 s) waits behind 3,200 queued prompt tokens"),
        "{text}"
    );
}

#[test]
fn other_reasons_have_their_words() {
    let reason = |change: fn(&mut Candidate)| {
        why(
            &book(|book| {
                book.rows[1].ttft = Evidence { measured: 10.0, expected: 10.0 };
                book.rows[0].ttft = book.rows[1].ttft;
                change(&mut book.rows[0]);
            }),
            &PredictedTtft,
        )
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
            "b1: the only one that may have it, predicted TTFT 0.10 s; 1 left alone after failures",
        ),
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text:?}");
    }
    let cached = why(&book(|book| book.rows[1].matched = 480), &PredictedTtft);
    assert!(cached.contains("b0 (0.10 s) would compute 500 prompt tokens"), "{cached}");
}

#[test]
fn policies_say_what_they_compare() {
    let tokens = book(|book| {
        book.policy = "least_tokens";
        book.rows[0].queued_tokens = 3200;
    });
    assert_eq!(why(&tokens, &LeastTokens), "b1: least outstanding prompt tokens, 0; b0 has 3,200");
    let turns = book(|book| {
        book.policy = "round_robin";
        book.rows[0].turn = 7;
    });
    assert_eq!(why(&turns, &RoundRobin), "b1: its turn; b0 has 0 in flight");
    let alike = why(&book(|_| ()), &PredictedTtft);
    assert!(alike.contains("drawn from 2 that are alike") && alike.contains("would do as well"), "{alike}");
    assert!(alike.ends_with("nothing was measured, so prompt tokens decide"));
}

#[test]
fn every_member_has_a_verdict() {
    let book = book(|book| {
        book.rows[0].open_for = Duration::from_secs(1);
        book.seats[3].standing = Standing::Drained;
    });
    let verdicts =
        |tried: &[BackendId]| decide(&book, &PredictedTtft, tried).members.iter().map(|m| m.0).collect::<Vec<_>>();
    assert_eq!(verdicts(&[]), [Verdict::BackingOff, Verdict::Chosen, Verdict::OtherArm, Verdict::Drained]);
    let tried = [BackendId(0), BackendId(1)];
    assert_eq!(verdicts(&tried), [Verdict::Tried, Verdict::Tried, Verdict::Chosen, Verdict::Drained]);
    let crossed = decide(&book, &PredictedTtft, &tried);
    assert!(crossed.trace.why(&crossed.decision.unwrap()).contains("of another arm, since its own has none left"));
    let none = decide(&book, &PredictedTtft, &[BackendId(0), BackendId(1), BackendId(2)]);
    assert_eq!(none.decision, None);
}

#[test]
fn words_are_visible_ascii() {
    let text = why(&book(|book| book.rows[0].queued_tokens = u64::MAX), &PredictedTtft);
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
    assert_eq!((grouped(0.0), grouped(999.0), grouped(1_234_567.0)), ("0".into(), "999".into(), "1,234,567".into()));
}
