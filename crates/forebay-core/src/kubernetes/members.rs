//! The endpoints that there are, by the last whole list and the events since.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use thiserror::Error;

use super::objects::{List, Named, Pod, Slice, Status, WatchEvent};
use super::{Objects, Port};

/// Pods or slices of one list. A cluster has fewer; one that lists more is not held in memory.
const MOST_OBJECTS: usize = 20_000;

/// Reason why an answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It is not what was asked for.
    #[error("the answer is no list or event of Kubernetes: {0}")]
    Malformed(String),
    /// It does not say which version it is of, so that nothing could follow it.
    #[error("the list has no resourceVersion")]
    NoVersion,
    /// It lists too many objects.
    #[error("more than {MOST_OBJECTS} objects are listed: a narrower selector lists fewer")]
    TooMany,
    /// An InferencePool does not say what discovery needs.
    #[error("the InferencePool names no pods: {0}")]
    Pool(&'static str),
}

/// The fitness of an endpoint for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It takes requests.
    Ready,
    /// It is not Ready.
    NotReady,
    /// It is terminating, whatever else it says.
    Terminating,
}

/// An address at which a server listens, or shall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address and port.
    pub address: SocketAddr,
    /// The fitness for requests.
    pub readiness: Readiness,
}

/// The meaning of one event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventMeaning {
    /// The endpoints may be others now.
    Changed,
    /// The endpoints are the same, and the watch is alive.
    Same,
    /// The API server ends the watch: code and message. 410 is what was asked for being too old.
    Ended(u16, String),
}

/// A list under way: its pages so far.
#[derive(Debug)]
pub struct Listing {
    objects: Objects,
    ports: Vec<Port>,
    found: HashMap<String, Vec<Endpoint>>,
    version: String,
}

/// The endpoints of pods or slices.
#[derive(Debug)]
pub struct Members {
    objects: Objects,
    ports: Vec<Port>,
    /// By the name of the pod or the slice.
    found: HashMap<String, Vec<Endpoint>>,
    version: String,
}

impl Members {
    /// No endpoints yet. A pod has one at each of these ports.
    #[must_use]
    pub fn new(objects: Objects, ports: Vec<Port>) -> Members {
        Members { objects, ports, found: HashMap::new(), version: String::new() }
    }

    /// Begins a list. What is known stays until it is whole.
    #[must_use]
    pub fn begin(&self) -> Listing {
        Listing { objects: self.objects, ports: self.ports.clone(), found: HashMap::new(), version: String::new() }
    }

    /// Takes over a whole list, in place of all that was known.
    ///
    /// # Errors
    /// It has no version.
    pub fn replace(&mut self, listing: Listing) -> Result<(), Unusable> {
        if listing.version.is_empty() {
            return Err(Unusable::NoVersion);
        }
        (self.found, self.version) = (listing.found, listing.version);
        Ok(())
    }

    /// The version that a watch goes on from.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Takes one event of a watch.
    ///
    /// # Errors
    /// It cannot be read: what it said is lost, so that only a new list tells the truth.
    pub fn event(&mut self, line: &[u8]) -> Result<EventMeaning, Unusable> {
        let event: WatchEvent<'_> = read(line)?;
        if event.kind == "ERROR" {
            let Status { code, message } = read(event.object.get().as_bytes())?;
            return Ok(EventMeaning::Ended(code, message));
        }
        let Named { metadata } = read(event.object.get().as_bytes())?;
        let before = match event.kind {
            "BOOKMARK" => {
                self.follow(metadata.resource_version);
                return Ok(EventMeaning::Same);
            }
            // By a selector this is also a pod that lost its label.
            "DELETED" => self.found.remove(&metadata.name),
            "ADDED" | "MODIFIED" => {
                let endpoints = endpoints_of(self.objects, &self.ports, event.object.get())?;
                if self.found.len() >= MOST_OBJECTS && !self.found.contains_key(&metadata.name) {
                    return Err(Unusable::TooMany);
                }
                let before = self.found.insert(metadata.name.clone(), endpoints.clone());
                let same = before.as_ref() == Some(&endpoints) || (before.is_none() && endpoints.is_empty());
                self.follow(metadata.resource_version);
                return Ok(if same { EventMeaning::Same } else { EventMeaning::Changed });
            }
            other => return Err(Unusable::Malformed(format!("an event of the unknown type {other:?}"))),
        };
        self.follow(metadata.resource_version);
        Ok(if before.is_some_and(|endpoints| !endpoints.is_empty()) {
            EventMeaning::Changed
        } else {
            EventMeaning::Same
        })
    }

    fn follow(&mut self, version: String) {
        if !version.is_empty() {
            self.version = version;
        }
    }

    /// The endpoints, each address once. Where any has an address of IPv4, those of IPv6 are the same servers once more. Of several with
    /// one address the fittest counts: one that ends may have left its address to another.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let all = || self.found.values().flatten();
        let any_v4 = all().any(|endpoint| endpoint.address.is_ipv4());
        let mut fittest: BTreeMap<SocketAddr, Readiness> = BTreeMap::new();
        for endpoint in all().filter(|endpoint| endpoint.address.is_ipv4() == any_v4) {
            let known = fittest.entry(endpoint.address).or_insert(endpoint.readiness);
            *known = (*known).min(endpoint.readiness);
        }
        fittest.into_iter().map(|(address, readiness)| Endpoint { address, readiness }).collect()
    }

    /// The hosts with a Ready endpoint, whatever its port.
    #[must_use]
    pub fn ready_hosts(&self) -> usize {
        let ready = self.endpoints().into_iter().filter(|endpoint| endpoint.readiness == Readiness::Ready);
        ready.map(|endpoint| endpoint.address.ip()).collect::<HashSet<_>>().len()
    }
}

impl Listing {
    /// Takes one page. Returns the token that the next one is asked for by; `None`: it was the last.
    ///
    /// # Errors
    /// It is no list, or there are too many objects.
    pub fn page(&mut self, body: &[u8]) -> Result<Option<String>, Unusable> {
        let list: List<'_> = read(body)?;
        if self.found.len() + list.items.len() > MOST_OBJECTS {
            return Err(Unusable::TooMany);
        }
        for item in list.items {
            let Named { metadata } = read(item.get().as_bytes())?;
            self.found.insert(metadata.name, endpoints_of(self.objects, &self.ports, item.get())?);
        }
        // All pages are of one version, as long as their token holds.
        self.version = list.metadata.resource_version;
        Ok(Some(list.metadata.next).filter(|next| !next.is_empty()))
    }
}

pub(super) fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Unusable> {
    serde_json::from_slice(text).map_err(|error| Unusable::Malformed(error.to_string()))
}

fn endpoints_of(objects: Objects, ports: &[Port], text: &str) -> Result<Vec<Endpoint>, Unusable> {
    Ok(match objects {
        Objects::Pods => {
            let pod = read(text.as_bytes())?;
            ports.iter().filter_map(|port| of_pod(&pod, port)).collect()
        }
        Objects::EndpointSlices => {
            let slice = read(text.as_bytes())?;
            ports.iter().flat_map(|port| of_slice(&slice, port)).collect()
        }
    })
}

/// The endpoint of a pod at this port; none while it has no address, and once it has ended, when its address may be another's.
fn of_pod(pod: &Pod, port: &Port) -> Option<Endpoint> {
    if matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") {
        return None;
    }
    // A pod that waits for a node, or for its network, has none.
    let address: IpAddr = pod.status.address.parse().ok()?;
    let ports = || pod.spec.containers.iter().flat_map(|container| &container.ports);
    let port = match port {
        Port::Number(number) => *number,
        Port::Any => ports().next().map_or(0, |port| port.container_port),
        Port::Name(name) => {
            ports().find(|port| port.name == *name).map(|port| port.container_port).filter(|port| *port > 0)?
        }
    };
    let is_ready = |kind: &str, status: &str| kind == "Ready" && status == "True";
    // A pod that ends may call itself Ready until its last second.
    let readiness = if pod.metadata.deletion_timestamp.is_some() {
        Readiness::Terminating
    } else if pod.status.conditions.iter().any(|condition| is_ready(&condition.kind, &condition.status)) {
        Readiness::Ready
    } else {
        Readiness::NotReady
    };
    Some(Endpoint { address: SocketAddr::new(address, port), readiness })
}

/// The endpoints of a slice at this port. The addresses of one endpoint are one server's, so the first stands for it.
fn of_slice(slice: &Slice, port: &Port) -> Vec<Endpoint> {
    // Names are not resolved here: the API has deprecated them.
    if slice.address_type == "FQDN" {
        return Vec::new();
    }
    let numbers = || slice.ports.iter().filter_map(|one| one.port);
    let number = match port {
        // A slice without ports has every one.
        Port::Number(number) if slice.ports.is_empty() || numbers().any(|one| one == *number) => *number,
        Port::Number(_) => return Vec::new(),
        Port::Any => numbers().next().unwrap_or(0),
        Port::Name(name) => match slice.ports.iter().find(|one| one.name == *name).and_then(|one| one.port) {
            Some(number) if number > 0 => number,
            _ => return Vec::new(),
        },
    };
    let endpoint = |endpoint: &super::objects::SliceEndpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let readiness = if endpoint.conditions.terminating == Some(true) {
            Readiness::Terminating
        } else if endpoint.conditions.ready.unwrap_or(true) {
            Readiness::Ready
        } else {
            Readiness::NotReady
        };
        Some(Endpoint { address: SocketAddr::new(address, number), readiness })
    };
    slice.endpoints.iter().filter_map(endpoint).collect()
}

#[cfg(test)]
mod tests;
