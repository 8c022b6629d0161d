//! The rows of a decision, kept for the next one. Between two decisions a moment apart only those backends look different to
//! which something happened, so only their rows are made anew; all of them when the moment is over, the pool is another, or
//! other backends may have the request. What decays (ratios, rates, pauses) thus stands still for a hundredth of a second.
//!
//! Hot path: at 512 backends making every row is two thirds of a decision. No allocation once it has grown.

use std::time::Duration;

use super::gate::Slots;
use super::snapshot::Member;
use forebay_core::clock::Time;
use forebay_core::routing::affinity::{self, Index};
use forebay_core::routing::candidate::{Candidate, PoolEvidence, PoolRatios};
use forebay_core::routing::eligible;
use forebay_core::routing::facts::RequestFacts;
use forebay_core::units::BackendId;

/// How long rows are kept. The fastest of what stands still meanwhile is forgotten over 2 s.
pub(super) const KEPT_FOR: Duration = Duration::from_millis(10);

/// The rows of one arm's decisions.
#[derive(Debug, Default)]
pub(super) struct Rows {
    rows: Vec<Candidate>,
    /// The members that they stand for.
    members: Vec<u16>,
    /// The place among the rows of each slot's backend; anything for others.
    row_of: Vec<u16>,
    ratios: PoolRatios,
    /// Some row carries claims of the request at hand.
    claimed: bool,
    backing_off: bool,
    kept: Option<Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    /// The snapshot that they are of.
    generation: u64,
    since: Time,
    /// The number of the first change that they do not show.
    change: u64,
}

/// Whose rows are wanted, and as of when.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) generation: u64,
    pub(super) members: &'a [Member],
    pub(super) admitted: &'a [u16],
    pub(super) mean_prompt: f64,
    pub(super) now: Time,
    /// Now, in the pool's time.
    pub(super) lived: Time,
}

impl Rows {
    /// Makes room, so that no decision has to.
    pub(super) fn reserve(&mut self, members: usize, slots: usize) {
        *self = Rows::default();
        self.rows.reserve(members);
        self.members.reserve(members);
        self.row_of.resize(slots, 0);
    }

    pub(super) fn as_slice(&self) -> &[Candidate] {
        &self.rows
    }

    /// Brings the rows up to date.
    pub(super) fn prepare(&mut self, wanted: Wanted<'_>, slots: &Slots) {
        let still = self.kept.filter(|kept| {
            kept.generation == wanted.generation
                && wanted.now.since(kept.since) < KEPT_FOR
                && self.members == wanted.admitted
        });
        let changed = still.and_then(|kept| slots.changed_since(kept.change));
        match (still, changed) {
            (Some(kept), Some(changed)) if changed.len() <= self.rows.len() => {
                for &slot in changed {
                    self.renew(slot, wanted, slots);
                }
                self.kept = Some(Kept { change: slots.next_change(), ..kept });
            }
            _ => self.make(wanted, slots),
        }
    }

    fn make(&mut self, wanted: Wanted<'_>, slots: &Slots) {
        self.members.clear();
        self.members.extend_from_slice(wanted.admitted);
        // Rows are written in place: built aside and moved, they cost a fifth of the decision.
        self.rows.resize(wanted.admitted.len(), Candidate::idle(BackendId(0), 0));
        self.backing_off = false;
        let mut evidence = PoolEvidence::default();
        for (index, (row, &place)) in (0_u16..).zip(self.rows.iter_mut().zip(wanted.admitted)) {
            let backend = &wanted.members[usize::from(place)].backend;
            let slot = backend.load.slot();
            *row = slots.get(slot).row(backend.id, place, wanted.mean_prompt, wanted.now, wanted.lived);
            // Longer than the slots unless a decision panicked and took its rows along.
            self.row_of.resize(self.row_of.len().max(slot + 1), 0);
            self.row_of[slot] = index;
            evidence.add(row);
            self.backing_off |= row.backing_off();
        }
        self.ratios = evidence.ratios();
        self.ratios.fill(&mut self.rows);
        self.kept = Some(Kept { generation: wanted.generation, since: wanted.now, change: slots.next_change() });
    }

    /// Makes the row of one slot anew, if it has one.
    fn renew(&mut self, slot: usize, wanted: Wanted<'_>, slots: &Slots) {
        let Some(row) = self.row_of.get(slot).and_then(|&index| self.rows.get_mut(usize::from(index))) else { return };
        let backend = &wanted.members[usize::from(row.member)].backend;
        if backend.load.slot() != slot {
            return;
        }
        *row = slots.get(slot).row(backend.id, row.member, wanted.mean_prompt, wanted.now, wanted.lived);
        self.backing_off |= row.backing_off();
        self.ratios.fill(std::slice::from_mut(row));
    }

    /// Writes what the request's prompt should find in each backend's cache.
    pub(super) fn claim(&mut self, facts: &RequestFacts, affinity: &mut Index, now: Time) {
        let Rows { rows, row_of, .. } = self;
        let row_of = |slot: u16| row_of.get(usize::from(slot)).map_or(usize::MAX, |&row| usize::from(row));
        self.claimed = affinity.claim(facts, rows, row_of);
        self.claimed |= affinity.weigh_evictions(facts, rows, now, row_of);
    }

    /// Drops the rows that back off, unless all do. Returns whether all do.
    pub(super) fn skip_backing_off(&mut self) -> bool {
        let all = self.backing_off && eligible::skip_backing_off(self.changing());
        if self.claimed && self.backing_off {
            affinity::compare(&mut self.rows);
        }
        all
    }

    /// The rows for whoever changes them beyond what `finish` takes back: they are not kept.
    pub(super) fn changing(&mut self) -> &mut Vec<Candidate> {
        self.kept = None;
        &mut self.rows
    }

    /// The request is placed, or is not: what the rows said of it alone is taken back.
    pub(super) fn finish(&mut self) {
        if std::mem::take(&mut self.claimed) {
            for row in &mut self.rows {
                (row.claimed, row.depth, row.matched, row.redundant, row.evicts) = (0, 0.0, 0, 0, 0.0);
            }
        }
    }
}
