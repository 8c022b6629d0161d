//! What an operator does to backends through the admin API: one is drained, or no longer. An overlay over the configuration, which
//! stays what the file says: it lasts over reloads that keep the backend, and ends by its own opposite or with the process.

use super::controller::Controller;
use crate::locked;
use forebay_core::clock::Time;
use forebay_core::units::BackendId;

/// The longest part of the operator's words that is kept.
const LONGEST: usize = 200;

impl Controller {
    /// Lets the backends that go by this name (an id such as `b3`, or host and port) finish what they have and take no more.
    /// `who`: who says so, and why. Which those are; none if the name is nobody's.
    pub fn drain(&self, name: &str, who: &str, now: Time) -> Vec<BackendId> {
        let who: String = who.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
        self.set_drained(name, Some(who), now)
    }

    /// The opposite. A backend that the configuration drains stays drained.
    pub fn undrain(&self, name: &str, now: Time) -> Vec<BackendId> {
        self.set_drained(name, None, now)
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

    fn set_drained(&self, name: &str, who: Option<String>, now: Time) -> Vec<BackendId> {
        let core = self.core();
        let mut inner = locked(&core.inner);
        let mut found = Vec::new();
        for entry in inner.entries.values_mut() {
            let backend = &entry.backend;
            // One address may be in several pools: the machine is drained, so all of them are.
            if backend.id.to_string() == name || backend.url.authority() == name {
                found.push(backend.id);
                entry.drained.clone_from(&who);
                entry.settle(now);
            }
        }
        if !found.is_empty() {
            core.publish(&mut inner, now);
        }
        found.sort_unstable();
        found
    }
}
