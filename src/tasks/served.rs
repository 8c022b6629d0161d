//! What one backend is known to serve: its list of models, asked now and then, when it comes back, and as soon as an answer to
//! a client puts it in doubt. What the list says is a hint to routing. A backend is out for not serving its model only if a
//! question of our own has shown that; it must never be judged by a list that it does not show.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::models::{self, Listing, Unlisted};
use forebay_core::clock::{Clock, Time};
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::probe::{ProbeClient, ProbeError};
use forebay_fleet::telemetry::labels::ProbeFailure;
use forebay_fleet::{Backend, HealthState};

/// Adapters come and go, and a server that came back may be another one (then it is asked at once).
const EVERY: Duration = Duration::from_secs(10);
/// Between two questions for doubt: clients' requests must not multiply ours.
pub(super) const DOUBTS_APART: Duration = Duration::from_millis(500);

/// The list of one backend.
pub(super) struct ServedModels {
    controller: Arc<Controller>,
    clock: Clock,
    due: Time,
    /// True if it was said that the list is cut.
    told_cut: bool,
    /// True if it is out because the two do not agree on TLS.
    mistrusts: bool,
}

impl ServedModels {
    /// A list that was never asked for.
    pub(super) fn new(controller: Arc<Controller>, clock: Clock) -> ServedModels {
        ServedModels { controller, clock, due: Time::ZERO, told_cut: false, mistrusts: false }
    }

    /// Returns whether it is time to ask.
    pub(super) fn is_due(&self) -> bool {
        self.clock.now() >= self.due
    }

    /// Asks for the list and settles what was in doubt.
    pub(super) async fn ask(&mut self, client: &ProbeClient, backend: &Backend, timeout: Duration) {
        let key = backend.key.as_ref().map(|key| key.expose());
        let refused = backend.doubt.take();
        let listed = models::ask(client, &backend.url, key, timeout).await;
        self.due = self.clock.now() + EVERY;
        match listed {
            Ok(listing) => self.listed(backend, refused, listing),
            Err(unlisted) => self.unlisted(backend, refused, &unlisted),
        }
    }

    /// The two do not agree on TLS: what the configuration says of the backend does not hold, and it is no failure of its engine.
    pub(super) fn mistrusts(&mut self, backend: &Backend, why: String) {
        self.mistrusts = true;
        self.controller.misconfigured(backend.id, why, self.clock.now());
    }

    /// It was spoken to over TLS, or without.
    pub(super) fn trusts(&mut self, backend: &Backend) {
        if std::mem::take(&mut self.mistrusts) {
            self.controller.configured(backend.id, self.clock.now());
        }
    }

    fn listed(&mut self, backend: &Backend, refused: Option<u16>, listing: Listing) {
        let (id, url, now) = (backend.id, &backend.url, self.clock.now());
        let Listing { cards, left_out } = listing;
        self.tell_cut(left_out > 0, || {
            warn!(backend = %id, %url, left_out, "the list of models is cut: requests for the rest do not find the backend");
        });
        // The rest of a card is made anew for each answer.
        let names: Vec<&str> = cards.iter().filter_map(models::name).collect();
        if !backend.models.load().iter().filter_map(models::name).eq(names.iter().copied()) {
            info!(backend = %id, %url, models = ?names, "backend lists its models");
        }
        backend.models.store(Arc::new(cards));
        match refused {
            // It takes our key and lists the model: if it was out for not doing so, that is over.
            _ if backend.lists(&backend.pool) => self.controller.configured(id, now),
            Some(404) => {
                let reason = format!("answered 404 to a request for {}, and does not list it", backend.pool);
                self.controller.misconfigured(id, reason, now);
            }
            // It refused a client's request, and not our key.
            Some(_) | None => {}
        }
    }

    fn unlisted(&mut self, backend: &Backend, refused: Option<u16>, unlisted: &Unlisted) {
        let (id, url, now) = (backend.id, &backend.url, self.clock.now());
        debug!(backend = %id, %url, %unlisted, "no list of models");
        if let Unlisted::Failed(ProbeError { failure: ProbeFailure::Tls, detail, .. }) = unlisted {
            return self.mistrusts(backend, detail.clone());
        }
        let too_large = matches!(unlisted, Unlisted::Failed(error) if error.failure == ProbeFailure::TooLarge);
        self.tell_cut(too_large, || {
            warn!(backend = %id, %url, %unlisted, "the list of models is not read: requests for adapters do not find the backend");
        });
        match (refused, unlisted) {
            (Some(401 | 403), Unlisted::Locked(status)) if backend.key.is_some() => {
                self.controller.misconfigured(id, format!("answered {status} to our key"), now);
            }
            (Some(status), _) => self.controller.unconfirmed(id, &format!("status {status}"), now),
            // Nothing shows any more whether it serves what the configuration says.
            (None, unlisted) if unlisted.is_for_good(backend.key.is_some()) && self.is_misconfigured(backend) => {
                self.controller.unsettled(id, now);
            }
            (None, _) => {}
        }
    }

    fn is_misconfigured(&self, backend: &Backend) -> bool {
        let snapshot = self.controller.fleet().snapshot();
        let pool = snapshot.pool(&backend.pool);
        let member = pool.and_then(|pool| pool.members().iter().find(|member| member.backend.id == backend.id));
        member.is_some_and(|member| matches!(member.state, HealthState::Misconfigured(_)))
    }

    /// Says once that the list is cut, and again after it was whole.
    fn tell_cut(&mut self, cut: bool, tell: impl FnOnce()) {
        if cut && !self.told_cut {
            tell();
        }
        self.told_cut = cut;
    }
}
