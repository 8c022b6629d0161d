//! Attempts: pick a backend, send, and hold the answer back until it is proved that the engine works. Until that commit a
//! failure moves the request to another backend, as `routing::retry` says; after it, never.
//!
//! The future of [`run`] is dropped when the client leaves: the ticket is given back and the upstream connection closed by
//! that alone, in every state.

mod commit;
mod course;
mod outcome;
mod place;
mod upgrade;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};

pub(crate) use outcome::{Attempted, BackendAnswer, Committed, Form, RealAnswer};
pub(crate) use upgrade::{Upgraded, upgrade};

use super::record::Record;
use super::request::work::Work;
use super::responses::ResponseHomes;
use crate::upstream::{Asked, Connection, Upstream};
use commit::hold;
use course::Course;
use forebay_core::clock::Clock;
use forebay_core::error::{Failure, says_full};
use forebay_core::routing::retry::{Attempts, Verdict, verdict};
use forebay_core::stream::says_engine_dead;
use forebay_core::units::BackendId;
use forebay_fleet::health::alarm::{Heard, Watch};
use forebay_fleet::{AttemptOutcome, Dispatched, Fleet, Ticket};
use outcome::Uncommitted;
pub(crate) use place::{Patience, place};

/// The ways to the backends.
pub(crate) struct Means<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) fleet: &'a Fleet,
    /// The table of the backends that have stored responses.
    pub(crate) responses: &'a ResponseHomes,
    pub(crate) clock: &'a Clock,
}

/// The limits of a request's attempts.
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
    // All that the attempts leave behind is here, so that the loop below reads as: place, pay, try, judge.
    let mut course = Course::new(work, &means, bounds.attempts, early);
    let (mut rng, mut patience) = (fastrand::Rng::new(), Patience::default());
    // A silent server gives a request up once, where the operator lets it have another attempt.
    let (mut may_move, mut elsewhere) = (bounds.attempts > 1, None);
    loop {
        let placed = match elsewhere.take() {
            Some(dispatched) => Ok(dispatched),
            None => place(work, record, clock, &mut course.tried, &mut patience, &mut rng).await,
        };
        let dispatched = match placed {
            Ok(dispatched) => dispatched,
            Err(refusal) => match course.no_place(work, record, refusal) {
                Some(end) => return end,
                None => continue,
            },
        };
        if !course.pays(work, record) {
            return course.over(work);
        }
        record.dispatched(&dispatched);
        let mut ticket = dispatched.ticket;
        // Before anything is sent: a server that falls silent while the request goes out is noticed from then on.
        let mut watch = ticket.watch(clock.now());
        watch.may_move(may_move);
        // Borrowed apart, since an attempt counts its free retry and only reads where it may not go.
        let (seen, tried) = (&mut course.seen, course.tried.as_slice());
        let trying = attempt((&mut *work, &mut *record), &means, bounds, (&mut ticket, &mut watch), (seen, tried));
        let ended = trying.await;
        if let Err(uncommitted) = &ended {
            record.attempt_over(uncommitted.failure(), clock.now());
        }
        let end = match ended {
            Ok(answer) => {
                // From here on tokens may have reached the client, and no other server can go on where this one was.
                watch.may_move(false);
                course.found(work, &answer.head, ticket.backend().id);
                return Attempted::Committed(Committed { ticket, watch, answer });
            }
            Err(uncommitted) => match *uncommitted {
                Uncommitted::Theirs(answer) => {
                    ticket.finish(AttemptOutcome::Neutral, clock.now());
                    return Attempted::LastAnswer(answer);
                }
                Uncommitted::NotHere(answer) => course.not_here(work, record, ticket, answer),
                Uncommitted::Failed(failure, answer) => course.failed(work, record, ticket, failure, answer),
                Uncommitted::Moved(dispatched) => {
                    (may_move, elsewhere) = (false, Some(dispatched));
                    course.failed(work, record, ticket, Failure::Silent, None)
                }
            },
        };
        if let Some(end) = end {
            return end;
        }
    }
}

/// One attempt on the ticket's backend, with the free retry on a fresh connection.
async fn attempt(
    (work, record): (&Work, &mut Record),
    means: &Means<'_>,
    bounds: Bounds,
    (ticket, watch): (&mut Ticket, &mut Watch),
    (seen, tried): (&mut Attempts, &[BackendId]),
) -> Result<Box<BackendAnswer>, Box<Uncommitted>> {
    let (clock, heard) = (means.clock, watch.heard());
    // A pooled connection may just have been closed at its other end. That says nothing of the server, so a fresh one is
    // tried for free.
    let mut connection = Connection::Pooled;
    let backend = ticket.backend().id;
    loop {
        // On the heap, before anything else holds it.
        let trying = Box::pin(try_once(work, record, means, (&mut *ticket, &heard), connection));
        let trying = async {
            match bounds.first_token {
                None => trying.await,
                Some(limit) => tokio::time::timeout(limit, trying).await.unwrap_or(Err(Failure::FirstToken.into())),
            }
        };
        match until_ended(trying, watch, clock, || elsewhere(work, means, backend, tried)).await {
            Err(uncommitted)
                if uncommitted.failure() == Some(Failure::Reused)
                    && verdict(Failure::Reused, seen) == Verdict::SameFresh =>
            {
                seen.note(Failure::Reused);
                record.retried(Failure::Reused);
                record.attempt_over(Some(Failure::Reused), clock.now());
                connection = Connection::Fresh;
            }
            result => return result,
        }
    }
}

/// Waits for an attempt's result, or for what ends it from outside. Where a silent server would end it and it has nowhere to go,
/// it stays: the server may yet speak.
async fn until_ended<T>(
    trying: impl Future<Output = Result<T, Box<Uncommitted>>>,
    watch: &mut Watch,
    clock: &Clock,
    elsewhere: impl Fn() -> Option<Dispatched>,
) -> Result<T, Box<Uncommitted>> {
    let mut trying = pin!(trying);
    loop {
        let failure = tokio::select! {
            biased;
            result = &mut trying => return result,
            failure = watch.ended(clock) => failure,
        };
        if failure != Failure::Silent {
            return Err(failure.into());
        }
        match elsewhere() {
            Some(dispatched) => return Err(Box::new(Uncommitted::Moved(dispatched))),
            // Without another place, to give up would turn a slow answer into none.
            None => watch.stays(),
        }
    }
}

/// A place for a request that leaves a silent server: at once, and on a backend that is well, or none.
fn elsewhere(work: &Work, means: &Means<'_>, silent: BackendId, tried: &[BackendId]) -> Option<Dispatched> {
    let tried: Vec<BackendId> = tried.iter().copied().chain([silent]).collect();
    // Without waiting: a request that has a place, if a slow one, takes nobody's turn in the queue.
    let found = work.pool.dispatch(&work.facts, &tried, means.clock.now(), &mut fastrand::Rng::new()).ok()?;
    let chosen = found.ticket.backend();
    let snapshot = means.fleet.snapshot();
    let mut members = snapshot.pools.iter().flat_map(|pool| pool.members());
    let is_well = members.any(|member| member.backend.id == chosen.id && member.state.is_usable());
    (is_well && !chosen.alarm.is_silent()).then_some(found)
}

async fn try_once(
    work: &Work,
    record: &mut Record,
    means: &Means<'_>,
    (ticket, heard): (&mut Ticket, &Heard),
    connection: Connection,
) -> Result<Box<BackendAnswer>, Box<Uncommitted>> {
    let clock = means.clock;
    let backend = Arc::clone(ticket.backend());
    // Made for each attempt: path, key and model name are the backend's own.
    let mut request = work.request_to(&backend);
    record.sending(clock.now(), request.headers_mut());
    let asked = if work.streamed { Asked::Stream } else { Asked::Document };
    let response = means.upstream.send(&backend, (connection, asked), request).await?;
    record.head_came(response.status());
    let now = clock.now();
    heard.note(now);
    // A head proves that the HTTP side lives, which is what the alarm asks, and not that the engine works.
    backend.alarm.heard(now);
    backend.load.note_heard();
    let (head, body) = response.into_parts();
    tracing::debug!(backend = %backend.id, status = head.status.as_u16(), "the head of an answer came");
    // By what came, not by what was asked for: a backend may answer a stream with a document.
    if head.status.is_success() && is_event_stream(&head.headers) {
        let (events, body) = hold(work, record, means, (ticket, heard), body).await?;
        return Ok(Box::new(BackendAnswer { head, body, form: Form::Events(events) }));
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for another protocol: `upgrade` ends here.
        return Err(Failure::ServerError(head.status.as_u16()).into());
    }
    // A 401 is the operator's mistake where the key was ours, and the client's where it was passed on.
    let failure = error_of(head.status, &head.headers, backend.key.is_some());
    // A server that does not have a response, or nothing to serve this request for it by: another may.
    let lacks = work.search.is_some() && matches!(head.status.as_u16(), 404 | 405 | 501);
    if failure.is_none() && !lacks {
        return Ok(Box::new(BackendAnswer { head, body, form: Form::Unary }));
    }
    // On the heap, as few answers are errors.
    let answer = Box::pin(RealAnswer::read(&backend, head, body)).await;
    let failure = match (failure, &answer) {
        // What a stream is told by an event.
        (Some(Failure::ServerError(code)), Some(answer)) if says_engine_dead(&answer.body) => {
            Some(Failure::ErrorEvent { code, engine_dead: true })
        }
        (failure, _) => failure,
    };
    Err(Box::new(match (failure, answer) {
        (Some(Failure::Misconfigured(404)), Some(answer)) => match work.denied_model(&backend, &answer.body) {
            Some(failure) => Uncommitted::Failed(failure, Some(answer)),
            None if lacks => Uncommitted::NotHere(answer),
            None => Uncommitted::Theirs(answer),
        },
        (None, Some(answer)) => Uncommitted::NotHere(answer),
        (None | Some(Failure::Misconfigured(404)), None) => Failure::Died.into(),
        (Some(failure), answer) => Uncommitted::Failed(failure, answer),
    }))
}

/// Returns whether an answer is a stream of events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The failure that a status means; `None` where the answer is the client's.
pub(crate) fn error_of(status: StatusCode, headers: &HeaderMap, our_key: bool) -> Option<Failure> {
    match status.as_u16() {
        status @ (500 | 502 | 504) => Some(Failure::ServerError(status)),
        status if says_full(status) => {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            Some(Failure::Busy { status, retry_after: seconds.map(Duration::from_secs) })
        }
        // If it is the model that is not found, and not something that the client named.
        404 => Some(Failure::Misconfigured(404)),
        status @ (401 | 403) if our_key => Some(Failure::Misconfigured(status)),
        _ => None,
    }
}
