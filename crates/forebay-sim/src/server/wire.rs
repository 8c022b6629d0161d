//! The socket of one simulated connection, which a fault may end in a way that no HTTP server would: by a reset, or with
//! bytes of its own in place of the answer's head. Otherwise all passes through.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The end of a connection instead of the answer that it would write next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// A TCP reset.
    Reset,
    /// These bytes, then the end.
    Bytes(&'static [u8]),
}

/// Set by whoever answers a request, seen by the socket at its next write; the first word stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<OnceLock<Ending>>);

impl Verdict {
    /// Ends the connection in place of its next write.
    pub(super) fn end(&self, ending: Ending) {
        let _ = self.0.set(ending);
    }
}

/// The socket.
pub(super) struct Wire {
    stream: TcpStream,
    verdict: Verdict,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, verdict: Verdict) -> Wire {
        Wire { stream, verdict }
    }

    fn poll_end(&mut self, ending: Ending, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match ending {
            Ending::Reset => {
                let _ = self.stream.set_zero_linger();
            }
            // Few, and first on the connection or after all that was sent: the socket takes them at once.
            Ending::Bytes(bytes) => {
                ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
            }
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.verdict.0.get().copied() {
            None => Pin::new(&mut this.stream).poll_write(context, from),
            Some(ending) => this.poll_end(ending, context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.verdict.0.get().copied() {
            None => Pin::new(&mut this.stream).poll_write_vectored(context, from),
            Some(ending) => this.poll_end(ending, context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
