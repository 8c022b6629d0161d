//! Explanations a request went where it went: for the debug log, and for a client that asks and may (`x-forebay-explain: 1`). The last
//! decision counts: the one after a failover. Who watches the live page sees a few decisions a second.
//!
//! Hot path: nothing unless somebody asks or watches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};

use crate::proxy::headers;
use forebay_core::clock::Clock;
use forebay_fleet::Dispatched;
use forebay_fleet::config::model::Explain;
use forebay_fleet::telemetry::decisions::{Decisions, Told};

/// Bytes of a decision in an answer's header, and in the log.
const TOLD_MAX: usize = 1024;
const LOGGED_MAX: usize = 64 << 10;

/// The place where who watches is told, and the clock for when.
pub(crate) struct Audience<'a> {
    pub(crate) decisions: &'a Decisions,
    pub(crate) clock: &'a Clock,
}

/// The record of who asks, and of what they are told.
pub(crate) struct Explanations {
    client_asks: bool,
    told: Option<HeaderValue>,
    /// The next decision is for who watches.
    watched: bool,
    /// Its number there.
    number: Option<u64>,
}

impl Explanations {
    /// Reads what a request's head asks for, as far as its client may.
    pub(crate) fn new(may: Explain, client: Option<SocketAddr>, asked: &HeaderMap) -> Explanations {
        let asks = asked.get(headers::EXPLAIN).is_some_and(|value| value == "1");
        Explanations { client_asks: asks && may.allows(client), told: None, watched: false, number: None }
    }

    /// Returns whether the rows of the decision to come are to be kept.
    pub(crate) fn is_asked(&mut self, decisions: &Decisions, clock: &Clock) -> bool {
        self.watched = decisions.watched() && decisions.wants(clock.now());
        self.watched || self.client_asks || tracing::enabled!(tracing::Level::DEBUG)
    }

    /// The first token of the decision's attempt came.
    pub(crate) fn measured(&self, decisions: &Decisions, ttft: Duration) {
        if let Some(number) = self.number {
            decisions.measured(number, ttft);
        }
    }

    /// A decision was made for this attempt.
    pub(crate) fn decided(
        &mut self,
        dispatched: &Dispatched,
        request_id: &HeaderValue,
        attempt: u32,
        told: Audience<'_>,
    ) {
        self.number = None;
        let request_id = request_id.to_str().unwrap_or_default();
        // Nobody asked when the request was dispatched, so no words were made.
        let Some(trace) = &dispatched.trace else { return };
        if std::mem::take(&mut self.watched) {
            let Audience { decisions, clock } = told;
            self.number = Some(decisions.tell(Told {
                number: 0,
                at: clock.now(),
                pool: Arc::clone(&dispatched.ticket.backend().pool),
                request_id: request_id.to_owned(),
                line: trace.line(&dispatched.decision, TOLD_MAX),
                attempt,
                predicted: dispatched.ticket.predicted_ttft(),
                measured: None,
            }));
        }
        tracing::debug!(request_id, decision = %trace.line(&dispatched.decision, LOGGED_MAX), "dispatched");
        if self.client_asks {
            self.told = HeaderValue::try_from(trace.line(&dispatched.decision, TOLD_MAX)).ok();
        }
    }

    /// Puts the words on the answer.
    pub(crate) fn mark(&self, answer: &mut HeaderMap) {
        if let Some(told) = &self.told {
            answer.insert(headers::EXPLAIN, told.clone());
        }
    }
}
