//! What comes of a request whose head went out early, once its attempts are over without a stream to relay: an error event, since
//! there is no status left to say it by. What a backend said ends as it came; what we say ends uncleanly.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;

use crate::proxy::answer::relay::settle;
use crate::proxy::answer::{error_event, wire};
use crate::proxy::attempt::{Attempted, BackendAnswer, Committed, RealAnswer};
use crate::proxy::body::Message;
use crate::proxy::record::Record;
use crate::proxy::request::work::Work;
use forebay_core::clock::Clock;
use forebay_core::error::{Failure, Refusal};
use forebay_fleet::AttemptOutcome;

/// The client's side of such a request.
pub(super) struct EarlyClient<'a> {
    pub(super) tx: mpsc::Sender<Message>,
    pub(super) clock: &'a Clock,
    /// The longest time for which a write may wait for the client.
    pub(super) write_stall: Option<Duration>,
}

impl EarlyClient<'_> {
    /// Ends the request.
    pub(super) async fn end(self, work: &Work, record: &mut Record, attempted: Attempted) {
        match attempted {
            Attempted::Committed(committed) => self.document(work, record, committed).await,
            Attempted::LastAnswer(answer) => {
                record.answered_by(&answer.backend);
                self.last_answer(work, record, answer).await;
            }
            Attempted::Refused(refusal) => self.refuse(work, record, &refusal).await,
        }
    }

    /// A document where a stream was asked for: an error of the request's own, or nothing that can still be passed on.
    async fn document(self, work: &Work, record: &mut Record, committed: Committed) {
        let Committed { ticket, answer, .. } = committed;
        let BackendAnswer { head, body, .. } = *answer;
        let backend = ticket.backend().clone();
        let is_error = head.status >= StatusCode::BAD_REQUEST;
        let answer = if is_error { RealAnswer::read(&backend, head, body).await } else { None };
        match answer {
            Some(answer) => {
                ticket.finish(AttemptOutcome::Neutral, self.clock.now());
                self.last_answer(work, record, answer).await;
            }
            None => {
                settle(ticket, record, Err(Failure::Truncated), self.clock.now());
                let refusal = work.exhausted(record.attempts, Failure::Truncated);
                self.refuse(work, record, &refusal).await;
            }
        }
    }

    async fn last_answer(self, work: &Work, record: &mut Record, answer: RealAnswer) {
        record.answered_late(answer.status);
        let event = error_event::of_answer(work.api, answer.status, &answer.body, answer.event);
        self.close(record, Ok(()), event).await;
    }

    async fn refuse(self, work: &Work, record: &mut Record, refusal: &Refusal) {
        record.refused_late(refusal);
        let event = error_event::of_refusal(work.api, refusal);
        self.close(record, Err(Failure::Died), event).await;
    }

    async fn close(self, record: &mut Record, ended: Result<(), Failure>, event: Option<Bytes>) {
        record.end = Some(self.clock.now());
        wire::last_word(&self.tx, ended, event, self.write_stall).await;
    }
}
