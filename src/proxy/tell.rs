//! How a client learns of an error when its status is spent: an event in its API's own form.

use bytes::Bytes;

use super::attempt::RealAnswer;
use crate::error::{ErrorShape, Failure, Refusal, error_json};
use crate::stream::Api;

/// Its stream was cut.
pub(super) fn of_cut(api: Api, failure: Failure) -> Option<Bytes> {
    let message = format!("the stream was cut: {}", failure.label());
    event(api, failure.status(), "forebay_stream_cut", &message)
}

/// An answer of our own instead of a backend's.
pub(super) fn of_refusal(api: Api, refusal: &Refusal) -> Option<Bytes> {
    event(api, refusal.status(), refusal.kind(), &refusal.to_string())
}

/// A backend's error answer: as it came if it was an event, else its JSON in an event.
pub(super) fn of_answer(api: Api, answer: &RealAnswer) -> Option<Bytes> {
    if let Some(event) = &answer.event {
        return Some(event.clone());
    }
    match serde_json::from_slice::<serde_json::Value>(&answer.body) {
        Ok(json) => framed(api, &json.to_string()),
        Err(_) => {
            let text = String::from_utf8_lossy(&answer.body);
            event(api, answer.status.as_u16(), "upstream_error", text.trim())
        }
    }
}

fn event(api: Api, status: u16, kind: &str, message: &str) -> Option<Bytes> {
    let json = match api {
        Api::Chat | Api::Completions | Api::Other => error_json(ErrorShape::OpenAi, status, kind, message),
        Api::Messages => error_json(ErrorShape::Anthropic, status, kind, message),
        Api::Responses => {
            serde_json::json!({"type": "error", "code": kind, "message": message, "param": null}).to_string()
        }
    };
    framed(api, &json)
}

/// An event with this data, which is one line.
fn framed(api: Api, json: &str) -> Option<Bytes> {
    match api {
        Api::Chat | Api::Completions => Some(format!("data: {json}\n\n").into()),
        Api::Messages | Api::Responses => Some(format!("event: error\ndata: {json}\n\n").into()),
        Api::Other => None,
    }
}
