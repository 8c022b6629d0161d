//! What a tick of `/api/live/stream` tells, as far as `forebay top` shows it. What it does not know it leaves out, so that a newer proxy
//! can be watched as well.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One tick of one proxy.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Tick {
    pub(super) version: String,
    pub(super) uptime_seconds: f64,
    pub(super) not_ready: Option<String>,
    pub(super) windows: Vec<String>,
    pub(super) pools: Vec<PoolTick>,
    pub(super) decisions: Vec<Decision>,
}

/// One pool.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PoolTick {
    pub(super) model: String,
    pub(super) sentence: String,
    pub(super) wait_room: WaitRoomTick,
    pub(super) arms: Vec<ArmTick>,
}

/// The requests that wait.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct WaitRoomTick {
    pub(super) waiting: u32,
}

/// One arm.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ArmTick {
    pub(super) name: String,
    pub(super) share: f64,
    pub(super) gpus: u32,
    pub(super) figures: BTreeMap<String, FiguresTick>,
    pub(super) backends: Vec<BackendTick>,
}

/// The figures of an arm or of a backend in one window.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FiguresTick {
    pub(super) covers_seconds: f64,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) refused: u64,
    pub(super) slo_met: u64,
    pub(super) slo_missed: u64,
    pub(super) ttft: SpreadTick,
    pub(super) tpot: SpreadTick,
}

/// The distribution of a time.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SpreadTick {
    pub(super) p50_seconds: Option<f64>,
    pub(super) p95_seconds: Option<f64>,
}

/// One backend.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct BackendTick {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) state_for_seconds: f64,
    pub(super) stalled_for_seconds: Option<f64>,
    pub(super) prefilling: u32,
    pub(super) decoding: u32,
    pub(super) queue_depth: Option<f64>,
    pub(super) kv_usage: Option<f64>,
    pub(super) figures: BTreeMap<String, FiguresTick>,
}

/// One decision in words.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Decision {
    pub(super) ago_seconds: f64,
    pub(super) why: String,
    pub(super) request_id: String,
    pub(super) measured_seconds: Option<f64>,
}

impl BackendTick {
    /// Returns whether it takes requests.
    pub(super) fn is_healthy(&self) -> bool {
        self.state == "healthy"
    }

    /// Sequences that Forebay has under way there.
    pub(super) fn in_flight(&self) -> u32 {
        self.prefilling + self.decoding
    }
}
