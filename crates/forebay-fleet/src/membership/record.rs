//! One backend over the time that it is configured: its identity, its health, and what the operator has said about it. The
//! controller's own; what changes here becomes visible when it publishes.

use std::sync::Arc;

use crate::config::model;
use crate::health::{Effect, Health, HealthState, Rules};
use crate::load::Load;
use crate::pool::backend::Backend;
use crate::telemetry::events::Events;
use forebay_core::clock::Time;

/// The place of a backend in the configuration, by which it stays the same over reloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MemberKey {
    pub(super) pool: String,
    pub(super) arm: String,
    pub(super) url: String,
}

/// The tools of a change of health.
pub(crate) struct Change<'a> {
    pub(crate) health: &'a mut Health,
    pub(crate) load: &'a Load,
    pub(crate) rules: &'a Rules,
    pub(crate) rng: &'a mut fastrand::Rng,
}

/// One backend.
#[derive(Debug)]
pub(crate) struct MemberRecord {
    pub(crate) config: model::BackendConfig,
    pub(crate) backend: Arc<Backend>,
    pub(crate) health: Health,
    /// The person who drained its address through the admin API, and the reason.
    pub(crate) drained: Option<String>,
    /// Its engine sleeps or is paused: why.
    pub(crate) rests: Option<&'static str>,
    /// Its source says that it gets no requests: why.
    pub(crate) leaves: Option<&'static str>,
    pub(crate) state: HealthState,
    pub(crate) since: Time,
    /// The place where a change of state is told.
    events: Arc<Events>,
}

impl MemberRecord {
    pub(crate) fn new(
        config: model::BackendConfig,
        backend: Arc<Backend>,
        (drained, events): (Option<String>, Arc<Events>),
        now: Time,
    ) -> MemberRecord {
        let health = Health::new(now);
        let mut entry = MemberRecord {
            config,
            backend,
            health,
            drained,
            rests: None,
            leaves: None,
            state: HealthState::Healthy,
            since: now,
            events,
        };
        entry.state = entry.health.state(entry.drain());
        entry
    }

    /// Returns who lets it finish what it has and take no more, if anybody does.
    pub(crate) fn drain(&self) -> Option<String> {
        let by_config = self.config.drain.then(|| "drain = true in the configuration".to_owned());
        self.drained.clone().or(by_config).or_else(|| self.leaves.or(self.rests).map(str::to_owned))
    }

    /// Takes over what its source says of it: why it gets no requests, if it does not.
    pub(crate) fn named(&mut self, leaves: Option<&'static str>, now: Time) {
        // While it was not Ready its port may have refused connections, which put it out for ever longer.
        if leaves.is_none() && self.leaves.is_some() {
            self.health.may_be_back(now);
        }
        self.leaves = leaves;
        self.settle(now);
    }

    /// Changes its health, with all that follows for its load and its metrics; whether the fleet looks different now.
    pub(crate) fn change(
        &mut self,
        rules: &Rules,
        rng: &mut fastrand::Rng,
        now: Time,
        act: impl FnOnce(Change<'_>) -> Effect,
    ) -> bool {
        // Health as it would be without a drain: a drained backend that fails is still news for routing after it.
        let before = (self.health.standing(false), self.health.stalled_since());
        match act(Change { health: &mut self.health, load: &self.backend.load, rules, rng }) {
            Effect::None => {}
            Effect::Ejected(why) => self.backend.metrics.ejected(why),
            // It has proved itself by a request, so its back-off has no reason left.
            Effect::Returned => self.backend.load.forgive(),
            Effect::OnTrial => self.backend.load.try_out(),
        }
        self.settle(now) || (self.health.standing(false), self.health.stalled_since()) != before
    }

    /// Takes over what health and operator say now; whether that changed the state.
    pub(crate) fn settle(&mut self, now: Time) -> bool {
        let state = self.health.state(self.drain());
        if state == self.state {
            return false;
        }
        // A new reason for an old state is shown, and is no line of the log.
        if state.label() != self.state.label() {
            self.since = now;
            let (id, url, label, reason) = (self.backend.id, &self.backend.url, state.label(), state.reason());
            self.events.tell(label, Some(url.authority()), reason, now);
            // Capacity is lost, which an operator must see in a log of warnings alone.
            if matches!(state, HealthState::Ejected(_) | HealthState::Misconfigured(_)) {
                tracing::warn!(backend = %id, %url, state = label, reason, "backend is out");
            } else {
                tracing::info!(backend = %id, %url, state = label, reason, "backend changed state");
            }
        }
        self.state = state;
        true
    }
}
