//! Whether one backend takes requests, from probes and configuration: so many bad probes in a row and it is out, the first
//! good one and it is in. Failures of clients' requests do not come here: they make it back off, which takes nobody out.

use serde::Serialize;

use crate::clock::Time;
use crate::routing::eligible::Standing;

/// Where a backend stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state", content = "reason")]
pub enum State {
    /// It takes requests.
    Healthy,
    /// Its probes fail; the reason of the last.
    Ejected(String),
    /// It is not what the config says it is.
    Misconfigured(String),
    /// The operator lets it finish what it has.
    Drained,
}

impl State {
    /// The value of the `state` label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            State::Healthy => "healthy",
            State::Ejected(_) => "ejected",
            State::Misconfigured(_) => "misconfigured",
            State::Drained => "drained",
        }
    }

    /// Why, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            State::Ejected(reason) | State::Misconfigured(reason) => Some(reason),
            State::Healthy | State::Drained => None,
        }
    }

    /// Whether requests go there in the normal course of things.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        *self == State::Healthy
    }

    /// What routing makes of it.
    #[must_use]
    pub(super) fn standing(&self, since: Time) -> Standing {
        match self {
            State::Healthy => Standing::In,
            State::Ejected(_) => Standing::Out { since },
            State::Misconfigured(_) => Standing::Misconfigured { since },
            State::Drained => Standing::Drained,
        }
    }
}

/// The probes of one backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    bad_in_a_row: u32,
    out: Option<String>,
    misconfigured: Option<String>,
}

impl Health {
    /// One probe's verdict; `failures` in a row are needed to be out.
    pub(super) fn probe(&mut self, verdict: Result<(), String>, failures: u32) {
        match verdict {
            Ok(()) => {
                self.bad_in_a_row = 0;
                self.out = None;
            }
            Err(reason) => {
                self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
                if self.bad_in_a_row >= failures.max(1) {
                    self.out = Some(reason);
                }
            }
        }
    }

    /// It refused what the config says it serves, or, with `None`, it no longer does.
    pub(super) fn misconfigured(&mut self, reason: Option<String>) {
        self.misconfigured = reason;
    }

    /// Where that leaves the backend. A drain hides the rest: it gets nothing either way.
    pub(super) fn state(&self, drain: bool) -> State {
        match (drain, &self.misconfigured, &self.out) {
            (true, _, _) => State::Drained,
            (false, Some(reason), _) => State::Misconfigured(reason.clone()),
            (false, None, Some(reason)) => State::Ejected(reason.clone()),
            (false, None, None) => State::Healthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_probes_in_a_row_eject_and_one_good_one_brings_back() {
        let mut health = Health::default();
        let bad = || Err("connection refused".to_owned());
        health.probe(bad(), 3);
        health.probe(bad(), 3);
        health.probe(Ok(()), 3);
        health.probe(bad(), 3);
        health.probe(bad(), 3);
        assert_eq!(health.state(false), State::Healthy, "a good probe breaks the row");
        health.probe(bad(), 3);
        assert_eq!(health.state(false), State::Ejected("connection refused".to_owned()));
        health.probe(Ok(()), 3);
        assert_eq!(health.state(false), State::Healthy);
    }

    #[test]
    fn a_good_probe_does_not_hide_a_misconfiguration_and_a_drain_hides_all() {
        let mut health = Health::default();
        health.misconfigured(Some("404 for our model".to_owned()));
        health.probe(Ok(()), 1);
        assert_eq!(health.state(false).label(), "misconfigured");
        assert_eq!(health.state(true), State::Drained);
        health.misconfigured(None);
        assert_eq!(health.state(false), State::Healthy);
    }
}
