//! What a load is told and shows of its backend, beside its requests: scrapes, progress, failures in a row, trials.

use std::time::Duration;

use super::lease::Lease;
use super::{Failure, Index, Kind, Load, LoadState, Sample, Time};
use crate::health::watchdog::Sight;

impl Load {
    /// A scrape came in. What it shows beyond our own in-flight *at this instant* is others' load, until it is stale.
    pub fn set_sample(&self, sample: Sample, now: Time) {
        let capacity = sample.kv_capacity_tokens.filter(|tokens| *tokens > 0);
        // Load and cache change under one lock, or a decision between the two would expect hits in an empty cache.
        self.with_cache(|state, cache| {
            if state.set_sample(sample, now) {
                // Another engine: nothing of what was sent before is in its cache.
                cache.restarted(self.slot);
            }
            if let Some(tokens) = capacity {
                cache.set_capacity(self.slot, tokens);
            }
        });
    }

    fn with_cache(&self, act: impl FnOnce(&mut LoadState, &mut Index)) {
        let mut act = Some(act);
        self.table.with_cache(self.slot, &mut |state, cache| {
            if let Some(act) = act.take() {
                act(state, cache);
            }
        });
    }

    /// The attempt's answer said how many of its prompt's tokens were found in the prefix cache.
    pub(crate) fn cached(&self, lease: &Lease, prompt_tokens: u64, cached_tokens: u64) {
        if prompt_tokens > 0 && lease.prompt > 0 {
            let claimed = f64::from(lease.claimed) / f64::from(lease.prompt);
            let found = cached_tokens as f64 / prompt_tokens as f64;
            self.with_cache(|_, cache| cache.learn(self.slot, claimed, lease.depth, found));
        }
    }

    /// A scrape failed. The last good one stays until it is stale.
    pub fn scrape_failed(&self) {
        self.with(|state| state.scrape_failures = state.scrape_failures.saturating_add(1));
    }

    /// The attempt failed. Never touches the latency estimators: an error is no fast answer. Whether that began a new pause.
    pub(crate) fn fail(&self, failure: Failure, now: Time) -> bool {
        self.change(|state, _| state.fail(failure, now))
    }

    /// The backend cannot be reached from here: it is left alone for so long, as one that is full.
    pub fn out_of_reach(&self, pause: Duration, now: Time) {
        self.change(|state, _| state.backoff.leave_alone(pause, now));
    }

    /// The failure that began a pause was not the backend's.
    pub(crate) fn withdraw(&self) {
        self.change(|state, _| state.backoff.withdraw());
    }

    /// A failure is held against the backend: how many that makes in a row.
    pub(crate) fn count_failure(&self) -> u32 {
        self.with(|state| state.backoff.count())
    }

    /// Forgets the failures of a backend that is back, and lets its TTFT estimate adapt quickly again.
    pub(crate) fn forgive(&self) {
        self.change(|state, _| {
            state.backoff.forgive();
            state.ttft.renew();
        });
    }

    /// The backend may be back: one attempt shall show it.
    pub(crate) fn try_out(&self) {
        self.change(|state, _| state.backoff.try_out(state.next));
    }

    /// Counts what shows that the engine works: token events and whole answers.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.with(|state| state.progress)
    }

    /// An attempt's client reads (`false`) or does not.
    pub(crate) fn pause(&self, paused: bool, stream: bool) {
        self.with(|state| {
            let streams = u32::from(stream);
            if paused {
                (state.paused, state.paused_streams) = (state.paused + 1, state.paused_streams + streams);
            } else {
                (state.paused, state.paused_streams) = (state.paused - 1, state.paused_streams - streams);
            }
        });
    }

    /// Returns the time until which the engine counts as one that works, by its metrics; `None` where they have shown no progress.
    pub(crate) fn works_until(&self, idle: Duration) -> Option<Time> {
        self.with(|state| state.works_until(idle))
    }

    /// Returns the facts that the watchdog looks at.
    #[must_use]
    pub fn sight(&self, now: Time) -> Sight {
        self.with(|state| Sight {
            waiting: state.engaged.saturating_sub(state.paused),
            streams: state.engaged_streams.saturating_sub(state.paused_streams),
            progress: state.progress,
            sample: state.fresh(now).map(|scrape| (scrape.sample, scrape.at)),
        })
    }

    /// Returns what kind of request it served last, of those that reach the engine.
    #[must_use]
    pub fn served(&self) -> Option<Kind> {
        self.with(|state| state.served)
    }
}
