//! A request's trace: its attempts as they are sent and end, and what its spans are told at the end.
//!
//! Hot path: one look at an `Option` where requests are not traced.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use super::Record;
use crate::proxy::route;
use crate::spans::Told;
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_fleet::telemetry::metrics::Outcome;

impl Record {
    /// An attempt is sent now, with these headers. Where the request is traced, they name the attempt as the parent of what the
    /// backend makes of it.
    pub(crate) fn sending(&mut self, now: Time, headers: &mut HeaderMap) {
        self.sent = Some(now);
        self.first_sent.get_or_insert(now);
        self.got_head = false;
        if let (Some(trace), Some(backend)) = (&mut self.trace, &self.backend) {
            trace.sending((Arc::clone(backend), self.predicted), now, headers);
        }
    }

    /// The head of the attempt's answer came.
    pub(crate) fn head_came(&mut self, status: StatusCode) {
        self.got_head = true;
        if let Some(trace) = &mut self.trace {
            trace.head_came(status.as_u16());
        }
    }

    /// The attempt is over, and another may follow it.
    pub(crate) fn attempt_over(&mut self, failure: Option<Failure>, now: Time) {
        if let Some(trace) = &mut self.trace {
            trace.over(failure, now);
        }
    }

    /// Hands over what spans tell of the request, if it has any.
    pub(super) fn tell_spans(&mut self, outcome: Outcome, end: Time) {
        let Some(trace) = self.trace.take() else { return };
        let Some(spans) = self.shared.spans.as_ref() else { return };
        if !trace.is_kept(self.settings.trace.errors, outcome, self.status) {
            return;
        }
        spans.tell(trace.count(self.assigned.is_some()), || {
            // What is not served may be anything, also what should be in no trace.
            let route = route::template(&self.settings.paths, &route::plain(&self.path));
            Box::new(Told {
                trace,
                arrival: self.arrival,
                body_read: self.body_read,
                first_token: self.first_token,
                end,
                request_id: self.request_id.clone(),
                method: self.method.clone(),
                route,
                secure: self.peer.is_secure(),
                status: self.status,
                outcome,
                api: self.api,
                model: self.model.clone(),
                streamed: self.streamed,
                assigned: self
                    .assigned
                    .as_ref()
                    .map(|(pool, arm)| (Arc::clone(pool), pool.arm(*arm).map(|arm| Arc::clone(&arm.name)))),
                wait: self.wait,
                usage: self.usage,
            })
        });
    }
}
