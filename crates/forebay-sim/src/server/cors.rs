//! Web pages of other origins, as vLLM's `CORSMiddleware` (Starlette) answers them at its defaults: every origin, method and header
//! is allowed, without credentials. An OPTIONS that is no such question is a 405, as any other wrong method.

use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Starlette's order.
const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY";
const ASKED_VARIES: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                            Access-Control-Request-Private-Network";
/// Seconds for which a browser remembers the answer.
const MAX_AGE: &str = "600";

/// Answers a page's question what it may send, and says on every other answer that it may be read.
pub(super) async fn allow(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let origin = headers.contains_key(ORIGIN);
    if request.method() == Method::OPTIONS && origin && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut response = "OK".into_response();
        let of = response.headers_mut();
        of.insert(VARY, HeaderValue::from_static(ASKED_VARIES));
        of.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        of.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        of.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        if let Some(asked) = asked {
            of.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
        }
        return response;
    }
    let mut response = next.run(request).await;
    if origin {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
    response
}
