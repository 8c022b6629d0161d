//! What happens to headers on the way: hop-by-hop ones end here in both directions, ours are added, the rest passes.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const BACKEND: HeaderName = HeaderName::from_static("x-forebay-backend");
pub(crate) const ARM: HeaderName = HeaderName::from_static("x-forebay-arm");
/// The arm that the request was assigned to, where another one served it.
pub(crate) const ASSIGNED_ARM: HeaderName = HeaderName::from_static("x-forebay-assigned-arm");
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-forebay-attempts");
/// In a request with the value `1`: tell me why. In its answer: why.
pub(crate) const EXPLAIN: HeaderName = HeaderName::from_static("x-forebay-explain");

/// Where Anthropic's clients put their key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// RFC 9110 section 7.6.1, and what is between the two ends of a connection by section 11.7 or by custom.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A client's request id longer than this is replaced.
const REQUEST_ID_MAX: usize = 128;

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // What `connection` names is for this hop alone. Taken down first, since that header goes as well.
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Turns a client's request headers into those sent to any backend: everything but `authorization`'s replacement, which
/// depends on the backend ([`authorize`]).
pub(crate) fn for_backend(headers: &mut HeaderMap, request_id: &HeaderValue, streamed: bool, keep_authorization: bool) {
    remove_hop_by_hop(headers);
    // The host is the backend's, put on with the target; the length is the client library's; `Expect` was answered here.
    for name in [HOST, CONTENT_LENGTH, EXPECT, EXPLAIN] {
        headers.remove(name);
    }
    // A compressed stream could not be read for its tokens, nor held back event by event.
    if streamed {
        headers.remove(ACCEPT_ENCODING);
    }
    // A client key of Forebay's is none of the backend's business.
    if !keep_authorization {
        headers.remove(AUTHORIZATION);
        headers.remove(API_KEY);
    }
    headers.insert(REQUEST_ID, request_id.clone());
}

/// Puts a backend's own key on.
pub(crate) fn authorize(headers: &mut HeaderMap, key: &str) {
    if let Ok(mut value) = HeaderValue::try_from(format!("Bearer {key}")) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
}

/// Turns a backend's answer headers into those sent to the client.
pub(crate) fn for_client(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
}

/// The request's id: the client's, if it is short and printable, else a new one of 128 random bits.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.to_str().is_ok() => id.clone(),
        _ => {
            let random = fastrand::u128(..);
            let digits: [u8; 32] = std::array::from_fn(|at| b"0123456789abcdef"[(random >> (4 * at)) as usize & 15]);
            HeaderValue::from_bytes(&digits).expect("hexadecimal digits are a valid value")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_named_by_connection_end_here() {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("close, X-Private"));
        headers.insert("x-private", HeaderValue::from_static("1"));
        headers.insert("x-public", HeaderValue::from_static("1"));
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        for_client(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-public"]);
    }

    #[test]
    fn a_request_id_is_kept_or_made() {
        let mut headers = HeaderMap::new();
        assert_eq!(request_id(&headers).len(), 32);
        headers.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        assert_eq!(request_id(&headers), "mine");
        headers.insert(REQUEST_ID, HeaderValue::try_from("x".repeat(500)).unwrap());
        assert_eq!(request_id(&headers).len(), 32);
    }

    #[test]
    fn what_a_backend_must_not_see_is_taken_off() {
        let mut headers = HeaderMap::new();
        for name in [HOST, CONTENT_LENGTH, EXPECT, EXPLAIN, ACCEPT_ENCODING, AUTHORIZATION, API_KEY] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        for_backend(&mut headers, &HeaderValue::from_static("id"), true, false);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[REQUEST_ID], "id");
    }
}
