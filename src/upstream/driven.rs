//! A connection to a backend that is polled by the request that uses it. A connection with a task of its own costs two wake-ups for
//! each piece of an answer: one of its task, and one of the request's.
//!
//! Hot path: a piece polls hyper's connection once, and the answer's body once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;

use super::Asked;
use super::body::Pieces;
use super::connect::{BackendIo, UseMark};
use super::gate::Gate;
use super::past::{Handover, Past, Sent, Tap};

/// The most that is read of an answer at once, and the longest head of one. With hyper's own 408 KiB, a stream whose backend is
/// faster than its client holds 540 to 1060 KiB (`tests/it/stuck.rs`); with this 190 to 240.
const READ_BUFFER: usize = 64 << 10;
/// The most headers of an answer.
const MOST_HEADERS: usize = 1024;

/// The limits of every connection.
pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.max_buf_size(READ_BUFFER).max_headers(MOST_HEADERS);
    builder
}

/// hyper's side of a connection.
type Http = Connection<TokioIo<Tap<BackendIo>>, Sent>;

/// A connection to a backend.
pub(super) struct Driven {
    /// None once it is over: hyper tells whoever still waits for an answer when it is dropped.
    connection: Option<Http>,
    requests: SendRequest<Sent>,
    mark: UseMark,
    handover: Handover,
    gate: Gate,
}

impl Driven {
    /// Makes a connection for requests of one that was opened or has been used.
    pub(super) async fn new(io: BackendIo) -> hyper::Result<Box<Driven>> {
        let (mark, handover) = (io.mark(), Handover::default());
        let (requests, connection) = builder().handshake(TokioIo::new(Tap::new(io, handover.clone()))).await?;
        Ok(Box::new(Driven { connection: Some(connection), requests, mark, handover, gate: Gate::new() }))
    }

    /// The facts known of it.
    pub(super) fn mark(&self) -> &UseMark {
        &self.mark
    }

    /// Sends a request, and waits for the head of its answer.
    ///
    /// # Errors
    /// The connection failed. The request comes back with the error where nothing of it was sent.
    pub(super) async fn request(
        &mut self,
        request: Request<Pieces>,
        asked: Asked,
    ) -> Result<Response<Incoming>, (hyper::Error, Option<Request<Pieces>>)> {
        self.handover.begin(asked == Asked::Stream);
        let request = request.map(|pieces| Sent::new(pieces, &self.handover));
        let mut answer = pin!(self.requests.try_send_request(request));
        let Driven { connection, gate, handover, .. } = self;
        let answered = poll_fn(|cx| {
            gate.poll(cx, |cx| {
                poll(connection, cx);
                let polled = answer.as_mut().poll(cx);
                if polled.is_pending() && handover.read_on() {
                    cx.waker().wake_by_ref();
                }
                polled
            })
        });
        answered.await.map_err(|mut error: TrySendError<Request<Sent>>| {
            let unsent = error.take_message().map(|request| request.map(Sent::into_pieces));
            (error.into_error(), unsent)
        })
    }

    /// Takes the body of an answer from under hyper, where that is for us to read; gives the connection back otherwise.
    pub(super) fn past(mut self: Box<Self>, answer: &Response<Incoming>) -> Result<Past<BackendIo>, Box<Self>> {
        let Driven { connection, handover, .. } = &mut *self;
        match connection.take_if(|_| handover.takes(answer)) {
            Some(connection) => {
                let Parts { io, read_buf, .. } = connection.into_parts();
                Ok(Past::new(io.into_inner(), read_buf, MOST_HEADERS))
            }
            None => Err(self),
        }
    }

    /// Polls the connection, and then what waits for something of it.
    pub(super) fn poll_with<T>(
        &mut self,
        cx: &Context<'_>,
        mut waits: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let Driven { connection, gate, .. } = self;
        gate.poll(cx, |cx| {
            poll(connection, cx);
            waits(cx)
        })
    }

    /// Returns whether it could carry another request when it was polled last.
    pub(super) fn was_idle(&self) -> bool {
        self.connection.is_some() && self.requests.is_ready()
    }

    /// Returns whether it can carry another request now.
    pub(super) fn is_idle(&mut self) -> bool {
        // Nobody waits for it: whoever takes it next asks again.
        let mut nobody = Context::from_waker(Waker::noop());
        poll(&mut self.connection, &mut nobody);
        self.was_idle()
    }
}

/// Polls a connection, and drops it once it is over. How it ended, whoever waits is told by hyper.
fn poll(connection: &mut Option<Http>, cx: &mut Context<'_>) {
    drop(connection.take_if(|connection| Pin::new(connection).poll(cx).is_ready()));
}
