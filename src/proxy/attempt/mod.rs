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

use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use http::response::Parts;

pub(crate) use outcome::{Attempted, Committed, Form, RealAnswer};

use super::record::Record;
use super::request::work::Work;
use super::responses::ResponseHomes;
use crate::upstream::{Connection, Upstream};
use commit::hold;
use forebay_core::clock::Clock;
use forebay_core::error::Failure;
use forebay_core::routing::retry::{Attempts, Ending, Stage, Verdict, is_answer, verdict};
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
                // Nobody else could be asked whose doing it is. To lose the last backend that is in would help no one.
                if seen.failed() == 1 {
                    suspicion.take().into_iter().for_each(Suspicion::withdraw);
                }
                return over(work, &seen, stage(early), last_answer);
            }
        };
        // A retry is paid for once there is a backend for it, so that none is paid for in vain.
        if let Some(failure) = last_failure {
            if !work.pool.retry(clock.now()) {
                return over(work, &seen, stage(early), last_answer);
            }
            record.retried(failure);
        }
        record.dispatched(&dispatched);
        let mut ticket = dispatched.ticket;
        let backend = ticket.backend().id;
        // From before the request goes out: an alarm in between must end this attempt as well.
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
        // Asked before the failure is taken down: both count what came before it.
        let verdict = verdict(failure, &seen);
        if seen.blames(failure) {
            suspicion = failed(work, means.controller, ticket, failure, clock).or(suspicion);
        } else {
            ticket.finish(AttemptOutcome::Neutral, clock.now());
            suspicion.take().into_iter().for_each(Suspicion::withdraw);
        }
        seen.note(failure);
        // Also if it was not to blame: the request would meet the same there.
        tried.push(backend);
        // What is our own fault (misconfigured) is never the client's to read.
        if is_answer(failure) && answer.is_some() {
            last_answer = answer;
        }
        if verdict != Verdict::Next {
            return over(work, &seen, stage(early), last_answer);
        }
        last_failure = Some(failure);
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
        (Ending::Ours(failure), _) => Attempted::Refused(work.exhausted(seen.failed(), failure)),
    }
}

/// An attempt failed: load and, for a backend that is not what the config says, the fleet are told. A server error may yet
/// turn out to be the request's doing.
fn failed(work: &Work, fleet: &Controller, ticket: Ticket, failure: Failure, clock: &Clock) -> Option<Suspicion> {
    let now = clock.now();
    let backend = Arc::clone(ticket.backend());
    if matches!(failure, Failure::ServerError(_)) {
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
            // An answer that is there counts, even if the alarm went off at the same moment.
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
    heard.note(clock.now());
    let (head, body) = response.into_parts();
    tracing::debug!(backend = %backend.id, status = head.status.as_u16(), "the head of an answer came");
    // By what came, not by what was asked for: a backend may answer a stream with a document.
    if head.status.is_success() && is_event_stream(&head.headers) {
        let (events, body) = hold(work, record, means, (ticket, heard), body).await?;
        return Ok((head, body, Form::Events(events)));
    }
    let Some(failure) = error_of(&head, backend.key.is_some()) else { return Ok((head, body, Form::Unary)) };
    let answer = RealAnswer::read(&backend, head, body).await;
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
