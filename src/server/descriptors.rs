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

/// Raises the soft limit to the hard one, and warns where a `listen.max_connections` that somebody chose cannot be reached. Returns the room for
/// connections.
pub(super) fn prepare(config: &Config, backends: usize) -> Arc<Descriptors> {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of file descriptors could not be raised");
            return Descriptors::unlimited();
        }
    };
    warn_of(limit, config);
    let left = limit.saturating_sub(OTHERS + EACH_BACKEND * backends as u64);
    // Where next to nothing is left, the system may say so itself.
    let floor = limit / 2;
    Descriptors::new(usize::try_from(left.max(floor)).unwrap_or(usize::MAX))
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
    fn a_connection_needs_two_descriptors() {
        assert_eq!(needed(100), 264);
        assert_eq!(needed(u64::MAX), u64::MAX);
    }
}
