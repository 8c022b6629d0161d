//! Which backends hold what a prompt begins with: a bounded table from keys (of a session, of a prompt's first bytes) to the
//! few backends that were last sent them. A hit is no preference of its own: it says how many prompt tokens a backend need not
//! compute, so that the prediction prices it in seconds against the queue. A hot prefix therefore spreads by itself: the backend
//! that takes it while its home queues becomes a second home. What a claimed token is worth is learned from the hits that the
//! engine reports, backend by backend.
//!
//! Hot path: one probe for each mark that is known and one for the first that is not; no allocation.

use super::candidate::Candidate;
use super::estimate::decay;
use super::facts::{ArmIndex, RequestFacts};
use crate::clock::Time;
use crate::units::BackendId;

/// Positions at which a prompt's beginning is marked.
pub const PREFIX_MARKS: usize = 16;
/// Backends remembered for a key. A key that so many hold is taken to be everywhere, and prefers nobody.
pub const HOLDERS: usize = 4;
/// Share of its KV cache that a backend may take in before what was there is taken to be evicted.
pub const KEPT: f64 = 0.7;
/// Room of a KV cache that is not known, in tokens: a 7B model on 24 GB has so much.
pub const UNKNOWN_ROOM: u64 = 100_000;
/// Tokens of a block where the engine does not say: vLLM's default on a GPU. Only whole blocks are found again.
pub const BLOCK: u32 = 16;
/// Seconds over which reported hits are forgotten (tau): long, since it is a property of the deployment.
pub const WORTH_TAU: f64 = 120.0;
/// Claimed tokens by which the worth leans on 1. Too few, and one eviction would undo a backend's affinity.
pub const WORTH_PRIOR: f64 = 4_000.0;

const WAYS: usize = 4;
const ENTRIES_FOR_EACH: usize = 2_048;
const ENTRIES_MIN: usize = 4_096;
const ENTRIES_MAX: usize = 131_072;

/// One position of a prompt: the hash of all before it, and its estimated tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Hash of the prompt up to here.
    pub key: u64,
    /// Tokens up to here.
    pub tokens: u32,
}

/// By what a request is recognised: its session, and its prompt's beginning at growing positions. Hashes only, so that no
/// text is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Hash of the session's key. It claims what the session's last prompt held, however long.
    pub session: Option<u64>,
    prefix: [Mark; PREFIX_MARKS],
    len: u8,
}

impl Marks {
    /// Nothing to be recognised by.
    pub const NONE: Marks = Marks { session: None, prefix: [Mark { key: 0, tokens: 0 }; PREFIX_MARKS], len: 0 };

    /// A session and nothing else.
    #[must_use]
    pub const fn session(key: u64) -> Marks {
        Marks { session: Some(key), ..Marks::NONE }
    }

    /// Adds the next position; past `PREFIX_MARKS` it is left out.
    pub fn push(&mut self, mark: Mark) {
        if let Some(slot) = self.prefix.get_mut(usize::from(self.len)) {
            *slot = mark;
            self.len += 1;
        }
    }

    /// The positions of the prompt, shortest first.
    #[must_use]
    pub fn prefix(&self) -> &[Mark] {
        &self.prefix[..usize::from(self.len)]
    }

    /// The same within another namespace (an adapter's cache is not its base model's).
    #[must_use]
    pub fn within(mut self, salt: u64) -> Marks {
        self.session = self.session.map(|key| key ^ salt);
        for mark in &mut self.prefix {
            mark.key ^= salt;
        }
        self
    }

    /// Whether there is nothing to look up.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.session.is_none()
    }
}

impl Default for Marks {
    fn default() -> Marks {
        Marks::NONE
    }
}

/// A backend that was sent what a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The backend.
    pub backend: BackendId,
    /// Its slot in the caller's books, so that nobody has to search for it.
    pub slot: u32,
    /// Tokens that it was sent under the key; 0: nobody.
    pub tokens: u32,
    /// What its KV cache had taken in by then, in tokens.
    pub sent: u64,
}

const NOBODY: Holder = Holder { backend: BackendId(u32::MAX), slot: 0, tokens: 0, sent: 0 };

/// Keys that share a place, with their holders, the latest first.
#[derive(Clone, Copy, Debug)]
struct Set {
    keys: [u64; WAYS],
    /// When each was last sent, in dispatches; 0: never.
    used: [u64; WAYS],
    holders: [[Holder; HOLDERS]; WAYS],
}

const EMPTY: Set = Set { keys: [0; WAYS], used: [0; WAYS], holders: [[NOBODY; HOLDERS]; WAYS] };

/// The table. Its memory is bounded by `reserve`: a key has four places it can be in, and takes that of the one longest unused.
#[derive(Debug, Default)]
pub struct Table {
    sets: Vec<Set>,
    dispatches: u64,
}

impl Table {
    /// Makes room for a pool of so many backends, so that no dispatch has to. Keeps what it knows and never shrinks.
    pub fn reserve(&mut self, backends: usize) {
        let entries = backends.saturating_mul(ENTRIES_FOR_EACH).clamp(ENTRIES_MIN, ENTRIES_MAX).next_power_of_two();
        if entries / WAYS <= self.sets.len() {
            return;
        }
        let old = std::mem::replace(&mut self.sets, vec![EMPTY; entries / WAYS]);
        for set in old {
            for way in (0..WAYS).filter(|&way| set.used[way] > 0) {
                let place = self.place(set.keys[way]);
                let new = &mut self.sets[place];
                let into = new.longest_unused();
                new.keys[into] = set.keys[way];
                new.used[into] = set.used[way];
                new.holders[into] = set.holders[way];
            }
        }
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

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes to `claimed` and `matched` of each row how much of the request's prompt its backend should have. `row_of` finds
    /// a holder's row by its slot; a row of another backend there, or none, is a holder that may not have the request. Whether any row
    /// was written to.
    #[inline]
    pub fn claim(&self, facts: &RequestFacts, rows: &mut [Candidate], row_of: impl Fn(u32) -> usize) -> bool {
        if facts.marks.is_empty() || self.sets.is_empty() {
            return false;
        }
        let mut found = false;
        let mut everywhere = 0;
        if let Some(holders) = facts.marks.session.and_then(|key| self.find(in_arm(key, facts.arm))) {
            found |= claim_for(holders, facts.est_tokens, rows, &row_of) > 0;
        }
        for mark in facts.marks.prefix() {
            // Who was sent more of a prompt was sent less of it as well: past the first unknown mark there is nothing.
            let Some(holders) = self.find(in_arm(mark.key, facts.arm)) else { break };
            let valid = claim_for(holders, mark.tokens.min(facts.est_tokens), rows, &row_of);
            found |= valid > 0;
            if valid == HOLDERS {
                everywhere = mark.tokens.min(facts.est_tokens);
            }
        }
        if found {
            for row in rows {
                row.matched = row.priced(row.claimed.max(row.whole_blocks(everywhere)));
            }
        }
        found
    }

    /// Takes down that the request was sent to this backend, whose KV cache has taken in `sent` tokens with it.
    pub fn note(&mut self, facts: &RequestFacts, backend: BackendId, slot: u32, sent: u64) {
        if facts.marks.is_empty() || self.sets.is_empty() {
            return;
        }
        self.dispatches += 1;
        let holder = |tokens| Holder { backend, slot, tokens, sent };
        if let Some(key) = facts.marks.session {
            self.put(in_arm(key, facts.arm), holder(facts.est_tokens));
        }
        for mark in facts.marks.prefix() {
            self.put(in_arm(mark.key, facts.arm), holder(mark.tokens));
        }
    }

    #[inline]
    fn place(&self, key: u64) -> usize {
        // The high bits of a product depend on all of the key's; the number of sets is a power of two.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize & (self.sets.len() - 1)
    }

    #[inline]
    fn find(&self, key: u64) -> Option<&[Holder; HOLDERS]> {
        let set = &self.sets[self.place(key)];
        let way = (0..WAYS).find(|&way| set.keys[way] == key && set.used[way] > 0)?;
        Some(&set.holders[way])
    }

    #[inline]
    fn put(&mut self, key: u64, holder: Holder) {
        let place = self.place(key);
        let set = &mut self.sets[place];
        let way = match (0..WAYS).find(|&way| set.keys[way] == key && set.used[way] > 0) {
            Some(way) => way,
            None => {
                let way = set.longest_unused();
                set.keys[way] = key;
                set.holders[way] = [NOBODY; HOLDERS];
                way
            }
        };
        set.used[way] = self.dispatches;
        let holders = &mut set.holders[way];
        let old = holders.iter().position(|known| known.backend == holder.backend).unwrap_or(HOLDERS - 1);
        holders.copy_within(..old, 1);
        holders[0] = holder;
    }
}

impl Set {
    fn longest_unused(&self) -> usize {
        (0..WAYS).min_by_key(|&way| self.used[way]).unwrap_or(0)
    }
}

/// What an arm's backends hold is of no use to another's, and must not crowd it out.
#[inline]
fn in_arm(key: u64, arm: ArmIndex) -> u64 {
    key ^ u64::from(arm.0).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

/// Raises the claims of the holders' rows to what they were sent, at most `most`; how many still have it.
#[inline]
fn claim_for(holders: &[Holder; HOLDERS], most: u32, rows: &mut [Candidate], row_of: &impl Fn(u32) -> usize) -> usize {
    let mut valid = 0;
    for holder in holders.iter().take_while(|holder| holder.tokens > 0) {
        let Some(row) = rows.get_mut(row_of(holder.slot)).filter(|row| row.id == holder.backend) else { continue };
        if row.still_keeps(holder.sent) {
            valid += 1;
            row.claimed = row.claimed.max(row.whole_blocks(holder.tokens.min(most)));
        }
    }
    valid
}

impl Candidate {
    /// Whether what was sent when the cache had taken in `sent` tokens should still be there.
    #[must_use]
    #[inline]
    fn still_keeps(&self, sent: u64) -> bool {
        let since = self.sent_tokens.saturating_sub(sent);
        since as f64 <= KEPT * self.kv_capacity.unwrap_or(UNKNOWN_ROOM) as f64
    }

    #[inline]
    fn whole_blocks(&self, tokens: u32) -> u32 {
        tokens - tokens % self.block_tokens.max(1)
    }

    /// Tokens that a claim is worth here: 0 to `tokens`.
    #[inline]
    fn priced(&self, tokens: u32) -> u32 {
        (f64::from(tokens) * self.worth.clamp(0.0, 1.0)) as u32
    }
}

/// How much of what was claimed of a backend its engine found: 1 until there is evidence, 0 where it caches nothing. Never
/// below 0, above 1 or NaN. Forgets, so that a backend whose cache is turned on again recovers.
///
/// Hits of requests that claimed nothing (other clients' too) count as well: they can only bring it nearer to 1, which is
/// what it would be if nothing were learned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worth {
    claimed: f64,
    hits: f64,
    at: Time,
    /// Claimed since the last report, of prompts that the engine has looked up.
    pending: u64,
    last: Option<Totals>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Totals {
    queries: f64,
    hits: f64,
}

impl Worth {
    /// The engine has worked on a prompt of which so many tokens were claimed.
    #[inline]
    pub fn claimed(&mut self, tokens: u32) {
        self.pending += u64::from(tokens);
    }

    /// The engine's counters of tokens looked up and found. Returns whether they began anew, so that the cache must have too.
    pub fn report(&mut self, queries: Option<f64>, hits: Option<f64>, now: Time) -> bool {
        let totals = queries.zip(hits).map(|(queries, hits)| Totals { queries, hits });
        let pending = std::mem::take(&mut self.pending);
        let (last, Some(totals)) = (self.last, totals) else { return false };
        self.last = Some(totals);
        let Some(last) = last else { return false };
        if totals.queries < last.queries || totals.hits < last.hits {
            return true;
        }
        let kept = decay(now.secs_since(self.at), WORTH_TAU);
        self.claimed = self.claimed * kept + pending as f64;
        self.hits = self.hits * kept + (totals.hits - last.hits);
        self.at = self.at.max(now);
        false
    }

    /// The factor on claimed tokens as of `now`, 0 to 1.
    #[must_use]
    #[inline]
    pub fn factor(&self, now: Time) -> f64 {
        if self.claimed == 0.0 {
            return 1.0;
        }
        let kept = decay(now.secs_since(self.at), WORTH_TAU);
        ((self.hits * kept + WORTH_PRIOR) / (self.claimed * kept + WORTH_PRIOR)).min(1.0)
    }
}

#[cfg(test)]
mod tests;
