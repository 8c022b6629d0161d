//! Connections to backends: TCP with a deadline, no delay, a write-stall limit, and a mark that says how often a connection
//! has been used, so that a failure on a kept-alive one can be told from a death.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::stall::WriteStall;

/// Set once a connection has carried an answer: from then on it is a reused one. Travels through hyper as an extra of
/// the connection, so that both an answer and an error tell whose it was.
#[derive(Clone, Debug, Default)]
pub(super) struct UseMark(Arc<AtomicBool>);

impl UseMark {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Opens connections to one backend.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) timeout: Duration,
    pub(super) write_stall: Option<Duration>,
}

impl tower::Service<Uri> for Connector {
    type Response = BackendIo;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<BackendIo>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Connector { timeout, write_stall } = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(80);
            let stream = tokio::time::timeout(timeout, TcpStream::connect((host.as_str(), port)))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "not connected in time"))??;
            stream.set_nodelay(true)?;
            Ok(BackendIo { io: TokioIo::new(WriteStall::new(stream, write_stall)), mark: UseMark::default() })
        })
    }
}

/// One connection to a backend.
pub(super) struct BackendIo {
    io: TokioIo<WriteStall<TcpStream>>,
    mark: UseMark,
}

impl Connection for BackendIo {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.mark.clone())
    }
}

impl hyper::rt::Read for BackendIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for BackendIo {
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
