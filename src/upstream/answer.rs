//! The body of a backend's answer, with the connection that it comes on. Dropping it before its end closes the connection; at its
//! end the connection is kept for another request, if it has a home.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::driven::Driven;
use super::idle::Idle;

/// An answer broke.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke")]
pub struct Broken(#[source] hyper::Error);

/// The place to which a connection goes back after an answer; none where it was for one alone.
pub(super) type Home = Option<Arc<Idle>>;

/// The body of an answer.
pub struct AnswerBody {
    incoming: Incoming,
    /// None once the answer is whole.
    connection: Option<(Box<Driven>, Home)>,
}

impl AnswerBody {
    pub(super) fn new(incoming: Incoming, driven: Box<Driven>, home: Home) -> AnswerBody {
        let mut body = AnswerBody { incoming, connection: Some((driven, home)) };
        if body.incoming.is_end_stream() {
            body.whole();
        }
        body
    }

    /// The answer is whole.
    fn whole(&mut self) {
        if let Some((driven, Some(home))) = self.connection.take() {
            home.give(driven);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let AnswerBody { incoming, connection } = &mut *self;
        let frame = match connection {
            Some((driven, _)) => driven.poll_with(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx)),
            None => Pin::new(&mut *incoming).poll_frame(cx),
        };
        let ended = matches!(frame, Poll::Ready(None)) || (frame.is_ready() && self.incoming.is_end_stream());
        if ended {
            self.whole();
        }
        frame.map_err(Broken)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
