//! What can go wrong with a request, and what it means. HTTP status, who is blamed, and the metric label are decided here and
//! nowhere else: of a failed attempt in this file, of an answer of our own in `refusal`. Which failure leads to another attempt is
//! `routing::retry`'s. Knows no HTTP library: hyper's errors are mapped to [`Failure`] in `upstream`.

mod json;
mod over;
mod refusal;
mod words;

use std::time::Duration;

pub use self::json::{ErrorShape, error_json, refusal_json};
pub use self::over::Over;
pub use self::refusal::Refusal;
pub use self::words::{repeated, with_causes};

/// The way in which one attempt on one backend failed: a row of the table in docs/failures.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Connection refused, or not made in time. The backend has seen nothing of the request.
    Connect,
    /// This host lacks what a connection to any backend needs: file descriptors, memory.
    Shortage,
    /// This host cannot reach the backend, which need not be the backend's fault: its name does not resolve, no port is left for
    /// a connection to it, no route leads there.
    Unreachable,
    /// Backend and proxy do not agree on TLS: a certificate that one of them does not accept or the other lacks, a name, a version.
    /// No death, also where it shows only after the request was sent, as a missing client certificate does under TLS 1.3.
    Tls,
    /// A kept-alive connection failed within 100 ms of sending and before any byte of an answer: the idle close that crossed
    /// our request on the wire.
    Reused,
    /// Reset or end of stream after the request was sent, or an answer of 200 that ended without an event.
    Died,
    /// 500, 502 or 504 before anything was committed, but of an engine that lives. A 101 that nobody asked for, too.
    ServerError(u16),
    /// A status by which a backend [says that it is full](says_full): backpressure. It may name how long to leave it alone.
    Busy {
        /// The status.
        status: u16,
        /// The backend's own Retry-After, if it gave one in seconds.
        retry_after: Option<Duration>,
    },
    /// 404 for a model that we resolved, or 401/403 to our own key: the backend is not what the config says.
    Misconfigured(u16),
    /// 404 for a model that the backend's list promised (an adapter, an alias), or that any backend may have: another is asked.
    NotServed,
    /// An error event of a stream, first or later, with a code of 500 or above; or a 5xx answer that says that the engine is gone.
    ErrorEvent {
        /// The code in the event, 500 where it has none; or the status.
        code: u16,
        /// The engine behind the server is gone (a death).
        engine_dead: bool,
    },
    /// No first token within `first_token_timeout`.
    FirstToken,
    /// The watchdog found the engine hanging with the request on it (a death).
    Stalled,
    /// The backend's listener is gone, and nothing more comes of the request (a death): what a server leaves behind that was told
    /// to end at once.
    ListenerGone,
    /// Nothing at all comes of the backend's server, and another backend has taken the request over before its first token.
    Silent,
    /// A gap between two events over `idle_timeout`.
    Idle,
    /// The stream ended without its end marker, or was reset after the first token.
    Truncated,
    /// `total_timeout` is over.
    Deadline,
    /// The process ends, and waits no longer for the request.
    Shutdown,
    /// The client left first.
    ClientLeft,
}

/// The words for failures, in one list: a failure that it lacks does not compile, so each has its label and its counters.
macro_rules! labels {
    ($($failure:ident = $label:literal,)*) => {
        /// The places of the failures in [`Failure::LABELS`].
        enum Ordinal { $($failure,)* }

        impl Failure {
            /// Every value of [`Failure::label`].
            pub const LABELS: &'static [&'static str] = &[$($label,)*];

            /// The place of its label in [`Failure::LABELS`]: what is kept for each failure is found without a search.
            #[must_use]
            pub fn place(self) -> usize {
                (match self { $(Failure::$failure { .. } => Ordinal::$failure,)* }) as usize
            }

            /// The value of the `reason` and `outcome` labels.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Failure::$failure { .. } => $label,)* }
            }
        }
    };
}

labels! {
    Connect = "connect",
    Shortage = "shortage",
    Unreachable = "unreachable",
    Tls = "tls",
    Reused = "reused_connection",
    Died = "died",
    ServerError = "server_error",
    Busy = "busy",
    Misconfigured = "misconfigured",
    NotServed = "not_served",
    ErrorEvent = "error_event",
    FirstToken = "first_token_timeout",
    Stalled = "stalled",
    ListenerGone = "listener_gone",
    Silent = "silent",
    Idle = "idle_timeout",
    Truncated = "truncated",
    Deadline = "total_timeout",
    Shutdown = "shutdown",
    ClientLeft = "client_left",
}

/// Returns whether a backend with this status says that it is full, and not that it or the request is at fault.
#[must_use]
pub const fn says_full(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// The pause of a backend that is full or cannot be reached, where it names none itself.
const PAUSE: Duration = Duration::from_secs(1);

/// The party that a failure is counted against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The backend: feeds back-off and ejection.
    Backend,
    /// The backend is full or out of reach, not ill: it is left alone for so long (1 s where it names nothing).
    Backpressure(Duration),
    /// The backend is not what the config says it is: out until that changes.
    Misconfigured,
    /// Nobody.
    Nobody,
}

impl Failure {
    /// Returns whom the failure is counted against.
    #[must_use]
    pub fn blame(self) -> Blame {
        match self {
            Failure::Connect
            | Failure::Died
            | Failure::ServerError(_)
            | Failure::ErrorEvent { .. }
            | Failure::FirstToken
            | Failure::Stalled
            | Failure::ListenerGone
            | Failure::Truncated => Blame::Backend,
            Failure::Busy { retry_after, .. } => Blame::Backpressure(retry_after.unwrap_or(PAUSE)),
            Failure::Unreachable | Failure::Silent => Blame::Backpressure(PAUSE),
            Failure::Misconfigured(_) | Failure::Tls => Blame::Misconfigured,
            Failure::Shortage
            | Failure::Reused
            | Failure::NotServed
            | Failure::Idle
            | Failure::Deadline
            | Failure::Shutdown
            | Failure::ClientLeft => Blame::Nobody,
        }
    }

    /// Returns whether the request may itself have killed the backend ("query of death"). A request may see two such deaths.
    #[must_use]
    pub fn is_death(self) -> bool {
        matches!(
            self,
            Failure::Died | Failure::Stalled | Failure::ListenerGone | Failure::ErrorEvent { engine_dead: true, .. }
        )
    }

    /// The code of an answer by which a backend says that it failed, which may be the request's own doing: then other backends fail
    /// in the same way.
    #[must_use]
    pub fn may_be_the_requests(self) -> Option<u16> {
        match self {
            Failure::ServerError(code) | Failure::ErrorEvent { code, engine_dead: false } => Some(code),
            _ => None,
        }
    }

    /// The status of our own answer where attempts ended with this failure and no backend gave an answer to pass on.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Failure::FirstToken | Failure::Stalled | Failure::Silent | Failure::Deadline => 504,
            Failure::ErrorEvent { .. } => 500,
            Failure::Busy { status, .. } => status,
            Failure::Shortage | Failure::Unreachable | Failure::Shutdown => 503,
            Failure::NotServed => 404,
            Failure::ClientLeft => 499,
            _ => 502,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backpressure_is_no_illness() {
        let busy = Failure::Busy { status: 503, retry_after: None };
        assert_eq!(busy.blame(), Blame::Backpressure(Duration::from_secs(1)));
        assert!(!busy.is_death());
        assert!([429, 503].into_iter().all(says_full) && ![400, 408, 409, 500, 502, 504].into_iter().any(says_full));
    }

    #[test]
    fn errors_have_the_shape_of_their_api() {
        let text = error_json(ErrorShape::Anthropic, 404, "forebay_unknown_model", "no \"x\"");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["error"]["message"], "no \"x\"");
        assert_eq!(value["type"], "error");
    }

    #[test]
    fn a_client_that_left_blames_nobody() {
        assert_eq!(Failure::ClientLeft.blame(), Blame::Nobody);
        assert_eq!(Failure::ClientLeft.status(), 499);
    }

    #[test]
    fn the_place_of_a_failure_is_that_of_its_word() {
        for failure in [Failure::Connect, Failure::ServerError(500), Failure::ClientLeft] {
            assert_eq!(Failure::LABELS[failure.place()], failure.label());
        }
    }
}
