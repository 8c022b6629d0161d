//! The wait room of a pool whose backends have a limit: who finds every eligible backend full waits here and is bound to one
//! as late as there is room, by the policy, under the gate. Whatever may make room (a ticket's end, a change of health, of a
//! back-off, of the configuration) goes through [`Gate::serve_waiters`] before the gate opens. So nobody is overtaken or woken in vain.
//!
//! Hot path: one comparison where nobody waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::Pool;
use super::dispatch::Sought;
use super::gate::{Decides, Gate, Round};
use super::placed::Placed;
use super::room::{Answer, Full, Served, Waiter};
use crate::locked;
use crate::telemetry::labels::Panicked;
use forebay_core::clock::{Clock, Time};
use forebay_core::error::Refusal;
use forebay_core::routing::decide::Query;
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::routing::policy::Policy;
use forebay_core::routing::split::Session;
use forebay_core::routing::wait_room::{Entered, LaneKey, Place, Step};
use forebay_core::units::BackendId;

/// A request that wants a backend, and would wait for one.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The facts that routing weighs it by.
    pub facts: &'a RequestFacts,
    /// The backends that it has tried, and those that do not serve what it asks for.
    pub tried: &'a [BackendId],
    /// It has tried none.
    pub first: bool,
    /// Its session, for its arm if the one it was assigned to leaves the configuration.
    pub session: Option<&'a Session>,
    /// With whom it takes turns.
    pub lane: LaneKey,
    /// Somebody wants to know which rows were considered.
    pub explain: bool,
    /// It has waited before, and so stands in front of its lane.
    pub again: bool,
    /// Another policy than the pool's, to try it out.
    pub trial: Option<&'static dyn Policy>,
    /// The source of its time: whoever makes room may have none.
    pub clock: &'a Clock,
}

/// The result of asking for admission.
#[derive(Debug)]
pub enum Admission {
    /// It has a backend.
    Placed(Placed<Pool>),
    /// Every backend is full: it waits.
    Waiting(Waiting),
}

/// A request in the wait room. Dropping it leaves the room.
#[derive(Debug)]
#[must_use = "dropping it leaves the wait room"]
pub struct Waiting {
    gate: Arc<Mutex<Gate<Pool>>>,
    place: Place,
    answer: oneshot::Receiver<Answer<Pool>>,
}

impl Waiting {
    /// Waits for a backend; may be dropped and called again.
    ///
    /// # Errors
    /// It had to make place for another session, or there is no backend any more that may have it.
    pub async fn placed(&mut self) -> Result<Placed<Pool>, Refusal> {
        (&mut self.answer).await.unwrap_or(Err(Refusal::Internal))
    }

    /// Looks whether time has made room: a back-off ends without anybody's doing.
    pub fn look(&self, now: Time) {
        let mut gate = locked(&self.gate);
        let served = if gate.room.is_due(now) { gate.serve_waiters() } else { Served::none() };
        drop(gate);
        served.deliver();
    }
}

impl Drop for Waiting {
    /// Leaves the room. A request that was served at this very moment has its place in `answer`, which gives it back.
    fn drop(&mut self) {
        let mut gate = locked(&self.gate);
        let left = gate.room.queue.leave(self.place);
        // It may have held a backend for itself.
        let served = if left.is_some() { gate.serve_waiters() } else { Served::none() };
        drop(gate);
        served.deliver();
    }
}

impl Decides for Pool {
    fn has_room(&self, gate: &Gate<Pool>) -> bool {
        self.members.iter().any(|member| !gate.room.holds(member.backend.id) && self.fits(gate, member, 1))
    }

    fn look(
        self: &Arc<Pool>,
        gate: &mut Gate<Pool>,
        round: &mut Round,
        waiter: &mut Waiter<Pool>,
    ) -> Step<Answer<Pool>> {
        let sequences = waiter.facts.engine_sequences();
        // Those that have tried nothing and are free to go anywhere find what others like them found.
        let alike = waiter.tried.is_empty() && waiter.facts.pinned.is_none();
        if alike && round.full_for.iter().any(|(arm, most)| *arm == waiter.facts.arm && *most <= sequences) {
            return Step::Pass;
        }
        let now = waiter.clock.now();
        // A policy that panics costs one request its place, and not those behind it, nor, in a drop, the process.
        let sought = catch_unwind(AssertUnwindSafe(|| {
            let query = Query { facts: &waiter.facts, tried: &waiter.tried, now };
            self.seek_traced(gate, query, &mut waiter.rng, waiter.trial, waiter.explain)
        }));
        let answer = match sought {
            Ok(Sought::Placed(dispatched)) => Ok(Placed { dispatched, pool: Some(Arc::clone(self)) }),
            Ok(Sought::Nowhere) => Err(Refusal::NoBackend(self.model.clone())),
            Ok(Sought::Full(full)) => {
                gate.room.note(full);
                if alike {
                    // Those behind it that need as much would find the same. In a long queue this turns a decision
                    // each into a comparison.
                    round.full_for.push((waiter.facts.arm, sequences));
                }
                round.has_room = self.has_room(gate);
                return Step::Pass;
            }
            Err(_) => {
                self.telemetry.process.panicked(Panicked::Decision);
                Err(Refusal::Internal)
            }
        };
        round.has_room = self.has_room(gate);
        Step::Serve(answer)
    }
}

impl Pool {
    /// Chooses a backend for the request, or lets it wait for one. The pool as it is now decides, where that is a later one.
    ///
    /// # Errors
    /// `Refusal::NoBackend` if no backend may have it, `Refusal::WaitRoomFull` if every one is full and the wait room too.
    pub fn dispatch_or_wait(self: &Arc<Self>, ask: Ask<'_>, rng: &mut fastrand::Rng) -> Result<Admission, Refusal> {
        let mut gate = locked(&self.gate);
        if gate.room.is_past(self)
            && let Some(later) = gate.room.pool.upgrade()
        {
            drop(gate);
            // The request was read under the old configuration. Its arm is found again by name, since places may have
            // moved.
            let arm = later.arm_of(&self.arm_name(ask.facts.arm), ask.session, rng);
            let facts = RequestFacts { arm, ..ask.facts.clone() };
            let mut admission = later.dispatch_or_wait(Ask { facts: &facts, ..ask }, rng)?;
            if let Admission::Placed(placed) = &mut admission {
                placed.pool.get_or_insert(later);
            }
            return Ok(admission);
        }
        let now = ask.clock.now();
        if gate.room.is_due(now) {
            // Time made room for some who were here before.
            let served = gate.serve_waiters();
            drop(gate);
            served.deliver();
            gate = locked(&self.gate);
        }
        self.arrive(&mut gate, ask.first);
        match self.seek_traced(
            &mut gate,
            Query { facts: ask.facts, tried: ask.tried, now },
            rng,
            ask.trial,
            ask.explain,
        ) {
            Sought::Placed(dispatched) => Ok(Admission::Placed(Placed { dispatched, pool: None })),
            Sought::Nowhere => Err(Refusal::NoBackend(self.model.clone())),
            Sought::Full(full) => self.wait(gate, ask, full, rng.fork(), now).map(Admission::Waiting),
        }
    }

    fn wait(
        &self,
        mut gate: MutexGuard<'_, Gate<Pool>>,
        ask: Ask<'_>,
        full: Full,
        rng: fastrand::Rng,
        now: Time,
    ) -> Result<Waiting, Refusal> {
        if gate.room.pool.strong_count() == 0 {
            // The pool has left the configuration: nobody would call.
            return Err(Refusal::NoBackend(self.model.clone()));
        }
        // A displaced waiter is told what a newcomer is told that finds no room.
        let refused = || Refusal::WaitRoomFull(self.model.clone());
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter {
            facts: ask.facts.clone(),
            tried: ask.tried.to_vec(),
            session: ask.session.cloned(),
            explain: ask.explain,
            trial: ask.trial,
            arm: self.arm_name(ask.facts.arm),
            since: now,
            clock: ask.clock.clone(),
            rng,
            answer: sender,
        };
        let entered = gate.room.queue.enter(ask.lane, waiter, ask.again, self.wait_room.size);
        let Entered::At(place, displaced) = entered else { return Err(refused()) };
        gate.room.note(full);
        drop(gate);
        // The room had to give up one of a longer lane, which is told at once.
        if let Some(waiter) = displaced {
            // A receiver that is gone is a client that left at this very moment.
            drop(waiter.answer.send(Err(refused())));
        }
        Ok(Waiting { gate: Arc::clone(&self.gate), place, answer })
    }

    fn arm_name(&self, arm: ArmIndex) -> Arc<str> {
        self.arm(arm).map_or_else(|| Arc::from(""), |arm| Arc::clone(&arm.name))
    }

    /// The place of the arm of this name; where there is none any more, that of the arm which the session now belongs to.
    fn arm_of(&self, name: &str, session: Option<&Session>, rng: &mut fastrand::Rng) -> ArmIndex {
        let same = (0_u16..).zip(&self.arms).find(|(_, arm)| &*arm.name == name);
        same.map_or_else(|| self.split.assign_kept(session, rng), |(place, _)| ArmIndex(place))
    }

    /// This pool decides from now on for everyone in the wait room.
    pub(crate) fn take_over(self: &Arc<Self>) {
        let mut gate = locked(&self.gate);
        // Weak, since the gate outlives the pools of one model: the snapshot alone decides how long a pool lives.
        gate.room.pool = Arc::downgrade(self);
        for waiter in gate.room.queue.iter_mut() {
            // An arm that was renamed or removed must not keep its waiters for ever.
            waiter.facts.arm = self.arm_of(&waiter.arm, waiter.session.as_ref(), &mut waiter.rng);
            waiter.arm = self.arm_name(waiter.facts.arm);
        }
        // All are looked at, also without room: some may have no backend left to wait for, and must be told.
        let served = gate.serve(true);
        drop(gate);
        served.deliver();
    }
}

/// The pool of this gate has left the configuration: nobody waits for it any more.
pub(crate) fn close(gate: &Mutex<Gate<Pool>>, model: &str) {
    let room = std::mem::take(&mut locked(gate).room);
    let mut queue = room.queue;
    for (waiter, ()) in queue.serve(|_| Step::Serve(())) {
        drop(waiter.answer.send(Err(Refusal::NoBackend(model.to_owned()))));
    }
}
