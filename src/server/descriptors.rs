//! File descriptors at the start of the process: the limit is raised as far as the system lets us, and a configuration that asks
//! for more connections than fit is told so before it hurts.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::upstream::descriptors::Descriptors;
use forebay_fleet::config::model::Config;

/// Descriptors for everything but connections of clients and their requests: listeners, logs, runtimes, the admin API, the
/// configuration.
const OTHERS: u64 = 64;
/// Descriptors for the scrapes and probes of a backend.
const EACH_BACKEND: u64 = 3;

/// The room for connections: what the process's limit leaves beside its backends, however many there are by now.
pub(super) struct Room {
    /// The descriptors that the process may have; `None`: nobody knows.
    limit: Option<u64>,
    connections: Arc<Descriptors>,
}

impl Room {
    /// Raises the soft limit to the hard one, and warns where a `listen.max_connections` that somebody chose
    /// cannot be reached. There are no backends yet.
    pub(super) fn prepare(config: &Config) -> Room {
        let limit = raise();
        match limit {
            Ok(limit) => warn_of(limit, config),
            Err(error) => tracing::warn!(%error, "the limit of file descriptors could not be raised"),
        }
        let room = Room { limit: limit.ok(), connections: Descriptors::unlimited() };
        room.beside(0);
        room
    }

    /// Leaves room for so many backends. Sources find more and reloads take some away, so it is called after each change.
    pub(super) fn beside(&self, backends: usize) {
        if let Some(limit) = self.limit {
            self.connections.resize(usize::try_from(left(limit, backends)).unwrap_or(usize::MAX));
        }
    }

    /// The places for connections.
    pub(super) fn connections(&self) -> &Arc<Descriptors> {
        &self.connections
    }
}

/// The descriptors for connections, of so many.
fn left(limit: u64, backends: usize) -> u64 {
    let left = limit.saturating_sub(OTHERS + EACH_BACKEND * backends as u64);
    // Where next to nothing is left, the system may say so itself.
    left.max(limit / 2)
}

fn warn_of(limit: u64, config: &Config) {
    let Some(wanted) = config.listen.max_connections else { return };
    let needed = needed(wanted as u64);
    // The default is more than most hosts allow by themselves, and nobody here has asked for it. Connections that do not fit are refused
    // with a warning of their own.
    let asked_for = config.listen.max_connections != Config::default().listen.max_connections;
    if needed > limit && asked_for {
        tracing::warn!(
            limit,
            needed,
            max_connections = wanted,
            "fewer client connections fit than listen.max_connections: raise the limit of file descriptors (ulimit -n), or \
             lower listen.max_connections"
        );
    }
}

/// Each client's connection needs one to a backend, too.
fn needed(connections: u64) -> u64 {
    connections.saturating_mul(2).saturating_add(OTHERS)
}

fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_take_room_from_connections_as_they_are_found() {
        let room = Room { limit: Some(1_024), connections: Descriptors::unlimited() };
        let places = |backends: usize| {
            room.beside(backends);
            std::iter::from_fn(|| room.connections().for_client()).collect::<Vec<_>>().len()
        };
        assert_eq!([places(0), places(100), places(5_000), places(2)], [960, 660, 512, 954]);
    }

    #[test]
    fn a_connection_needs_two_descriptors() {
        assert_eq!(needed(100), 264);
        assert_eq!(needed(u64::MAX), u64::MAX);
    }
}
