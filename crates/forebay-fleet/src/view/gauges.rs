//! The gauges on `/metrics`: what each shows of a backend or an arm as it is now. To add one, declare it in
//! `telemetry/metrics.rs` and add a line to a table here. A value that is not known, or too old, has no sample; it must never
//! become a zero.

use super::{ArmView, BackendView, FleetView, PoolView};
use crate::source::SourceView;
use crate::telemetry::live::{ArmRow, BackendRow, Reading};
use crate::telemetry::metrics::{
    ARM_CROSSED, ARM_GPUS, ARM_SHARE, BackendState, DISCOVERED, DISCOVERY_AGE, DISCOVERY_ERRORS, IN_FLIGHT, KV_USAGE,
    PREDICTED_TTFT, QUEUE_DEPTH, RUNNING, SCRAPE_AGE, STALLED, STATE, WAIT_ROOM_SIZE, WAITING,
};
use crate::telemetry::recorder::Def;
use forebay_core::sample::Sample;

/// A gauge, a label beside those of its backend, and its value.
type BackendGauge = (&'static Def, Option<(&'static str, &'static str)>, fn(&BackendView) -> Option<f64>);

const OF_BACKEND: &[BackendGauge] = &[
    (&IN_FLIGHT, Some(("phase", "prefill")), |backend| Some(backend.load.prefilling.into())),
    (&IN_FLIGHT, Some(("phase", "decode")), |backend| Some(backend.load.decoding.into())),
    (&QUEUE_DEPTH, None, |backend| fresh(backend)?.waiting),
    (&RUNNING, None, |backend| fresh(backend)?.running),
    (&KV_USAGE, None, |backend| fresh(backend)?.kv_usage),
    (&SCRAPE_AGE, None, |backend| Some(backend.load.scrape.as_ref()?.age_seconds)),
    (&STALLED, None, |backend| Some(backend.stalled_for_seconds.unwrap_or(0.0))),
    (&PREDICTED_TTFT, None, |backend| Some(backend.predicted_ttft_seconds)),
];

/// A gauge of an arm, and its value in its pool.
type ArmGauge = (&'static Def, fn(&PoolView, &ArmView) -> f64);

const OF_ARM: &[ArmGauge] = &[
    (&ARM_GPUS, |_, arm| arm.gpus.into()),
    (&ARM_SHARE, |pool, arm| {
        let all: f64 = pool.arms.iter().map(|arm| arm.share).sum();
        if all > 0.0 { arm.share / all } else { 0.0 }
    }),
    (&WAITING, |_, arm| arm.waiting.into()),
    (&ARM_CROSSED, |_, arm| arm.crossed as f64),
];

/// A gauge of a pool, and its value.
type PoolGauge = (&'static Def, fn(&PoolView) -> f64);

const OF_POOL: &[PoolGauge] = &[(&WAIT_ROOM_SIZE, |pool| pool.wait_room.size as f64)];

/// Returns what the last scrape said, if it is not too old.
fn fresh(backend: &BackendView) -> Option<Sample> {
    backend.load.scrape.as_ref().filter(|scrape| !scrape.stale).map(|scrape| scrape.sample)
}

impl FleetView {
    /// The gauges of every backend, and those of every arm and pool.
    #[must_use]
    pub fn gauges(&self) -> (Vec<BackendRow>, Vec<ArmRow>) {
        let (mut backends, mut arms) = (Vec::new(), Vec::new());
        for pool in &self.pools {
            // Once for each pool: by arm the sum over a pool would count its places again and again.
            let readings = OF_POOL.iter().map(|(def, value)| Reading::of(def, value(pool))).collect();
            arms.push(ArmRow { pool: pool.model.clone(), arm: None, readings });
            for arm in &pool.arms {
                let readings = OF_ARM.iter().map(|(def, value)| Reading::of(def, value(pool, arm)));
                let readings = readings.chain(arm.source.iter().flat_map(of_source)).collect();
                arms.push(ArmRow { pool: pool.model.clone(), arm: Some(arm.name.clone()), readings });
                backends.extend(arm.backends.iter().map(|backend| BackendRow {
                    pool: pool.model.clone(),
                    arm: arm.name.clone(),
                    backend: backend.authority.clone(),
                    readings: readings_of(backend),
                }));
            }
        }
        (backends, arms)
    }
}

/// The readings of a source of backends. Before it has answered, it has found nothing and has no age.
fn of_source(source: &SourceView) -> Vec<Reading> {
    // Not known is not zero: an alert on no backends must not fire at each start.
    let kind = Some(("source", source.kind));
    let answered = source.age_seconds.into_iter().flat_map(|age| {
        let found = Reading { label: kind, ..Reading::of(&DISCOVERED, source.found as f64) };
        [found, Reading { label: kind, ..Reading::of(&DISCOVERY_AGE, age) }]
    });
    let errors = source.errors.iter().map(|(reason, count)| Reading {
        label: Some(("reason", reason)),
        ..Reading::of(&DISCOVERY_ERRORS, *count as f64)
    });
    answered.chain(errors).collect()
}

fn readings_of(backend: &BackendView) -> Vec<Reading> {
    let gauges = OF_BACKEND.iter().filter_map(|(def, label, value)| {
        let value = value(backend).filter(|value| value.is_finite())?;
        Some(Reading { label: *label, ..Reading::of(def, value) })
    });
    let states = BackendState::ALL.iter().map(|state| {
        let value = f64::from(u8::from(state.label() == backend.state));
        Reading { label: Some(("state", state.label())), ..Reading::of(&STATE, value) }
    });
    gauges.chain(states).collect()
}
