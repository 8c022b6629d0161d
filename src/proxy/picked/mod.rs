//! A request that another data plane sends: this process admits it, places it on a backend, and is shown the answer as it passes.
//! It is read, admitted and placed by the code that serves the proxy's own requests, and counted by the same record. It must never
//! send anything to a backend.
//!
//! Hot path: as the proxy's until the attempt is sent, and a decision more for each fallback.

mod deaths;
mod watched;

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body;

pub(crate) use deaths::Deaths;
pub(crate) use watched::{AnswerForm, Seen, WatchedAnswer};

use super::attempt::{Patience, place};
use super::body::AnswerBody;
use super::forwarded::Peer;
use super::record::Record;
use super::request::work::{Work, lane};
use super::shared::Shared;
use super::{Admitted, Proxy, admit, headers, probe, route};
use crate::upstream::Pieces;
use forebay_core::error::{Failure, Refusal};
use forebay_core::units::BackendId;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::{Backend, Dispatched};

/// The name by which a request takes its turn in the wait room, as a gateway gives it.
const FAIRNESS: HeaderName = HeaderName::from_static("x-gateway-inference-fairness-id");
/// The model's name at the backend, where it is not the one that the client wrote.
const MODEL_REWRITE: HeaderName = HeaderName::from_static("x-gateway-model-name-rewrite");
/// The headers of a request that the sender has to change where this process changed them.
const TOLD: [HeaderName; 4] =
    [AUTHORIZATION, headers::API_KEY, HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// A gateway's question.
pub(crate) struct GatewayQuestion<'a, B> {
    /// The gateway's end of the connection, and whether it is encrypted.
    pub(crate) gateway: (Option<SocketAddr>, bool),
    pub(crate) head: &'a Parts,
    pub(crate) body: B,
    /// The addresses that the choice is limited to.
    pub(crate) subset: Option<Vec<String>>,
    /// The most further addresses.
    pub(crate) fallbacks: usize,
}

/// The answer to it.
pub(crate) enum Answer {
    /// The request has its place.
    Picked(Box<Picked>),
    /// The client gets this instead.
    Refused(Response<AnswerBody>),
}

/// A request that has its place.
pub(crate) struct Picked {
    /// Addresses in the order in which to try them.
    pub(crate) addresses: Vec<String>,
    /// Headers of the request to set.
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the request to remove.
    pub(crate) remove: Vec<HeaderName>,
    /// The body as it is sent on.
    pub(crate) body: Pieces,
    pub(crate) watched: WatchedAnswer,
}

impl Proxy {
    /// Admits a request and places it on a backend.
    pub(crate) async fn pick<B>(&self, question: GatewayQuestion<'_, B>, deaths: &Arc<Deaths>) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Send,
    {
        let shared = &self.0;
        let GatewayQuestion { gateway: (address, secure), head, body, subset, fallbacks } = question;
        match route::find(head.method.as_str(), &route::plain(head.uri.path())) {
            Ok(route::Route::Health) => return Answer::Refused(probe(Ok(()))),
            Ok(route::Route::Ready) => return Answer::Refused(probe((shared.ready)())),
            _ => {}
        }
        let mut record = Record::new(shared, Arc::new(Peer::new(address, secure)), head);
        record.picked();
        let settings = Arc::clone(record.settings());
        // Admission changes the headers into those that are sent on.
        let mut sent = head.clone();
        let mut work = match admit(shared, &settings, &mut record, &mut sent, body).await {
            Ok(Admitted::Work(work)) => work,
            Ok(Admitted::Answer(json)) => return Answer::Refused(record.local(StatusCode::OK, json)),
            Ok(Admitted::Preflight(preflight)) => {
                let mut response = record.local(StatusCode::NO_CONTENT, String::new());
                preflight.answer(&mut response);
                return Answer::Refused(response);
            }
            // What follows a handshake is between the client and the backend: there is no answer to watch.
            Ok(Admitted::Tunnel(_)) => {
                return Answer::Refused(refuse(&mut record, &Refusal::BadRequest(NO_TUNNEL.to_owned())));
            }
            Err(refusal) => return Answer::Refused(refuse(&mut record, &refusal)),
        };
        if let Some(id) = head.headers.get(&FAIRNESS).and_then(|value| value.to_str().ok()) {
            work.lane = lane(record.client_key.as_deref(), Some(id));
        }
        match placed(shared, &mut work, &mut record, subset.as_deref(), deaths).await {
            Ok((dispatched, tried)) => {
                let told = told(shared, (work, record), (dispatched, tried), &head.headers, (fallbacks, deaths));
                Answer::Picked(Box::new(told))
            }
            Err(refusal) => Answer::Refused(refuse(&mut record, &refusal)),
        }
    }
}

const NO_TUNNEL: &str = "a WebSocket cannot be placed by an endpoint picker; connect to a proxy or to a backend";

/// An answer of our own. A request that is shed gets a 429, as the protocol of endpoint pickers has it.
fn refuse(record: &mut Record, refusal: &Refusal) -> Response<AnswerBody> {
    let mut response = record.refuse(refusal);
    if refusal.is_for_want_of_room() {
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        record.shed();
    }
    response
}

/// A place on a backend that is in the subset and did not die of this request before.
async fn placed(
    shared: &Shared,
    work: &mut Work,
    record: &mut Record,
    subset: Option<&[String]>,
    deaths: &Deaths,
) -> Result<(Dispatched, Vec<BackendId>), Refusal> {
    let clock = &shared.clock;
    let dead = deaths.of(&record.request_id, clock.now());
    if dead.len() >= Deaths::MOST {
        let attempts = u32::try_from(dead.len()).unwrap_or(u32::MAX);
        return Err(work.exhausted(attempts, Failure::Died));
    }
    let mut tried = work.not_serving(clock.now());
    tried.extend(dead);
    if let Some(subset) = subset {
        let outside = |backend: &&Arc<Backend>| !is_in(subset, &backend.url);
        let members = work.pool.members().iter().map(|member| &member.backend);
        tried.extend(members.filter(outside).map(|backend| backend.id));
    }
    let dispatched =
        place(work, record, clock, &mut tried, &mut Patience::default(), &mut fastrand::Rng::new()).await?;
    Ok((dispatched, tried))
}

/// Returns whether a backend is among these addresses. An address without a port stands for every port.
fn is_in(subset: &[String], url: &BackendUrl) -> bool {
    let (address, host) = (address(url), url_host(url));
    subset.iter().any(|one| *one == address || *one == host)
}

/// The host that a gateway reaches a backend at.
fn url_host(url: &BackendUrl) -> String {
    url.found_at().map_or_else(|| url.host().trim_matches(['[', ']']).to_owned(), |ip| ip.to_string())
}

/// The address of a backend as gateways write it: `ip:port`.
pub(crate) fn address(url: &BackendUrl) -> String {
    let host = url_host(url);
    if host.contains(':') { format!("[{host}]:{}", url.port()) } else { format!("{host}:{}", url.port()) }
}

/// The decision as a gateway is told of it.
fn told(
    shared: &Arc<Shared>,
    (work, mut record): (Box<Work>, Record),
    (dispatched, mut tried): (Dispatched, Vec<BackendId>),
    asked: &HeaderMap,
    (fallbacks, deaths): (usize, &Arc<Deaths>),
) -> Picked {
    record.dispatched(&dispatched);
    let mut backends = vec![Arc::clone(dispatched.ticket.backend())];
    let now = shared.clock.now();
    for _ in 0..fallbacks {
        tried.extend(backends.last().map(|backend| backend.id));
        let next = work.pool.preview(&work.facts, &tried, now, &mut fastrand::Rng::new());
        // One list goes to one body: what is renamed for the first would be wrong for another.
        let alike = |backend: &Arc<Backend>| {
            work.renamed_for(backend).is_some() == work.renamed_for(&backends[0]).is_some()
                && backend.key.as_ref().map(|key| key.expose()) == backends[0].key.as_ref().map(|key| key.expose())
        };
        let Some(next) = next.filter(alike) else { break };
        backends.push(next);
    }
    let mut request = work.request_to(&backends[0]);
    record.sending(now, request.headers_mut());
    let (mut set, mut remove) = changes(asked, request.headers());
    set.push((headers::REQUEST_ID, record.request_id.clone()));
    if work.renamed_for(&backends[0]).is_some()
        && let Ok(model) = HeaderValue::try_from(&work.pool.model)
    {
        set.push((MODEL_REWRITE, model));
    }
    let body = std::mem::take(request.body_mut());
    if !body.is_empty() {
        set.push((CONTENT_LENGTH, HeaderValue::from(body.len())));
    }
    if asked.contains_key(CONTENT_ENCODING) && !request.headers().contains_key(CONTENT_ENCODING) {
        remove.push(CONTENT_ENCODING);
    }
    if work.streamed {
        // A compressed stream could not be read.
        remove.push(http::header::ACCEPT_ENCODING);
    }
    let addresses = backends.iter().map(|backend| address(&backend.url)).collect();
    let watched = WatchedAnswer::new(shared, (work, record), dispatched.ticket, backends, Arc::clone(deaths));
    Picked { addresses, set, remove, body, watched }
}

/// The headers that the sender has to set and to remove.
fn changes(asked: &HeaderMap, sent: &HeaderMap) -> (Vec<(HeaderName, HeaderValue)>, Vec<HeaderName>) {
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for name in TOLD {
        match (asked.get(&name), sent.get(&name)) {
            (before, Some(after)) if before != Some(after) => set.push((name, after.clone())),
            (Some(_), None) => remove.push(name),
            _ => {}
        }
    }
    (set, remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_port_and_a_subset_may_leave_it_out() {
        let url = |text: &str| text.parse::<BackendUrl>().unwrap();
        assert_eq!(address(&url("http://10.0.0.1")), "10.0.0.1:80");
        assert_eq!(address(&url("http://[fd00::1]:8000")), "[fd00::1]:8000");
        let found = BackendUrl::found(false, "10.0.0.2:8001".parse().unwrap(), Some(&url("http://vllm:8001")));
        assert_eq!(address(&found), "10.0.0.2:8001");
        let subset = ["10.0.0.2:8001".to_owned(), "10.0.0.9".to_owned()];
        assert!(is_in(&subset, &found));
        assert!(is_in(&subset, &url("http://10.0.0.9:8000")));
        assert!(!is_in(&subset, &url("http://10.0.0.2:8000")));
        assert!(!is_in(&[], &found));
    }

    #[test]
    fn a_sender_is_told_what_changed_and_nothing_else() {
        let mut asked = HeaderMap::new();
        asked.insert(AUTHORIZATION, HeaderValue::from_static("Bearer client"));
        asked.insert("x-other", HeaderValue::from_static("1"));
        let mut sent = HeaderMap::new();
        assert_eq!(changes(&asked, &sent), (vec![], vec![AUTHORIZATION]));
        sent.insert(AUTHORIZATION, HeaderValue::from_static("Bearer backend"));
        let (set, remove) = changes(&asked, &sent);
        assert_eq!((set.len(), remove.len()), (1, 0));
        assert_eq!(set[0].1, "Bearer backend");
        assert_eq!(changes(&sent, &sent), (vec![], vec![]));
    }
}
