//! The controller's side of replicas: their number, as a source counts it, and this replica's part of what all have together.

use std::sync::Arc;
use std::time::Duration;

use super::settings::bucket;
use super::{Controller, Inner};
use crate::locked;
use crate::membership::replicas::ReplicaCount;
use crate::source::{Source, Taken};
use forebay_core::clock::Time;

impl Controller {
    /// Takes over how many replicas their source has counted: at least one. An answer of a source that is no longer configured counts
    /// for nothing. Returns whether the number is another now.
    pub fn counted(&self, source: &Arc<Source>, replicas: usize, now: Time) -> bool {
        let mut inner = locked(&self.core().inner);
        // A reload came between the question and its answer.
        if !inner.replication.source.as_ref().is_some_and(|own| Arc::ptr_eq(own, source)) {
            return false;
        }
        let ready = replicas.min(source.discover.max_backends);
        source.took(&Taken { ready, left_out: replicas - ready, ..Taken::default() }, now);
        let count = ReplicaCount::of(u32::try_from(ready).unwrap_or(u32::MAX));
        let before = inner.replication.counted(count);
        if before == count {
            return false;
        }
        tracing::info!(before = before.get(), now = count.get(), "the number of Forebay's replicas is another");
        inner.divide(before, now);
        self.settle(&mut inner, now);
        true
    }
}

impl Inner {
    /// The age from which a scraped figure counts as absent: as old again for each replica that scrapes in turn.
    pub(super) fn stale_after(&self) -> Duration {
        self.replication.count.stretch(self.settings.stale_after)
    }

    /// Gives this replica its part of what all have together, after there were `before` of them.
    pub(super) fn divide(&mut self, before: ReplicaCount, now: Time) {
        let Inner { settings, gates, entries, replication, .. } = self;
        let (budget, count) = (settings.budget, replication.count);
        for gate in gates.values() {
            let mut gate = locked(gate);
            // As full as it was: retries in a storm are what it is for, and a storm takes replicas away, too.
            let full = before.part_of_budget(budget).burst;
            let share = if full > 0.0 { gate.budget.left(now) / full } else { 1.0 };
            gate.budget = bucket(count.part_of_budget(budget), now).filled(share);
        }
        let stale_after = count.stretch(settings.stale_after);
        for entry in entries.values() {
            // In place: requests under way hold this load, and what was learned stays.
            entry.backend.load.retune(entry.config.speed, stale_after);
        }
    }
}
