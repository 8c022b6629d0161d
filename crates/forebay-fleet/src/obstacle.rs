//! What keeps this host from making a connection, so that no backend is blamed for it: a shortage that concerns every backend, or
//! a backend that cannot be reached from here; and, beside it, what keeps the two from speaking TLS. Whoever opens connections asks [`obstacle`] before it calls a failure the backend's.

use std::error::Error;
use std::io;

use nix::errno::Errno;

use crate::telemetry::throttle::Throttle;
use crate::tls::words;
use forebay_core::clock::Time;
use forebay_core::error::{Failure, with_causes};

/// A name that has no address, or not in time.
#[derive(Debug, thiserror::Error)]
#[error("the name could not be resolved")]
pub struct Unresolved(#[source] Option<io::Error>);

impl Unresolved {
    /// The system's reason, or none where there was no answer in time.
    #[must_use]
    pub fn new(reason: Option<io::Error>) -> Unresolved {
        Unresolved(reason)
    }
}

impl From<Unresolved> for io::Error {
    fn from(unresolved: Unresolved) -> io::Error {
        io::Error::other(unresolved)
    }
}

/// [`Failure::Shortage`] or [`Failure::Unreachable`] where the error, or one of its causes, says so; `None` where it may be the
/// backend's doing.
#[must_use]
pub fn obstacle(error: &(dyn Error + 'static)) -> Option<Failure> {
    let mut unresolved = false;
    for error in causes(error) {
        if let Some(failure) = error.downcast_ref::<io::Error>().and_then(of_system) {
            return Some(failure);
        }
        // Not returned yet: the lookup may itself have failed for a shortage, which is among its causes.
        unresolved |= error.is::<Unresolved>();
    }
    unresolved.then_some(Failure::Unreachable)
}

/// Returns what keeps this host and a backend from speaking TLS, and what to do about it, where the error, or one of its causes, says
/// so.
#[must_use]
pub fn mistrust(error: &(dyn Error + 'static)) -> Option<String> {
    causes(error).find_map(|error| match error.downcast_ref() {
        Some(closed) => Some(words::meaning_of_close(closed)),
        None => error.downcast_ref().and_then(words::meaning),
    })
}

/// The error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error hands on the cause of what it wraps, not what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// Returns the failure that an error of the system means for a new connection, if it is this host's.
fn of_system(error: &io::Error) -> Option<Failure> {
    match Errno::from_raw(error.raw_os_error()?) {
        // Descriptors or memory are used up: every connection fails now, whichever backend it is for.
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => Some(Failure::Shortage),
        // No port left for this address, no route, a family of addresses that is off, a firewall of this host. EHOSTUNREACH is
        // none of these: it also says that the backend's host does not answer.
        Errno::EADDRNOTAVAIL
        | Errno::EADDRINUSE
        | Errno::EAGAIN
        | Errno::EINVAL
        | Errno::ENETUNREACH
        | Errno::EAFNOSUPPORT
        | Errno::EACCES
        | Errno::EPERM => Some(Failure::Unreachable),
        _ => None,
    }
}

/// Warns of a shortage or of a backend out of reach, now and then and not for every connection that it prevents.
pub fn warn_of(failure: Failure, backend: &dyn std::fmt::Display, error: &dyn Error, now: Time) {
    // One throttle for each, so that one trouble does not hide the other.
    static SHORTAGE: Throttle = Throttle::new();
    static UNREACHABLE: Throttle = Throttle::new();
    static MISTRUST: Throttle = Throttle::new();
    match failure {
        Failure::Tls => {
            if let Some(held_back) = MISTRUST.pass(now) {
                tracing::warn!(%backend, %error, held_back, "backend cannot be spoken to over TLS");
            }
        }
        Failure::Shortage => {
            if let Some(held_back) = SHORTAGE.pass(now) {
                let error = with_causes(error);
                tracing::warn!(%error, held_back, "no file descriptor or memory for a connection: requests get a 503; raise \
                    the limit (ulimit -n) or lower listen.max_connections");
            }
        }
        Failure::Unreachable => {
            if let Some(held_back) = UNREACHABLE.pass(now) {
                let error = with_causes(error);
                tracing::warn!(%backend, %error, held_back, "backend cannot be reached from this host: it pauses");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno as i32)
    }

    #[derive(Debug, thiserror::Error)]
    #[error("wrapped")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn shortages_and_what_is_out_of_reach_are_told_from_a_backends_failures() {
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            assert_eq!(obstacle(&os(errno)), Some(Failure::Shortage), "{errno}");
        }
        for errno in [Errno::EADDRNOTAVAIL, Errno::ENETUNREACH, Errno::EAFNOSUPPORT, Errno::EPERM] {
            assert_eq!(obstacle(&os(errno)), Some(Failure::Unreachable), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::ETIMEDOUT, Errno::EHOSTUNREACH, Errno::ECONNRESET] {
            assert_eq!(obstacle(&os(errno)), None, "{errno}");
        }
    }

    #[test]
    fn causes_are_looked_through() {
        assert_eq!(obstacle(&Wrapped(os(Errno::EMFILE))), Some(Failure::Shortage));
        assert_eq!(obstacle(&Wrapped(Unresolved::new(None).into())), Some(Failure::Unreachable));
        let no_file: io::Error = Unresolved::new(Some(os(Errno::EMFILE))).into();
        assert_eq!(obstacle(&no_file), Some(Failure::Shortage), "the resolver's own shortage");
    }
}
