//! An I/O wrapper that ends a connection whose peer takes nothing for too long. Both sides need it: hyper does not poll a
//! body while the peer is not reading (hyperium/hyper #3121), so no deadline inside a body can fire, and an answer that
//! completes while our request body is unsent leaves the connection open (#4176).
//!
//! It is also where both sides keep to their share of a thread's time (`share`).
//!
//! Hot path: two branches an operation; the timer exists only while a write is blocked.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;
use tokio::time::Sleep;

use super::share;

/// Fails writes with `TimedOut` once the peer has taken nothing for `limit`; `None` is no limit.
pub struct WriteStall<S> {
    io: S,
    limit: Option<Duration>,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteStall<S> {
    /// Wraps a connection.
    pub fn new(io: S, limit: Option<Duration>) -> WriteStall<S> {
        WriteStall { io, limit, blocked: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.blocked = None;
            return polled;
        }
        // It waits for its own turn and not for the peer.
        if !coop::has_budget_remaining() {
            return Poll::Pending;
        }
        let Some(limit) = self.limit else { return Poll::Pending };
        let timer = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing (write_stall)")))
    }

    fn watch_write(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            share::spend(cx, bytes);
        }
        self.watch(cx, polled)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteStall<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        share::spend(cx, buf.filled().len() - before);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteStall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, share::at_once(buf));
        self.watch_write(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match share::parts_at_once(bufs) {
            None => Pin::new(&mut self.io).poll_write_vectored(cx, bufs),
            Some(parts) => Pin::new(&mut self.io).poll_write_vectored(cx, &parts),
        };
        self.watch_write(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_nothing_is_cut_after_the_limit() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut io = WriteStall::new(ours, Some(Duration::from_secs(30)));
        let error = io.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_is_not_cut() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let reader = tokio::spawn(async move {
            let mut buf = [0; 10];
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                theirs.read_exact(&mut buf).await.unwrap();
            }
        });
        let mut io = WriteStall::new(ours, Some(Duration::from_secs(30)));
        io.write_all(&[0; 1000]).await.unwrap();
        reader.await.unwrap();
    }
}
