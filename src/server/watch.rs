//! The background tasks of the process on pingora's runtime for them: scrapes, probes, the watch over the configuration, the
//! sources of backends, SIGHUP. They go on while the process drains: a request under way may yet meet an engine that hangs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Source;
use super::parts::Common;
use super::signals::Caught;
use crate::tasks::config_watcher::ConfigWatcher;
use crate::tasks::discover::discover;
use crate::tasks::drains::end_drains;
use crate::tasks::prober::{Patience, Prober};
use crate::tasks::scraper::Scraper;
use crate::tasks::sources::{Resolve, Sources};
use crate::tasks::watchdog::{Limit, Watch};
use crate::tasks::{Rhythm, kept};
use forebay_fleet::config::diff::in_force;
use forebay_fleet::config::model::{Config, HealthConfig, PoolConfig};
use forebay_fleet::membership::controller::Settings;
use forebay_fleet::telemetry::trace;

/// The time that the start waits for sources of backends.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// The tasks, as one service of pingora's.
pub(super) struct Tasks {
    common: Arc<Common>,
    source: Source,
    /// The signals to act on, until the tasks begin.
    caught: Mutex<Option<Caught>>,
}

impl Tasks {
    pub(super) fn new(common: Arc<Common>, source: Source, caught: Option<Caught>) -> Tasks {
        Tasks { common, source, caught: Mutex::new(caught) }
    }

    fn pace(&self, of: fn(&Config) -> (Duration, Duration)) -> Arc<dyn Fn() -> Rhythm + Send + Sync> {
        let (settings, fleet) = (Arc::clone(&self.common.settings), self.common.controller.fleet().clone());
        Arc::new(move || {
            let (interval, timeout) = of(&settings.load());
            // Read at each round, so that a reload holds at once; and stretched, so that several replicas ask as often as one.
            Rhythm { interval: fleet.snapshot().replication.count.stretch(interval), timeout }
        })
    }

    /// `health.stall_timeout`; its default where it is off, since a probe must end.
    fn patience(&self) -> Patience {
        let settings = Arc::clone(&self.common.settings);
        Arc::new(move || {
            let configured = settings.load().health.stall_timeout;
            configured.or(HealthConfig::default().stall_timeout).unwrap_or(Duration::MAX)
        })
    }

    fn stall_limit(&self) -> Limit {
        let settings = Arc::clone(&self.common.settings);
        Arc::new(move || settings.load().health.stall_timeout)
    }

    /// Acts on SIGHUP and SIGUSR1.
    fn obey(&self, Caught { mut reload, mut reopen }: Caught, tasks: &mut JoinSet<()>, hup: &Arc<Notify>) {
        let hup = Arc::clone(hup);
        tasks.spawn(async move {
            while reload.recv().await.is_some() {
                hup.notify_one();
            }
        });
        let log = self.common.access_log.clone();
        tasks.spawn(async move {
            while reopen.recv().await.is_some() {
                trace::reopen(&log);
                // The writers do it, and say which file they could not open.
                tracing::info!("SIGUSR1: opening the log files again");
            }
        });
    }

    fn spawn_source(&self, tasks: &mut JoinSet<()>, hup: Arc<Notify>) {
        let common = Arc::clone(&self.common);
        match &self.source {
            Source::Fixed => {}
            Source::Backends(backends) => {
                let backends = backends.clone();
                let fleet = common.controller.fleet().clone();
                tasks.spawn(discover(backends, fleet, move |pools, lists| {
                    common.controller.apply_listed(pools, lists, common.clock.now());
                    common.keep_upstream();
                }));
            }
            Source::File { path, loaded } => {
                let path = path.clone();
                let load = Arc::new(move || forebay_fleet::config::load(&path));
                let telemetry = Arc::clone(&common.telemetry);
                let clock = common.clock.clone();
                let apply = Box::new(move |config: &Config| common.take_config(config));
                tasks
                    .spawn(ConfigWatcher::new(Box::as_ref(loaded).clone(), load, apply, hup, (telemetry, clock)).run());
            }
        }
    }
}

impl Common {
    /// The task that asks the sources of backends.
    pub(super) fn sources(self: Arc<Common>) -> Sources {
        let settings = Arc::clone(&self.settings);
        Sources {
            controller: Arc::clone(&self.controller),
            clock: self.clock.clone(),
            telemetry: Arc::clone(&self.telemetry),
            resolve: Resolve::system(),
            listener: Arc::new(move || settings.load().listen.address),
            changed: Arc::new(move || self.keep_upstream()),
        }
    }

    /// Asks the sources of backends once, before the first request: a process that takes over the traffic of another one has its
    /// backends then.
    pub(super) fn find_backends(self: &Arc<Common>) {
        let snapshot = self.controller.fleet().snapshot();
        let of_arms = snapshot.pools.iter().flat_map(|pool| pool.arms()).any(|arm| arm.source.is_some());
        if !of_arms && snapshot.replication.source.is_none() {
            return;
        }
        let sources = Arc::clone(self).sources();
        // On a thread of its own, since whoever starts a server may be within a runtime.
        let asked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let all = runtime.block_on(sources.ask_once(FIRST_ANSWERS));
            // A resolver that hangs would hold up the start.
            runtime.shutdown_background();
            std::io::Result::Ok(all)
        });
        if !matches!(asked.join(), Ok(Ok(true))) {
            tracing::warn!(
                "not every source of backends or replicas has answered yet: requests for backends that are to be found get a 503 until it does"
            );
        }
    }

    /// Puts a changed configuration into force; what is bound at the start stays as it was.
    fn take_config(&self, config: &Config) {
        let config = in_force(&self.settings.load(), config);
        let pools = config.pools.clone();
        let old = self.settings.load_full();
        let of_pools = |config: &Config| {
            config.pools.iter().map(|pool| (pool.model.clone(), pool.tls.clone())).collect::<Vec<_>>()
        };
        let listeners = |config: &Config| (config.listen.tls.clone(), config.admin.tls.clone(), config.epp.tls.clone());
        // Only then, since to read certificates anew may fail for a file that has nothing to do with this change.
        if listeners(&old) != listeners(&config) || of_pools(&old) != of_pools(&config) {
            self.tls.take(&config, &self.telemetry);
        }
        self.controller.configure(Settings::from(&config), self.clock.now());
        // The clients first: a request that sees the new settings finds them.
        self.clients.apply(config.clients.keys.as_deref(), self.clock.now());
        self.settings.store(Arc::new(config));
        self.take_pools(&pools);
    }

    fn take_pools(&self, pools: &[PoolConfig]) {
        self.controller.apply(pools, self.clock.now());
        self.keep_upstream();
    }

    /// Lets go of the clients of backends that are gone, and leaves descriptors for those that there are.
    pub(super) fn keep_upstream(&self) {
        let snapshot = self.controller.fleet().snapshot();
        self.room.beside(snapshot.pools.iter().map(|pool| pool.members().len()).sum());
        self.upstream.retain(|id| snapshot.backend(id).is_some());
    }
}

#[async_trait]
impl BackgroundService for Tasks {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        #[cfg(tokio_unstable)]
        super::loops::watch("tasks");
        let mut tasks = JoinSet::new();
        let hup = Arc::new(Notify::new());
        let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner).take();
        let signals = caught.is_some();
        if let Some(caught) = caught {
            self.obey(caught, &mut tasks, &hup);
        }
        let (fleet, clock) = (self.common.controller.fleet().clone(), self.common.clock.clone());
        let pace = self.pace(|config| (config.scrape.interval, config.scrape.timeout));
        let telemetry = &self.common.telemetry;
        let scraper = Scraper { fleet, clock: clock.clone(), pace, telemetry: Arc::clone(telemetry) };
        tasks.spawn(kept(Arc::clone(telemetry), move || scraper.clone().run()));
        let pace = self.pace(|config| (config.health.interval, config.health.timeout));
        let (controller, limit) = (Arc::clone(&self.common.controller), self.stall_limit());
        let watch_clock = clock.clone();
        tasks.spawn(kept(Arc::clone(telemetry), move || {
            let (controller, clock, limit) = (Arc::clone(&controller), watch_clock.clone(), Arc::clone(&limit));
            Watch { controller, clock, limit }.run()
        }));
        let (controller, drain_clock) = (Arc::clone(&self.common.controller), clock.clone());
        tasks.spawn(kept(Arc::clone(telemetry), move || end_drains(Arc::clone(&controller), drain_clock.clone())));
        let (controller, patience) = (Arc::clone(&self.common.controller), self.patience());
        let prober = Prober { controller, clock, pace, patience, telemetry: Arc::clone(telemetry) };
        tasks.spawn(kept(Arc::clone(telemetry), move || prober.clone().run()));
        if let Some(spans) = &self.common.spans {
            let spans = spans.clone();
            tasks.spawn(kept(Arc::clone(telemetry), move || spans.clone().run()));
        }
        let sources = Arc::clone(&self.common).sources();
        tasks.spawn(kept(Arc::clone(telemetry), move || sources.clone().run()));
        self.spawn_source(&mut tasks, hup);
        // A drain ends with the process's own exit, and a fast end with the runtime's. But pingora calls the service over when
        // this returns, and would drop the tasks that a drain still needs.
        let drains = shutdown.wait_for(|stop| *stop).await.is_ok() && signals;
        if drains {
            std::future::pending::<()>().await;
        }
    }
}
