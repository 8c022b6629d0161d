//! Scrapes the vLLM metrics of every backend, each in a task of its own, so that one that hangs delays no other. What fails
//! is counted by reason, and the last good sample stays, with its age. It must never take a failed scrape for an idle backend.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::{RhythmSource, at, for_each_backend, until_next};
use forebay_core::clock::Clock;
use forebay_core::sample::Sample;
use forebay_core::units::BackendId;
use forebay_core::vllm_metrics;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::ProbeFailure;
use forebay_fleet::{Backend, Fleet};

/// Scrapes in a row that must fail before an operator is told: a server that is busy with a long prompt misses one or two.
const TOLD_AFTER: u32 = 3;
/// A real text has about 50 KB; one with very many adapters or engines a few hundred.
const MAX_TEXT: usize = 8 << 20;

/// The scraper, as the things that it needs.
#[derive(Clone)]
pub struct Scraper {
    /// The fleet to scrape.
    pub fleet: Fleet,
    /// The fleet's clock.
    pub clock: Clock,
    /// `scrape.interval` and `scrape.timeout`.
    pub pace: RhythmSource,
    /// The place where panics are counted.
    pub telemetry: Arc<Telemetry>,
}

impl Scraper {
    /// Scrapes until it is dropped.
    pub async fn run(self) {
        let client = ProbeClient::new(Duration::from_secs(2));
        for_each_backend(&self.fleet, &self.telemetry, |id| self.clone().scrape_one(id, client.clone())).await;
    }

    async fn scrape_one(self, id: BackendId, mut client: ProbeClient) {
        let mut failures = 0;
        loop {
            let started = self.clock.now();
            let pace = (self.pace)();
            // Looked up each round: a reload may have given it another key.
            let Some(backend) = self.fleet.snapshot().backend(id).cloned() else { return };
            client.turn_to(&backend.endpoint);
            let result = scrape(&client, &backend, pace.timeout).await;
            self.take(&backend, result, &mut failures);
            until_next(pace.interval, started, &self.clock).await;
        }
    }

    fn take(&self, backend: &Backend, result: Result<Sample, ProbeError>, failures: &mut u32) {
        let now = self.clock.now();
        let answered = |error: &ProbeError| {
            matches!(error.failure, ProbeFailure::Status | ProbeFailure::TooLarge | ProbeFailure::Unreadable)
        };
        if result.as_ref().map_or_else(answered, |_| true) {
            backend.alarm.heard(now);
        }
        match result {
            Ok(sample) => {
                backend.load.set_sample(sample, now);
                if std::mem::take(failures) >= TOLD_AFTER {
                    info!(backend = %backend.id, url = %backend.url, "backend's metrics are read again");
                }
            }
            Err(error) => {
                backend.load.scrape_failed();
                backend.metrics.scrape_error(error.failure);
                *failures = failures.saturating_add(1);
                if *failures == TOLD_AFTER {
                    let words = "backend's metrics cannot be read: it is routed by what Forebay counts itself";
                    warn!(backend = %backend.id, url = %backend.url, %error, failures = *failures, "{words}");
                } else {
                    debug!(backend = %backend.id, url = %backend.url, %error, failures = *failures, "scrape failed");
                }
            }
        }
    }
}

async fn scrape(client: &ProbeClient, backend: &Backend, timeout: Duration) -> Result<Sample, ProbeError> {
    let key = backend.key.as_ref().map(|key| key.expose());
    let body = client.get_ok(at(&backend.url, "/metrics"), key, timeout, MAX_TEXT).await?;
    let unreadable = |reason: String| ProbeError::new(ProbeFailure::Unreadable, reason);
    let text = std::str::from_utf8(&body).map_err(|error| unreadable(error.to_string()))?;
    vllm_metrics::parse(text).map_err(|error| unreadable(error.to_string()))
}
