//! What comes of a request whose head went out early, once its attempts are over: the tokens of a stream, or an error event,
//! since there is no status left to say it by. What a backend said ends as it came; what we say ends uncleanly.

use http::StatusCode;
use http::response::Parts;
use tokio::sync::mpsc;

use super::attempt::{Attempted, Form, read_answer};
use super::body::Message;
use super::exchange::{Committed, Exchange};
use super::relay::settle;
use super::tell;
use super::wire;
use crate::upstream::AnswerBody;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_fleet::{AttemptOutcome, Ticket};

impl Exchange {
    /// Ends the request behind an early head.
    pub(super) async fn finish_late(
        mut self: Box<Self>,
        tx: mpsc::Sender<Message>,
        attempted: Attempted,
        total: Option<Time>,
    ) {
        self.record.head_went_early();
        match attempted {
            Attempted::Committed(Committed { ticket, watch, body, form: form @ Form::Events(_), .. }) => {
                self.work.release_body();
                self.relay_to(tx, (ticket, watch), body, form, total).await;
            }
            Attempted::Committed(Committed { ticket, head, body, .. }) => {
                self.document_late(tx, ticket, head, body).await;
            }
            Attempted::LastAnswer(answer) => {
                self.record.answered_by(&answer.backend);
                self.record.answered_late(answer.status);
                let event = tell::of_answer(self.work.api, &answer);
                self.close(&tx, Ok(()), event).await;
            }
            Attempted::Refused(refusal) => self.refuse_late(&tx, &refusal).await,
        }
    }

    /// A document where a stream was asked for: an error of the request's own, or nothing that can still be passed on.
    async fn document_late(mut self, tx: mpsc::Sender<Message>, ticket: Ticket, head: Parts, body: AnswerBody) {
        let (status, backend) = (head.status, ticket.backend().clone());
        let answer = if is_error(&head) { read_answer(&backend, head, body).await } else { None };
        match answer {
            Some(answer) => {
                ticket.finish(AttemptOutcome::Neutral, self.shared.clock.now());
                self.record.answered_late(status);
                let event = tell::of_answer(self.work.api, &answer);
                self.close(&tx, Ok(()), event).await;
            }
            None => {
                settle(ticket, &mut self.record, Err(Failure::Truncated), self.shared.clock.now());
                let refusal = self.exhausted(self.record.attempts, Failure::Truncated);
                self.refuse_late(&tx, &refusal).await;
            }
        }
    }

    async fn refuse_late(&mut self, tx: &mpsc::Sender<Message>, refusal: &Refusal) {
        self.record.refused_late(refusal);
        let event = tell::of_refusal(self.work.api, refusal);
        self.close(tx, Err(Failure::Died), event).await;
    }

    async fn close(&mut self, tx: &mpsc::Sender<Message>, ended: Result<(), Failure>, event: Option<bytes::Bytes>) {
        self.record.end = Some(self.shared.clock.now());
        wire::last_word(tx, ended, event, self.settings.limits.write_stall).await;
    }
}

fn is_error(head: &Parts) -> bool {
    head.status >= StatusCode::BAD_REQUEST
}
