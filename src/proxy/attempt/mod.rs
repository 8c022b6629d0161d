//! Attempts: pick a backend, send, and hold the answer back until it is proved that the engine works. Until that commit a
//! failure moves the request to another backend, as `routing::retry` says; after it, never.
//!
//! The future of [`run`] is dropped when the client leaves: the ticket is given back and the upstream connection closed by
//! that alone, in every state.

mod commit;
mod outcome;
mod place;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use http::response::Parts;

pub(crate) use outcome::{Attempted, Committed, Form, RealAnswer};

use super::record::Record;
use super::request::work::Work;
use super::responses::ResponseHomes;
use crate::upstream::{Connection, Upstream};
use commit::hold;
use forebay_core::clock::Clock;
use forebay_core::error::{Failure, Refusal};
use forebay_core::routing::retry::{Attempts, Ending, Stage, Verdict, is_answer, verdict};
use forebay_core::stream::says_engine_dead;
use forebay_fleet::health::alarm::{Heard, Watch};
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::{AttemptOutcome, Suspicion, Ticket};
use outcome::{Answer, Uncommitted};
use place::{Patience, place};

/// The ways to the backends.
pub(crate) struct Means<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) controller: &'a Controller,
    /// Who made which stored response.
    pub(crate) responses: &'a ResponseHomes,
    pub(crate) clock: &'a Clock,
}

/// How long a request may try.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// The most attempts.
    pub(crate) attempts: u32,
    /// The longest wait of one for its first token, where there is a limit and the request is a stream.
    pub(crate) first_token: Option<Duration>,
}

/// Tries backends until one commits or there is no sense in going on. `early`: the head has gone out.
pub(crate) async fn run(
    work: &mut Work,
    record: &mut Record,
    means: Means<'_>,
    bounds: Bounds,
    early: &AtomicBool,
) -> Attempted {
    let clock = means.clock;
    let mut seen = Attempts::new(bounds.attempts);
    let mut tried = work.not_serving();
    let (mut last_failure, mut last_answer) = (None, None);
    // The same server error from two backends is the request's doing: then neither is to blame.
    let mut suspicion: Option<Suspicion> = None;
    let (mut rng, mut patience) = (fastrand::Rng::new(), Patience::default());
    loop {
        let dispatched = match place(work, record, clock, &mut tried, &mut patience, &mut rng).await {
            Ok(dispatched) => dispatched,
            Err(refusal) if last_failure.is_none() => return Attempted::Refused(refusal),
            // Another attempt had nowhere to go: no reason to give up what a backend said, and one to try again later.
            Err(refusal) if last_answer.is_none() && refusal.is_for_want_of_room() => {
                return Attempted::Refused(refusal);
            }
            Err(_) => {
                nobody_else(&seen, suspicion.take());
                return over(work, &seen, stage(early), last_answer);
            }
        };
        if let Some(failure) = last_failure {
            if !work.pool.retry(clock.now()) {
                nobody_else(&seen, suspicion.take());
                return over(work, &seen, stage(early), last_answer);
            }
            record.retried(failure);
        }
        record.dispatched(&dispatched);
        let mut ticket = dispatched.ticket;
        let backend = ticket.backend().id;
        let mut watch = ticket.watch(clock.now());
        let (failure, answer) =
            match attempt((&mut *work, &mut *record), &means, bounds, (&mut ticket, &mut watch), &mut seen).await {
                Ok((head, body, form)) => return Attempted::Committed(Committed { ticket, watch, head, body, form }),
                Err(Uncommitted::Theirs(answer)) => {
                    ticket.finish(AttemptOutcome::Neutral, clock.now());
                    return Attempted::LastAnswer(answer);
                }
                Err(Uncommitted::Failed(failure, answer)) => (failure, answer),
            };
        let verdict = verdict(failure, &seen);
        if seen.blames(failure) {
            suspicion = failed(work, means.controller, ticket, failure, clock).or(suspicion);
        } else {
            ticket.finish(AttemptOutcome::Neutral, clock.now());
            suspicion.take().into_iter().for_each(Suspicion::withdraw);
        }
        seen.note(failure);
        record.saw_deaths(seen.deaths());
        tried.push(backend);
        // What is our own fault (misconfigured) is never the client's to read.
        if is_answer(failure) && answer.is_some() {
            last_answer = answer;
        }
        if verdict != Verdict::Next {
            nobody_else(&seen, suspicion.take());
            return over(work, &seen, stage(early), last_answer);
        }
        last_failure = Some(failure);
    }
}

/// Attempts are over. Where only one backend was asked, it cannot be told whose doing its error is, and nobody is blamed.
fn nobody_else(seen: &Attempts, suspicion: Option<Suspicion>) {
    if seen.failed() == 1 {
        suspicion.into_iter().for_each(Suspicion::withdraw);
    }
}

fn stage(early: &AtomicBool) -> Stage {
    if early.load(Ordering::Relaxed) { Stage::HeadSentEarly } else { Stage::NothingSent }
}

/// Whose answer ends a request whose attempts are over.
fn over(work: &Work, seen: &Attempts, stage: Stage, last_answer: Option<RealAnswer>) -> Attempted {
    match (seen.ending(stage), last_answer) {
        (Ending::Theirs, Some(answer)) => Attempted::LastAnswer(answer),
        (Ending::Theirs, None) => Attempted::Refused(work.exhausted(seen.failed(), Failure::Died)),
        // Nobody is there yet, as while all engines load.
        (Ending::Ours(Failure::Connect), _) if seen.deaths() == 0 && work.pool.is_up_nowhere() => {
            Attempted::Refused(Refusal::NoBackend(work.pool.model.clone()))
        }
        (Ending::Ours(failure), _) => Attempted::Refused(work.exhausted(seen.failed(), failure)),
    }
}

/// An attempt failed: load and, for a backend that is not what the config says, the fleet are told. A server error may yet
/// turn out to be the request's doing.
fn failed(work: &Work, fleet: &Controller, ticket: Ticket, failure: Failure, clock: &Clock) -> Option<Suspicion> {
    let now = clock.now();
    let backend = Arc::clone(ticket.backend());
    if failure.may_be_the_requests().is_some() {
        return Some(ticket.suspect(failure, now));
    }
    ticket.finish(AttemptOutcome::Failed(failure), now);
    if let Failure::Misconfigured(status) = failure {
        let reason = format!("answered {status} to a request for {}", work.pool.model);
        fleet.misconfigured(backend.id, reason, now);
    }
    None
}

/// One attempt on the ticket's backend, with the free retry on a fresh connection.
async fn attempt(
    (work, record): (&Work, &mut Record),
    means: &Means<'_>,
    bounds: Bounds,
    (ticket, watch): (&mut Ticket, &mut Watch),
    seen: &mut Attempts,
) -> Result<Answer, Uncommitted> {
    let (clock, heard) = (means.clock, watch.heard());
    let mut connection = Connection::Pooled;
    loop {
        let trying = try_once(work, record, means, (&mut *ticket, &heard), connection);
        let trying = async {
            match bounds.first_token {
                None => trying.await,
                Some(limit) => tokio::time::timeout(limit, trying).await.unwrap_or(Err(Failure::FirstToken.into())),
            }
        };
        let result = tokio::select! {
            biased;
            result = trying => result,
            failure = watch.ended(clock) => Err(failure.into()),
        };
        match result {
            Err(Uncommitted::Failed(Failure::Reused, _)) if verdict(Failure::Reused, seen) == Verdict::SameFresh => {
                seen.note(Failure::Reused);
                record.retried(Failure::Reused);
                connection = Connection::Fresh;
            }
            result => return result,
        }
    }
}

async fn try_once(
    work: &Work,
    record: &mut Record,
    means: &Means<'_>,
    (ticket, heard): (&mut Ticket, &Heard),
    connection: Connection,
) -> Result<Answer, Uncommitted> {
    let clock = means.clock;
    let backend = Arc::clone(ticket.backend());
    let request = work.request_to(&backend);
    record.sending(clock.now());
    let response = means.upstream.send(backend.id, connection, request).await?;
    record.got_head = true;
    backend.load.note_heard();
    heard.note(clock.now());
    let (head, body) = response.into_parts();
    tracing::debug!(backend = %backend.id, status = head.status.as_u16(), "the head of an answer came");
    if head.status.is_success() && is_event_stream(&head.headers) {
        let (events, body) = hold(work, record, means, (ticket, heard), body).await?;
        return Ok((head, body, Form::Events(events)));
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for another protocol: `upgrade` ends here.
        return Err(Failure::ServerError(StatusCode::BAD_GATEWAY.as_u16()).into());
    }
    let Some(failure) = error_of(&head, backend.key.is_some()) else { return Ok((head, body, Form::Unary)) };
    let answer = RealAnswer::read(&backend, head, body).await;
    let failure = match (failure, &answer) {
        // What a stream is told by an event.
        (Failure::ServerError(code), Some(answer)) if says_engine_dead(&answer.body) => {
            Failure::ErrorEvent { code, engine_dead: true }
        }
        (failure, _) => failure,
    };
    match answer {
        Some(answer) if failure == Failure::Misconfigured(404) && !work.is_our_fault(&backend, &answer.body) => {
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
