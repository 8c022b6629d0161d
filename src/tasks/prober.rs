//! Asks every backend's `/health`, each in a task of its own, and its list of models (`served`); a backend that is out gets a
//! request when its time is over. What a verdict means is the controller's to say.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::debug;

use super::rest::RestQuestions;
use super::served::{DOUBTS_APART, ServedModels};
use super::{RhythmSource, at, for_each_backend, trial, until_next};
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Failure;
use forebay_core::units::BackendId;
use forebay_fleet::Backend;
use forebay_fleet::health::alarm::REFUSALS_APART;
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::obstacle::warn_of;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::ProbeFailure;

/// vLLM's answer has no body at all.
const MAX_HEALTH: usize = 64 << 10;
/// A port that refused a connection is tried again after this: twice refused, nobody is there.
const REFUSED_AGAIN: Duration = REFUSALS_APART.saturating_add(Duration::from_millis(10));

/// A server that is silent is looked at again so soon. One that a long prompt blocks is silent for ten seconds and more, so that what
/// moves is not lost with it, and moves once.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// A server of which nothing came.
#[derive(Debug)]
struct Silence {
    /// The time at which the first question without an answer was asked.
    begun: Time,
    /// The progress that its engine had shown by then.
    progress: u64,
}

/// The function that tells how long something may take; read anew each time, so that a reload changes it.
pub type Patience = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The prober, as the things that it needs.
#[derive(Clone)]
pub struct Prober {
    /// The controller to tell; its fleet is probed.
    pub controller: Arc<Controller>,
    /// The fleet's clock.
    pub clock: Clock,
    /// `health.interval` and `health.timeout`.
    pub pace: RhythmSource,
    /// The time that a backend that is out may take for one token: as long as one that is in may show no progress.
    pub patience: Patience,
    /// The place where panics are counted.
    pub telemetry: Arc<Telemetry>,
}

/// The result of asking `/health`.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    Good,
    Bad(String),
    /// No answer in time, and no token meanwhile.
    Silent(String),
    /// No answer in time, but tokens flow: one event loop serves both, and it is busy.
    Late,
    /// Nobody is there.
    Gone,
    /// This host could not ask.
    Unasked,
    /// This host cannot reach it.
    OutOfReach,
    /// The two do not agree on TLS.
    Mistrusts(String),
}

impl Prober {
    /// Probes until it is dropped.
    pub async fn run(self) {
        let client = ProbeClient::knocking(Duration::from_secs(2));
        for_each_backend(self.controller.fleet(), &self.telemetry, |id| self.clone().probe_one(id, client.clone()))
            .await;
    }

    async fn probe_one(self, id: BackendId, mut client: ProbeClient) {
        let (mut healthy, mut silence) = (false, None);
        let mut served = ServedModels::new(Arc::clone(&self.controller), self.clock.clone());
        let mut rest = RestQuestions::default();
        loop {
            let started = self.clock.now();
            let pace = (self.pace)();
            // Looked up anew each time: a reload may have changed its key or its certificate. A backend that is gone ends its
            // task.
            let Some(backend) = self.controller.fleet().snapshot().backend(id).cloned() else { return };
            client.turn_to(&backend.endpoint);
            let health = self.ask_health(&backend, &client, pace.timeout).await;
            self.judge_silence(&backend, &health, started, &mut silence);
            // It may be another process now, with other models and other abilities, so what was learned of it is asked again.
            let came_back = health == Health::Good && !healthy;
            healthy = health == Health::Good;
            match health {
                Health::Good => {
                    served.trusts(&backend);
                    backend.load.note_heard();
                    self.controller.health(id, Ok(()), self.clock.now());
                }
                Health::Bad(reason) => self.controller.health(id, Err(reason), self.clock.now()),
                Health::Silent(reason) => self.controller.unanswered(id, reason, self.clock.now()),
                Health::Gone => self.controller.gone(id, self.clock.now()),
                // Whoever reaches it no more is not asked for long, and it is not the backend's doing.
                Health::OutOfReach => backend.load.out_of_reach(pace.interval * 2, self.clock.now()),
                Health::Mistrusts(why) => served.mistrusts(&backend, why),
                Health::Late | Health::Unasked => {}
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
            if healthy && (came_back || served.is_due()) {
                served.ask(&client, &backend, pace.timeout).await;
            }
            let interval = if silence.is_some() { pace.interval.min(SECOND_LOOK) } else { pace.interval };
            let mut next = pin!(until_next(interval, started, &self.clock));
            loop {
                tokio::select! {
                    biased;
                    () = &mut next => break,
                    () = backend.doubt.raised() => served.ask(&client, &backend, pace.timeout).await,
                }
                tokio::time::sleep(DOUBTS_APART).await;
            }
        }
    }

    async fn ask_health(&self, backend: &Backend, client: &ProbeClient, timeout: Duration) -> Health {
        let key = backend.key.as_ref().map(|key| key.expose());
        let ask = || client.get_ok(at(&backend.url, "/health"), key, timeout, MAX_HEALTH);
        // A server whose event loop is busy answers no probe in time. Tokens that came meanwhile prove it alive.
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
            ProbeFailure::Shortage => {
                warn_of(Failure::Shortage, &backend.id, &error, self.clock.now());
                Health::Unasked
            }
            ProbeFailure::Unreachable => {
                warn_of(Failure::Unreachable, &backend.id, &error, self.clock.now());
                Health::OutOfReach
            }
            ProbeFailure::Tls => Health::Mistrusts(error.detail),
            ProbeFailure::Timeout if backend.load.progress() != progress => Health::Late,
            ProbeFailure::Timeout => Health::Silent(error.detail),
            _ => Health::Bad(error.detail),
        }
    }

    /// Moves what waits on a server of which nothing at all comes: no `/health`, no scrape, no head, no token, and the same at a second
    /// look.
    fn judge_silence(&self, backend: &Backend, health: &Health, started: Time, silence: &mut Option<Silence>) {
        let now = self.clock.now();
        match health {
            Health::Silent(_) => {}
            Health::Unasked => return,
            _ => {
                if matches!(health, Health::Good) {
                    backend.alarm.heard(now);
                }
                *silence = None;
                return backend.alarm.speaks();
            }
        }
        let progress = backend.load.progress();
        match silence {
            Some(since) if since.progress == progress && backend.alarm.last_heard() < since.begun => {
                if now.since(since.begun) >= SECOND_LOOK {
                    debug!(backend = %backend.id, url = %backend.url, "nothing comes of the backend: what has no token may move");
                    backend.alarm.silent(started);
                }
            }
            _ => {
                backend.alarm.speaks();
                *silence = Some(Silence { begun: started, progress });
            }
        }
    }

    /// Tells those who wait for the backend whether somebody listens there. Whether the connection was refused.
    fn tell_alarm(&self, backend: &Backend, answer: &Result<Bytes, ProbeError>) -> bool {
        match answer {
            Err(error) if error.refused => backend.alarm.refused(self.clock.now()),
            Err(ProbeError {
                failure:
                    ProbeFailure::Connect | ProbeFailure::Timeout | ProbeFailure::Shortage | ProbeFailure::Unreachable,
                ..
            }) => {}
            Ok(_) | Err(_) => backend.alarm.answered(),
        }
        answer.as_ref().is_err_and(|error| error.refused)
    }
}
