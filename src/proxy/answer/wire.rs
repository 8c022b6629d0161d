//! One committed answer between two connections: the next piece from the backend, and a piece to the client, each within
//! the deadlines and each ending at once when the client leaves.
//!
//! Hot path: one clock read a piece; the deadlines share one timer, which is set anew only when it fires, and polled only then.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Sleep;

use crate::proxy::body::Message;
use crate::proxy::outlet::{Outlet, Passed};
use crate::proxy::shutdown::Shutdown;
use crate::upstream::bell::Bell;
use crate::upstream::{BackendBody, shortage_or};
use forebay_core::clock::{Clock, Time};
use forebay_core::error::{Failure, with_causes};
use forebay_fleet::EngineLoad;
use forebay_fleet::health::alarm::{Heard, Watch};

/// The time after which the timer looks again where no deadline is set.
const FAR: Duration = Duration::from_secs(3600);

/// Bytes that go to a client which takes all at once, until others have a turn: a piece that goes past hyper waits for nobody.
const AT_ONCE: usize = 64 << 10;

/// The deadlines of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// The longest gap between two pieces from the backend.
    pub(crate) idle: Option<Duration>,
    /// The longest gap while the backend's engine is seen to work.
    pub(crate) busy_idle: Option<Duration>,
    /// The time by which the request must be over.
    pub(crate) total: Option<Time>,
    /// The longest time for which the client may take nothing.
    pub(crate) write_stall: Option<Duration>,
}

/// Both ends of an answer.
pub(crate) struct Wire {
    body: BackendBody,
    tx: Sender<Message>,
    /// The way to the client past hyper.
    outlet: Option<Arc<dyn Outlet>>,
    /// The client's socket has taken the last piece in part.
    owes: bool,
    /// Bytes that came since the task last waited.
    at_once: usize,
    /// The client left, the backend is given up from outside, or the process ends.
    over: Pin<Box<dyn Future<Output = Failure> + Send>>,
    /// Rings for `over` and `timer`.
    bell: Bell,
    heard: Heard,
    engine: EngineLoad,
    timer: Pin<Box<Sleep>>,
    clock: Clock,
    deadlines: Deadlines,
    waiting_since: Time,
    /// No gap is too long before this: the engine works.
    spared_until: Time,
    /// True if the client's write was blocked since the last piece came.
    pub(crate) blocked: bool,
}

impl Wire {
    pub(crate) fn new(
        body: BackendBody,
        (mut watch, engine, shutdown): (Watch, EngineLoad, Shutdown),
        (tx, outlet): (Sender<Message>, Option<Arc<dyn Outlet>>),
        clock: Clock,
        deadlines: Deadlines,
    ) -> Wire {
        let (client, heard, watch_clock) = (tx.clone(), watch.heard(), clock.clone());
        // One future for all that ends a relay from outside: it is polled only when no bytes are there.
        let over = async move {
            tokio::select! {
                biased;
                () = client.closed() => Failure::ClientLeft,
                failure = watch.ended(&watch_clock) => failure,
                () = shutdown.begun() => Failure::Shutdown,
            }
        };
        let now = clock.now();
        let mut wire = Wire {
            body,
            tx,
            outlet,
            owes: false,
            at_once: 0,
            over: Box::pin(over),
            bell: Bell::new(),
            heard,
            engine,
            timer: Box::pin(tokio::time::sleep(FAR)),
            clock,
            deadlines,
            waiting_since: now,
            spared_until: now,
            blocked: false,
        };
        wire.set_timer(now);
        wire
    }

    /// The time.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    fn due(&self) -> Option<(Time, Failure)> {
        let idle = self.deadlines.idle.map(|idle| ((self.waiting_since + idle).max(self.spared_until), Failure::Idle));
        let total = self.deadlines.total.map(|at| (at, Failure::Deadline));
        match (idle, total) {
            (Some(idle), Some(total)) => Some(if idle.0 < total.0 { idle } else { total }),
            (idle, total) => idle.or(total),
        }
    }

    /// Returns whether a silence that is over its limit may last: the engine works, on this stream for all we know.
    fn is_spared(&mut self, now: Time) -> bool {
        // A prefill of minutes sends nothing. As long as the engine's counters move, silence is work.
        let until = self.deadlines.idle.and_then(|idle| self.engine.works_until(idle));
        let last = self.deadlines.busy_idle.map(|limit| self.waiting_since + limit);
        self.spared_until = match (until, last) {
            (None, _) => return false,
            (Some(until), None) => until,
            (Some(until), Some(last)) => until.min(last),
        };
        self.spared_until > now
    }

    fn set_timer(&mut self, now: Time) {
        let wait = self.due().map_or(FAR, |(at, _)| at.since(now));
        self.timer.set(tokio::time::sleep(wait));
    }

    /// The next piece from the backend and when it came; `None` at the end of its answer.
    ///
    /// # Errors
    /// The client left, a deadline passed, the backend's answer was cut or given up from outside, or the process ends.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, Time)>, Failure> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(Bytes, Time)>, Failure>> {
        let came_before = std::mem::take(&mut self.at_once);
        if came_before >= AT_ONCE {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // First, so that a piece costs one look at the rest: a client that left is met by `send`.
        while let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            match frame {
                None => return Poll::Ready(Ok(None)),
                Some(Err(error)) => {
                    tracing::debug!(error = with_causes(&error), "the answer of a backend broke");
                    return Poll::Ready(Err(shortage_or(Failure::Truncated, &error)));
                }
                // Anything but data is a trailer, which vLLM has none of.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.at_once = came_before + data.len();
                        return Poll::Ready(self.came().map(|now| Some((data, now))));
                    }
                }
            }
        }
        if self.owes
            && let Some(outlet) = &self.outlet
            && let Poll::Ready(taken) = outlet.poll_taken(cx)
        {
            self.owes = false;
            if taken.is_err() {
                return Poll::Ready(Err(Failure::ClientLeft));
            }
        }
        // Client, watchdog, shutdown and timer share one waker, so that a poll for a piece costs one load and not four polls.
        match self.bell.rang(cx) {
            Some(waker) => self.poll_over(&mut Context::from_waker(&waker)).map(Err),
            None => Poll::Pending,
        }
    }

    /// Notes that a piece came.
    fn came(&mut self) -> Result<Time, Failure> {
        let now = self.clock.now();
        self.waiting_since = now;
        self.heard.note(now);
        // Also here, since the timer is polled only when no piece is there: a steady stream would outlive its deadline.
        if self.deadlines.total.is_some_and(|at| at <= now) { Err(Failure::Deadline) } else { Ok(now) }
    }

    /// Ready when the answer is over for another reason than its own end.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if let Poll::Ready(failure) = self.over.as_mut().poll(cx) {
            return Poll::Ready(failure);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = self.clock.now();
            match self.due() {
                Some((at, Failure::Idle)) if at <= now && self.is_spared(now) => self.set_timer(now),
                Some((at, failure)) if at <= now => return Poll::Ready(failure),
                _ => self.set_timer(now),
            }
        }
        Poll::Pending
    }

    /// Gives a piece to the client.
    ///
    /// # Errors
    /// The client left, took nothing for too long, or the request's time is over.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        // One piece ahead of the client is no reason to wait for it, two are.
        if self.owes {
            Box::pin(self.taken()).await?;
        }
        // A piece in the channel is older, and must not be overtaken.
        if let Some(outlet) = self.outlet.as_ref().filter(|_| self.tx.capacity() == self.tx.max_capacity()) {
            match poll_fn(|cx| Poll::Ready(outlet.pass(cx, &bytes))).await {
                Ok(Passed::Whole) => return Ok(()),
                Ok(Passed::InPart) => {
                    self.owes = true;
                    return Ok(());
                }
                Ok(Passed::NotNow) => {}
                Err(_) => return Err(Failure::ClientLeft),
            }
        }
        match self.tx.try_send(Message::Data(bytes)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Failure::ClientLeft),
            // On the heap, as above: a client that keeps up needs no room for the wait.
            Err(TrySendError::Full(message)) => Box::pin(self.send_blocked(message)).await,
        }
    }

    async fn send_blocked(&mut self, message: Message) -> Result<(), Failure> {
        let tx = self.tx.clone();
        self.blocked_until(async { tx.send(message).await.is_ok() }).await
    }

    /// Waits until the client's socket has taken what was passed to it.
    async fn taken(&mut self) -> Result<(), Failure> {
        let (tx, Some(outlet)) = (self.tx.clone(), self.outlet.clone()) else { return Ok(()) };
        self.owes = false;
        if let Poll::Ready(taken) = poll_fn(|cx| Poll::Ready(outlet.poll_taken(cx))).await {
            return taken.map_err(|_| Failure::ClientLeft);
        }
        let taken = async {
            tokio::select! {
                biased;
                taken = poll_fn(|cx| outlet.poll_taken(cx)) => taken.is_ok(),
                () = tx.closed() => false,
            }
        };
        self.blocked_until(taken).await
    }

    /// Waits for a client that is not reading; `taking` is false where it left.
    async fn blocked_until(&mut self, taking: impl Future<Output = bool>) -> Result<(), Failure> {
        self.blocked = true;
        // While the client reads nothing, what the engine does is no sign about this stream, and its silence no fault.
        let _pause = self.engine.pause();
        let now = self.clock.now();
        let stall = self.deadlines.write_stall.unwrap_or(FAR * 24 * 365);
        let left = self.deadlines.total.map_or(FAR * 24 * 365, |at| at.since(now));
        match tokio::time::timeout(stall.min(left), taking).await {
            Ok(true) => {
                // The backend's time begins when its next piece can be taken.
                self.waiting_since = self.clock.now();
                Ok(())
            }
            Ok(false) => Err(Failure::ClientLeft),
            Err(_) if left < stall => Err(Failure::Deadline),
            // A client that reads nothing is as good as gone.
            Err(_) => Err(Failure::ClientLeft),
        }
    }

    /// Closes the upstream connection, and only then tells the client how it ended, so that the engine stops first.
    pub(crate) async fn close(self: Box<Self>, ended: Result<(), Failure>, event: Option<Bytes>) {
        // In this order: the engine is to stop before anything waits for the client.
        let Wire { body, tx, over, deadlines, .. } = *self;
        drop(body);
        drop(over);
        last_word(&tx, ended, event, deadlines.write_stall).await;
    }
}

/// Tells a client how its answer ended, after everything else.
pub(crate) async fn last_word(
    tx: &Sender<Message>,
    ended: Result<(), Failure>,
    event: Option<Bytes>,
    write_stall: Option<Duration>,
) {
    // What is not delivered before an unclean end is thrown away by the transport: give it a moment.
    const MOMENT: Duration = Duration::from_millis(20);
    let stall = write_stall.unwrap_or(Duration::MAX);
    match ended {
        Ok(()) => {
            let whole = async {
                if let Some(event) = event {
                    tx.send(Message::Data(event)).await?;
                }
                tx.send(Message::End).await
            };
            drop(tokio::time::timeout(stall, whole).await);
        }
        Err(Failure::ClientLeft) => {}
        Err(_) => {
            if let Some(event) = event
                && let Ok(Ok(())) = tokio::time::timeout(MOMENT, tx.send(Message::Data(event))).await
            {
                tokio::time::sleep(MOMENT).await;
            }
        }
    }
}
