//! A client's connection, read by two: by hyper and, while hyper does not read, by an ear for its end. hyper looks for a client
//! that leaves only while its buffer is empty, so a byte that follows a request (the next one in the pipe, a stray CRLF) would hide
//! it for as long as the request takes. What the ear reads is kept, within a bound, and is hyper's next.
//!
//! Hot path: one uncontended lock a read or a write; the ear reads only while a request is under way and hyper does not.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn::ConnState;
use super::sending::Sending;
use crate::proxy::intake::{DRAIN_BYTES, DRAIN_PIECE, DRAIN_TIME};
use crate::proxy::{Outlet, Passed};
use forebay_fleet::lock::locked;

/// The first bytes of a connection on which a client speaks HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The ear keeps no more than this; behind it, the end of a connection is not heard.
const AHEAD_MAX: usize = 64 << 10;

/// The reason why an answer broke.
type Broke = Box<dyn Error + Send + Sync>;

struct Half<S> {
    io: S,
    /// Read by the ear, not yet by hyper.
    ahead: BytesMut,
    /// hyper waits for bytes, and so for the end.
    awaited: bool,
    /// hyper has not read all that is there, and is polled again at once.
    goes_on: bool,
    sending: Sending,
}

impl<S: AsyncRead + Unpin> Half<S> {
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            let polled = Pin::new(&mut self.io).poll_read(cx, buf);
            self.awaited = polled.is_pending();
            return polled;
        }
        let bytes = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..bytes]);
        self.ahead.advance(bytes);
        if self.ahead.is_empty() {
            // Its memory is not for the whole life of the connection.
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads ahead; 0 at the end.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut piece = [0; 4096];
        let mut buf = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        self.ahead.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Ready when the client has left.
    fn listen(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Of a large body hyper takes a piece at a time. What is read ahead of it is copied once more, and in small pieces.
        if self.goes_on {
            return Poll::Pending;
        }
        while !self.awaited && self.ahead.len() < AHEAD_MAX {
            if !matches!(ready!(self.read_ahead(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

/// A version of HTTP, as a connection's first bytes say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// hyper's side of a connection. Tells [`ConnState`] when bytes come.
pub(super) struct Watched<S> {
    half: Arc<Mutex<Half<S>>>,
    state: Arc<ConnState>,
}

impl<S> Clone for Watched<S> {
    fn clone(&self) -> Self {
        Watched { half: Arc::clone(&self.half), state: Arc::clone(&self.state) }
    }
}

/// The ear's side.
pub(super) struct Ear<S> {
    half: Arc<Mutex<Half<S>>>,
    state: Arc<ConnState>,
}

/// Both sides of a connection, to be polled by the same task.
pub(super) fn watched<S>(io: S, state: &Arc<ConnState>) -> (Watched<S>, Ear<S>) {
    let (ahead, sending) = (BytesMut::new(), Sending::default());
    let half = Arc::new(Mutex::new(Half { io, ahead, awaited: false, goes_on: false, sending }));
    (Watched { half: Arc::clone(&half), state: Arc::clone(state) }, Ear { half, state: Arc::clone(state) })
}

impl<S: AsyncRead + Unpin> Ear<S> {
    /// Waits until the client has left with a request under way. Must be polled after hyper's connection, in each round of
    /// the task: only then is it known whether hyper reads.
    pub(super) async fn gone(&self) {
        std::future::poll_fn(|cx| if self.state.is_busy_h1() { locked(&self.half).listen(cx) } else { Poll::Pending })
            .await;
    }

    /// Reads a bounded part of what the client still sends after hyper has ended the connection, and throws it away: a close while
    /// there is something unread would reset the connection, and with it the answer. `expected`: the client may have been
    /// answered in the middle of its request. Else only one that has something on its way already is heard out.
    pub(super) async fn linger(&self, expected: bool) {
        let mut piece = vec![0; 16 << 10];
        if !expected {
            let there = std::future::poll_fn(|cx| Poll::Ready(self.poll_piece(cx, &mut piece).is_ready())).await;
            if !there {
                return;
            }
        }
        let reading = async {
            let mut read = 0;
            while read < DRAIN_BYTES {
                let next = std::future::poll_fn(|cx| self.poll_piece(cx, &mut piece));
                match tokio::time::timeout(DRAIN_PIECE, next).await {
                    Ok(Ok(bytes)) if bytes > 0 => read += bytes as u64,
                    _ => return,
                }
            }
        };
        // Best effort: who still sends after this sees a reset.
        drop(tokio::time::timeout(DRAIN_TIME, reading).await);
    }

    /// Reads a piece; 0 at the end.
    fn poll_piece(&self, cx: &mut Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(piece);
        ready!(Pin::new(&mut locked(&self.half).io).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl<S: AsyncWrite + Send + Unpin + 'static> Watched<S> {
    /// The way of the relays of its answers past hyper.
    pub(super) fn outlet(&self) -> Arc<dyn Outlet> {
        Arc::clone(&self.half) as Arc<dyn Outlet>
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Ready when what has come says which HTTP the client speaks. What is read for that is hyper's next.
    pub(super) fn poll_version(&self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        let half = &mut *locked(&self.half);
        loop {
            let seen = half.ahead.len().min(PREFACE.len());
            if half.ahead[..seen] != PREFACE[..seen] {
                return Poll::Ready(Ok(Version::Http1));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Ok(Version::Http2));
            }
            if ready!(half.read_ahead(cx))? == 0 {
                return Poll::Ready(Ok(Version::Http1));
            }
            self.state.on_bytes();
        }
    }

    /// hyper was polled; `goes_on`: it is polled again at once. Returns whether the sending side is the relay's: hyper has nothing to
    /// write.
    pub(super) fn polled(&self, goes_on: bool) -> bool {
        let half = &mut *locked(&self.half);
        half.goes_on = goes_on;
        half.sending.is_relays()
    }

    /// hyper reads no more for now, but the ear does. `unread`: what hyper has read and not used.
    pub(super) fn listen_after(&self, unread: &[u8]) {
        let half = &mut *locked(&self.half);
        (half.awaited, half.goes_on) = (false, false);
        if !unread.is_empty() {
            let behind = std::mem::replace(&mut half.ahead, BytesMut::from(unread));
            half.ahead.extend_from_slice(&behind);
        }
    }

    /// Writes what an answer in chunks gives, in hyper's place, and its end. Ready when all is written.
    ///
    /// # Errors
    /// The answer was cut, or the client cannot be written to.
    pub(super) fn poll_rest<B>(&self, cx: &mut Context<'_>, answer: &mut B) -> Poll<Result<(), Broke>>
    where
        B: Body<Data = Bytes, Error: Into<Broke>> + Unpin,
    {
        loop {
            let mut half = locked(&self.half);
            let Half { io, sending, .. } = &mut *half;
            if sending.is_hypers() {
                ready!(sending.poll_taken(io, cx))?;
                if answer.is_end_stream() {
                    return Poll::Ready(Ok(()));
                }
            }
            // The answer takes the lock itself.
            drop(half);
            let Poll::Ready(frame) = Pin::new(&mut *answer).poll_frame(cx) else {
                locked(&self.half).sending.flushed();
                return Poll::Pending;
            };
            // Anything but data is a trailer, which vLLM has none of.
            match frame.transpose().map_err(Into::into)?.map(Frame::into_data) {
                Some(Ok(piece)) => locked(&self.half).sending.owe(&piece),
                Some(Err(_)) => {}
                None => locked(&self.half).sending.owe_end(),
            }
        }
    }
}

impl<S: AsyncWrite + Send + Unpin> Outlet for Mutex<Half<S>> {
    fn take_back(&self) {
        locked(self).sending.take_back();
    }

    fn offer(&self) {
        locked(self).sending.offer();
    }

    fn pass(&self, cx: &mut Context<'_>, piece: &[u8]) -> io::Result<Passed> {
        let half = &mut *locked(self);
        half.sending.pass(&mut half.io, cx, piece)
    }

    fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = &mut *locked(self);
        half.sending.poll_taken(&mut half.io, cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = locked(&self.half).read(cx, buf);
        if polled.is_ready() && buf.filled().len() > before {
            self.state.on_bytes();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let half = &mut *locked(&self.half);
        ready!(half.sending.poll_before_hyper(&mut half.io, cx))?;
        Pin::new(&mut half.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let half = &mut *locked(&self.half);
        ready!(half.sending.poll_before_hyper(&mut half.io, cx))?;
        Pin::new(&mut half.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        locked(&self.half).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = &mut *locked(&self.half);
        ready!(Pin::new(&mut half.io).poll_flush(cx))?;
        half.sending.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut locked(&self.half).io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use forebay_core::clock::Clock;

    #[test]
    fn a_socket_of_a_client_holds_little() {
        let half = size_of::<Mutex<Half<crate::server::tls::Transport>>>();
        println!("Half: {half} bytes");
        assert!(half < 1 << 10, "{half}");
    }

    #[tokio::test]
    async fn what_the_ear_reads_is_hypers_next_and_the_end_is_heard_behind_it() {
        let (mut client, ours) = tokio::io::duplex(1 << 10);
        let state = ConnState::new(Clock::system());
        let (mut watched, ear) = watched(ours, &state);
        let mut cx = Context::from_waker(Waker::noop());
        let mut gone = std::pin::pin!(ear.gone());

        client.write_all(b"one").await.unwrap();
        assert!(gone.as_mut().poll(&mut cx).is_pending(), "no request: nothing is read");
        assert!(locked(&ear.half).ahead.is_empty());

        let request = state.begin(false);
        assert!(gone.as_mut().poll(&mut cx).is_pending());
        client.write_all(b"two").await.unwrap();
        assert!(gone.as_mut().poll(&mut cx).is_pending());
        let mut bytes = [0; 6];
        watched.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"onetwo");

        drop(client);
        assert!(gone.as_mut().poll(&mut cx).is_ready());
        drop(request);
    }

    #[tokio::test]
    async fn the_ear_keeps_within_its_bound() {
        let (mut client, ours) = tokio::io::duplex(AHEAD_MAX * 2);
        let state = ConnState::new(Clock::system());
        let (_watched, ear) = watched(ours, &state);
        let _request = state.begin(false);
        client.write_all(&vec![0; AHEAD_MAX * 2]).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(std::pin::pin!(ear.gone()).poll(&mut cx).is_pending());
        assert_eq!(locked(&ear.half).ahead.len(), AHEAD_MAX);
    }
}
