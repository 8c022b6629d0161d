//! What a proxy is made of, and what all its requests share.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::cors::Cors;
use super::fingerprints::Fingerprints;
use super::headers::Via;
use super::intake::BodyMemory;
use super::responses::ResponseHomes;
use super::shutdown::Shutdown;
use crate::spans::Spans;
use crate::upstream::Upstream;
use forebay_core::clock::Clock;
use forebay_fleet::Fleet;
use forebay_fleet::clients::KnownClients;
use forebay_fleet::config::model::Config;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::log::AccessLog;

/// Tells whether the process takes traffic; the text says why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The parts that a proxy is made of.
pub struct Parts {
    /// The settings in force, replaced whole by a reload.
    pub settings: Arc<ArcSwap<Config>>,
    /// Pools, arms and backends.
    pub fleet: Fleet,
    /// The clients that have keys.
    pub clients: Arc<KnownClients>,
    /// The HTTP clients of the backends.
    pub upstream: Arc<Upstream>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// The access log.
    pub access_log: AccessLog,
    /// The way of spans to a collector, where requests are traced.
    pub spans: Option<Spans>,
    /// Time.
    pub clock: Clock,
    /// Tells whether to take traffic.
    pub ready: Readiness,
    /// Ends what is still under way when the process does.
    pub shutdown: Shutdown,
}

/// The state that all requests share.
pub(crate) struct Shared {
    pub(crate) settings: Arc<ArcSwap<Config>>,
    pub(crate) fleet: Fleet,
    pub(crate) clients: Arc<KnownClients>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) access_log: AccessLog,
    pub(crate) spans: Option<Spans>,
    pub(crate) clock: Clock,
    pub(crate) ready: Readiness,
    pub(crate) shutdown: Shutdown,
    pub(crate) bodies: Arc<BodyMemory>,
    pub(crate) responses: ResponseHomes,
    pub(crate) cors: Cors,
    pub(crate) fingerprints: Fingerprints,
    /// Its name to other proxies.
    pub(crate) via: Via,
    /// Seed of the hashes of sessions and prompts where no pool has a `split_salt`: nobody can aim at it.
    pub(crate) seed: u64,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Shared {
        let Parts { settings, fleet, clients, upstream, telemetry, access_log, spans, clock, ready, shutdown } = parts;
        let cors = Cors::new(Arc::clone(&settings), fleet.clone(), Arc::clone(&upstream), clock.clone());
        Shared {
            settings,
            fleet,
            clients,
            upstream,
            telemetry,
            access_log,
            spans,
            clock,
            ready,
            shutdown,
            bodies: BodyMemory::new(),
            responses: ResponseHomes::default(),
            cors,
            fingerprints: Fingerprints::default(),
            via: Via::new(),
            seed: RandomState::new().hash_one(0),
        }
    }
}
