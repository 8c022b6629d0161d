//! The values that labels may have: enums, so that a label is bounded by its type. Failures and refusals have theirs from
//! `error.rs`. It must never make a label value from a request's text.
//!
//! Hot path: `label` is a match that gives a static word.

use std::time::Duration;

use forebay_core::error::{Failure, Over, Refusal};

macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$item_doc])* $item,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$item),*];

            /// The label's value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $($name::$item => $label,)* }
            }
        }
    };
}

label_enum! {
    /// The place of a request when its client left.
    AbortPhase {
        /// Its body was being read.
        Body = "body",
        /// It waited for a backend with room.
        Waiting = "waiting",
        /// No backend had answered yet.
        BeforeHead = "before_head",
        /// The backend had sent its head, but no token.
        BeforeFirstToken = "before_first_token",
        /// Tokens were flowing.
        MidStream = "mid_stream",
        /// The body of an answer that is no stream was under way.
        Unary = "unary",
    }
}

label_enum! {
    /// The opinion of routing on a backend.
    BackendState {
        /// Takes its share.
        Healthy = "healthy",
        /// Out after failures.
        Ejected = "ejected",
        /// Being tried after an ejection.
        Probing = "probing",
        /// Taken out by the operator.
        Drained = "drained",
        /// Not what the config says it is.
        Misconfigured = "misconfigured",
    }
}

label_enum! {
    /// Reason why a scrape or a probe failed.
    ProbeFailure {
        /// No connection.
        Connect = "connect",
        /// This host had no file descriptors or no memory for it.
        Shortage = "shortage",
        /// This host cannot reach the backend: its name does not resolve, or no port or route is left.
        Unreachable = "unreachable",
        /// The two do not agree on TLS.
        Tls = "tls",
        /// Not over in time.
        Timeout = "timeout",
        /// A status other than 2xx.
        Status = "status",
        /// An answer over its size limit.
        TooLarge = "too_large",
        /// The connection broke before the answer was whole.
        Broken = "broken",
        /// An answer that is not what was asked for.
        Unreadable = "unreadable",
    }
}

label_enum! {
    /// Reason why a source of backends gave no answer that could be used.
    DiscoveryFailure {
        /// The name did not resolve.
        Unresolved = "unresolved",
        /// The name has no address, or no InferencePool has the name.
        Empty = "empty",
        /// This process does not know whom to ask, or has no token.
        Setup = "setup",
        /// No connection to the API server.
        Connect = "connect",
        /// The two do not agree on TLS.
        Tls = "tls",
        /// Nothing came in time.
        Timeout = "timeout",
        /// The API server refused (401, 403).
        Refused = "refused",
        /// The API server no longer has the version that it was asked for (410).
        Expired = "expired",
        /// Another status.
        Status = "status",
        /// An answer over its size limit.
        TooLarge = "too_large",
        /// The connection broke.
        Broken = "broken",
        /// An answer that is not what was asked for.
        Unreadable = "unreadable",
    }
}

label_enum! {
    /// Reason why a backend was put out of routing.
    Ejection {
        /// Blamed failures in a row.
        Failures = "failures",
        /// Its `/health`.
        Health = "health",
        /// The progress watchdog.
        Watchdog = "watchdog",
        /// It serves something else than the config says, or refuses our key.
        Misconfigured = "misconfigured",
    }
}

label_enum! {
    /// The result of reading the configuration again.
    Reload {
        /// It is in force.
        Applied = "applied",
        /// Nothing in it can be put into force: it says the same, or only a restart would do it.
        Unchanged = "unchanged",
        /// It could not be read or has mistakes; the last good one stays.
        Rejected = "rejected",
    }
}

label_enum! {
    /// The work that a panic ended.
    Panicked {
        /// One request.
        Request = "request",
        /// The decision for one request in the wait room.
        Decision = "decision",
        /// A round of a background task, which then begins anew.
        Task = "task",
    }
}

label_enum! {
    /// The end of a span that was made.
    SpanEnd {
        /// A collector took it.
        Sent = "sent",
        /// Too many waited to be sent, so it was dropped.
        QueueFull = "queue_full",
        /// The collector did not take it, so it was dropped.
        Failed = "failed",
    }
}

label_enum! {
    /// The source of a count of output tokens.
    TokenSource {
        /// The backend's `usage`: exact.
        Usage = "usage",
        /// Token events counted here: a busy backend puts several tokens into one.
        Events = "events",
    }
}

/// The end of a request: the `outcome` label of metrics and access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer was delivered.
    Success,
    /// A 4xx of the backend was passed on.
    ClientError,
    /// The last attempt failed, or the client left.
    Failed(Failure),
    /// Refused here; the refusal's kind.
    Refused(&'static str),
}

impl Outcome {
    /// The label's value; for failures and refusals what `error.rs` says.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::ClientError => "client_error",
            Outcome::Failed(failure) => failure.label(),
            Outcome::Refused(kind) => kind,
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Outcome {
        Outcome::Failed(failure)
    }
}

impl From<&Refusal> for Outcome {
    /// Attempts that ran out count as the last one's failure.
    fn from(refusal: &Refusal) -> Outcome {
        match refusal {
            Refusal::Exhausted { failure, .. } | Refusal::FailedEarly { failure, .. } => Outcome::Failed(*failure),
            other => Outcome::Refused(other.kind()),
        }
    }
}

pub(super) fn labels_of<T: Copy>(all: &[T], label: impl Fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|value| label(*value)).collect()
}

/// Every value of [`Refusal::kind`] that a request can end with before a backend was chosen.
pub(super) fn refusal_labels() -> Vec<&'static str> {
    let none = String::new;
    let all = [
        Refusal::BadRequest(none()),
        Refusal::NoModel(none()),
        Refusal::Unauthorized,
        Refusal::OriginNotAllowed(none()),
        Refusal::PathNotAllowed { method: none(), path: none() },
        Refusal::MethodNotAllowed { method: none(), path: none(), allowed: "" },
        Refusal::BadHost,
        Refusal::Loop,
        Refusal::UnknownModel { model: none(), served: none() },
        Refusal::ModelNotAllowed { model: none(), served: none() },
        Refusal::RateLimited { client: none(), over: Over::Requests, after: Duration::ZERO },
        Refusal::UnknownResponse(none()),
        Refusal::BodyTimeout(""),
        Refusal::TooLarge(0),
        Refusal::Encoded(none()),
        Refusal::BodiesFull,
        Refusal::NoBackend(none()),
        Refusal::WaitRoomFull(none()),
        Refusal::WaitTimeout(none()),
        Refusal::Shortage,
        Refusal::ShuttingDown,
        Refusal::Internal,
    ];
    all.iter().map(Refusal::kind).collect()
}

/// Those that it can end with after an attempt on a backend, which then has them.
pub(super) fn later_refusal_labels() -> Vec<&'static str> {
    let none = String::new;
    let all = [
        Refusal::UnknownResponse(none()),
        Refusal::NoBackend(none()),
        Refusal::WaitRoomFull(none()),
        Refusal::WaitTimeout(none()),
        Refusal::Shortage,
        Refusal::ShuttingDown,
        Refusal::Internal,
    ];
    all.iter().map(Refusal::kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile when there is a refusal more: list it in [`refusal_labels`], then here.
    fn listed(refusal: &Refusal) {
        match refusal {
            Refusal::BadRequest(_) | Refusal::NoModel(_) | Refusal::Unauthorized => {}
            Refusal::OriginNotAllowed(_) => {}
            Refusal::PathNotAllowed { .. } | Refusal::MethodNotAllowed { .. } | Refusal::BadHost | Refusal::Loop => {}
            Refusal::UnknownModel { .. } | Refusal::UnknownResponse(_) | Refusal::BodyTimeout(_) => {}
            Refusal::ModelNotAllowed { .. } | Refusal::RateLimited { .. } => {}
            Refusal::TooLarge(_) | Refusal::Encoded(_) | Refusal::BodiesFull | Refusal::NoBackend(_) => {}
            Refusal::WaitRoomFull(_) | Refusal::WaitTimeout(_) | Refusal::Exhausted { .. } => {}
            Refusal::FailedEarly { .. } => {}
            Refusal::Shortage | Refusal::ShuttingDown | Refusal::Internal => {}
        }
    }

    #[test]
    fn label_values_are_all_different() {
        listed(&Refusal::Internal);
        let mut all = Failure::LABELS.to_vec();
        all.extend(refusal_labels());
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
