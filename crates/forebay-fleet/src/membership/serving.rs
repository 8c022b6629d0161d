//! What a question of our own showed about what a backend serves.

use super::controller::Controller;
use crate::health::Effect;
use forebay_core::clock::Time;
use forebay_core::units::BackendId;

impl Controller {
    /// The backend refused what the config says it serves, or our key: out until `configured`, or until its config changes.
    pub fn misconfigured(&self, id: BackendId, reason: impl Into<String>, now: Time) {
        let reason = reason.into();
        self.core().change(id, now, |change| change.health.misconfigured(reason, now));
    }

    /// The backend refused a client what the config says it serves, and cannot be asked whether it does: an attempt that failed
    /// by its doing, and no more.
    pub fn unconfirmed(&self, id: BackendId, reason: &str, now: Time) {
        self.core().change(id, now, |change| {
            let row = change.load.count_failure();
            change.health.failed(row, reason, change.rules, now, change.rng)
        });
    }

    /// The backend is out for not serving what the config says, and can no longer be asked whether it does.
    pub fn unsettled(&self, id: BackendId, now: Time) {
        self.core().change(id, now, |change| change.health.unsettled(change.rules, now, change.rng));
    }

    /// The backend serves what the config says again (its `/v1/models` lists the model and takes our key).
    pub fn configured(&self, id: BackendId, now: Time) {
        self.core().change(id, now, |change| {
            change.health.configured();
            Effect::None
        });
    }
}
