//! The configuration as the rest of Forebay sees it: every default filled in, every value in range, nothing left to check.
//! Plain data, compared as a whole by a reload. Never shows a secret: `Debug` and `Serialize` print `[redacted]`, so that
//! the serialised form is what `/api/config` may answer.

mod watched;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use forebay_core::routing::policy::PolicyName;
use forebay_core::toml_reader::written;

pub use super::affinity::Affinity;
pub use super::secret::Secret;
pub use super::url::{BackendUrl, UrlError};
pub use watched::{Ejection, Health, Scrape};

/// Everything that can be configured. The default has the values of the documentation and no pools.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Config {
    /// Where clients connect, and how the process stops.
    pub listen: Listen,
    /// Where operators look.
    pub admin: Admin,
    /// Who may send requests.
    pub clients: Clients,
    /// What one peer may cost.
    pub limits: Limits,
    /// How long an answer may take, and what is asked of it.
    pub stream: Stream,
    /// What happens when an attempt fails.
    pub retry: Retry,
    /// How backends are probed.
    pub health: Health,
    /// How backends' own figures are read.
    pub scrape: Scrape,
    /// What counts as good service.
    pub slo: Slo,
    /// One for each model; empty only in the default, never in a file that was read.
    pub pools: Vec<Pool>,
}

/// The listener for clients.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listen {
    /// Address and port of the data listener.
    pub address: SocketAddr,
    /// Connections open at once; none: no limit.
    #[serde(serialize_with = "written::number_or_off")]
    pub max_connections: Option<usize>,
    /// From the first byte of a request to the end of its head.
    #[serde(serialize_with = "written::duration_or_off")]
    pub header_timeout: Option<Duration>,
    /// From the end of the head to the end of the request body.
    #[serde(serialize_with = "written::duration_or_off")]
    pub body_timeout: Option<Duration>,
    /// How long an idle connection stays open.
    #[serde(serialize_with = "written::duration_or_off")]
    pub keep_alive: Option<Duration>,
    /// What happens between SIGTERM and the end of the process.
    pub drain: Drain,
    /// Where a new process waits for the listening sockets; none: a place that follows from user and address.
    pub upgrade_socket: Option<PathBuf>,
    /// Worker threads of the data listener, at least 1.
    pub threads: usize,
}

/// What happens between SIGTERM and the end of the process.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drain {
    /// How long `/ready` says no while the listener still accepts.
    #[serde(serialize_with = "written::duration")]
    pub ready_delay: Duration,
    /// When the process ends although requests are still open.
    #[serde(serialize_with = "written::duration")]
    pub limit: Duration,
}

/// The listener for operators: metrics, readiness, live view.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Admin {
    /// Address and port of the admin listener.
    pub address: SocketAddr,
    /// The bearer token to ask for; always there where the address is not loopback.
    pub token: Option<Secret>,
}

/// Who may send requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Clients {
    /// The keys that are let in; none: every client is, and its authorization is passed on to the backend.
    pub keys: Option<Vec<ClientKey>>,
    /// Who may ask why its request went where it went.
    pub explain: Explain,
}

/// Who gets an explanation by the header `x-forebay-explain: 1`: it shows how many backends there are, and their load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Explain {
    /// Nobody.
    Off,
    /// Connections from this machine; behind another proxy on it, everyone.
    #[default]
    Loopback,
    /// Everyone.
    All,
}

impl Explain {
    /// As written in the configuration.
    pub const ALL: [(&str, Explain); 3] =
        [("off", Explain::Off), ("loopback", Explain::Loopback), ("all", Explain::All)];

    /// Whether a client at this address may ask.
    #[must_use]
    pub fn allows(self, client: Option<SocketAddr>) -> bool {
        match self {
            Explain::Off => false,
            Explain::Loopback => client.is_some_and(|client| client.ip().to_canonical().is_loopback()),
            Explain::All => true,
        }
    }
}

/// A client's key, kept as its hash.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct ClientKey {
    /// What the client is called in logs.
    pub name: String,
    /// SHA-256 of the key.
    #[serde(skip)]
    pub sha256: [u8; 32],
}

/// What one peer may cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// The largest body of one request, in bytes.
    #[serde(serialize_with = "written::size")]
    pub body: u64,
    /// All request bodies in memory together, in bytes; at least `body`.
    #[serde(serialize_with = "written::size")]
    pub bodies_in_memory: u64,
    /// The largest head of a request, in bytes.
    #[serde(serialize_with = "written::size_of_head")]
    pub head: usize,
    /// Streams open at once on one HTTP/2 connection.
    pub h2_streams: u32,
    /// How long a peer may read nothing of what is written to it.
    #[serde(serialize_with = "written::duration_or_off")]
    pub write_stall: Option<Duration>,
}

/// How long an answer may take, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stream {
    /// How long a client waits without a sign: then it gets the head of its stream, and comments, before the first token.
    #[serde(serialize_with = "written::duration_or_off")]
    pub head_after: Option<Duration>,
    /// From the request to the proof that the engine works on it.
    #[serde(serialize_with = "written::duration_or_off")]
    pub first_token_timeout: Option<Duration>,
    /// Between two events after the first.
    #[serde(serialize_with = "written::duration_or_off")]
    pub idle_timeout: Option<Duration>,
    /// From the request to the end of its answer.
    #[serde(serialize_with = "written::duration_or_off")]
    pub total_timeout: Option<Duration>,
    /// Whether token counts are asked for.
    pub usage: UsageMode,
}

/// Whether backends are asked for token counts that the client did not ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageMode {
    /// Ask for them, and hide them from a client that did not.
    #[default]
    Inject,
    /// Leave the request as the client sent it.
    AsSent,
}

/// What happens when an attempt fails.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retry {
    /// Attempts for one request, the first included; at least 1.
    pub attempts: u32,
    /// What a pool may spend on retries.
    pub budget: Budget,
}

/// A bucket of retries for each pool, full at the start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Retries that fit into the bucket; at least 0.
    pub burst: f64,
    /// What each request adds; between 0 and 1.
    pub ratio: f64,
    /// What each second adds; at least 0.
    pub per_second: f64,
}

/// What counts as good service: a request that met all of these.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slo {
    /// Time to the first token.
    #[serde(serialize_with = "written::duration")]
    pub ttft: Duration,
    /// Time for each token after the first.
    #[serde(serialize_with = "written::duration")]
    pub tpot: Duration,
}

/// The backends that serve one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    /// The model's name as backends know it; unique over names and aliases of all pools.
    pub model: String,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// How a backend is chosen.
    pub policy: PolicyName,
    /// What requests are recognised by, to send them where their prompt's beginning is cached.
    pub affinity: Affinity,
    /// What makes requests a session.
    pub session: SessionKey,
    /// Another salt, another split of the same sessions.
    pub split_salt: String,
    /// Whether a request may leave its arm when none of its backends can take it.
    pub cross_arm: bool,
    /// Sequences that one backend may have in flight; at least 1. None: no limit.
    #[serde(serialize_with = "written::count_or_off")]
    pub backend_max_in_flight: Option<u32>,
    /// Where requests wait while every backend is at that limit.
    pub wait_room: WaitRoom,
    /// The parts under comparison; at least one, and at least one share above 0.
    pub arms: Vec<Arm>,
}

impl Pool {
    /// A pool with the default policy and one arm, `default`, over `backends`.
    #[must_use]
    pub fn of(model: impl Into<String>, backends: Vec<Backend>) -> Pool {
        Pool { model: model.into(), arms: vec![Arm::of("default", backends)], ..Pool::default() }
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            model: String::new(),
            aliases: Vec::new(),
            policy: PolicyName::default(),
            affinity: Affinity::default(),
            session: SessionKey::Header("x-session-id".to_owned()),
            split_salt: String::new(),
            cross_arm: true,
            backend_max_in_flight: None,
            wait_room: WaitRoom::default(),
            arms: Vec::new(),
        }
    }
}

/// Where requests wait while every backend of their pool is at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WaitRoom {
    /// Requests that may wait at once; more are refused. 0: none waits.
    pub size: usize,
    /// How long one request may wait in all.
    #[serde(serialize_with = "written::duration")]
    pub timeout: Duration,
}

/// A labelled part of a pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Arm {
    /// Unique in its pool; fit for a metric label and a header.
    pub name: String,
    /// Its part of the sessions, relative to the other arms' shares; at least 0.
    pub share: f64,
    /// GPUs that it occupies, for figures per GPU; at least 1.
    pub gpus: u32,
    /// Its backends, at least one; no URL twice in a pool.
    pub backends: Vec<Backend>,
}

impl Arm {
    /// An arm with share 1 and a GPU for each backend.
    #[must_use]
    pub fn of(name: impl Into<String>, backends: Vec<Backend>) -> Arm {
        let gpus = u32::try_from(backends.len()).unwrap_or(u32::MAX).max(1);
        Arm { name: name.into(), share: 1.0, gpus, backends }
    }
}

/// One vLLM server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Where it listens.
    pub url: BackendUrl,
    /// How fast it is until that is measured, relative to the others; finite, above 0.
    pub speed: f64,
    /// The key to send it; none: the client's authorization, where clients need no key.
    pub key: Option<Secret>,
    /// Whether it finishes what it has and gets nothing new.
    pub drain: bool,
}

impl Backend {
    /// A backend of speed 1 without a key.
    #[must_use]
    pub fn of(url: BackendUrl) -> Backend {
        Backend { url, speed: 1.0, key: None, drain: false }
    }
}

/// What makes requests a session.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKey {
    /// The value of this request header, in lower case.
    Header(String),
    /// The text in this member of a JSON body.
    Body(String),
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An address on this machine only.
pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_loopback_in_every_form_of_address() {
        let client = |text: &str| Some(format!("{text}:9").parse().unwrap());
        for (address, may) in [
            ("127.0.0.1", true),
            ("127.9.0.1", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("10.0.0.1", false),
        ] {
            assert_eq!(Explain::Loopback.allows(client(address)), may, "{address}");
            assert!(Explain::All.allows(client(address)) && !Explain::Off.allows(client(address)));
        }
        assert!(!Explain::Loopback.allows(None));
    }
}
