//! What the proxy says about itself: metrics, the access log, traces. [`Telemetry`] owns the metrics of one process (or of
//! one harness in a test: nothing here is global but the trace subscriber). It must never know the fleet: whoever asks for
//! the text of `/metrics` hands in the live figures as rows.

mod counters;
pub mod decisions;
pub mod events;
pub mod figures;
pub mod labels;
pub mod live;
pub mod log;
pub mod log_file;
pub mod metrics;
pub mod panics;
mod process;
pub mod recorder;
pub mod throttle;
pub mod trace;
mod writer;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use self::decisions::Decisions;
use self::events::Events;
use self::live::{ArmRow, BackendRow, CertificateRow};
use self::metrics::{ALL, BackendMetrics, ClientMetrics, NONE, ProcessMetrics};
use self::recorder::{Labels, Registry, Text};
use crate::lock::locked;

/// The metrics of one process. Cheap to make; handles outlive it.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// The handles that are there once.
    pub process: ProcessMetrics,
    /// The metrics of requests without a pool: refusals before routing.
    pub unrouted: Arc<BackendMetrics>,
    /// The last decisions, while somebody watches.
    pub decisions: Decisions,
    /// The last things that happened to the fleet.
    pub events: Arc<Events>,
    /// The client keys whose series are shown.
    clients: Mutex<HashSet<String>>,
    certificates: Mutex<Vec<CertificateRow>>,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry::new()
    }
}

impl Telemetry {
    /// Metrics at zero.
    #[must_use]
    pub fn new() -> Telemetry {
        let registry = Registry::new(ALL);
        let process = ProcessMetrics::new(&registry);
        let unrouted = Arc::new(BackendMetrics::new(&registry, NONE, NONE, NONE));
        Telemetry {
            registry,
            process,
            unrouted,
            decisions: Decisions::default(),
            events: Arc::default(),
            clients: Mutex::default(),
            certificates: Mutex::default(),
        }
    }

    /// The handles of a backend, or of a pool's or an arm's [`NONE`]. The same labels give the same series, so that a
    /// backend that comes back while its old streams still end goes on counting where it was.
    #[must_use]
    pub fn backend(&self, pool: &str, arm: &str, backend: &str) -> Arc<BackendMetrics> {
        Arc::new(BackendMetrics::new(&self.registry, pool, arm, backend))
    }

    /// The handles of a client key. The same name gives the same series.
    #[must_use]
    pub fn client(&self, name: &str) -> Arc<ClientMetrics> {
        Arc::new(ClientMetrics::new(&self.registry, name))
    }

    /// Shows the series of these client keys from now on, and no others.
    pub fn know_clients(&self, names: HashSet<String>) {
        *locked(&self.clients) = names;
    }

    /// Shows these certificates, in place of all before.
    pub fn show_certificates(&self, rows: Vec<CertificateRow>) {
        *locked(&self.certificates) = rows;
    }

    /// The text of `/metrics`: what was recorded, the live rows, the process. Series of backends, arms and pools that are in
    /// no row are left out.
    #[must_use]
    pub fn render(&self, backends: &[BackendRow], arms: &[ArmRow]) -> String {
        let mut text = Text::default();
        let known_backends: HashSet<(&str, &str, &str)> =
            backends.iter().map(|row| (row.pool.as_str(), row.arm.as_str(), row.backend.as_str())).collect();
        let known_arms: HashSet<(&str, &str)> =
            arms.iter().filter_map(|row| Some((row.pool.as_str(), row.arm.as_deref()?))).collect();
        let known_pools: HashSet<&str> = arms.iter().map(|row| row.pool.as_str()).collect();
        // Handles of a removed backend live as long as its streams. Its series go at once, or a dashboard would show
        // it as idle.
        let known_clients = locked(&self.clients).clone();
        let keep = |labels: &Labels| {
            if let Some(client) = labels.get("client") {
                return known_clients.contains(client);
            }
            let Some(pool) = labels.get("pool") else { return true };
            let Some(arm) = labels.get("arm") else { return pool == NONE || known_pools.contains(pool) };
            match labels.get("backend") {
                Some(backend) if backend != NONE => known_backends.contains(&(pool, arm, backend)),
                _ => pool == NONE || known_arms.contains(&(pool, arm)) || (arm == NONE && known_pools.contains(pool)),
            }
        };
        self.registry.render(&mut text, keep);
        live::render(&mut text, backends, arms);
        live::render_certificates(&mut text, &locked(&self.certificates));
        process::render(&mut text);
        text.finish()
    }
}

#[cfg(test)]
mod tests;
