//! Sends a load and times it. One task for each request; the only thing between the socket and the clock is the parser of
//! events. Says how late its own timers were, because a generator that lags measures itself.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::clock::Clock;

use super::exchange::Exchange;
use super::record::Record;
use super::workload::Workload;

/// Below uvicorn's 5 s, so that no request meets a closing connection.
const IDLE: Duration = Duration::from_secs(4);
/// Between two looks at the event loop's own delay.
const BEAT: Duration = Duration::from_millis(10);
/// What a timer of tokio may be late by design.
const GRANULARITY: Duration = Duration::from_millis(1);
/// Bytes of an error answer that are kept.
pub(super) const ERROR_BYTES: usize = 500;

/// Where requests go.
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
}

/// How to send a load.
#[derive(Clone, Debug, Default)]
pub struct Sending {
    /// Requests under way at once, at most; none: no limit.
    pub max_concurrency: Option<usize>,
    /// Gives each request a session of its own, in this header.
    pub session_header: Option<String>,
    /// The number of the epoch in its records.
    pub epoch: u32,
}

/// How far a run is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests that have ended.
    pub done: AtomicU64,
    /// Events with text so far.
    pub tokens: AtomicU64,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// One for each request, by number.
    pub records: Vec<Record>,
    /// How late the generator's own timers were, at the 99th percentile.
    pub lag_p99: Duration,
}

/// A request that got no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The text is no URL.
    #[error("`{0}` is not the URL of a server: write http://host:port")]
    Url(String),
    /// No connection, or it broke.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// Another status than 200.
    #[error("{url} answered {status}: {text}")]
    Status {
        /// Where.
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
    http: HyperClient<HttpConnector, Full<Bytes>>,
    clock: Clock,
}

impl Default for Client {
    fn default() -> Client {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Client { http, clock: Clock::system() }
    }
}

pub(super) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl Client {
    /// Asks for JSON: GET, or POST of a body.
    ///
    /// # Errors
    /// There is no answer, its status is not 200, or it is no JSON.
    pub async fn json(&self, url: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|_| ClientError::Url(url.to_owned()))?;
        let unreachable =
            |error: &dyn std::error::Error| ClientError::Unreachable { url: url.to_owned(), reason: reason(error) };
        let response = self.http.request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(|error| unreachable(&error))?.to_bytes();
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(ERROR_BYTES)]).into_owned();
            return Err(ClientError::Status { url: url.to_owned(), status, text });
        }
        serde_json::from_slice(&bytes).map_err(|_| ClientError::NotJson(url.to_owned()))
    }

    /// The bodies of a load, each with a prompt of the wanted length by the server's own `/tokenize`.
    ///
    /// # Errors
    /// The server has no `/tokenize`, or it does not answer.
    pub async fn bodies(&self, base: &str, workload: &Workload) -> Result<Vec<Bytes>, ClientError> {
        let url = format!("{base}/tokenize");
        let mut bodies = Vec::with_capacity(workload.num_prompts as usize);
        let mut words = i64::from(workload.input_len);
        for id in 0..workload.num_prompts {
            let mut prompt = String::new();
            // The first prompt finds what the template adds; a longer word in a later one takes another round.
            for _ in 0..8 {
                prompt = workload.words(id, words.max(1) as u32);
                let (key, value) = workload.endpoint.prompt(&prompt);
                let counted = self.json(&url, Some(&json!({"model": workload.model, key: value}))).await?;
                let count = counted["count"].as_i64().ok_or_else(|| ClientError::NotJson(url.clone()))?;
                if count == i64::from(workload.input_len) || words <= 1 && count > i64::from(workload.input_len) {
                    break;
                }
                words += i64::from(workload.input_len) - count;
            }
            bodies.push(Bytes::from(workload.body(&prompt)));
        }
        Ok(bodies)
    }

    /// Sends the bodies at their times, in turn to each target, and waits for all answers.
    ///
    /// # Panics
    /// There is no target.
    pub async fn run(
        &self,
        targets: &[Target],
        workload: &Workload,
        bodies: &[Bytes],
        sending: &Sending,
        progress: &Arc<Progress>,
    ) -> Run {
        let lateness = Lateness::watch(self.clock.clone());
        let room = sending.max_concurrency.map(|limit| Arc::new(Semaphore::new(limit)));
        let begin = self.clock.now();
        let mut tasks = Vec::with_capacity(bodies.len());
        for (index, (body, at)) in bodies.iter().zip(workload.arrivals()).enumerate() {
            let wait = (begin + at).since(self.clock.now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let permit = match &room {
                Some(room) => Arc::clone(room).acquire_owned().await.ok(),
                None => None,
            };
            let session = sending.session_header.clone().map(|name| (name, format!("{:x}-{index}", workload.seed)));
            let exchange = Exchange {
                http: self.http.clone(),
                clock: self.clock.clone(),
                target: targets[index % targets.len()].clone(),
                path: workload.endpoint.path(),
                body: body.clone(),
                session,
                begin,
                progress: Arc::clone(progress),
            };
            let blank = Record::unsent(index as u32, sending.epoch);
            tasks.push(tokio::spawn(async move {
                let record = exchange.run(blank).await;
                drop(permit);
                record
            }));
        }
        let mut records = Vec::with_capacity(tasks.len());
        for task in tasks {
            records.push(task.await.expect("a request's task neither panics nor is aborted"));
        }
        Run { records, lag_p99: lateness.p99() }
    }
}

/// How late a timer of this runtime is, looked at all the time: what keeps it from firing keeps events from being timed.
struct Lateness {
    beats: Arc<Mutex<Histogram<u64>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Lateness {
    fn watch(clock: Clock) -> Lateness {
        let beats = Arc::new(Mutex::new(Histogram::new(3).expect("three digits are allowed")));
        let noted = Arc::clone(&beats);
        let task = tokio::spawn(async move {
            loop {
                let due = clock.now() + BEAT;
                tokio::time::sleep(BEAT).await;
                // A timer of tokio fires up to a millisecond after its time by design.
                let late = clock.now().since(due).saturating_sub(GRANULARITY);
                let mut beats: MutexGuard<'_, Histogram<u64>> = noted.lock().unwrap_or_else(PoisonError::into_inner);
                beats.saturating_record(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
            }
        });
        Lateness { beats, task }
    }

    fn p99(&self) -> Duration {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(beats.value_at_quantile(0.99))
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests;
