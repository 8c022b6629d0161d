//! The body of a stream in chunks, read past hyper. hyper would copy each chunk through a buffer of the connection's own and a
//! channel. Here a thread has one buffer for all its streams, and a piece is what one read gave, less the chunks' sizes.
//!
//! hyper writes the request and parses the head of the answer. The connection under it, a [`Tap`], gives it no byte behind a
//! head's empty line: if hyper then says that this is a stream in chunks, the body is taken from under it. Any other answer is
//! hyper's, to its end.
//!
//! Hot path: one read and one pass of the decoder a piece; no allocation while the pieces of a thread's block are gone when it is
//! full.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::body::Pieces;
use forebay_core::chunked::{Decoder, Malformed, Progress};

/// The memory that the streams of a thread read into, block by block.
const BLOCK: usize = 32 << 10;
/// The least room for a read.
const LEAST: usize = 8 << 10;

thread_local! {
    static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// The state of an exchange on a connection, shared by hyper's I/O, hyper's request body, and whoever drives the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Handover(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    reading: AtomicU8,
    request: AtomicU8,
}

/// hyper reads on as usual.
const THROUGH: u8 = 0;
/// hyper reads to the end of a head.
const HEAD: u8 = 1;
/// It has been given a head.
const GIVEN: u8 = 2;
/// It wanted more. If that was not for a body, the head was not the answer's: there may be interim ones before it.
const WANTED: u8 = 3;

/// hyper has not taken the request's body whole, or not written all of it.
const UNSENT: u8 = 0;
const TAKEN: u8 = 1;
const SENT: u8 = 2;

impl Handover {
    /// A request follows, whose answer may be a stream.
    pub(super) fn begin(&self, stream: bool) {
        self.0.request.store(UNSENT, Ordering::Relaxed);
        self.0.reading.store(if stream { HEAD } else { THROUGH }, Ordering::Relaxed);
    }

    /// Lets hyper read on if it wants to and has no answer yet. Returns whether it is to be polled again.
    pub(super) fn read_on(&self) -> bool {
        self.0.reading.compare_exchange(WANTED, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Returns whether the body behind this head is read past hyper; if not, hyper reads on.
    pub(super) fn takes<B>(&self, response: &Response<B>) -> bool {
        let at_body = self.0.reading.load(Ordering::Relaxed) != THROUGH;
        let sent = self.0.request.load(Ordering::Relaxed) == SENT;
        let takes = at_body && sent && is_stream_in_chunks(response);
        if !takes {
            self.0.reading.store(THROUGH, Ordering::Relaxed);
        }
        takes
    }
}

fn is_stream_in_chunks<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    response.status() == StatusCode::OK
        && response.version() == Version::HTTP_11
        && chunked
        && codings.next().is_none()
        && ![CONTENT_LENGTH, TRAILER, UPGRADE].iter().any(|name| headers.contains_key(name))
        && headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// Returns whether the connection may be used again after an answer with these headers.
pub(super) fn is_kept(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
}

/// A connection as hyper sees it.
pub(super) struct Tap<S> {
    io: S,
    handover: Handover,
    /// Read, and not yet given to hyper.
    ahead: BytesMut,
    line: Line,
}

/// The end of what was given to hyper of a head.
#[derive(Clone, Copy, Default, PartialEq)]
enum Line {
    #[default]
    Within,
    /// A line is over.
    Lf,
    /// A line is over, and the next one began with CR.
    LfCr,
}

impl Line {
    /// Returns the bytes up to the end of the first empty line that follows a line; the head may begin in earlier bytes.
    fn head_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match (*self, bytes[at]) {
                (Line::Lf | Line::LfCr, b'\n') => {
                    *self = Line::Within;
                    return Some(at + 1);
                }
                (Line::Lf, b'\r') => *self = Line::LfCr,
                _ => {
                    let Some(lf) = memchr::memchr(b'\n', &bytes[at..]) else {
                        *self = Line::Within;
                        return None;
                    };
                    at += lf;
                    *self = Line::Lf;
                }
            }
            at += 1;
        }
        None
    }
}

impl<S> Tap<S> {
    /// A connection that nothing was read of.
    pub(super) fn new(io: S, handover: Handover) -> Tap<S> {
        Tap { io, handover, ahead: BytesMut::new(), line: Line::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let tap = &mut *self;
        let reading = tap.handover.0.reading.load(Ordering::Relaxed);
        if matches!(reading, GIVEN | WANTED) {
            // Whoever drives the connection sees it, and polls again.
            tap.handover.0.reading.store(WANTED, Ordering::Relaxed);
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if tap.ahead.is_empty() {
            ready!(Pin::new(&mut tap.io).poll_read(cx, buf))?;
        } else {
            let bytes = tap.ahead.len().min(buf.remaining());
            buf.put_slice(&tap.ahead.split_to(bytes));
        }
        if reading == HEAD
            && let Some(end) = tap.line.head_end(&buf.filled()[before..])
        {
            let behind = &buf.filled()[before + end..];
            if !behind.is_empty() {
                let mut ahead = BytesMut::from(behind);
                ahead.extend_from_slice(&tap.ahead);
                tap.ahead = ahead;
            }
            buf.set_filled(before + end);
            tap.handover.0.reading.store(GIVEN, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes once it has written all that it has taken.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        _ = self.handover.0.request.compare_exchange(TAKEN, SENT, Ordering::Relaxed, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A request's body that says when hyper has taken it whole. An empty one never does: no stream is asked for without a body.
pub(super) struct Sent {
    pieces: Pieces,
    handover: Handover,
}

impl Sent {
    pub(super) fn new(pieces: Pieces, handover: &Handover) -> Sent {
        Sent { pieces, handover: handover.clone() }
    }

    /// The body itself.
    pub(super) fn into_pieces(self) -> Pieces {
        self.pieces
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = Pin::new(&mut self.pieces).poll_frame(cx);
        if self.pieces.is_empty() {
            self.handover.0.request.store(TAKEN, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.pieces.size_hint()
    }
}

/// The reason why a body broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It closed before the body's end.
    #[error("the connection closed before the last chunk")]
    Closed,
    /// The body is not what its head said.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A body that is read past hyper.
pub(super) struct Past<S> {
    io: S,
    /// Read with the head.
    ahead: BytesMut,
    decoder: Decoder,
}

impl<S: AsyncRead + Unpin> Past<S> {
    /// The body behind the head that a tap has given. `unread`: what hyper was given and has not used, which is nothing.
    pub(super) fn new(tap: Tap<S>, unread: Bytes, most_trailers: usize) -> Past<S> {
        let mut ahead = BytesMut::from(unread);
        ahead.extend_from_slice(&tap.ahead);
        Past { io: tap.io, ahead, decoder: Decoder::new(most_trailers) }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// The body broke. The connection must not be used any more.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            match self.decoder.progress() {
                Progress::Open => {}
                Progress::Whole { .. } => return Poll::Ready(Ok(None)),
                Progress::Broken(rule) => return Poll::Ready(Err(rule.into())),
            }
            let piece = ready!(ROOM.with_borrow_mut(|room| self.read(cx, room)))?;
            if !piece.is_empty() {
                return Poll::Ready(Ok(Some(piece)));
            }
        }
    }

    /// Returns the connection at the end of the body, if it is where the next answer begins.
    pub(super) fn into_io(self) -> Option<S> {
        (self.decoder.progress() == Progress::Whole { surplus: false }).then_some(self.io)
    }

    /// Reads and decodes; the data may be none.
    fn read(&mut self, cx: &mut Context<'_>, room: &mut BytesMut) -> Poll<Result<Bytes, ReadError>> {
        if self.ahead.is_empty() {
            if room.capacity() < LEAST {
                // Takes the same memory again where no piece of it is left.
                room.reserve(BLOCK);
            }
            if ready!(pin!(self.io.read_buf(room)).poll(cx))? == 0 {
                return Poll::Ready(Err(ReadError::Closed));
            }
        } else {
            room.extend_from_slice(&std::mem::take(&mut self.ahead));
        }
        let data = self.decoder.decode(room);
        let mut piece = room.split();
        piece.truncate(data.end);
        piece.advance(data.start);
        Poll::Ready(Ok(piece.freeze()))
    }
}

#[cfg(test)]
mod tests;
