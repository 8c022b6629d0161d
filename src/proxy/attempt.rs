//! Attempts: pick a backend, send, and hold the answer back until it is proved that the engine works. Until that commit a
//! failure moves the request to another backend, as `routing::retry` says; after it, never.
//!
//! The future of [`run`] is dropped when the client leaves: the ticket is given back and the upstream connection closed by
//! that alone, in every state.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::response::Parts;
use http::{Response, StatusCode};
use http_body_util::BodyExt;

use super::exchange::Exchange;
use super::hold::hold;
use super::relay::Events;
use crate::error::{Failure, Refusal};
use crate::fleet::Ticket;
use crate::routing::retry::{Attempts, Ending, Stage, Verdict, verdict};
use crate::stream::Api;
use crate::upstream::{AnswerBody, Connection};

/// An error answer up to this size is kept, in case it turns out to be the last word.
const ERROR_ANSWER_MAX: usize = 256 << 10;
/// How long an error answer may take to arrive whole.
const ERROR_ANSWER_TIME: Duration = Duration::from_secs(5);

/// How the attempts of a request end.
pub(super) enum Attempted {
    /// A backend's answer, committed; its body is to be relayed.
    Committed { ticket: Ticket, head: Parts, body: AnswerBody, form: Form },
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
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An attempt that did not commit.
pub(super) struct Failed {
    failure: Failure,
    answer: Option<RealAnswer>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed { failure, answer: None }
    }
}

/// An attempt that did: the head, the body, and how to relay it.
type Committed = (Parts, AnswerBody, Form);

/// Tries backends until one commits or there is no sense in going on.
pub(super) async fn run(exchange: &mut Exchange) -> Attempted {
    let mut seen = Attempts::new(exchange.settings.retry.attempts);
    let mut tried = Vec::new();
    let mut last_answer = None;
    let mut rng = fastrand::Rng::new();
    loop {
        let now = exchange.shared.clock.now();
        let mut ticket = match exchange.work.pool.dispatch(&exchange.work.facts, &tried, now, &mut rng) {
            Ok(dispatched) => {
                exchange.record.dispatched(&dispatched);
                dispatched.ticket
            }
            Err(refusal) if tried.is_empty() => return Attempted::Refused(refusal),
            Err(_) => return over(exchange, &seen, last_answer),
        };
        let backend = ticket.backend().id;
        let failed = match attempt(exchange, &mut ticket, &mut seen).await {
            Ok((head, body, form)) => return Attempted::Committed { ticket, head, body, form },
            Err(failed) => failed,
        };
        let verdict = verdict(failed.failure, Stage::NothingSent, &seen);
        exchange.failed(ticket, failed.failure, seen.blames(failed.failure));
        seen.note(failed.failure);
        tried.push(backend);
        if failed.answer.is_some() {
            last_answer = failed.answer;
        }
        let next = matches!(verdict, Verdict::Next | Verdict::SameFresh);
        if !next || !exchange.may_retry() {
            return over(exchange, &seen, last_answer);
        }
        exchange.record.retried(failed.failure);
    }
}

/// Whose answer ends a request whose attempts are over.
fn over(exchange: &Exchange, seen: &Attempts, last_answer: Option<RealAnswer>) -> Attempted {
    match (seen.ending(Stage::NothingSent), last_answer) {
        (Ending::Theirs, Some(answer)) => Attempted::LastAnswer(answer),
        (Ending::Theirs, None) => Attempted::Refused(exchange.exhausted(seen.failed(), Failure::Died)),
        (Ending::Ours(failure), _) => Attempted::Refused(exchange.exhausted(seen.failed(), failure)),
    }
}

/// One attempt on the ticket's backend, with the free retry on a fresh connection.
async fn attempt(exchange: &mut Exchange, ticket: &mut Ticket, seen: &mut Attempts) -> Result<Committed, Failed> {
    let limit = exchange.settings.stream.first_token_timeout.filter(|_| exchange.work.streamed);
    let mut connection = Connection::Pooled;
    loop {
        let trying = try_once(exchange, ticket, connection);
        let result = match limit {
            None => trying.await,
            Some(limit) => tokio::time::timeout(limit, trying).await.unwrap_or(Err(Failure::FirstToken.into())),
        };
        match result {
            Err(Failed { failure: Failure::Reused, .. })
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

async fn try_once(exchange: &mut Exchange, ticket: &mut Ticket, connection: Connection) -> Result<Committed, Failed> {
    let backend = ticket.backend();
    let request = exchange.work.request_to(backend);
    exchange.record.sending(exchange.shared.clock.now());
    let response = exchange.shared.upstream.send(backend.id, connection, request).await?;
    exchange.record.got_head = true;
    let (head, body) = response.into_parts();
    if head.status.is_success() && is_event_stream(&head.headers) {
        let (events, body) = hold(exchange, ticket, body).await?;
        return Ok((head, body, Form::Events(events)));
    }
    match error_of(&head, exchange.work.resolved_model, backend.key.is_some()) {
        None => Ok((head, body, Form::Unary)),
        Some(failure) => Err(Failed { failure, answer: read_answer(head, body).await }),
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The failure that a status means; `None` where the answer is the client's.
fn error_of(head: &Parts, resolved_model: bool, our_key: bool) -> Option<Failure> {
    match head.status.as_u16() {
        status @ (500 | 502 | 504) => Some(Failure::ServerError(status)),
        status @ (503 | 429) => {
            let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Some(Failure::Busy { status, retry_after: seconds.map(Duration::from_secs) })
        }
        404 if resolved_model => Some(Failure::Misconfigured(404)),
        status @ (401 | 403) if our_key => Some(Failure::Misconfigured(status)),
        _ => None,
    }
}

/// Reads an error answer whole; `None` if it is too large or does not come.
async fn read_answer(head: Parts, mut body: AnswerBody) -> Option<RealAnswer> {
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
    Some(RealAnswer { status: head.status, headers, body: whole.freeze() })
}

impl Failed {
    /// An error event that came first: passed on, if it is the last word, as an answer with its own code.
    pub(super) fn of_event(api: Api, failure: Failure, data: Bytes) -> Failed {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        tracing::debug!(?api, ?failure, "the stream began with an error event");
        Failed { failure, answer: Some(RealAnswer { status: StatusCode::INTERNAL_SERVER_ERROR, headers, body: data }) }
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
