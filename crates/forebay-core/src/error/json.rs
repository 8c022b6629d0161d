//! An error as its API's clients expect it.

use super::Refusal;
use super::words::{MESSAGE, cut};

/// The shape in which an API's clients expect an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorShape {
    /// `{"error":{"message","type","param","code"}}`
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`
    Anthropic,
}

/// The JSON text of an error, in the API's own form.
#[must_use]
pub fn error_json(shape: ErrorShape, status: u16, kind: &str, message: &str) -> String {
    json_of(shape, status, (kind, None), message)
}

/// The JSON text of a refusal, in the API's own form.
#[must_use]
pub fn refusal_json(shape: ErrorShape, refusal: &Refusal) -> String {
    json_of(shape, refusal.status(), (refusal.error_type(), refusal.param()), &refusal.to_string())
}

fn json_of(shape: ErrorShape, status: u16, (kind, param): (&str, Option<&str>), message: &str) -> String {
    let message = cut(message, MESSAGE);
    let value = match shape {
        ErrorShape::OpenAi => {
            serde_json::json!({"error": {"message": message, "type": kind, "param": param, "code": status}})
        }
        ErrorShape::Anthropic => serde_json::json!({"type": "error", "error": {"type": kind, "message": message}}),
    };
    value.to_string()
}
