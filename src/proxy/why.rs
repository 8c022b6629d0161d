//! Why a request went where it went: for the debug log, and for a client that asks and may (`x-forebay-explain: 1`). The last
//! decision counts: the one after a failover.
//!
//! Hot path: nothing unless somebody asks.

use std::net::SocketAddr;

use http::header::{HeaderMap, HeaderValue};

use super::headers;
use crate::config::model::Explain;
use crate::fleet::Dispatched;

/// Bytes of a decision in an answer's header, and in the log.
const TOLD_MAX: usize = 1024;
const LOGGED_MAX: usize = 64 << 10;

/// Who asks, and what they are told.
pub(super) struct Why {
    client_asks: bool,
    told: Option<HeaderValue>,
}

impl Why {
    /// What a request's head asks for, as far as its client may.
    pub(super) fn new(may: Explain, client: Option<SocketAddr>, asked: &HeaderMap) -> Why {
        let asks = asked.get(headers::EXPLAIN).is_some_and(|value| value == "1");
        Why { client_asks: asks && may.allows(client), told: None }
    }

    /// Whether the rows of a decision are to be kept.
    pub(super) fn is_asked(&self) -> bool {
        self.client_asks || tracing::enabled!(tracing::Level::DEBUG)
    }

    /// A decision was made.
    pub(super) fn decided(&mut self, dispatched: &Dispatched, request_id: &HeaderValue) {
        let Some(trace) = &dispatched.trace else { return };
        let request_id = request_id.to_str().unwrap_or_default();
        tracing::debug!(request_id, decision = %trace.line(&dispatched.decision, LOGGED_MAX), "dispatched");
        if self.client_asks {
            self.told = HeaderValue::try_from(trace.line(&dispatched.decision, TOLD_MAX)).ok();
        }
    }

    /// Puts the words on the answer.
    pub(super) fn mark(&self, answer: &mut HeaderMap) {
        if let Some(told) = &self.told {
            answer.insert(headers::EXPLAIN, told.clone());
        }
    }
}
