//! The client's side of a request until its commit: the head is held back, or (`stream.head_after`) it went out early and
//! comments say that somebody is there. An early head spends the status, and with it every header that would say who serves;
//! the backend is still open, since no token was sent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::proxy::body::{AnswerBody, Message, Ours};
use crate::proxy::headers;
use crate::proxy::outlet::Outlet;

/// Pieces between a request's task and its client's connection.
pub(crate) const CHANNEL: usize = 8;
/// The comment that a client gets while it waits.
const WAITING: &[u8] = b": forebay waiting\n\n";
/// The longest and the shortest time between two of them, whatever the first one waits for.
const SIGNS_APART: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// The way to the client, before or after the head of a stream was sent.
pub(crate) enum Front {
    /// Nothing was sent.
    Held(oneshot::Sender<Response<AnswerBody>>),
    /// The head and comments were sent.
    Early(mpsc::Sender<Message>),
}

impl Front {
    /// Waits until the client has left. Until a head is sent, the request is dropped then.
    pub(crate) async fn left(&mut self) {
        match self {
            Front::Held(_) => std::future::pending().await,
            Front::Early(tx) => tx.closed().await,
        }
    }

    /// Sends the head of a stream, if that is still to be sent, and a comment. A client that has left is `left`'s to find.
    pub(crate) fn sign(self, request_id: &HeaderValue, outlet: Option<&Arc<dyn Outlet>>) -> Front {
        let tx = match self {
            Front::Early(tx) => tx,
            Front::Held(reply) => {
                let (tx, messages) = mpsc::channel(CHANNEL);
                // A refused send means that the client has left, which `left` finds at the next turn of the loop.
                drop(reply.send(early_head(request_id, messages, outlet.cloned())));
                tx
            }
        };
        // A client that does not read has enough to read.
        drop(tx.try_send(Message::Data(WAITING.into())));
        Front::Early(tx)
    }
}

fn early_head(
    request_id: &HeaderValue,
    messages: mpsc::Receiver<Message>,
    outlet: Option<Arc<dyn Outlet>>,
) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::relayed(messages, outlet));
    *response.status_mut() = StatusCode::OK;
    let of = response.headers_mut();
    of.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    of.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    of.insert(headers::BUFFERING, HeaderValue::from_static("no"));
    of.insert(headers::REQUEST_ID, request_id.clone());
    response.extensions_mut().insert(Ours);
    response
}

/// The timer of the next sign of life.
pub(crate) struct Signs {
    timer: Option<Pin<Box<Sleep>>>,
    apart: Duration,
}

impl Signs {
    /// The first one after so long; none where that is off.
    pub(crate) fn new(first: Option<Duration>) -> Signs {
        let apart = first.unwrap_or_default().clamp(SIGNS_APART.0, SIGNS_APART.1);
        Signs { timer: first.map(|first| Box::pin(tokio::time::sleep(first))), apart }
    }

    /// Waits for it.
    pub(crate) async fn due(&mut self) {
        let Some(timer) = &mut self.timer else { return std::future::pending().await };
        timer.as_mut().await;
        // From now and not from when it was due: signs that a busy thread held up must not follow each other in a burst.
        timer.set(tokio::time::sleep(self.apart));
    }
}
