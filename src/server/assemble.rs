//! Puts the parts together: telemetry, fleet, clients, proxy, admin and tasks become pingora services, and the process is up
//! when both listeners answer.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use pingora::server::configuration::{Opt, ServerConf};
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;

use super::accept::Listening;
use super::answering::AdminServices;
use super::descriptors::Room;
use super::flush::{drain_end, flush};
use super::lifecycle::Signals;
use super::listener::{Connections, HyperApp};
use super::parts::Common;
#[cfg(feature = "epp")]
use super::picker;
use super::signals::Caught;
use super::upgrade::{Meeting, reserve, take_over};
use super::watch::Tasks;
use super::{Handle, Options, Serving, Source, StartError};
use forebay_fleet::config::model::Config;
use forebay_fleet::telemetry::trace;

/// The time within which the listeners must come up.
const START_LIMIT: Duration = Duration::from_secs(10);
/// pingora sleeps its grace period out; the drain ends the process before.
const GRACE_BEYOND_DRAIN: u64 = 60;

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

/// pingora's own settings.
fn settings(config: &Config, meeting: &Meeting) -> ServerConf {
    let conf = ServerConf {
        grace_period_seconds: Some(config.listen.drain.limit.as_secs().saturating_add(GRACE_BEYOND_DRAIN)),
        graceful_shutdown_timeout_seconds: Some(0),
        upgrade_sock: meeting.socket().display().to_string(),
        // One thread has nobody to steal from: a runtime without queues that others may look into takes fewer steps.
        work_stealing: config.listen.threads > 1,
        ..ServerConf::default()
    };
    #[cfg(tokio_unstable)]
    let conf = super::loops::counted(conf);
    conf
}

/// The work of the server's thread. pingora's services are made on it, since they are not all `Send` once built.
fn build(config: Config, source: Source, way: Way, common: Arc<Common>) -> impl FnOnce() + Send {
    move || {
        let Way { signals: caught, meeting, inherits, taken_over, front } = way;
        let signals = caught.is_some();
        let connections = Connections::default();
        let conf = settings(&config, &meeting);
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
