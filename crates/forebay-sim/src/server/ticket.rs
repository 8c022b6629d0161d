//! A request in the engine, as the task that answers it sees it. Whoever drops a [`Ticket`] before the end aborts its request
//! at once. A token costs one atomic store and one wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::engine::{Event, RequestId};

const FINISHED: u32 = 1 << 31;

/// The progress of a request, shared between the engine's task and the one that answers.
#[derive(Debug)]
pub(super) struct Progress {
    waker: AtomicWaker,
    /// Tokens of each choice, with [`FINISHED`] once there are no more.
    choices: Box<[AtomicU32]>,
    cached: AtomicU32,
    each_token: bool,
    /// The engine died with this request in it.
    dead: AtomicBool,
}

impl Progress {
    /// Takes in what the engine did for a choice.
    pub(super) fn advance(&self, choice: usize, event: &Event) {
        self.cached.store(event.cached_tokens, Ordering::Relaxed);
        let mark = if event.finished { event.tokens | FINISHED } else { event.tokens };
        self.choices[choice].store(mark, Ordering::Release);
        if self.each_token || event.finished {
            self.waker.wake();
        }
    }

    /// The engine is gone.
    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The state of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Tokens made.
    pub tokens: u32,
    /// True if there will be no more.
    pub finished: bool,
}

/// A runner of the engine, which takes requests out of it again.
pub(super) trait Aborts: Send + Sync {
    /// Takes these out; what has ended already stays so.
    fn abort(&self, ids: &[RequestId]);
}

/// A request in the engine.
#[must_use = "dropping a Ticket aborts its request"]
pub struct Ticket {
    runner: Arc<dyn Aborts>,
    progress: Arc<Progress>,
    ids: Vec<RequestId>,
}

impl Ticket {
    /// Of a request with so many choices that is not in the engine yet.
    pub(super) fn new(runner: Arc<dyn Aborts>, choices: usize, each_token: bool) -> Ticket {
        let progress = Arc::new(Progress {
            waker: AtomicWaker::new(),
            choices: (0..choices).map(|_| AtomicU32::new(0)).collect(),
            cached: AtomicU32::new(0),
            each_token,
            dead: AtomicBool::new(false),
        });
        Ticket { runner, progress, ids: Vec::new() }
    }

    pub(super) fn add(&mut self, id: RequestId) {
        self.ids.push(id);
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Choices, over all prompts.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.progress.choices.len()
    }

    /// Asks to be woken at the next change. Register first, then read: a change in between wakes.
    pub fn register(&self, context: &Context<'_>) {
        self.progress.waker.register(context.waker());
    }

    /// Returns how a choice stands.
    #[must_use]
    pub fn standing(&self, choice: usize) -> Standing {
        let mark = self.progress.choices[choice].load(Ordering::Acquire);
        Standing { tokens: mark & !FINISHED, finished: mark & FINISHED != 0 }
    }

    /// Tokens of the prompt that were in the prefix cache.
    #[must_use]
    pub fn cached_tokens(&self) -> u32 {
        self.progress.cached.load(Ordering::Relaxed)
    }

    /// Returns whether the engine died before the end.
    #[must_use]
    pub fn dead(&self) -> bool {
        self.progress.dead.load(Ordering::Acquire)
    }

    /// Waits for the end of all choices, or for the engine's death.
    pub async fn finished(&self) {
        std::future::poll_fn(|context| {
            self.register(context);
            if self.dead() {
                return Poll::Ready(());
            }
            let open = (0..self.choices()).any(|choice| !self.standing(choice).finished);
            if open { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.runner.abort(&self.ids);
    }
}
