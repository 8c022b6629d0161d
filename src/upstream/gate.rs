//! The waker of a hyper connection that a task polls. hyper wakes its connection for what the task itself does in a poll: it sends a
//! request, takes a piece of a body. Such a wake becomes another round of the poll under way, and not another poll of the task.
//!
//! Hot path: two atomic writes and one registration a poll.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Rounds of one poll. A task whose share of time is used up is woken at once by whatever it polls, until it yields.
const MOST_ROUNDS: u8 = 8;

/// Nobody polls the connection: a wake is the task's.
const IDLE: u8 = 0;
/// It is being polled, or was polled with a result, after which it is polled again in any case.
const POLLED: u8 = 1;
/// It was woken meanwhile.
const WOKEN: u8 = 2;

thread_local! {
    /// True if a wake came while wakes do not count; none while they do.
    static HELD: Cell<Option<bool>> = const { Cell::new(None) };
}

/// The waker.
pub(crate) struct Gate {
    state: Arc<GateState>,
    waker: Waker,
    yields: bool,
}

struct GateState {
    polled: AtomicU8,
    task: AtomicWaker,
}

impl Wake for GateState {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if HELD.get().is_some() {
            HELD.set(Some(true));
        } else if self.polled.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire) == Err(IDLE) {
            self.task.wake();
        }
    }
}

/// Calls `take`, and returns its value and whether it woke a connection, which does not count then. For what is known to tell hyper
/// no news: the last piece of a body is taken. Wakes of other threads count as ever.
pub(crate) fn held<T>(take: impl FnOnce() -> T) -> (T, bool) {
    struct Hold;
    impl Drop for Hold {
        fn drop(&mut self) {
            // Also after a panic: a thread that went on without wakes would let its connections sleep for ever.
            HELD.set(None);
        }
    }
    HELD.set(Some(false));
    let _hold = Hold;
    let value = take();
    (value, HELD.get().unwrap_or_default())
}

impl Gate {
    /// One for a connection that was not polled yet.
    pub(crate) fn new() -> Gate {
        let state = Arc::new(GateState { polled: AtomicU8::new(IDLE), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&state));
        Gate { state, waker, yields: false }
    }

    /// Polls by `round` until it is ready or nothing woke the connection meanwhile.
    pub(crate) fn poll<T>(&mut self, cx: &Context<'_>, mut round: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let GateState { polled, task } = &*self.state;
        self.yields = false;
        task.register(cx.waker());
        let mut gated = Context::from_waker(&self.waker);
        for _ in 0..MOST_ROUNDS {
            polled.store(POLLED, Ordering::Release);
            if let Poll::Ready(value) = round(&mut gated) {
                return Poll::Ready(value);
            }
            if polled.compare_exchange(POLLED, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        self.yields = true;
        polled.store(IDLE, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns whether the last poll ended for the sake of other tasks, and goes on at once.
    pub(crate) fn yields(&self) -> bool {
        self.yields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once, with as many wakes by itself as `wakes`. Returns the rounds and whether its task was woken.
    fn rounds(wakes: u8, hold: bool) -> (u8, bool) {
        let task = Arc::new(GateState { polled: AtomicU8::new(POLLED), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&task));
        let (mut gate, mut rounds) = (Gate::new(), 0);
        let polled = gate.poll(&Context::from_waker(&waker), |cx| {
            rounds += 1;
            if rounds <= wakes {
                let wake = || cx.waker().wake_by_ref();
                if hold { assert!(held(wake).1) } else { wake() }
            }
            Poll::<()>::Pending
        });
        assert!(polled.is_pending() && gate.yields() == (rounds == MOST_ROUNDS));
        (rounds, task.polled.load(Ordering::Acquire) == WOKEN)
    }

    #[test]
    fn a_wake_in_a_poll_is_another_round_and_not_another_poll() {
        assert_eq!(rounds(0, false), (1, false));
        assert_eq!(rounds(2, false), (3, false));
        assert_eq!(rounds(u8::MAX, false), (MOST_ROUNDS, true), "the task yields");
    }

    #[test]
    fn a_wake_that_is_held_is_none() {
        assert_eq!(rounds(1, true), (1, false));
        let (value, woken) = held(|| 7);
        assert_eq!((value, woken), (7, false));
    }

    #[test]
    fn a_wake_after_a_poll_is_the_tasks() {
        let task = Arc::new(GateState { polled: AtomicU8::new(POLLED), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&task));
        let (mut gate, mut kept) = (Gate::new(), None);
        let polled = gate.poll(&Context::from_waker(&waker), |cx| {
            kept = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        assert!(polled.is_pending() && task.polled.load(Ordering::Acquire) == POLLED);
        kept.into_iter().for_each(Waker::wake);
        assert_eq!(task.polled.load(Ordering::Acquire), WOKEN);
    }
}
