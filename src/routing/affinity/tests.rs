//! Facts of the table and of what a hit is worth.

use super::*;
use crate::routing::cost;
use crate::routing::decision::Reason;
use crate::routing::facts::Kind;
use crate::routing::policy::{Policy, PredictedTtft};
use proptest::prelude::*;
use std::time::Duration;

fn at(seconds: u64) -> Time {
    Time::from_micros(1_000_000_000 + seconds * 1_000_000)
}

fn facts(est_tokens: u32, marks: Marks) -> RequestFacts {
    RequestFacts { est_tokens, sequences: 1, kind: Kind::Stream, arm: ArmIndex(0), pinned: None, marks }
}

fn rows(count: u16) -> Vec<Candidate> {
    (0..count).map(|place| Candidate::idle(BackendId(u32::from(place)), place)).collect()
}

fn table(backends: usize) -> Table {
    let mut table = Table::default();
    table.reserve(backends);
    table
}

/// A prompt's marks, one for each hash, 500 tokens apart.
fn prompt(hashes: &[u64]) -> Marks {
    let mut marks = Marks::NONE;
    for (tokens, &key) in (1_u32..).map(|nth| nth * 500).zip(hashes) {
        marks.push(Mark { key, tokens });
    }
    marks
}

/// In these tests the slot of a backend is its number, and so is its row.
fn matched(table: &Table, facts: &RequestFacts, rows: &[Candidate]) -> Vec<u32> {
    let mut rows = rows.to_vec();
    table.claim(facts, &mut rows, |slot| slot as usize);
    rows.iter().map(|row| row.matched).collect()
}

fn note(table: &mut Table, facts: &RequestFacts, backend: u32, sent: u64) {
    table.note(facts, BackendId(backend), backend, sent);
}

#[test]
fn a_session_is_found_where_it_was_and_claims_what_it_sent() {
    let mut table = table(2);
    let session = |tokens| facts(tokens, Marks::session(7));
    assert_eq!(matched(&table, &session(1000), &rows(2)), [0, 0]);
    note(&mut table, &session(1000), 1, 1000);
    assert_eq!(matched(&table, &session(1200), &rows(2)), [0, 992], "whole blocks of 16");
    assert_eq!(matched(&table, &session(320), &rows(2)), [0, 320], "no more than the prompt has");
    assert_eq!(matched(&table, &facts(1200, Marks::session(8)), &rows(2)), [0, 0]);
}

#[test]
fn a_shared_prefix_is_found_although_the_rests_differ() {
    let mut table = table(3);
    note(&mut table, &facts(2000, prompt(&[1, 2, 3, 40])), 0, 2000);
    note(&mut table, &facts(2000, prompt(&[1, 20])), 2, 2000);
    assert_eq!(matched(&table, &facts(2100, prompt(&[1, 2, 3, 50])), &rows(3)), [1488, 0, 496]);
    assert_eq!(matched(&table, &facts(2100, prompt(&[9, 2, 3])), &rows(3)), [0, 0, 0], "the beginning differs");
}

#[test]
fn a_session_and_a_prefix_claim_the_more_of_the_two() {
    let mut table = table(2);
    let mut marks = prompt(&[1, 2]);
    marks.session = Some(77);
    note(&mut table, &facts(3000, marks), 0, 3000);
    note(&mut table, &facts(1500, prompt(&[1, 2])), 1, 1500);
    assert_eq!(matched(&table, &facts(3200, marks), &rows(2)), [2992, 992]);
}

#[test]
fn blocks_of_the_engine_are_whole() {
    let mut table = table(1);
    note(&mut table, &facts(1000, Marks::session(7)), 0, 1000);
    let mut rows = rows(1);
    rows[0].block_tokens = 128;
    assert_eq!(matched(&table, &facts(1000, Marks::session(7)), &rows), [896]);
    assert_eq!(matched(&table, &facts(120, Marks::session(7)), &rows), [0], "less than a block is never found");
}

#[test]
fn an_entry_is_void_once_the_cache_took_in_seven_tenths_of_its_room() {
    let mut table = table(2);
    let request = facts(1000, Marks::session(7));
    note(&mut table, &request, 0, 5000);
    let after = |sent_tokens, kv_capacity| {
        let mut rows = rows(2);
        rows[0] = Candidate { sent_tokens, kv_capacity, ..rows[0] };
        matched(&table, &request, &rows)[0]
    };
    assert_eq!(after(5000 + 7000, Some(10_000)), 992);
    assert_eq!(after(5000 + 7001, Some(10_000)), 0);
    assert_eq!(after(5000 + 70_000, None), 992, "a room that is not known is taken for {UNKNOWN_ROOM}");
    assert_eq!(after(5000 + 70_001, None), 0);
}

#[test]
fn an_arm_does_not_claim_what_another_was_sent() {
    let mut table = table(2);
    let request = facts(1000, Marks::session(7));
    note(&mut table, &request, 0, 1000);
    let other = RequestFacts { arm: ArmIndex(1), ..request };
    assert_eq!(matched(&table, &other, &rows(2)), [0, 0]);
}

#[test]
fn a_removed_backend_s_slot_claims_nothing_for_the_next_one_in_it() {
    let mut table = table(1);
    let request = facts(1000, Marks::session(7));
    note(&mut table, &request, 0, 1000);
    let mut rows = rows(1);
    rows[0].id = BackendId(9);
    assert_eq!(matched(&table, &request, &rows), [0]);
    assert_eq!(matched(&table, &request, &[]), [0; 0]);
}

#[test]
fn a_hot_prefix_spreads_when_its_home_queues_and_then_has_two() {
    let mut table = table(4);
    let request = facts(2200, prompt(&[1, 2, 3, 4]));
    let mut rng = fastrand::Rng::with_seed(3);
    note(&mut table, &request, 1, 2200);
    let mut rows = rows(4);
    rows[1].sent_tokens = 2200;
    let mut places = Vec::new();
    for _ in 0..14 {
        for row in &mut rows {
            (row.claimed, row.matched) = (0, 0);
        }
        table.claim(&request, &mut rows, |slot| slot as usize);
        let choice = PredictedTtft.pick(&rows, &request, at(0), &mut rng).unwrap();
        let row = &mut rows[choice.index];
        let brought = u64::from(cost::uncached(&request, row.matched));
        row.queued_tokens += brought;
        row.sent_tokens += brought;
        note(&mut table, &request, row.id.0, row.sent_tokens);
        places.push(choice.index);
    }
    // Each hit brings 216 tokens instead of 2200: its home is the faster one until 1984 tokens wait there.
    let stayed = places.iter().take_while(|&&place| place == 1).count();
    assert!((9..=10).contains(&stayed), "{places:?}");
    let second = places[stayed];
    assert_ne!(second, 1);
    assert!(matched(&table, &request, &rows)[second] >= 1984, "it is a home as well now");
}

#[test]
fn a_key_that_all_kept_holders_have_prefers_nobody() {
    let mut table = table(16);
    let request = facts(1600, prompt(&[1, 2, 3]));
    for backend in 0..3 {
        note(&mut table, &request, backend, 0);
    }
    assert_eq!(matched(&table, &request, &rows(16)).iter().filter(|&&tokens| tokens > 0).count(), 3);
    note(&mut table, &request, 3, 0);
    let mut rows = rows(16);
    table.claim(&request, &mut rows, |slot| slot as usize);
    assert!(rows.iter().all(|row| row.matched >= 1488), "four hold it: it is everywhere");
    assert_eq!(rows.iter().filter(|row| row.claimed > 0).count(), 4, "but only who was sent it is held to it");
    let choice = PredictedTtft.pick(&rows, &request, at(0), &mut fastrand::Rng::with_seed(1)).unwrap();
    assert_eq!(choice.reason, Reason::Tie(16));
}

#[test]
fn a_million_keys_take_no_more_room_than_a_few() {
    let mut table = table(2);
    let capacity = table.capacity();
    for key in 0..1_000_000 {
        note(&mut table, &facts(500, Marks::session(key)), (key % 2) as u32, key);
    }
    assert_eq!((table.capacity(), capacity), (4096, 4096));
    assert!(table.len() <= 4096);
    let found = |keys: std::ops::Range<u64>| {
        let fresh = [999_999; 2].map(|sent_tokens| Candidate { sent_tokens, kv_capacity: Some(1 << 40), ..rows(1)[0] });
        let rows = [Candidate { id: BackendId(0), ..fresh[0] }, Candidate { id: BackendId(1), ..fresh[1] }];
        keys.filter(|&key| matched(&table, &facts(500, Marks::session(key)), &rows) != [0, 0]).count()
    };
    assert!(found(999_000..1_000_000) >= 900, "the latest are there: {}", found(999_000..1_000_000));
    assert_eq!(found(0..900_000), 0, "the oldest are not");
}

#[test]
fn the_same_dispatches_leave_the_same_table_and_more_room_forgets_nothing() {
    let fill = |table: &mut Table| {
        for key in 0..3000 {
            note(table, &facts(500, Marks::session(key)), (key % 2) as u32, 0);
        }
    };
    let (mut one, mut other) = (table(2), table(2));
    fill(&mut one);
    fill(&mut other);
    let seen = |table: &Table| {
        (0..3000).map(|key| matched(table, &facts(500, Marks::session(key)), &rows(2))).collect::<Vec<_>>()
    };
    let before = seen(&one);
    assert_eq!(before, seen(&other));
    other.reserve(64);
    assert_eq!(other.capacity(), 131_072);
    assert_eq!(before, seen(&other));
    other.reserve(2);
    assert_eq!(other.capacity(), 131_072, "it never shrinks");
}

#[test]
fn a_hit_is_worth_all_until_there_is_evidence_and_nothing_where_none_is_reported() {
    let mut worth = Worth::default();
    assert_eq!(worth.factor(at(0)), 1.0);
    for second in 0..30 {
        worth.claimed(2000);
        worth.report(Some(0.0), Some(0.0), at(second));
    }
    assert!(worth.factor(at(30)) < 0.1, "{}", worth.factor(at(30)));
    let mut row = Candidate { worth: worth.factor(at(30)), ..rows(1)[0] };
    let before = row.priced(1600);
    assert!(before < 160);
    row.worth = 1.0;
    assert_eq!(row.priced(1600), 1600);
}

#[test]
fn a_cache_that_is_turned_on_again_is_believed_again() {
    let mut worth = Worth::default();
    let mut hits = 0.0;
    for second in 0..600 {
        worth.claimed(2000);
        hits += if second >= 300 { 2000.0 } else { 0.0 };
        worth.report(Some(f64::from(second) * 4000.0), Some(hits), at(u64::from(second as u32)));
    }
    let recovered = worth.factor(at(600));
    assert!(recovered > 0.85, "{recovered}");
    let mut silent = Worth::default();
    silent.report(Some(0.0), Some(0.0), at(0));
    silent.claimed(1_000_000);
    silent.report(Some(0.0), Some(0.0), at(1));
    assert!(silent.factor(at(1)) < 0.01);
    assert_eq!(silent.factor(at(1200)), 1.0, "without claims it is forgotten, and tried again");
}

#[test]
fn an_engine_that_reports_nothing_is_believed_and_one_that_began_anew_is_told() {
    let mut worth = Worth::default();
    for second in 0..30 {
        worth.claimed(2000);
        assert!(!worth.report(None, None, at(second)));
    }
    assert_eq!(worth.factor(at(30)), 1.0);
    assert!(!worth.report(Some(500.0), Some(300.0), at(31)));
    assert!(worth.report(Some(20.0), Some(0.0), at(32)), "the counters fell");
    assert_eq!(worth.factor(at(32)), 1.0);
}

proptest! {
    #[test]
    fn a_worth_is_between_0_and_1_whatever_is_reported(
        steps in prop::collection::vec((any::<u32>(), any::<Option<f64>>(), any::<Option<f64>>(), 0_u64..10_000_000), 0..60),
    ) {
        let (mut worth, mut now) = (Worth::default(), at(0));
        for (claimed, queries, hits, micros) in steps {
            now = now + Duration::from_micros(micros);
            worth.claimed(claimed);
            let sane = |value: Option<f64>| value.filter(|value| value.is_finite() && *value >= 0.0);
            worth.report(sane(queries), sane(hits), now);
            let factor = worth.factor(now);
            prop_assert!((0.0..=1.0).contains(&factor), "{factor}");
        }
    }

    #[test]
    fn no_row_is_matched_beyond_the_prompt_or_for_a_backend_that_was_sent_nothing(
        sends in prop::collection::vec((0_u32..6, 0_u64..5, 1_u32..5000, any::<u64>()), 0..60),
        est_tokens in 0_u32..5000, session in 0_u64..5, worth in any::<f64>(),
    ) {
        let mut table = table(6);
        for &(backend, session, tokens, sent) in &sends {
            note(&mut table, &facts(tokens, Marks::session(session)), backend, sent);
        }
        let mut rows = rows(6);
        for row in &mut rows {
            row.worth = worth;
            row.sent_tokens = u64::MAX;
            row.kv_capacity = Some(u64::MAX);
        }
        for (row, matched) in rows.iter().zip(matched(&table, &facts(est_tokens, Marks::session(session)), &rows)) {
            let sent = sends.iter().any(|&(backend, key, ..)| backend == row.id.0 && key == session);
            prop_assert!(matched <= est_tokens && (sent || matched == 0));
        }
    }
}
