//! What holds of the index for any input: bounded memory, the model of a cache beside an exact LRU list, what a hit is worth.

use super::*;

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
fn capacities_that_become_known_one_by_one_seldom_make_an_index_grow() {
    let mut index = index(128);
    let mut sizes = vec![index.capacity()];
    for slot in 0..128 {
        index.set_capacity(slot, 400_000);
        sizes.push(index.capacity());
    }
    sizes.dedup();
    assert!(sizes.len() > 1 && sizes.len() <= 12, "{sizes:?}");
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
        let mut model = model.clone();
        let mut kept = move |epoch| if model.keeps(epoch) { model.kept(epoch).0 } else { 0.0 };
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
