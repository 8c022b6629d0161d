//! Who waits in a pool's wait room, and what is told to them once there is room. Behind the pool's gate.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::placed::Placed;
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Refusal;
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::routing::policy::Policy;
use forebay_core::routing::split::Session;
use forebay_core::routing::wait_room::WaitRoom;
use forebay_core::units::BackendId;

/// The answer to a waiter.
pub(crate) type Answer<P> = Result<Placed<P>, Refusal>;

/// The facts that the room keeps of a request.
#[derive(Debug)]
pub(crate) struct Waiter<P> {
    pub(crate) facts: RequestFacts,
    pub(crate) tried: Vec<BackendId>,
    pub(crate) session: Option<Session>,
    pub(crate) explain: bool,
    pub(crate) trial: Option<&'static dyn Policy>,
    /// The name of its arm: places change with the configuration.
    pub(crate) arm: Arc<str>,
    pub(crate) since: Time,
    pub(crate) clock: Clock,
    pub(crate) rng: fastrand::Rng,
    pub(crate) answer: oneshot::Sender<Answer<P>>,
}

/// The wait room, behind its pool's gate.
#[derive(Debug)]
pub(crate) struct Waiters<P> {
    pub(crate) queue: WaitRoom<Waiter<P>>,
    /// Kept free for one that needs more room than there is, so that smaller ones do not overtake it for ever.
    pub(crate) held: Vec<BackendId>,
    /// The pool as last configured: decides for everyone here. Weak, since a pool owns its gate.
    pub(crate) pool: Weak<P>,
    /// Time at which a back-off ends that someone waits for.
    pub(crate) look_at: Option<Time>,
}

/// The wait room in numbers.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct WaiterCounts {
    by_arm: Vec<(ArmIndex, u32)>,
    pub(crate) lanes: usize,
    pub(crate) longest: Option<Duration>,
    /// Backends kept free for one that waits.
    pub(crate) held: Vec<BackendId>,
}

impl WaiterCounts {
    /// Requests that wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.by_arm.iter().map(|(_, count)| count).sum()
    }

    /// Those assigned to this arm.
    pub(crate) fn waiting_for(&self, arm: ArmIndex) -> u32 {
        self.by_arm.iter().filter(|(of, _)| *of == arm).map(|(_, count)| count).sum()
    }
}

impl<P> Default for Waiters<P> {
    fn default() -> Waiters<P> {
        Waiters { queue: WaitRoom::default(), held: Vec::new(), pool: Weak::new(), look_at: None }
    }
}

impl<P> Waiters<P> {
    /// Returns whether a backend is kept free for another.
    pub(crate) fn holds(&self, id: BackendId) -> bool {
        self.held.contains(&id)
    }

    /// The backends that are kept for somebody.
    pub(crate) fn held(&self) -> &[BackendId] {
        &self.held
    }

    /// Returns whether the pool was replaced by a later one since `pool` was read.
    pub(crate) fn is_past(&self, pool: &P) -> bool {
        // By address: two pools of one model differ in nothing else that is sure.
        !std::ptr::eq(self.pool.as_ptr(), pool)
    }

    pub(crate) fn is_due(&self, now: Time) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    pub(crate) fn view(&self, now: Time) -> WaiterCounts {
        let mut view = WaiterCounts { lanes: self.queue.lanes(), held: self.held.clone(), ..WaiterCounts::default() };
        for waiter in self.queue.iter() {
            // The head of a lane is not always who came first, so all are looked at. No request waits for this.
            let waits = now.since(waiter.since);
            view.longest = Some(view.longest.map_or(waits, |longest| longest.max(waits)));
            match view.by_arm.iter_mut().find(|(arm, _)| *arm == waiter.facts.arm) {
                Some((_, count)) => *count += 1,
                None => view.by_arm.push((waiter.facts.arm, 1)),
            }
        }
        view
    }
}

/// The state in which a request found the backends full.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Full {
    /// The emptiest of its backends, where it needs more room than one sequence does.
    pub(crate) emptiest: Option<BackendId>,
    /// Time at which the first back-off of one with room ends.
    pub(crate) look_at: Option<Time>,
}

impl<P> Waiters<P> {
    /// Takes down what one that stays found.
    pub(crate) fn note(&mut self, full: Full) {
        // Only a request of several sequences names one: it is kept free until the request fits.
        self.held.extend(full.emptiest);
        self.look_at = match (self.look_at, full.look_at) {
            // The first back-off that ends may make room.
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Answers to waiters. Delivered once the gate is open: a waiter that is gone gives its place back through it.
#[must_use = "a waiter that is not told stays for ever"]
pub(crate) struct Served<P> {
    pub(crate) answers: Vec<(Waiter<P>, Answer<P>)>,
    /// Not to be dropped under the gate: it may be the last holder of backends.
    pub(crate) _pool: Option<Arc<P>>,
}

impl<P> Served<P> {
    pub(crate) fn none() -> Served<P> {
        Served { answers: Vec::new(), _pool: None }
    }

    /// Tells the waiters.
    pub(crate) fn deliver(self) {
        // Nearly every change finds nobody waiting.
        if self.answers.is_empty() {
            return;
        }
        for (waiter, answer) in self.answers {
            // One that is gone drops its place here.
            drop(waiter.answer.send(answer));
        }
    }
}
