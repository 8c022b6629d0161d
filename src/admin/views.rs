//! From the fleet to what the admin API shows: the gauges of `/metrics` and the JSON of `/api/fleet`. One snapshot and one moment
//! for each answer.

use serde_json::Value;

use forebay_core::clock::Time;
use forebay_fleet::Snapshot;
use forebay_fleet::config::Config;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::view::FleetView;

/// The text of `/metrics`.
#[must_use]
pub fn metrics(telemetry: &Telemetry, snapshot: &Snapshot, config: &Config, now: Time) -> String {
    telemetry.process.slo_limits(config.slo.ttft, config.slo.tpot);
    let (backends, arms) = FleetView::new(snapshot, now).gauges();
    telemetry.render(&backends, &arms)
}

/// The JSON of `/api/fleet`.
#[must_use]
pub fn fleet(snapshot: &Snapshot, now: Time) -> Value {
    serde_json::to_value(FleetView::new(snapshot, now)).expect("plain structs with string keys are JSON")
}
