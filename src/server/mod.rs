//! The process: pingora's `Server` with the data and the admin listener, the background tasks, signals and the drain. The
//! only home of pingora, whose services these are; every connection is handed to hyper.

mod accept;
mod answering;
mod assemble;
mod conn;
mod descriptors;
mod ear;
mod flush;
mod handover;
mod lifecycle;
mod listener;
#[cfg(tokio_unstable)]
mod loops;
mod parts;
#[cfg(feature = "epp")]
mod picker;
#[doc(hidden)]
pub mod proxy_protocol;
mod sending;
mod signals;
mod spoken;
mod streams;
mod tls;
mod until;
mod upgrade;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use self::assemble::start;
use forebay_fleet::config::Loaded;
use forebay_fleet::config::model::{BackendConfig, Config};
use forebay_fleet::telemetry::log_file;

/// The source of the configuration, and so the way in which it can change.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, watched for changes.
    File {
        /// Its path.
        path: PathBuf,
        /// The content that was read.
        loaded: Box<Loaded>,
    },
    /// Backends named on the command line: they are asked what they serve.
    Backends(Vec<BackendConfig>),
    /// Fixed by the caller.
    Fixed,
}

/// The options that a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The resolved configuration, with whole paths of log files.
    pub config: Config,
    /// The source of the configuration.
    pub source: Source,
    /// True if SIGTERM, SIGQUIT, SIGINT and SIGHUP are the server's; a drain then ends the process.
    pub signals: bool,
    /// True to take the listening sockets over from the process that has them, if one does.
    pub upgrade: bool,
    /// The requests that are served.
    pub front: Serving,
}

/// The requests that a process serves, beside those for the admin API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serving {
    /// Clients, at `listen.address`.
    #[default]
    Clients,
    /// Gateways alone, at `epp.address`.
    Gateways,
}

/// The reason why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {error}; {}", bind_help(error, key))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The config key that names it.
        key: &'static str,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The configuration has a picker, which this program was built without.
    #[error("epp.address is set, but this program was built without the feature `epp`")]
    NoPicker,
    /// SIGHUP and SIGUSR1 cannot be caught, so that either would end the process.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
    /// There is no safe place to take the listening sockets over.
    #[error(
        "cannot wait for the listening sockets at {}: {error}; set listen.upgrade_socket to a path in a folder of this user alone",
        socket.display()
    )]
    Meeting {
        /// The socket's path.
        socket: PathBuf,
        /// The reason why there is none.
        error: std::io::Error,
    },
    /// The running process did not hand its listening sockets over.
    #[error(
        "the listening sockets were not handed over: start again with --upgrade, and within five seconds send SIGQUIT to the \
         process that has them"
    )]
    NotHandedOver,
    /// A listener did not answer in time after the start.
    #[error("nothing answered on {0} within ten seconds of the start; the log may say why")]
    Silent(SocketAddr),
    /// The access log's writer could not be started.
    #[error("the access log could not be started: {0}")]
    AccessLog(std::io::Error),
    /// The access log's file cannot be written.
    #[error("cannot write the access log {}: {error}; {}", file.display(), log_file::help(file, error))]
    AccessLogFile {
        /// The file's path.
        file: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The environment has a setting of traces that cannot be used.
    #[error("traces: {0}")]
    Traces(String),
    /// The server's thread could not be started.
    #[error("the server's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// Says what to do about an address that cannot be listened on.
fn bind_help(error: &std::io::Error, key: &str) -> String {
    let option = if key == "admin.address" { "--admin" } else { "--listen" };
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("stop the process that listens there, or choose another port with {option}")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("choose a port from 1024 on with {option}, or give Forebay CAP_NET_BIND_SERVICE")
        }
        std::io::ErrorKind::AddrNotAvailable => format!("choose an address of this host with {option}"),
        _ => format!("choose another address with {option}"),
    }
}

/// A running server.
pub struct Handle {
    /// The address at which requests are served; where only gateways are, theirs.
    pub data: SocketAddr,
    /// The address at which gateways ask, where they do.
    pub picker: Option<SocketAddr>,
    /// The address of metrics and the admin API.
    pub admin: SocketAddr,
    thread: std::thread::JoinHandle<()>,
}

impl Handle {
    /// Waits until the server has stopped.
    pub fn wait(self) {
        // A panic of the server's thread was printed by its own hook.
        drop(self.thread.join());
    }
}
