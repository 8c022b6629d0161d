//! File descriptors at the start of the process: the limit is raised as far as the system lets us, and a configuration that asks
//! for more connections than fit is told so before it hurts.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use forebay_fleet::config::model::Config;

/// Descriptors for everything but connections: listeners, logs, runtimes, scrapes, probes, the configuration.
const OTHERS: u64 = 64;

/// Raises the soft limit to the hard one, and warns where `listen.max_connections` cannot be reached.
pub(super) fn prepare(config: &Config) {
    let limit = match raise() {
        Ok(limit) => limit,
        Err(error) => return tracing::warn!(%error, "the limit of file descriptors could not be raised"),
    };
    let Some(wanted) = config.listen.max_connections else { return };
    let needed = needed(wanted as u64);
    if needed > limit {
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
