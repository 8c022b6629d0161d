//! Backends by a name of the DNS: the resolver of this host is asked again and again. An error and an answer without an address
//! change nothing. A question that takes long is waited for: it has a thread, and another one would take another.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{Fault, SourceQuestion};
use crate::tasks::until_next;
use forebay_fleet::config::model::{BackendUrl, DnsName};
use forebay_fleet::membership::roster::Found;
use forebay_fleet::telemetry::labels::DiscoveryFailure;

/// The longest time between two questions until the first answer: nothing can be served before it.
const FIRST: Duration = Duration::from_secs(1);

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Looks up the addresses of a host and port.
#[derive(Clone)]
pub struct Resolve(Arc<dyn Fn(String, u16) -> Answer + Send + Sync>);

impl Resolve {
    /// The resolver of this host (getaddrinfo).
    #[must_use]
    pub fn system() -> Resolve {
        Resolve::by(|host, port| async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }

    /// A resolver that is a function.
    pub fn by<F>(resolve: impl Fn(String, u16) -> F + Send + Sync + 'static) -> Resolve
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Resolve(Arc::new(move |host, port| Box::pin(resolve(host, port))))
    }
}

/// Asks until it is dropped.
pub(super) async fn follow(question: &SourceQuestion, name: &DnsName, interval: Duration) {
    loop {
        let started = question.all.clock.now();
        question.take(ask(question, name).await);
        let pause = if question.source.has_answered() { interval } else { interval.min(FIRST) };
        until_next(pause, started, &question.all.clock).await;
    }
}

/// Asks once.
pub(super) async fn ask(question: &SourceQuestion, name: &DnsName) -> Result<Vec<Found>, Fault> {
    let addresses = (question.all.resolve.0)(name.host.clone(), name.port).await;
    let addresses = addresses
        .map_err(|error| Fault::new(DiscoveryFailure::Unresolved, format!("{name} does not resolve: {error}")))?;
    let found = backends(&addresses, question.source.discover.https, &name.url(question.source.discover.https));
    if found.is_empty() {
        return Err(Fault::new(DiscoveryFailure::Empty, format!("{name} has no address")));
    }
    Ok(found)
}

/// The backends at these addresses. Where there are some of IPv4, those of IPv6 are the same servers once more.
fn backends(addresses: &[SocketAddr], https: bool, name: &BackendUrl) -> Vec<Found> {
    let is_v4 = |address: &SocketAddr| address.ip().to_canonical().is_ipv4();
    let any_v4 = addresses.iter().any(is_v4);
    let counted = addresses.iter().filter(|address| is_v4(address) == any_v4);
    counted.map(|address| Found::ready(BackendUrl::found(https, *address, Some(name)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_name_with_both_families_the_addresses_of_one_count() {
        let name = "http://vllm.example:8000".parse().unwrap();
        let of = |texts: &[&str]| {
            let addresses: Vec<SocketAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
            backends(&addresses, false, &name).iter().map(|one| one.url.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(&["[fd00::1]:8000", "10.0.0.1:8000", "[fd00::2]:8000"]), ["http://10.0.0.1:8000"]);
        assert_eq!(of(&["[::ffff:10.0.0.1]:8000", "[fd00::1]:8000"]), ["http://10.0.0.1:8000"]);
        assert_eq!(of(&["[fd00::1]:8000"]), ["http://[fd00::1]:8000"]);
        assert!(of(&[]).is_empty());
    }
}
