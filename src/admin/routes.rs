//! Paths and answers of the admin API. Answers are small and made anew each time; none may be cached. Whatever changes
//! something is in `changes.rs`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde_json::Value;

use super::auth::{Token, require};
use super::changes::{drain, no_page, undrain};
use super::error::error;
use super::host::own_host;
use super::{Admin, Channel, Router, dashboard};
use forebay_core::error::Refusal;
use forebay_fleet::membership::drains::DrainByHand;

const INDEX: &str = "forebay: admin API
/dashboard    the live page
/metrics      Prometheus metrics
/health       200 while the process is alive
/ready        200 while requests should be sent here, else 503 and why
/api/fleet    the backends with every number that routing sees (JSON)
/api/live     what the live page shows, now; /api/live/stream once a second, as server-sent events
/api/drains   the drains by hand that are in force (JSON)
/api/config   the configuration in force, without its secrets (JSON)
POST /api/explain    where the request in {\"request\": {…}} would go, and why; it is sent nowhere
     also \"path\", \"session\", \"arm\", \"matched\": {\"b0\": tokens}
POST /api/backends/{b0 or host:port}/drain    it finishes what it has and takes no more; /undrain ends that
     if you like with content-type: application/json and {\"by\": \"who\", \"reason\": \"why\", \"for\": \"2h\"}
";
/// The largest body of a drain request, in bytes: who and why fit into it.
const MAX_BODY: usize = 4096;
/// A request that is asked about: a prompt of two million tokens fits into this.
const MAX_QUESTION: usize = 8 << 20;

pub(super) fn router(admin: Admin, token: Option<Token>, channel: Channel) -> Router {
    // A name of the internet may be meant: a token guards what it could reach, or a certificate has it.
    let named = token.is_some() || channel == Channel::Tls;
    let changes = axum::Router::new()
        .route("/api/backends/{backend}/drain", post(drain))
        .route("/api/backends/{backend}/undrain", post(undrain))
        .route_layer(from_fn_with_state(named, no_page))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    // It changes nothing, but answers about a fleet that no page of another site may ask about.
    let questions = axum::Router::new()
        .route("/api/explain", post(explain))
        .route_layer(from_fn_with_state(named, no_page))
        .layer(DefaultBodyLimit::max(MAX_QUESTION));
    let mut guarded = axum::Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/api/fleet", get(fleet))
        .route("/api/config", get(config))
        .route("/api/drains", get(drains))
        .merge(dashboard::data(&admin.live))
        .merge(changes)
        .merge(questions)
        .fallback(not_found);
    if let Some(token) = token {
        guarded = guarded.layer(from_fn_with_state(token, require));
    }
    // An orchestrator's probes carry no token, and neither answer says more than a word.
    let open = axum::Router::new().route("/health", get("alive\n")).route("/ready", get(ready));
    let mut all = open.merge(dashboard::page()).merge(guarded).method_not_allowed_fallback(method_not_allowed);
    if !named {
        all = all.layer(from_fn(own_host));
    }
    all.layer(map_response(with_headers)).with_state(admin)
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

/// On a thread of its own: to read a prompt of a MiB takes about a millisecond.
async fn explain(State(admin): State<Admin>, body: Bytes) -> Response {
    let answer = tokio::task::spawn_blocking(move || (admin.explain)(&body)).await;
    match answer.unwrap_or(Err(Refusal::Internal)) {
        Ok(explanation) => Json(explanation).into_response(),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            error(status, refusal.kind(), &refusal.to_string())
        }
    }
}

async fn drains(State(admin): State<Admin>) -> Json<Vec<DrainByHand>> {
    Json((admin.drains)())
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

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
