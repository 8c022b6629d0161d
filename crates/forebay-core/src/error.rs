//! What can go wrong with a request, and what it means. HTTP status, who is blamed, and the metric label are decided here
//! and nowhere else; which failure leads to another attempt is `routing::retry`'s. Knows no HTTP library: hyper's errors
//! are mapped to [`Failure`] in `upstream`.

mod json;
mod over;
mod words;

use std::time::Duration;

pub use self::json::{ErrorShape, error_json, refusal_json};
pub use self::over::Over;
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
    /// 500, 502 or 504 before anything was committed, but of an engine that lives. A 101 that nobody asked for counts as 502.
    ServerError(u16),
    /// 503 or 429: backpressure. The backend may name how long to leave it alone.
    Busy {
        /// The status, 503 or 429.
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

    /// The value of the `reason` and `outcome` labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Shortage => "shortage",
            Failure::Unreachable => "unreachable",
            Failure::Tls => "tls",
            Failure::Reused => "reused_connection",
            Failure::Died => "died",
            Failure::ServerError(_) => "server_error",
            Failure::Busy { .. } => "busy",
            Failure::Misconfigured(_) => "misconfigured",
            Failure::NotServed => "not_served",
            Failure::ErrorEvent { .. } => "error_event",
            Failure::FirstToken => "first_token_timeout",
            Failure::Stalled => "stalled",
            Failure::ListenerGone => "listener_gone",
            Failure::Silent => "silent",
            Failure::Idle => "idle_timeout",
            Failure::Truncated => "truncated",
            Failure::Deadline => "total_timeout",
            Failure::Shutdown => "shutdown",
            Failure::ClientLeft => "client_left",
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

/// An answer of our own instead of a backend's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The body is no JSON object, or a member that we read has the wrong type.
    #[error("the request body is not valid: {0}")]
    BadRequest(String),
    /// HTTP/1.1 without `host`, two of them, or one that is none.
    #[error("the request needs one `host` header with a host in it (RFC 9112 section 3.2)")]
    BadHost,
    /// The request came through this process before.
    #[error("the request has been here before: a backend leads back to this proxy (see the header `via`)")]
    Loop,
    /// No model named where several are served.
    #[error("the request names no `model` and several are served: {0}")]
    NoModel(String),
    /// No or wrong client key.
    #[error("the API key is missing or not known here; send `authorization: Bearer KEY`")]
    Unauthorized,
    /// A path outside the allow-list.
    #[error("{method} {path} is not served here; see the API of vLLM's OpenAI server, without its development paths")]
    PathNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// A path of the allow-list with a method that it does not take.
    #[error("{path} does not take {method}, but {allowed}")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
        /// The methods that it takes, as in the header `allow`.
        allowed: &'static str,
    },
    /// A web page of an origin that may not send requests.
    #[error("pages of the origin `{0}` may not send requests here (cors.origins)")]
    OriginNotAllowed(String),
    /// A model that no pool serves.
    #[error("The model `{model}` does not exist here; served: {served}")]
    UnknownModel {
        /// The model that the client asked for.
        model: String,
        /// The names that are served, comma separated.
        served: String,
    },
    /// A stored response that no backend has.
    #[error("no backend has the response `{0}`")]
    UnknownResponse(String),
    /// The body did not come in time.
    #[error("the request body did not arrive in time ({0})")]
    BodyTimeout(&'static str),
    /// One body over its limit.
    #[error("the request body is larger than the limit of {0} bytes (limits.body)")]
    TooLarge(u64),
    /// A JSON body in a coding that is not understood.
    #[error("a request body with content-encoding `{0}` is not taken; send it plain, or as gzip or zstd alone")]
    Encoded(String),
    /// All bodies together over their limit, or the heads of one connection.
    #[error("too many request bodies (limits.bodies_in_memory) or heads are in memory; try again shortly")]
    BodiesFull,
    /// Nothing to route to: no backend, or all drained.
    #[error("no backend of `{0}` takes requests at present")]
    NoBackend(String),
    /// Every backend at its limit, and the wait room full.
    #[error(
        "every backend of `{0}` is at its limit, and the wait room is full (pools.wait_room.size); try again shortly"
    )]
    WaitRoomFull(String),
    /// Every backend at its limit for as long as a request waits.
    #[error("no backend of `{0}` had a free place in time (pools.wait_room.timeout); try again shortly")]
    WaitTimeout(String),
    /// A model that the client's key may not use, or that does not exist: the key is not told which.
    #[error("The model `{model}` does not exist here, or this key may not use it; served to it: {served}")]
    ModelNotAllowed {
        /// The model that the client asked for.
        model: String,
        /// The names that are served to the key, comma separated.
        served: String,
    },
    /// A client over one of its limits.
    #[error("the key `{client}` is over its limit of {}; try again in {} s", over.words(), whole_seconds(*after))]
    RateLimited {
        /// The name of the client's key.
        client: String,
        /// The limit.
        over: Over,
        /// The time after which the request would pass.
        after: Duration,
    },
    /// Attempts ended and no backend answered.
    #[error("{attempts} attempts on the backends of `{model}` failed; the last: {}", failure.label())]
    Exhausted {
        /// The pool's model.
        model: String,
        /// Attempts made.
        attempts: u32,
        /// The last one's failure.
        failure: Failure,
    },
    /// The backend that another data plane sent the request to failed before its first token: the sender may repeat it.
    #[error("the backend of `{model}` failed before its first token ({}); try again", failure.label())]
    FailedEarly {
        /// The pool's model.
        model: String,
        /// The failure.
        failure: Failure,
    },
    /// This host has no file descriptors or no memory for a connection to a backend.
    #[error("this proxy has no file descriptors or memory left for a connection to a backend; try again shortly")]
    Shortage,
    /// The process ends.
    #[error("this proxy is shutting down and waits no longer for an answer; try again shortly")]
    ShuttingDown,
    /// Our own bug.
    #[error("an internal error; the log has more under this request id")]
    Internal,
}

impl Refusal {
    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Refusal::BadRequest(_) | Refusal::BadHost | Refusal::NoModel(_) => 400,
            Refusal::Unauthorized => 401,
            Refusal::OriginNotAllowed(_) => 403,
            Refusal::PathNotAllowed { .. } | Refusal::UnknownModel { .. } | Refusal::UnknownResponse(_) => 404,
            Refusal::ModelNotAllowed { .. } => 404,
            Refusal::MethodNotAllowed { .. } => 405,
            Refusal::BodyTimeout(_) => 408,
            Refusal::TooLarge(_) => 413,
            Refusal::Encoded(_) => 415,
            Refusal::RateLimited { .. } => 429,
            Refusal::BodiesFull | Refusal::NoBackend(_) | Refusal::WaitRoomFull(_) | Refusal::WaitTimeout(_) => 503,
            Refusal::Shortage | Refusal::ShuttingDown | Refusal::FailedEarly { .. } => 503,
            Refusal::Exhausted { failure, .. } => failure.status(),
            Refusal::Internal => 500,
            Refusal::Loop => 508,
        }
    }

    /// The `outcome` label, the header `x-forebay-error` and, but for [`Refusal::error_type`], the `error.type` of the answer.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::BadRequest(_) => "forebay_bad_request",
            Refusal::BadHost => "forebay_bad_host",
            Refusal::Loop => "forebay_loop",
            Refusal::NoModel(_) => "forebay_no_model",
            Refusal::Unauthorized => "forebay_unauthorized",
            Refusal::OriginNotAllowed(_) => "forebay_origin_not_allowed",
            Refusal::PathNotAllowed { .. } => "forebay_path_not_allowed",
            Refusal::MethodNotAllowed { .. } => "forebay_method_not_allowed",
            Refusal::UnknownModel { .. } => "forebay_unknown_model",
            Refusal::ModelNotAllowed { .. } => "forebay_model_not_allowed",
            Refusal::RateLimited { .. } => "forebay_rate_limited",
            Refusal::UnknownResponse(_) => "forebay_unknown_response",
            Refusal::BodyTimeout(_) => "forebay_body_timeout",
            Refusal::TooLarge(_) => "forebay_too_large",
            Refusal::Encoded(_) => "forebay_encoded_body",
            Refusal::BodiesFull => "forebay_bodies_full",
            Refusal::NoBackend(_) => "forebay_no_backend",
            Refusal::WaitRoomFull(_) => "forebay_wait_room_full",
            Refusal::WaitTimeout(_) => "forebay_wait_timeout",
            Refusal::Exhausted { failure: Failure::FirstToken | Failure::Stalled | Failure::Deadline, .. } => {
                "forebay_timeout"
            }
            Refusal::Exhausted { .. } | Refusal::FailedEarly { .. } => "forebay_upstream_failed",
            Refusal::Shortage => "forebay_shortage",
            Refusal::ShuttingDown => "forebay_shutting_down",
            Refusal::Internal => "forebay_internal",
        }
    }

    /// `error.type` of the answer: vLLM's word where clients know the error by it, else [`Refusal::kind`].
    #[must_use]
    pub fn error_type(&self) -> &'static str {
        match self {
            Refusal::UnknownModel { .. } | Refusal::ModelNotAllowed { .. } => "NotFoundError",
            _ => self.kind(),
        }
    }

    /// `error.param` of the answer: the member of the request that is at fault, as vLLM names it.
    #[must_use]
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Refusal::UnknownModel { .. } | Refusal::ModelNotAllowed { .. } => Some("model"),
            _ => None,
        }
    }

    /// Returns whether a client that sent the request again at once would do harm: a backend may have died of it, or it has
    /// already used up the time for an answer.
    #[must_use]
    pub fn forbids_retry(&self) -> bool {
        matches!(self, Refusal::Exhausted { failure, .. } if failure.is_death() || failure.status() == 504)
    }

    /// Returns whether the refusal says that every backend that may have the request is at its limit.
    #[must_use]
    pub fn is_for_want_of_room(&self) -> bool {
        matches!(self, Refusal::WaitRoomFull(_) | Refusal::WaitTimeout(_))
    }

    /// Seconds for the Retry-After header, where trying again is sensible.
    #[must_use]
    pub fn retry_after(&self) -> Option<u32> {
        match (self, self.status()) {
            (Refusal::RateLimited { after, .. }, _) => Some(whole_seconds(*after)),
            (_, 503 | 429) => Some(1),
            _ => None,
        }
    }
}

/// Returns the seconds of `after`, at least 1, rounded up: a client that comes a moment too early would be refused again.
fn whole_seconds(after: Duration) -> u32 {
    u32::try_from(after.as_micros().div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backpressure_is_no_illness() {
        let busy = Failure::Busy { status: 503, retry_after: None };
        assert_eq!(busy.blame(), Blame::Backpressure(Duration::from_secs(1)));
        assert!(!busy.is_death());
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
}
