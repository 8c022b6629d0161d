//! One exchange with a gateway, from the head of a request to the end of its answer: reads what the gateway shows, lets the proxy's
//! code decide and watch, and replies in the order that `exchange` gives. A gateway that ends the exchange drops it, and with it the
//! place on the backend.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{HeaderName, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::PickerShared;
use super::exchange::{Protocol, Reply, Step, Then};
use super::wire::{self, BodyMode, End, GatewayMessage, Modes, PIECE_MAX, ProcessingRequest, ProcessingResponse, What};
use crate::proxy::AnswerBody;
use crate::proxy::picked::{Answer, AnswerForm, GatewayQuestion, Picked, Seen, WatchedAnswer};
use crate::upstream::Pieces;
use forebay_core::error::Failure;

/// Pieces of a request's body that wait to be read.
const AHEAD: usize = 4;
/// Asks the client's library, or the gateway, to repeat the request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// One exchange.
pub(super) struct Task {
    common: Arc<PickerShared>,
    gateway: (Option<SocketAddr>, bool),
    said: Streaming<ProcessingRequest>,
    tx: mpsc::Sender<Result<ProcessingResponse, Status>>,
    /// The request's body ended with trailers.
    trailers: bool,
}

/// The gateway is gone, or has nothing more to say.
struct Over;

impl Task {
    pub(super) fn new(
        common: Arc<PickerShared>,
        gateway: (Option<SocketAddr>, bool),
        said: Streaming<ProcessingRequest>,
        tx: mpsc::Sender<Result<ProcessingResponse, Status>>,
    ) -> Task {
        Task { common, gateway, said, tx, trailers: false }
    }

    /// Drives it to its end.
    pub(super) async fn run(mut self) {
        // The end of the exchange is all that there is to tell.
        let _: Result<(), Over> = self.exchange().await;
    }

    async fn exchange(&mut self) -> Result<(), Over> {
        let first = hear(&mut self.said).await?;
        let modes = first.modes.unwrap_or_default();
        let (head, end) = match first.what {
            What::RequestHead(head, end) => (head, end),
            What::Nonsense => return self.fail(Status::invalid_argument("the request has no method or no path")).await,
            _ => return self.fail(Status::failed_precondition(NO_HEAD)).await,
        };
        if first.observing {
            return self.fail(Status::failed_precondition(OBSERVING)).await;
        }
        let whole = end.is_last() || modes.request == BodyMode::None;
        match (whole, modes.request) {
            (true, _) | (false, BodyMode::Duplex) => {}
            (false, BodyMode::Buffered) => self.tell(wire::go_on()).await?,
            (false, _) => return self.fail(Status::failed_precondition(REQUEST_MODE)).await,
        }
        match self.ask(&head, first.subset, whole).await? {
            Answer::Picked(picked) => self.placed(*picked, modes, whole).await,
            Answer::Refused(answer) => self.refuse(answer).await,
        }
    }

    /// Asks for a place, and reads the request's body meanwhile.
    async fn ask(&mut self, head: &Parts, subset: Option<Vec<String>>, whole: bool) -> Result<Answer, Over> {
        let Task { common, gateway, said, tx, trailers } = self;
        let (pieces, body) = mpsc::channel(AHEAD);
        let mut pieces = Some(pieces);
        if whole {
            // There is room: it is the first.
            _ = pieces.take().map(|pieces| pieces.try_send(Piece::End));
        }
        let fallbacks = common.parts.settings.load().epp.fallbacks;
        let body = RequestBody(Some(body));
        let question = GatewayQuestion { gateway: *gateway, head, body, subset, fallbacks: fallbacks.into() };
        let mut asking = pin!(common.parts.proxy.pick(question, &common.deaths));
        loop {
            let next = async {
                // A body that is not wanted any more is read to its end all the same: the gateway may send all of it first.
                let place = match &pieces {
                    Some(pieces) => pieces.clone().reserve_owned().await.ok(),
                    None => None,
                };
                (place, hear(said).await)
            };
            let (place, heard) = tokio::select! {
                biased;
                () = tx.closed() => return Err(Over),
                answer = &mut asking => return Ok(answer),
                next = next => next,
            };
            let last = match heard?.what {
                What::RequestBody(piece, end) => {
                    if let Some(place) = place {
                        place.send(Piece::Data(piece));
                    }
                    end.is_last()
                }
                what => {
                    drop(place);
                    *trailers = matches!(what, What::RequestTrailers);
                    *trailers
                }
            };
            if last && let Some(pieces) = pieces.take() {
                tokio::select! {
                    biased;
                    answer = &mut asking => return Ok(answer),
                    _ = pieces.send(Piece::End) => {}
                }
            }
        }
    }

    /// Tells the gateway of the decision, and watches the answer.
    async fn placed(&mut self, picked: Picked, modes: Modes, whole: bool) -> Result<(), Over> {
        let Picked { addresses, set, remove, body, mut watched } = picked;
        let decision = wire::picked(&addresses, &set, &remove);
        match modes.request {
            _ if whole => self.tell(decision).await?,
            BodyMode::Buffered => {
                let body = body.slices().cloned().collect::<Vec<Bytes>>().concat();
                self.tell(wire::with_body(decision, body)).await?;
            }
            _ => {
                self.tell(decision).await?;
                self.give_back(&body).await?;
            }
        }
        drop(body);
        watched.sent();
        let observe = self.common.parts.settings.load().epp.observe;
        let exchange = Protocol::new(observe, modes);
        if exchange.leaves_at_once() {
            watched.leave();
            return Ok(());
        }
        self.watch(exchange, watched).await
    }

    async fn give_back(&self, body: &Pieces) -> Result<(), Over> {
        let last = if self.trailers { End::More } else { End::Last };
        let mut pieces = cut(body).peekable();
        if pieces.peek().is_none() {
            self.tell(wire::request_piece(Bytes::new(), last)).await?;
        }
        while let Some(piece) = pieces.next() {
            let end = if pieces.peek().is_none() { last } else { End::More };
            self.tell(wire::request_piece(piece, end)).await?;
        }
        if self.trailers { self.tell(wire::request_trailers()).await } else { Ok(()) }
    }

    async fn watch(&mut self, mut exchange: Protocol, mut watched: WatchedAnswer) -> Result<(), Over> {
        let patience = watched.patience().unwrap_or(Duration::MAX);
        let mut late = pin!(tokio::time::sleep(patience));
        let shutdown = self.common.parts.shutdown.clone();
        loop {
            let said = tokio::select! {
                biased;
                said = hear(&mut self.said) => said?,
                () = self.tx.closed() => return Err(Over),
                failure = watched.ended() => return self.give_up(&exchange, watched, failure).await,
                () = &mut late, if exchange.is_early() => {
                    return self.give_up(&exchange, watched, Failure::FirstToken).await;
                }
                () = shutdown.begun() => return self.give_up(&exchange, watched, Failure::Shutdown).await,
            };
            let step = match said.what {
                What::ResponseHead(status, headers, end) => {
                    let form = watched.head(status, &headers, (said.served.as_deref(), said.own));
                    exchange.head(form, end)
                }
                What::ResponseBody(piece, end) => {
                    let mut seen = watched.piece(&piece);
                    if end.is_last() && seen == Seen::Nothing {
                        seen = watched.over();
                    }
                    exchange.piece(piece, end, seen)
                }
                What::ResponseTrailers => exchange.trailers(watched.over()),
                _ => continue,
            };
            let Step { replies, then } = step;
            for reply in replies {
                self.reply(reply, &watched).await?;
            }
            match then {
                Then::More => {}
                Then::Whole => {
                    watched.finish();
                    return Ok(());
                }
                Then::Leave => {
                    watched.leave();
                    return Ok(());
                }
                Then::Refuse(failure) => return self.refuse(watched.refuse(failure)).await,
            }
        }
    }

    async fn reply(&self, reply: Reply, watched: &WatchedAnswer) -> Result<(), Over> {
        self.tell(match reply {
            Reply::Head => {
                let mut marks = watched.mark();
                if watched.form() == AnswerForm::Error(true) {
                    marks.entry(SHOULD_RETRY).or_insert(HeaderValue::from_static("true"));
                }
                wire::response_head(&marks)
            }
            Reply::Piece(piece, end) => wire::response_piece(piece, end),
            Reply::Trailers => wire::response_trailers(),
        })
        .await
    }

    /// Ends an answer from outside. What has begun cannot be replaced, so that its end is the gateway's to find.
    async fn give_up(&self, exchange: &Protocol, watched: WatchedAnswer, failure: Failure) -> Result<(), Over> {
        if exchange.is_early() {
            return self.refuse(watched.refuse(failure)).await;
        }
        watched.cut(failure);
        self.fail(Status::unavailable(format!("the answer was cut: {}", failure.label()))).await
    }

    /// Gives the client an answer of our own.
    async fn refuse(&self, answer: Response<AnswerBody>) -> Result<(), Over> {
        let (head, body) = answer.into_parts();
        // It is known whole.
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        self.tell(wire::instead(head.status, &head.headers, body.into())).await
    }

    async fn fail(&self, status: Status) -> Result<(), Over> {
        let PickerShared { parts, warnings, .. } = &*self.common;
        if let Some(held_back) = warnings.pass(parts.clock.now()) {
            tracing::warn!(gateway = ?self.gateway.0, held_back, "an exchange with a gateway ended: {}", status.message());
        }
        self.tx.send(Err(status)).await.map_err(|_| Over)
    }

    async fn tell(&self, reply: ProcessingResponse) -> Result<(), Over> {
        self.tx.send(Ok(reply)).await.map_err(|_| Over)
    }
}

/// The gateway's next message. Its end, also a good one, may come as an error: what was shown decides how the answer ended.
async fn hear(said: &mut Streaming<ProcessingRequest>) -> Result<GatewayMessage, Over> {
    match said.message().await {
        Ok(Some(message)) => Ok(wire::read(message)),
        Ok(None) | Err(_) => Err(Over),
    }
}

const NO_HEAD: &str = "an exchange begins with a request's head: set request_header_mode to SEND";
const OBSERVING: &str = "nobody reads the decision: turn observability_mode off";
const REQUEST_MODE: &str =
    "set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED, so that the body can be read first";

/// The pieces of a body as the protocol allows them.
fn cut(body: &Pieces) -> impl Iterator<Item = Bytes> + '_ {
    body.slices().flat_map(|slice| {
        (0..slice.len()).step_by(PIECE_MAX).map(|at| slice.slice(at..slice.len().min(at + PIECE_MAX)))
    })
}

/// A part of a request's body.
enum Piece {
    Data(Bytes),
    End,
}

/// A request's body as the gateway shows it.
struct RequestBody(Option<mpsc::Receiver<Piece>>);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(pieces) = &mut self.0 else { return Poll::Ready(None) };
        match pieces.poll_recv(cx) {
            Poll::Ready(Some(Piece::Data(data))) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Poll::Ready(Some(Piece::End)) => {
                self.0 = None;
                Poll::Ready(None)
            }
            // A gateway that is gone ends the exchange: nobody reads on.
            Poll::Ready(None) => Poll::Pending,
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_is_larger_than_the_protocol_allows() {
        let body = Pieces::new([Bytes::from(vec![1; 3 * PIECE_MAX + 1]), Bytes::from_static(b"x")]);
        let pieces: Vec<Bytes> = cut(&body).collect();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_MAX, PIECE_MAX, PIECE_MAX, 1, 1]);
        assert_eq!(pieces.concat().len() as u64, body.len());
    }
}
