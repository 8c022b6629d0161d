//! From a backend's id to its HTTP connections: the idle ones of each backend, new ones, and the mapping of hyper's errors to
//! `error::Failure`. Knows nothing of routing; decides nothing about another attempt.
//!
//! Hot path: one `ArcSwap` load and one hash look-up a request. The request polls its connection itself.

mod answer;
mod body;
mod connect;
pub mod descriptors;
mod dial;
mod driven;
mod idle;
mod past;
pub mod stall;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};

pub use self::answer::{BackendBody, Broken};
pub use self::body::Pieces;
use self::connect::{Connector, UseMark};
use self::descriptors::Descriptors;
use self::driven::Driven;
use self::idle::Idle;
use forebay_core::clock::Clock;
use forebay_core::error::Failure;
use forebay_core::units::BackendId;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::obstacle::{obstacle, warn_of};

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
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.idle.load();
        if old.keys().all(|id| is_live(*id)) {
            return;
        }
        let (kept, gone): (HashMap<_, _>, HashMap<_, _>) =
            old.iter().map(|(id, idle)| (*id, Arc::clone(idle))).partition(|(id, _)| is_live(*id));
        self.idle.store(Arc::new(kept));
        gone.values().for_each(|idle| idle.close());
    }

    fn idle(&self, id: BackendId) -> Arc<Idle> {
        if let Some(idle) = self.idle.load().get(&id) {
            return Arc::clone(idle);
        }
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::clone(&self.idle.load());
        let idle = Arc::clone(all.entry(id).or_insert_with(|| Idle::new(self.clock.clone())));
        self.idle.store(Arc::new(all));
        idle
    }

    /// Sends one request and waits for the head of the answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// `Failure::Connect` where no connection was made, `Failure::Shortage` or `Failure::Unreachable` where that was this host's
    /// doing, `Failure::Reused` where a kept-alive one failed at once, `Failure::Died` otherwise.
    pub async fn send(
        &self,
        id: BackendId,
        (connection, asked): (Connection, Asked),
        mut request: Request<Pieces>,
    ) -> Result<Response<BackendBody>, Failure> {
        let (idle, sent) = (self.idle(id), self.clock.now());
        let host = std::mem::take(request.uri_mut());
        // On the wire it is the path alone.
        *request.uri_mut() = Uri::from(host.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
        loop {
            let kept = if connection == Connection::Pooled { idle.take() } else { None };
            let mut driven = match kept {
                Some(driven) => driven,
                // On the heap: most requests need no new one.
                None => Box::pin(self.open(id, &host)).await?,
            };
            let (error, unsent) = match driven.request(request, asked).await {
                Ok(response) => {
                    // From now on this connection is a reused one, whose break may just be the server's idle timeout.
                    driven.mark().set();
                    let home = (connection == Connection::Pooled).then_some(idle);
                    return Ok(BackendBody::of(response, driven, home));
                }
                Err(error) => error,
            };
            match unsent {
                // An idle connection was closed before anything of the request was written to it: no attempt was made.
                Some(unsent) if driven.mark().is_used() => request = unsent,
                unsent => {
                    let now = self.clock.now();
                    let failure = classify(&error, driven.mark(), unsent.is_some(), now.since(sent));
                    warn_of(failure, &id, &error, now);
                    tracing::debug!(backend = %id, ?failure, error = &error as &dyn std::error::Error, "attempt failed");
                    return Err(failure);
                }
            }
        }
    }

    async fn open(&self, id: BackendId, host: &Uri) -> Result<Box<Driven>, Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let failure = obstacle(error).unwrap_or(Failure::Connect);
            warn_of(failure, &id, error, self.clock.now());
            tracing::debug!(backend = %id, ?failure, error, "no connection");
            failure
        };
        let io = self.connector.connect(host).await.map_err(|error| failed(&error))?;
        Driven::new(io).await.map_err(|error| failed(&error))
    }
}

fn classify(error: &hyper::Error, mark: &UseMark, unsent: bool, after: Duration) -> Failure {
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

/// The URI of a request on a backend.
#[must_use]
pub fn target(backend: &BackendUrl, path: &PathAndQuery) -> Uri {
    let mut parts = backend.uri().clone().into_parts();
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).expect("a backend's URL has a scheme and an authority")
}
