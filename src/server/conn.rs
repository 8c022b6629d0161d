//! What is known of one client connection besides its bytes: how many requests are under way, since when none is, since when a
//! head is being read, and how many requests were given up at once. From that follow the header and keep-alive limits, which hyper
//! does not tell apart, and the end of a client that only opens streams to reset them.
//!
//! Hot path: a few atomic adds a request, one relaxed load a read.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::streams::{self, Rest};
use forebay_core::clock::{Clock, Time};
use forebay_fleet::lock::locked;

/// Limits of a connection without a request; `None` is no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleLimits {
    /// From the first byte of a head (of a connection, before the first request) to its end.
    pub(super) header: Option<Duration>,
    /// Between two requests.
    pub(super) keep_alive: Option<Duration>,
}

/// The state, shared by a connection's I/O, its requests and its watcher.
pub(super) struct ConnState {
    clock: Clock,
    active: AtomicUsize,
    idle_since: AtomicU64,
    /// The time at which the first byte after `idle_since` came; 0 is none yet.
    head_since: AtomicU64,
    served: AtomicBool,
    h2: AtomicBool,
    /// The latest request is to be the last one, as its client says.
    closes: AtomicBool,
    /// The latest answer says that its request was wrong.
    refused: AtomicBool,
    switch: AtomicU8,
    /// Requests of HTTP/2 that are over, and those of them that were reset at once.
    ended: AtomicU32,
    reset: AtomicU32,
    /// Connections that were handed over to another protocol, and are still open.
    handed_over: AtomicUsize,
    /// Woken when one of them is closed.
    handed_back: Notify,
    /// Woken when most of very many requests were reset at once.
    abused: Notify,
}

/// A request that its client gives up sooner than this was reset at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Requests of a connection until their resets are judged. As Envoy has it (`overload.premature_reset_total_stream_count`): a
/// connection more than half of whose streams were reset within a second is closed then.
const JUDGED_AT: u32 = 500;

/// No request has asked for another protocol.
const UNASKED: u8 = 0;
/// One has, and hyper's connection cannot be handed over yet.
const ASKED: u8 = 1;
/// It can.
const SWITCHABLE: u8 = 2;

impl ConnState {
    pub(super) fn new(clock: Clock) -> Arc<ConnState> {
        let now = clock.now().as_micros();
        Arc::new(ConnState {
            clock,
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(now),
            head_since: AtomicU64::new(0),
            served: AtomicBool::new(false),
            h2: AtomicBool::new(false),
            closes: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            switch: AtomicU8::new(UNASKED),
            ended: AtomicU32::new(0),
            reset: AtomicU32::new(0),
            handed_over: AtomicUsize::new(0),
            handed_back: Notify::new(),
            abused: Notify::new(),
        })
    }

    /// A request began; it is over when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, h2: bool) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.h2.store(h2, Ordering::Relaxed);
        let begun = h2.then(|| self.clock.now());
        Active { state: Arc::clone(self), begun, whole: false }
    }

    /// Notes whether the client takes no answer after that of its latest request.
    pub(super) fn set_closes(&self, closes: bool) {
        self.closes.store(closes, Ordering::Relaxed);
    }

    /// Returns what was noted last.
    pub(super) fn closes(&self) -> bool {
        self.closes.load(Ordering::Relaxed)
    }

    /// Returns whether the latest answer said that its request was wrong. Its client may still be sending that.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// A request asks for another protocol. Waits until the connection can be handed over; its task polls again as soon as it can.
    pub(super) async fn switch(&self) {
        _ = self.switch.compare_exchange(UNASKED, ASKED, Ordering::Relaxed, Ordering::Relaxed);
        let can = || self.switch.load(Ordering::Relaxed) == SWITCHABLE;
        poll_fn(|_| if can() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Returns whether a request waits for that.
    pub(super) fn asks_to_switch(&self) -> bool {
        self.switch.load(Ordering::Relaxed) == ASKED
    }

    /// The connection can be handed over.
    pub(super) fn may_switch(&self) {
        self.switch.store(SWITCHABLE, Ordering::Relaxed);
    }

    /// The connection is handed over to another protocol; it is over when the guard is dropped.
    pub(super) fn hand_over(self: &Arc<Self>) -> HandedOver {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
        HandedOver(Arc::clone(self))
    }

    /// Returns whether the connection goes on in another protocol.
    pub(super) fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire) > 0
    }

    /// Waits until the connection no longer goes on in another protocol.
    pub(super) async fn handed_back(&self) {
        while self.handed_over.load(Ordering::Acquire) > 0 {
            // The one that closes leaves a permit, so that none is missed between the look and the wait.
            self.handed_back.notified().await;
        }
    }

    /// Waits until the client has reset most of very many requests at once.
    pub(super) async fn abused(&self) {
        self.abused.notified().await;
    }

    /// A request of HTTP/2 is over; whether it was reset at once.
    fn ended(&self, at_once: bool) {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        let reset = self.reset.fetch_add(u32::from(at_once), Ordering::Relaxed) + u32::from(at_once);
        if at_once && ended >= JUDGED_AT && reset > ended / 2 {
            self.abused.notify_one();
        }
    }

    /// Returns whether its requests are of HTTP/2.
    pub(super) fn is_h2(&self) -> bool {
        self.h2.load(Ordering::Relaxed)
    }

    /// Returns the time since which there is no request on it; `None` while there is.
    pub(super) fn idle_since(&self) -> Option<Time> {
        let idle = self.active.load(Ordering::Relaxed) == 0;
        idle.then(|| Time::from_micros(self.idle_since.load(Ordering::Relaxed)))
    }

    /// Bytes came.
    pub(super) fn on_bytes(&self) {
        if self.active.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.clock.now().as_micros().max(1), Ordering::Relaxed);
        }
    }

    /// Returns whether a request of HTTP/1.1 is under way.
    pub(super) fn is_busy_h1(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0 && !self.h2.load(Ordering::Relaxed)
    }

    /// Returns whether any request came on it.
    pub(super) fn was_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Returns how long the connection may still live without a request; `None` while it has one or has no limit.
    pub(super) fn left(&self, limits: IdleLimits) -> Option<Duration> {
        if self.active.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let idle = Time::from_micros(self.idle_since.load(Ordering::Relaxed));
        let head = self.head_since.load(Ordering::Relaxed);
        let served = self.served.load(Ordering::Relaxed);
        // An idle h2 connection may well get frames that begin no request.
        let due = if served && (head == 0 || self.h2.load(Ordering::Relaxed)) {
            limits.keep_alive.map(|limit| idle + limit)
        } else {
            limits.header.map(|limit| if head == 0 { idle } else { Time::from_micros(head) } + limit)
        };
        due.map(|due| due.since(self.clock.now()))
    }
}

/// A connection that goes on in another protocol, such as a WebSocket.
pub(super) struct HandedOver(Arc<ConnState>);

impl Drop for HandedOver {
    fn drop(&mut self) {
        self.0.handed_over.fetch_sub(1, Ordering::Release);
        self.0.handed_back.notify_one();
    }
}

/// A request under way on a connection.
pub(super) struct Active {
    state: Arc<ConnState>,
    /// The time at which it began, if it is one of HTTP/2.
    begun: Option<Time>,
    /// Its answer was given whole.
    whole: bool,
}

impl Active {
    /// Notes the status of its answer.
    pub(super) fn answered(&self, status: StatusCode) {
        self.state.refused.store(status.is_client_error(), Ordering::Relaxed);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let now = self.state.clock.now();
        if let Some(begun) = self.begun {
            self.state.ended(!self.whole && now.since(begun) < AT_ONCE);
        }
        self.state.head_since.store(0, Ordering::Relaxed);
        self.state.idle_since.store(now.as_micros(), Ordering::Relaxed);
        self.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body that keeps its request under way until it is sent or dropped. Over HTTP/2 it gives what [`super::streams`] needs
/// to see a client that takes nothing.
pub(super) struct Counted<B: Body> {
    /// None once it is the keeper's.
    answer: Option<AnswerSoFar<B>>,
    keeper: Arc<Keeper<B>>,
}

struct AnswerSoFar<B: Body> {
    body: B,
    active: Active,
    rest: Rest,
}

/// Keeps an answer over the end of hyper's side of its connection, which drops it.
pub(super) struct Keeper<B: Body>(Mutex<Kept<B>>);

enum Kept<B: Body> {
    Nothing,
    /// The one that is dropped next is wanted.
    Wanted,
    Answer(AnswerSoFar<B>),
}

impl<B: Body> Keeper<B> {
    /// The keeper of one connection's answers.
    pub(super) fn new() -> Arc<Keeper<B>> {
        Arc::new(Keeper(Mutex::new(Kept::Nothing)))
    }

    /// Keeps the answer that is dropped next.
    pub(super) fn want(&self) {
        *locked(&self.0) = Kept::Wanted;
    }

    /// The answer that was kept.
    pub(super) fn take(self: &Arc<Self>) -> Option<Counted<B>> {
        match std::mem::replace(&mut *locked(&self.0), Kept::Nothing) {
            Kept::Answer(answer) => Some(Counted { answer: Some(answer), keeper: Arc::clone(self) }),
            Kept::Nothing | Kept::Wanted => None,
        }
    }
}

impl<B: Body> Counted<B> {
    pub(super) fn new(body: B, active: Active, keeper: Arc<Keeper<B>>) -> Counted<B> {
        Counted { answer: Some(AnswerSoFar { body, active, rest: Rest::default() }), keeper }
    }
}

impl<B: Body> Drop for Counted<B> {
    fn drop(&mut self) {
        let mut kept = locked(&self.keeper.0);
        if let Kept::Wanted = *kept
            && let Some(answer) = self.answer.take()
        {
            *kept = Kept::Answer(answer);
        }
    }
}

impl<B: Body> Drop for AnswerSoFar<B> {
    fn drop(&mut self) {
        self.active.whole |= self.rest.len() == 0 && self.body.is_end_stream();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(answer) = &mut self.answer else { return Poll::Ready(None) };
        if answer.active.begun.is_none() {
            return Pin::new(&mut answer.body).poll_frame(cx);
        }
        if let Some(part) = answer.rest.next() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let frame = match Pin::new(&mut answer.body).poll_frame(cx) {
            Poll::Pending => {
                streams::waits();
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            ended => return ended,
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => {
                let is_last = answer.body.is_end_stream();
                Frame::data(answer.rest.split(data, is_last))
            }
            Err(other) => other,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.as_ref().is_none_or(|answer| answer.rest.len() == 0 && answer.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(answer) = &self.answer else { return SizeHint::with_exact(0) };
        let hint = answer.body.size_hint();
        hint.exact().map_or(hint, |bytes| SizeHint::with_exact(bytes + answer.rest.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::clock::ManualClock;

    const LIMITS: IdleLimits =
        IdleLimits { header: Some(Duration::from_secs(10)), keep_alive: Some(Duration::from_secs(75)) };

    #[test]
    fn a_silent_connection_has_the_header_limit_and_an_idle_one_the_keep_alive_limit() {
        let hand = ManualClock::default();
        let state = ConnState::new(hand.clock());
        assert_eq!(state.left(LIMITS), Some(Duration::from_secs(10)));
        let request = state.begin(false);
        assert_eq!(state.left(LIMITS), None);
        hand.advance(Duration::from_secs(100));
        drop(request);
        assert_eq!(state.left(LIMITS), Some(Duration::from_secs(75)));
    }

    #[test]
    fn a_slow_head_has_the_header_limit_from_its_first_byte() {
        let hand = ManualClock::default();
        let state = ConnState::new(hand.clock());
        drop(state.begin(false));
        hand.advance(Duration::from_secs(5));
        state.on_bytes();
        hand.advance(Duration::from_secs(4));
        state.on_bytes();
        assert_eq!(state.left(LIMITS), Some(Duration::from_secs(6)));
    }
}
