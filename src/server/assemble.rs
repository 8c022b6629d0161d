//! Puts the parts together: telemetry, fleet, clients, proxy, admin and tasks become pingora services, and the process is up
//! when both listeners answer.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use arc_swap::ArcSwap;
use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;

use super::accept::Listening;
use super::answering::AdminServices;
use super::descriptors::Room;
use super::flush::{drain_end, flush};
use super::lifecycle::{Look, Signals, UnderWay};
use super::listener::{Connections, HyperApp};
#[cfg(feature = "epp")]
use super::picker;
use super::signals::Caught;
use super::tls::Listeners;
use super::upgrade::{Meeting, reserve, take_over};
use super::watch::Tasks;
use super::{Handle, Options, Serving, Source, StartError};
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
use forebay_fleet::telemetry::trace;
use forebay_fleet::view::FleetView;

/// The time within which a connection to a backend must be made. Longer than one lost SYN, which is sent again after 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time within which the listeners must come up.
const START_LIMIT: Duration = Duration::from_secs(10);
/// pingora sleeps its grace period out; the drain ends the process before.
const GRACE_BEYOND_DRAIN: u64 = 60;

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
    listening: Arc<AtomicBool>,
}

impl Common {
    fn new(config: &Config, room: Room) -> Result<Common, StartError> {
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

    fn admin(&self, proxy: Proxy) -> Admin {
        let (telemetry, clock) = (Arc::clone(&self.telemetry), self.clock.clone());
        let (fleet, shown) = (self.controller.fleet().clone(), self.controller.fleet().clone());
        let (settings, now) = (Arc::clone(&self.settings), self.clock.clone());
        let in_force = Arc::clone(&self.settings);
        let (controller, drained_at) = (Arc::clone(&self.controller), self.clock.clone());
        let (listed, listed_at) = (Arc::clone(&self.controller), self.clock.clone());
        let handed_over = Arc::clone(&self.handed_over);
        Admin {
            metrics: Arc::new(move || {
                admin::views::metrics(&telemetry, &fleet.snapshot(), &in_force.load(), clock.now())
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

    fn proxy(&self) -> Proxy {
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

/// Starts a server and returns once it answers.
///
/// # Errors
/// An address cannot be listened on, or a listener does not come up in time.
pub fn start(options: Options) -> Result<Handle, StartError> {
    let Options { mut config, source, signals, upgrade, front } = options;
    let picks = config.epp.address.is_some();
    if picks && cfg!(not(feature = "epp")) {
        return Err(StartError::NoPicker);
    }
    // First: what follows may wait for minutes for sources or for another process, in which a log may be rotated.
    let caught = signals.then(Caught::install).transpose().map_err(StartError::Signals)?;
    let room = Room::prepare(&config);
    let mut inherits = false;
    let mut reserved = |address: &mut SocketAddr, key| {
        let (free, in_use) = reserve(*address, key, upgrade)?;
        (*address, inherits) = (free, inherits || in_use);
        Ok::<(), StartError>(())
    };
    if front == Serving::Clients {
        reserved(&mut config.listen.address, "listen.address")?;
    }
    reserved(&mut config.admin.address, "admin.address")?;
    if let Some(address) = &mut config.epp.address {
        reserved(address, "epp.address")?;
    }
    let (admin, picker) = (config.admin.address, config.epp.address);
    let data = picker.filter(|_| front == Serving::Gateways).unwrap_or(config.listen.address);
    let meeting = Meeting::new(config.listen.upgrade_socket.as_deref(), data);
    if inherits {
        let socket = || meeting.socket().to_owned();
        meeting.prepare().map_err(|error| StartError::Meeting { socket: socket(), error })?;
    }
    let common = Arc::new(Common::new(&config, room)?);
    common.keep_upstream();
    common.find_backends();
    let listening = Arc::clone(&common.listening);
    let (taken_over, handed_over) = mpsc::channel();
    let way = Way { signals: caught, meeting, inherits, taken_over, front };
    let server = build(config, source, way, common);
    let thread = std::thread::Builder::new().name("server".into()).spawn(server).map_err(StartError::Thread)?;
    handed_over.recv().map_err(|_| StartError::NotHandedOver)?;
    for address in [data, admin].into_iter().chain(picker) {
        await_listener(address)?;
    }
    listening.store(true, Ordering::Release);
    Ok(Handle { data, admin, picker, thread })
}

/// The way in which a server starts and ends.
struct Way {
    /// The signals that are the process's own, if any are.
    signals: Option<Caught>,
    meeting: Meeting,
    /// Its listening sockets are another process's, to be handed over.
    inherits: bool,
    /// Told once they are.
    taken_over: mpsc::Sender<()>,
    front: Serving,
}

/// The work of the server's thread. pingora's services are made on it, since they are not all `Send` once built.
fn build(config: Config, source: Source, way: Way, common: Arc<Common>) -> impl FnOnce() + Send {
    move || {
        let Way { signals: caught, meeting, inherits, taken_over, front } = way;
        let signals = caught.is_some();
        let connections = Connections::default();
        let conf = ServerConf {
            grace_period_seconds: Some(config.listen.drain.limit.as_secs().saturating_add(GRACE_BEYOND_DRAIN)),
            graceful_shutdown_timeout_seconds: Some(0),
            upgrade_sock: meeting.socket().display().to_string(),
            ..ServerConf::default()
        };
        let mut server = Server::new_with_opt_and_conf(Opt { upgrade: inherits, ..Opt::default() }, conf);
        if inherits {
            // Ends the process if nobody comes.
            let drains = take_over(&mut server, &meeting);
            common.controller.take_drains(drains, common.clock.now());
        }
        if signals {
            // From here on the process does not end by itself, and requests may come.
            let lost = common.telemetry.process.process_log_dropped.clone();
            if let Err(error) = trace::detach(lost) {
                tracing::warn!(%error, "the log has no thread of its own: a reader that stands still stops the process");
            }
        }
        // Who waits for it is there, or has given up.
        _ = taken_over.send(());
        let proxy = common.proxy();
        let app = HyperApp::new(proxy.clone(), &config, Arc::clone(&connections), common.clock.clone())
            .counted_by(common.telemetry.process.connections.clone())
            .within(Arc::clone(common.room.connections()))
            .secured(common.tls.requests.clone())
            .behind_proxy(config.listen.proxy_protocol);
        if front == Serving::Clients {
            let at = ("requests", config.listen.address);
            server.add_service(Listening::new(at, app, config.listen.threads, common.clock.clone()));
        }
        #[cfg(feature = "epp")]
        if let Some(address) = config.epp.address {
            let (proxy, connections) = (proxy.clone(), Arc::clone(&connections));
            server.add_service(picker::service(&common, proxy, (&config, address), connections));
        }
        let services = AdminServices::new(&common.admin(proxy.clone()), &config);
        let app = HyperApp::new(services, &config, Connections::default(), common.clock.clone())
            .secured(common.tls.admin.clone());
        server.add_service(Listening::new(("admin", config.admin.address), app, 1, common.clock.clone()));
        server.add_service(background_service("tasks", Tasks::new(Arc::clone(&common), source, caught)));
        if signals {
            server.add_service(background_service("drain", drain_end(&common, connections, config.listen.drain.limit)));
        }
        let log = common.access_log.clone();
        let shutdown_signal = Box::new(Signals {
            draining: Arc::clone(&common.draining),
            ready_delay: config.listen.drain.ready_delay,
            limit: config.listen.drain.limit,
            look: common.look(),
            listen: signals,
            meeting,
            handed_over: Arc::clone(&common.handed_over),
            drains: Box::new(move || common.controller.drains(common.clock.now())),
        });
        server.run(RunArgs { shutdown_signal });
        // Nobody sends spans any more: this is the end of a process that is told to end at once.
        flush(&log);
    }
}

fn await_listener(address: SocketAddr) -> Result<(), StartError> {
    let reachable = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from(([127, 0, 0, 1], v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port())),
        other => other,
    };
    let pause = Duration::from_millis(10);
    for _ in 0..START_LIMIT.as_millis() / pause.as_millis() {
        if TcpStream::connect_timeout(&reachable, pause * 10).is_ok() {
            return Ok(());
        }
        std::thread::sleep(pause);
    }
    Err(StartError::Silent(address))
}
