//! Web pages of other origins (CORS). At defaults what backends allow holds for Forebay's own answers too: a page that may use a
//! server may read a refusal. With `[cors]` the list is Forebay's, and what backends say of it ends here.
//!
//! Hot path: nothing for a request without an `origin`; one short lock for an answer to one with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};

use super::body::{AnswerBody, Ours};
use super::headers;
use crate::upstream::{self, Asked, Connection, Pieces, Upstream};
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Refusal;
use forebay_core::rate_limit::{Bucket, PerMinute};
use forebay_fleet::Fleet;
use forebay_fleet::config::model::{Config, Origins};
use forebay_fleet::lock::locked;

/// The time for which it is remembered what backends said of an origin: as long as a browser remembers it.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Origins that are remembered.
const MOST: usize = 256;
/// The longest origin that is: browsers send host names.
const LONGEST: usize = 512;
/// The time that a backend has to say what it allows.
const ASKED: Duration = Duration::from_secs(2);
/// Questions to backends: an answer of ours to an origin that none has been asked about costs one, and strangers may name many.
const QUESTIONS: PerMinute = PerMinute { limit: 300, burst: Some(10) };
/// Our headers that a page may read, where we say what it may.
const EXPOSED: &str = "retry-after, x-request-id, x-forebay-error, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, \
                       x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, \
                       x-ratelimit-reset-tokens";

/// The headers by which a server says what a page may do.
const CORS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// The part of a backend's answer that says what an origin may: its values for the first three of [`CORS`].
type Said = [Option<HeaderValue>; 3];

/// The permissions of web pages, for all requests: what the settings say, and what backends said.
pub(crate) struct Cors {
    settings: Arc<ArcSwap<Config>>,
    fleet: Fleet,
    upstream: Arc<Upstream>,
    clock: Clock,
    allowances: Allowances,
}

/// The answers of backends about origins.
struct Allowances {
    inner: Mutex<Remembered>,
}

struct Remembered {
    said: HashMap<HeaderValue, (Said, Time)>,
    /// Of every origin, where a backend said `*`.
    any: Option<(Said, Time)>,
    questions: Bucket,
}

impl Allowances {
    /// Nothing is known yet.
    fn new(now: Time) -> Allowances {
        let questions = Bucket::full(QUESTIONS, now);
        Allowances { inner: Mutex::new(Remembered { said: HashMap::new(), any: None, questions }) }
    }

    /// Remembers what a backend said of an origin; the latest counts.
    fn learn(&self, origin: &HeaderValue, answer: &HeaderMap, now: Time) {
        let said: Said = std::array::from_fn(|at| answer.get(&CORS[at]).cloned());
        let mut inner = locked(&self.inner);
        // One entry for all origins: a page cannot fill the table of a server that allows everybody.
        if said[0].as_ref().is_some_and(|allowed| allowed == "*") {
            inner.any = Some((said, now + REMEMBERED));
            inner.said.remove(origin);
            return;
        }
        if origin.len() > LONGEST {
            return;
        }
        if inner.said.len() >= MOST && !inner.said.contains_key(origin) {
            inner.said.retain(|_, (_, until)| *until > now);
            if inner.said.len() >= MOST {
                // Whoever names so many origins has no use for them.
                inner.said.clear();
            }
        }
        inner.said.insert(origin.clone(), (said, now + REMEMBERED));
    }

    /// Returns what backends said of an origin; `None` where none was asked of late.
    fn known(&self, origin: &HeaderValue, now: Time) -> Option<Said> {
        let inner = locked(&self.inner);
        let fresh = |entry: &&(Said, Time)| entry.1 > now;
        inner.said.get(origin).filter(fresh).or(inner.any.as_ref().filter(fresh)).map(|(said, _)| said.clone())
    }

    fn may_ask(&self, now: Time) -> bool {
        // Each unknown origin costs a backend a request, and an origin is a header that anybody may make up.
        let questions = &mut locked(&self.inner).questions;
        let may = questions.wait_for(1.0, now).is_none();
        if may {
            questions.take(1.0, now);
        }
        may
    }
}

/// Returns whether a request asks what a page may send.
fn is_preflight(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Decides on an OPTIONS to a path that takes the methods `allowed`: `None` where it goes to a backend, else our own answer.
pub(super) fn preflight(
    settings: &Config,
    head: &http::request::Parts,
    allowed: &'static str,
) -> Option<Result<Preflight, Refusal>> {
    let origins = &settings.cors.origins;
    if *origins == Origins::Backend {
        return None;
    }
    let refused = || Refusal::MethodNotAllowed {
        method: Method::OPTIONS.to_string(),
        path: forebay_core::error::repeated(head.uri.path()),
        allowed,
    };
    if *origins == Origins::Off || !is_preflight(&head.headers) {
        return Some(Err(refused()));
    }
    let origin = head.headers.get(ORIGIN).map(HeaderValue::as_bytes).unwrap_or_default();
    if !origins.lists(origin) {
        let origin = forebay_core::error::repeated(&String::from_utf8_lossy(origin));
        return Some(Err(Refusal::OriginNotAllowed(origin)));
    }
    let headers = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    Some(Ok(Preflight { allowed, headers }))
}

/// A page's question that is answered here.
pub(super) struct Preflight {
    allowed: &'static str,
    headers: Option<HeaderValue>,
}

impl Preflight {
    /// Puts the answer on a response; who may is added to every answer, by [`Cors::finish`].
    pub(super) fn answer(self, response: &mut Response<AnswerBody>) {
        *response.status_mut() = StatusCode::NO_CONTENT;
        let answer = response.headers_mut();
        answer.remove(http::header::CONTENT_TYPE);
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(self.allowed));
        if let Some(headers) = self.headers {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers);
        }
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(REMEMBERED.as_secs()));
    }
}

impl Cors {
    /// Makes one that was told nothing of any origin yet. `settings` are those in force.
    pub(crate) fn new(settings: Arc<ArcSwap<Config>>, fleet: Fleet, upstream: Arc<Upstream>, clock: Clock) -> Cors {
        let allowances = Allowances::new(clock.now());
        Cors { settings, fleet, upstream, clock, allowances }
    }

    /// Says on an answer to a page of `origin` whether it may read it.
    pub(super) async fn finish(&self, origin: &HeaderValue, response: &mut Response<AnswerBody>) {
        let settings = self.settings.load_full();
        let is_ours = response.extensions_mut().remove::<Ours>().is_some();
        match &settings.cors.origins {
            Origins::Backend if is_ours => {
                let said = match self.allowances.known(origin, self.clock.now()) {
                    Some(said) => Some(said),
                    None => self.ask(origin).await,
                };
                put(response.headers_mut(), said.unwrap_or_default());
            }
            Origins::Backend => self.allowances.learn(origin, response.headers(), self.clock.now()),
            origins => {
                // Of a preflight the last three are Forebay's own. Of any other answer all six were the backend's.
                let is_preflight = is_ours && response.status() == StatusCode::NO_CONTENT;
                for name in CORS.iter().take(if is_preflight { 3 } else { CORS.len() }) {
                    response.headers_mut().remove(name);
                }
                if origins.lists(origin.as_bytes()) {
                    put(response.headers_mut(), [Some(origin.clone()), None, Some(HeaderValue::from_static(EXPOSED))]);
                }
            }
        }
    }

    /// Asks a backend what it allows an origin: a page's first request may be one that we answer, and that it sends without asking.
    async fn ask(&self, origin: &HeaderValue) -> Option<Said> {
        if origin.len() > LONGEST || !self.allowances.may_ask(self.clock.now()) {
            return None;
        }
        let snapshot = self.fleet.snapshot();
        let mut members = snapshot.pools.iter().flat_map(|pool| pool.members());
        let backend = &members.find(|member| member.state.is_usable())?.backend;
        let mut request = Request::new(Pieces::default());
        *request.method_mut() = Method::OPTIONS;
        *request.uri_mut() = upstream::target(&backend.url, &PathAndQuery::from_static("/v1/models"));
        let of = request.headers_mut();
        of.insert(HOST, backend.url.host_header().clone());
        of.insert(ORIGIN, origin.clone());
        of.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"));
        if let Some(key) = &backend.key {
            headers::authorize(of, key.expose());
        }
        let asked =
            tokio::time::timeout(ASKED, self.upstream.send(backend, (Connection::Fresh, Asked::Document), request));
        let answer = asked.await.ok()?.ok()?;
        let now = self.clock.now();
        self.allowances.learn(origin, answer.headers(), now);
        self.allowances.known(origin, now)
    }
}

fn put(answer: &mut HeaderMap, said: Said) {
    for (name, value) in CORS.into_iter().zip(said) {
        if let Some(value) = value {
            answer.insert(name, value);
        }
    }
    // A cache in between would hand one origin's permission to another.
    answer.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(allowed: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(allowed) = allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(allowed));
        }
        headers
    }

    #[test]
    fn what_a_backend_said_of_an_origin_is_remembered_for_ten_minutes() {
        let allowances = Allowances::new(Time::ZERO);
        let origin = HeaderValue::from_static("http://a");
        assert_eq!(allowances.known(&origin, Time::ZERO), None);
        allowances.learn(&origin, &answer(Some("http://a")), Time::ZERO);
        assert_eq!(allowances.known(&origin, Time::ZERO).unwrap()[0], Some(origin.clone()));
        assert_eq!(allowances.known(&HeaderValue::from_static("http://b"), Time::ZERO), None);
        assert_eq!(allowances.known(&origin, Time::ZERO + REMEMBERED), None);
        allowances.learn(&origin, &answer(None), Time::ZERO);
        assert_eq!(allowances.known(&origin, Time::ZERO), Some([None, None, None]), "it may no longer");
        allowances.learn(&origin, &answer(Some("*")), Time::ZERO);
        assert_eq!(
            allowances.known(&HeaderValue::from_static("http://b"), Time::ZERO).unwrap()[0].as_ref().unwrap(),
            "*"
        );
    }

    #[test]
    fn origins_that_strangers_name_are_bounded_and_so_are_the_questions_they_cause() {
        let allowances = Allowances::new(Time::ZERO);
        for n in 0..10 * MOST {
            let origin = HeaderValue::try_from(format!("http://a{n}")).unwrap();
            allowances.learn(&origin, &answer(Some("http://a")), Time::ZERO);
        }
        assert!(allowances.inner.lock().unwrap().said.len() <= MOST);
        assert_eq!((0..100).filter(|_| allowances.may_ask(Time::ZERO)).count(), 10);
    }
}
