//! hyper speaks on what [`super::accept`] accepts: each connection is handed to its h1 + h2c server with a tower service, under
//! the connection cap and the limits of time that hyper has not.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap};
use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use metrics::Gauge;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Service;

use super::conn::{ConnState, Counted, IdleLimits, Keeper};
use super::ear::watched;
use super::proxy_protocol;
use super::spoken::{Protocols, Spoken};
use super::tls::{Secured, Transport, handshake, within};
use super::until::{ConnectionCourse, ConnectionEnd};
use crate::proxy::Outlet;
use crate::upstream::descriptors::Descriptors;
use crate::upstream::tunnel::ClientEnd;
use crate::upstream::write_stall::WriteStall;
use forebay_core::clock::Clock;
use forebay_fleet::config::model::Config;
use forebay_fleet::reach::Wire;
use forebay_fleet::telemetry::throttle::Throttle;

/// Clients over the connection cap that are heard out at a time.
const MOST_LINGERING: usize = 64;
/// The answer to a client over the connection cap.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n";

/// The client's end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// The client's address.
    pub(super) client: Option<SocketAddr>,
    /// It speaks TLS.
    pub(super) secure: bool,
}

/// A tower service for the requests of one connection, made from what is known of its client.
pub(super) trait ServiceFor: Send + Sync + 'static {
    /// The service.
    type Service: Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static;
    /// The body of its answers.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static;

    /// The service for a client. `outlet`: the way to its socket past hyper, for streams over HTTP/1.1.
    fn service_for(&self, peer: Accepted, outlet: Arc<dyn Outlet>) -> Self::Service;
}

/// Open connections of one listener.
pub(super) type Connections = Arc<AtomicUsize>;

/// The server of the connections of one listener.
pub(super) struct HyperApp<F> {
    services: F,
    protocols: Protocols,
    tls: Secured,
    /// Connections begin with the header of the PROXY protocol.
    behind_proxy: bool,
    /// Its peers end requests by resets, also good ones.
    expects_resets: bool,
    connections: Connections,
    max_connections: usize,
    /// Refused connections that are read to their end.
    lingering: AtomicUsize,
    idle: IdleLimits,
    write_stall: Option<Duration>,
    clock: Clock,
    gauge: Gauge,
    descriptors: Arc<Descriptors>,
    /// Of the warnings of connections refused, and of clients that reset requests.
    refusals: Throttle,
    resets: Throttle,
    /// Of the news of handshakes that failed.
    handshakes: Throttle,
}

impl<F: ServiceFor> HyperApp<F> {
    pub(super) fn new(services: F, config: &Config, connections: Connections, clock: Clock) -> HyperApp<F> {
        HyperApp {
            services,
            protocols: Protocols::new(config),
            tls: Secured::default(),
            behind_proxy: false,
            expects_resets: false,
            connections,
            max_connections: config.listen.max_connections.unwrap_or(usize::MAX),
            lingering: AtomicUsize::new(0),
            idle: IdleLimits { header: config.listen.header_timeout, keep_alive: config.listen.keep_alive },
            write_stall: config.limits.write_stall,
            clock,
            gauge: Gauge::noop(),
            descriptors: Descriptors::unlimited(),
            refusals: Throttle::new(),
            resets: Throttle::new(),
            handshakes: Throttle::new(),
        }
    }

    /// Reads from each connection whose it is, if `yes`.
    pub(super) fn behind_proxy(mut self, yes: bool) -> Self {
        self.behind_proxy = yes;
        self
    }

    /// Takes a reset for an end like any other.
    #[cfg(feature = "epp")]
    pub(super) fn expecting_resets(mut self) -> Self {
        self.expects_resets = true;
        self.protocols.expect_resets();
        self
    }

    /// Speaks TLS while this says so.
    pub(super) fn secured(mut self, tls: Secured) -> Self {
        self.tls = tls;
        self
    }

    /// Takes the connections' places in this room, which others share.
    pub(super) fn within(mut self, descriptors: Arc<Descriptors>) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Shows the number of open connections in this gauge.
    pub(super) fn counted_by(mut self, gauge: Gauge) -> Self {
        self.gauge = gauge;
        self
    }

    /// Tells a client that there are too many. A close while its request is unread would reset the connection, and with it the
    /// answer: what it sends is read for a moment, for a bounded number of such clients, where its descriptor can be spared.
    async fn refuse(&self, stream: TcpStream, spared: bool) {
        let lingers = self.lingering.fetch_add(1, Ordering::AcqRel) < MOST_LINGERING && spared;
        let telling = async {
            let mut plain = WriteStall::new(stream, None);
            if self.behind_proxy && lingers {
                _ = proxy_protocol::read(&mut plain).await?;
            }
            let mut stream = match self.tls.acceptor() {
                None => Wire::Plain(plain),
                // A handshake costs more than the rest of a refusal: it is for those that are heard out, too.
                Some(acceptor) if lingers => handshake(acceptor, plain, None).await?,
                Some(_) => return Ok(()),
            };
            stream.write_all(FULL).await?;
            stream.shutdown().await?;
            let mut rest = [0; 4096];
            while lingers && stream.read(&mut rest).await? > 0 {}
            std::io::Result::Ok(())
        };
        // Best effort: a client that is not reading is refused all the same.
        drop(tokio::time::timeout(Duration::from_secs(1), telling).await);
        self.lingering.fetch_sub(1, Ordering::AcqRel);
    }

    /// The connection as its client speaks on it; `None` where the two do not come together.
    async fn open(&self, stream: TcpStream, peer: SocketAddr) -> Option<(Transport, Accepted)> {
        let mut client = Some(peer);
        let mut stream = WriteStall::new(stream, self.write_stall);
        if self.behind_proxy {
            match within(self.idle.header, proxy_protocol::read(&mut stream)).await {
                // A proxy that speaks for itself is its own client.
                Ok(said) => client = said.or(client),
                Err(error) => return self.tell(client, &error),
            }
        }
        let Some(acceptor) = self.tls.acceptor() else {
            return Some((Wire::Plain(stream), Accepted { client, secure: false }));
        };
        match handshake(acceptor, stream, self.idle.header).await {
            Ok(stream) => Some((stream, Accepted { client, secure: true })),
            Err(error) => self.tell(client, &error),
        }
    }

    /// Tells of a connection that did not begin as it should, now and then: whoever scans ports makes many of these. One that said
    /// nothing at all is no news.
    fn tell<T>(&self, client: Option<SocketAddr>, error: &std::io::Error) -> Option<T> {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            tracing::debug!(?client, %error, "connection ended before it began");
        } else if let Some(held_back) = self.handshakes.pass(self.clock.now()) {
            tracing::info!(?client, %error, held_back, "connection closed before its first request");
        }
        None
    }

    /// Serves a connection to its end.
    async fn serve(&self, opened: (Transport, Accepted), shutdown: ShutdownWatch) {
        let state = ConnState::new(self.clock.clone());
        self.serve_http(opened, &state, shutdown).await;
        // What goes on in another protocol is an open connection, which a drain waits for. hyper has let go of it.
        state.handed_back().await;
    }

    async fn serve_http(
        &self,
        (stream, peer): (Transport, Accepted),
        state: &Arc<ConnState>,
        mut shutdown: ShutdownWatch,
    ) {
        let client = peer.client;
        let (io, ear) = watched(stream, state);
        let requests = Arc::clone(state);
        let inner = self.services.service_for(peer, io.outlet());
        // Called here and not in the future, as a oneshot would: a request whose client leaves at once is counted too. Both
        // services are always ready, so that nothing need be awaited before.
        let keeper = Keeper::new();
        let keeps = Arc::clone(&keeper);
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let switches = offer(&mut request, &requests).then(|| Arc::clone(&requests));
            requests.set_closes(asks_to_close(request.headers()));
            let active = requests.begin(request.version() == Version::HTTP_2);
            let (answer, keeper) = (inner.clone().call(request), Arc::clone(&keeps));
            async move {
                if let Some(connection) = switches {
                    connection.switch().await;
                }
                let answer = answer.await?;
                active.answered(answer.status());
                Ok::<_, Infallible>(answer.map(|body| Counted::new(body, active, keeper)))
            }
        });
        let mut connection = pin!(Spoken::new(io, service, (&self.protocols, state), keeper));
        let course = ConnectionCourse { state, limits: self.idle, clock: &self.clock, judges: !self.expects_resets };
        let tell = |connection: Pin<&mut Spoken<_, _, _>>| connection.get_mut().end();
        let ended = match course.until_over(connection.as_mut(), tell, ear.gone(), &mut shutdown).await {
            ConnectionEnd::Http(ended) => ended,
            // Dropping the connection drops its request, too.
            ConnectionEnd::Left | ConnectionEnd::Idle => return,
            ConnectionEnd::Abused => {
                if let Some(held_back) = self.resets.pass(self.clock.now()) {
                    tracing::warn!(?client, held_back, "client resets most of its requests at once: connection closed");
                }
                return;
            }
        };
        if let Err(error) = &ended {
            tracing::debug!(error = &**error, "client connection ended");
        }
        // What is handed over has another reader, and HTTP/2 tells an answer from the end of a connection.
        if !state.is_h2() && !state.is_handed_over() {
            // The rest of its request may come a moment after the end: looking once would find nothing of it.
            let expected = state.was_refused() || ended.is_err_and(|error| is_of_a_head(&*error));
            tokio::select! {
                () = ear.linger(expected) => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        }
    }
}

/// Returns whether hyper itself has answered a head that it cannot read: by a 400 or a 431.
fn is_of_a_head(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
}

/// Lets the service have the connection of a request that asks for another protocol. Returns whether it does.
fn offer(request: &mut Request<Incoming>, state: &Arc<ConnState>) -> bool {
    // hyper puts it there for such a request, and for no other.
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else { return false };
    let open = Arc::new(state.hand_over());
    request.extensions_mut().insert(ClientEnd::new(upgrade, open));
    true
}

/// Returns whether a client that sends these headers takes no answer after this one.
fn asks_to_close(headers: &HeaderMap) -> bool {
    let said = headers.get_all(CONNECTION).iter();
    said.flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Counts a connection while it lives.
struct Open(Connections, Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        self.1.decrement(1.0);
    }
}

impl<F: ServiceFor> HyperApp<F> {
    /// Takes a connection, or refuses it where there are too many.
    pub(super) fn take(self: &Arc<Self>, stream: TcpStream, client: SocketAddr, shutdown: &ShutdownWatch) {
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        self.gauge.increment(1.0);
        let open = Open(Arc::clone(&self.connections), self.gauge.clone());
        let place = self.descriptors.for_client();
        let app = Arc::clone(self);
        if before >= self.max_connections || place.is_none() {
            drop(open);
            if let Some(held_back) = self.refusals.pass(self.clock.now()) {
                let why = if place.is_none() { "no file descriptors are left" } else { "listen.max_connections" };
                tracing::warn!(open = before, held_back, "connection refused: {why}");
            }
            drop(tokio::spawn(async move { app.refuse(stream, place.is_some()).await }));
            return;
        }
        let shutdown = shutdown.clone();
        drop(tokio::spawn(async move {
            if let Some(opened) = app.open(stream, client).await {
                app.serve(opened, shutdown).await;
            }
            drop((open, place));
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;
    use crate::proxy::Proxy;

    fn of_future<F: Future>(
        _: impl FnOnce(&'static HyperApp<Proxy>, (Transport, Accepted), ShutdownWatch) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_holds_little() {
        let task = of_future(|app, opened, shutdown| app.serve(opened, shutdown));
        println!("the connection's task: {task} bytes");
        println!("ConnState: {} bytes", size_of::<ConnState>());
        assert!(task < 4 << 10, "{task}");
    }
}
