//! The live page: arms side by side, backends, the last decisions. A page, a sheet and a script, as they are in this folder;
//! nothing is built and nothing is loaded from elsewhere, and the content policy says so to the browser. The three files tell
//! nothing and are open to all; what they show comes from `/api/live/stream`, which asks for the token like the rest. Since a
//! browser cannot send a token with its `EventSource`, the script reads the stream by `fetch`.
//! It must never hold up a request: all that it shows is made on the admin listener's thread.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, StatusCode, header};

use super::Admin;
use super::error::error;
use forebay_core::clock::Time;
use forebay_fleet::Snapshot;
use forebay_fleet::clients::KnownClients;
use forebay_fleet::config::Config;
use forebay_fleet::telemetry::Telemetry;

mod hub;
mod live;
mod sentence;

pub use self::hub::Ticks;

/// Begins to make what the page shows.
pub type Live = Arc<dyn Fn() -> Ticks + Send + Sync>;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns what the page shows of a fleet, as one line of JSON.
#[must_use]
pub fn json(
    fleet: &Snapshot,
    clients: &KnownClients,
    telemetry: &Telemetry,
    config: &Config,
    not_ready: Option<String>,
    now: Time,
) -> String {
    let live = live::Live::new(fleet, clients, telemetry, config, not_ready, now);
    serde_json::to_string(&live).expect("plain structs with string keys are JSON")
}

/// The page and its files.
pub(super) fn page() -> axum::Router<Admin> {
    let file = |kind: &'static str, text: &'static str| {
        let headers: [(HeaderName, &str); 3] = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        get(move || async move { (headers, text) })
    };
    axum::Router::new()
        .route("/dashboard", file("text/html; charset=utf-8", include_str!("page.html")))
        .route("/dashboard/page.css", file("text/css; charset=utf-8", include_str!("page.css")))
        .route("/dashboard/page.js", file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/dashboard/icon.svg", file("image/svg+xml", include_str!("icon.svg")))
}

/// Returns the routes of what the page shows.
pub(super) fn data(live: &Live) -> axum::Router<Admin> {
    let hub = hub::Hub::new(Arc::clone(live));
    let own = axum::Router::new().route("/api/live", get(once)).route("/api/live/stream", get(ticks)).with_state(hub);
    axum::Router::new().merge(own)
}

async fn once(State(hub): State<hub::Hub>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], hub.once()).into_response()
}

async fn ticks(State(hub): State<hub::Hub>) -> Response {
    match hub.subscribe() {
        Some(body) => ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response(),
        None => {
            let words = format!("{} pages are open already; close one", hub::MAX_CLIENTS);
            error(StatusCode::SERVICE_UNAVAILABLE, "forebay_too_many_pages", &words)
        }
    }
}
