//! The admin API, on its own listener: `/metrics`, `/health`, `/ready`, `/api/fleet`, `/api/config`, and, to change something,
//! the drain of a backend; `/api/explain`, which says where a request would go; and the live page over it. What it shows and does comes as closures, so that it knows neither server nor proxy. With a token
//! configured, everything but the two probes asks for it. It must never show a secret: what it is given is redacted already;
//! nor change anything for a page in an operator's browser.

mod auth;
mod changes;
pub mod dashboard;
mod error;
mod host;
mod routes;
pub mod views;

use std::sync::Arc;

use serde_json::Value;

use forebay_core::error::Refusal;
use forebay_core::units::BackendId;
use forebay_fleet::config::model::Secret;
use forebay_fleet::membership::drains::{DrainByHand, DrainRequest};

/// The API as a tower service; cheap to clone.
pub type Router = axum::Router;
/// The body of its answers.
pub type Body = axum::body::Body;

/// Tells whether requests should be sent here; if not, why, in a few words.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The sources of what the API shows, asked at every request.
#[derive(Clone)]
pub struct Admin {
    /// The text of `/metrics`.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The check that `/ready` answers by.
    pub ready: Readiness,
    /// Makes the answer of `/api/fleet`.
    pub fleet: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Begins to make what the live page shows.
    pub live: dashboard::Live,
    /// Makes the answer of `POST /api/explain` to a body: where the request in it would go, and why.
    pub explain: Explain,
    /// Makes the answer of `/api/config`: the configuration in force, redacted.
    pub config: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Drains the backends of this name (`Some`), or ends that (`None`); the ids of those that there are.
    pub drain: Change,
    /// The drains by hand that are in force.
    pub drains: Arc<dyn Fn() -> Vec<DrainByHand> + Send + Sync>,
}

/// The function that explains a request.
pub type Explain = Arc<dyn Fn(&[u8]) -> Result<Value, Refusal> + Send + Sync>;

/// The function that drains backends.
pub type Change = Arc<dyn Fn(&str, Option<&DrainRequest>) -> Result<Vec<BackendId>, NotChanged> + Send + Sync>;

/// The reason why nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotChanged {
    /// No backend goes by the name.
    Unknown,
    /// A new process has taken over, which would not hear of it.
    HandedOver,
}

/// The kind of connection on which the API is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Plain HTTP.
    Plain,
    /// TLS. A browser shows no page under a name that the certificate does not have, so that no name can be pointed here.
    Tls,
}

/// The API. With a `token`, all but `/health` and `/ready` answer only to `authorization: Bearer TOKEN`.
pub fn router(admin: Admin, token: Option<&Secret>, channel: Channel) -> Router {
    routes::router(admin, token.map(auth::Token::new), channel)
}

#[cfg(test)]
mod tests;
