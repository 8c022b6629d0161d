//! The host under which the admin API is asked. A page in an operator's browser reaches loopback under a name of its own that it
//! pointed there (DNS rebinding), and could read every answer. Where no token guards the API, it answers under addresses, under
//! `localhost` and under names without a dot, which no page of the internet has.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri, header};

use super::error::error;

/// The host that a request names; HTTP/2 has it in the URI. Empty where there is none.
pub(super) fn host_of<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> &'a str {
    let header = || headers.get(header::HOST).and_then(|value| value.to_str().ok());
    uri.authority().map(Authority::as_str).or_else(header).unwrap_or_default()
}

/// Returns whether a host is an address, or the one name that cannot be pointed elsewhere.
pub(super) fn is_address(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
}

/// Lets through what a page of the internet cannot have asked. For a router that no token guards.
pub(super) async fn own_host(request: Request, next: Next) -> Response {
    let host = host_of(request.headers(), request.uri());
    if host.is_empty() || is_address(host) || !host.contains('.') {
        return next.run(request).await;
    }
    let words = "without a token the admin API answers under an address such as 127.0.0.1, or localhost, only";
    error(StatusCode::FORBIDDEN, "forebay_cross_site", words)
}
