//! A waker of its own for futures of a task that are seldom ready: timers, cancellation. They are polled when one of them woke the
//! task, and not whenever it is polled for something else.
//!
//! Hot path: one registration and one load a poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// The waker.
pub(super) struct Bell {
    state: Arc<State>,
    waker: Waker,
}

struct State {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Bell {
    /// One that rings once from the beginning, so that what it is for is polled at first.
    pub(super) fn new() -> Bell {
        let state = Arc::new(State { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&state));
        Bell { state, waker }
    }

    /// Returns the waker to poll with, if it has rung since it was last asked.
    pub(super) fn rang(&self, cx: &Context<'_>) -> Option<Waker> {
        // Before the look: a ring after it wakes this task.
        self.state.task.register(cx.waker());
        // A plain load first: the swap writes to a cache line that other threads ring, and most polls find nothing.
        let rung = self.state.rung.load(Ordering::Acquire) && self.state.rung.swap(false, Ordering::AcqRel);
        rung.then(|| self.waker.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn what_is_rare_is_polled_at_first_and_when_it_rang() {
        let (bell, woken) = (Bell::new(), Arc::new(Woken::default()));
        let task = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&task);
        let first = bell.rang(&cx).expect("it rings once at first");
        assert!(bell.rang(&cx).is_none() && !woken.0.load(Ordering::Acquire));
        first.wake();
        assert!(woken.0.load(Ordering::Acquire), "the task is woken");
        assert!(bell.rang(&cx).is_some() && bell.rang(&cx).is_none());
    }
}
