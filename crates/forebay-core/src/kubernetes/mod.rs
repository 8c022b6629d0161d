//! What the API server of a Kubernetes cluster says of pods, EndpointSlices and InferencePools: whole lists, and a watch that changes them event by
//! event, become the endpoints that there are. A list is the truth; an event that cannot be read ends the watch, so that the next
//! list puts it right. Never asks anybody.

mod lines;
mod members;
mod objects;
mod pool;

pub use lines::{Lines, TooLong};
pub use members::{Endpoint, EventMeaning, Listing, Members, Readiness, Unusable};
pub use pool::{GatewayCondition, InferencePool, PoolEvent, listed_pool, pool_event};

/// The objects that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// Pods (`v1`).
    Pods,
    /// The slices of a Service (`discovery.k8s.io/v1`).
    EndpointSlices,
}

/// The port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By its number.
    Number(u16),
    /// By the name that the pod or the Service gives it.
    Name(String),
    /// The first one, or 0 where there is none: for servers that are counted and not asked.
    Any,
}

/// Returns the code and the message of a `Status` object, as far as the body is one.
#[must_use]
pub fn status_of(body: &[u8]) -> (u16, String) {
    let status: objects::Status = serde_json::from_slice(body).unwrap_or_default();
    (status.code, status.message)
}
