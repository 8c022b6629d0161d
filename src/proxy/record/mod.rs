//! What is remembered of a request and told once it is over: metrics, one line of access log. Told from `Drop`, so that an
//! end, an error, a client that left and a panic all count, and each once.
//!
//! Hot path: a gap is one histogram record; nothing is formatted before the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, StatusCode};

use crate::proxy::forwarded::Peer;
use crate::proxy::headers;
use crate::proxy::shared::Shared;
use crate::spans::Trace;
use explanation::{Audience, Explanations};
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal, repeated, says_full};
use forebay_core::routing::facts::ArmIndex;
use forebay_core::routing::split::Session;
use forebay_core::stream::timings::Timings;
use forebay_core::stream::{Api, Usage};
use forebay_core::units::BackendId;
use forebay_fleet::clients::{Allowance, Client};
use forebay_fleet::config::model::Config;
use forebay_fleet::telemetry::metrics::{AbortPhase, BackendMetrics, Outcome};
use forebay_fleet::{Backend, Dispatched, Pool};

mod answers;
mod ended;
mod explanation;
mod limits;
mod logged;
mod picked;
mod traced;

/// The facts that are known of a request so far.
pub(crate) struct Record {
    shared: Arc<Shared>,
    settings: Arc<Config>,
    pub(crate) arrival: Time,
    pub(crate) request_id: HeaderValue,
    /// The other end of its connection.
    pub(crate) peer: Arc<Peer>,
    /// The client's address: the peer's, or the one that a trusted proxy names.
    client: Option<SocketAddr>,
    /// The client by its key, where keys are configured.
    pub(crate) client_key: Option<Arc<Client>>,
    /// Its part of the client's limits, while it is under way.
    allowance: Option<Allowance>,
    method: Method,
    path: String,
    /// The API of its path, as it is counted.
    pub(crate) api: Api,
    pub(crate) model: Option<String>,
    /// Its session, for the access log.
    pub(crate) session: Option<Session>,
    /// The pool and the assigned arm, once known.
    assigned: Option<(Arc<Pool>, ArmIndex)>,
    /// Hash of its session, or a number of its own.
    session_hash: u64,
    backend: Option<Arc<Backend>>,
    predicted: Option<Duration>,
    pub(crate) streamed: bool,
    pub(crate) body_read: Option<Time>,
    pub(crate) sent: Option<Time>,
    first_sent: Option<Time>,
    /// The time since which it waits for a backend with room, if it does.
    waits_since: Option<Time>,
    /// The time for which it has waited for one.
    wait: Duration,
    /// The part of that before the first attempt.
    wait_before_sent: Duration,
    got_head: bool,
    first_token: Option<Time>,
    pub(crate) end: Option<Time>,
    pub(crate) attempts: u32,
    /// Backends that died with the request on them, before the commit.
    deaths: u32,
    status: u16,
    outcome: Option<Outcome>,
    pub(crate) usage: Option<Usage>,
    pub(crate) token_events: u64,
    /// The time for which the sequences of a request with several decoded, all together, and the number of them; zeros where that
    /// cannot be told.
    pub(crate) decode_time: Option<(Duration, u64)>,
    why: Explanations,
    /// Another data plane sends it, and this process only chose the backend.
    picked: bool,
    /// Nobody sees its end.
    partly: bool,
    /// Its trace, where requests are traced.
    trace: Option<Box<Trace>>,
}

impl Record {
    /// A request whose head has just been parsed.
    pub(crate) fn new(shared: &Arc<Shared>, peer: Arc<Peer>, head: &http::request::Parts) -> Record {
        let settings = shared.settings.load_full();
        let client = peer.client(&head.headers, &settings.forwarding.trusted_proxies);
        Record {
            shared: Arc::clone(shared),
            arrival: shared.clock.now(),
            request_id: headers::request_id(&head.headers),
            peer,
            client,
            client_key: None,
            allowance: None,
            method: head.method.clone(),
            path: repeated(head.uri.path()),
            api: Api::Other,
            model: None,
            session: None,
            assigned: None,
            // Until a session is known, chance stands in, so that live figures count each such request for itself.
            session_hash: fastrand::u64(..),
            backend: None,
            predicted: None,
            streamed: false,
            body_read: None,
            sent: None,
            first_sent: None,
            waits_since: None,
            wait: Duration::ZERO,
            wait_before_sent: Duration::ZERO,
            got_head: false,
            first_token: None,
            end: None,
            attempts: 0,
            deaths: 0,
            // What stays if nobody sets another: the client left before there was an answer. The number is nginx's.
            status: 499,
            outcome: None,
            usage: None,
            token_events: 0,
            decode_time: None,
            picked: false,
            partly: false,
            why: Explanations::new(settings.clients.explain, client, &head.headers),
            trace: shared.spans.as_ref().map(|_| Box::new(Trace::begin(&head.headers, &settings.trace))),
            settings,
        }
    }

    /// The settings that were in force when the request came.
    pub(crate) fn settings(&self) -> &Arc<Config> {
        &self.settings
    }

    /// The request has its pool and its arm.
    pub(crate) fn assign(&mut self, pool: &Arc<Pool>, arm: ArmIndex) {
        self.assigned = Some((Arc::clone(pool), arm));
    }

    /// It waits from now on for a backend with room.
    pub(crate) fn waits(&mut self, now: Time) {
        self.waits_since = Some(now);
    }

    /// Its wait is over.
    pub(crate) fn waited(&mut self, now: Time) {
        self.wait += self.waits_since.take().map_or(Duration::ZERO, |since| now.since(since));
        if self.first_sent.is_none() {
            self.wait_before_sent = self.wait;
        }
    }

    /// Returns whether the rows of the decision to come are to be kept.
    pub(crate) fn asks_why(&mut self) -> bool {
        self.why.is_asked(&self.shared.telemetry.decisions, &self.shared.clock)
    }

    /// An attempt has its backend.
    pub(crate) fn dispatched(&mut self, dispatched: &Dispatched) {
        self.attempts += 1;
        let tell = Audience { decisions: &self.shared.telemetry.decisions, clock: &self.shared.clock };
        self.why.decided(dispatched, &self.request_id, self.attempts, tell);
        self.predicted = dispatched.ticket.predicted_ttft();
        self.backend = Some(Arc::clone(dispatched.ticket.backend()));
    }

    /// An attempt failed and is followed by another.
    pub(crate) fn retried(&self, failure: Failure) {
        self.metrics().retry(failure);
    }

    /// The first token came.
    pub(crate) fn first_token(&mut self, now: Time) {
        self.first_token = Some(now);
        // A copy of the pointer, since the trace below is changed while these are in use.
        let metrics = Arc::clone(self.metrics());
        metrics.ttft.record(now.since(self.arrival).as_secs_f64());
        if let Some(sent) = self.sent {
            let measured = now.since(sent);
            metrics.backend_ttft.record(measured.as_secs_f64());
            if let Some(predicted) = self.predicted {
                metrics.predicted(predicted, measured);
            }
            self.why.measured(&self.shared.telemetry.decisions, measured);
        }
        if let Some(trace) = &mut self.trace {
            trace.first_token(now);
        }
    }

    pub(crate) fn has_first_token(&self) -> bool {
        self.first_token.is_some()
    }

    /// A gap between two token events.
    pub(crate) fn gap(&self, gap: Duration) {
        self.metrics().itl.record(gap.as_secs_f64());
    }

    /// The status that the client gets from a backend.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.outcome = Record::outcome_of(self.status);
    }

    /// The head went out before there was an answer.
    pub(crate) fn head_went_early(&mut self) {
        self.status = 200;
    }

    /// A backend's error, told by an event.
    pub(crate) fn answered_late(&mut self, status: StatusCode) {
        self.outcome = Record::outcome_of(status.as_u16());
    }

    /// One of ours, told by an event.
    pub(crate) fn refused_late(&mut self, refusal: &Refusal) {
        self.outcome = Some(Outcome::from(refusal));
    }

    fn outcome_of(status: u16) -> Option<Outcome> {
        match status {
            _ if says_full(status) => Some(Outcome::Failed(Failure::Busy { status, retry_after: None })),
            500.. => Some(Outcome::Failed(Failure::ServerError(status))),
            400.. => Some(Outcome::ClientError),
            _ => None,
        }
    }

    /// An earlier attempt's backend has the last word.
    pub(crate) fn answered_by(&mut self, backend: &Arc<Backend>) {
        self.backend = Some(Arc::clone(backend));
    }

    /// The stream said that the request was at fault.
    pub(crate) fn client_error(&mut self) {
        self.outcome = Some(Outcome::ClientError);
    }

    /// Returns whether the backend's answer is an error that is passed on.
    pub(crate) fn is_error_answer(&self) -> bool {
        self.outcome.is_some()
    }

    /// The whole answer was passed on.
    pub(crate) fn succeeded(&mut self) {
        self.outcome = Some(Outcome::Success);
    }

    /// The answer was cut.
    pub(crate) fn failed(&mut self, failure: Failure) {
        self.outcome = (failure != Failure::ClientLeft).then_some(Outcome::Failed(failure));
    }

    /// Remembers which backend holds a response.
    pub(crate) fn remember_response(&self, id: &str, backend: BackendId) {
        self.shared.responses.remember(id, backend);
    }

    /// Returns the fingerprint that this backend's latest stream gave.
    pub(crate) fn fingerprint(&self, backend: BackendId) -> Option<Bytes> {
        self.shared.fingerprints.of(backend)
    }

    /// Remembers that.
    pub(crate) fn remember_fingerprint(&self, backend: BackendId, fingerprint: &Bytes) {
        self.shared.fingerprints.remember(backend, fingerprint);
    }

    /// Notes how many backends died of this request, as far as can be told.
    pub(crate) fn saw_deaths(&mut self, deaths: u32) {
        self.deaths = deaths;
    }

    fn metrics(&self) -> &Arc<BackendMetrics> {
        match (&self.backend, &self.assigned) {
            (Some(backend), _) => &backend.metrics,
            (None, Some((pool, _))) => &pool.unrouted,
            (None, None) => &self.shared.telemetry.unrouted,
        }
    }

    fn abort_phase(&self) -> AbortPhase {
        match () {
            () if self.body_read.is_none() => AbortPhase::Body,
            () if self.waits_since.is_some() => AbortPhase::Waiting,
            () if !self.got_head => AbortPhase::BeforeHead,
            () if self.first_token.is_some() => AbortPhase::MidStream,
            () if self.streamed => AbortPhase::BeforeFirstToken,
            () => AbortPhase::Unary,
        }
    }

    fn count(&self, outcome: Outcome, phase: AbortPhase, timings: &Timings) {
        let metrics = self.metrics();
        metrics.request(self.api, outcome);
        if outcome == Outcome::Failed(Failure::ClientLeft) {
            metrics.abort(phase);
        }
        if !self.wait.is_zero() {
            metrics.wait.record(self.wait.as_secs_f64());
        }
        if let Some(usage) = self.usage {
            metrics.prompt_tokens.increment(usage.prompt_tokens);
        }
        if let Some((source, tokens)) = self.tokens() {
            metrics.output_tokens(source, tokens);
        }
        if let Some(first_sent) = self.first_sent {
            // Forebay's own part: from the last byte of the body to the first attempt, without the wait for a place.
            let ours = first_sent.since(self.body_read.unwrap_or(self.arrival)).saturating_sub(self.wait_before_sent);
            self.shared.telemetry.process.overhead.record(ours.as_secs_f64());
        }
        if let Some(read) = timings.body() {
            self.shared.telemetry.process.body_read.record(read.as_secs_f64());
        }
        let ended = self.ended(outcome, timings);
        if let Some(e2e) = ended.e2e {
            metrics.e2e.record(e2e.as_secs_f64());
        }
        if let Some(tpot) = ended.tpot {
            metrics.tpot.record(tpot.as_secs_f64());
        }
        if let Some(met) = ended.slo_met {
            metrics.slo(met);
        }
        self.tell_figures(&ended, timings.end.unwrap_or(self.arrival));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let end = self.end.unwrap_or_else(|| self.shared.clock.now());
        // Neither answered nor refused, and dropped: a panic, or a client that left in a phase that nobody else counts.
        let fallback = if std::thread::panicking() {
            Outcome::from(&Refusal::Internal)
        } else {
            Outcome::Failed(Failure::ClientLeft)
        };
        let outcome = self.outcome.unwrap_or(fallback);
        if outcome == Outcome::Failed(Failure::ClientLeft) {
            self.status = Failure::ClientLeft.status();
        }
        // Asked before the wait is closed, which would look like a later phase.
        let phase = self.abort_phase();
        self.waited(end);
        let timings = self.timings(end);
        self.settle(outcome, end);
        self.count(outcome, phase, &timings);
        if self.shared.access_log.is_on() {
            self.shared.access_log.write(self.access_record(outcome, &timings));
        }
        self.tell_spans(outcome, end);
    }
}
