//! The way of a stream's pieces past hyper to a client of HTTP/1.1. hyper writes the head and the end of an answer. In between, it
//! would cost a channel, the wake-up of another task and the connection's loop for each piece that is written.
//!
//! Must never mix the two: a piece goes this way only while all that hyper was given is written and hyper waits for more.

use std::io;
use std::task::{Context, Poll};

/// The fate of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Nothing: hyper has something to write, so it must be given this piece, too.
    NotNow,
    /// The socket has taken it.
    Whole,
    /// The socket has taken a part; the rest is kept, and goes before anything else.
    InPart,
}

/// A client's connection, as the relay of an answer in chunks sees it.
pub trait Outlet: Send + Sync {
    /// Takes the socket back for hyper. hyper's answer calls it before it looks for a piece in the channel. So who sees that the
    /// channel is empty also sees what was done with the piece that came last.
    fn take_back(&self);

    /// Offers the socket to the relay: hyper has been given all there is, and may still have to write it.
    fn offer(&self);

    /// Writes a piece as one chunk if the socket is the relay's. The relay must have seen before that the channel is empty.
    ///
    /// # Errors
    /// The client cannot be written to.
    fn pass(&self, cx: &mut Context<'_>, piece: &[u8]) -> io::Result<Passed>;

    /// Ready when nothing is kept of the piece that was passed last.
    fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}
