//! A request body made of a few slices: the client's bytes with what is spliced in between, never copied together, with an
//! exact length. Cloning one for another attempt copies pointers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A replayable request body.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    /// None is empty.
    left: VecDeque<Bytes>,
    bytes: u64,
}

impl Pieces {
    /// A body that is these slices in order; empty ones are dropped.
    #[must_use]
    pub fn new(slices: impl IntoIterator<Item = Bytes>) -> Pieces {
        let left: VecDeque<Bytes> = slices.into_iter().filter(|slice| !slice.is_empty()).collect();
        let bytes = left.iter().map(|slice| slice.len() as u64).sum();
        Pieces { left, bytes }
    }

    /// The slices that are left to send, in order.
    pub fn slices(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.left.iter()
    }

    /// Length in bytes of what is left to send.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Returns whether nothing is left to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.pop_front();
        if let Some(slice) = &next {
            self.bytes -= slice.len() as u64;
        }
        Poll::Ready(next.map(|slice| Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}
