//! The rows of a decision, kept for the next one. Between two decisions a moment apart only those backends look different to
//! which something happened, so only their rows are made anew; all of them when the moment is over, the pool is another, or
//! other backends may have the request. What decays (ratios, rates, pauses) thus stands still for a hundredth of a second.
//!
//! Hot path: at 512 backends making every row is two thirds of a decision. No allocation once it has grown.

use std::time::Duration;

use super::affinity::{self, Index};
use super::candidate::{Candidate, PoolEvidence, PoolRatios};
use super::eligible;
use super::facts::RequestFacts;
use crate::clock::Time;
use crate::units::BackendId;

/// Time for which rows are kept. The fastest of what stands still meanwhile is forgotten over 2 s.
pub const KEPT_FOR: Duration = Duration::from_millis(10);

/// The rows of one arm's decisions.
#[derive(Debug, Default)]
pub struct Rows {
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

/// A source of rows: the loads of a pool's members as of one moment. Each has a slot, a small number that is its own as
/// long as it is in the pool.
pub trait Loads {
    /// The slot of the member at this place.
    fn slot(&self, member: u16) -> usize;
    /// Its row, without the pool's ratios and without claims.
    fn row(&self, member: u16) -> Candidate;
    /// The slots that were changed from this change on; `None` if that is too long ago to know.
    fn changed_since(&self, change: u64) -> Option<&[usize]>;
    /// The number of the change that comes next.
    fn next_change(&self) -> u64;
}

impl Rows {
    /// Makes room for so many members, with slots below `slots`, so that no decision has to.
    pub fn reserve(&mut self, members: usize, slots: usize) {
        *self = Rows::default();
        self.rows.reserve(members);
        self.members.reserve(members);
        self.row_of.resize(slots, 0);
    }

    /// The rows.
    #[must_use]
    pub fn as_slice(&self) -> &[Candidate] {
        &self.rows
    }

    /// Brings the rows up to date.
    pub fn prepare(&mut self, generation: u64, admitted: &[u16], now: Time, loads: &impl Loads) {
        let still = self.kept.filter(|kept| {
            kept.generation == generation && now.since(kept.since) < KEPT_FOR && self.members == admitted
        });
        // Between two decisions one load changes, or two. Only their rows are written anew, so that the cost of a
        // decision is that of comparing.
        let changed = still.and_then(|kept| loads.changed_since(kept.change));
        match (still, changed) {
            // More changes than rows: making all of them anew is cheaper.
            (Some(kept), Some(changed)) if changed.len() <= self.rows.len() => {
                // A decision and its end are two changes of one slot.
                let mut last = None;
                for &slot in changed.iter().filter(|slot| last.replace(**slot) != Some(**slot)) {
                    self.renew(slot, loads);
                }
                self.kept = Some(Kept { change: loads.next_change(), ..kept });
            }
            _ => self.make(generation, admitted, now, loads),
        }
    }

    fn make(&mut self, generation: u64, admitted: &[u16], now: Time, loads: &impl Loads) {
        self.members.clear();
        self.members.extend_from_slice(admitted);
        // Rows are written in place: built aside and moved, they cost a fifth of the decision.
        self.rows.resize(admitted.len(), Candidate::idle(BackendId(0), 0));
        self.backing_off = false;
        let mut evidence = PoolEvidence::default();
        for (index, (row, &member)) in (0_u16..).zip(self.rows.iter_mut().zip(admitted)) {
            let slot = loads.slot(member);
            *row = loads.row(member);
            // Longer than the slots unless a decision panicked and took its rows along.
            self.row_of.resize(self.row_of.len().max(slot + 1), 0);
            self.row_of[slot] = index;
            evidence.add(row);
            self.backing_off |= row.backing_off();
        }
        self.ratios = evidence.ratios();
        self.ratios.fill(&mut self.rows);
        self.kept = Some(Kept { generation, since: now, change: loads.next_change() });
    }

    /// Makes the row of one slot anew, if it has one.
    fn renew(&mut self, slot: usize, loads: &impl Loads) {
        let Some(row) = self.row_of.get(slot).and_then(|&index| self.rows.get_mut(usize::from(index))) else { return };
        if loads.slot(row.member) != slot {
            return;
        }
        *row = loads.row(row.member);
        self.backing_off |= row.backing_off();
        self.ratios.fill(std::slice::from_mut(row));
    }

    /// Writes what the request's prompt should find in each backend's cache.
    pub fn claim(&mut self, facts: &RequestFacts, affinity: &mut Index, now: Time) {
        let Rows { rows, row_of, .. } = self;
        let row_of = |slot: u16| row_of.get(usize::from(slot)).map_or(usize::MAX, |&row| usize::from(row));
        self.claimed = affinity.claim(facts, rows, row_of);
        self.claimed |= affinity.weigh_evictions(facts, rows, now, row_of);
    }

    /// Drops the rows that back off, unless all do. Returns whether all do.
    pub fn skip_backing_off(&mut self) -> bool {
        let all = self.backing_off && eligible::skip_backing_off(self.changing());
        if self.claimed && self.backing_off {
            affinity::compare(&mut self.rows);
        }
        all
    }

    /// The pool's ratios, which the rows lean on.
    #[must_use]
    pub fn ratios(&self) -> PoolRatios {
        self.ratios
    }

    /// The rows for whoever changes them beyond what `finish` takes back: they are not kept.
    pub fn changing(&mut self) -> &mut Vec<Candidate> {
        self.kept = None;
        &mut self.rows
    }

    /// The request is placed, or is not: what the rows said of it alone is taken back.
    pub fn finish(&mut self) {
        if std::mem::take(&mut self.claimed) {
            for row in &mut self.rows {
                (row.claimed, row.depth, row.matched, row.redundant, row.evicts) = (0, 0.0, 0, 0, 0.0);
            }
        }
    }
}
