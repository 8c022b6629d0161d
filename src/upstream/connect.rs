//! Connections to backends: made within a deadline, with a write-stall limit, and a mark that says how often a connection
//! has been used, so that a failure on a kept-alive one can be told from a death.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::descriptors::{Descriptor, Descriptors};
use super::write_stall::WriteStall;
use forebay_fleet::reach::{Endpoint, Socket, Wire};

/// The facts known of a connection beside its bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct UseMark(Arc<Marks>);

#[derive(Debug, Default)]
struct Marks {
    /// It has carried an answer: from then on it is a reused one.
    used: AtomicBool,
    /// Something came on it since we last wrote to it.
    heard: AtomicBool,
}

impl UseMark {
    pub(super) fn set(&self) {
        self.0.used.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_used(&self) -> bool {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Returns whether anything came for the request at hand: then it was no idle close that crossed it on the wire.
    pub(super) fn has_answered(&self) -> bool {
        self.0.heard.load(Ordering::Relaxed)
    }
}

/// Opens connections to backends.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) timeout: Duration,
    pub(super) write_stall: Option<Duration>,
    pub(super) descriptors: Arc<Descriptors>,
}

impl Connector {
    /// Opens a connection to a backend.
    ///
    /// # Errors
    /// It has no address, none could be connected to, or not in time; or the two do not agree on TLS.
    pub(super) async fn connect(&self, endpoint: &Endpoint) -> io::Result<BackendIo> {
        let place = self.descriptors.for_backend()?;
        let io = endpoint.connect(self.timeout, |socket| WriteStall::new(socket, self.write_stall)).await?;
        Ok(BackendIo { io, mark: UseMark::default(), _place: place })
    }
}

/// One connection to a backend.
pub(super) struct BackendIo {
    io: Wire<WriteStall<Socket>>,
    mark: UseMark,
    _place: Descriptor,
}

impl BackendIo {
    /// The facts known of it.
    pub(super) fn mark(&self) -> UseMark {
        self.mark.clone()
    }
}

impl AsyncRead for BackendIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.mark.0.heard.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for BackendIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.mark.0.heard.store(false, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.mark.0.heard.store(false, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
