//! How the process ends. SIGTERM and SIGQUIT drain: not ready, then (after `ready_delay`) the listeners close, then the
//! process exits when the last client connection ends and never later than the limit. SIGINT ends at once.
//!
//! pingora would sleep its whole grace period even with nothing left to do, so the exit is ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use super::listener::Connections;
use crate::config::model::Drain;

/// How often a drain looks whether it is done.
const LOOK: Duration = Duration::from_millis(10);

/// Says when pingora shall stop.
pub(super) struct Signals {
    pub(super) draining: Arc<AtomicBool>,
    pub(super) ready_delay: Duration,
    /// Off where the process is not ours alone (the demo).
    pub(super) listen: bool,
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
        tokio::select! {
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            _ = term.recv() => {}
            _ = quit.recv() => {}
        }
        self.draining.store(true, Ordering::Release);
        tracing::info!(ready_delay = ?self.ready_delay, "draining: not ready any more");
        tokio::select! {
            () = tokio::time::sleep(self.ready_delay) => ShutdownSignal::GracefulTerminate,
            _ = interrupt.recv() => ShutdownSignal::FastShutdown,
        }
    }
}

/// Ends the process once a drain is over.
pub(super) struct DrainEnd {
    pub(super) connections: Connections,
    pub(super) drain: Drain,
    /// Run before the exit: what is buffered must reach the log.
    pub(super) before_exit: Box<dyn Fn() + Send + Sync>,
}

#[async_trait]
impl BackgroundService for DrainEnd {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            return;
        }
        let over = async {
            while self.connections.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let mut interrupt = signal(SignalKind::interrupt()).expect("a handler for a catchable signal can be installed");
        let over = async {
            tokio::select! {
                () = over => {}
                _ = interrupt.recv() => tracing::warn!("interrupted: the drain is cut short"),
            }
        };
        match tokio::time::timeout(self.drain.limit, over).await {
            Ok(()) if self.connections.load(Ordering::Acquire) > 0 => {}
            Ok(()) => tracing::info!("drained: every client connection has ended"),
            Err(_) => tracing::warn!(
                connections = self.connections.load(Ordering::Acquire),
                "listen.drain.limit is over: what is left is cut"
            ),
        }
        (self.before_exit)();
        std::process::exit(0);
    }
}
