//! What the admin API changes: the drain of a backend. A page in an operator's browser must not be able to do it, though the
//! browser reaches loopback: a change asks for a content type that no page can send to another site without the other site's word
//! (there is none here), for an origin that is this listener's own, and, where no token guards it, for a host that is an
//! address, since a name could be the page's own, pointed here (DNS rebinding).

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::json;

use super::Admin;
use super::host::{host_of, is_address};
use super::routes::error;

/// The body of a drain request: who drains, and why. All of it is optional.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Words {
    by: Option<String>,
    reason: Option<String>,
}

impl Words {
    fn read(body: &[u8]) -> Result<Words, Box<Response>> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Words::default());
        }
        serde_json::from_slice(body).map_err(|wrong| {
            let words = format!("the body may be {{\"by\": \"who\", \"reason\": \"why\"}}: {wrong}");
            Box::new(error(StatusCode::BAD_REQUEST, "forebay_bad_request", &words))
        })
    }

    /// Returns the reason for the drain, as it is shown.
    fn sentence(&self) -> String {
        let by = self.by.as_deref().map_or_else(String::new, |by| format!(" by {by}"));
        let why = self.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("drained through the admin API{by}{why}")
    }
}

pub(super) async fn drain(State(admin): State<Admin>, Path(name): Path<String>, body: Bytes) -> Response {
    match Words::read(&body) {
        Ok(words) => change(&admin, &name, Some(&words.sentence())),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn undrain(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    change(&admin, &name, None)
}

fn change(admin: &Admin, name: &str, who: Option<&str>) -> Response {
    let found = (admin.drain)(name, who);
    if found.is_empty() {
        let words = "no backend goes by this name; use an id such as b0, or host:port, as /api/fleet shows them";
        return error(StatusCode::NOT_FOUND, "forebay_unknown_backend", words);
    }
    tracing::info!(backend = name, who, "drain changed through the admin API");
    let ids: Vec<String> = found.iter().map(ToString::to_string).collect();
    axum::Json(json!({"backends": ids, "drained": who.is_some()})).into_response()
}

/// Lets through what no page of another site can have sent. `named`: a host may be a name, since a token guards the rest.
pub(super) async fn no_page(State(named): State<bool>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), request.uri(), named) {
        None => next.run(request).await,
        Some((status, words)) => error(status, "forebay_cross_site", words),
    }
}

fn refusal(headers: &HeaderMap, uri: &Uri, named: bool) -> Option<(StatusCode, &'static str)> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = text(header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).map(str::trim);
    // A page in a browser can post forms and plain text anywhere without being asked. JSON it cannot.
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Some((
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send `content-type: application/json` with what changes something",
        ));
    }
    let host = host_of(headers, uri);
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
    // Browsers say where a request comes from; other clients send no such header.
    if headers.contains_key(header::ORIGIN) && !text(header::ORIGIN).is_some_and(own) {
        return Some((StatusCode::FORBIDDEN, "a page of another origin may change nothing here"));
    }
    // A name may be made to point at this machine by whoever owns it. An address cannot.
    if !named && !is_address(host) {
        let words = "without a token a change is taken only under an address such as 127.0.0.1, or localhost";
        return Some((StatusCode::FORBIDDEN, words));
    }
    None
}
