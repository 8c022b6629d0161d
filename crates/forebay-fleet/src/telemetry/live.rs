//! What is read, not recorded: what fleet and arms look like at the moment of the scrape. Rows are plain values, so
//! that telemetry does not know the fleet. It must never turn an unknown figure into a zero: an unknown one has no sample.

use std::time::Duration;

use super::metrics::{
    ARM_CROSSED, ARM_GPUS, ARM_SHARE, BackendState, IN_FLIGHT, KV_USAGE, PREDICTED_TTFT, QUEUE_DEPTH, RUNNING,
    SCRAPE_AGE, STATE, WAITING,
};
use super::recorder::Text;

/// What one backend looks like now.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRow {
    /// Label: the pool's model.
    pub pool: String,
    /// Label: the arm's name.
    pub arm: String,
    /// Label: as given to [`super::Telemetry::backend`].
    pub backend: String,
    /// What routing thinks of it.
    pub state: BackendState,
    /// Attempts under way without a token yet.
    pub prefilling: u32,
    /// Attempts under way past their first token.
    pub decoding: u32,
    /// Sequences waiting, as last scraped.
    pub queue_depth: Option<f64>,
    /// Sequences running, as last scraped.
    pub running: Option<f64>,
    /// Share of the KV cache in use, 0 to 1, as last scraped.
    pub kv_usage: Option<f64>,
    /// Since the last good scrape; `None`: there was none.
    pub scrape_age: Option<Duration>,
    /// For a typical request dispatched now.
    pub predicted_ttft: Option<Duration>,
}

/// What one arm looks like now.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmRow {
    /// Label: the pool's model.
    pub pool: String,
    /// Label: the arm's name.
    pub arm: String,
    /// As configured.
    pub gpus: u32,
    /// Of the pool's sessions, 0 to 1.
    pub share: f64,
    /// Requests assigned to it that another arm served, since the start of the process.
    pub crossed: u64,
    /// Requests assigned to it that wait for a backend with room.
    pub waiting: u32,
}

/// Writes every gauge of the rows.
pub(crate) fn render(text: &mut Text, backends: &[BackendRow], arms: &[ArmRow]) {
    for row in backends {
        let labels = [("pool", row.pool.as_str()), ("arm", row.arm.as_str()), ("backend", row.backend.as_str())];
        let with = |name, value| [labels[0], labels[1], labels[2], (name, value)];
        text.integer(&IN_FLIGHT, &with("phase", "prefill"), u64::from(row.prefilling));
        text.integer(&IN_FLIGHT, &with("phase", "decode"), u64::from(row.decoding));
        for state in BackendState::ALL {
            text.integer(&STATE, &with("state", state.label()), u64::from(row.state == *state));
        }
        let known = [
            (&QUEUE_DEPTH, row.queue_depth),
            (&RUNNING, row.running),
            (&KV_USAGE, row.kv_usage),
            (&SCRAPE_AGE, row.scrape_age.map(|age| age.as_secs_f64())),
            (&PREDICTED_TTFT, row.predicted_ttft.map(|ttft| ttft.as_secs_f64())),
        ];
        for (def, value) in known {
            if let Some(value) = value {
                text.number(def, &labels, value);
            }
        }
    }
    for row in arms {
        let labels = [("pool", row.pool.as_str()), ("arm", row.arm.as_str())];
        text.integer(&ARM_GPUS, &labels, u64::from(row.gpus));
        text.number(&ARM_SHARE, &labels, row.share);
        text.integer(&WAITING, &labels, u64::from(row.waiting));
        text.integer(&ARM_CROSSED, &labels, row.crossed);
    }
}
