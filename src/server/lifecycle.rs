//! How the process ends, and what the log says of it. SIGTERM drains: not ready, then (after `ready_delay`) the listeners close, then the
//! process exits when the last client connection ends; at the limit what is left gets an error and is cut. SIGINT ends at once.
//! SIGQUIT hands the listening sockets to a new process, accepts for another five seconds beside it, and then drains; without a
//! new process it changes nothing.
//!
//! pingora would sleep its whole grace period even with nothing left to do, so the exit is ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use super::handover;
use super::listener::Connections;
use super::upgrade::Meeting;
use crate::proxy::Shutdown;
use forebay_fleet::membership::drains::DrainByHand;

/// The time after which a drain looks again whether it is done.
const LOOK: Duration = Duration::from_millis(10);
/// Looks in a row without a connection after which all have ended. A listener that closes at this moment may just have accepted one
/// that is not counted yet, and a scrape of the admin address is never counted.
const QUIET: u32 = 10;
/// The longest time that a new process may take until it waits for the listening sockets.
const SUCCESSOR: Duration = Duration::from_secs(3);
/// The time that those past the limit have to read that they are cut.
const TELLING: Duration = Duration::from_secs(1);

/// The time between two lines of the log about a drain that goes on.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// The work that an end of the process would cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnderWay {
    /// Requests on backends.
    pub(super) requests: u32,
    /// Sequences of them that are past their first token.
    pub(super) streaming: u32,
    /// Requests in wait rooms.
    pub(super) waiting: u32,
}

impl std::fmt::Display for UnderWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let UnderWay { requests, streaming, waiting } = self;
        let noun = if *requests == 1 { "request" } else { "requests" };
        write!(f, "{requests} {noun} on backends ({streaming} past the first token), {waiting} waiting for a place")
    }
}

/// Counts what is under way.
pub(super) type Look = Arc<dyn Fn() -> UnderWay + Send + Sync>;

/// The moment in so long, for a reader of the log.
fn until(limit: Duration) -> String {
    let end = SystemTime::now().checked_add(limit);
    end.map_or_else(|| "its end".to_owned(), |end| humantime::format_rfc3339_seconds(end).to_string())
}

/// Says that the process ends at once, and what that costs.
fn cut_short(under_way: UnderWay) -> ShutdownSignal {
    if under_way == UnderWay::default() {
        tracing::info!("SIGINT: ending at once; nothing is under way");
    } else {
        tracing::warn!("SIGINT: ending at once, which cuts {under_way}; SIGTERM waits for them");
    }
    ShutdownSignal::FastShutdown
}

/// Says when pingora shall stop.
pub(super) struct Signals {
    pub(super) draining: Arc<AtomicBool>,
    pub(super) ready_delay: Duration,
    /// `listen.drain.limit`.
    pub(super) limit: Duration,
    pub(super) look: Look,
    /// Off where the process is not ours alone (the demo).
    pub(super) listen: bool,
    /// The place where a new process waits for the listening sockets.
    pub(super) meeting: Meeting,
    /// Set once the new process is told of the drains by hand: it would not hear of later ones.
    pub(super) handed_over: Arc<AtomicBool>,
    /// The drains by hand, as they are.
    pub(super) drains: Box<dyn Fn() -> Vec<DrainByHand> + Send + Sync>,
}

impl Signals {
    /// Returns whether a new process waits for the listening sockets; one that was started a moment ago gets its moment.
    async fn is_succeeded(&self) -> bool {
        let attended = async {
            while !self.meeting.is_attended() {
                tokio::time::sleep(LOOK * 5).await;
            }
        };
        tokio::time::timeout(SUCCESSOR, attended).await.is_ok()
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        if !self.listen {
            std::future::pending::<()>().await;
        }
        let handler = |kind| signal(kind).expect("a handler for a catchable signal can be installed");
        let (mut term, mut quit) = (handler(SignalKind::terminate()), handler(SignalKind::quit()));
        let mut interrupt = handler(SignalKind::interrupt());
        loop {
            tokio::select! {
                _ = interrupt.recv() => return cut_short((self.look)()),
                _ = term.recv() => break,
                _ = quit.recv() => {}
            }
            let succeeded = tokio::select! {
                _ = interrupt.recv() => return cut_short((self.look)()),
                // SIGTERM beats an upgrade that waits: a supervisor that stops the service must not wait for a successor.
                _ = term.recv() => break,
                succeeded = self.is_succeeded() => succeeded,
            };
            let socket = self.meeting.socket().display();
            if succeeded {
                tracing::info!(%socket, "handing the listening sockets to the new process");
                // First: a drain that comes meanwhile is refused, and not lost.
                self.handed_over.store(true, Ordering::Release);
                handover::tell(self.meeting.socket(), &(self.drains)()).await;
                return ShutdownSignal::GracefulUpgrade;
            }
            tracing::error!(%socket, "SIGQUIT, but no process waits there: start it with --upgrade; serving on");
        }
        // Before any listener closes: load balancers see `/ready` and stop sending while connections are still taken.
        self.draining.store(true, Ordering::Release);
        let (under_way, until) = ((self.look)(), until(self.ready_delay.saturating_add(self.limit)));
        tracing::info!(
            ready_delay = ?self.ready_delay,
            "SIGTERM: draining, /ready says no; waiting for {under_way}, until {until} at the latest; SIGINT ends at once"
        );
        tokio::select! {
            () = tokio::time::sleep(self.ready_delay) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => cut_short((self.look)()),
        }
    }
}

/// Ends the process once a drain is over.
pub(super) struct DrainEnd {
    pub(super) connections: Connections,
    pub(super) limit: Duration,
    pub(super) look: Look,
    /// Tells those that are under way when the limit is over.
    pub(super) shutdown: Shutdown,
    /// Run before the exit: what is buffered must reach the log.
    pub(super) before_exit: Box<dyn Fn() + Send + Sync>,
}

impl DrainEnd {
    /// Says now and then what the drain still waits for. Never returns.
    async fn tell(&self, limit: Duration) {
        // Where nothing is left, it is over before the first of these lines.
        let (until, mut soon) = (until(limit), LOOK * (QUIET + 10));
        loop {
            tokio::time::sleep(soon).await;
            soon = TELL_AGAIN;
            let (under_way, connections) = ((self.look)(), self.connections.load(Ordering::Acquire));
            tracing::info!(connections, "no new connections; waiting for {under_way}, until {until} at the latest");
        }
    }

    async fn all_ended(&self) {
        let mut quiet = 0;
        while quiet < QUIET {
            tokio::time::sleep(LOOK).await;
            quiet = if self.connections.load(Ordering::Acquire) > 0 { 0 } else { quiet + 1 };
        }
    }
}

#[async_trait]
impl BackgroundService for DrainEnd {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            return;
        }
        let mut interrupt = signal(SignalKind::interrupt()).expect("a handler for a catchable signal can be installed");
        let over = async {
            tokio::select! {
                () = self.all_ended() => {}
                () = self.tell(self.limit) => {}
                _ = interrupt.recv() => drop(cut_short((self.look)())),
            }
        };
        match tokio::time::timeout(self.limit, over).await {
            Ok(()) if self.connections.load(Ordering::Acquire) > 0 => {}
            Ok(()) => tracing::info!("drained: every client connection has ended"),
            Err(_) => {
                let connections = self.connections.load(Ordering::Acquire);
                let under_way = (self.look)();
                tracing::warn!(connections, "listen.drain.limit is over, which cuts {under_way}: each gets an error");
                self.shutdown.begin();
                if tokio::time::timeout(TELLING, self.all_ended()).await.is_err() {
                    tracing::warn!("some clients do not read what they are told");
                }
            }
        }
        (self.before_exit)();
        std::process::exit(0);
    }
}
