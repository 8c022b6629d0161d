//! Web pages of other origins, as vLLM's `CORSMiddleware` (Starlette) answers them: the origins that `--allowed-origins` lists, by
//! default none, with every method and header, without credentials. An OPTIONS that is no such question is a 405, as any other
//! wrong method.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Starlette's order.
const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY";
const ASKED_VARIES: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                            Access-Control-Request-Private-Network";
/// Seconds for which a browser remembers the answer.
const MAX_AGE: &str = "600";

/// Answers a page's question what it may send, and says on every other answer whether it may be read.
pub(super) async fn allow(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let origin = headers.get(ORIGIN).cloned();
    let may = origin.as_ref().and_then(|origin| allowance(&allowed, origin));
    if request.method() == Method::OPTIONS && origin.is_some() && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        // The middleware stands before the routes: it answers for every path, and no handler sees the question.
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let mut response = match may {
            Some(_) => "OK".into_response(),
            None => (StatusCode::BAD_REQUEST, "Disallowed CORS origin").into_response(),
        };
        let of = response.headers_mut();
        of.insert(VARY, HeaderValue::from_static(ASKED_VARIES));
        of.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        of.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        for (name, value) in [(ACCESS_CONTROL_ALLOW_ORIGIN, may), (ACCESS_CONTROL_ALLOW_HEADERS, asked)] {
            if let Some(value) = value {
                of.insert(name, value);
            }
        }
        return response;
    }
    // Who may not read an answer gets it all the same: it is the browser that keeps it from the page.
    let mut response = next.run(request).await;
    if let Some(may) = may {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, may);
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
    response
}

/// Returns what an origin that is allowed is told: `*` where all are, else itself.
fn allowance(allowed: &[String], origin: &HeaderValue) -> Option<HeaderValue> {
    if allowed.iter().any(|one| one == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    allowed.iter().any(|one| origin == one.as_str()).then(|| origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_allowed_by_name_or_with_all_others() {
        let origin = HeaderValue::from_static("http://a");
        let told = |allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(|one| (*one).to_owned()).collect();
            allowance(&allowed, &origin)
        };
        assert_eq!(told(&[]), None, "vLLM's default");
        assert_eq!(told(&["http://b", "http://a"]), Some(origin.clone()));
        assert_eq!(told(&["*"]).unwrap(), "*");
        assert_eq!(told(&["http://b"]), None);
    }
}
