//! Attempts at another protocol (a WebSocket): each asks a backend for it. Until one agrees nothing was said, so that another may be
//! asked, by the rules and from the budget of any request. What a backend has no such path for is its last word.
//!
//! The future is dropped when the client leaves, which gives the ticket back or leaves the wait room.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::{Response, StatusCode};

use super::course::Course;
use super::outcome::{Attempted, RealAnswer, Uncommitted};
use super::place::{Patience, place};
use super::{Means, error_of, until_ended};
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use crate::upstream::tunnel::TunnelBody;
use forebay_core::error::Failure;
use forebay_fleet::{AttemptOutcome, Backend, Ticket};

/// The end of the attempts.
pub(crate) enum Upgraded {
    /// A backend agreed: its place, and the answer that says so.
    Agreed(Ticket, Response<TunnelBody>),
    /// None did.
    Ended(Attempted),
}

/// Asks backends until one agrees or there is no sense in going on.
pub(crate) async fn upgrade(work: &mut Work, record: &mut Record, means: Means<'_>, attempts: u32) -> Upgraded {
    let (clock, early) = (means.clock, AtomicBool::new(false));
    let mut course = Course::new(work, &means, attempts, &early);
    let (mut rng, mut patience) = (fastrand::Rng::new(), Patience::default());
    loop {
        let dispatched = match place(work, record, clock, &mut course.tried, &mut patience, &mut rng).await {
            Ok(dispatched) => dispatched,
            Err(refusal) => match course.no_place(work, record, refusal) {
                Some(end) => return Upgraded::Ended(end),
                None => continue,
            },
        };
        if !course.pays(work, record) {
            return Upgraded::Ended(course.over(work));
        }
        record.dispatched(&dispatched);
        let ticket = dispatched.ticket;
        let mut watch = ticket.watch(clock.now());
        // It has no token whose absence would say anything, so it is not moved from a server that is silent for a moment.
        watch.may_move(false);
        let backend = Arc::clone(ticket.backend());
        let asking = ask(work, record, &means, &backend);
        let uncommitted = match until_ended(asking, &mut watch, clock, || None).await {
            Ok(answer) => return Upgraded::Agreed(ticket, answer),
            Err(uncommitted) => uncommitted,
        };
        record.attempt_over(uncommitted.failure(), clock.now());
        let end = match *uncommitted {
            Uncommitted::Failed(failure, answer) => course.failed(work, record, ticket, failure, answer),
            Uncommitted::Moved(_) => course.failed(work, record, ticket, Failure::Silent, None),
            Uncommitted::Theirs(answer) | Uncommitted::NotHere(answer) => {
                ticket.finish(AttemptOutcome::Neutral, clock.now());
                Some(Attempted::LastAnswer(answer))
            }
        };
        if let Some(end) = end {
            return Upgraded::Ended(end);
        }
    }
}

async fn ask(
    work: &Work,
    record: &mut Record,
    means: &Means<'_>,
    backend: &Arc<Backend>,
) -> Result<Response<TunnelBody>, Box<Uncommitted>> {
    let mut request = work.request_to(backend);
    record.sending(means.clock.now(), request.headers_mut());
    let answer = means.upstream.send_upgrade(backend, request).await?;
    record.head_came(answer.status());
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    // A text model has no such path, and vLLM says so by a 403 or a 404, which are no fault of the key or the model.
    let failure = error_of(head.status, &head.headers, false)
        .filter(|failure| matches!(failure, Failure::ServerError(_) | Failure::Busy { .. }));
    Err(Box::new(match (failure, RealAnswer::read(backend, head, body).await) {
        (Some(failure), answer) => Uncommitted::Failed(failure, answer),
        (None, Some(answer)) => Uncommitted::Theirs(answer),
        (None, None) => Failure::Died.into(),
    }))
}
