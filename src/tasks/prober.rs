//! Asks every backend's `/health`, each in a task of its own, and now and then its `/v1/models`; a backend that is out gets a
//! request when its time is over. What a verdict means is the controller's to say. It must never judge a backend by its model
//! list: a server that needs its clients' keys has none to show.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, info};

use super::rest::RestQuestions;
use super::{RhythmSource, at, for_each_backend, models, trial, until_next};
use forebay_core::clock::{Clock, Time};
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::health::alarm::REFUSALS_APART;
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::ProbeFailure;

/// vLLM's answer has no body at all.
const MAX_HEALTH: usize = 64 << 10;
/// Adapters come and go, and a server that came back may be another one (then it is asked at once).
const MODELS_EVERY: Duration = Duration::from_secs(10);
/// A port that refused a connection is tried again after this: twice refused, nobody is there.
const REFUSED_AGAIN: Duration = REFUSALS_APART.saturating_add(Duration::from_millis(10));

/// How long something may take; read anew each time, so that a reload changes it.
pub type Patience = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What the prober needs.
#[derive(Clone)]
pub struct Prober {
    /// Whom to tell; its fleet is probed.
    pub controller: Arc<Controller>,
    /// The fleet's clock.
    pub clock: Clock,
    /// `health.interval` and `health.timeout`.
    pub pace: RhythmSource,
    /// How long a backend that is out may take for one token: as long as one that is in may show no progress.
    pub patience: Patience,
    /// Where panics are counted.
    pub telemetry: Arc<Telemetry>,
}

/// What came of asking `/health`.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    Good,
    Bad(String),
    /// No answer in time, but tokens flow: one event loop serves both, and it is busy.
    Late,
    /// Nobody is there.
    Gone,
}

impl Prober {
    /// Probes until it is dropped.
    pub async fn run(self) {
        let client = ProbeClient::knocking(Duration::from_secs(2));
        for_each_backend(self.controller.fleet(), &self.telemetry, |id| self.clone().probe_one(id, client.clone()))
            .await;
    }

    async fn probe_one(self, id: BackendId, client: ProbeClient) {
        let mut healthy = false;
        let mut models_due = Time::ZERO;
        let mut rest = RestQuestions::default();
        loop {
            let started = self.clock.now();
            let pace = (self.pace)();
            let Some(backend) = self.controller.fleet().snapshot().backend(id).cloned() else { return };
            let health = self.ask_health(&backend, &client, pace.timeout).await;
            let came_back = health == Health::Good && !healthy;
            healthy = health == Health::Good;
            match health {
                Health::Good => {
                    backend.load.note_heard();
                    self.controller.health(id, Ok(()), self.clock.now());
                }
                Health::Bad(reason) => self.controller.health(id, Err(reason), self.clock.now()),
                Health::Gone => self.controller.gone(id, self.clock.now()),
                Health::Late => {}
            }
            if came_back {
                rest = RestQuestions::default();
            }
            if healthy && let Some(why) = rest.ask(&client, &backend, pace.timeout).await {
                self.controller.rests(id, why, self.clock.now());
            }
            if self.controller.wants_probe(id, self.clock.now()) {
                let probed = trial::ask(&client, &backend, (self.patience)()).await;
                debug!(backend = %id, url = %backend.url, ?probed, "asked whether it is back");
                self.controller.probed(id, probed, self.clock.now());
            }
            if healthy && (came_back || self.clock.now() >= models_due) {
                self.refresh_models(&backend, &client, pace.timeout).await;
                models_due = self.clock.now() + MODELS_EVERY;
            }
            until_next(pace.interval, started, &self.clock).await;
        }
    }

    async fn ask_health(&self, backend: &Backend, client: &ProbeClient, timeout: Duration) -> Health {
        let key = backend.key.as_ref().map(|key| key.expose());
        let ask = || client.get_ok(at(&backend.url, "/health"), key, timeout, MAX_HEALTH);
        let progress = backend.load.progress();
        let mut answer = ask().await;
        if self.tell_alarm(backend, &answer) {
            tokio::time::sleep(REFUSED_AGAIN).await;
            answer = ask().await;
            self.tell_alarm(backend, &answer);
        }
        let Err(error) = answer else { return Health::Good };
        debug!(backend = %backend.id, url = %backend.url, %error, "health probe failed");
        match error.failure {
            _ if error.refused => Health::Gone,
            ProbeFailure::Timeout if backend.load.progress() != progress => Health::Late,
            _ => Health::Bad(error.detail),
        }
    }

    /// Tells those who wait for the backend whether somebody listens there. Whether the connection was refused.
    fn tell_alarm(&self, backend: &Backend, answer: &Result<Bytes, ProbeError>) -> bool {
        match answer {
            Err(error) if error.refused => backend.alarm.refused(self.clock.now()),
            Err(ProbeError { failure: ProbeFailure::Connect | ProbeFailure::Timeout, .. }) => {}
            Ok(_) | Err(_) => backend.alarm.answered(),
        }
        answer.as_ref().is_err_and(|error| error.refused)
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
