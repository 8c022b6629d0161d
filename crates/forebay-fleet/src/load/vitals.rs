//! What a load is told and shows of its backend, beside its requests: scrapes, progress, failures in a row, trials.

use super::{Failure, Kind, Lease, Load, Sample, Time, locked};
use crate::watchdog::Sight;

impl Load {
    /// A scrape came in. What it shows beyond our own in-flight *at this instant* is others' load, until it is stale.
    pub fn set_sample(&self, sample: Sample, now: Time) {
        let mut gate = locked(&self.gate);
        let capacity = sample.kv_capacity_tokens.filter(|tokens| *tokens > 0);
        if gate.slots.get_mut(self.slot).set_sample(sample, now) {
            // Another engine: nothing of what was sent before is in its cache.
            gate.affinity.restarted(self.slot);
        }
        if let Some(tokens) = capacity {
            gate.affinity.set_capacity(self.slot, tokens);
        }
    }

    /// The attempt's answer said how many of its prompt's tokens were found in the prefix cache.
    pub(crate) fn cached(&self, lease: &Lease, prompt_tokens: u64, cached_tokens: u64) {
        if prompt_tokens > 0 && lease.prompt > 0 {
            let claimed = f64::from(lease.claimed) / f64::from(lease.prompt);
            let found = cached_tokens as f64 / prompt_tokens as f64;
            locked(&self.gate).affinity.learn(self.slot, claimed, lease.depth, found);
        }
    }

    /// A scrape failed. The last good one stays until it is stale.
    pub fn scrape_failed(&self) {
        self.with(|numbers| numbers.scrape_failures = numbers.scrape_failures.saturating_add(1));
    }

    /// The attempt failed. Never touches the latency estimators: an error is no fast answer. Whether that began a new pause.
    pub(crate) fn fail(&self, failure: Failure, now: Time) -> bool {
        self.change(|numbers, _| numbers.fail(failure, now))
    }

    /// The failure that began a pause was not the backend's.
    pub(crate) fn withdraw(&self) {
        self.change(|numbers, _| numbers.backoff.withdraw());
    }

    /// A failure is held against the backend: how many that makes in a row.
    pub(crate) fn count_failure(&self) -> u32 {
        self.with(|numbers| numbers.backoff.count())
    }

    /// The backend is back in: its failures are forgotten, and how fast it was and at first is will be soon.
    pub(crate) fn forgive(&self) {
        self.change(|numbers, _| {
            numbers.backoff.forgive();
            numbers.ttft.renew();
        });
    }

    /// The backend may be back: one attempt shall show it.
    pub(crate) fn try_out(&self) {
        self.change(|numbers, _| numbers.backoff.try_out(numbers.next));
    }

    /// Counts what shows that the engine works: token events and whole answers.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.with(|numbers| numbers.progress)
    }

    /// An attempt's client reads (`false`) or does not.
    pub(crate) fn pause(&self, paused: bool) {
        self.with(|numbers| {
            if paused {
                numbers.paused += 1;
            } else {
                numbers.paused -= 1;
            }
        });
    }

    /// What the watchdog sees.
    #[must_use]
    pub fn sight(&self, now: Time) -> Sight {
        self.with(|numbers| Sight {
            waiting: numbers.engaged.saturating_sub(numbers.paused),
            progress: numbers.progress,
            sample: numbers.fresh(now).map(|scrape| (scrape.sample, scrape.at)),
        })
    }

    /// What kind of request it served last, of those that reach the engine.
    #[must_use]
    pub fn served(&self) -> Option<Kind> {
        self.with(|numbers| numbers.served)
    }
}
