//! Looks at every backend a few times in `health.stall_timeout` and acts on what the watchdog finds: the backend goes out, and
//! what runs on it is moved or told. Reads memory only, so one task serves all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use forebay_core::clock::Clock;
use forebay_core::units::BackendId;
use forebay_fleet::health::watchdog::Watchdog;
use forebay_fleet::membership::controller::Controller;

/// Looks in the time that a backend may be silent.
const LOOKS: u32 = 10;
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// `health.stall_timeout`, read anew each time; `None`: nobody is watched.
pub type Limit = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// The watchdog, as the things that it needs.
pub struct Watch {
    /// The controller to tell; its fleet is watched.
    pub controller: Arc<Controller>,
    /// The fleet's clock.
    pub clock: Clock,
    /// The time for which a backend with work may show no progress.
    pub limit: Limit,
}

impl Watch {
    /// Watches until it is dropped.
    pub async fn run(self) {
        let mut dogs = HashMap::new();
        loop {
            let limit = (self.limit)();
            match limit {
                Some(limit) => self.look(&mut dogs, limit),
                None => dogs.clear(),
            }
            tokio::time::sleep(limit.map_or(LONGEST, |limit| (limit / LOOKS).clamp(SHORTEST, LONGEST))).await;
        }
    }

    fn look(&self, dogs: &mut HashMap<BackendId, Watchdog>, limit: Duration) {
        let snapshot = self.controller.fleet().snapshot();
        dogs.retain(|id, _| snapshot.backend(*id).is_some());
        for backend in snapshot.backends() {
            let now = self.clock.now();
            let sight = backend.load.sight(now);
            let Some(silent) = dogs.entry(backend.id).or_default().look(sight, limit, now) else { continue };
            let seconds = silent.as_secs_f64();
            let load = backend.load.view(now);
            warn!(
                backend = %backend.id, url = %backend.url, seconds, moved = load.prefilling, cut = load.decoding,
                "backend makes no progress with work to do: what has no token yet moves to another backend, streams that have \
                 begun get an error event and are cut"
            );
            self.controller.hung(backend.id, format!("no progress in {seconds:.1} s with work to do"), now);
            // After the ejection, so that nothing is sent here again.
            backend.alarm.stalled();
        }
    }
}
