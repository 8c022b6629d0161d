//! Where a request came from: who the client is, as far as proxies that are trusted say it, and what backends are told of it in
//! `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239). Strangers' words are replaced, trusted ones extended.
//!
//! Hot path: four headers, which a connection's first request writes for the others; nothing where `forwarding.headers` is off.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use http::Uri;
use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::intake::heads::Heads;
use forebay_fleet::config::model::Forwarding;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST_ASKED: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The other end of a client connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    address: Option<SocketAddr>,
    /// The connection is encrypted.
    secure: bool,
    /// Its address as `X-Forwarded-For` has it.
    name: HeaderValue,
    /// Its part of `Forwarded`, up to the host.
    node: String,
    /// Its whole part, with the host of its first request: nearly every request of a connection asks for the same one.
    first: OnceLock<(Option<HeaderValue>, Option<HeaderValue>)>,
    /// The heads of its requests.
    pub(crate) heads: Arc<Heads>,
}

impl Peer {
    /// The peer at this address.
    pub(crate) fn new(address: Option<SocketAddr>, secure: bool) -> Peer {
        let ip = address.map(|address| address.ip().to_canonical());
        let name = ip.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        let node = match ip {
            Some(IpAddr::V6(ip)) => format!("for=\"[{ip}]\";proto={}", scheme(secure)),
            _ => format!("for={name};proto={}", scheme(secure)),
        };
        let name = HeaderValue::try_from(name).expect("an address is a valid value");
        Peer { address, secure, name, node, first: OnceLock::new(), heads: Arc::default() }
    }

    /// Returns whether it speaks TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    fn is_trusted(&self, trusted: &[IpNet]) -> bool {
        self.address.is_some_and(|address| is_in(trusted, address.ip()))
    }

    /// The client: this peer, or who it says that it forwards for, if it is trusted.
    pub(crate) fn client(&self, headers: &HeaderMap, trusted: &[IpNet]) -> Option<SocketAddr> {
        if trusted.is_empty() || !self.is_trusted(trusted) {
            return self.address;
        }
        // From the last to the first: each trusted proxy has put the one before it behind what it was told.
        let mut client = self.address;
        for node in nodes(headers).into_iter().rev() {
            let Some(address) = address(node) else { break };
            client = Some(address);
            if !is_in(trusted, address.ip()) {
                break;
            }
        }
        client
    }

    /// Its part of `Forwarded` in a request to this host.
    fn node_at(&self, host: Option<&HeaderValue>) -> Option<HeaderValue> {
        let (first, node) = self.first.get_or_init(|| {
            // A copy, since the value itself would keep the memory that the request's head was read into.
            (host.and_then(|host| HeaderValue::from_bytes(host.as_bytes()).ok()), self.make_node(host))
        });
        if first.as_ref() == host { node.clone() } else { self.make_node(host) }
    }

    fn make_node(&self, host: Option<&HeaderValue>) -> Option<HeaderValue> {
        let node = match host.and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty()) {
            Some(host) => HeaderValue::try_from(format!("{};host=\"{host}\"", self.node)),
            None => HeaderValue::try_from(self.node.as_str()),
        };
        node.ok()
    }

    /// Tells a backend of this peer in `headers`, and which host it asked for ([`host_asked`]).
    pub(crate) fn tell(&self, host: Option<HeaderValue>, headers: &mut HeaderMap, settings: &Forwarding) {
        if !settings.headers {
            return;
        }
        let (node, proto) = (self.node_at(host.as_ref()), HeaderValue::from_static(scheme(self.secure)));
        if !self.is_trusted(&settings.trusted_proxies) {
            let ours = [(FOR, Some(self.name.clone())), (FORWARDED, node), (PROTO, Some(proto)), (HOST_ASKED, host)];
            for (name, value) in ours {
                // Either way, what a stranger said is gone.
                match value {
                    Some(value) => drop(headers.insert(name, value)),
                    None => drop(headers.remove(name)),
                }
            }
            return;
        }
        extend(headers, FOR, &self.name);
        if let Some(node) = node {
            extend(headers, FORWARDED, &node);
        }
        headers.entry(PROTO).or_insert(proto);
        if let Some(host) = host {
            headers.entry(HOST_ASKED).or_insert(host);
        }
    }
}

/// The host that a request asks for. HTTP/2 has it in the URI.
pub(crate) fn host_asked(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    let host = headers.get(HOST).cloned();
    host.or_else(|| HeaderValue::try_from(uri.authority()?.as_str()).ok())
}

fn scheme(secure: bool) -> &'static str {
    if secure { "https" } else { "http" }
}

fn is_in(networks: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    networks.iter().any(|network| network.contains(&ip))
}

/// Puts a value behind those that a header has, all in one line: a reader that takes the first line alone must not miss any.
fn extend(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(&name).iter().chain([value]).map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&values.join(&b", "[..])) {
        headers.insert(name, joined);
    }
}

/// The clients and proxies that a request has come through, the first of them first: of `X-Forwarded-For`, else of `Forwarded`.
fn nodes(headers: &HeaderMap) -> Vec<&str> {
    let lines = |name: HeaderName| headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let listed: Vec<&str> = lines(FOR).flat_map(|line| line.split(',')).map(str::trim).collect();
    if !listed.is_empty() {
        return listed;
    }
    lines(FORWARDED).flat_map(|line| line.split(',')).map(forwarded_for).collect()
}

/// The `for` of one element of `Forwarded`; empty where it has none.
fn forwarded_for(element: &str) -> &str {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let node = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"));
    node.map_or("", |(_, node)| node.trim_matches('"'))
}

/// The address of a node: `192.0.2.7`, `192.0.2.7:80`, `2001:db8::7`, `[2001:db8::7]:80`. Port 0 where none is said.
fn address(node: &str) -> Option<SocketAddr> {
    let ip = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip.to_canonical(), 0));
    node.parse::<SocketAddr>().ok().or_else(|| ip(node)).or_else(|| ip(node.strip_prefix('[')?.strip_suffix(']')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::new(Some(address.parse().unwrap()), false)
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn networks() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
    }

    #[test]
    fn the_client_is_the_last_that_no_trusted_proxy_is() {
        for (from, lines, client) in [
            ("192.0.2.1:9", &[("x-forwarded-for", "203.0.113.7")][..], "192.0.2.1:9"),
            ("10.0.0.1:9", &[("x-forwarded-for", "203.0.113.7")], "203.0.113.7:0"),
            ("10.0.0.1:9", &[("x-forwarded-for", "1.1.1.1, 203.0.113.7:80, 10.9.9.9")], "203.0.113.7:80"),
            ("10.0.0.1:9", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7:0"),
            ("10.0.0.1:9", &[("x-forwarded-for", "203.0.113.7, nonsense")], "10.0.0.1:9"),
            ("10.0.0.1:9", &[("x-forwarded-for", "10.0.0.5")], "10.0.0.5:0"),
            ("10.0.0.1:9", &[("forwarded", "for=1.1.1.1;proto=https, For=\"[2001:db8::7]:80\"")], "[2001:db8::7]:80"),
            ("10.0.0.1:9", &[], "10.0.0.1:9"),
            ("[::ffff:10.0.0.1]:9", &[("x-forwarded-for", "203.0.113.7")], "203.0.113.7:0"),
            ("[fd00::1]:9", &[("x-forwarded-for", "[2001:db8::7]")], "[2001:db8::7]:0"),
        ] {
            let found = peer(from).client(&headers(lines), &networks());
            assert_eq!(found, Some(client.parse().unwrap()), "{from} {lines:?}");
        }
        let lines = headers(&[("x-forwarded-for", "203.0.113.7")]);
        assert_eq!(peer("10.0.0.1:9").client(&lines, &[]), Some("10.0.0.1:9".parse().unwrap()), "nobody is trusted");
    }

    fn told(from: &str, lines: &[(&'static str, &str)], trusted: bool) -> Vec<(String, String)> {
        let settings =
            Forwarding { trusted_proxies: if trusted { networks() } else { Vec::new() }, ..Forwarding::default() };
        let mut request = http::Request::new(());
        *request.headers_mut() = headers(lines);
        let (head, ()) = request.into_parts();
        let mut headers = head.headers.clone();
        headers.remove(HOST);
        peer(from).tell(host_asked(&head.uri, &head.headers), &mut headers, &settings);
        let mut told: Vec<(String, String)> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        told.sort();
        told
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_stranger_s_words_are_replaced() {
        let lines = [
            ("host", "chat.example:8080"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=127.0.0.1"),
        ];
        assert_eq!(
            told("192.0.2.1:9", &lines, true),
            pairs(&[
                ("forwarded", "for=192.0.2.1;proto=http;host=\"chat.example:8080\""),
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-host", "chat.example:8080"),
                ("x-forwarded-proto", "http"),
            ])
        );
    }

    #[test]
    fn a_trusted_proxy_s_words_are_extended() {
        let lines = [
            ("host", "forebay"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "chat.example"),
            ("forwarded", "for=203.0.113.7;proto=https"),
        ];
        assert_eq!(
            told("[fd00::1]:9", &lines, true),
            pairs(&[
                ("forwarded", "for=203.0.113.7;proto=https, for=\"[fd00::1]\";proto=http;host=\"forebay\""),
                ("x-forwarded-for", "203.0.113.7, 10.0.0.9, fd00::1"),
                ("x-forwarded-host", "chat.example"),
                ("x-forwarded-proto", "https"),
            ])
        );
    }
}
