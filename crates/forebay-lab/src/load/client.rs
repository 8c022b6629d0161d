//! The HTTP client of the load generator, and what a load is sent with and to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::sync::{Mutex, Notify};

use forebay_core::clock::Clock;
use forebay_fleet::probe::{POOL_IDLE, ProbeClient, ProbeError};

use crate::rows::record::Record;

/// The time within which what is asked beside the load must be answered. A server that loads a model answers late.
const DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of such an answer, at most: a count of a prompt comes with its token ids.
const MAX_ANSWER: usize = 64 << 20;
/// Counts of prompts under way at once: a server counts in its event loop, so more would gain nothing.
pub(super) const COUNTING: u32 = 16;
/// Bytes of an error answer that are kept.
pub(super) const ERROR_BYTES: usize = 500;

/// The tokens of each word; none where a server does not tell them at once.
pub(super) type WordLengths = Option<Vec<(&'static str, usize)>>;

/// A server that requests go to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scheme, host and port, without a slash at the end.
    pub base: String,
    /// The arm of its answers, where they do not tell it themselves.
    pub arm: Option<String>,
    /// The backend of its answers, where they do not tell it themselves.
    pub backend: Option<String>,
}

impl Target {
    /// A target whose answers tell their arm and backend, or have none.
    #[must_use]
    pub fn of(base: impl Into<String>) -> Target {
        Target { base: base.into(), arm: None, backend: None }
    }

    /// The server at a URL: `http://host:port`, with `/v1` behind it or without.
    ///
    /// # Errors
    /// It is no such URL.
    pub fn parse(url: &str) -> Result<Target, ClientError> {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        match base.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) => {
                Ok(Target::of(base))
            }
            _ => Err(ClientError::Url(url.to_owned())),
        }
    }

    /// Its host and port: what Forebay calls a backend.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.base.split_once("://").map_or(self.base.as_str(), |(_, rest)| rest)
    }
}

/// The way in which a load is sent.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    /// Requests, or conversations, under way at once, at most; none: no limit.
    pub max_concurrency: Option<usize>,
    /// Gives each request a session of its own in this header, and each conversation one for all of its turns.
    pub session_header: Option<String>,
    /// The number of the epoch in its records.
    pub epoch: u32,
}

/// The progress of a run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that have ended.
    pub done: AtomicU64,
    /// Token events so far.
    pub tokens: AtomicU64,
    stop: AtomicBool,
    stopping: Notify,
}

impl Progress {
    /// Ends the run: nothing more is sent, and requests without a whole answer are dropped.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.stopping.notify_waiters();
    }

    /// Returns whether the run was told to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits until the run is told to end.
    pub(super) async fn stopped(&self) {
        // Registered before the look, or a stop between the two would be missed.
        let stopping = self.stopping.notified();
        if !self.is_stopped() {
            stopping.await;
        }
    }
}

/// The records of a run, and its load generator's lag.
#[derive(Clone, Debug)]
pub struct Run {
    /// One for each request, by number.
    pub records: Vec<Record>,
    /// The delay with which the generator noted what had come, at the 99th percentile.
    pub lag_p99: Duration,
}

/// A request that got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The text is no URL.
    #[error("`{0}` is not the URL of a server: write http://HOST:PORT; https is not supported here")]
    Url(String),
    /// No connection, or it broke, or no whole answer came in time.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The URL.
        url: String,
        /// The system's message.
        reason: String,
    },
    /// Another status than 200.
    #[error("{url} answered {status}: {text}")]
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: StatusCode,
        /// The beginning of the answer.
        text: String,
    },
    /// An answer that cannot be read.
    #[error("{0} did not answer with JSON")]
    NotJson(String),
}

/// An HTTP client that keeps connections.
#[derive(Clone)]
pub struct Client {
    pub(super) http: HyperClient<HttpConnector, Full<Bytes>>,
    pub(super) clock: Clock,
    pub(super) headers: HeaderMap,
    /// For what is asked beside the load.
    asking: ProbeClient,
    /// Tokens of each word, by server and model: warm-ups and each load of a sweep ask for the same words.
    pub(super) word_lengths: Arc<Mutex<BTreeMap<(String, String), WordLengths>>>,
}

impl Default for Client {
    fn default() -> Client {
        let mut connector = HttpConnector::new();
        // Nagle's algorithm holds a request's last bytes back for an acknowledgement, up to 40 ms, and that would be TTFT.
        connector.set_nodelay(true);
        let http = HyperClient::builder(TokioExecutor::new())
            // Shorter than a server's own keep-alive: a connection that it is just closing would be a failed request of the
            // load.
            .pool_idle_timeout(POOL_IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let json = HeaderValue::from_static("application/json");
        Client {
            http,
            clock: Clock::system(),
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, json)]),
            asking: ProbeClient::keeping(DEADLINE, COUNTING as usize),
            word_lengths: Arc::default(),
        }
    }
}

impl Client {
    /// Returns the client with these headers in each request: keys, for one.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Client {
        self.asking = self.asking.with_headers(headers.clone());
        self.headers.extend(headers);
        self
    }

    /// Returns the clock that tells its times.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Asks for JSON: GET, or POST of a body.
    ///
    /// # Errors
    /// There is no answer, its status is not 200, or it is no JSON.
    pub async fn json(&self, url: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let uri: Uri = url.parse().map_err(|_| ClientError::Url(url.to_owned()))?;
        let answer = match body {
            Some(body) => self.asking.post(uri, None, body.to_string(), DEADLINE, MAX_ANSWER).await,
            None => self.asking.get(uri, None, DEADLINE, MAX_ANSWER).await,
        };
        let unreachable = |error: ProbeError| ClientError::Unreachable { url: url.to_owned(), reason: error.detail };
        let (status, bytes) = answer.map_err(unreachable)?;
        if status != StatusCode::OK {
            // A proxy in between may answer with a page of HTML, and this goes into a message of one line.
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(ERROR_BYTES)]).into_owned();
            return Err(ClientError::Status { url: url.to_owned(), status, text });
        }
        serde_json::from_slice(&bytes).map_err(|_| ClientError::NotJson(url.to_owned()))
    }
}
