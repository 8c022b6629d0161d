//! The index: block hash → the backends that were sent the block, each with the epoch of its cache's model. Its memory is
//! bounded: a key has four places it can be in (`set.rs`), and takes that of the one longest unused.

use super::cache::{Cache, Touch, Touched, UNKNOWN_CAPACITY};
use super::claims::compare;
use super::prior::Prior;
use super::set::{EMPTY, HOLDERS, Holders, Set, WAYS};
use crate::clock::Time;
use crate::routing::candidate::Candidate;
use crate::routing::facts::{ArmIndex, RequestFacts};
use crate::units::BackendId;

/// Tokens of the smallest block: one entry for so many tokens of KV cache.
const TOKENS_FOR_EACH: u64 = 64;
/// Entries for each, so that few sets have more keys than places.
const SPARE: u64 = 2;
const SETS_MIN: usize = 1_024;
/// 62 MB.
const SETS_MAX: usize = 242_000;
/// Share of what is known of earlier requests that is kept at each request: some hundred are remembered.
const KEPT: f64 = 0.99;
/// Blocks in a row that are not known, after which no more of a prompt is.
const GAPS: usize = 3;

/// A record of where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The backend.
    pub backend: BackendId,
    /// Its slot in the caller's books.
    pub slot: u16,
    /// Tokens that it has generated for this proxy so far.
    pub generated: u64,
    /// Tokens of the prompt that it is expected to find.
    pub matched: u32,
    /// The present.
    pub now: Time,
}

/// The index of a pool.
#[derive(Debug, Default)]
pub struct Index {
    sets: Vec<Set>,
    /// By slot.
    caches: Vec<Cache>,
    dispatches: u32,
    /// Prompt tokens sent of late, and those of them that were expected to be found.
    sent: f64,
    found: f64,
    /// The place where other replicas would send what this one has not seen.
    prior: Prior,
}

impl Index {
    /// An answer said how much of its prompt was found in the cache: `found` of it, where `claimed` was expected (shares), after
    /// `depth` tokens had been used since.
    pub fn learn(&mut self, slot: usize, claimed: f64, depth: f64, found: f64) {
        if let Some(cache) = self.caches.get_mut(slot).filter(|_| claimed > 0.0) {
            cache.learn(depth, found >= 0.5 * claimed);
        }
    }

    /// The replicas of this proxy, which share nothing but what they agree on without talking. 1: it is alone.
    pub fn set_replicas(&mut self, replicas: u32) {
        self.prior.set_replicas(replicas);
    }

    /// The identity of the backend in this slot, as every replica knows it.
    pub fn identify(&mut self, slot: usize, backend: BackendId, identity: u64) {
        self.prior.identify(slot, backend, identity);
    }

    /// Makes room for so many slots of backends, so that no dispatch has to. Keeps what it knows and never shrinks.
    pub fn reserve(&mut self, slots: usize) {
        if self.caches.len() < slots {
            self.caches.resize(slots, Cache::empty());
        }
        // Memory is bounded by what the backends can hold: an index of more would remember what is gone.
        let capacities = self.caches.iter().map(|cache| cache.capacity().max(UNKNOWN_CAPACITY));
        let tokens = capacities.fold(0_u64, u64::saturating_add).saturating_mul(SPARE);
        let wanted = usize::try_from(tokens / (TOKENS_FOR_EACH * WAYS as u64)).unwrap_or(SETS_MAX);
        let sets = wanted.clamp(SETS_MIN, SETS_MAX);
        // Never smaller, since that would have to throw away what is known.
        let before = self.sets.len();
        if sets <= before {
            return;
        }
        // Capacities become known one by one, and all that is known is put in again each time. So it grows by a quarter at least:
        // of a hundred backends a dozen make it grow and not each.
        let sets = sets.max(before + before / 4).min(SETS_MAX);
        let old = std::mem::replace(&mut self.sets, vec![EMPTY; sets]);
        for set in old {
            for way in (0..WAYS).filter(|&way| set.used[way] > 0) {
                let place = self.place(set.keys[way]);
                let new = &mut self.sets[place];
                // A larger table puts each key elsewhere, so all are put in again. Where too many meet, the longest
                // unused give way.
                let into = new.longest_unused(self.dispatches);
                new.keys[into] = set.keys[way];
                new.used[into] = set.used[way];
                new.tokens[into] = set.tokens[way];
                new.slots[into] = set.slots[way];
                new.epochs[into] = set.epochs[way];
            }
        }
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.sets.len() * size_of::<Set>() + self.caches.len() * size_of::<Cache>()
    }

    /// Keys that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Keys that it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.iter().flat_map(|set| set.used).filter(|&used| used > 0).count()
    }

    /// Returns whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The backend in this slot was restarted: its cache is empty.
    pub fn restarted(&mut self, slot: usize) {
        if let Some(cache) = self.caches.get_mut(slot) {
            cache.clear();
        }
    }

    /// The slot is free: another backend may get it.
    pub fn released(&mut self, slot: usize) {
        if let Some(cache) = self.caches.get_mut(slot) {
            cache.release();
        }
    }

    /// The engine in this slot says how many tokens its KV cache holds. Allocates where that is more than was known.
    pub fn set_capacity(&mut self, slot: usize, tokens: u64) {
        let Some(cache) = self.caches.get_mut(slot).filter(|cache| cache.capacity() != tokens) else { return };
        cache.set_capacity(tokens);
        self.reserve(0);
    }

    /// Writes to `claimed` and `matched` of each row how much of the request's prompt its backend should have. `row_of` finds
    /// a holder's row by its slot; a row of another backend there, or none, is a holder that may not have the request. Whether any row
    /// was written to.
    pub fn claim(&mut self, facts: &RequestFacts, rows: &mut [Candidate], row_of: impl Fn(u16) -> usize) -> bool {
        if facts.marks.is_empty() || self.sets.is_empty() {
            return false;
        }
        let mut found = false;
        let (mut everywhere, mut gaps) = (0, 0);
        // The first part of the prompt that is not common: what replicas agree on a home by. A part that all backends hold, or that comes
        // more often than one backend is chosen, needs more than a home.
        let mut own = None;
        let (all, often) = (rows.len().min(HOLDERS), rows.len() as u32);
        // Blocks in a row mostly have the same holders: only the last of such a run says how far these have come.
        let mut run: Option<(Holders, u32, usize)> = None;
        for mark in facts.marks.prefix() {
            // Who holds more of a prompt holds less of it as well: past a few unknown blocks there is nothing. One
            // may have had to make room for another.
            let (holders, tokens, ago) = match self.holders(in_arm(mark.key, facts.arm)) {
                Some((holders, tokens, ago)) => (holders, tokens.min(mark.tokens).min(facts.est_tokens), ago),
                None => (Holders::NOBODY, 0, u32::MAX),
            };
            let valid = match &mut run {
                Some((same, until, valid)) if *same == holders => {
                    *until = tokens.max(*until);
                    *valid
                }
                _ => {
                    if let Some((before, until, _)) = run.take() {
                        self.reach(&before, until, rows, &row_of);
                    }
                    let valid = self.reach(&holders, tokens, rows, &row_of);
                    run = Some((holders, tokens, valid));
                    valid
                }
            };
            if valid < all && ago >= often {
                own = own.or(Some(mark.key));
            }
            match valid {
                0 if gaps + 1 == GAPS => break,
                0 => gaps += 1,
                valid => {
                    (found, gaps) = (true, 0);
                    if valid == HOLDERS {
                        everywhere = mark.tokens.min(facts.est_tokens);
                    }
                }
            }
        }
        if let Some((holders, until, _)) = run {
            self.reach(&holders, until, rows, &row_of);
        }
        if let Some(key) = facts.marks.session {
            let known = self.holders(in_arm(key, facts.arm));
            let holds = known
                .is_some_and(|(held, tokens, _)| self.reach(&held, tokens.min(facts.est_tokens), rows, &row_of) > 0);
            found |= holds;
            // A session is more than the text at its beginning, which others may share.
            own = if holds { None } else { Some(key) };
        }
        if found {
            self.settle(rows, everywhere, &row_of);
        }
        if let Some(key) = own {
            let reuse = self.found / self.sent.max(1.0);
            found |= self.prior.presume(in_arm(key, facts.arm), facts, reuse, rows, row_of);
        }
        found
    }

    /// Writes to each row how far its backend has come, as the blocks noted it in `reached`: once, not once for each block.
    #[inline]
    fn settle(&mut self, rows: &mut [Candidate], everywhere: u32, row_of: &impl Fn(u16) -> usize) {
        for (slot, cache) in (0..).zip(&mut self.caches) {
            let (tokens, epoch) = std::mem::take(&mut cache.reached);
            let Some(row) = rows.get_mut(row_of(slot)).filter(|row| row.id == cache.backend) else { continue };
            row.claim(tokens, cache.kept(epoch));
        }
        for row in rows.iter_mut() {
            row.matched = row.priced(row.claimed.max(row.whole_blocks(everywhere)));
        }
        compare(rows);
    }

    /// Returns who was sent this block, the tokens that it had, and how many dispatches ago it was last sent; 0 for the last one.
    #[inline]
    fn holders(&self, key: u64) -> Option<(Holders, u32, u32)> {
        let set = &self.sets[self.place(key)];
        let way = (0..WAYS).find(|&way| set.keys[way] == key && set.used[way] > 0)?;
        let ago = self.dispatches.wrapping_sub(set.used[way]);
        Some((Holders { slots: set.slots[way], epochs: set.epochs[way] }, set.tokens[way], ago))
    }

    /// Takes down how far the holders of a block have come; how many of them may have the request.
    fn reach(
        &mut self,
        holders: &Holders,
        tokens: u32,
        rows: &mut [Candidate],
        row_of: &impl Fn(u16) -> usize,
    ) -> usize {
        let mut valid = 0;
        for (&slot, &epoch) in holders.slots.iter().zip(&holders.epochs) {
            let Some(cache) = self.caches.get_mut(usize::from(slot)).filter(|cache| cache.keeps(epoch)) else {
                continue;
            };
            let Some(row) = rows.get_mut(row_of(slot)).filter(|row| row.id == cache.backend) else { continue };
            valid += 1;
            let (before, last) = cache.reached;
            if last != epoch && before > 0 {
                row.claim(before, cache.kept(last));
            }
            if tokens >= before {
                cache.reached = (tokens, epoch);
            }
        }
        valid
    }

    /// Writes to `evicts` of each row how much of what the prompt evicts there would have been used again.
    pub fn weigh_evictions(
        &self,
        facts: &RequestFacts,
        rows: &mut [Candidate],
        now: Time,
        row_of: impl Fn(u16) -> usize,
    ) -> bool {
        if facts.marks.is_empty() || self.sets.is_empty() {
            return false;
        }
        // The share of prompt tokens that is found at all: where nothing is ever sent again, eviction costs nothing.
        let reuse = self.found / self.sent.max(1.0);
        let (mut best, mut least, mut known) = (0.0_f64, 1.0_f64, 0);
        let ages = || (0_u16..).zip(&self.caches).filter(|(_, cache)| cache.backend.0 != u32::MAX);
        for (slot, cache) in ages() {
            let Some(row) = rows.get(row_of(slot)).filter(|row| row.id == cache.backend) else { continue };
            known += 1;
            least = least.min(cache.fill());
            best = best.max(cache.age(facts.est_tokens - row.claimed.min(facts.est_tokens), now));
        }
        if known < rows.len() {
            // A backend that was never sent anything evicts nothing.
            (best, least) = (f64::INFINITY, 0.0);
        }
        for (slot, cache) in ages() {
            let Some(row) = rows.get_mut(row_of(slot)).filter(|row| row.id == cache.backend) else { continue };
            let age = cache.age(facts.est_tokens - row.claimed.min(facts.est_tokens), now);
            // Compared among the rows: what every backend would lose is no reason to prefer one.
            let younger = if age < best { 1.0 - age / best } else { 0.0 };
            row.evicts = (reuse * younger.max(cache.fill() - least)) as f32;
        }
        true
    }

    /// Takes down that the request was sent to this backend.
    pub fn note(&mut self, facts: &RequestFacts, sent: Sent) {
        let Some(cache) = self.caches.get_mut(usize::from(sent.slot)).filter(|_| !self.sets.is_empty()) else { return };
        self.dispatches = self.dispatches.wrapping_add(1).max(1);
        self.prior.count();
        cache.serve(sent.backend);
        cache.begin(sent.generated, sent.now);
        self.sent = self.sent * KEPT + f64::from(facts.est_tokens);
        self.found = self.found * KEPT + f64::from(sent.matched);
        let mut until = 0;
        let mut touched = Touched::default();
        for mark in facts.marks.prefix() {
            // Marks say where a block ends. What a block weighs is the way from the one before it.
            let weight = mark.tokens.saturating_sub(until);
            let touch = self.put(in_arm(mark.key, facts.arm), sent.slot, mark.tokens, weight);
            self.caches[usize::from(sent.slot)].touch(&mut touched, touch);
            until = mark.tokens;
        }
        let rest = facts.est_tokens.saturating_sub(until);
        let touch = match facts.marks.session {
            Some(key) => self.put(in_arm(key, facts.arm), sent.slot, facts.est_tokens, rest),
            None => Touch { moved: None, taken: f64::from(rest) },
        };
        let cache = &mut self.caches[usize::from(sent.slot)];
        cache.touch(&mut touched, touch);
        cache.settle(touched);
        cache.evict();
    }

    #[inline]
    fn place(&self, key: u64) -> usize {
        // The key as a fraction of all keys, times the number of sets. Multiplied first, since an arm's salt has few
        // bits.
        let spread = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((u128::from(spread) * self.sets.len() as u128) >> 64) as usize
    }

    /// Stamps a block, or the end of a session's prompt, of `weight` tokens as sent to the backend in this slot.
    #[inline]
    fn put(&mut self, key: u64, slot: u16, tokens: u32, weight: u32) -> Touch {
        let place = self.place(key);
        let set = &mut self.sets[place];
        // A session's prompt grows: only so much of it was sent before.
        let (way, before) = match (0..WAYS).find(|&way| set.keys[way] == key && set.used[way] > 0) {
            Some(way) => (way, set.tokens[way].min(weight)),
            None => {
                let way = set.longest_unused(self.dispatches);
                set.keys[way] = key;
                set.epochs[way] = [0; HOLDERS];
                (way, 0)
            }
        };
        set.used[way] = self.dispatches;
        set.tokens[way] = tokens;
        let (slots, epochs) = (&mut set.slots[way], &mut set.epochs[way]);
        let (old, new) = (f64::from(before), f64::from(weight - before));
        let known = (0..HOLDERS).find(|&place| epochs[place] > 0 && slots[place] == slot);
        let gone = |place: &usize| {
            epochs[*place] == 0
                || !self.caches.get(usize::from(slots[*place])).is_some_and(|cache| cache.keeps(epochs[*place]))
        };
        // A place of its own first, then one whose holder has lost the block. A live holder is forgotten only if
        // there is no other.
        let place = known.or_else(|| (0..HOLDERS).find(gone));
        // In turn by the count of dispatches: chance without a random number.
        let at = place.unwrap_or(self.dispatches as usize % HOLDERS);
        let cache = &self.caches[usize::from(slot)];
        let now = cache.epoch();
        let touch = match known {
            Some(_) if epochs[at] == now => Touch { moved: None, taken: new },
            Some(_) if cache.keeps(epochs[at]) => Touch { moved: Some((epochs[at], old)), taken: new },
            // More backends hold it than are remembered: it is everywhere, and was here before.
            None if place.is_none() => Touch { moved: None, taken: new },
            _ => Touch { moved: None, taken: old + new },
        };
        (slots[at], epochs[at]) = (slot, now);
        touch
    }
}

/// Returns a block's key within an arm. What an arm's backends hold is of no use to another's, and must not crowd it out.
#[inline]
fn in_arm(key: u64, arm: ArmIndex) -> u64 {
    key ^ u64::from(arm.0).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}
