//! The signals that must not end the process at any moment of its life: SIGHUP and SIGUSR1. They are caught before the first
//! thing that takes time, such as the wait for the listening sockets of another process. Who acts on them comes later.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The two signals, caught. One that comes before anybody listens is kept for who listens first.
#[derive(Debug)]
pub(super) struct Caught {
    /// SIGHUP: the configuration is to be read again.
    pub(super) reload: Signal,
    /// SIGUSR1: the log files are to be opened again. pingora sends it to a parent that it makes a daemon of, which never happens here.
    pub(super) reopen: Signal,
}

impl Caught {
    /// Catches both, for as long as the process lives. Not to be called within a runtime.
    ///
    /// # Errors
    /// No handler can be installed.
    pub(super) fn install() -> io::Result<Caught> {
        // tokio installs handlers within a runtime alone, and pingora makes its own much later. A handler stays when this one ends.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _within = runtime.enter();
        Ok(Caught { reload: signal(SignalKind::hangup())?, reopen: signal(SignalKind::user_defined1())? })
    }
}
