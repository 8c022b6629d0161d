//! One request's task: it owns the attempts and the relay, and everything that must be given back. The service that hyper
//! drives waits for the head over a oneshot; when hyper drops it, the task sees that and stops, which closes the upstream
//! connection at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Response, Version};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::attempt::{self, Attempted, Form};
use super::body::{AnswerBody, Message};
use super::front::{CHANNEL, Front, Signs};
use super::headers;
use super::record::Record;
use super::relay::{Document, Events, relay_unary, settle};
use super::tell::AtPanic;
use super::wire::{Deadlines, Wire};
use super::work::Work;
use crate::upstream;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::stream::Api;
use forebay_fleet::config::model::Config;
use forebay_fleet::health::alarm::Watch;
use forebay_fleet::{AttemptOutcome, Suspicion, Ticket};

/// A unary answer up to this size is read whole before it is passed on: one write to the client, and no channel.
const WHOLE_ANSWER_MAX: u64 = 64 << 10;

/// A request under way.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Config>,
    pub(super) work: Work,
    pub(super) record: Record,
}

/// An attempt that proved the engine at work: its place, what ends it from outside, and the answer.
pub(super) struct Committed {
    pub(super) ticket: Ticket,
    pub(super) watch: Watch,
    pub(super) head: Parts,
    pub(super) body: upstream::AnswerBody,
    pub(super) form: Form,
}

impl Exchange {
    /// Serves the request: the head (or a whole answer) goes to `reply`, the rest through the answer's body.
    pub(super) async fn run(mut self: Box<Self>, reply: oneshot::Sender<Response<AnswerBody>>) {
        let deadline = self.settings.stream.total_timeout.map(|limit| self.record.arrival + limit);
        let Some((front, attempted)) = self.until_commit(Front::Held(reply), deadline).await else { return };
        let attempted =
            attempted.unwrap_or_else(|| Attempted::Refused(self.exhausted(self.record.attempts, Failure::Deadline)));
        match front {
            Front::Held(reply) => self.finish_held(reply, attempted, deadline).await,
            Front::Early(tx) => Box::pin(self.finish_late(tx, attempted, deadline)).await,
        }
    }

    /// Runs the attempts; `None` where the client left, and no `Attempted` where the deadline came first. Dropping the attempts
    /// gives the ticket back and closes the upstream connection.
    async fn until_commit(&mut self, mut front: Front, deadline: Option<Time>) -> Option<(Front, Option<Attempted>)> {
        let now = self.shared.clock.now();
        let (left, request_id) = (deadline.map(|at| at.since(now)), self.record.request_id.clone());
        let mut signs = Signs::new(self.head_after(now));
        let (early, shutdown) = (AtomicBool::new(false), self.shared.shutdown.clone());
        let attempts = attempt::run(self, &early);
        // On the heap: it is gone at the commit, and a stream that may last for minutes does not carry it.
        let mut attempts = Box::pin(async {
            match left {
                None => Some(attempts.await),
                Some(left) => tokio::time::timeout(left, attempts).await.ok(),
            }
        });
        let mut ends = std::pin::pin!(shutdown.begun());
        loop {
            tokio::select! {
                biased;
                () = front.left() => return None,
                attempted = &mut attempts => return Some((front, attempted)),
                () = &mut ends => return Some((front, Some(Attempted::Refused(Refusal::ShuttingDown)))),
                () = signs.due() => {
                    early.store(true, Ordering::Relaxed);
                    front = front.sign(&request_id);
                }
            }
        }
    }

    /// How long the client will still wait for a sign; `None` where it gets none: only a stream of events has comments.
    fn head_after(&self, now: Time) -> Option<Duration> {
        let is_stream = self.work.streamed && self.work.api != Api::Other;
        let after = self.settings.stream.head_after.filter(|_| is_stream)?;
        Some((self.record.arrival + after).since(now))
    }

    async fn finish_held(
        mut self: Box<Self>,
        reply: oneshot::Sender<Response<AnswerBody>>,
        attempted: Attempted,
        deadline: Option<Time>,
    ) {
        match attempted {
            Attempted::Refused(refusal) => {
                let response = self.record.refuse(&refusal);
                drop(reply.send(response));
            }
            Attempted::LastAnswer(answer) => {
                self.record.answered_by(&answer.backend);
                let mut response = answer.into_response();
                self.record.answered(response.status());
                self.finish_head(response.headers_mut());
                drop(reply.send(response));
            }
            Attempted::Committed(committed) => {
                self.record.answered(committed.head.status);
                // A request that is committed is not sent again: its body's memory is free.
                self.work.release_body();
                match committed.form {
                    Form::Unary if is_small(&committed.head) => self.whole(committed, reply, deadline).await,
                    _ => self.relay(committed, reply, deadline).await,
                }
            }
        }
    }

    fn finish_head(&self, headers: &mut HeaderMap) {
        headers::for_client(headers);
        self.record.mark(headers);
    }

    /// The head of a backend's answer as the client gets it; the version is between hyper and the client.
    fn finish(&self, head: &mut Parts) {
        self.finish_head(&mut head.headers);
        head.version = Version::default();
    }

    async fn relay(
        self: Box<Self>,
        committed: Committed,
        reply: oneshot::Sender<Response<AnswerBody>>,
        total: Option<Time>,
    ) {
        let Committed { ticket, watch, mut head, body, form } = committed;
        self.finish(&mut head);
        if matches!(form, Form::Events(_)) {
            // Comments may be gone from it, our usage event too.
            head.headers.remove(CONTENT_LENGTH);
        }
        let (tx, messages) = mpsc::channel(CHANNEL);
        if reply.send(Response::from_parts(head, AnswerBody::relayed(messages))).is_ok() {
            self.relay_to(tx, (ticket, watch), body, form, total).await;
        }
    }

    /// Relays the body behind a head that has gone out.
    pub(super) async fn relay_to(
        mut self: Box<Self>,
        tx: mpsc::Sender<Message>,
        (ticket, watch): (Ticket, Watch),
        body: upstream::AnswerBody,
        form: Form,
        total: Option<Time>,
    ) {
        let deadlines = Deadlines {
            // A unary answer has no events to be late.
            idle: self.settings.stream.idle_timeout.filter(|_| matches!(form, Form::Events(_))),
            total,
            write_stall: self.settings.limits.write_stall,
        };
        let clock = self.shared.clock.clone();
        let shutdown = self.shared.shutdown.clone();
        let _told = matches!(form, Form::Events(_)).then(|| AtPanic { api: self.work.api, tx: tx.clone() });
        let wire = Wire::new(body, (watch, ticket.pauses(), shutdown), tx, clock.clone(), deadlines);
        match form {
            Form::Events(events) => Events::run(events, wire, ticket, &mut self.record, || clock.now()).await,
            Form::Unary => relay_unary(self.work.api, wire, ticket, &mut self.record, || clock.now()).await,
        }
    }

    /// A small document, read whole.
    async fn whole(
        mut self: Box<Self>,
        committed: Committed,
        mut reply: oneshot::Sender<Response<AnswerBody>>,
        total: Option<Time>,
    ) {
        let Committed { ticket, mut watch, mut head, body, .. } = committed;
        self.finish(&mut head);
        let (clock, shutdown) = (self.shared.clock.clone(), self.shared.shutdown.clone());
        let left = total.map_or(Duration::MAX, |at| at.since(clock.now()));
        let collected = tokio::select! {
            biased;
            () = reply.closed() => return,
            failure = watch.ended(&clock) => Err(failure),
            () = shutdown.begun() => Err(Failure::Shutdown),
            collected = tokio::time::timeout(left, body.collect()) => match collected {
                Ok(collected) => collected.map_err(|_| Failure::Died),
                Err(_) => Err(Failure::Deadline),
            },
        };
        let now = self.shared.clock.now();
        match collected {
            Ok(collected) => {
                let document = collected.to_bytes();
                Document::read(self.work.api, &document).note(&ticket, &mut self.record);
                settle(ticket, &mut self.record, Ok(()), now);
                drop(reply.send(Response::from_parts(head, AnswerBody::whole(document))));
            }
            Err(failure) => {
                settle(ticket, &mut self.record, Err(failure), now);
                let refusal = self.exhausted(self.record.attempts, failure);
                drop(reply.send(self.record.refuse(&refusal)));
            }
        }
    }

    /// An attempt failed: load and, for a backend that is not what the config says, the fleet are told. A server error may yet
    /// turn out to be the request's doing.
    pub(super) fn failed(&self, ticket: Ticket, failure: Failure) -> Option<Suspicion> {
        let now = self.shared.clock.now();
        let backend = Arc::clone(ticket.backend());
        if matches!(failure, Failure::ServerError(_)) {
            return Some(ticket.suspect(failure, now));
        }
        ticket.finish(AttemptOutcome::Failed(failure), now);
        if let Failure::Misconfigured(status) = failure {
            let reason = format!("answered {status} to a request for {}", self.work.pool.model);
            self.shared.controller.misconfigured(backend.id, reason, now);
        }
        None
    }

    /// Whether the pool's retry budget pays for another attempt.
    pub(super) fn may_retry(&self) -> bool {
        self.work.pool.retry(self.shared.clock.now())
    }

    /// Our answer where attempts ended without a backend's.
    pub(super) fn exhausted(&self, attempts: u32, failure: Failure) -> Refusal {
        if failure == Failure::Shutdown {
            return Refusal::ShuttingDown;
        }
        Refusal::Exhausted { model: self.work.pool.model.clone(), attempts, failure }
    }
}

/// Whether an answer says that it is small.
fn is_small(head: &Parts) -> bool {
    let declared = |value: &HeaderValue| value.to_str().ok()?.parse::<u64>().ok();
    head.headers.get(CONTENT_LENGTH).and_then(declared).is_some_and(|bytes| bytes <= WHOLE_ANSWER_MAX)
}
