//! What a load is sent from: bodies that are ready, or what makes them when their time has come, so that a long trace or a
//! conversation is never whole in memory.

use std::time::Duration;

use bytes::Bytes;

use super::conversations::Script;
use super::trace::Replay;
use crate::load::workload::{Rate, Workload};

/// The requests of a load.
#[derive(Clone, Debug)]
pub enum Supply {
    /// One body for each request.
    Ready(Vec<Bytes>),
    /// The requests of a trace.
    Replay(Replay),
    /// Conversations, of which each prompt depends on the answers before it.
    Conversations(Script),
}

impl Supply {
    /// Returns when each request is sent, or each conversation begins, for a load sent like `workload`.
    #[must_use]
    pub fn arrivals(&self, workload: &Workload) -> Vec<Duration> {
        match (self, workload.rate) {
            (Supply::Replay(replay), Rate::OfTrace { speedup }) => replay.trace.arrivals(speedup),
            (Supply::Conversations(script), _) => {
                let workload = Workload { rate: workload.rate, ..script.workload.clone() };
                Script { workload, ..script.clone() }.arrivals()
            }
            _ => workload.arrivals(),
        }
    }

    /// Returns the requests for servers that are so many times as fast as real ones.
    #[must_use]
    pub fn paced(self, time_scale: f64) -> Supply {
        match self {
            Supply::Conversations(script) => Supply::Conversations(Script { time_scale, ..script }),
            other => other,
        }
    }
}
