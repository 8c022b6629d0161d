//! A place on a backend for one attempt, and the wait for it where every backend is full: until one has room, the request's
//! time for waiting is over, or the client leaves, which drops the future and so leaves the wait room.
//!
//! Hot path: nothing beyond the dispatch while there is room.

use std::time::Duration;

use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Refusal;
use forebay_core::units::BackendId;
use forebay_fleet::{Admission, Ask, Dispatched, Placed, Waiting};

/// A back-off that ends by time alone is noticed by who waits for it, within this.
const LOOK: Duration = Duration::from_millis(250);

/// The time until which one request waits, over all its attempts.
#[derive(Default)]
pub(crate) struct Patience {
    until: Option<Time>,
}

/// A place on a backend that is not among `tried`.
///
/// # Errors
/// There is no backend that may have the request, or none had room in time, or too many wait already.
pub(crate) async fn place(
    work: &mut Work,
    record: &mut Record,
    clock: &Clock,
    tried: &mut Vec<BackendId>,
    patience: &mut Patience,
    rng: &mut fastrand::Rng,
) -> Result<Dispatched, Refusal> {
    loop {
        let explain = record.asks_why();
        let admission = {
            let ask = Ask {
                facts: &work.facts,
                tried,
                first: record.attempts == 0 && patience.until.is_none(),
                session: work.session.as_ref(),
                lane: work.lane,
                explain,
                again: patience.until.is_some(),
                trial: None,
                clock,
            };
            // One call for both: between a look that finds no place and the entry in the queue, a place could come free and be
            // lost.
            work.pool.dispatch_or_wait(ask, rng)?
        };
        let Placed { dispatched, pool } = match admission {
            Admission::Placed(placed) => placed,
            Admission::Waiting(waiting) => {
                let now = clock.now();
                let timeout = work.pool.wait_room.timeout;
                // One patience for all waits of a request: a retry that waits again does not begin anew.
                let until = *patience.until.get_or_insert(now + timeout);
                record.waits(now);
                let placed = wait(work, clock, waiting, until).await;
                record.waited(clock.now());
                placed?
            }
        };
        let Some(pool) = pool else { return Ok(dispatched) };
        // The configuration changed since the request came: it goes on in the pool as it is now.
        work.facts.arm = dispatched.decision.assigned;
        record.assign(&pool, dispatched.decision.assigned);
        work.pool = pool;
        let not_serving = work.not_serving(clock.now());
        if !not_serving.contains(&dispatched.decision.backend) {
            return Ok(dispatched);
        }
        tried.extend(not_serving);
    }
}

async fn wait(work: &Work, clock: &Clock, mut waiting: Waiting, until: Time) -> Result<Placed, Refusal> {
    loop {
        let left = until.since(clock.now());
        if left.is_zero() {
            return Err(Refusal::WaitTimeout(work.pool.model.clone()));
        }
        // A freed place wakes the waiter. A back-off that runs out wakes nobody, so the waiter looks by itself now and then.
        match tokio::time::timeout(left.min(LOOK), waiting.placed()).await {
            Ok(placed) => return placed,
            Err(_) => waiting.look(clock.now()),
        }
    }
}
