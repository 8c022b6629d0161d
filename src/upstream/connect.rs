//! Connections to backends: TCP with a deadline, no delay, a write-stall limit, and a mark that says how often a connection
//! has been used, so that a failure on a kept-alive one can be told from a death.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::descriptors::{Descriptor, Descriptors};
use super::dial::dial;
use super::stall::WriteStall;
use forebay_fleet::obstacle::Unresolved;

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

/// Opens connections to one backend.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) timeout: Duration,
    pub(super) write_stall: Option<Duration>,
    pub(super) descriptors: Arc<Descriptors>,
}

impl Connector {
    /// Opens a connection to the host and port of a URI.
    ///
    /// # Errors
    /// The name has no address, no address could be connected to, or not in time.
    pub(super) async fn connect(&self, uri: &Uri) -> io::Result<BackendIo> {
        let place = self.descriptors.for_backend()?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(80);
        let mut resolved = false;
        let connecting = async {
            let addresses = resolve(host, port).await?;
            resolved = true;
            dial(addresses).await
        };
        let stream = match tokio::time::timeout(self.timeout, connecting).await {
            Ok(connected) => connected?,
            Err(_) if resolved => return Err(io::Error::new(io::ErrorKind::TimedOut, "not connected in time")),
            Err(_) => return Err(Unresolved::new(None).into()),
        };
        stream.set_nodelay(true)?;
        Ok(BackendIo { io: WriteStall::new(stream, self.write_stall), mark: UseMark::default(), _place: place })
    }
}

/// The addresses of a host; at once where it is an address itself.
async fn resolve(host: &str, port: u16) -> io::Result<impl Iterator<Item = SocketAddr>> {
    tokio::net::lookup_host((host, port)).await.map_err(|error| Unresolved::new(Some(error)).into())
}

/// One connection to a backend.
pub(super) struct BackendIo {
    io: WriteStall<TcpStream>,
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
