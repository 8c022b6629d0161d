//! The identity of one backend: what does not change while it is configured, and pointers to what does. The HTTP client of a
//! backend lives in `upstream`, by id.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model::{BackendUrl, Secret};
use crate::health::alarm::Alarm;
use crate::health::doubt::Doubt;
use crate::health::reports::Reports;
use crate::load::Load;
use crate::reach::Endpoint;
use crate::telemetry::figures::Figures;
use crate::telemetry::metrics::BackendMetrics;
use forebay_core::units::BackendId;

/// One vLLM server in one arm of one pool.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its identity for the life of the process.
    pub id: BackendId,
    /// The number that every replica of this proxy has for it.
    pub(crate) identity: u64,
    /// The URL that it listens at.
    pub url: BackendUrl,
    /// The way to it.
    pub endpoint: Arc<Endpoint>,
    /// The model of its pool.
    pub pool: Arc<str>,
    /// The name of its arm.
    pub arm: Arc<str>,
    /// The backend's speed until it is measured, relative to the others.
    pub speed: f64,
    /// The key to send it.
    pub key: Option<Secret>,
    /// The work that it has. Kept for as long as the backend is configured.
    pub load: Arc<Load>,
    /// The alarm that ends the attempts on it from outside. Kept as the load is.
    pub alarm: Arc<Alarm>,
    /// The doubt about what it serves, to be settled by asking it. Kept as the load is.
    pub doubt: Arc<Doubt>,
    /// The models that its `/v1/models` lists, as it said it; empty until it was asked.
    pub models: Arc<ArcSwap<Vec<serde_json::Value>>>,
    /// The reports of its attempts on how it does.
    pub(crate) reports: Reports,
    /// Its metric handles.
    pub metrics: Arc<BackendMetrics>,
    /// The live figures of what it served.
    pub figures: Arc<Figures>,
}

impl Backend {
    /// Returns whether its `/v1/models` lists a model of this name.
    #[must_use]
    pub fn lists(&self, name: &str) -> bool {
        self.models.load().iter().any(|card| card["id"] == name)
    }
}
