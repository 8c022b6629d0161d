//! An answer of our own: its words, its status, its kind, and what the client may do about it.

use std::time::Duration;

use super::{Failure, Over, says_full};

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
            (_, status) if says_full(status) => Some(1),
            _ => None,
        }
    }
}

/// Returns the seconds of `after`, at least 1, rounded up: a client that comes a moment too early would be refused again.
fn whole_seconds(after: Duration) -> u32 {
    u32::try_from(after.as_micros().div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1)
}
