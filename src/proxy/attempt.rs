//! Attempts: pick a backend, send, and hold the answer back until it is proved that the engine works. Until that commit a
//! failure moves the request to another backend, as `routing::retry` says; after it, never.
//!
//! The future of [`run`] is dropped when the client leaves: the ticket is given back and the upstream connection closed by
//! that alone, in every state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::response::Parts;
use http::{Response, StatusCode};
use http_body_util::BodyExt;

use super::exchange::{Committed, Exchange};
use super::hold::hold;
use super::relay::Events;
use super::wait::{Patience, place};
use crate::upstream::{AnswerBody, Connection};
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::retry::{Attempts, Ending, Stage, Verdict, is_answer, verdict};
use forebay_fleet::health::alarm::{Heard, Watch};
use forebay_fleet::{AttemptOutcome, Backend, Suspicion, Ticket};

/// An error answer up to this size is kept, in case it turns out to be the last word.
const ERROR_ANSWER_MAX: usize = 256 << 10;
/// How long an error answer may take to arrive whole.
const ERROR_ANSWER_TIME: Duration = Duration::from_secs(5);

/// How the attempts of a request end.
pub(super) enum Attempted {
    /// A backend's answer, committed; its body is to be relayed.
    Committed(Committed),
    /// The last real answer of a backend, an error.
    LastAnswer(RealAnswer),
    /// No backend answered: one of ours.
    Refused(Refusal),
}

/// How a committed answer is relayed.
pub(super) enum Form {
    Events(Events),
    Unary,
}

/// An error answer of a backend, whole.
pub(super) struct RealAnswer {
    pub(super) backend: Arc<Backend>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// As it came, where it was an event.
    pub(super) event: Option<Bytes>,
}

/// An attempt that did not commit.
pub(super) enum Uncommitted {
    /// It failed; a real answer may be the last word.
    Failed(Failure, Option<RealAnswer>),
    /// The answer is the client's, though it is an error.
    Theirs(RealAnswer),
}

impl From<Failure> for Uncommitted {
    fn from(failure: Failure) -> Uncommitted {
        Uncommitted::Failed(failure, None)
    }
}

/// The answer of an attempt that did: the head, the body, and how to relay it.
type Answer = (Parts, AnswerBody, Form);

/// Tries backends until one commits or there is no sense in going on. `early`: the head has gone out.
pub(super) async fn run(exchange: &mut Exchange, early: &AtomicBool) -> Attempted {
    let mut seen = Attempts::new(exchange.settings.retry.attempts);
    let mut tried = exchange.work.not_serving();
    let (mut last_failure, mut last_answer) = (None, None);
    // The same server error from two backends is the request's doing: then neither is to blame.
    let mut suspicion: Option<Suspicion> = None;
    let (mut rng, mut patience) = (fastrand::Rng::new(), Patience::default());
    loop {
        let dispatched = match place(exchange, &mut tried, &mut patience, &mut rng).await {
            Ok(dispatched) => dispatched,
            Err(refusal) if last_failure.is_none() => return Attempted::Refused(refusal),
            // Another attempt had nowhere to go: no reason to give up what a backend said, and one to try again later.
            Err(refusal) if last_answer.is_none() && refusal.is_for_want_of_room() => {
                return Attempted::Refused(refusal);
            }
            Err(_) => {
                // Nobody else could be asked whose doing it is. To lose the last backend that is in would help no one.
                if seen.failed() == 1 {
                    suspicion.take().into_iter().for_each(Suspicion::withdraw);
                }
                return over(exchange, &seen, stage(early), last_answer);
            }
        };
        if let Some(failure) = last_failure {
            if !exchange.may_retry() {
                return over(exchange, &seen, stage(early), last_answer);
            }
            exchange.record.retried(failure);
        }
        exchange.record.dispatched(&dispatched);
        let mut ticket = dispatched.ticket;
        let backend = ticket.backend().id;
        let mut watch = ticket.watch(exchange.shared.clock.now());
        let (failure, answer) = match attempt(exchange, &mut ticket, &mut watch, &mut seen).await {
            Ok((head, body, form)) => return Attempted::Committed(Committed { ticket, watch, head, body, form }),
            Err(Uncommitted::Theirs(answer)) => {
                ticket.finish(AttemptOutcome::Neutral, exchange.shared.clock.now());
                return Attempted::LastAnswer(answer);
            }
            Err(Uncommitted::Failed(failure, answer)) => (failure, answer),
        };
        let verdict = verdict(failure, stage(early), &seen);
        if seen.blames(failure) {
            suspicion = exchange.failed(ticket, failure).or(suspicion);
        } else {
            ticket.finish(AttemptOutcome::Neutral, exchange.shared.clock.now());
            suspicion.take().into_iter().for_each(Suspicion::withdraw);
        }
        seen.note(failure);
        tried.push(backend);
        // What is our own fault (misconfigured) is never the client's to read.
        if is_answer(failure) && answer.is_some() {
            last_answer = answer;
        }
        if verdict != Verdict::Next {
            return over(exchange, &seen, stage(early), last_answer);
        }
        last_failure = Some(failure);
    }
}

fn stage(early: &AtomicBool) -> Stage {
    if early.load(Ordering::Relaxed) { Stage::HeadSentEarly } else { Stage::NothingSent }
}

/// Whose answer ends a request whose attempts are over.
fn over(exchange: &Exchange, seen: &Attempts, stage: Stage, last_answer: Option<RealAnswer>) -> Attempted {
    match (seen.ending(stage), last_answer) {
        (Ending::Theirs, Some(answer)) => Attempted::LastAnswer(answer),
        (Ending::Theirs, None) => Attempted::Refused(exchange.exhausted(seen.failed(), Failure::Died)),
        (Ending::Ours(failure), _) => Attempted::Refused(exchange.exhausted(seen.failed(), failure)),
    }
}

/// One attempt on the ticket's backend, with the free retry on a fresh connection.
async fn attempt(
    exchange: &mut Exchange,
    ticket: &mut Ticket,
    watch: &mut Watch,
    seen: &mut Attempts,
) -> Result<Answer, Uncommitted> {
    let (clock, heard) = (exchange.shared.clock.clone(), watch.heard());
    let limit = exchange.settings.stream.first_token_timeout.filter(|_| exchange.work.streamed);
    let mut connection = Connection::Pooled;
    loop {
        let trying = try_once(exchange, ticket, connection, &heard);
        let trying = async {
            match limit {
                None => trying.await,
                Some(limit) => tokio::time::timeout(limit, trying).await.unwrap_or(Err(Failure::FirstToken.into())),
            }
        };
        let result = tokio::select! {
            biased;
            result = trying => result,
            failure = watch.ended(&clock) => Err(failure.into()),
        };
        match result {
            Err(Uncommitted::Failed(Failure::Reused, _))
                if verdict(Failure::Reused, Stage::NothingSent, seen) == Verdict::SameFresh =>
            {
                seen.note(Failure::Reused);
                exchange.record.retried(Failure::Reused);
                connection = Connection::Fresh;
            }
            result => return result,
        }
    }
}

async fn try_once(
    exchange: &mut Exchange,
    ticket: &mut Ticket,
    connection: Connection,
    heard: &Heard,
) -> Result<Answer, Uncommitted> {
    let backend = Arc::clone(ticket.backend());
    let request = exchange.work.request_to(&backend);
    exchange.record.sending(exchange.shared.clock.now());
    let response = exchange.shared.upstream.send(backend.id, connection, request).await?;
    exchange.record.got_head = true;
    heard.note(exchange.shared.clock.now());
    let (head, body) = response.into_parts();
    tracing::debug!(backend = %backend.id, status = head.status.as_u16(), "the head of an answer came");
    if head.status.is_success() && is_event_stream(&head.headers) {
        let (events, body) = hold(exchange, ticket, body, heard).await?;
        return Ok((head, body, Form::Events(events)));
    }
    let Some(failure) = error_of(&head, backend.key.is_some()) else { return Ok((head, body, Form::Unary)) };
    let answer = read_answer(&backend, head, body).await;
    match answer {
        Some(answer)
            if failure == Failure::Misconfigured(404) && !exchange.work.is_our_fault(&backend, &answer.body) =>
        {
            Err(Uncommitted::Theirs(answer))
        }
        answer => Err(Uncommitted::Failed(failure, answer)),
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The failure that a status means; `None` where the answer is the client's.
fn error_of(head: &Parts, our_key: bool) -> Option<Failure> {
    match head.status.as_u16() {
        status @ (500 | 502 | 504) => Some(Failure::ServerError(status)),
        status @ (503 | 429) => {
            let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Some(Failure::Busy { status, retry_after: seconds.map(Duration::from_secs) })
        }
        // If it is the model that is not found, and not something that the client named.
        404 => Some(Failure::Misconfigured(404)),
        status @ (401 | 403) if our_key => Some(Failure::Misconfigured(status)),
        _ => None,
    }
}

/// Reads an error answer whole; `None` if it is too large or does not come.
pub(super) async fn read_answer(backend: &Arc<Backend>, head: Parts, mut body: AnswerBody) -> Option<RealAnswer> {
    let mut whole = BytesMut::new();
    let reading = async {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                whole.extend_from_slice(&data);
            }
            if whole.len() > ERROR_ANSWER_MAX {
                return None;
            }
        }
        Some(())
    };
    tokio::time::timeout(ERROR_ANSWER_TIME, reading).await.ok()??;
    let mut headers = head.headers;
    if matches!(head.status.as_u16(), 429 | 503) && !headers.contains_key(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Some(RealAnswer { backend: Arc::clone(backend), status: head.status, headers, body: whole.freeze(), event: None })
}

impl Uncommitted {
    /// An error event that came first: passed on, if it is the last word, as an answer with its own code.
    pub(super) fn event(backend: &Arc<Backend>, failure: Failure, data: Bytes, event: Bytes) -> Uncommitted {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (backend, status) = (Arc::clone(backend), StatusCode::INTERNAL_SERVER_ERROR);
        Uncommitted::Failed(failure, Some(RealAnswer { backend, status, headers, body: data, event: Some(event) }))
    }
}

impl RealAnswer {
    /// As an answer to the client.
    pub(super) fn into_response(self) -> Response<super::body::AnswerBody> {
        let mut response = Response::new(super::body::AnswerBody::whole(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().remove(CONTENT_LENGTH);
        response
    }
}
