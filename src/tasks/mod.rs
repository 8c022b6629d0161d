//! What runs beside the requests: scrapes, probes, the watchdog, the watch over the configuration, the sources of backends, and
//! the question to a `--backend` what it serves. Each is a future that runs until it is dropped, and with it everything that it started. It must
//! never touch a request.

pub mod config_watcher;
pub mod discover;
pub mod drains;
mod models;
pub mod prober;
mod rest;
pub mod scraper;
mod served;
pub mod sources;
mod trial;
pub mod watchdog;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use tokio::task::{AbortHandle, JoinSet};

use forebay_core::clock::{Clock, Time};
use forebay_core::units::BackendId;
use forebay_fleet::Fleet;
use forebay_fleet::config::model::BackendUrl;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::Panicked;
use forebay_fleet::telemetry::panics::caught;

/// The interval and the timeout of something that is done again and again; read anew each round, so that a reload changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// From start to start.
    pub interval: Duration,
    /// The deadline of one.
    pub timeout: Duration,
}

/// The function that a task asks for its pace.
pub type RhythmSource = Arc<dyn Fn() -> Rhythm + Send + Sync>;

/// The time between two comparisons of the snapshot with what runs.
const MEMBERSHIP: Duration = Duration::from_millis(200);

/// From the panic of a task to its next beginning.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps one task running for each backend of the snapshot: one starts when a backend comes and is ended when it leaves, and
/// a hung one delays no other, nor does one that panics, which begins anew. Never returns; dropping it ends them all.
async fn for_each_backend<F>(fleet: &Fleet, telemetry: &Arc<Telemetry>, task: impl Fn(BackendId) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut running: HashMap<BackendId, AbortHandle> = HashMap::new();
    loop {
        let snapshot = fleet.snapshot();
        running.retain(|id, handle| {
            let stays = snapshot.backend(*id).is_some() && !handle.is_finished();
            if !stays {
                handle.abort();
            }
            stays
        });
        for backend in snapshot.backends() {
            running.entry(backend.id).or_insert_with(|| {
                let (telemetry, task) = (Arc::clone(telemetry), task(backend.id));
                tasks.spawn(async move { _ = caught(&telemetry, Panicked::Task, task).await })
            });
        }
        // Otherwise the set keeps the results of all tasks that ever ended.
        while tasks.try_join_next().is_some() {}
        tokio::time::sleep(MEMBERSHIP).await;
    }
}

/// Sleeps until the next round is due, ±10 % of the interval, so that neither the backends of one proxy nor several proxies
/// are asked in step. A round that took too long does not make the next one come at once.
async fn until_next(interval: Duration, started: Time, clock: &Clock) {
    let interval = interval.mul_f64(0.9 + 0.2 * fastrand::f64());
    let left = interval.saturating_sub(clock.now().since(started));
    tokio::time::sleep(left.max(interval / 10)).await;
}

/// Keeps a task going that is to run until it is dropped: one that panics begins anew a moment later.
pub async fn kept<F: Future<Output = ()>>(telemetry: Arc<Telemetry>, task: impl Fn() -> F) {
    while caught(&telemetry, Panicked::Task, task()).await.is_none() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// The address of a path on a backend.
fn at(url: &BackendUrl, path: &'static str) -> Uri {
    url.at(&PathAndQuery::from_static(path))
}

#[cfg(test)]
mod tests;
