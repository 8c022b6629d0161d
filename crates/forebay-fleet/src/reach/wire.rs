//! The bytes of one connection, plain or with TLS: what everything above speaks HTTP on.
//!
//! Hot path: one branch a read or a write.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use tokio_rustls::rustls;

use crate::tls::Meeting;

/// A connection over `S`.
#[derive(Debug)]
pub enum Wire<S> {
    /// No TLS.
    Plain(S),
    /// With TLS; of a backend, with what it has shown of itself. What limits writes belongs beneath it: what a peer takes is seen
    /// there, and TLS keeps some back.
    Tls(Box<TlsStream<S>>, Option<Arc<Meeting>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Wire::Tls(io, None) => Pin::new(io).poll_read(cx, buf),
            Wire::Tls(io, Some(meeting)) => {
                let (before, room) = (buf.filled().len(), buf.remaining());
                match ready!(Pin::new(io).poll_read(cx, buf)) {
                    Ok(()) if buf.filled().len() > before => meeting.let_in(),
                    Ok(()) if room > 0 && meeting.refuses() => return Poll::Ready(Err(meeting.refusal())),
                    Ok(()) => {}
                    Err(error) => return Poll::Ready(Err(meeting.meaning_of(error))),
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Wire::Tls(io, meeting) => {
                let written = Pin::new(&mut **io).poll_write(cx, buf);
                with_alert((io, meeting), cx, written)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Wire::Tls(io, meeting) => {
                let written = Pin::new(&mut **io).poll_write_vectored(cx, bufs);
                with_alert((io, meeting), cx, written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(io) => io.is_write_vectored(),
            Wire::Tls(io, _) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(io) => Pin::new(io).poll_flush(cx),
            Wire::Tls(io, meeting) => {
                let flushed = Pin::new(&mut **io).poll_flush(cx);
                with_alert((io, meeting), cx, flushed)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Wire::Tls(io, _) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// A peer that refuses says why by an alert and closes. Where a write meets the close first, the alert is read, so that the error says
/// what the peer said.
fn with_alert<S: AsyncRead + AsyncWrite + Unpin, T>(
    (io, meeting): (&mut TlsStream<S>, &Option<Arc<Meeting>>),
    cx: &mut Context<'_>,
    done: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    let Poll::Ready(Err(error)) = done else { return done };
    let mut byte = [0; 1];
    let read = Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut byte));
    match read {
        Poll::Ready(Err(said)) if said.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            Poll::Ready(Err(said))
        }
        _ => Poll::Ready(Err(match meeting {
            Some(meeting) => meeting.meaning_of(error),
            None => error,
        })),
    }
}
