//! The address of a backend, checked once when the configuration is read, so that no request ever meets a malformed one:
//! `http://host:port` or `https://host:port`, with a prefix for all paths or without, or `unix:/path` of a socket. Never carries a
//! query or credentials.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use serde::{Serialize, Serializer};
use thiserror::Error;

/// The longest path of a Unix socket that the system takes, in bytes.
const LONGEST_SOCKET: usize = 107;

/// The URL of a backend. Two spellings of one address (`HTTP://Host:80/` and `http://host`) are equal.
#[derive(Clone)]
pub struct BackendUrl {
    uri: Uri,
    text: String,
    /// The part of `text` that names the backend begins here.
    name_at: usize,
    /// The path that comes before every other; empty where there is none.
    prefix: String,
    socket: Option<PathBuf>,
    /// The address that a name was found to have: connections go there, and the name is what the server is called by.
    found_at: Option<IpAddr>,
    host_header: HeaderValue,
    name_header: HeaderValue,
}

/// Reason why a text is no backend URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Neither `http://`, `https://` nor `unix:/` in front.
    #[error("a backend URL starts with `http://`, `https://` or `unix:/`")]
    NoScheme,
    /// Another scheme.
    #[error("only http, https and unix backends can be reached")]
    Scheme,
    /// Nothing between the scheme and the port or the end.
    #[error("the URL names no host")]
    NoHost,
    /// Something before an `@`.
    #[error("the URL carries a user or a password")]
    UserInfo,
    /// A port that is no number between 1 and 65535.
    #[error("the port is not between 1 and 65535")]
    Port,
    /// The path of an API, such as `/v1`.
    #[error("the URL ends in the API's own path")]
    ApiPath,
    /// An empty segment of the path, or one of dots.
    #[error("the URL's path is not a plain prefix")]
    Prefix,
    /// A socket's path that is relative, too long, or not of visible ASCII characters.
    #[error("the path of the Unix socket is not usable")]
    Socket,
    /// A query or a fragment.
    #[error("the URL has a query or a fragment")]
    Query,
    /// Anything else: a space, a stray bracket.
    #[error("this is not a URL")]
    Malformed,
}

impl UrlError {
    /// Returns what would be right.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            UrlError::UserInfo => "leave it out; a backend's key is named by key_env or key_file",
            UrlError::ApiPath => {
                "leave `/v1` and what follows out: requests bring the path that the client sent; a prefix before it may stay"
            }
            UrlError::Prefix => "write segments between single slashes, such as \"http://host:port/gpu-1\"",
            UrlError::Socket => {
                "write a whole path of at most 107 visible ASCII characters, such as \"unix:/run/vllm.sock\""
            }
            _ => "write it as \"http://host:port\"",
        }
    }
}

impl BackendUrl {
    /// The URL of a server that was found at `address`, and that is called by the host and port of `name` where it has one. It is
    /// told from others by its address. Requests, TLS and connections: the name is its Host and the name of its certificate, and the
    /// address is where they go.
    #[must_use]
    pub fn found(https: bool, address: SocketAddr, name: Option<&BackendUrl>) -> BackendUrl {
        let scheme = if https { "https" } else { "http" };
        // An address of IPv4 in the form of IPv6 would be another backend.
        let ip = address.ip().to_canonical();
        let at = SocketAddr::new(ip, address.port());
        let mut url: BackendUrl = format!("{scheme}://{at}").parse().expect("a scheme and an address are a URL");
        url.found_at = Some(ip);
        if let Some(name) = name {
            url.uri = name.uri.clone();
            url.host_header = name.host_header.clone();
        }
        url
    }

    /// The address that connections go to, if the URL is one of a server that was found.
    #[must_use]
    pub fn found_at(&self) -> Option<IpAddr> {
        self.found_at
    }

    /// The URL with a path, `/` at least, to build request URIs from. A Unix socket has `localhost` for its host.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The backend's name in metrics, logs and the admin API: host and port, and the prefix; `unix:/path` of a socket.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// [`Self::authority`] as a header's value, so that no request has to make it.
    #[must_use]
    pub fn name_header(&self) -> &HeaderValue {
        &self.name_header
    }

    /// The value of a `host` header to the backend: `host:port`, or `host` where the port is the scheme's own.
    #[must_use]
    pub fn host_header(&self) -> &HeaderValue {
        &self.host_header
    }

    /// The host: a name, an IPv4 address, or an IPv6 address in brackets; lower case.
    #[must_use]
    pub fn host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// The path of the Unix socket that the backend listens at, if it does.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Returns whether the backend speaks TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    /// Returns whether a connection to this URL would reach what listens at `listener` on the same machine, as far as the texts
    /// tell.
    #[must_use]
    pub fn leads_to(&self, listener: SocketAddr) -> bool {
        if self.socket.is_some() {
            return false;
        }
        let host = self.host().trim_matches(['[', ']']);
        let address = if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>().ok() };
        let address = self.found_at.or(address);
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

    /// The port; the scheme's own where none was written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// The URI of a path on the backend.
    ///
    /// # Panics
    /// `path` does not begin with a slash.
    #[must_use]
    pub fn at(&self, path: &PathAndQuery) -> Uri {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(self.path(path));
        Uri::from_parts(parts).expect("a backend's URL has a scheme and an authority")
    }

    /// The path of a request to the backend: this one under the URL's own.
    ///
    /// # Panics
    /// `path` does not begin with a slash.
    #[must_use]
    pub fn path(&self, path: &PathAndQuery) -> PathAndQuery {
        if self.prefix.is_empty() {
            return path.clone();
        }
        format!("{}{path}", self.prefix).parse().expect("a checked prefix before a path is a path")
    }
}

impl FromStr for BackendUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<BackendUrl, UrlError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if !text.contains("://") {
            return Err(UrlError::NoScheme);
        }
        // Each common mistake has an error of its own, found in the text before a parser calls all of them malformed.
        if text.contains(['?', '#']) {
            return Err(UrlError::Query);
        }
        let after_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
        // A slash at the end is as good as nothing.
        let (authority, path) = after_scheme.split_once('/').unwrap_or((after_scheme, ""));
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        if authority.is_empty() || authority.starts_with(':') {
            return Err(UrlError::NoHost);
        }
        check_port(authority)?;
        let written: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let (scheme, port) = match written.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => ("http://", 80),
            Some(scheme) if *scheme == Scheme::HTTPS => ("https://", 443),
            _ => return Err(UrlError::Scheme),
        };
        let prefix = prefix(path)?;
        // In one spelling, so that one backend cannot be written twice as two.
        let host = written.host().ok_or(UrlError::NoHost)?.to_ascii_lowercase();
        if host.parse::<std::net::IpAddr>().is_err() && host.starts_with('[') && !is_ipv6(&host) {
            return Err(UrlError::Malformed);
        }
        let authority = match written.port_u16() {
            // The scheme's own port is left out, as in the host header that a client would send.
            Some(other) if other != port => format!("{host}:{other}"),
            _ => host,
        };
        let name = format!("{authority}{prefix}");
        let header = |text: &str| HeaderValue::from_str(text).map_err(|_| UrlError::Malformed);
        Ok(BackendUrl {
            uri: format!("{scheme}{authority}{prefix}/").parse().map_err(|_| UrlError::Malformed)?,
            host_header: header(&authority)?,
            name_header: header(&name)?,
            text: format!("{scheme}{name}"),
            name_at: scheme.len(),
            prefix,
            socket: None,
            found_at: None,
        })
    }
}

/// The URL of a Unix socket, by what follows `unix:`. `unix:///path` is another spelling of `unix:/path`.
fn unix(path: &str) -> Result<BackendUrl, UrlError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let usable = path.len() <= LONGEST_SOCKET && path.len() > 1 && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !usable || !path.starts_with('/') || path.starts_with("//") {
        return Err(UrlError::Socket);
    }
    let text = format!("unix:{path}");
    Ok(BackendUrl {
        uri: Uri::from_static("http://localhost/"),
        host_header: HeaderValue::from_static("localhost"),
        name_header: HeaderValue::from_str(&text).map_err(|_| UrlError::Socket)?,
        socket: Some(PathBuf::from(path)),
        found_at: None,
        text,
        name_at: 0,
        prefix: String::new(),
    })
}

/// Returns the prefix of all paths, by what follows the first slash: empty, or with a slash in front and none at the end.
fn prefix(path: &str) -> Result<String, UrlError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(String::new());
    }
    // The client's path has it already.
    if path.split('/').any(|segment| segment == "v1") {
        return Err(UrlError::ApiPath);
    }
    let is_plain = |segment: &str| {
        let dots = segment.to_ascii_lowercase().replace("%2e", ".");
        !segment.is_empty() && !matches!(dots.as_str(), "." | "..")
    };
    if path.split('/').all(is_plain) { Ok(format!("/{path}")) } else { Err(UrlError::Prefix) }
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
        // Two servers of one address that are called by other names are met in another way.
        self.text == other.text && self.host_header == other.host_header
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
    fn a_server_that_was_found_is_told_by_its_address_and_called_by_its_name() {
        let name: BackendUrl = "https://vllm.svc:8000".parse().unwrap();
        let url = BackendUrl::found(true, "10.0.0.1:8000".parse().unwrap(), Some(&name));
        assert_eq!((url.to_string().as_str(), url.authority()), ("https://10.0.0.1:8000", "10.0.0.1:8000"));
        assert_eq!((url.host(), url.host_header()), ("vllm.svc", &HeaderValue::from_static("vllm.svc:8000")));
        assert_eq!((url.found_at(), url.port()), (Some([10, 0, 0, 1].into()), 8000));
        assert_eq!(url.at(&PathAndQuery::from_static("/health")).to_string(), "https://vllm.svc:8000/health");
        assert!(url.leads_to("10.0.0.1:8000".parse().unwrap()) && url.is_https());
        let plain = BackendUrl::found(true, "10.0.0.1:8000".parse().unwrap(), None);
        assert!(plain != url && plain.host() == "10.0.0.1");
        let mapped = BackendUrl::found(false, "[::ffff:10.0.0.1]:80".parse().unwrap(), None);
        assert_eq!(mapped.to_string(), "http://10.0.0.1");
        let v6 = BackendUrl::found(false, "[fd00::1]:8000".parse().unwrap(), Some(&name));
        assert_eq!(v6.to_string(), "http://[fd00::1]:8000");
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
            ("http://", UrlError::NoHost),
            ("http://:8001", UrlError::NoHost),
            ("http://user:pw@a", UrlError::UserInfo),
            ("http://a:0", UrlError::Port),
            ("http://a:", UrlError::Port),
            ("http://a:99999", UrlError::Port),
            ("http://a:80x", UrlError::Port),
            ("http://a:+80", UrlError::Port),
            ("http://a/v1", UrlError::ApiPath),
            ("https://a/gpu-1/v1/", UrlError::ApiPath),
            ("http://a/v1/chat/completions", UrlError::ApiPath),
            ("http://a/x//y", UrlError::Prefix),
            ("http://a/x/../y", UrlError::Prefix),
            ("http://a/%2E%2e", UrlError::Prefix),
            ("unix:", UrlError::Socket),
            ("unix:/", UrlError::Socket),
            ("unix:vllm.sock", UrlError::Socket),
            ("unix://host/vllm.sock", UrlError::Socket),
            ("unix:/run/a b", UrlError::Socket),
            ("unix:/run/é", UrlError::Socket),
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
                prop_assert!(!url.host().is_empty() && url.uri().path().ends_with('/'));
            }
        }
    }
}
