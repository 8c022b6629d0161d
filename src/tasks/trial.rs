//! The request that shows whether a backend which is out is back: the smallest of the kind that it serves, so that no client
//! has to pay for the answer. It must never go to a backend that is in.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::{at, models};
use forebay_core::error::says_full;
use forebay_core::routing::facts::Kind;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::labels::ProbeFailure;
use forebay_fleet::{Backend, Probed};

/// An answer of one token, or an embedding of one word in all its dimensions.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrialRequest {
    /// One token.
    Completion,
    /// One word.
    Embedding,
}

impl TrialRequest {
    fn path(self) -> &'static str {
        match self {
            TrialRequest::Completion => "/v1/completions",
            TrialRequest::Embedding => "/v1/embeddings",
        }
    }

    fn body(self, model: &str) -> String {
        match self {
            TrialRequest::Completion => json!({"model": model, "prompt": "a", "max_tokens": 1}).to_string(),
            TrialRequest::Embedding => json!({"model": model, "input": "a"}).to_string(),
        }
    }
}

/// Returns what is asked, in this order: first what the backend was last seen to serve.
fn questions(served: Option<Kind>) -> [TrialRequest; 2] {
    match served {
        Some(Kind::NoDecode) => [TrialRequest::Embedding, TrialRequest::Completion],
        Some(Kind::Stream | Kind::Unary | Kind::Light) | None => [TrialRequest::Completion, TrialRequest::Embedding],
    }
}

/// The model that the backend is asked for: its pool's, or the first that it lists where that is not among them.
fn model_of(backend: &Backend) -> String {
    let listed = backend.models.load();
    let first = listed.first().and_then(models::name).filter(|_| !backend.lists(&backend.pool));
    first.unwrap_or(&backend.pool).to_owned()
}

/// Asks the backend for the least that it can do.
pub(super) async fn ask(client: &ProbeClient, backend: &Backend, deadline: Duration) -> Probed {
    let key = backend.key.as_ref().map(|key| key.expose());
    let model = model_of(backend);
    for question in questions(backend.load.served()) {
        let (uri, body) = (at(&backend.url, question.path()), question.body(&model));
        let verdict = match client.post(uri, key, body, deadline, MAX_ANSWER).await {
            Ok((status, _)) => judge(status, key.is_some()),
            // This host could not ask. Where TLS is why, the next probe says so.
            Err(ProbeError {
                failure: ProbeFailure::Shortage | ProbeFailure::Unreachable | ProbeFailure::Tls, ..
            }) => Some(Probed::Busy),
            Err(error) => Some(Probed::Failed(error.detail)),
        };
        if let Some(verdict) = verdict {
            return verdict;
        }
    }
    Probed::NoSuchRequest
}

/// Returns what a status says of the engine; nothing where the server does not serve this kind of request, or not without a
/// client's own key.
fn judge(status: StatusCode, our_key: bool) -> Option<Probed> {
    match status.as_u16() {
        200..=299 => Some(Probed::Passed),
        full if says_full(full) => Some(Probed::Busy),
        401 | 403 if !our_key => Some(Probed::NoSuchRequest),
        code @ (401 | 403 | 500..) => Some(Probed::Failed(format!("status {code}"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_question_is_of_the_kind_that_was_served() {
        assert_eq!(questions(None)[0], TrialRequest::Completion);
        assert_eq!(questions(Some(Kind::Unary))[0], TrialRequest::Completion);
        assert_eq!(questions(Some(Kind::NoDecode))[0], TrialRequest::Embedding);
    }

    #[test]
    fn a_status_says_something_of_the_engine_or_nothing() {
        let failed = |code: u16| Some(Probed::Failed(format!("status {code}")));
        for (status, our_key, verdict) in [
            (200, false, Some(Probed::Passed)),
            (503, false, Some(Probed::Busy)),
            (429, true, Some(Probed::Busy)),
            (500, false, failed(500)),
            (502, false, failed(502)),
            (401, true, failed(401)),
            (401, false, Some(Probed::NoSuchRequest)),
            (400, true, None),
            (404, false, None),
        ] {
            assert_eq!(judge(StatusCode::from_u16(status).unwrap(), our_key), verdict, "{status}");
        }
    }
}
