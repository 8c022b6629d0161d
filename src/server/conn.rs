//! What is known of one client connection besides its bytes: how many requests are under way, since when none is, and
//! since when a head is being read. From that follow the header and keep-alive limits, which hyper does not tell apart.
//!
//! Hot path: two atomic adds a request, one relaxed load a read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use forebay_core::clock::{Clock, Time};

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
    /// When the first byte after `idle_since` came; 0 is none yet.
    head_since: AtomicU64,
    served: AtomicBool,
    h2: AtomicBool,
}

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
        })
    }

    /// A request began; it is over when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, h2: bool) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.h2.store(h2, Ordering::Relaxed);
        Active(Arc::clone(self))
    }

    /// Bytes came.
    pub(super) fn on_bytes(&self) {
        if self.active.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.clock.now().as_micros().max(1), Ordering::Relaxed);
        }
    }

    /// Whether a request of HTTP/1.1 is under way.
    pub(super) fn is_busy_h1(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0 && !self.h2.load(Ordering::Relaxed)
    }

    /// Whether any request came on it.
    pub(super) fn was_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// How long the connection may still live without a request; `None` while it has one or has no limit.
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

/// A request under way on a connection.
pub(super) struct Active(Arc<ConnState>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.head_since.store(0, Ordering::Relaxed);
        self.0.idle_since.store(self.0.clock.now().as_micros(), Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body that keeps its request under way until it is sent or dropped.
pub(super) struct Counted<B> {
    body: B,
    _active: Active,
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, active: Active) -> Counted<B> {
        Counted { body, _active: active }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
