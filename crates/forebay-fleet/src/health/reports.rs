//! What the ends of attempts say of their backend's health, told to the controller by whoever held the ticket. Failures only,
//! and the success that ends a trial: nothing of this is on the way of a request that goes well.

use std::fmt;
use std::sync::Weak;

use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::units::BackendId;

/// A keeper of the health of backends.
pub(crate) trait HealthKeeper: Send + Sync {
    /// An attempt failed by the backend's doing: the `row`-th in a row.
    fn failed(&self, id: BackendId, row: u32, failure: Failure, now: Time);
    /// A backend on trial has served a request.
    fn served(&self, id: BackendId, now: Time);
}

/// The way to it; nobody listens once it is gone.
#[derive(Clone)]
pub(crate) struct Reports(Weak<dyn HealthKeeper>);

impl Reports {
    pub(crate) fn to(keeper: Weak<dyn HealthKeeper>) -> Reports {
        Reports(keeper)
    }

    /// Reports a failure: see [`HealthKeeper::failed`].
    pub(crate) fn failed(&self, id: BackendId, row: u32, failure: Failure, now: Time) {
        if let Some(keeper) = self.0.upgrade() {
            keeper.failed(id, row, failure, now);
        }
    }

    /// Reports an answer: see [`HealthKeeper::served`].
    pub(crate) fn served(&self, id: BackendId, now: Time) {
        if let Some(keeper) = self.0.upgrade() {
            keeper.served(id, now);
        }
    }
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}
