//! The HTTP that a client's connection speaks: HTTP/1.1 or HTTP/2, as its first bytes say, and both are hyper's. While a stream goes
//! past hyper ([`Outlet`]), hyper has nothing to do, but holds two buffers of 8 KiB and more. So its side of the connection is taken
//! apart then, and made anew for the next request. What the relay still says through the channel is written here.
//!
//! Hot path: one look at the sending side a poll.
//!
//! [`Outlet`]: crate::proxy::Outlet

use std::error::Error;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::http1::{self, Parts};
use hyper::server::conn::http2;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::conn::{ConnState, Counted, Keeper};
use super::ear::{Version, Watched};
use super::streams::StreamExecutor;
use crate::upstream::gate::Gate;
use forebay_fleet::config::model::Config;

/// An h2 connection is pinged this often, and has as long to answer.
const PING: Duration = Duration::from_secs(20);

/// The most headers of one request, where the limit on their bytes allows so many. hyper takes room for all of them with each head.
const MOST_HEADERS: usize = 1024;

/// Returns how many headers a head of at most so many bytes may have.
fn most_headers(bytes: usize) -> usize {
    (bytes / 64).min(MOST_HEADERS)
}

/// hyper's settings for both protocols.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<StreamExecutor>,
}

impl Protocols {
    /// The settings that the configuration has.
    pub(super) fn new(config: &Config) -> Protocols {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_headers(most_headers(config.limits.head))
            .max_buf_size(config.limits.head.max(8 << 10));
        let mut http2 = http2::Builder::new(StreamExecutor { stall: config.limits.write_stall });
        http2
            .timer(TokioTimer::new())
            // A peer that vanished, or whose streams all stand still, is found out by its missing answer to a ping.
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(config.limits.h2_streams)
            .max_header_list_size(u32::try_from(config.limits.head).unwrap_or(u32::MAX));
        Protocols { http1, http2 }
    }

    /// Takes a stream that has to be reset for an end like any other.
    #[cfg(feature = "epp")]
    pub(super) fn expect_resets(&mut self) {
        // What a gateway sends of a body while the answer ends its exchange comes too late, and each such stream is reset. h2 ends a
        // connection after 1,024 of them, over its whole life, and with it every exchange that is open.
        self.http2.max_local_error_reset_streams(None);
    }
}

/// The reason why a connection broke.
type Broke = Box<dyn Error + Send + Sync>;

/// A client's connection: a future that is ready when it is over.
pub(super) struct Spoken<'a, T, S: HttpService<Incoming>, B: Body> {
    stage: Stage<T, S, B>,
    io: Watched<T>,
    protocols: &'a Protocols,
    state: &'a ConnState,
    keeper: Arc<Keeper<B>>,
    /// The waker of HTTP/1.1.
    gate: Gate,
    /// It takes no further request.
    ending: bool,
}

/// The one who speaks on it.
enum Stage<T, S: HttpService<Incoming>, B: Body> {
    /// Nobody yet: too little has come to tell the protocol.
    Beginning(S),
    Http1(Box<http1::Connection<TokioIo<Watched<T>>, S>>),
    /// HTTP/1.1 on a connection for which a request has asked for another protocol.
    Switching(Box<http1::UpgradeableConnection<TokioIo<Watched<T>>, S>>),
    Http2(Box<http2::Connection<TokioIo<Watched<T>>, S, StreamExecutor>>),
    /// The relay of this answer.
    Past(S, Counted<B>),
    /// Nobody any more, but for the farewell.
    Closing,
    Over,
}

impl<'a, T, S, B> Spoken<'a, T, S, B>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: HttpService<Incoming, ResBody = Counted<B>, Future: 'static, Error: Into<Broke>>,
    B: Body<Data = Bytes, Error: Into<Broke>> + Unpin + 'static,
    StreamExecutor: Http2ServerConnExec<S::Future, Counted<B>>,
{
    /// A connection on which nothing was said yet.
    pub(super) fn new(
        io: Watched<T>,
        service: S,
        (protocols, state): (&'a Protocols, &'a ConnState),
        keeper: Arc<Keeper<B>>,
    ) -> Spoken<'a, T, S, B> {
        Spoken { stage: Stage::Beginning(service), io, protocols, state, keeper, gate: Gate::new(), ending: false }
    }

    /// Ends it with the requests that are under way.
    pub(super) fn end(&mut self) {
        self.ending = true;
        match &mut self.stage {
            Stage::Beginning(_) => self.stage = Stage::Closing,
            Stage::Http1(connection) => Pin::new(&mut **connection).graceful_shutdown(),
            Stage::Switching(connection) => Pin::new(&mut **connection).graceful_shutdown(),
            Stage::Http2(connection) => Pin::new(&mut **connection).graceful_shutdown(),
            Stage::Past(..) | Stage::Closing | Stage::Over => {}
        }
    }

    fn begin(&mut self, version: Version) {
        let Stage::Beginning(service) = mem::replace(&mut self.stage, Stage::Over) else { return };
        self.stage = match version {
            Version::Http1 => self.http1(service),
            Version::Http2 => {
                let io = TokioIo::new(self.io.clone());
                Stage::Http2(Box::new(self.protocols.http2.serve_connection(io, service)))
            }
        };
    }

    fn http1(&self, service: S) -> Stage<T, S, B> {
        Stage::Http1(Box::new(self.protocols.http1.serve_connection(TokioIo::new(self.io.clone()), service)))
    }

    /// Lets hyper hand the connection over, should a backend agree to the protocol that was asked for.
    fn may_switch(&mut self) {
        let Stage::Http1(connection) = mem::replace(&mut self.stage, Stage::Over) else { return };
        self.stage = Stage::Switching(Box::new(connection.with_upgrades()));
        self.state.may_switch();
    }

    /// Takes hyper's side apart: it has written all that it was given of an answer, and waits for more.
    fn take_apart(&mut self) {
        let Stage::Http1(connection) = mem::replace(&mut self.stage, Stage::Over) else { return };
        self.keeper.want();
        let Parts { read_buf, service, .. } = connection.into_parts();
        self.io.listen_after(&read_buf);
        self.stage = match self.keeper.take() {
            Some(answer) => Stage::Past(service, answer),
            // There is one as long as the sending side is a relay's.
            None => Stage::Closing,
        };
    }

    /// The answer that went past hyper is over.
    fn go_on(&mut self) {
        let Stage::Past(service, answer) = mem::replace(&mut self.stage, Stage::Over) else { return };
        drop(answer);
        let closes = self.ending || self.state.closes();
        self.stage = if closes { Stage::Closing } else { self.http1(service) };
    }
}

impl<T, S, B> Future for Spoken<'_, T, S, B>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: HttpService<Incoming, ResBody = Counted<B>, Future: 'static, Error: Into<Broke>>,
    B: Body<Data = Bytes, Error: Into<Broke>> + Unpin + 'static,
    StreamExecutor: Http2ServerConnExec<S::Future, Counted<B>>,
{
    type Output = Result<(), Broke>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broke>> {
        let spoken = self.get_mut();
        loop {
            match &mut spoken.stage {
                Stage::Beginning(_) => {
                    let version = ready!(spoken.io.poll_version(cx))?;
                    spoken.begin(version);
                }
                Stage::Http1(connection) => {
                    if let Poll::Ready(ended) = spoken.gate.poll(cx, |cx| Pin::new(&mut **connection).poll(cx)) {
                        return Poll::Ready(ended.map_err(Broke::from));
                    }
                    let switches = spoken.state.asks_to_switch();
                    let is_relays = spoken.io.polled(spoken.gate.yields() && !switches);
                    if switches {
                        spoken.may_switch();
                    } else if is_relays {
                        spoken.take_apart();
                    } else {
                        return Poll::Pending;
                    }
                }
                Stage::Switching(connection) => return Pin::new(&mut **connection).poll(cx).map_err(Broke::from),
                Stage::Http2(connection) => return Pin::new(&mut **connection).poll(cx).map_err(Broke::from),
                Stage::Past(_, answer) => {
                    ready!(spoken.io.poll_rest(cx, answer))?;
                    spoken.go_on();
                }
                Stage::Closing => {
                    ready!(Pin::new(&mut spoken.io).poll_shutdown(cx))?;
                    spoken.stage = Stage::Over;
                }
                Stage::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

// Nothing is pinned in it: hyper's connections are on the heap, and move.
impl<T, S: HttpService<Incoming>, B: Body> Unpin for Spoken<'_, T, S, B> {}

#[cfg(test)]
mod tests;
