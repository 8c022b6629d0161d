//! Counters by reason: one for each value of a label, made when their backend is. They must never make a counter while a request is
//! served.
//!
//! Hot path: a failure has its place; a word is searched for among at most 32, by where its text is.

use metrics::Counter;

use super::labels::Outcome;
use forebay_core::error::Failure;

/// One counter for each value of a bounded label.
#[derive(Debug)]
pub(super) struct ByLabel(Vec<(&'static str, Counter)>);

impl ByLabel {
    pub(super) fn new(counters: impl IntoIterator<Item = (&'static str, Counter)>) -> ByLabel {
        ByLabel(counters.into_iter().collect())
    }

    pub(super) fn add(&self, label: &'static str, n: u64) {
        // A label comes from the function that declared it, so mostly it is the very same text. Texts are compared only where the
        // linker has kept two copies.
        let same = |(known, _): &&(&'static str, Counter)| {
            std::ptr::eq(known.as_ptr(), label.as_ptr()) && known.len() == label.len()
        };
        let found = self.0.iter().find(same).or_else(|| self.0.iter().find(|(known, _)| *known == label));
        debug_assert!(found.is_some() || self.0.is_empty(), "label value {label} is not declared");
        if let Some((_, counter)) = found {
            counter.increment(n);
        }
    }
}

/// One counter for each [`Failure`], in the order of `Failure::LABELS`; none where nothing is counted.
#[derive(Debug)]
pub(super) struct ByFailure(Vec<Counter>);

impl ByFailure {
    pub(super) fn new(counter: impl Fn(&'static str) -> Counter) -> ByFailure {
        ByFailure(Failure::LABELS.iter().map(|label| counter(label)).collect())
    }

    /// Counts nothing.
    pub(super) fn none() -> ByFailure {
        ByFailure(Vec::new())
    }

    pub(super) fn add(&self, failure: Failure) {
        if let Some(counter) = self.0.get(failure.place()) {
            counter.increment(1);
        }
    }
}

/// One counter for each [`Outcome`].
#[derive(Debug)]
pub(super) struct ByOutcome {
    success: Counter,
    client_error: Counter,
    failed: ByFailure,
    refused: ByLabel,
}

impl ByOutcome {
    /// The counters of an outcome's every value, of which these are the refusals.
    pub(super) fn new(refusals: Vec<&'static str>, counter: impl Fn(&'static str) -> Counter) -> ByOutcome {
        ByOutcome {
            success: counter(Outcome::Success.label()),
            client_error: counter(Outcome::ClientError.label()),
            failed: ByFailure::new(&counter),
            refused: ByLabel::new(refusals.into_iter().map(|label| (label, counter(label)))),
        }
    }

    pub(super) fn add(&self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.success.increment(1),
            Outcome::ClientError => self.client_error.increment(1),
            Outcome::Failed(failure) => self.failed.add(failure),
            Outcome::Refused(kind) => self.refused.add(kind, 1),
        }
    }
}
