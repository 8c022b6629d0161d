//! An error of the admin API, in the shape of the data plane's.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use forebay_core::error::{ErrorShape, error_json};

/// An error in the shape of the data plane's.
pub(super) fn error(status: StatusCode, kind: &str, words: &str) -> Response {
    let body = error_json(ErrorShape::OpenAi, status.as_u16(), kind, words);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
