//! What the admin API changes: the drain of a backend. A page in an operator's browser must not be able to do it, though the
//! browser reaches loopback. A change is refused if it has the content type of a form, which a page may send anywhere unasked; if a
//! browser says that it comes from a page of another origin (`Origin`, `Sec-Fetch-Site`); and, where no token guards it, if its
//! host is a name, which could be the page's own, pointed here (DNS rebinding). `curl -X POST` sends none of these.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::json;

use super::error::error;
use super::host::{host_of, is_address};
use super::{Admin, NotChanged};
use forebay_fleet::membership::drains::DrainRequest;

/// The longest time that a drain may be asked to last.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The header in which a browser says how the page that asks stands to this address.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORM: &str = r#"the body may be {"by": "who", "reason": "why", "for": "2h"}"#;

/// The body of a drain request: who drains, why, and for how long. All of it is optional.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Words {
    by: Option<String>,
    reason: Option<String>,
    r#for: Option<String>,
}

impl Words {
    fn read(body: &[u8]) -> Result<Words, String> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Words::default());
        }
        serde_json::from_slice(body).map_err(|wrong| format!("{FORM}: {wrong}"))
    }

    /// Returns the drain, with its reason as it is shown.
    fn drain(&self, now: SystemTime) -> Result<DrainRequest, String> {
        let lasts = self.r#for.as_deref().map(duration).transpose()?;
        let by = self.by.as_deref().map_or_else(String::new, |by| format!(" by {by}"));
        // The end stands before the reason, which may be long and is cut.
        let until = lasts
            .and_then(|lasts| now.checked_add(lasts))
            .map_or_else(String::new, |until| format!(" until {}", humantime::format_rfc3339_seconds(until)));
        let why = self.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        Ok(DrainRequest { words: format!("drained through the admin API{by}{until}{why}"), lasts })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(lasts) if !lasts.is_zero() && lasts <= LONGEST => Ok(lasts),
        Ok(_) => Err(format!("`{text}` is not between 1ns and a year; {FORM}")),
        Err(wrong) => Err(format!("`{text}` is no duration ({wrong}); {FORM}")),
    }
}

pub(super) async fn drain(State(admin): State<Admin>, Path(name): Path<String>, body: Bytes) -> Response {
    match Words::read(&body).and_then(|words| words.drain(SystemTime::now())) {
        Ok(drain) => change(&admin, &name, Some(&drain)),
        Err(words) => error(StatusCode::BAD_REQUEST, "forebay_bad_request", &words),
    }
}

pub(super) async fn undrain(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    change(&admin, &name, None)
}

fn change(admin: &Admin, name: &str, drain: Option<&DrainRequest>) -> Response {
    let found = match (admin.drain)(name, drain) {
        Ok(found) => found,
        Err(NotChanged::Unknown) => {
            let words = "no backend goes by this name; use an id such as b0, or host:port, as /api/fleet shows them";
            return error(StatusCode::NOT_FOUND, "forebay_unknown_backend", words);
        }
        Err(NotChanged::HandedOver) => {
            let words = "a new process has taken over; ask again, on a new connection";
            let refusal = error(StatusCode::SERVICE_UNAVAILABLE, "forebay_draining", words);
            return ([(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")], refusal).into_response();
        }
    };
    match drain {
        Some(drain) => tracing::info!(backend = name, words = drain.words, "drained through the admin API"),
        None => tracing::info!(backend = name, "no longer drained through the admin API"),
    }
    let ids: Vec<String> = found.iter().map(ToString::to_string).collect();
    axum::Json(json!({"backends": ids, "drained": drain.is_some()})).into_response()
}
/// Lets through what no page of another site can have sent. `named`: a host may be a name, since a token guards the rest.
pub(super) async fn no_page(State(named): State<bool>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), request.uri(), named) {
        None => next.run(request).await,
        Some((status, words)) => error(status, "forebay_cross_site", words),
    }
}

fn refusal(headers: &HeaderMap, uri: &Uri, named: bool) -> Option<(StatusCode, &'static str)> {
    // A header may come several times, and a page may not hide behind the first.
    let every = |name, fine: &dyn Fn(&str) -> bool| {
        headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(|text| fine(text.trim())))
    };
    // A page in a browser can send forms and plain text anywhere without being asked. Other types it cannot.
    if !every(header::CONTENT_TYPE, &|kind| !is_forms(kind)) {
        let words = "this is the content type of a form, which any page may send; use `content-type: application/json`";
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, words));
    }
    let host = host_of(headers, uri);
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
    // Browsers say where a request comes from; other clients send no such header. `none`: no page, but the operator.
    let from_here = |site: &str| matches!(site, "same-origin" | "none");
    if !every(header::ORIGIN, &own) || !every(SEC_FETCH_SITE, &from_here) {
        return Some((StatusCode::FORBIDDEN, "a page of another origin may change nothing here"));
    }
    // A name may be made to point at this machine by whoever owns it. An address cannot.
    if !named && !is_address(host) {
        let words = "without a token a change is taken only under an address such as 127.0.0.1, or localhost";
        return Some((StatusCode::FORBIDDEN, words));
    }
    None
}

/// Returns whether a page may send this content type to another site without that site's word. A list of several is none of ours.
fn is_forms(kind: &str) -> bool {
    let essence = kind.split([';', ',']).next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/x-www-form-urlencoded" || essence.starts_with("multipart/") || essence.starts_with("text/")
}
