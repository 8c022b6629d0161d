//! The address of a backend: an `http://host:port` and nothing after it, checked once when the configuration is read, so
//! that no request ever meets a malformed one. Never carries a path, a query or credentials.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use serde::{Serialize, Serializer};
use thiserror::Error;

/// The URL of a backend. Two spellings of one address (`HTTP://Host:80/` and `http://host`) are equal.
#[derive(Clone)]
pub struct BackendUrl {
    uri: Uri,
    text: String,
    host_header: HeaderValue,
}

/// Reason why a text is no backend URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Neither `http://` nor `https://` in front.
    #[error("a backend URL starts with `http://`")]
    NoScheme,
    /// Another scheme than http and https.
    #[error("only http backends can be reached")]
    Scheme,
    /// TLS towards backends.
    #[error("an https backend is not in this version yet")]
    Https,
    /// Nothing between the scheme and the port or the end.
    #[error("the URL names no host")]
    NoHost,
    /// Something before an `@`.
    #[error("the URL carries a user or a password")]
    UserInfo,
    /// A port that is no number between 1 and 65535.
    #[error("the port is not between 1 and 65535")]
    Port,
    /// A path behind the host, such as `/v1`.
    #[error("the URL has a path")]
    Path,
    /// A query or a fragment.
    #[error("the URL has a query or a fragment")]
    Query,
    /// Anything else: a space, a stray bracket.
    #[error("this is not a URL")]
    Malformed,
}

impl BackendUrl {
    /// The URL with `/` as its path, to build request URIs from.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// `host:port`, or `host` where the port is 80: what belongs into a `host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.text["http://".len()..]
    }

    /// [`Self::authority`] as a header's value, so that no request has to make it.
    #[must_use]
    pub fn host_header(&self) -> &HeaderValue {
        &self.host_header
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets; lower case.
    #[must_use]
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// Returns whether a connection to this URL would reach what listens at `listener` on the same machine, as far as the texts
    /// tell.
    #[must_use]
    pub fn leads_to(&self, listener: SocketAddr) -> bool {
        let host = self.host().trim_matches(['[', ']']);
        let address = if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>().ok() };
        let listens = listener.ip().to_canonical();
        let is_here = |address: IpAddr| {
            let address = address.to_canonical();
            let is_local = address.is_loopback() || address.is_unspecified();
            address == listens
                || (is_local && listens.is_unspecified())
                || (host == "localhost" && listens.is_loopback())
        };
        self.port() == listener.port() && address.is_some_and(is_here)
    }

    /// The port; 80 where none was written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(80)
    }
}

impl FromStr for BackendUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<BackendUrl, UrlError> {
        if !text.contains("://") {
            return Err(UrlError::NoScheme);
        }
        // Each common mistake has an error of its own, found in the text before a parser calls all of them malformed.
        if text.contains(['?', '#']) {
            return Err(UrlError::Query);
        }
        let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
        // The path is the client's, so a backend's URL has none. A slash at the end is as good as nothing.
        let (authority, path) = after_scheme.split_once('/').unwrap_or((after_scheme, ""));
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        if authority.is_empty() || authority.starts_with(':') {
            return Err(UrlError::NoHost);
        }
        check_port(authority)?;
        let written: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        match written.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => return Err(UrlError::Https),
            _ => return Err(UrlError::Scheme),
        }
        if !path.is_empty() {
            return Err(UrlError::Path);
        }
        // In one spelling, so that one backend cannot be written twice as two.
        let host = written.host().ok_or(UrlError::NoHost)?.to_ascii_lowercase();
        if host.parse::<std::net::IpAddr>().is_err() && host.starts_with('[') && !is_ipv6(&host) {
            return Err(UrlError::Malformed);
        }
        let text = match written.port_u16() {
            // Port 80 is left out, as in the host header that a client would send.
            None | Some(80) => format!("http://{host}"),
            Some(port) => format!("http://{host}:{port}"),
        };
        let uri = format!("{text}/").parse().map_err(|_| UrlError::Malformed)?;
        let host_header = HeaderValue::from_str(&text["http://".len()..]).map_err(|_| UrlError::Malformed)?;
        Ok(BackendUrl { uri, text, host_header })
    }
}

/// Returns whether `host` is an IPv6 address in brackets.
fn is_ipv6(host: &str) -> bool {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

/// A port, where there is a colon outside brackets, is a number between 1 and 65535.
fn check_port(authority: &str) -> Result<(), UrlError> {
    let after_host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
    match after_host.split_once(':') {
        None => Ok(()),
        Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Ok(())
        }
        Some(_) => Err(UrlError::Port),
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendUrl({})", self.text)
    }
}

impl PartialEq for BackendUrl {
    fn eq(&self, other: &BackendUrl) -> bool {
        self.text == other.text
    }
}

impl Eq for BackendUrl {}

impl Hash for BackendUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Serialize for BackendUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<String, UrlError> {
        text.parse::<BackendUrl>().map(|url| url.to_string())
    }

    #[test]
    fn spellings_of_one_address_are_equal() {
        assert_eq!(parse("http://127.0.0.1:8001"), Ok("http://127.0.0.1:8001".into()));
        assert_eq!(parse("http://127.0.0.1:8001/"), Ok("http://127.0.0.1:8001".into()));
        assert_eq!(parse("HTTP://GPU-1.example:80"), Ok("http://gpu-1.example".into()));
        assert_eq!(parse("http://[::1]:8001"), Ok("http://[::1]:8001".into()));
        assert_eq!(parse("http://vllm_a:8000"), Ok("http://vllm_a:8000".into()));
    }

    #[test]
    fn a_url_leads_to_a_listener_of_the_same_machine() {
        for (url, listener, leads) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("http://localhost:8080", "127.0.0.1:8080", true),
            ("http://localhost:8080", "[::1]:8080", true),
            ("http://127.0.0.1:8080", "0.0.0.0:8080", true),
            ("http://[::1]:8080", "[::]:8080", true),
            ("http://0.0.0.0:8080", "0.0.0.0:8080", true),
            ("http://10.0.0.1", "10.0.0.1:80", true),
            ("http://127.0.0.1:8081", "127.0.0.1:8080", false),
            ("http://127.0.0.2:8080", "127.0.0.1:8080", false),
            ("http://10.0.0.1:8080", "0.0.0.0:8080", false),
            ("http://gpu-1:8080", "127.0.0.1:8080", false),
        ] {
            let parsed: BackendUrl = url.parse().unwrap();
            assert_eq!(parsed.leads_to(listener.parse().unwrap()), leads, "{url} {listener}");
        }
    }

    #[test]
    fn parts_are_what_a_client_needs() {
        let url: BackendUrl = "http://Gpu-1:8001/".parse().unwrap();
        assert_eq!((url.authority(), url.host(), url.port(), url.uri().path()), ("gpu-1:8001", "gpu-1", 8001, "/"));
        let plain: BackendUrl = "http://gpu-1".parse().unwrap();
        assert_eq!((plain.authority(), plain.port()), ("gpu-1", 80));
    }

    #[test]
    fn each_mistake_has_its_own_reason() {
        for (text, want) in [
            ("127.0.0.1:8001", UrlError::NoScheme),
            ("", UrlError::NoScheme),
            ("ftp://a", UrlError::Scheme),
            ("https://a", UrlError::Https),
            ("http://", UrlError::NoHost),
            ("http://:8001", UrlError::NoHost),
            ("http://user:pw@a", UrlError::UserInfo),
            ("http://a:0", UrlError::Port),
            ("http://a:", UrlError::Port),
            ("http://a:99999", UrlError::Port),
            ("http://a:80x", UrlError::Port),
            ("http://a:+80", UrlError::Port),
            ("http://a/v1", UrlError::Path),
            ("http://a?x=1", UrlError::Query),
            ("http://a#x", UrlError::Query),
            ("http://a b", UrlError::Malformed),
            ("http://[zz]:1", UrlError::Malformed),
        ] {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_shown_as_itself(text in "(http|https|HTTP)?(://)?(a|B|é|[0-9.:@/?#\\[\\]%_ -]){0,20}") {
            if let Ok(url) = text.parse::<BackendUrl>() {
                prop_assert_eq!(url.to_string().parse::<BackendUrl>(), Ok(url.clone()));
                prop_assert!(!url.host().is_empty() && url.uri().path() == "/");
            }
        }
    }
}
