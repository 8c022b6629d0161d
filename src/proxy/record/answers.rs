//! Answers made here, and Forebay's headers on any answer.

use http::header::{ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use super::Record;
use crate::proxy::body::{AnswerBody, Ours};
use crate::proxy::headers;
use crate::proxy::route::error_shape;
use forebay_core::error::{Refusal, refusal_json};
use forebay_fleet::telemetry::metrics::Outcome;

impl Record {
    /// An answer of our own, with what goes with every answer.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) -> Response<AnswerBody> {
        self.outcome = Some(Outcome::from(refusal));
        let text = refusal_json(error_shape(&self.path), refusal);
        let mut response = self.local(StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_GATEWAY), text);
        if let Some(seconds) = refusal.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Refusal::MethodNotAllowed { allowed, .. } = refusal {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        if let Refusal::Encoded(_) = refusal {
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd"));
        }
        if *refusal == Refusal::Shortage {
            // Its own connection is one of those that are too many.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if refusal.forbids_retry() {
            forbid_retry(response.headers_mut());
        }
        response.headers_mut().insert(headers::ERROR, HeaderValue::from_static(refusal.kind()));
        response
    }

    /// A JSON answer made here.
    pub(crate) fn local(&mut self, status: StatusCode, json: String) -> Response<AnswerBody> {
        self.status = status.as_u16();
        self.outcome.get_or_insert(Outcome::Success);
        let mut response = Response::new(AnswerBody::whole(json));
        *response.status_mut() = status;
        response.extensions_mut().insert(Ours);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.mark(response.headers_mut());
        response
    }

    /// Puts our headers on an answer.
    pub(crate) fn mark(&self, answer: &mut HeaderMap) {
        answer.insert(headers::REQUEST_ID, self.request_id.clone());
        self.mark_limits(answer);
        if let Some(backend) = &self.backend {
            let value = |text: &str| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("?"));
            answer.insert(headers::BACKEND, backend.url.name_header().clone());
            answer.insert(headers::ARM, value(&backend.arm));
            let assigned = self.assigned.as_ref().and_then(|(pool, arm)| pool.arm(*arm));
            if let Some(arm) = assigned.filter(|arm| arm.name != backend.arm) {
                answer.insert(headers::ASSIGNED_ARM, value(&arm.name));
            }
            // Nearly always one, whose text need not be made.
            let attempts = if self.attempts == 1 { HeaderValue::from_static("1") } else { self.attempts.into() };
            answer.insert(headers::ATTEMPTS, attempts);
            self.why.mark(answer);
        }
        // A gateway repeats one attempt at a time, and each of its questions sees one death. Of one call no more than two backends die, also if the client's library would repeat it.
        let most = if self.is_picked() { 2 } else { 1 };
        // From 408 on are those that the libraries repeat: 408, 409, 429 and each 5xx.
        if self.deaths >= most && self.status >= 408 {
            forbid_retry(answer);
        }
    }
}

/// Asks the client's library not to repeat the request.
fn forbid_retry(answer: &mut HeaderMap) {
    answer.insert(headers::SHOULD_RETRY, HeaderValue::from_static("false"));
}
