//! Paths and answers of the admin API. Answers are small and made anew each time; none may be cached. Whatever changes
//! something is in `changes.rs`.

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::Value;

use super::auth::{Token, require};
use super::changes::{drain, no_page, undrain};
use super::{Admin, Router, dashboard};
use forebay_core::error::{ErrorShape, error_json};

const INDEX: &str = "forebay: admin API
/dashboard    the live page
/metrics      Prometheus metrics
/health       200 while the process is alive
/ready        200 while requests should be sent here, else 503 and why
/api/fleet    the backends with every number that routing sees (JSON)
/api/live     what the live page shows, now; /api/live/stream once a second, as server-sent events
/api/config   the configuration in force, without its secrets (JSON)
POST /api/backends/{b0 or host:port}/drain    it finishes what it has and takes no more; /undrain ends that
     with content-type: application/json and, if you like, {\"by\": \"who\", \"reason\": \"why\"}
";
/// Who and why fit into this.
const MAX_BODY: usize = 4096;

pub(super) fn router(admin: Admin, token: Option<Token>) -> Router {
    let changes = axum::Router::new()
        .route("/api/backends/{backend}/drain", post(drain))
        .route("/api/backends/{backend}/undrain", post(undrain))
        .route_layer(from_fn_with_state(token.is_some(), no_page))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let mut guarded = axum::Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/api/fleet", get(fleet))
        .route("/api/config", get(config))
        .merge(dashboard::data(&admin.live))
        .merge(changes)
        .fallback(not_found);
    if let Some(token) = token {
        guarded = guarded.layer(from_fn_with_state(token, require));
    }
    // An orchestrator's probes carry no token, and neither answer says more than a word.
    let open = axum::Router::new().route("/health", get("alive\n")).route("/ready", get(ready));
    open.merge(dashboard::page())
        .merge(guarded)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_response(with_headers))
        .with_state(admin)
}

/// The list of paths; a browser is sent to the page.
async fn index(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") { Redirect::to("/dashboard").into_response() } else { INDEX.into_response() }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (admin.metrics)()).into_response()
}

async fn ready(State(admin): State<Admin>) -> Response {
    match (admin.ready)() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response(),
    }
}

async fn fleet(State(admin): State<Admin>) -> Json<Value> {
    Json((admin.fleet)())
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json((admin.config)())
}

async fn not_found(uri: Uri) -> Response {
    let words = format!("{} is not a path of the admin API; / lists them", uri.path());
    error(StatusCode::NOT_FOUND, "forebay_path_not_allowed", &words)
}

async fn method_not_allowed() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "forebay_method_not_allowed", "this path takes another method; / lists them")
}

/// An error in the shape of the data plane's.
pub(super) fn error(status: StatusCode, kind: &str, words: &str) -> Response {
    let body = error_json(ErrorShape::OpenAi, status.as_u16(), kind, words);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
