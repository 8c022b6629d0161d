//! What the attempts of one request have come to, and what follows each: another backend, or the request's end.
//!
//! Hot path: nothing for a request whose first attempt commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use http::response::Parts;

use super::Means;
use super::outcome::{Attempted, RealAnswer};
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use forebay_core::error::{Failure, Refusal, repeated};
use forebay_core::routing::retry::{Attempts, Ending, Stage, Verdict, spends_budget, verdict};
use forebay_core::units::BackendId;
use forebay_fleet::{AttemptOutcome, Suspicion, Ticket};

/// The attempts of one request so far. Where a method returns `None`, another attempt follows.
pub(super) struct Course<'a> {
    means: &'a Means<'a>,
    /// The head has gone out.
    early: &'a AtomicBool,
    pub(super) seen: Attempts,
    /// The backends that the next attempt may not go to.
    pub(super) tried: Vec<BackendId>,
    /// The failure that the next attempt is to make good, to be paid from the budget.
    unpaid: Option<Failure>,
    last_answer: Option<RealAnswer>,
    /// A backend's server error that another may repeat. If two give the same, it is the request's doing: then neither is to blame.
    suspicion: Option<Suspicion>,
    /// The reason why a backend that may have the stored response could not be asked.
    not_asked: Option<Refusal>,
    /// The answer of a server that has nothing to serve such a request by.
    unable: Option<RealAnswer>,
}

impl<'a> Course<'a> {
    /// No attempt was made yet.
    pub(super) fn new(work: &Work, means: &'a Means<'a>, attempts: u32, early: &'a AtomicBool) -> Course<'a> {
        Course {
            means,
            early,
            seen: Attempts::new(attempts),
            tried: work.not_serving(means.clock.now()),
            unpaid: None,
            last_answer: None,
            suspicion: None,
            not_asked: None,
            unable: None,
        }
    }

    /// Pays for an attempt that is to make a failure good. False where the pool's budget is spent.
    pub(super) fn pays(&mut self, work: &Work, record: &mut Record) -> bool {
        let Some(failure) = self.unpaid.take() else { return true };
        if spends_budget(failure) && !work.pool.retry(self.means.clock.now()) {
            return false;
        }
        record.retried(failure);
        true
    }

    /// There is no place for the next attempt.
    pub(super) fn no_place(&mut self, work: &mut Work, record: &mut Record, refusal: Refusal) -> Option<Attempted> {
        if work.search.is_some() {
            self.not_asked = Some(refusal);
            return self.elsewhere(work, record);
        }
        if self.seen.nobody_asked() {
            return Some(Attempted::Refused(refusal));
        }
        // Another attempt had nowhere to go: no reason to give up what a backend said, and one to try again later.
        // A full room ends by itself, so the client is told to come again. A backend's own answer says more and goes first.
        if self.last_answer.is_none() && refusal.is_for_want_of_room() {
            return Some(Attempted::Refused(refusal));
        }
        Some(self.over(work))
    }

    /// A backend serves the request: if it refers to a stored response, that is there.
    pub(super) fn found(&self, work: &Work, head: &Parts, backend: BackendId) {
        if let Some(search) = work.search.as_ref().filter(|_| head.status.is_success()) {
            self.means.responses.remember(&search.id, backend);
        }
    }

    /// A backend does not have the response, which is nobody's fault and free.
    pub(super) fn not_here(
        &mut self,
        work: &mut Work,
        record: &mut Record,
        ticket: Ticket,
        answer: RealAnswer,
    ) -> Option<Attempted> {
        self.tried.push(ticket.backend().id);
        ticket.finish(AttemptOutcome::Neutral, self.means.clock.now());
        if answer.status != StatusCode::NOT_FOUND {
            self.unable = Some(answer);
        }
        self.elsewhere(work, record)
    }

    /// An attempt failed: load and health are told. A server error may yet turn out to be the request's doing.
    pub(super) fn failed(
        &mut self,
        work: &mut Work,
        record: &mut Record,
        ticket: Ticket,
        failure: Failure,
        answer: Option<RealAnswer>,
    ) -> Option<Attempted> {
        let verdict = verdict(failure, &self.seen);
        // Not a second time, whatever follows: a request that killed one engine must not come back to it.
        self.tried.push(ticket.backend().id);
        if failure == Failure::NotServed
            && let Some(model) = work.model()
        {
            ticket.backend().doubt.denied(model, self.means.clock.now());
        }
        if self.seen.blames(failure) {
            self.blame(ticket, failure, work.model());
        } else {
            ticket.finish(AttemptOutcome::Neutral, self.means.clock.now());
            self.suspicion.take().into_iter().for_each(Suspicion::withdraw);
        }
        // What is our own fault (misconfigured) is never the client's to read.
        if answer.is_some() && self.seen.keeps(failure) {
            self.last_answer = answer;
        }
        self.seen.note(failure);
        record.saw_deaths(self.seen.deaths());
        match verdict {
            Verdict::Next => {}
            // A fresh connection was tried before (`attempt`), where there can be one.
            Verdict::SameFresh | Verdict::Over => return Some(self.over(work)),
        }
        // Paid when the next place is found. A retry that finds none has cost nobody anything.
        self.unpaid = Some(failure);
        if work.search.is_some() { self.elsewhere(work, record) } else { None }
    }

    fn blame(&mut self, ticket: Ticket, failure: Failure, model: Option<&str>) {
        let now = self.means.clock.now();
        let backend = Arc::clone(ticket.backend());
        // A request that two servers fail at alike is at fault itself. So the first one's blame waits for the second.
        if failure.may_be_the_requests().is_some() {
            self.suspicion = Some(ticket.suspect(failure, now));
            return;
        }
        ticket.finish(AttemptOutcome::Failed(failure), now);
        match failure {
            // One answer to one client: a question of our own settles it.
            // A wrong key refuses everybody. A question of our own finds that out without another client's request.
            Failure::Misconfigured(status) => backend.doubt.raise(status),
            Failure::Tls => backend.doubt.ask_again(),
            // A list that promised it is out of date. What nobody lists is the client's to invent, and no reason to ask.
            Failure::NotServed if model.is_some_and(|model| backend.lists(model)) => backend.doubt.ask_again(),
            _ => {}
        }
    }

    /// Turns to the next backend that may have the response.
    fn elsewhere(&mut self, work: &mut Work, record: &mut Record) -> Option<Attempted> {
        if work.look_elsewhere() {
            record.assign(&work.pool, work.facts.arm);
            return None;
        }
        Some(self.search_over(work))
    }

    /// Nobody is left to ask for the response. It is unknown if all have said so.
    fn search_over(&mut self, work: &Work) -> Attempted {
        let Some(search) = work.search.as_ref().filter(|_| self.seen.nobody_asked()) else { return self.over(work) };
        match (self.not_asked.take(), self.unable.take()) {
            (Some(refusal), _) => Attempted::Refused(refusal),
            (None, _) if search.unasked => Attempted::Refused(Refusal::NoBackend(work.pool.model.clone())),
            (None, Some(answer)) => Attempted::LastAnswer(answer),
            (None, None) => {
                self.means.responses.deny(&search.id, search.scope.as_deref(), self.means.clock.now());
                Attempted::Refused(Refusal::UnknownResponse(repeated(&search.id)))
            }
        }
    }

    /// Returns the answer that ends a request whose attempts are over.
    pub(super) fn over(&mut self, work: &Work) -> Attempted {
        // Nobody else could be asked whose doing it is. To lose the last backend that is in would help no one.
        if self.seen.failed() == 1 {
            self.suspicion.take().into_iter().for_each(Suspicion::withdraw);
        }
        let early = self.early.load(Ordering::Relaxed);
        let stage = if early { Stage::HeadSentEarly } else { Stage::NothingSent };
        match (self.seen.ending(stage), self.last_answer.take()) {
            (Ending::Theirs, Some(answer)) => Attempted::LastAnswer(answer),
            (Ending::Theirs, None) => Attempted::Refused(work.exhausted(self.seen.failed(), Failure::Died)),
            // Nobody is there yet, as while all engines load.
            (Ending::Ours(Failure::Connect), _) if self.seen.deaths() == 0 && work.pool.is_up_nowhere() => {
                Attempted::Refused(Refusal::NoBackend(work.pool.model.clone()))
            }
            (Ending::Ours(failure), _) => Attempted::Refused(work.exhausted(self.seen.failed(), failure)),
        }
    }
}
