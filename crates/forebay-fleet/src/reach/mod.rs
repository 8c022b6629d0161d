//! The way to a backend, for requests, probes and scrapes alike: by TCP or a Unix socket, plain or with TLS. It blames nobody; what a
//! failure means is for whoever asked.

mod dial;
mod socket;
mod wire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

pub use socket::Socket;
pub use wire::Wire;

use crate::config::model::BackendUrl;
use crate::obstacle::Unresolved;
use crate::tls::ClientTls;

/// The time for a TLS handshake. As long as a server may be silent: one that a long prompt blocks takes a connection at once, since
/// the system does, and shakes hands after the prompt.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// The way to one backend.
#[derive(Debug)]
pub struct Endpoint {
    place: Place,
    /// The name that the server's certificate has, unless `tls` names another.
    name: String,
    tls: Option<ClientTls>,
    /// The settings of `tls`, before it got sessions of its own.
    met_by: Option<ClientTls>,
    /// It was said that the name has several addresses.
    told: AtomicBool,
}

#[derive(Debug)]
enum Place {
    Host { host: String, port: u16 },
    Socket(PathBuf),
}

impl Endpoint {
    /// The way to this URL. With `https`, `tls` says how to meet the server; without, the system's authorities do.
    #[must_use]
    pub fn new(url: &BackendUrl, tls: Option<&ClientTls>) -> Endpoint {
        let place = match url.socket() {
            Some(path) => Place::Socket(path.to_owned()),
            None => {
                let host = url.found_at().map_or_else(|| bare(url.host()), |address| address.to_string());
                Place::Host { host, port: url.port() }
            }
        };
        let met_by = url.is_https().then(|| tls.cloned()).flatten();
        let shown = url.is_https().then(|| met_by.clone().unwrap_or_else(ClientTls::system));
        let tls = shown.map(|tls| tls.of_its_own());
        Endpoint { place, name: bare(url.host()), tls, met_by, told: AtomicBool::new(false) }
    }

    /// The way to a host of which no more is known.
    pub(crate) fn of_host(host: &str, port: u16, https: bool) -> Endpoint {
        let tls = https.then(ClientTls::system);
        let (host, name) = (bare(host), bare(host));
        Endpoint { place: Place::Host { host, port }, name, tls, met_by: None, told: AtomicBool::new(true) }
    }

    /// Returns whether [`Endpoint::new`] would make the same of this URL, which leads to the same place, and of this `tls`.
    #[must_use]
    pub fn is_met_by(&self, url: &BackendUrl, tls: Option<&ClientTls>) -> bool {
        self.tls.is_none() || (self.met_by.as_ref() == tls && self.name == bare(url.host()))
    }

    /// Connects, and speaks TLS where the URL says so. `wrap` gets the socket beneath it.
    ///
    /// # Errors
    /// No connection within `limit`, or no agreement on TLS.
    pub async fn connect<S>(&self, limit: Duration, wrap: impl FnOnce(Socket) -> S) -> io::Result<Wire<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let io = wrap(self.dial(limit).await?);
        let Some(tls) = &self.tls else { return Ok(Wire::Plain(io)) };
        // On the heap: the state of a handshake is large, and most connections have none.
        match tokio::time::timeout(HANDSHAKE, Box::pin(tls.connect(&self.name, io))).await {
            Ok(shaken) => Ok(Wire::Tls(Box::new(shaken?), Some(Arc::clone(tls.meeting())))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")),
        }
    }

    async fn dial(&self, limit: Duration) -> io::Result<Socket> {
        let (host, port) = match &self.place {
            Place::Host { host, port } => (host, *port),
            Place::Socket(path) => {
                // A server that accepts nothing has a full queue, and then this waits as it does for a host that does not answer.
                let connecting = tokio::time::timeout(limit, UnixStream::connect(path));
                return connecting.await.unwrap_or_else(|_| Err(late())).map(Socket::Unix);
            }
        };
        // A name that does not resolve in time is a shortage of this host's. An address that does not answer is the backend's doing.
        let mut resolved = false;
        let connecting = async {
            let addresses = tokio::net::lookup_host((host.as_str(), port)).await;
            let addresses: Vec<SocketAddr> = addresses.map_err(|error| Unresolved::new(Some(error)))?.collect();
            resolved = true;
            self.tell_several(host, port, &addresses);
            dial::dial(addresses.into_iter()).await
        };
        let stream = match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected?,
            Err(_) if resolved => return Err(late()),
            Err(_) => return Err(Unresolved::new(None).into()),
        };
        // A request is one small write: waiting for more would add to what is timed.
        stream.set_nodelay(true)?;
        Ok(Socket::Tcp(stream))
    }

    /// Says once that a name stands for several servers: they are one backend here, and their load cannot be told apart.
    fn tell_several(&self, host: &str, port: u16, addresses: &[SocketAddr]) {
        // The first of many connections says it. Others would repeat it for as long as the process runs.
        let count = several(addresses);
        if count > 1 && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                host,
                addresses = count,
                "a backend's host name has several addresses, which count as one backend: to balance between them, write \
                 discover = {{ dns = \"{host}:{port}\" }} in place of this backend"
            );
        }
    }
}

/// Returns how many hosts these may be. A host with IPv4 and IPv6 has an address of each.
fn several(addresses: &[SocketAddr]) -> usize {
    // One of IPv4 that is written as one of IPv6 is the same host.
    let mut hosts: Vec<IpAddr> = addresses.iter().map(|address| address.ip().to_canonical()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let (v4, v6): (Vec<_>, Vec<_>) = hosts.into_iter().partition(IpAddr::is_ipv4);
    v4.len().max(v6.len())
}

fn bare(host: &str) -> String {
    host.trim_matches(['[', ']']).to_owned()
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "not connected in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_both_families_is_one_and_a_name_of_several_is_not() {
        let of = |texts: &[&str]| several(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(of(&["127.0.0.1:1", "[::1]:1"]), 1);
        assert_eq!(of(&["10.0.0.1:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"]), 1);
        assert_eq!(of(&["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"]), 2);
        assert_eq!(of(&[]), 0);
    }

    #[test]
    fn a_way_changes_with_its_tls_alone() {
        let (https, http) = ("https://a".parse().unwrap(), "http://a".parse().unwrap());
        let tls = ClientTls::new(None, Some(&"b".try_into().unwrap()), None).unwrap();
        assert!(Endpoint::new(&https, None).is_met_by(&https, None));
        assert!(!Endpoint::new(&https, None).is_met_by(&https, Some(&tls)));
        assert!(Endpoint::new(&https, Some(&tls)).is_met_by(&https, Some(&tls.clone())));
        assert!(Endpoint::new(&http, None).is_met_by(&http, Some(&tls)), "it speaks none");
        let at = |name: &BackendUrl| BackendUrl::found(true, "10.0.0.1:443".parse().unwrap(), Some(name));
        assert!(!Endpoint::new(&at(&https), None).is_met_by(&at(&"https://b".parse().unwrap()), None));
    }
}
