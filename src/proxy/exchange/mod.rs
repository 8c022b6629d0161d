//! One request under way: it owns the attempts and the relay, and everything that must be given back. hyper's task polls it until
//! its answer has a head. What follows a head has a task of its own, which sees by the channel to hyper that the client left. Either
//! way the upstream connection closes at once.

mod early_head;
mod relaying;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Response, StatusCode, Version};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};

use super::answer::error_event::AtPanic;
use super::answer::front::{CHANNEL, Front, Signs};
use super::answer::relay::{Document, settle};
use super::answer::wire::{Deadlines, Wire};
use super::attempt::{self, Attempted, BackendAnswer, Bounds, Committed, Form, Means};
use super::body::{AnswerBody, Message};
use super::headers;
use super::outlet::Outlet;
use super::record::Record;
use super::request::work::Work;
use super::shared::Shared;
use crate::upstream;
use early_head::EarlyClient;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, Refusal};
use forebay_core::stream::Api;
use forebay_fleet::Ticket;
use forebay_fleet::config::model::Config;
use forebay_fleet::health::alarm::Watch;
pub(crate) use relaying::Relaying;

/// A unary answer up to this size is read whole before it is passed on: one write to the client, and no channel.
const WHOLE_ANSWER_MAX: u64 = 64 << 10;

/// A request under way.
pub(super) struct Exchange {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Arc<Config>,
    /// On the heap, as is the record: each is moved several times.
    pub(super) work: Box<Work>,
    pub(super) record: Box<Record>,
    /// The way to the client's socket past hyper, where there is one.
    pub(super) outlet: Option<Arc<dyn Outlet>>,
}

impl Exchange {
    /// Serves the request: the head (or a whole answer) goes to `reply`. Returns what follows the head, if that is still to be
    /// relayed.
    pub(super) async fn run(mut self: Box<Self>, reply: oneshot::Sender<Response<AnswerBody>>) -> Option<Relaying> {
        let deadline = self.settings.stream.total_timeout.map(|limit| self.record.arrival + limit);
        let (front, attempted) = self.until_commit(Front::Held(reply), deadline).await?;
        let attempted = attempted
            .unwrap_or_else(|| Attempted::Refused(self.work.exhausted(self.record.attempts, Failure::Deadline)));
        match front {
            Front::Held(reply) => self.finish_held(reply, attempted, deadline).await,
            Front::Early(tx) => Box::pin(self.finish_early(tx, attempted, deadline)).await,
        }
    }

    /// Runs the attempts; `None` where the client left, and no `Attempted` where the deadline came first. Dropping the attempts
    /// gives the ticket back and closes the upstream connection.
    async fn until_commit(&mut self, mut front: Front, deadline: Option<Time>) -> Option<(Front, Option<Attempted>)> {
        let now = self.shared.clock.now();
        let (left, request_id) = (deadline.map(|at| at.since(now)), self.record.request_id.clone());
        let mut signs = Signs::new(self.head_after(now));
        let (early, shutdown) = (AtomicBool::new(false), self.shared.shutdown.clone());
        let Exchange { shared, settings, work, record, outlet } = self;
        let means = Means {
            upstream: &shared.upstream,
            fleet: &shared.fleet,
            responses: &shared.responses,
            clock: &shared.clock,
        };
        // A unary answer has no first token to be late with.
        let first_token = settings.stream.first_token_timeout.filter(|_| work.streamed);
        // The settings that the request came under: a reload in between does not change the rules of a request under way.
        let bounds = Bounds { attempts: settings.retry.attempts, first_token };
        // On the heap, before anything else holds it: whatever holds a future by value has room for it twice, and copies it.
        let attempts = Box::pin(attempt::run(work, record, means, bounds, &early));
        let mut attempts = pin!(async {
            match left {
                None => Some(attempts.await),
                Some(left) => tokio::time::timeout(left, attempts).await.ok(),
            }
        });
        let mut ends = pin!(shutdown.begun());
        loop {
            tokio::select! {
                biased;
                // First in the order: what a client that left would have got is no longer worth a look.
                () = front.left() => return None,
                attempted = &mut attempts => return Some((front, attempted)),
                () = &mut ends => return Some((front, Some(Attempted::Refused(Refusal::ShuttingDown)))),
                () = signs.due() => {
                    early.store(true, Ordering::Relaxed);
                    front = front.sign(&request_id, outlet.as_ref());
                }
            }
        }
    }

    /// Returns how long the client will still wait for a sign; `None` where it gets none: only a stream of events has comments.
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
    ) -> Option<Relaying> {
        match attempted {
            Attempted::Refused(refusal) => {
                let response = self.record.refuse(&refusal);
                drop(reply.send(response));
                None
            }
            Attempted::LastAnswer(answer) => {
                self.record.answered_by(&answer.backend);
                let mut response = answer.into_response();
                self.record.answered(response.status());
                self.finish_head(response.headers_mut());
                drop(reply.send(response));
                None
            }
            Attempted::Committed(committed) => {
                self.record.answered(committed.answer.head.status);
                // A request that is committed is not sent again: its memory is free.
                self.work.release();
                match committed.answer.form {
                    Form::Unary if is_small(&committed.answer.head) => {
                        self.whole(committed, reply, deadline).await;
                        None
                    }
                    _ => self.relay(committed, reply, deadline),
                }
            }
        }
    }

    /// Finishes the answer behind a head that went out early.
    async fn finish_early(
        mut self: Box<Self>,
        tx: mpsc::Sender<Message>,
        attempted: Attempted,
        deadline: Option<Time>,
    ) -> Option<Relaying> {
        self.record.head_went_early();
        match attempted {
            Attempted::Committed(Committed { ticket, watch, answer }) if matches!(answer.form, Form::Events(_)) => {
                self.work.release();
                Some(self.relay_to(tx, (ticket, watch), answer.body, answer.form, deadline))
            }
            attempted => {
                let Exchange { shared, settings, work, record, .. } = &mut *self;
                let client = EarlyClient { tx, clock: &shared.clock, write_stall: settings.limits.write_stall };
                client.end(work, record, attempted).await;
                None
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

    /// Sends the head of an answer. Returns what follows, unless the client left just now: then the ticket's drop tells the backend.
    fn relay(
        mut self: Box<Self>,
        committed: Committed,
        reply: oneshot::Sender<Response<AnswerBody>>,
        total: Option<Time>,
    ) -> Option<Relaying> {
        let Committed { ticket, watch, answer } = committed;
        let BackendAnswer { mut head, body, form } = *answer;
        self.finish(&mut head);
        if matches!(form, Form::Events(_)) {
            // Comments may be gone from it, our usage event too.
            head.headers.remove(CONTENT_LENGTH);
            head.headers.entry(headers::BUFFERING).or_insert(HeaderValue::from_static("no"));
        }
        // A bounded channel is the back pressure: a client that reads slowly slows its backend and fills no memory.
        let (tx, messages) = mpsc::channel(CHANNEL);
        // Past hyper goes only what hyper sends in chunks, as it does for every 200 without a length.
        self.outlet = self.outlet.take().filter(|_| matches!(form, Form::Events(_)) && head.status == StatusCode::OK);
        reply.send(Response::from_parts(head, AnswerBody::relayed(messages, self.outlet.clone()))).ok()?;
        Some(self.relay_to(tx, (ticket, watch), body, form, total))
    }

    /// The relay of the body behind a head that has gone out.
    #[expect(
        clippy::boxed_local,
        reason = "it comes in its box, and a move out of it only to be taken apart would copy it"
    )]
    fn relay_to(
        self: Box<Self>,
        tx: mpsc::Sender<Message>,
        (ticket, watch): (Ticket, Watch),
        body: upstream::BackendBody,
        form: Form,
        total: Option<Time>,
    ) -> Relaying {
        let deadlines = Deadlines {
            // A unary answer has no events to be late.
            idle: self.settings.stream.idle_timeout.filter(|_| matches!(form, Form::Events(_))),
            busy_idle: self.settings.stream.busy_idle_timeout,
            total,
            write_stall: self.settings.limits.write_stall,
        };
        let Exchange { shared, work, record, outlet, .. } = *self;
        let (clock, shutdown) = (shared.clock.clone(), shared.shutdown.clone());
        // Held by the relay, so that also a panic in it ends the stream with an error event and not only with a cut.
        let told = matches!(form, Form::Events(_)).then(|| AtPanic { api: work.api, tx: tx.clone() });
        let ends = (watch, ticket.engine_load(), shutdown);
        let wire = Box::new(Wire::new(body, ends, (tx, outlet), clock.clone(), deadlines));
        Relaying { api: work.api, clock, form, told, record, ticket, wire }
    }

    /// A small document, read whole.
    async fn whole(
        mut self: Box<Self>,
        committed: Committed,
        reply: oneshot::Sender<Response<AnswerBody>>,
        total: Option<Time>,
    ) {
        let Committed { ticket, mut watch, answer } = committed;
        let BackendAnswer { mut head, body, .. } = *answer;
        self.finish(&mut head);
        let (clock, shutdown) = (self.shared.clock.clone(), self.shared.shutdown.clone());
        let mut reading = pin!(small(body));
        // Most small documents came with their head: then there is nothing to wait for.
        let there = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
        let collected = match there {
            Poll::Ready(collected) => collected,
            Poll::Pending => {
                let left = total.map_or(Duration::MAX, |at| at.since(clock.now()));
                // On the heap, so that those that need not wait have no room for it.
                let waits = Box::pin(async {
                    tokio::select! {
                        biased;
                        failure = watch.ended(&clock) => Err(failure),
                        () = shutdown.begun() => Err(Failure::Shutdown),
                        collected = tokio::time::timeout(left, reading) => collected.unwrap_or(Err(Failure::Deadline)),
                    }
                });
                waits.await
            }
        };
        let now = self.shared.clock.now();
        match collected {
            Ok(document) => {
                Document::read(self.work.api, &document).note(&ticket, &mut self.record);
                settle(ticket, &mut self.record, Ok(()), now);
                drop(reply.send(Response::from_parts(head, AnswerBody::whole(document))));
            }
            Err(failure) => {
                settle(ticket, &mut self.record, Err(failure), now);
                let refusal = self.work.exhausted(self.record.attempts, failure);
                drop(reply.send(self.record.refuse(&refusal)));
            }
        }
    }
}

/// Reads a small body.
async fn small(mut body: upstream::BackendBody) -> Result<Bytes, Failure> {
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        // Anything but data is a trailer, which vLLM has none of.
        let Ok(piece) = frame.map_err(|_| Failure::Died)?.into_data() else { continue };
        if first.is_empty() {
            first = piece;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&first);
        }
        rest.extend_from_slice(&piece);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Returns whether an answer says that it is small.
fn is_small(head: &Parts) -> bool {
    let declared = |value: &HeaderValue| value.to_str().ok()?.parse::<u64>().ok();
    head.headers.get(CONTENT_LENGTH).and_then(declared).is_some_and(|bytes| bytes <= WHOLE_ANSWER_MAX)
}
