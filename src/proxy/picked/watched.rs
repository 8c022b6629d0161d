//! The answer to a picked request as it passes: its head, its first token, its end. What that means goes to load, metrics and log,
//! as it does where the proxy relays the answer itself. It must never change what it is shown.
//!
//! Hot path: one parse a chunk; no allocation for a chunk that is one event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::deaths::Deaths;
use super::{address, headers};
use crate::proxy::answer::pace::Pace;
use crate::proxy::answer::relay::{Document, USAGE_BODY_MAX, settle};
use crate::proxy::attempt::{error_of, is_event_stream};
use crate::proxy::body::AnswerBody;
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use crate::proxy::shared::Shared;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::facts::RequestFacts;
use forebay_core::stream::{EventKind, Parser, Segment};
use forebay_fleet::health::alarm::Watch;
use forebay_fleet::{AttemptOutcome, Backend, Ticket};

/// The form of an answer, by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerForm {
    /// A stream of events.
    Events,
    /// A document.
    Document,
    /// An error that is passed on. True if a repetition on another backend makes sense.
    Error(bool),
    /// A backend died of it, which is the second one.
    Fatal,
}

/// The meaning of a piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing yet that proves the engine at work.
    Nothing,
    /// The engine is at work, or was.
    Committed,
    /// The answer failed before its first token.
    Failed(Failure),
}

/// An answer that is watched. Dropped before its end, it is one whose client left.
pub(crate) struct WatchedAnswer {
    shared: Arc<Shared>,
    work: Box<Work>,
    record: Record,
    /// Its place, until the answer is known to have failed.
    ticket: Option<Ticket>,
    watch: Watch,
    /// The backends that the gateway was told of, in their order.
    backends: Vec<Arc<Backend>>,
    deaths: Arc<Deaths>,
    /// The gateway went to another backend than the first: when the engine got the request is not known.
    moved: bool,
    form: AnswerForm,
    parser: Box<Parser>,
    segments: Vec<Segment>,
    pace: Option<Pace>,
    committed: bool,
    /// A document, as far as it is kept.
    document: Vec<Bytes>,
    document_bytes: usize,
}

impl WatchedAnswer {
    pub(super) fn new(
        shared: &Arc<Shared>,
        (work, record): (Box<Work>, Record),
        ticket: Ticket,
        backends: Vec<Arc<Backend>>,
        deaths: Arc<Deaths>,
    ) -> WatchedAnswer {
        let watch = ticket.watch(shared.clock.now());
        let parser = Box::new(Parser::new(work.api));
        WatchedAnswer {
            shared: Arc::clone(shared),
            work,
            record,
            ticket: Some(ticket),
            watch,
            backends,
            deaths,
            moved: false,
            form: AnswerForm::Document,
            parser,
            segments: Vec::new(),
            pace: None,
            committed: false,
            document: Vec::new(),
            document_bytes: 0,
        }
    }

    /// The request has been handed over: its memory is free.
    pub(crate) fn sent(&mut self) {
        self.work.release();
    }

    /// Returns how long the first token may take, where there is a limit.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.record.settings().stream.first_token_timeout.filter(|_| self.work.streamed)
    }

    /// Waits for what ends the attempt from outside: an engine that hangs, a listener that is gone.
    pub(crate) async fn ended(&mut self) -> Failure {
        self.watch.ended(&self.shared.clock).await
    }

    /// Returns Forebay's own headers for the answer.
    pub(crate) fn mark(&self) -> HeaderMap {
        let mut marks = HeaderMap::new();
        self.record.mark(&mut marks);
        if !self.record.settings().forwarding.own_headers {
            headers::remove_ours(&mut marks);
        }
        marks
    }

    /// The form of the answer, once its head came.
    pub(crate) fn form(&self) -> AnswerForm {
        self.form
    }

    /// The head of the answer. `served`: the backend that gave it, if the gateway says so. `own`: the failure for which the gateway
    /// gave it itself.
    pub(crate) fn head(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        (served, own): (Option<&str>, Option<Failure>),
    ) -> AnswerForm {
        if let Some(served) = served {
            self.served_by(served);
        }
        let now = self.shared.clock.now();
        self.record.head_came(status);
        self.record.answered(status);
        let Some(backend) = self.ticket.as_ref().map(|ticket| Arc::clone(ticket.backend())) else { return self.form };
        if own.is_none() {
            self.watch.heard().note(now);
            backend.alarm.heard(now);
            backend.load.note_heard();
        }
        // What is not found may be what the client named.
        let theirs =
            error_of(status, headers, backend.key.is_some()).filter(|failure| *failure != Failure::Misconfigured(404));
        self.form = match own.or(theirs) {
            Some(failure) => self.failed(failure, now),
            None if status.is_client_error() || status.is_server_error() => AnswerForm::Error(false),
            None if status.is_success() && is_event_stream(headers) => AnswerForm::Events,
            None => AnswerForm::Document,
        };
        self.form
    }

    /// A piece of the answer.
    pub(crate) fn piece(&mut self, piece: &Bytes) -> Seen {
        match self.form {
            AnswerForm::Events => self.events(piece),
            AnswerForm::Document => {
                self.document_bytes += piece.len();
                if self.document_bytes <= USAGE_BODY_MAX {
                    self.document.push(piece.clone());
                } else {
                    self.document.clear();
                }
                Seen::Nothing
            }
            AnswerForm::Error(_) | AnswerForm::Fatal => Seen::Nothing,
        }
    }

    fn events(&mut self, piece: &Bytes) -> Seen {
        let now = self.shared.clock.now();
        self.watch.heard().note(now);
        let mut segments = std::mem::take(&mut self.segments);
        self.parser.push(piece.clone(), &mut segments);
        let seen = self.read(&segments, now);
        segments.clear();
        self.segments = segments;
        seen
    }

    fn read(&mut self, segments: &[Segment], now: Time) -> Seen {
        if !self.committed {
            for segment in segments {
                match segment.kind {
                    EventKind::Error { code, engine_dead } if !self.committed && code >= 500 => {
                        return Seen::Failed(Failure::ErrorEvent { code, engine_dead });
                    }
                    EventKind::Token if !self.record.has_first_token() => {
                        if let Some(ticket) = self.ticket.as_mut().filter(|_| !self.moved) {
                            ticket.first_token(now);
                        }
                        self.record.first_token(now);
                    }
                    _ => {}
                }
                self.committed |= segment.kind.commits() || matches!(segment.kind, EventKind::Error { .. });
            }
            if !self.committed {
                return Seen::Nothing;
            }
            self.watch.may_move(false);
            self.pace = Some(Pace::new(segments, now, &self.parser, self.work.facts.engine_sequences()));
            return Seen::Committed;
        }
        if !self.record.has_first_token() && segments.iter().any(|segment| segment.kind == EventKind::Token) {
            self.record.first_token(now);
        }
        if let (Some(pace), Some(ticket)) = (&mut self.pace, &mut self.ticket) {
            // Whether the client reads is the gateway's to know.
            pace.observe((&self.parser, segments), now, false, ticket, &mut self.record);
        }
        Seen::Committed
    }

    /// The body is over. Before the commit that is a failure, unless the last event only lacked its blank line.
    pub(crate) fn over(&mut self) -> Seen {
        if self.form != AnswerForm::Events || self.committed {
            return Seen::Committed;
        }
        match self.parser.finish() {
            None => Seen::Failed(Failure::Died),
            Some(tail) => match self.read(&[tail], self.shared.clock.now()) {
                Seen::Nothing => Seen::Failed(Failure::Died),
                seen => seen,
            },
        }
    }

    /// The whole answer has passed.
    pub(crate) fn finish(mut self) {
        let now = self.shared.clock.now();
        self.record.end = Some(now);
        let outcome = if self.form == AnswerForm::Events { self.end_of_events() } else { Ok(()) };
        let Some(ticket) = self.ticket.take() else { return };
        if self.form == AnswerForm::Document && self.document_bytes <= USAGE_BODY_MAX {
            Document::read(self.work.api, &self.document.concat()).note(&ticket, &mut self.record);
        }
        settle(ticket, &mut self.record, outcome, now);
    }

    fn end_of_events(&mut self) -> Result<(), Failure> {
        // An event may lack the blank line that ends it.
        if let Some(tail) = self.parser.finish() {
            self.read(&[tail], self.shared.clock.now());
        }
        self.record.decode_time = self.pace.as_ref().and_then(Pace::decode_time);
        self.record.usage = self.parser.usage();
        self.record.token_events = self.parser.token_events();
        match self.parser.failed() {
            Some(error) if error.code >= 500 => {
                Err(Failure::ErrorEvent { code: error.code, engine_dead: error.engine_dead })
            }
            Some(_) => {
                self.record.client_error();
                Ok(())
            }
            None if self.parser.ended() => Ok(()),
            None => Err(Failure::Truncated),
        }
    }

    /// Nobody watches the rest of the answer, which goes on.
    pub(crate) fn leave(mut self) {
        let now = self.shared.clock.now();
        self.record.end = Some(now);
        let Some(ticket) = self.ticket.take() else { return };
        // vLLM sends the head of a document with its body, so that the engine has done its work.
        if self.form != AnswerForm::Events && self.record.has_head() {
            return settle(ticket, &mut self.record, Ok(()), now);
        }
        self.record.left_early();
        self.record.succeeded();
        ticket.leave(now);
    }

    /// The answer is given up after its first token.
    pub(crate) fn cut(mut self, failure: Failure) {
        let now = self.shared.clock.now();
        self.record.usage = self.parser.usage();
        self.record.token_events = self.parser.token_events();
        if let Some(ticket) = self.ticket.take() {
            settle(ticket, &mut self.record, Err(failure), now);
        }
    }

    /// The answer failed before its first token: what the client gets instead.
    pub(crate) fn refuse(mut self, failure: Failure) -> Response<AnswerBody> {
        let now = self.shared.clock.now();
        self.record.end = Some(now);
        let is_last = self.form == AnswerForm::Fatal || (failure.is_death() && self.died(now));
        if !failure.is_death() {
            self.blame(failure, now);
        }
        // A request that has used up its time is not repeated either.
        if is_last || failure.status() == StatusCode::GATEWAY_TIMEOUT {
            let failure = if is_last { Failure::Died } else { failure };
            return self.record.refuse(&self.work.exhausted(self.record.attempts, failure));
        }
        let refusal = Refusal::FailedEarly { model: self.work.pool.model.clone(), failure };
        let mut response = self.record.refuse(&refusal);
        response.headers_mut().insert(headers::SHOULD_RETRY, HeaderValue::from_static("true"));
        response
    }

    /// The backend died of the request. Returns whether it was the last that may.
    fn died(&mut self, now: Time) -> bool {
        let Some(ticket) = &self.ticket else { return false };
        let count = self.deaths.note(&self.record.request_id, ticket.backend().id, now);
        self.record.saw_deaths(u32::try_from(count).unwrap_or(u32::MAX));
        self.blame(Failure::Died, now);
        count >= Deaths::MOST
    }

    /// The backend failed before it answered.
    fn failed(&mut self, failure: Failure, now: Time) -> AnswerForm {
        if !failure.is_death() {
            self.blame(failure, now);
            return AnswerForm::Error(true);
        }
        if self.died(now) { AnswerForm::Fatal } else { AnswerForm::Error(true) }
    }

    /// Tells load and health of a failure before the first token. One that may be the request's doing blames nobody: no other backend
    /// of this question can show whose it was.
    fn blame(&mut self, failure: Failure, now: Time) {
        let outcome = match failure.may_be_the_requests() {
            Some(_) => AttemptOutcome::Neutral,
            None => AttemptOutcome::Failed(failure),
        };
        if let Some(ticket) = self.ticket.take() {
            ticket.finish(outcome, now);
            self.record.attempt_over(Some(failure), now);
        }
    }

    /// The gateway went to another backend of its list.
    fn served_by(&mut self, served: &str) {
        let Some(backend) = self.ticket.as_ref().map(|ticket| Arc::clone(ticket.backend())) else { return };
        if address(&backend.url) == served {
            return;
        }
        let Some(other) = self.backends.iter().find(|backend| address(&backend.url) == served) else { return };
        let now = self.shared.clock.now();
        let facts = RequestFacts { pinned: Some(other.id), ..self.work.facts.clone() };
        let tried = [backend.id];
        let Ok(dispatched) = self.work.pool.dispatch(&facts, &tried, now, &mut fastrand::Rng::new()) else { return };
        let sent = self.record.sent;
        // Gateways walk the list where a connection fails and where a backend sheds, and do not say which it was. So this blames nobody:
        // a pause is right for both, and that nobody listens is for the probes to find.
        self.record.retried(Failure::Unreachable);
        self.record.dispatched(&dispatched);
        self.record.sent = sent;
        self.watch = dispatched.ticket.watch(now);
        if let Some(first) = self.ticket.replace(dispatched.ticket) {
            first.finish(AttemptOutcome::Failed(Failure::Unreachable), now);
        }
        self.moved = true;
    }
}
