//! From a backend's id to its HTTP client: one pooled client a backend, a second one that never reuses a connection, and
//! the mapping of hyper's errors to `error::Failure`. Knows nothing of routing; decides nothing about another attempt.
//!
//! Hot path: one `ArcSwap` load and one hash look-up a request; clients are made when a backend is first used.

mod body;
mod connect;
pub mod descriptors;
pub mod stall;
pub mod tunnel;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub use self::body::Pieces;
use self::connect::{Connector, UseMark};
use self::descriptors::Descriptors;
use forebay_core::clock::Clock;
use forebay_core::error::Failure;
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::obstacle::{mistrust, obstacle, warn_of};
use forebay_fleet::reach::Endpoint;

/// The body of a backend's answer.
pub type AnswerBody = Incoming;

/// vLLM's server closes an idle connection after 5 s; ours are given up before.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// The most that is read of an answer at once, and the longest head of one. With hyper's own 408 KiB, a stream whose backend is
/// faster than its client holds 540 to 1060 KiB (`tests/it/stuck.rs`); with this 190 to 240.
const READ_BUFFER: usize = 64 << 10;
/// The most headers of an answer.
const MOST_HEADERS: usize = 1024;
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
    /// One from the pool, where there is one.
    Pooled,
    /// A new one.
    Fresh,
}

/// The HTTP clients of all backends.
pub struct Upstream {
    clients: ArcSwap<HashMap<BackendId, Arc<BackendClient>>>,
    writer: Mutex<()>,
    limits: Limits,
    clock: Clock,
}

struct BackendClient {
    /// The way that its connections go.
    endpoint: Arc<Endpoint>,
    pooled: Client<Connector, Pieces>,
    fresh: Client<Connector, Pieces>,
}

impl BackendClient {
    fn new(limits: &Limits, endpoint: Arc<Endpoint>) -> BackendClient {
        let connector = Connector {
            endpoint: Arc::clone(&endpoint),
            timeout: limits.connect_timeout,
            write_stall: limits.write_stall,
            descriptors: Arc::clone(&limits.descriptors),
        };
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .http1_max_buf_size(READ_BUFFER)
            .http1_max_headers(MOST_HEADERS);
        let pooled = builder.build(connector.clone());
        let fresh = builder.pool_max_idle_per_host(0).retry_canceled_requests(false).build(connector);
        BackendClient { endpoint, pooled, fresh }
    }
}

impl Upstream {
    /// No clients yet; each is made when its backend is first used.
    #[must_use]
    pub fn new(limits: Limits, clock: Clock) -> Upstream {
        Upstream { clients: ArcSwap::default(), writer: Mutex::new(()), limits, clock }
    }

    /// Forgets the clients of backends that are gone; their idle connections close, attempts under way go on.
    pub fn retain(&self, is_live: impl Fn(BackendId) -> bool) {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.clients.load();
        if old.keys().all(|id| is_live(*id)) {
            return;
        }
        let kept = old.iter().filter(|(id, _)| is_live(**id)).map(|(id, client)| (*id, Arc::clone(client))).collect();
        self.clients.store(Arc::new(kept));
    }

    fn client(&self, backend: &Backend) -> Arc<BackendClient> {
        let goes_there = |client: &&Arc<BackendClient>| Arc::ptr_eq(&client.endpoint, &backend.endpoint);
        if let Some(client) = self.clients.load().get(&backend.id).filter(goes_there) {
            return Arc::clone(client);
        }
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::clone(&self.clients.load());
        if let Some(client) = all.get(&backend.id).filter(goes_there) {
            return Arc::clone(client);
        }
        // A reload has changed the way to the backend. Attempts under way hold the old client, whose idle connections close.
        let client = Arc::new(BackendClient::new(&self.limits, Arc::clone(&backend.endpoint)));
        all.insert(backend.id, Arc::clone(&client));
        self.clients.store(Arc::new(all));
        client
    }

    /// Sends one request and waits for the head of the answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// `Failure::Connect` where no connection was made, `Failure::Shortage` or `Failure::Unreachable` where that was this host's
    /// doing, `Failure::Tls` where the two do not agree on TLS, `Failure::Reused` where a kept-alive one failed at once, `Failure::Died` otherwise.
    pub async fn send(
        &self,
        backend: &Backend,
        connection: Connection,
        request: Request<Pieces>,
    ) -> Result<Response<Incoming>, Failure> {
        let client = self.client(backend);
        let client = match connection {
            Connection::Pooled => &client.pooled,
            Connection::Fresh => &client.fresh,
        };
        let sent = self.clock.now();
        match client.request(request).await {
            Ok(mut response) => {
                // From now on this connection is a reused one, whose break may just be the server's idle timeout.
                if let Some(mark) = response.extensions_mut().remove::<UseMark>() {
                    mark.set();
                }
                Ok(response)
            }
            Err(error) => {
                let now = self.clock.now();
                let (failure, id) = (classify(&error, now.since(sent)), backend.id);
                match mistrust(&error) {
                    Some(why) => warn_of(failure, &id, &*Box::<dyn std::error::Error>::from(why), now),
                    None => warn_of(failure, &id, &error, now),
                }
                tracing::debug!(backend = %id, ?failure, error = &error as &dyn std::error::Error, "attempt failed");
                Err(failure)
            }
        }
    }
}

fn classify(error: &ClientError, after: Duration) -> Failure {
    // Before a death is thought of: under TLS 1.3 a server refuses after the handshake, when the request may be with it.
    if mistrust(error).is_some() {
        return Failure::Tls;
    }
    match obstacle(error) {
        Some(Failure::Shortage) => return Failure::Shortage,
        Some(failure) if error.is_connect() => return failure,
        _ => {}
    }
    if error.is_connect() {
        return Failure::Connect;
    }
    let mut extensions = http::Extensions::new();
    if let Some(info) = error.connect_info() {
        info.get_extras(&mut extensions);
    }
    match extensions.get::<UseMark>() {
        Some(mark) if mark.is_used() => {
            // A server may close an idle connection at the very moment at which it is used. Only then is a second try
            // free.
            if after < REUSE_WINDOW && (was_never_sent(error) || !mark.has_answered()) {
                Failure::Reused
            } else {
                Failure::Died
            }
        }
        _ if was_never_sent(error) => Failure::Connect,
        _ => Failure::Died,
    }
}

/// The failure of an answer that broke: a shortage of ours if that is why, else `otherwise`.
#[must_use]
pub fn shortage_or(otherwise: Failure, broke: &hyper::Error) -> Failure {
    obstacle(broke).filter(|failure| *failure == Failure::Shortage).unwrap_or(otherwise)
}

/// Returns whether hyper gave the request back unsent: the connection closed before.
fn was_never_sent(error: &ClientError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<hyper::Error>());
    source.is_some_and(hyper::Error::is_canceled)
}

/// The URI of a request on a backend.
#[must_use]
pub fn target(backend: &BackendUrl, path: &PathAndQuery) -> Uri {
    backend.at(path)
}
