//! What attempts come to: a committed answer, a backend's last word, or a failure.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::response::Parts;
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use crate::proxy::answer::relay::Events;
use crate::proxy::body::AnswerBody as ClientBody;
use crate::upstream::BackendBody;
use forebay_core::error::{Failure, Refusal, says_full};
use forebay_fleet::health::alarm::Watch;
use forebay_fleet::{Backend, Dispatched, Ticket};

/// An error answer up to this size is kept, in case it turns out to be the last word.
const ERROR_ANSWER_MAX: usize = 256 << 10;
/// The time within which an error answer must arrive whole.
const ERROR_ANSWER_TIME: Duration = Duration::from_secs(5);

/// The end of a request's attempts.
pub(crate) enum Attempted {
    /// A backend's answer, committed; its body is to be relayed.
    Committed(Committed),
    /// The last real answer of a backend, an error.
    LastAnswer(RealAnswer),
    /// No backend answered: one of ours.
    Refused(Refusal),
}

/// The form in which a committed answer is relayed.
pub(crate) enum Form {
    Events(Events),
    Unary,
}

/// An error answer of a backend, whole.
pub(crate) struct RealAnswer {
    pub(crate) backend: Arc<Backend>,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The event as it came, where the answer was one.
    pub(crate) event: Option<Bytes>,
}

/// An attempt that did not commit.
pub(crate) enum Uncommitted {
    /// It failed; a real answer may be the last word.
    Failed(Failure, Option<RealAnswer>),
    /// The answer is the client's, though it is an error.
    Theirs(RealAnswer),
    /// The backend does not have the stored response that the request refers to; another may.
    NotHere(RealAnswer),
    /// Nothing came of its server, and this place was free.
    Moved(Dispatched),
}

impl From<Failure> for Uncommitted {
    fn from(failure: Failure) -> Uncommitted {
        Uncommitted::Failed(failure, None)
    }
}

impl From<Failure> for Box<Uncommitted> {
    fn from(failure: Failure) -> Box<Uncommitted> {
        Box::new(failure.into())
    }
}

/// The answer of an attempt that did. On the heap, as is an attempt that did not: each passes through a few futures, which copy it.
pub(crate) struct BackendAnswer {
    pub(crate) head: Parts,
    pub(crate) body: BackendBody,
    /// The form in which it is relayed.
    pub(crate) form: Form,
}

/// An attempt that proved the engine at work: its place, what ends it from outside, and the answer.
pub(crate) struct Committed {
    pub(crate) ticket: Ticket,
    pub(crate) watch: Watch,
    pub(crate) answer: Box<BackendAnswer>,
}

impl Uncommitted {
    /// Returns the reason why it failed, if it did.
    pub(super) fn failure(&self) -> Option<Failure> {
        match self {
            Uncommitted::Failed(failure, _) => Some(*failure),
            Uncommitted::Moved(_) => Some(Failure::Silent),
            Uncommitted::Theirs(_) | Uncommitted::NotHere(_) => None,
        }
    }

    /// An error event that came first: passed on, if it is the last word, as an answer with its own code.
    pub(crate) fn event(backend: &Arc<Backend>, failure: Failure, data: Bytes, event: Bytes) -> Uncommitted {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (backend, status) = (Arc::clone(backend), StatusCode::INTERNAL_SERVER_ERROR);
        Uncommitted::Failed(failure, Some(RealAnswer { backend, status, headers, body: data, event: Some(event) }))
    }
}

impl RealAnswer {
    /// Reads an error answer whole; `None` if it is too large or does not come.
    pub(crate) async fn read(
        backend: &Arc<Backend>,
        head: Parts,
        mut body: impl Body<Data = Bytes> + Unpin,
    ) -> Option<RealAnswer> {
        let mut whole = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.ok()?.into_data() {
                    whole.extend_from_slice(&data);
                }
                if whole.len() > ERROR_ANSWER_MAX {
                    return None;
                }
            }
            Some(())
        };
        // A body that does not come is left out, since the status alone decides what follows. No retry waits longer for it.
        tokio::time::timeout(ERROR_ANSWER_TIME, reading).await.ok()??;
        let mut headers = head.headers;
        // vLLM names no time, and a client should not try again at once.
        if says_full(head.status.as_u16()) && !headers.contains_key(RETRY_AFTER) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Some(RealAnswer {
            backend: Arc::clone(backend),
            status: head.status,
            headers,
            body: whole.freeze(),
            event: None,
        })
    }

    /// Turns it into an answer to the client.
    pub(crate) fn into_response(self) -> Response<ClientBody> {
        let mut response = Response::new(ClientBody::whole(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        // hyper writes one by the body's own size, which cannot be wrong.
        response.headers_mut().remove(CONTENT_LENGTH);
        response
    }
}
