//! The facts of a request that its line of the access log has. `AccessRecord` (`telemetry/log.rs`) gives them their names and their order.
//!
//! Hot path: made once a request, and only where the log is on.

use std::sync::Arc;

use super::Record;
use forebay_core::stream::timings::Timings;
use forebay_fleet::telemetry::log::AccessRecord;
use forebay_fleet::telemetry::metrics::Outcome;

impl Record {
    pub(super) fn access_record(&self, outcome: Outcome, timings: &Timings) -> AccessRecord {
        let tokens = self.tokens();
        let backend = self.backend.as_ref();
        AccessRecord {
            request_id: self.request_id.to_str().unwrap_or_default().into(),
            client: self.client,
            client_key: self.client_key.as_ref().map(|client| Arc::clone(&client.name)),
            method: self.method.as_str().into(),
            path: self.path.as_str().into(),
            model: self.model.as_deref().map(Arc::from),
            pool: self.assigned.as_ref().map(|(pool, _)| pool.model.as_str().into()),
            arm: backend.map(|backend| Arc::clone(&backend.arm)),
            assigned_arm: self.assigned.as_ref().and_then(|(pool, arm)| Some(Arc::clone(&pool.arm(*arm)?.name))),
            backend: backend.map(|backend| backend.url.authority().into()),
            session: self.session.clone(),
            status: self.status,
            outcome,
            attempts: self.attempts,
            stream: self.streamed,
            wait: (!self.wait.is_zero()).then_some(self.wait),
            ttft: timings.ttft(),
            tpot: self.tpot(timings),
            e2e: timings.e2e().unwrap_or_default(),
            prompt_tokens: self.usage.map(|usage| usage.prompt_tokens),
            output_tokens: tokens.map(|(source, tokens)| (tokens, source)),
        }
    }
}
