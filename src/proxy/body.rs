//! The body of an answer to a client: our own text, or what a request's task sends through a channel. A channel that closes
//! without [`Message::End`] is an unclean end: HTTP/1.1 without the last chunk, h2 a reset, so that no client takes a cut
//! answer for a whole one.
//!
//! Hot path: one channel receive a chunk, no allocation.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::outlet::Outlet;

/// A message from a request's task to its client.
#[derive(Debug)]
pub(crate) enum Message {
    /// Bytes, as they come.
    Data(Bytes),
    /// The whole answer was sent.
    End,
}

/// The mark of an answer that is Forebay's own, among a response's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours;

/// The answer was cut: the body's error.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer was cut before its end")]
pub struct Cut;

/// The body of an answer.
pub struct AnswerBody(AnswerSource);

enum AnswerSource {
    Whole(Option<Bytes>),
    Relayed { messages: mpsc::Receiver<Message>, flush: Flush, outlet: Option<Arc<dyn Outlet>> },
    Done,
}

/// An error that follows data at once makes hyper throw the data away, so the body is pending once in between: hyper
/// flushes then.
#[derive(PartialEq)]
enum Flush {
    Clean,
    Dirty,
    Yielded,
}

impl AnswerBody {
    /// A body that is known whole.
    #[must_use]
    pub fn whole(bytes: impl Into<Bytes>) -> AnswerBody {
        AnswerBody(AnswerSource::Whole(Some(bytes.into())))
    }

    /// A body that comes through a channel; with an outlet, the relay may also write to the client's socket itself.
    pub(crate) fn relayed(messages: mpsc::Receiver<Message>, outlet: Option<Arc<dyn Outlet>>) -> AnswerBody {
        AnswerBody(AnswerSource::Relayed { messages, flush: Flush::Clean, outlet })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let AnswerSource::Relayed { outlet: Some(outlet), .. } = &self.0 {
            // hyper is about to write. Two writers on one socket would mix their bytes.
            outlet.take_back();
        }
        let next = match &mut self.0 {
            AnswerSource::Done => return Poll::Ready(None),
            AnswerSource::Whole(bytes) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
            }
            AnswerSource::Relayed { messages, flush, outlet } => match messages.poll_recv(cx) {
                Poll::Pending => {
                    *flush = Flush::Clean;
                    if let Some(outlet) = outlet {
                        // The channel is empty, so what goes past hyper next comes after all that hyper was given.
                        outlet.offer();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Some(Message::Data(bytes))) => {
                    *flush = Flush::Dirty;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Poll::Ready(Some(Message::End)) => None,
                Poll::Ready(None) if *flush == Flush::Dirty => {
                    // hyper flushes when the body is pending. Without this, what was written last would be lost with
                    // the cut that follows.
                    *flush = Flush::Yielded;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(None) => Some(Err(Cut)),
            },
        };
        self.0 = AnswerSource::Done;
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            AnswerSource::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            AnswerSource::Relayed { .. } => false,
            AnswerSource::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            AnswerSource::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            AnswerSource::Relayed { .. } => SizeHint::default(),
            AnswerSource::Done => SizeHint::with_exact(0),
        }
    }
}
