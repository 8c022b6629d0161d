//! Facts of the index, of the model of a cache, and of what a hit is worth.

mod properties;

use super::cache::Cache;
use super::*;
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::cost;
use crate::routing::decision::Reason;
use crate::routing::facts::{ArmIndex, Kind, RequestFacts};
use crate::routing::policy::{Policy, PredictedTtft};
use crate::units::BackendId;
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

fn index(backends: usize) -> Index {
    let mut index = Index::default();
    index.reserve(backends);
    index
}

/// The marks of a prompt, one for each hash, 500 tokens apart.
fn prompt(hashes: &[u64]) -> Marks {
    let ends = (1_u32..).map(|nth| nth * 500);
    Marks::of(&ends.zip(hashes).map(|(tokens, &key)| Mark { key, tokens }).collect::<Vec<_>>())
}

/// Returns the blocks as those of a session.
fn with_session(key: u64, mut marks: Marks) -> Marks {
    marks.session = Some(key);
    marks
}

/// The marks of a prompt of so many tokens, as the proxy cuts it: the text of the prefix, then the text of the rest.
fn blocks(prefix: u64, common: u32, rest: u64, tokens: u32) -> Marks {
    let own = |end: u32| if end <= common { prefix } else { rest };
    let key = |end: u32| own(end).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(end) << 40;
    let ends = BLOCK_ENDS.iter().take_while(|end| **end <= tokens);
    Marks::of(&ends.map(|&end| Mark { key: key(end), tokens: end }).collect::<Vec<_>>())
}

/// The rows after a claim. In these tests the slot of a backend is its number, and so is its row.
fn claimed(index: &mut Index, facts: &RequestFacts, rows: &[Candidate]) -> Vec<Candidate> {
    let mut rows = rows.to_vec();
    index.claim(facts, &mut rows, usize::from);
    rows
}

fn matched(index: &mut Index, facts: &RequestFacts, rows: &[Candidate]) -> Vec<u32> {
    claimed(index, facts, rows).iter().map(|row| row.matched).collect()
}

/// Sends the request to a backend that generates nothing.
fn note(index: &mut Index, facts: &RequestFacts, backend: u16) {
    note_as(index, facts, u32::from(backend), backend, 0);
}

fn note_as(index: &mut Index, facts: &RequestFacts, backend: u32, slot: u16, generated: u64) {
    index.note(facts, Sent { backend: BackendId(backend), slot, generated, matched: 0, now: at(0) });
}

/// Sends so many tokens of prompts that nobody sends again, 100 tokens each.
fn fill(index: &mut Index, backend: u16, tokens: u32) {
    for _ in 0..tokens / 100 {
        note(index, &facts(100, Marks::NONE), backend);
    }
}

#[test]
fn a_session_is_found_where_it_was_and_claims_what_it_sent() {
    let mut index = index(2);
    let session = |tokens| facts(tokens, Marks::session(7));
    assert_eq!(matched(&mut index, &session(1000), &rows(2)), [0, 0]);
    note(&mut index, &session(1000), 1);
    assert_eq!(matched(&mut index, &session(1200), &rows(2)), [0, 992], "whole blocks of 16");
    assert_eq!(matched(&mut index, &session(320), &rows(2)), [0, 320], "no more than the prompt has");
    assert_eq!(matched(&mut index, &facts(1200, Marks::session(8)), &rows(2)), [0, 0]);
}

#[test]
fn a_shared_prefix_is_found_although_the_rests_differ() {
    let mut index = index(3);
    note(&mut index, &facts(2000, prompt(&[1, 2, 3, 40])), 0);
    note(&mut index, &facts(2000, prompt(&[1, 20])), 2);
    assert_eq!(matched(&mut index, &facts(2100, prompt(&[1, 2, 3, 50])), &rows(3)), [1488, 0, 496]);
    assert_eq!(matched(&mut index, &facts(2100, prompt(&[9, 29, 39])), &rows(3)), [0, 0, 0], "the beginning differs");
}

#[test]
fn one_or_two_lost_blocks_are_bridged_and_three_are_not() {
    let mut index = index(1);
    note(&mut index, &facts(3000, prompt(&[1, 2, 3, 4, 5, 6])), 0);
    let mut found = |hashes: &[u64]| matched(&mut index, &facts(3000, prompt(hashes)), &rows(1))[0];
    assert_eq!(found(&[1, 92, 3, 94, 5, 96]), 2496, "one lost block at a time");
    assert_eq!(found(&[1, 92, 93, 4, 95, 96]), 2000, "two in a row");
    assert_eq!(found(&[91, 92, 3]), 1488, "at the beginning as well");
    assert_eq!(found(&[1, 92, 93, 94, 5, 6]), 496, "past three the prompt is another");
}

#[test]
fn a_session_and_a_prefix_claim_the_more_of_the_two() {
    let mut index = index(2);
    let marks = with_session(77, prompt(&[1, 2]));
    note(&mut index, &facts(3000, marks.clone()), 0);
    note(&mut index, &facts(1500, prompt(&[1, 2])), 1);
    assert_eq!(matched(&mut index, &facts(3200, marks), &rows(2)), [2992, 992]);
}

#[test]
fn marks_of_no_block_are_empty_and_those_of_another_namespace_match_nothing() {
    assert!(Marks::of(&[]).is_empty() && Marks::NONE.prefix().is_empty());
    let marks = with_session(7, prompt(&[1, 2]));
    let other = marks.clone().within(99);
    assert_eq!(other.clone().within(99), marks);
    let mut index = index(1);
    note(&mut index, &facts(1000, marks), 0);
    assert_eq!(matched(&mut index, &facts(1000, other), &rows(1)), [0]);
}

#[test]
fn blocks_of_a_prompt_end_at_most_3_percent_or_one_block_apart_and_reach_700_000_tokens() {
    assert_eq!(BLOCK_ENDS[0], 64);
    assert!(BLOCK_ENDS.windows(2).all(|ends| ends[1] > ends[0] && ends[1] - ends[0] <= (ends[0] / 32).max(64)));
    assert_eq!(BLOCK_ENDS[BLOCK_ENDS.len() - 1], 717_184);
    assert_eq!(BLOCK_ENDS.iter().filter(|end| **end <= 4_000).count(), 62);
}

#[test]
fn blocks_of_the_engine_are_whole() {
    let mut index = index(1);
    note(&mut index, &facts(1000, Marks::session(7)), 0);
    let mut rows = rows(1);
    rows[0].block_tokens = 128;
    assert_eq!(matched(&mut index, &facts(1000, Marks::session(7)), &rows), [896]);
    assert_eq!(matched(&mut index, &facts(120, Marks::session(7)), &rows), [0], "less than a block is never found");
}

#[test]
fn a_claim_is_whole_for_seven_tenths_of_the_capacity_then_shrinks_and_ends_past_thirteen_tenths() {
    for capacity in [Some(10_000), None] {
        let scale = capacity.unwrap_or(UNKNOWN_CAPACITY) as u32 / 10_000;
        let mut index = index(1);
        if let Some(tokens) = capacity {
            index.set_capacity(0, tokens);
        }
        let request = facts(1000, Marks::session(7));
        note(&mut index, &request, 0);
        let mut claims = Vec::new();
        for _ in 0..150 {
            fill(&mut index, 0, 100 * scale);
            claims.push(matched(&mut index, &request, &rows(1))[0]);
        }
        assert_eq!(claims[69], 992, "7,000 of 10,000 tokens later");
        assert!(claims.is_sorted_by(|a, b| a >= b), "{claims:?}");
        assert!((1..992).contains(&claims[99]), "{}", claims[99]);
        assert_eq!(claims[139], 0, "14,000 tokens later");
    }
}

#[test]
fn generated_tokens_evict_as_those_of_prompts_do() {
    let mut index = index(2);
    let request = facts(1000, Marks::session(7));
    note(&mut index, &request, 0);
    for turn in 1..=150 {
        note_as(&mut index, &facts(0, Marks::NONE), 0, 0, turn * 1000);
    }
    assert_eq!(matched(&mut index, &request, &rows(2)), [0, 0]);
}

#[test]
fn what_a_session_adds_to_its_prompt_evicts_too() {
    let mut index = index(1);
    index.set_capacity(0, 10_000);
    let other = facts(160, Marks::session(1));
    note(&mut index, &other, 0);
    for turn in 1..=140 {
        note(&mut index, &facts(turn * 100, Marks::session(7)), 0);
    }
    assert_eq!(matched(&mut index, &other, &rows(1)), [0], "14,000 tokens later");
}

#[test]
fn a_prompt_that_is_sent_again_evicts_nothing() {
    let mut index = index(1);
    index.set_capacity(0, 10_000);
    let other = facts(160, Marks::session(1));
    note(&mut index, &other, 0);
    for _ in 0..100 {
        note(&mut index, &facts(4_096, blocks(1, 4_096, 0, 4_096)), 0);
    }
    assert_eq!(matched(&mut index, &other, &rows(1)), [160]);
}

#[test]
fn a_smaller_capacity_evicts_at_once() {
    let mut index = index(1);
    let request = facts(1000, Marks::session(7));
    note(&mut index, &request, 0);
    fill(&mut index, 0, 20_000);
    assert_eq!(matched(&mut index, &request, &rows(1)), [992]);
    index.set_capacity(0, 10_000);
    assert_eq!(matched(&mut index, &request, &rows(1)), [0]);
}

#[test]
fn a_claim_on_a_very_long_prompt_is_not_rounded_up() {
    let mut index = index(1);
    index.set_capacity(0, 1 << 40);
    let request = facts((1 << 25) - 1, Marks::session(7));
    note(&mut index, &request, 0);
    let row = Candidate { block_tokens: 1, ..rows(1)[0] };
    assert_eq!(matched(&mut index, &request, &[row]), [request.est_tokens]);
}

#[test]
fn a_bucket_that_was_merged_is_as_old_as_the_older_of_the_two() {
    let mut cache = Cache::empty();
    cache.set_capacity(10_000);
    for second in 0..65 {
        cache.begin(0, at(second));
        cache.take_in(300.0);
    }
    cache.set_capacity(65 * 300);
    assert_eq!(cache.age(0, at(100)), 100.0);
}

#[test]
fn an_arm_does_not_claim_what_another_was_sent() {
    let mut index = index(2);
    let request = facts(1000, Marks::session(7));
    note(&mut index, &request, 0);
    let other = RequestFacts { arm: ArmIndex(1), ..request };
    assert_eq!(matched(&mut index, &other, &rows(2)), [0, 0]);
}

#[test]
fn a_removed_backend_s_slot_claims_nothing_for_the_next_one_in_it() {
    let (mut released, mut kept) = (index(1), index(1));
    let (request, other) = (facts(1000, Marks::session(7)), facts(1000, Marks::session(8)));
    let mut next = rows(1);
    next[0].id = BackendId(9);
    for index in [&mut released, &mut kept] {
        note(index, &request, 0);
        assert_eq!(matched(index, &request, &next), [0]);
        assert_eq!(matched(index, &request, &[]), [0; 0]);
    }
    released.released(0);
    assert_eq!(matched(&mut released, &request, &rows(1)), [0], "nobody has the slot");
    for index in [&mut released, &mut kept] {
        note_as(index, &other, 9, 0, 0);
        assert_eq!(matched(index, &request, &next), [0], "what the one before was sent");
        assert_eq!(matched(index, &other, &next), [992]);
        assert_eq!(matched(index, &other, &rows(1)), [0]);
    }
}

#[test]
fn a_capacity_that_was_told_before_the_first_request_stays_and_ends_with_the_backend() {
    let mut index = index(1);
    let request = facts(1000, Marks::session(7));
    let holds = |index: &mut Index, backend| {
        note_as(index, &request, backend, 0, 0);
        for _ in 0..140 {
            note_as(index, &facts(100, Marks::NONE), backend, 0, 0);
        }
        let row = Candidate::idle(BackendId(backend), 0);
        matched(index, &request, &[row])[0]
    };
    index.set_capacity(0, 10_000);
    assert_eq!(holds(&mut index, 0), 0);
    index.released(0);
    assert_eq!(holds(&mut index, 9), 992, "of the next one's nothing is known");
}

#[test]
fn a_restarted_engine_holds_nothing_until_it_is_sent_something() {
    let mut index = index(2);
    let request = facts(2000, prompt(&[1, 2, 3]));
    note(&mut index, &request, 0);
    note(&mut index, &request, 1);
    index.restarted(0);
    assert_eq!(matched(&mut index, &request, &rows(2)), [0, 1488]);
    note(&mut index, &request, 0);
    assert_eq!(matched(&mut index, &request, &rows(2)), [1488, 1488]);
    index.restarted(77);
    index.released(77);
    index.set_capacity(77, 5);
}

#[test]
fn a_hot_prefix_spreads_when_its_home_queues_and_then_has_two() {
    let mut index = index(4);
    let request = facts(2200, prompt(&[1, 2, 3, 4]));
    let mut rng = fastrand::Rng::with_seed(3);
    note(&mut index, &request, 1);
    let mut rows = rows(4);
    let mut places = Vec::new();
    for _ in 0..24 {
        for row in &mut rows {
            (row.claimed, row.matched, row.redundant) = (0, 0, 0);
        }
        index.claim(&request, &mut rows, usize::from);
        let choice = PredictedTtft.pick(&rows, &request, at(0), &mut rng).unwrap();
        let row = &mut rows[choice.index];
        row.queued_tokens += u64::from(cost::uncached(&request, row.matched));
        let id = row.id.0;
        note(&mut index, &request, id as u16);
        places.push(choice.index);
    }
    // Each hit brings 200 tokens instead of 2,200. Computing the 2,000 elsewhere counts for the request and for those
    // behind it: its home is the better one until 4,000 tokens wait there.
    let stayed = places.iter().take_while(|&&place| place == 1).count();
    assert!((20..=21).contains(&stayed), "{places:?}");
    let second = places[stayed];
    assert_ne!(second, 1);
    assert!(matched(&mut index, &request, &rows)[second] >= 2000, "it is a home as well now");
}

#[test]
fn a_key_that_all_kept_holders_have_prefers_nobody() {
    let mut index = index(16);
    let request = facts(1600, prompt(&[1, 2, 3]));
    for backend in 0..HOLDERS as u16 - 1 {
        note(&mut index, &request, backend);
    }
    let holders = |found: &[u32]| found.iter().filter(|&&tokens| tokens > 0).count();
    assert_eq!(holders(&matched(&mut index, &request, &rows(16))), HOLDERS - 1);
    note(&mut index, &request, HOLDERS as u16 - 1);
    let rows = claimed(&mut index, &request, &rows(16));
    assert!(rows.iter().all(|row| row.matched >= 1488 && row.redundant == 0), "eight hold it: it is everywhere");
    let held = rows.iter().filter(|row| row.claimed > 0).count();
    assert_eq!(held, HOLDERS, "but only who was sent it is held to it");
    let choice = PredictedTtft.pick(&rows, &request, at(0), &mut fastrand::Rng::with_seed(1)).unwrap();
    assert_eq!(choice.reason, Reason::Tie(16));
}

#[test]
fn a_block_that_more_backends_have_than_are_kept_fills_no_cache_again_and_again() {
    let mut index = index(16);
    let own = |backend: u16| facts(160, Marks::session(u64::from(backend)));
    let hot = facts(4_096, blocks(1, 4_096, 0, 4_096));
    for backend in 0..16 {
        index.set_capacity(usize::from(backend), 20_000);
        note(&mut index, &own(backend), backend);
    }
    for turn in 0..400 {
        note(&mut index, &hot, turn % 16);
    }
    for backend in 0..16 {
        assert_eq!(matched(&mut index, &own(backend), &rows(16))[usize::from(backend)], 160, "backend {backend}");
    }
}

#[test]
fn a_million_keys_take_no_more_room_than_a_few() {
    let mut index = index(2);
    let (capacity, bytes) = (index.capacity(), index.bytes());
    for key in 0..1_000_000 {
        note(&mut index, &facts(16, Marks::session(key)), (key % 2) as u16);
    }
    assert_eq!((index.capacity(), index.bytes()), (capacity, bytes));
    assert!(capacity <= 6_250 && index.len() <= capacity);
    let mut found = |keys: std::ops::Range<u64>| {
        keys.filter(|&key| matched(&mut index, &facts(16, Marks::session(key)), &rows(2)) != [0, 0]).count()
    };
    let latest = found(999_000..1_000_000);
    assert!(latest >= 900, "the latest are there: {latest}");
    assert_eq!(found(0..900_000), 0, "the oldest are not");
}
