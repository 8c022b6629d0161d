//! An I/O wrapper that ends a connection whose peer takes nothing for too long. Both sides need it: hyper does not poll a
//! body while the peer is not reading (hyperium/hyper #3121), so no deadline inside a body can fire, and an answer that
//! completes while our request body is unsent leaves the connection open (#4176).
//!
//! Hot path: one branch a write; the timer exists only while a write is blocked.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

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
        let Some(limit) = self.limit else { return Poll::Pending };
        let timer = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing (write_stall)")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteStall<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteStall<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
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
