//! Whether one backend takes requests: a state machine over its `/health`, its clients' attempts, the watchdog, probes with
//! requests, and the operator's word. Healthy → ejected → probing → healthy. Pure: time and chance come in as arguments.
//!
//! `/health` alone brings nothing back: it says 200 while the engine hangs, and while a server that drains answers every
//! request with 500. So what is out comes back by a request, our own (a probe) or, where none can be made, one of a client's.

pub mod alarm;
pub mod doubt;
pub(crate) mod reports;
mod stall;
pub mod watchdog;

use std::time::Duration;

use self::stall::Stall;
use crate::telemetry::labels::{BackendState, Ejection};
use forebay_core::clock::Time;
use forebay_core::routing::eligible::Standing;

/// Ejections are spread by so much to either side, so that backends which failed together are not probed together.
const JITTER: f64 = 0.1;

/// The state of a backend, and why it is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// It takes requests.
    Healthy,
    /// It failed, and is left alone for a while.
    Ejected(String),
    /// It failed, and a request shall show whether that is over; the reason of the ejection.
    Probing(String),
    /// It is not what the config says it is.
    Misconfigured(String),
    /// The operator lets it finish what it has; who says so.
    Drained(String),
}

impl HealthState {
    /// The value of the `state` label.
    #[must_use]
    pub fn kind(&self) -> BackendState {
        match self {
            HealthState::Healthy => BackendState::Healthy,
            HealthState::Ejected(_) => BackendState::Ejected,
            HealthState::Probing(_) => BackendState::Probing,
            HealthState::Misconfigured(_) => BackendState::Misconfigured,
            HealthState::Drained(_) => BackendState::Drained,
        }
    }

    /// Its text.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.kind().label()
    }

    /// Returns the reason, where there is something to say.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            HealthState::Ejected(reason)
            | HealthState::Probing(reason)
            | HealthState::Misconfigured(reason)
            | HealthState::Drained(reason) => Some(reason),
            HealthState::Healthy => None,
        }
    }

    /// Returns whether requests go there in the normal course of things.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        *self == HealthState::Healthy
    }
}

/// Rules for putting a backend out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Failures in a row, of clients' attempts or of `/health`, that eject; at least 1.
    pub failures: u32,
    /// The first ejection lasts so long; each that follows closely on a return twice as long.
    pub base: Duration,
    /// No ejection lasts longer; a backend that was in for so long starts over.
    pub max: Duration,
}

/// The result of a probe with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It was served.
    Passed,
    /// It was not.
    Failed(String),
    /// The backend is full, which says nothing yet.
    Busy,
    /// No request that we can make is one that it serves: a client's has to show it.
    NoSuchRequest,
}

/// The effect of a change on the backend's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// It was put out, for this.
    Ejected(Ejection),
    /// It is back: what its attempts failed with before is over.
    Returned,
    /// One attempt of a client may show that it is back.
    OnTrial,
}

#[derive(Clone, Debug, PartialEq)]
enum HealthPhase {
    In { since: Time },
    Out { until: Time },
    Probing,
    OnTrial,
}

/// The health of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    phase: HealthPhase,
    /// Bad answers of `/health` in a row.
    bad: u32,
    /// `/health` has failed too often, or the port is closed: the reason. No probe is worth its while until that ends.
    dead: Option<String>,
    /// Reason why it was put out, and since when it is.
    out: (String, Time),
    /// Number of times that the length of an ejection was doubled.
    doubled: u32,
    misconfigured: Option<(String, Time)>,
    stall: Stall,
}

impl Health {
    pub(crate) fn new(now: Time) -> Health {
        let out = (String::new(), Time::ZERO);
        let (phase, stall) = (HealthPhase::In { since: now }, Stall::default());
        Health { phase, bad: 0, dead: None, out, doubled: 0, misconfigured: None, stall }
    }

    /// An answer of `/health`. A good one ejects nothing and brings nothing back; it lets a probe go out.
    pub(crate) fn answered(
        &mut self,
        verdict: Result<(), String>,
        rules: &Rules,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Effect {
        match verdict {
            Ok(()) => {
                // A server may call itself well while its engine does not serve. So a good answer only allows a probe.
                self.bad = 0;
                self.stall.speaks();
                if self.dead.take().is_some() && !matches!(self.phase, HealthPhase::In { .. }) {
                    // Whoever reads the reason must not look for a server that does not answer.
                    self.out.0.push_str("; /health answers again, and a request shall show whether it serves");
                }
                Effect::None
            }
            Err(reason) => {
                self.bad = self.bad.saturating_add(1);
                self.stall.speaks();
                if self.bad < rules.failures.max(1) { Effect::None } else { self.died(reason, rules, now, rng) }
            }
        }
    }

    /// `/health` had no answer in time, and nothing else came of the server. A server that stands still is seen by this long before
    /// the watchdog, whose work moves away meanwhile.
    pub(crate) fn unanswered(&mut self, reason: String, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        self.bad = self.bad.saturating_add(1);
        if self.bad < rules.failures.max(1) {
            return Effect::None;
        }
        // Noted before it is put out, since that does nothing to a backend that is out already: its failures may have been first.
        self.stall.is_silent(now);
        self.dead = Some(reason.clone());
        self.eject(Ejection::Health, reason, rules, now, rng)
    }

    /// Nobody is there: `/health` has failed for long enough, or the port refuses connections.
    pub(crate) fn died(&mut self, reason: String, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        // A server that ended, or says itself that its engine is dead, stalls no longer: that is another fault.
        self.stall.is_over();
        self.dead = Some(reason.clone());
        self.eject(Ejection::Health, reason, rules, now, rng)
    }

    /// Notes blamed failures of clients' attempts, so many in a row.
    pub(crate) fn failed(&mut self, row: u32, last: &str, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        let reason = || format!("{row} failed in a row; the last: {last}");
        match self.phase {
            HealthPhase::In { .. } if row >= rules.failures.max(1) => {
                self.eject(Ejection::Failures, reason(), rules, now, rng)
            }
            HealthPhase::OnTrial => self.eject(Ejection::Failures, reason(), rules, now, rng),
            HealthPhase::In { .. } | HealthPhase::Out { .. } | HealthPhase::Probing => Effect::None,
        }
    }

    /// The watchdog: it has work and makes no progress.
    pub(crate) fn hung(&mut self, reason: String, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        self.stall.hangs(now);
        self.eject(Ejection::Watchdog, reason, rules, now, rng)
    }

    /// Puts it out, if it is not.
    fn eject(&mut self, why: Ejection, reason: String, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        match self.phase {
            // Failures of attempts that went out before it did must not make its time longer.
            HealthPhase::Out { .. } => return Effect::None,
            HealthPhase::In { since } => {
                // A backend that was in for long has earned a short ejection. One that falls out again at once waits
                // longer each time.
                self.doubled = if now.since(since) >= rules.max { 0 } else { self.doubled };
                self.out = (reason, now);
            }
            // It never came back: it is out since it was.
            HealthPhase::Probing | HealthPhase::OnTrial => self.out.0 = reason,
        }
        // The shift is bounded: a backend that fails for weeks must not overflow it.
        let length = rules.base.saturating_mul(1 << self.doubled.min(16)).min(rules.max);
        // Spread, so that backends that went out together are not probed together.
        self.phase = HealthPhase::Out { until: now + spread(length, rng) };
        self.doubled = self.doubled.saturating_add(1);
        Effect::Ejected(why)
    }

    /// Somebody else has found that it serves again: the time of an ejection is over. It comes back by a request, as ever.
    pub(crate) fn may_be_back(&mut self, now: Time) {
        if let HealthPhase::Out { until } = &mut self.phase {
            *until = now;
        }
    }

    /// Returns whether a probe shall go out now: its time out is over, and somebody is there.
    pub(crate) fn probe(&mut self, now: Time) -> bool {
        match self.phase {
            HealthPhase::Out { until } if until <= now && self.dead.is_none() => {
                self.phase = HealthPhase::Probing;
                true
            }
            HealthPhase::Probing => self.dead.is_none(),
            HealthPhase::In { .. } | HealthPhase::Out { .. } | HealthPhase::OnTrial => false,
        }
    }

    /// Returns what the probe showed.
    pub(crate) fn probed(&mut self, probed: Probed, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        // A drain, or a configuration, may have come between the probe and its answer.
        if self.phase != HealthPhase::Probing {
            return Effect::None;
        }
        match probed {
            Probed::Passed => self.back(now),
            // That it is out is known: it was counted when it went out. No client paid for the probe, so that the
            // next one need not wait for longer: what recovers is back soon.
            Probed::Failed(reason) => {
                self.out.0 = format!("its probe failed: {reason}");
                self.phase = HealthPhase::Out { until: now + spread(rules.base, rng) };
                Effect::None
            }
            // It sheds load: alive, and no proof of more.
            Probed::Busy => Effect::None,
            Probed::NoSuchRequest => {
                self.phase = HealthPhase::OnTrial;
                Effect::OnTrial
            }
        }
    }

    /// An attempt of a client, sent after the last failure, was served.
    pub(crate) fn served(&mut self, now: Time) -> Effect {
        if self.phase == HealthPhase::OnTrial { self.back(now) } else { Effect::None }
    }

    fn back(&mut self, now: Time) -> Effect {
        self.stall.is_over();
        self.phase = HealthPhase::In { since: now };
        Effect::Returned
    }

    /// It refused what the config says it serves; if it did so before, since then.
    pub(crate) fn misconfigured(&mut self, reason: String, now: Time) -> Effect {
        let since = self.misconfigured.take().map_or(now, |(_, since)| since);
        let first = since == now;
        self.misconfigured = Some((reason, since));
        if first { Effect::Ejected(Ejection::Misconfigured) } else { Effect::None }
    }

    /// It serves what the config says.
    pub(crate) fn configured(&mut self) {
        self.misconfigured = None;
    }

    /// Notes that it can no longer be asked whether it refuses what the config says. So it is out as one that failed, and comes
    /// back by a request.
    pub(crate) fn unsettled(&mut self, rules: &Rules, now: Time, rng: &mut fastrand::Rng) -> Effect {
        match self.misconfigured.take() {
            Some((reason, _)) => self.eject(Ejection::Misconfigured, reason, rules, now, rng),
            None => Effect::None,
        }
    }

    /// Returns the state of the backend. A drain hides the rest: the backend gets nothing either way.
    pub(crate) fn state(&self, drained: Option<String>) -> HealthState {
        let reason = || self.out.0.clone();
        match (drained, &self.misconfigured, &self.phase) {
            (Some(who), _, _) => HealthState::Drained(who),
            (None, Some((reason, _)), _) => HealthState::Misconfigured(reason.clone()),
            (None, None, HealthPhase::In { .. }) => HealthState::Healthy,
            (None, None, HealthPhase::Out { .. }) => HealthState::Ejected(reason()),
            (None, None, HealthPhase::Probing | HealthPhase::OnTrial) => HealthState::Probing(reason()),
        }
    }

    /// Returns the moment at which it was found to show no progress, while that lasts.
    pub(crate) fn stalled_since(&self) -> Option<Time> {
        self.stall.since()
    }

    /// Returns what routing makes of it. On trial it is in: its back-off lets one attempt be, and no more.
    pub(crate) fn standing(&self, drained: bool) -> Standing {
        match (drained, &self.misconfigured, &self.phase) {
            (true, _, _) => Standing::Drained,
            (false, Some((_, since)), _) => Standing::Misconfigured { since: *since },
            (false, None, HealthPhase::In { .. } | HealthPhase::OnTrial) => Standing::In,
            (false, None, HealthPhase::Out { .. } | HealthPhase::Probing) => Standing::Out { since: self.out.1 },
        }
    }
}

fn spread(length: Duration, rng: &mut fastrand::Rng) -> Duration {
    length.mul_f64(1.0 - JITTER + 2.0 * JITTER * rng.f64())
}

#[cfg(test)]
mod tests;
