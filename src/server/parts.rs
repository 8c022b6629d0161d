//! The parts that the services of a process share: telemetry, fleet, clients, logs; and what proxy and admin are made of.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::StartError;
use super::descriptors::Room;
use super::lifecycle::{Look, UnderWay};
use super::tls::Listeners;
use crate::admin::{self, Admin, NotChanged};
use crate::proxy::{Parts, Proxy, Readiness, Shutdown};
use crate::spans::Spans;
use crate::upstream::{Limits, Upstream};
use forebay_core::clock::Clock;
use forebay_fleet::clients::KnownClients;
use forebay_fleet::config::model::{Config, Log};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::log::AccessLog;
use forebay_fleet::telemetry::log_file::LogFile;
use forebay_fleet::view::FleetView;

/// The time within which a connection to a backend must be made. Longer than one lost SYN, which is sent again after 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The parts that the services of a process share.
pub(super) struct Common {
    pub(super) settings: Arc<ArcSwap<Config>>,
    pub(super) controller: Arc<Controller>,
    pub(super) clients: Arc<KnownClients>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) access_log: AccessLog,
    /// The way of spans to a collector, where requests are traced.
    pub(super) spans: Option<Spans>,
    pub(super) clock: Clock,
    pub(super) draining: Arc<AtomicBool>,
    /// A new process has this one's drains and its listening sockets.
    pub(super) handed_over: Arc<AtomicBool>,
    pub(super) tls: Listeners,
    /// The room for connections of clients and to backends.
    pub(super) room: Room,
    pub(super) shutdown: Shutdown,
    /// Every listener answers.
    pub(super) listening: Arc<AtomicBool>,
}

impl Common {
    pub(super) fn new(config: &Config, room: Room) -> Result<Common, StartError> {
        let clock = Clock::system();
        let telemetry = Arc::new(Telemetry::new());
        let controller = Arc::new(Controller::new(Settings::from(config), Arc::clone(&telemetry)));
        controller.apply(&config.pools, clock.now());
        let clients = Arc::new(KnownClients::new(Arc::clone(&telemetry)));
        clients.apply(config.clients.keys.as_deref(), clock.now());
        let tls = Listeners::default();
        tls.take(config, &telemetry);
        let limits = Limits {
            descriptors: Arc::clone(room.connections()),
            connect_timeout: CONNECT_TIMEOUT,
            write_stall: config.limits.write_stall,
        };
        let env = |name: &str| std::env::var(name).ok();
        let spans = Spans::start(&config.trace, &env, &telemetry, &clock).map_err(StartError::Traces)?;
        Ok(Common {
            settings: Arc::new(ArcSwap::from_pointee(config.clone())),
            controller,
            clients,
            upstream: Arc::new(Upstream::new(limits, clock.clone())),
            access_log: open_log(&config.log, &telemetry)?,
            spans,
            telemetry,
            clock,
            draining: Arc::new(AtomicBool::new(false)),
            handed_over: Arc::new(AtomicBool::new(false)),
            tls,
            room,
            shutdown: Shutdown::default(),
            listening: Arc::new(AtomicBool::new(false)),
        })
    }

    pub(super) fn readiness(&self) -> Readiness {
        let (listening, draining) = (Arc::clone(&self.listening), Arc::clone(&self.draining));
        let fleet = self.controller.fleet().clone();
        Arc::new(move || {
            if draining.load(Ordering::Acquire) {
                return Err("draining".to_owned());
            }
            if !listening.load(Ordering::Acquire) {
                return Err("starting".to_owned());
            }
            let snapshot = fleet.snapshot();
            let usable = snapshot.pools.iter().flat_map(|pool| pool.members()).any(|member| member.state.is_usable());
            if usable { Ok(()) } else { Err("no backend takes requests".to_owned()) }
        })
    }

    pub(super) fn admin(&self, proxy: Proxy) -> Admin {
        let (telemetry, clock) = (Arc::clone(&self.telemetry), self.clock.clone());
        let (fleet, shown) = (self.controller.fleet().clone(), self.controller.fleet().clone());
        let (settings, now) = (Arc::clone(&self.settings), self.clock.clone());
        let in_force = Arc::clone(&self.settings);
        let (controller, drained_at) = (Arc::clone(&self.controller), self.clock.clone());
        let (listed, listed_at) = (Arc::clone(&self.controller), self.clock.clone());
        let handed_over = Arc::clone(&self.handed_over);
        Admin {
            metrics: Arc::new(move || {
                let text = admin::views::metrics(&telemetry, &fleet.snapshot(), &in_force.load(), clock.now());
                #[cfg(tokio_unstable)]
                let text = text + &super::loops::render();
                text
            }),
            ready: self.readiness(),
            fleet: Arc::new(move || admin::views::fleet(&shown.snapshot(), now.now())),
            live: self.live(),
            explain: Arc::new(move |question| {
                let explanation = proxy.explain(question)?;
                Ok(serde_json::to_value(explanation).expect("plain structs with string keys are JSON"))
            }),
            config: Arc::new(move || {
                serde_json::to_value(&**settings.load()).expect("a configuration has string keys and plain values")
            }),
            drain: Arc::new(move |name, drain| {
                if handed_over.load(Ordering::Acquire) {
                    return Err(NotChanged::HandedOver);
                }
                let found = match drain {
                    Some(drain) => controller.drain(name, drain, drained_at.now()),
                    None => controller.undrain(name, drained_at.now()),
                };
                found.ok_or(NotChanged::Unknown)
            }),
            drains: Arc::new(move || listed.drains(listed_at.now())),
        }
    }

    /// Begins to make what the live page shows; decisions are told for as long as the ticks are kept.
    fn live(&self) -> admin::dashboard::Live {
        let (telemetry, clock, ready) = (Arc::clone(&self.telemetry), self.clock.clone(), self.readiness());
        let (fleet, settings) = (self.controller.fleet().clone(), Arc::clone(&self.settings));
        let clients = Arc::clone(&self.clients);
        Arc::new(move || {
            let (telemetry, clock, ready) = (Arc::clone(&telemetry), clock.clone(), Arc::clone(&ready));
            let (fleet, settings, clients) = (fleet.clone(), Arc::clone(&settings), Arc::clone(&clients));
            let watching = telemetry.decisions.watch();
            Box::new(move || {
                let _told_meanwhile = &watching;
                let (fleet, config) = (fleet.snapshot(), settings.load());
                admin::dashboard::json(&fleet, &clients, &telemetry, &config, ready().err(), clock.now())
            })
        })
    }

    /// Counts what an end of the process would cut.
    pub(super) fn look(&self) -> Look {
        let (fleet, clock) = (self.controller.fleet().clone(), self.clock.clone());
        Arc::new(move || {
            let view = FleetView::new(&fleet.snapshot(), clock.now());
            let mut seen = UnderWay::default();
            for pool in view.pools {
                seen.waiting += pool.wait_room.waiting;
                for backend in pool.arms.iter().flat_map(|arm| &arm.backends) {
                    seen.requests += backend.load.open_attempts;
                    seen.streaming += backend.load.decoding;
                }
            }
            seen
        })
    }

    pub(super) fn proxy(&self) -> Proxy {
        Proxy::new(Parts {
            settings: Arc::clone(&self.settings),
            fleet: self.controller.fleet().clone(),
            clients: Arc::clone(&self.clients),
            upstream: Arc::clone(&self.upstream),
            telemetry: Arc::clone(&self.telemetry),
            access_log: self.access_log.clone(),
            spans: self.spans.clone(),
            clock: self.clock.clone(),
            ready: self.readiness(),
            shutdown: self.shutdown.clone(),
        })
    }
}

fn open_log(log: &Log, telemetry: &Telemetry) -> Result<AccessLog, StartError> {
    let Some(format) = log.access_log.lines() else { return Ok(AccessLog::off()) };
    let sink: Box<dyn Write + Send> = match &log.access_log_file {
        None => Box::new(std::io::stdout()),
        Some(path) => {
            let file = || path.clone();
            Box::new(LogFile::open(path).map_err(|error| StartError::AccessLogFile { file: file(), error })?)
        }
    };
    AccessLog::start(format, sink, telemetry.process.log_dropped.clone()).map_err(StartError::AccessLog)
}
