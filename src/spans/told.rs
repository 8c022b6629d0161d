//! What is known of a traced request: its trace and its attempts while it is under way, and all that its spans say once it is over.
//!
//! Hot path: an attempt is one push; nothing is formatted.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method};

use super::context::{Caller, Context, TRACESTATE, new_span};
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::stream::{Api, Usage};
use forebay_fleet::config::model::{Trace as Settings, TracedErrors};
use forebay_fleet::telemetry::metrics::Outcome;
use forebay_fleet::{Backend, Pool};

/// The trace of a request under way.
#[derive(Debug)]
pub struct Trace {
    pub(super) context: Context,
    /// The state that other tracing systems keep, as the caller sent it.
    pub(super) state: Option<HeaderValue>,
    /// The span of the request.
    pub(super) server: u64,
    /// The span over its attempts.
    pub(super) client: u64,
    pub(super) attempts: Vec<Attempt>,
}

/// One attempt: a request that was sent to a backend.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) span: u64,
    pub(super) backend: Arc<Backend>,
    pub(super) predicted: Option<Duration>,
    pub(super) sent: Time,
    pub(super) status: Option<u16>,
    pub(super) first_token: Option<Time>,
    /// The moment at which it was over, where that is not the end of the request.
    pub(super) over: Option<Time>,
    /// The reason why it failed.
    pub(super) failure: Option<Failure>,
}

impl Trace {
    /// The trace of a request that has just come, as its head and the settings say.
    #[must_use]
    pub fn begin(head: &HeaderMap, settings: &Settings) -> Trace {
        let caller = Caller::of(head);
        // The state belongs to its trace: without a valid `traceparent` it must not be handed on (W3C Trace Context).
        let state = caller.and_then(|_| state_of(head));
        let context = Context::new(caller, settings.sample);
        Trace { context, state, server: new_span(), client: new_span(), attempts: Vec::new() }
    }

    /// Notes that an attempt is sent now, and names it in the headers that go to the backend.
    pub fn sending(
        &mut self,
        (backend, predicted): (Arc<Backend>, Option<Duration>),
        sent: Time,
        headers: &mut HeaderMap,
    ) {
        let span = new_span();
        self.context.write(span, headers);
        let (status, first_token, over, failure) = (None, None, None, None);
        self.attempts.push(Attempt { span, backend, predicted, sent, status, first_token, over, failure });
    }

    /// Notes that the head of its answer came.
    pub fn head_came(&mut self, status: u16) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.status = Some(status);
        }
    }

    /// Notes that its first token came.
    pub fn first_token(&mut self, now: Time) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.first_token = Some(now);
        }
    }

    /// Notes that it is over before the request is, and why if it failed.
    pub fn over(&mut self, failure: Option<Failure>, now: Time) {
        if let Some(attempt) = self.attempts.last_mut() {
            (attempt.over, attempt.failure) = (Some(now), failure);
        }
    }

    /// Returns how many spans a request has that came to a pool, or did not.
    #[must_use]
    pub fn count(&self, routed: bool) -> u64 {
        // The server's span, the client's over all attempts, and one for each of them.
        if routed { 2 + self.attempts.len() as u64 } else { 1 }
    }

    /// Returns whether a request that ended so has spans.
    #[must_use]
    pub fn is_kept(&self, errors: TracedErrors, outcome: Outcome, status: u16) -> bool {
        self.context.is_sampled() || (errors == TracedErrors::Always && is_error(outcome, status))
    }
}

/// The state that other systems keep. It may come in several headers, which are one list (RFC 9110 section 5.3).
fn state_of(head: &HeaderMap) -> Option<HeaderValue> {
    let mut values = head.get_all(TRACESTATE).iter();
    let first = values.next()?;
    if values.next().is_none() {
        return Some(first.clone());
    }
    let all: Vec<&[u8]> = head.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b","[..])).ok()
}

/// Returns whether a request failed, as its server sees it: not by its client's doing.
pub(super) fn is_error(outcome: Outcome, status: u16) -> bool {
    match outcome {
        Outcome::Success | Outcome::ClientError | Outcome::Failed(Failure::ClientLeft) => false,
        Outcome::Failed(_) => true,
        Outcome::Refused(_) => status >= 500,
    }
}

/// A request that is over, as its spans tell it.
#[derive(Debug)]
pub struct Told {
    /// Its trace.
    pub trace: Box<Trace>,
    /// The moment at which its head was parsed.
    pub arrival: Time,
    /// The moment at which its body was read.
    pub body_read: Option<Time>,
    /// The moment of its first token.
    pub first_token: Option<Time>,
    /// The moment of its end.
    pub end: Time,
    /// The identifier by which logs know it.
    pub request_id: HeaderValue,
    /// Its method.
    pub method: Method,
    /// Its route, with names in place of what a client fills in. None where the path is not served.
    pub route: Option<String>,
    /// True if it came over TLS.
    pub secure: bool,
    /// The status of its answer.
    pub status: u16,
    /// The way in which it ended.
    pub outcome: Outcome,
    /// The API of its path.
    pub api: Api,
    /// The model that it names.
    pub model: Option<String>,
    /// True if it asks for a stream.
    pub streamed: bool,
    /// Its pool, once known, and the arm that it is assigned to.
    pub assigned: Option<(Arc<Pool>, Option<Arc<str>>)>,
    /// The time for which it waited for a backend with room.
    pub wait: Duration,
    /// The tokens that it used, as its backend counts them.
    pub usage: Option<Usage>,
}
