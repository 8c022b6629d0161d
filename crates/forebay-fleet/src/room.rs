//! Who waits in a pool's wait room, and what is told to them once there is room. Behind the pool's gate.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use super::snapshot::Pool;
use super::waiting::Placed;
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Refusal;
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::routing::policy::Policy;
use forebay_core::routing::wait_room::WaitRoom;
use forebay_core::units::BackendId;

/// What a waiter is told.
pub(super) type Answer = Result<Placed, Refusal>;

/// What the room knows of a request.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) facts: RequestFacts,
    pub(super) tried: Vec<BackendId>,
    pub(super) session: Option<Arc<str>>,
    pub(super) explain: bool,
    pub(super) trial: Option<&'static dyn Policy>,
    /// The name of its arm: places change with the configuration.
    pub(super) arm: Arc<str>,
    pub(super) since: Time,
    pub(super) clock: Clock,
    pub(super) rng: fastrand::Rng,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The room, behind its pool's gate.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) queue: WaitRoom<Waiter>,
    /// Kept free for one that needs more room than there is, so that smaller ones do not overtake it for ever.
    pub(super) held: Vec<BackendId>,
    /// The pool as last configured: decides for everyone here. Weak, since a pool owns its gate.
    pub(super) pool: Weak<Pool>,
    /// When a back-off ends that someone waits for.
    pub(super) look_at: Option<Time>,
}

/// The wait room in numbers.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct RoomView {
    by_arm: Vec<(ArmIndex, u32)>,
    pub(super) lanes: usize,
    pub(super) longest: Option<Duration>,
    /// Backends kept free for one that waits.
    pub(super) held: Vec<BackendId>,
}

impl RoomView {
    /// Requests that wait.
    pub(super) fn waiting(&self) -> u32 {
        self.by_arm.iter().map(|(_, count)| count).sum()
    }

    /// Those assigned to this arm.
    pub(super) fn waiting_for(&self, arm: ArmIndex) -> u32 {
        self.by_arm.iter().filter(|(of, _)| *of == arm).map(|(_, count)| count).sum()
    }
}

impl Room {
    /// Whether a backend is kept free for another.
    pub(super) fn holds(&self, id: BackendId) -> bool {
        self.held.contains(&id)
    }

    /// The backends that are kept for somebody.
    pub(super) fn held(&self) -> &[BackendId] {
        &self.held
    }

    /// Whether the pool was replaced by a later one since `pool` was read.
    pub(super) fn is_past(&self, pool: &Pool) -> bool {
        !std::ptr::eq(self.pool.as_ptr(), pool)
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    pub(super) fn view(&self, now: Time) -> RoomView {
        let mut view = RoomView { lanes: self.queue.lanes(), held: self.held.clone(), ..RoomView::default() };
        for waiter in self.queue.iter() {
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

/// What a request found full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Full {
    /// The emptiest of its backends, where it needs more room than one sequence does.
    pub(super) emptiest: Option<BackendId>,
    /// When the first back-off of one with room ends.
    pub(super) look_at: Option<Time>,
}

impl Room {
    /// Takes down what one that stays found.
    pub(super) fn note(&mut self, full: Full) {
        self.held.extend(full.emptiest);
        self.look_at = match (self.look_at, full.look_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Answers to waiters. Delivered once the gate is open: a waiter that is gone gives its place back through it.
#[must_use = "a waiter that is not told stays for ever"]
#[derive(Default)]
pub(super) struct Served {
    pub(super) answers: Vec<(Waiter, Answer)>,
    /// Not to be dropped under the gate: it may be the last holder of backends.
    pub(super) _pool: Option<Arc<Pool>>,
}

impl Served {
    pub(super) fn none() -> Served {
        Served::default()
    }

    /// Tells the waiters.
    pub(super) fn deliver(self) {
        for (waiter, answer) in self.answers {
            // One that is gone drops its place here.
            drop(waiter.answer.send(answer));
        }
    }
}
