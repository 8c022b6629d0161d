//! Facts of the index, of the model of a cache, and of what a hit is worth.

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

/// The same blocks, of a session.
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
    // Each hit brings 200 tokens instead of 2,200. Computing the 2,000 elsewhere counts for the request and for those behind it:
    // its home is the better one until 4,000 tokens wait there.
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

#[test]
fn an_index_takes_at_most_64_megabytes() {
    let mut index = index(16);
    assert!(index.bytes() < 4_000_000, "{}", index.bytes());
    for slot in 0..16 {
        index.set_capacity(slot, 2_000_000);
    }
    assert!((50_000_000..64_000_000).contains(&index.bytes()), "{}", index.bytes());
    index.set_capacity(3, u64::MAX);
    index.set_capacity(4, u64::MAX);
    assert!(index.bytes() < 64_000_000, "{}", index.bytes());
}

#[test]
fn the_same_dispatches_leave_the_same_index_and_more_room_forgets_nothing() {
    let fill = |index: &mut Index| {
        for key in 0..3000 {
            note(index, &facts(16, Marks::session(key)), (key % 2) as u16);
        }
    };
    let (mut one, mut other) = (index(2), index(2));
    fill(&mut one);
    fill(&mut other);
    let seen = |index: &mut Index| {
        (0..3000).map(|key| matched(index, &facts(16, Marks::session(key)), &rows(2))).collect::<Vec<_>>()
    };
    let before = seen(&mut one);
    assert_eq!(before, seen(&mut other));
    let (kept, small) = (other.len(), other.capacity());
    other.reserve(64);
    let large = other.capacity();
    assert!(large > 30 * small, "{large} after {small}");
    assert_eq!((before, kept), (seen(&mut other), other.len()));
    other.reserve(2);
    assert_eq!(other.capacity(), large, "it never shrinks");
}

#[test]
fn a_prompt_evicts_least_where_the_oldest_was_unused_the_longest() {
    let mut index = index(2);
    let request = facts(2000, prompt(&[1, 2, 3, 4]));
    for backend in [0, 1] {
        index.set_capacity(usize::from(backend), 10_000);
        for turn in 0..11 {
            let now = at(if backend == 0 { turn } else { 100 + turn });
            let sent = Sent { backend: BackendId(u32::from(backend)), slot: backend, generated: 0, matched: 500, now };
            index.note(&facts(1000, Marks::NONE), sent);
        }
    }
    let mut rows = rows(2);
    assert!(index.weigh_evictions(&request, &mut rows, at(120), usize::from));
    assert_eq!(rows[0].evicts, 0.0);
    assert!(rows[1].evicts > 0.3 && rows[1].evicts <= 0.5, "half of what is sent is found again: {}", rows[1].evicts);
    assert!(!index.weigh_evictions(&facts(2000, Marks::NONE), &mut rows, at(120), usize::from));
}

/// Tokens of a block in the trials against an exact LRU list.
const LRU_BLOCK: u32 = 100;

/// An exact LRU list of blocks, the latest used last, with the epoch that the model stamped each with.
#[derive(Default)]
struct Lru(Vec<((usize, u32), u32)>);

impl Lru {
    /// Uses the first blocks of a prefix: moves them to the end, the last block first, as an engine frees them.
    fn send(&mut self, model: &mut Cache, prefix: usize, count: u32) {
        model.begin(0, Time::ZERO);
        for block in (0..count).rev() {
            let key = (prefix, block);
            match self.0.iter().position(|(held, _)| *held == key) {
                Some(place) => {
                    let (_, epoch) = self.0.remove(place);
                    match model.keeps(epoch) {
                        _ if epoch == model.epoch() => {}
                        true => model.move_up(epoch, f64::from(LRU_BLOCK)),
                        false => model.take_in(f64::from(LRU_BLOCK)),
                    }
                }
                None => model.take_in(f64::from(LRU_BLOCK)),
            }
            self.0.push((key, model.epoch()));
        }
        model.evict();
    }

    /// Of each block the tokens used since, and the share of it that the model takes to be there.
    fn told<'a>(&'a self, model: &'a Cache) -> impl Iterator<Item = (u32, f32)> + 'a {
        let kept = |epoch| if model.keeps(epoch) { model.kept(epoch).0 } else { 0.0 };
        (0_u32..).zip(self.0.iter().rev()).map(move |(nth, (_, epoch))| (nth * LRU_BLOCK, kept(*epoch)))
    }
}

/// The tokens that a model holds: whatever its capacity, they are a share of a very large one.
fn tokens(cache: &Cache) -> f64 {
    let mut cache = cache.clone();
    cache.set_capacity(1 << 50);
    cache.fill() * (1_u64 << 50) as f64
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
        sends in prop::collection::vec((0_u16..6, 0_u64..5, 1_u32..5000, 0_u64..1 << 40), 0..60),
        est_tokens in 0_u32..5000, session in 0_u64..5, worth in any::<f64>(),
    ) {
        let mut index = index(6);
        for &(backend, session, tokens, generated) in &sends {
            note_as(&mut index, &facts(tokens, Marks::session(session)), u32::from(backend), backend, generated);
        }
        let mut rows = rows(6);
        for row in &mut rows {
            row.worth = worth;
        }
        let matched = matched(&mut index, &facts(est_tokens, Marks::session(session)), &rows);
        for (row, matched) in rows.iter().zip(matched) {
            let sent = sends.iter().any(|&(backend, key, ..)| u32::from(backend) == row.id.0 && key == session);
            prop_assert!(matched <= est_tokens && (sent || matched == 0));
        }
    }

    #[test]
    fn a_claim_is_within_the_prompt_and_matched_and_redundant_are_the_most_matched_whatever_was_sent(
        steps in prop::collection::vec(
            (0_u16..14, any::<u32>(), any::<Option<u8>>(), prop::collection::vec((0_u64..30, any::<u32>()), 0..12),
             any::<u64>(), 0_u8..8), 0..80),
        blocks_of in prop::collection::vec(1_u32..200, 12),
        worth in prop::collection::vec(any::<f64>(), 12),
    ) {
        let mut index = index(12);
        let mut now = at(0);
        for (slot, est_tokens, session, marks, number, what) in steps {
            match what {
                0 => index.set_capacity(usize::from(slot), number % 500_000),
                1 => index.restarted(usize::from(slot)),
                2 => index.released(usize::from(slot)),
                _ => {}
            }
            let marks: Vec<Mark> = marks.into_iter().map(|(key, tokens)| Mark { key, tokens }).collect();
            let marks = session.into_iter().fold(Marks::of(&marks), |marks, key| with_session(u64::from(key), marks));
            let facts = facts(est_tokens, marks);
            let mut rows = rows(12);
            for ((row, block), worth) in rows.iter_mut().zip(&blocks_of).zip(&worth) {
                (row.block_tokens, row.worth) = (*block, *worth);
            }
            let found = index.claim(&facts, &mut rows, usize::from);
            let weighed = index.weigh_evictions(&facts, &mut rows, now, usize::from);
            let most = rows.iter().map(|row| row.matched).max().unwrap();
            for row in &rows {
                prop_assert!(row.claimed <= est_tokens && row.matched <= est_tokens);
                prop_assert!(row.claimed.is_multiple_of(row.block_tokens));
                prop_assert_eq!(row.matched + row.redundant, most);
                prop_assert!((0.0..=1.0).contains(&row.evicts), "{}", row.evicts);
                prop_assert!(found || row.claimed + row.matched == 0);
                prop_assert!(weighed || row.evicts == 0.0);
            }
            now = now + Duration::from_micros(number % 10_000_000);
            let matched = rows.get(usize::from(slot)).map_or(0, |row| row.matched);
            let sent = Sent { backend: BackendId(u32::from(slot)), slot, generated: number, matched, now };
            index.note(&facts, sent);
        }
    }

    #[test]
    fn the_model_of_a_cache_agrees_with_an_exact_lru_list(
        sends in prop::collection::vec((0_usize..24, 1_u32..16), 50..400), capacity in 8_000_u32..40_000,
    ) {
        let (mut model, mut lru) = (Cache::empty(), Lru::default());
        model.set_capacity(u64::from(capacity));
        let (mut wrong, mut all) = (0, 0);
        for (prefix, count) in sends {
            lru.send(&mut model, prefix, count);
            for (newer, kept) in lru.told(&model) {
                prop_assert!((0.0..=1.0).contains(&kept));
                prop_assert!(kept == 1.0 || newer > capacity / 2, "{newer} of {capacity} tokens later: {kept}");
                all += 1;
                wrong += u32::from((newer + LRU_BLOCK <= capacity) != (kept >= 0.5));
            }
        }
        prop_assert!(f64::from(wrong) <= 0.08 * f64::from(all), "{wrong} of {all}");
    }

    #[test]
    fn tokens_of_a_cache_are_conserved_while_its_buckets_merge(
        steps in prop::collection::vec((0_u32..400, 0_u32..200, 0_u32..400), 1..300),
    ) {
        let (mut model, mut taken) = (Cache::empty(), 0.0);
        model.set_capacity(10_000);
        for (new, back, moved) in steps {
            model.begin(0, Time::ZERO);
            model.take_in(f64::from(new));
            taken += f64::from(new);
            // Never evicted, so that nothing ends; and moved at most as many as there are.
            let (before, moved) = (tokens(&model), f64::from(moved).min(taken));
            let epoch = model.epoch().saturating_sub(back).max(1);
            if epoch < model.epoch() {
                model.move_up(epoch, moved);
            }
            let after = tokens(&model);
            prop_assert!(before >= 0.0 && after >= before && after <= before + moved, "{before} {after}");
            taken = after;
        }
        // The buckets have as many tokens as the whole: so many more fill the capacity, and one fewer does not.
        let mut model = model.clone();
        model.set_capacity(1 << 31);
        let free = (1_u32 << 31) - tokens(&model) as u32;
        prop_assert_eq!(tokens(&model), taken);
        prop_assert!(model.age(free, at(0)).is_finite() && model.age(free - 1, at(0)).is_infinite());
    }

    #[test]
    fn no_block_of_a_slot_s_former_backends_is_claimed_after_any_number_of_them(
        owners in prop::collection::vec(prop::collection::vec(0_u64..6, 1..20), 1..12), release in any::<bool>(),
    ) {
        let mut index = index(1);
        for (owner, sessions) in (0_u32..).zip(owners) {
            let row = Candidate::idle(BackendId(owner), 0);
            for session in 0..6 {
                prop_assert_eq!(matched(&mut index, &facts(160, Marks::session(session)), &[row]), [0]);
            }
            for &session in &sessions {
                note_as(&mut index, &facts(160, Marks::session(session)), owner, 0, 0);
            }
            for session in 0..6 {
                let found = matched(&mut index, &facts(160, Marks::session(session)), &[row])[0];
                prop_assert_eq!(found == 160, sessions.contains(&session));
            }
            if release {
                index.released(0);
            }
        }
    }
}
