//! From a backend's id to its HTTP connections: the idle ones of each backend, new ones, and the mapping of hyper's errors to
//! `error::Failure`. Knows nothing of routing; decides nothing about another attempt.
//!
//! Hot path: one `ArcSwap` load and one hash look-up a request. The request polls its connection itself.

mod answer;
pub(crate) mod bell;
mod body;
mod connect;
pub mod descriptors;
mod driven;
pub(crate) mod gate;
mod idle;
mod past;
mod share;
pub mod tunnel;
pub mod write_stall;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;

pub use self::answer::{BackendBody, Broken};
pub use self::body::Pieces;
use self::connect::{BackendIo, Connector, UseMark};
use self::descriptors::Descriptors;
use self::driven::Driven;
use self::idle::Idle;
use self::tunnel::TunnelBody;
use forebay_core::clock::Clock;
use forebay_core::error::Failure;
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::lock::locked;
use forebay_fleet::obstacle::{mistrust, obstacle, warn_of};

/// A failure on a reused connection later than this is a death like any other.
const REUSE_WINDOW: Duration = Duration::from_millis(100);

/// Limits of the connections to backends.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The room that they share with clients.
    pub descriptors: Arc<Descriptors>,
    /// The time within which a connection must be made.
    pub connect_timeout: Duration,
    /// The longest time for which a backend may take nothing of what we send; `None` is no limit.
    pub write_stall: Option<Duration>,
}

/// The kind of connection that an attempt may use: a kept-alive one, or only a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// An idle one, where there is one.
    Pooled,
    /// A new one.
    Fresh,
}

/// The answer that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A stream of events.
    Stream,
    /// One document.
    Document,
}

/// The HTTP connections of all backends.
pub struct Upstream {
    idle: ArcSwap<HashMap<BackendId, Arc<Idle>>>,
    writer: Mutex<()>,
    connector: Connector,
    clock: Clock,
}

impl Upstream {
    /// No connections yet.
    #[must_use]
    pub fn new(limits: Limits, clock: Clock) -> Upstream {
        let Limits { descriptors, connect_timeout, write_stall } = limits;
        let connector = Connector { timeout: connect_timeout, write_stall, descriptors };
        Upstream { idle: ArcSwap::default(), writer: Mutex::new(()), connector, clock }
    }

    /// Closes the idle connections of backends that are gone; attempts under way go on.
    pub fn retain(&self, is_live: impl Fn(BackendId) -> bool) {
        let _writing = locked(&self.writer);
        let old = self.idle.load();
        // Most reloads remove nobody, and a new map would cost every reader its cached line.
        if old.keys().all(|id| is_live(*id)) {
            return;
        }
        let (kept, gone): (HashMap<_, _>, HashMap<_, _>) =
            old.iter().map(|(id, idle)| (*id, Arc::clone(idle))).partition(|(id, _)| is_live(*id));
        self.idle.store(Arc::new(kept));
        gone.values().for_each(|idle| idle.close());
    }

    fn idle(&self, backend: &Backend) -> Arc<Idle> {
        let goes_there = |idle: &&Arc<Idle>| idle.goes_to(&backend.endpoint);
        if let Some(idle) = self.idle.load().get(&backend.id).filter(goes_there) {
            return Arc::clone(idle);
        }
        // One writer at a time: two requests to a new backend would each make a pool, and lose one with its connections.
        let _writing = locked(&self.writer);
        let mut all = HashMap::clone(&self.idle.load());
        if let Some(idle) = all.get(&backend.id).filter(goes_there) {
            return Arc::clone(idle);
        }
        let idle = Idle::new(Arc::clone(&backend.endpoint), self.clock.clone());
        // A reload has changed the way to the backend: connections that went the old way are not used again.
        if let Some(old) = all.insert(backend.id, Arc::clone(&idle)) {
            old.close();
        }
        self.idle.store(Arc::new(all));
        idle
    }

    /// Sends one request and waits for the head of the answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// - `Failure::Connect`: no connection was made.
    /// - `Failure::Shortage`, `Failure::Unreachable`: nor was one, and that was this host's doing.
    /// - `Failure::Tls`: the two do not agree on TLS.
    /// - `Failure::Reused`: a kept-alive connection failed at once.
    /// - `Failure::Died`: all else.
    pub async fn send(
        &self,
        backend: &Backend,
        (connection, asked): (Connection, Asked),
        mut request: Request<Pieces>,
    ) -> Result<Response<BackendBody>, Failure> {
        // The time before the first try: a free second try is only for a break that came at once.
        let (idle, sent) = (self.idle(backend), self.clock.now());
        loop {
            let kept = if connection == Connection::Pooled { idle.take(sent) } else { None };
            let mut driven = match kept {
                Some(driven) => driven,
                // On the heap: most requests need no new one.
                None => Box::pin(self.open(backend)).await?,
            };
            let (error, unsent) = match driven.request(request, asked).await {
                Ok(response) => {
                    // From now on this connection is a reused one, whose break may just be the server's idle timeout.
                    driven.mark().set();
                    // A connection that was made on purpose for one request is not kept: something made the pool doubtful.
                    let home = (connection == Connection::Pooled).then_some(idle);
                    return Ok(BackendBody::of(response, driven, home));
                }
                Err(error) => error,
            };
            match unsent {
                // An idle connection was closed before anything of the request was written to it: no attempt was made.
                Some(unsent) if driven.mark().is_used() => request = unsent,
                unsent => {
                    let after = self.clock.now().since(sent);
                    let failure = classify(&error, driven.mark(), unsent.is_some(), after);
                    return Err(self.failed(backend.id, failure, &error));
                }
            }
        }
    }

    /// Sends a request that asks for another protocol, on a connection of its own, and waits for the head of the answer. Where the
    /// backend agrees, hyper hands the connection over.
    ///
    /// # Errors
    /// As those of [`Upstream::send`].
    pub async fn send_upgrade(
        &self,
        backend: &Backend,
        request: Request<Pieces>,
    ) -> Result<Response<TunnelBody>, Failure> {
        let io = self.connect(backend).await?;
        let mark = io.mark();
        let sent = self.clock.now();
        let died = |error: hyper::Error| {
            // hyper gives a request back as canceled where the connection ended before it.
            let failure = classify(&error, &mark, error.is_canceled(), self.clock.now().since(sent));
            self.failed(backend.id, failure, &error)
        };
        // A connection of its own, never a pooled one: after the upgrade it is no HTTP any more.
        let (mut requests, connection) = driven::builder().handshake(TokioIo::new(io)).await.map_err(died)?;
        // It goes on after the request, whose task would have to poll it.
        drop(tokio::spawn(connection.with_upgrades()));
        requests.send_request(request).await.map_err(died)
    }

    async fn open(&self, backend: &Backend) -> Result<Box<Driven>, Failure> {
        let io = self.connect(backend).await?;
        Driven::new(io).await.map_err(|error| {
            let failure = classify(&error, &UseMark::default(), true, Duration::ZERO);
            self.failed(backend.id, failure, &error)
        })
    }

    async fn connect(&self, backend: &Backend) -> Result<BackendIo, Failure> {
        self.connector.connect(&backend.endpoint).await.map_err(|error| {
            let failure = match mistrust(&error) {
                Some(_) => Failure::Tls,
                None => obstacle(&error).unwrap_or(Failure::Connect),
            };
            self.failed(backend.id, failure, &error)
        })
    }

    /// Logs a failure, and returns it.
    fn failed(&self, id: BackendId, failure: Failure, error: &(dyn std::error::Error + 'static)) -> Failure {
        let now = self.clock.now();
        match mistrust(error) {
            Some(why) => warn_of(failure, &id, &*Box::<dyn std::error::Error>::from(why), now),
            None => warn_of(failure, &id, error, now),
        }
        tracing::debug!(backend = %id, ?failure, error, "attempt failed");
        failure
    }
}

fn classify(error: &hyper::Error, mark: &UseMark, unsent: bool, after: Duration) -> Failure {
    // Before a death is thought of: under TLS 1.3 a server refuses after the handshake, when the request may be with it.
    if mistrust(error).is_some() {
        return Failure::Tls;
    }
    if obstacle(error) == Some(Failure::Shortage) {
        return Failure::Shortage;
    }
    if mark.is_used() {
        // A server may close an idle connection at the very moment at which it is used. Only then is a second try free.
        let free = after < REUSE_WINDOW && (unsent || !mark.has_answered());
        return if free { Failure::Reused } else { Failure::Died };
    }
    if unsent { Failure::Connect } else { Failure::Died }
}

/// The failure of an answer that broke: a shortage of ours if that is why, else `otherwise`.
#[must_use]
pub fn shortage_or(otherwise: Failure, broke: &Broken) -> Failure {
    obstacle(broke).filter(|failure| *failure == Failure::Shortage).unwrap_or(otherwise)
}

/// The URI of a request on a backend, as it goes on the wire: the path alone.
#[must_use]
pub fn target(backend: &BackendUrl, path: &PathAndQuery) -> Uri {
    Uri::from(backend.path(path))
}
