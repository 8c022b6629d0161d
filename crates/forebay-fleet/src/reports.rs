//! What the ends of attempts say of their backend's health, told to the controller by whoever held the ticket. Failures only,
//! and the success that ends a trial: nothing of this is on the way of a request that goes well.

use std::fmt;
use std::sync::Weak;

use super::controller::Core;
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::units::BackendId;

/// The way to the controller; nobody listens once it is gone.
#[derive(Clone)]
pub(super) struct Reports(Weak<Core>);

impl Reports {
    pub(super) fn to(core: Weak<Core>) -> Reports {
        Reports(core)
    }

    /// An attempt failed by the backend's doing: the `row`-th in a row.
    pub(super) fn failed(&self, id: BackendId, row: u32, failure: Failure, now: Time) {
        if let Some(core) = self.0.upgrade() {
            core.change(id, now, |change| change.health.failed(row, failure.label(), change.rules, now, change.rng));
        }
    }

    /// A backend on trial has served a request.
    pub(super) fn served(&self, id: BackendId, now: Time) {
        if let Some(core) = self.0.upgrade() {
            core.change(id, now, |change| change.health.served(now));
        }
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}
