//! What an operator does to backends through the admin API: one is drained, or no longer. An overlay over the configuration, which
//! stays what the file says: it lasts over reloads, also for a backend that the file leaves out for a while, and over an upgrade,
//! in which the old process hands its drains to the new one. It ends by its own opposite, at its own time, or with the process.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Controller, Inner};
use crate::locked;
use crate::membership::record::MemberRecord;
use forebay_core::clock::Time;
use forebay_core::units::BackendId;

/// The longest part of the operator's words that is kept.
const LONGEST: usize = 200;

/// A drain by hand, as an operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainRequest {
    /// The person who drains, and the reason.
    pub words: String,
    /// The time after which it ends by itself.
    pub lasts: Option<Duration>,
}

/// A drain by hand that is in force, for those who look and for the process that takes over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainByHand {
    /// The backend's name: host and port with its prefix, or `unix:/path`.
    pub backend: String,
    /// The person who drained it, and the reason.
    pub words: String,
    /// The time for which it has been in force, in seconds.
    pub for_seconds: f64,
    /// The time until it ends by itself, in seconds; none where it does not.
    pub left_seconds: Option<f64>,
}

/// The drain of one address.
#[derive(Clone, Debug)]
pub(crate) struct AddressDrain {
    pub(crate) words: String,
    since: Time,
    until: Option<Time>,
}

impl Controller {
    /// Lets the backends that go by this name (an id such as `b3`, or host and port) finish what they have and take no more.
    /// A machine is drained: one address that several pools have is drained in all of them. Returns those backends; none if the
    /// name is nobody's.
    pub fn drain(&self, name: &str, drain: &DrainRequest, now: Time) -> Option<Vec<BackendId>> {
        let words = drain.words.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        let until = drain.lasts.map(|lasts| now + lasts);
        self.set_drained(name, Some(&AddressDrain { words, since: now, until }), now)
    }

    /// Ends the drain by hand of the backends that go by this name. A backend that the configuration drains stays drained. Returns
    /// those backends, which may be none where the configuration leaves the address out; `None` if the name is nobody's.
    pub fn undrain(&self, name: &str, now: Time) -> Option<Vec<BackendId>> {
        self.set_drained(name, None, now)
    }

    /// The drains by hand that are in force, in the order of their addresses.
    #[must_use]
    pub fn drains(&self, now: Time) -> Vec<DrainByHand> {
        let inner = locked(&self.core().inner);
        let in_force = inner.drains.iter().filter(|(_, drain)| drain.until.is_none_or(|until| until > now));
        in_force
            .map(|(backend, drain)| DrainByHand {
                backend: backend.clone(),
                words: drain.words.clone(),
                for_seconds: now.secs_since(drain.since),
                left_seconds: drain.until.map(|until| until.secs_since(now)),
            })
            .collect()
    }

    /// Takes over the drains of the process before this one. They hold for backends that are known, and for those that come later.
    pub fn take_drains(&self, drains: Vec<DrainByHand>, now: Time) {
        let core = self.core();
        let mut inner = locked(&core.inner);
        for drain in drains {
            // A number that no drain has, from whatever speaks for the old process, is no reason to drain for ever.
            let Ok(left) = drain.left_seconds.map(Duration::try_from_secs_f64).transpose() else { continue };
            let until = left.map(|left| now + left);
            inner.drains.insert(drain.backend, AddressDrain { words: drain.words, since: now, until });
        }
        if inner.settle_drains(now) {
            core.publish(&mut inner, now);
        }
    }

    /// Ends the drains by hand whose time is over.
    pub fn end_drains(&self, now: Time) {
        let core = self.core();
        let mut inner = locked(&core.inner);
        let over = |drain: &AddressDrain| drain.until.is_some_and(|until| until <= now);
        let ended: Vec<String> = inner.drains.extract_if(.., |_, drain| over(drain)).map(|(name, _)| name).collect();
        if ended.is_empty() {
            return;
        }
        for backend in ended {
            tracing::info!(backend, "the time of a drain by hand is over");
        }
        inner.settle_drains(now);
        core.publish(&mut inner, now);
    }

    /// The backend's engine sleeps or is paused, and why (`None`: it works). It is drained for as long: what it was given would wait.
    pub fn rests(&self, id: BackendId, why: Option<&'static str>, now: Time) {
        let core = self.core();
        let mut inner = locked(&core.inner);
        let entry = inner.entries.values_mut().find(|entry| entry.backend.id == id);
        let Some(entry) = entry.filter(|entry| entry.rests != why) else { return };
        entry.rests = why;
        if entry.settle(now) {
            core.publish(&mut inner, now);
        }
    }

    fn set_drained(&self, name: &str, drain: Option<&AddressDrain>, now: Time) -> Option<Vec<BackendId>> {
        let core = self.core();
        let mut inner = locked(&core.inner);
        let named = |entry: &&MemberRecord| entry.backend.id.to_string() == name;
        let by_id = inner.entries.values().find(named).map(|entry| entry.backend.url.authority().to_owned());
        let address = by_id.unwrap_or_else(|| name.to_owned());
        let here = inner.entries.values().filter(|entry| entry.backend.url.authority() == address);
        let mut found: Vec<BackendId> = here.map(|entry| entry.backend.id).collect();
        match drain {
            // An address that the file has left out meanwhile can be let go of, but nobody drains what is not there: a slip
            // in a name would wait for ever for a backend of that name.
            None if inner.drains.remove(&address).is_some() => {}
            _ if found.is_empty() => return None,
            None => {}
            Some(drain) => drop(inner.drains.insert(address, drain.clone())),
        }
        // Published also where no state changed: a second drain has other words, which are shown.
        inner.settle_drains(now);
        core.publish(&mut inner, now);
        found.sort_unstable();
        Some(found)
    }
}

impl Inner {
    /// Brings what each backend knows of its drain by hand up to date; whether that changed the state of any.
    fn settle_drains(&mut self, now: Time) -> bool {
        let Inner { entries, drains, .. } = self;
        let mut changed = false;
        for entry in entries.values_mut() {
            entry.drained = drains.get(entry.backend.url.authority()).map(|drain| drain.words.clone());
            changed |= entry.settle(now);
        }
        changed
    }
}
