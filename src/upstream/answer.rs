//! The body of a backend's answer, with the connection that it comes on. Dropping it before its end closes the connection; at its
//! end the connection is kept for another request, if it has a home.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connect::BackendIo;
use super::driven::Driven;
use super::idle::Idle;
use super::past::{Past, ReadError, is_kept};

/// An answer broke.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke")]
pub struct Broken(#[source] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Hyper(hyper::Error),
    #[error(transparent)]
    Past(ReadError),
}

/// The place to which a connection goes back after an answer; none where it was for one alone.
pub(super) type Home = Option<Arc<Idle>>;

/// The body of an answer.
pub struct BackendBody(ReadBy);

enum ReadBy {
    Hyper(Through),
    Past(Box<Past<BackendIo>>, Home),
    /// It was read past hyper, and is over.
    Over,
}

/// A body that hyper reads.
struct Through {
    incoming: Incoming,
    /// None once the answer is whole.
    connection: Option<(Box<Driven>, Home)>,
}

impl BackendBody {
    pub(super) fn of(answer: Response<Incoming>, driven: Box<Driven>, home: Home) -> Response<BackendBody> {
        let driven = match driven.past(&answer) {
            Ok(past) => {
                let home = home.filter(|_| is_kept(answer.headers()));
                return answer.map(|_| BackendBody(ReadBy::Past(Box::new(past), home)));
            }
            Err(driven) => driven,
        };
        answer.map(|incoming| {
            let mut body = Through { incoming, connection: Some((driven, home)) };
            if body.incoming.is_end_stream() {
                body.whole();
            }
            BackendBody(ReadBy::Hyper(body))
        })
    }
}

impl Through {
    /// The answer is whole.
    fn whole(&mut self) {
        if let Some((driven, Some(home))) = self.connection.take() {
            home.give(driven);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Through { incoming, connection } = self;
        let frame = match connection {
            // A small body was read with its head: then the connection need not be polled again.
            Some((driven, _)) => match Pin::new(&mut *incoming).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => driven.poll_with(cx, |cx| Pin::new(&mut *incoming).poll_frame(cx)),
                ready => ready,
            },
            None => Pin::new(&mut *incoming).poll_frame(cx),
        };
        if matches!(frame, Poll::Ready(None)) || (frame.is_ready() && self.incoming.is_end_stream()) {
            self.whole();
        }
        frame
    }
}

/// Keeps the connection of a body that was read past hyper, if nothing followed its end.
fn keep(past: Past<BackendIo>, home: Home) {
    if let (Some(io), Some(home)) = (past.into_io(), home)
        // hyper waits for nothing to begin a connection.
        && let Some(Ok(driven)) = Driven::new(io).now_or_never()
    {
        home.give(driven);
    }
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let piece = match &mut self.0 {
            ReadBy::Hyper(body) => return body.poll_frame(cx).map_err(|error| Broken(Cause::Hyper(error))),
            ReadBy::Past(past, _) => ready!(past.poll_piece(cx)),
            ReadBy::Over => return Poll::Ready(None),
        };
        if let Ok(Some(piece)) = piece {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let ReadBy::Past(past, home) = std::mem::replace(&mut self.0, ReadBy::Over)
            && piece.is_ok()
        {
            keep(*past, home);
        }
        Poll::Ready(piece.err().map(|cut| Err(Broken(Cause::Past(cut)))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            ReadBy::Hyper(body) => body.incoming.is_end_stream(),
            ReadBy::Past(..) => false,
            ReadBy::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            ReadBy::Hyper(body) => body.incoming.size_hint(),
            ReadBy::Past(..) => SizeHint::default(),
            ReadBy::Over => SizeHint::with_exact(0),
        }
    }
}
