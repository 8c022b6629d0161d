//! A request up to the head of its answer, polled by the task of the client's connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::body::AnswerBody;
use super::exchange::Relaying;
use crate::upstream::bell::Bell;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::Panicked;
use forebay_fleet::telemetry::panics::caught;

/// Runs a request until its answer has a head, which is returned. What follows a head has a task of its own, since hyper polls no
/// body while a client reads nothing. Until then hyper's task will do: a client that leaves drops this, and most answers are whole.
pub(super) async fn answered(
    telemetry: Arc<Telemetry>,
    run: Pin<Box<impl Future<Output = Option<Relaying>> + Send + 'static>>,
    mut answer: oneshot::Receiver<Response<AnswerBody>>,
) -> Option<Response<AnswerBody>> {
    let caught_by = Arc::clone(&telemetry);
    let mut run = Box::pin(async move { caught(&caught_by, Panicked::Request, run).await.flatten() });
    let (mut over, bell) = (None, Bell::new());
    let answer = poll_fn(|cx| {
        // hyper wakes its task for its own sake as well, as when a body was read. It is not polled again once it is over: the
        // answer is there then, or never will be.
        if over.is_none()
            && let Some(waker) = bell.rang(cx)
            && let Poll::Ready(relaying) = run.as_mut().poll(&mut Context::from_waker(&waker))
        {
            over = Some(relaying);
        }
        // Only that poll sends it. To wait for it as well would wake this task once more for each request.
        match answer.try_recv() {
            Err(TryRecvError::Empty) => Poll::Pending,
            sent => Poll::Ready(sent.ok()),
        }
    })
    .await;
    // A task is made for what is left: the relay alone where the head has come, which is smaller than all that led to it.
    match over {
        Some(Some(relaying)) => drop(tokio::spawn(async move {
            caught(&telemetry, Panicked::Request, relaying.run()).await;
        })),
        Some(None) => {}
        // hyper drops this future with the answer's head, so what is under way gets a task that outlives it.
        None => drop(tokio::spawn(async move {
            if let Some(relaying) = run.await {
                caught(&telemetry, Panicked::Request, relaying.run()).await;
            }
        })),
    }
    answer
}
