//! The backends as they are now: who they are, whether they take requests, and what each has to do. The snapshot says who and
//! whether, is immutable and is replaced whole by one writer, the controller; loads are updated in place. Knows no HTTP server.
//!
//! Beside them stand what they are told and what they tell: the configuration, the metrics and logs, and the small client
//! that asks a backend for its figures.
//!
//! Hot path: `Fleet::snapshot` is one atomic pointer load and a reference count; `Pool::dispatch` one short critical section.

#![forbid(unsafe_code)]

pub mod clients;
pub mod config;
pub mod health;
pub mod load;
pub mod lock;
pub mod membership;
pub mod obstacle;
pub mod pool;
pub mod probe;
pub mod reach;
pub mod source;
pub mod telemetry;
pub mod tls;
pub mod view;

pub use health::{HealthState, Probed, Rules};
pub use load::Load;
pub use membership::snapshot::{Fleet, Snapshot};
pub use pool::backend::Backend;
pub use pool::placed::Dispatched;
pub use pool::ticket::{AttemptOutcome, EngineLoad, Suspicion, Ticket};
pub use pool::wait::{Admission, Ask, Waiting};
pub use pool::{Arm, Member, Pool};

/// A place on a backend, and the pool that decided.
pub type Placed = pool::placed::Placed<Pool>;

pub(crate) use lock::locked;

#[cfg(test)]
mod tests;
