//! The backends as they are now: who they are, whether they take requests, and what each has to do. The snapshot says who and
//! whether, is immutable and is replaced whole by one writer, the controller; loads are updated in place. Knows no HTTP server.
//!
//! Beside them stand what they are told and what they tell: the configuration, the metrics and logs, and the small client
//! that asks a backend for its figures.
//!
//! Hot path: `Fleet::snapshot` is one atomic pointer load and a reference count; `Pool::dispatch` one short critical section.

#![forbid(unsafe_code)]

pub mod alarm;
mod backend;
mod backoff;
pub mod config;
pub mod controller;
mod dispatch;
mod drains;
mod entry;
pub mod explain;
mod gate;
mod health;
mod lease;
mod load;
mod prefill;
pub mod probe;
mod reports;
mod room;
mod scrape;
mod snapshot;
pub mod telemetry;
mod ticket;
pub mod view;
mod waiting;
pub mod watchdog;

pub use backend::Backend;
pub use dispatch::Dispatched;
pub use health::{Probed, Rules, State};
pub use load::Load;
pub use snapshot::{Arm, Fleet, Member, Pool, Snapshot};
pub use ticket::{Outcome, Pauses, Suspicion, Ticket};
pub use waiting::{Admission, Ask, Placed, Waiting};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a panicking thread left behind is a set of counters, all of which are still numbers.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
