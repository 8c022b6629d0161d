//! From the fleet to what the admin API shows: rows for `/metrics` and the JSON of `/api/fleet`. One snapshot and one moment
//! for each answer. It must never make up a figure: what is stale or was never scraped has no row.

use std::time::Duration;

use serde_json::Value;

use forebay_core::clock::Time;
use forebay_core::units::BackendId;
use forebay_fleet::Snapshot;
use forebay_fleet::load::view::ScrapeView;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::BackendState;
use forebay_fleet::telemetry::live::{ArmRow, BackendRow};
use forebay_fleet::view::{ArmView, BackendView, FleetView, PoolView};

/// The text of `/metrics`.
#[must_use]
pub fn metrics(telemetry: &Telemetry, snapshot: &Snapshot, now: Time) -> String {
    let (backends, arms) = rows(snapshot, now);
    telemetry.render(&backends, &arms)
}

/// The JSON of `/api/fleet`.
#[must_use]
pub fn fleet(snapshot: &Snapshot, now: Time) -> Value {
    serde_json::to_value(FleetView::new(snapshot, now)).expect("plain structs with string keys are JSON")
}

fn rows(snapshot: &Snapshot, now: Time) -> (Vec<BackendRow>, Vec<ArmRow>) {
    let (mut backends, mut arms) = (Vec::new(), Vec::new());
    for pool in FleetView::new(snapshot, now).pools {
        let shares: f64 = pool.arms.iter().map(|arm| arm.share).sum();
        for arm in &pool.arms {
            let share = if shares > 0.0 { arm.share / shares } else { 0.0 };
            let (model, name) = (pool.model.clone(), arm.name.clone());
            let (gpus, crossed, waiting) = (arm.gpus, arm.crossed, arm.waiting);
            arms.push(ArmRow { pool: model, arm: name, gpus, share, crossed, waiting });
            backends.extend(arm.backends.iter().filter_map(|backend| {
                let state = state(snapshot, backend.id)?;
                Some(backend_row(snapshot, &pool, arm, backend, state))
            }));
        }
    }
    (backends, arms)
}

fn backend_row(
    snapshot: &Snapshot,
    pool: &PoolView,
    arm: &ArmView,
    backend: &BackendView,
    state: BackendState,
) -> BackendRow {
    let fresh: Option<&ScrapeView> = backend.load.scrape.as_ref().filter(|scrape| !scrape.stale);
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    // The label by which the backend's own handles were made.
    let label = snapshot.backend(backend.id).map_or(backend.url.as_str(), |backend| backend.url.authority());
    BackendRow {
        pool: pool.model.clone(),
        arm: arm.name.clone(),
        backend: label.to_owned(),
        state,
        prefilling: backend.load.prefilling,
        decoding: backend.load.decoding,
        queue_depth: fresh.and_then(|scrape| scrape.sample.waiting),
        running: fresh.and_then(|scrape| scrape.sample.running),
        kv_usage: fresh.and_then(|scrape| scrape.sample.kv_usage),
        scrape_age: backend.load.scrape.as_ref().and_then(|scrape| seconds(scrape.age_seconds)),
        predicted_ttft: seconds(backend.predicted_ttft_seconds),
    }
}

fn state(snapshot: &Snapshot, id: BackendId) -> Option<BackendState> {
    let mut members = snapshot.pools.iter().flat_map(|pool| pool.members());
    members.find(|member| member.backend.id == id).map(|member| member.state.kind())
}
