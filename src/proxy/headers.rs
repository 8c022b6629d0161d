//! What happens to headers on the way: hop-by-hop ones end here in both directions, ours are added, the rest passes.

use bytes::Bytes;
use http::Version;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const BACKEND: HeaderName = HeaderName::from_static("x-forebay-backend");
pub(crate) const ARM: HeaderName = HeaderName::from_static("x-forebay-arm");
/// The arm that the request was assigned to, where another one served it.
pub(crate) const ASSIGNED_ARM: HeaderName = HeaderName::from_static("x-forebay-assigned-arm");
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-forebay-attempts");
/// The kind of an answer that is Forebay's own error.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("x-forebay-error");
/// Tells the clients of OpenAI and Anthropic whether to repeat a request that failed.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Tells nginx, and who does as it does, not to hold a stream back.
pub(crate) const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// In a request with the value `1`: tell me why. In its answer: why.
pub(crate) const EXPLAIN: HeaderName = HeaderName::from_static("x-forebay-explain");

/// The header in which Anthropic's clients put their key.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The beginning of the names of Forebay's own headers.
const OURS: &str = "x-forebay-";

/// The headers that may end here, the ones for a single hop first: RFC 9110 section 7.6.1, and what is between the two ends of a
/// connection by section 11.7 or by custom. At most 32, since [`There`] has a bit for each.
static KNOWN: [HeaderName; 16] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    CONTENT_LENGTH,
    EXPECT,
    EXPLAIN,
    ACCEPT_ENCODING,
    AUTHORIZATION,
    API_KEY,
    COOKIE,
];

/// Returns the place of a header in [`KNOWN`]. By its text: names of the two kinds that `HeaderName` has take long to compare.
fn place(name: &HeaderName) -> Option<u32> {
    Some(match name.as_str() {
        "connection" => 0,
        "te" => 1,
        "trailer" => 2,
        "transfer-encoding" => 3,
        "upgrade" => 4,
        "proxy-authenticate" => 5,
        "proxy-authorization" => 6,
        "keep-alive" => 7,
        "proxy-connection" => 8,
        "content-length" => 9,
        "expect" => 10,
        "x-forebay-explain" => 11,
        "accept-encoding" => 12,
        "authorization" => 13,
        "x-api-key" => 14,
        "cookie" => 15,
        _ => return None,
    })
}

/// Some of the headers of [`KNOWN`], each a bit.
#[derive(Clone, Copy)]
struct There(u32);

impl There {
    const CONNECTION: There = There(1);
    const HOPS: There = There((1 << 9) - 1);
    /// The length is the client library's; `Expect` was answered here. The host stays, so that its place is there for the backend's.
    const OURS_TO_SAY: There = There(0b111 << 9);
    const ACCEPT_ENCODING: There = There(1 << 12);
    const KEYS: There = There(0b11 << 13);
    const COOKIE: There = There(1 << 15);

    /// The ones that a message has. One pass over its headers: to look each one up takes several times as long.
    fn of(headers: &HeaderMap) -> There {
        There(headers.keys().filter_map(place).fold(0, |there, place| there | 1 << place))
    }

    fn has(self, other: There) -> bool {
        self.0 & other.0 != 0
    }

    fn with(self, other: There, wanted: bool) -> There {
        if wanted { There(self.0 | other.0) } else { self }
    }

    /// Removes those of the others that are there.
    fn remove(self, others: There, headers: &mut HeaderMap) {
        let mut left = self.0 & others.0;
        while left != 0 {
            headers.remove(&KNOWN[left.trailing_zeros() as usize]);
            left &= left - 1;
        }
    }
}

/// A client's request id longer than this is replaced.
const REQUEST_ID_MAX: usize = 128;

/// The two hexadecimal digits of each byte.
const HEX: [[u8; 2]; 256] = {
    let (mut digits, mut byte) = ([[0; 2]; 256], 0);
    while byte < digits.len() {
        digits[byte] = [b"0123456789abcdef"[byte >> 4], b"0123456789abcdef"[byte & 15]];
        byte += 1;
    }
    digits
};

/// Removes what `connection` names: it is for this hop alone.
fn remove_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        // What nearly every client says names no header but one that goes anyway.
        .filter(|name| !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Turns a client's request headers into those sent to any backend: everything but `host` and `authorization`'s replacement, which
/// depend on the backend and are overwritten for each attempt ([`authorize`]).
pub(crate) fn for_backend(
    headers: &mut HeaderMap,
    (request_id, via): (&HeaderValue, &HeaderValue),
    streamed: bool,
    keep_authorization: bool,
) {
    let there = There::of(headers);
    if there.has(There::CONNECTION) {
        remove_named(headers);
    }
    if there.has(There::COOKIE) {
        join_cookies(headers);
    }
    // A client key of Forebay's is none of the backend's business.
    let ends_here = There::HOPS.with(There::OURS_TO_SAY, true).with(There::KEYS, !keep_authorization);
    there.remove(ends_here.with(There::ACCEPT_ENCODING, streamed), headers);
    headers.insert(REQUEST_ID, request_id.clone());
    headers.append(VIA, via.clone());
}

/// Puts a backend's own key on.
pub(crate) fn authorize(headers: &mut HeaderMap, key: &str) {
    if let Ok(mut value) = HeaderValue::try_from(format!("Bearer {key}")) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
}

/// Turns a backend's answer headers into those sent to the client. What begins as ours do is not the backend's to say.
pub(crate) fn for_client(headers: &mut HeaderMap) {
    let there = There::of(headers);
    if there.has(There::CONNECTION) {
        remove_named(headers);
    }
    there.remove(There::HOPS, headers);
    remove_ours(headers);
}

/// Removes the headers whose names begin as ours do.
pub(crate) fn remove_ours(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| name.as_str().starts_with(OURS);
    if headers.keys().any(|name| is_ours(&name)) {
        let ours: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

/// Joins the pieces into which HTTP/2 may cut `cookie` (RFC 9113 section 8.2.3): HTTP/1.1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        // HTTP/2 may send each cookie in a line of its own, and HTTP/1.1 must have one (RFC 9113, 8.2.3).
        let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(mut joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
            joined.set_sensitive(true);
            headers.insert(COOKIE, joined);
        }
    }
}

/// RFC 3986 section 3.2, without the user's name.
fn may_be_in_a_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(&byte)
}

/// The name of this process in `via` (RFC 9110 section 7.6.3), by which a request that comes back to it is known.
pub(crate) struct Via {
    name: String,
    /// Its values as they are sent on, by the version of the request.
    values: [HeaderValue; 3],
}

impl Via {
    /// A new name.
    pub(crate) fn new() -> Via {
        let name = format!("forebay-{:08x}", fastrand::u32(..));
        let value = |version: &str| {
            HeaderValue::try_from(format!("{version} {name}")).expect("letters, digits and a space are a valid value")
        };
        // Made once: the header goes into every request, and only the version differs.
        let values = ["1.0", "1.1", "2.0"].map(value);
        Via { name, values }
    }

    /// The entry for a request of this version.
    pub(crate) fn entry(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_2 => &self.values[2],
            Version::HTTP_11 => &self.values[1],
            _ => &self.values[0],
        }
    }

    /// Returns whether a request has been here before.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VIA).iter().any(|value| memchr::memmem::find(value.as_bytes(), self.name.as_bytes()).is_some())
    }
}

/// Returns whether a request names its host as RFC 9112 section 3.2 asks: one `host` in HTTP/1.1, at most one in HTTP/1.0, and a
/// host in it. HTTP/2 has the host in the URI, where the listener's library checks it.
pub(crate) fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (version, hosts.next(), hosts.next()) {
        (Version::HTTP_2, ..) => true,
        (Version::HTTP_11, None, _) | (_, Some(_), Some(_)) => false,
        (_, None, _) => true,
        (_, Some(host), None) => host.as_bytes().iter().all(|byte| may_be_in_a_host(*byte)),
    }
}

/// The request's id: the client's, if it is short and printable, else a new one of 128 random bits.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        // A copy, since the value itself would keep the memory that the head was read into, for as long as a stream takes.
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.to_str().is_ok() => {
            HeaderValue::from_bytes(id.as_bytes()).expect("it is one already")
        }
        _ => {
            let mut digits = [0; 32];
            for (pair, byte) in digits.chunks_exact_mut(2).zip(fastrand::u128(..).to_le_bytes()) {
                pair.copy_from_slice(&HEX[usize::from(byte)]);
            }
            // Owned by what is counted, for it is cloned soon: a `Bytes` of a vector would take memory a second time for that.
            HeaderValue::from_maybe_shared(Bytes::from_owner(digits)).expect("hexadecimal digits are a valid value")
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
    fn a_known_header_is_found_at_its_place() {
        for (at, name) in KNOWN.iter().enumerate() {
            assert_eq!(place(name), Some(at as u32), "{name}");
        }
        assert_eq!(place(&REQUEST_ID), None);
        let names =
            |there: There| KNOWN.iter().filter(|name| there.0 >> place(name).unwrap() & 1 == 1).collect::<Vec<_>>();
        assert_eq!(names(There::CONNECTION), [CONNECTION]);
        assert_eq!((names(There::HOPS).len(), names(There::HOPS)[8].as_str()), (9, "proxy-connection"));
        assert_eq!(names(There::OURS_TO_SAY), [CONTENT_LENGTH, EXPECT, EXPLAIN]);
        assert_eq!(names(There::ACCEPT_ENCODING), [ACCEPT_ENCODING]);
        assert_eq!(names(There::KEYS), [AUTHORIZATION, API_KEY]);
        assert_eq!(names(There::COOKIE), [COOKIE]);
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
        let via = Via::new();
        let id = HeaderValue::from_static("id");
        for_backend(&mut headers, (&id, via.entry(Version::HTTP_11)), true, false);
        assert_eq!(headers.len(), 3, "the host is put on with the target");
        assert_eq!(headers[REQUEST_ID], "id");
        assert!(via.is_in(&headers) && !Via::new().is_in(&headers));
    }

    #[test]
    fn a_connection_header_with_an_odd_byte_still_names_the_others() {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_bytes(b"x-private, \xe9, x-other").unwrap());
        headers.insert("x-private", HeaderValue::from_static("1"));
        headers.insert("x-other", HeaderValue::from_static("1"));
        headers.insert("x-public", HeaderValue::from_static("1"));
        for_client(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-public"]);
    }

    #[test]
    fn a_request_names_one_host() {
        let with = |hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, HeaderValue::from_static(host));
            }
            headers
        };
        for (version, hosts, good) in [
            (Version::HTTP_11, &["a:8080"][..], true),
            (Version::HTTP_11, &["[::1]:80"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["a", "a"], false),
            (Version::HTTP_11, &["a b"], false),
            (Version::HTTP_11, &["a/b"], false),
            (Version::HTTP_11, &["u@a"], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &["a", "b"], false),
            (Version::HTTP_2, &[], true),
        ] {
            assert_eq!(names_one_host(version, &with(hosts)), good, "{version:?} {hosts:?}");
        }
    }
}
