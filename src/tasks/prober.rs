//! Asks every backend's `/health`, each in a task of its own, and now and then its `/v1/models`. What a verdict means is the
//! controller's to say. It must never judge a backend by its model list: a server that needs its clients' keys has none to show.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use super::{PaceSource, at, for_each_backend, models, until_next};
use crate::clock::{Clock, Time};
use crate::fleet::Backend;
use crate::fleet::controller::Controller;
use crate::units::BackendId;
use crate::upstream::probe::ProbeClient;

/// vLLM's answer has no body at all.
const MAX_HEALTH: usize = 64 << 10;
/// Adapters come and go, and a server that came back may be another one (then it is asked at once).
const MODELS_EVERY: Duration = Duration::from_secs(10);

/// What the prober needs.
#[derive(Clone)]
pub struct Prober {
    /// Whom to tell; its fleet is probed.
    pub controller: Arc<Controller>,
    /// The fleet's clock.
    pub clock: Clock,
    /// `health.interval` and `health.timeout`.
    pub pace: PaceSource,
}

impl Prober {
    /// Probes until it is dropped.
    pub async fn run(self) {
        let client = ProbeClient::new(Duration::from_secs(2));
        for_each_backend(self.controller.fleet(), |id| self.clone().probe_one(id, client.clone())).await;
    }

    async fn probe_one(self, id: BackendId, client: ProbeClient) {
        let mut healthy = false;
        let mut models_due = Time::ZERO;
        loop {
            let started = self.clock.now();
            let pace = (self.pace)();
            let Some(backend) = self.controller.fleet().snapshot().backend(id).cloned() else { return };
            let key = backend.key.as_ref().map(|key| key.expose());
            let verdict = client.get_ok(at(&backend.url, "/health"), key, pace.timeout, MAX_HEALTH).await;
            let came_back = verdict.is_ok() && !healthy;
            healthy = verdict.is_ok();
            if let Err(error) = &verdict {
                debug!(backend = %id, url = %backend.url, %error, "health probe failed");
            }
            self.controller.probe(id, verdict.map(drop).map_err(|error| error.detail), self.clock.now());
            if healthy && (came_back || self.clock.now() >= models_due) {
                self.refresh_models(&backend, &client, pace.timeout).await;
                models_due = self.clock.now() + MODELS_EVERY;
            }
            until_next(pace.interval, started, &self.clock).await;
        }
    }

    async fn refresh_models(&self, backend: &Backend, client: &ProbeClient, timeout: Duration) {
        let key = backend.key.as_ref().map(|key| key.expose());
        let cards = match models::ask(client, &backend.url, key, timeout).await {
            Ok(cards) => cards,
            Err(error) => return debug!(backend = %backend.id, url = %backend.url, %error, "no list of models"),
        };
        // The rest of a card is made anew for each answer.
        let names: Vec<&str> = cards.iter().filter_map(models::name).collect();
        if !backend.models.load().iter().filter_map(models::name).eq(names.iter().copied()) {
            info!(backend = %backend.id, url = %backend.url, models = ?names, "backend lists its models");
        }
        backend.models.store(Arc::new(cards));
        // It takes our key and lists the model: if it was out for not doing so, that is over.
        if backend.lists(&backend.pool) {
            self.controller.configured(backend.id, self.clock.now());
        }
    }
}
