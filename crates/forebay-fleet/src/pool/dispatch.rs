//! Pick and dispatch as one critical section under the pool's gate: the next pick sees this one's load, so simultaneous
//! requests never herd. Exact; anything cleverer must be measured first.
//!
//! Hot path: no allocation, since the gate keeps the rows from one decision to the next. `cargo bench --bench routing` prints what a
//! decision costs, with and without a known prefix.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::backend::Backend;
use super::gate::{Gate, Slots};
use super::placed::Dispatched;
use super::room::Full;
use super::ticket::Ticket;
use super::{Member, Pool};
use crate::load::lease::LeaseRequest;
use crate::locked;
use forebay_core::clock::Time;
use forebay_core::error::Refusal;
use forebay_core::routing::affinity::{self, Sent};
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::cost;
use forebay_core::routing::decide::{Aside, Buffers, Decided, PoolRules, Query, decide};
use forebay_core::routing::decision::{Decision, Trace};
use forebay_core::routing::explain::{Explained, explain};
use forebay_core::routing::facts::{Kind, RequestFacts};
use forebay_core::routing::policy::Policy;
use forebay_core::routing::rows::Loads;
use forebay_core::routing::wait_room::fits;
use forebay_core::units::BackendId;

/// Sequences that an engine is taken to run at once where nothing is known: vLLM's default of `--max-num-seqs` (1024 on a large GPU,
/// which is learned once others wait there).
const USUAL_RUNNING_LIMIT: u32 = 256;

/// The result of a look for a backend.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "taken apart where it is made; a box would cost each decision an allocation"
)]
pub(crate) enum Sought {
    /// A place on one.
    Placed(Dispatched),
    /// Those that may have the request are at their limit.
    Full(Full),
    /// There is none that may have it.
    Nowhere,
}

/// The loads of a pool's members as of one moment.
struct LoadsNow<'a> {
    members: &'a [Member],
    slots: &'a Slots,
    mean_prompt: f64,
    now: Time,
    /// Now, in the pool's time.
    lived: Time,
}

impl Loads for LoadsNow<'_> {
    fn slot(&self, member: u16) -> usize {
        self.members[usize::from(member)].backend.load.slot()
    }

    fn row(&self, member: u16) -> Candidate {
        let backend = &self.members[usize::from(member)].backend;
        self.slots.get(backend.load.slot()).row(backend.id, member, self.mean_prompt, self.now, self.lived)
    }

    fn changed_since(&self, change: u64) -> Option<&[usize]> {
        self.slots.changed_since(change)
    }

    fn next_change(&self) -> u64 {
        self.slots.next_change()
    }
}

impl Pool {
    /// Chooses a backend that is not among `tried` and takes a place on it, or says at once that there is none. With `tried`
    /// empty it is a request's first attempt, which pays into the retry budget.
    ///
    /// # Errors
    /// `Refusal::NoBackend` if no backend may have the request: all drained, or tried, or the pinned one gone.
    /// `Refusal::WaitRoomFull` if those that may are at their limit.
    pub fn dispatch(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<Dispatched, Refusal> {
        self.dispatch_with(Query { facts, tried, now }, rng, Aside::default())
    }

    /// Dispatches, and takes the rows that were considered down in `trace`.
    ///
    /// # Errors
    /// As `dispatch`.
    pub fn dispatch_traced(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
        trace: &mut Trace,
    ) -> Result<Dispatched, Refusal> {
        self.dispatch_with(Query { facts, tried, now }, rng, Aside { trace: Some(trace), ..Aside::default() })
    }

    /// Dispatches under another policy, and with rows that `alter` changed before it saw them: the way to ask what a policy or
    /// a term of the prediction is worth. What is decided and remembered rests on the altered rows throughout.
    ///
    /// # Errors
    /// As `dispatch`.
    pub fn dispatch_trial(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
        policy: &dyn Policy,
        mut alter: impl FnMut(&mut [Candidate]),
    ) -> Result<Dispatched, Refusal> {
        let aside = Aside { policy: Some(policy), alter: Some(&mut alter), trace: None };
        self.dispatch_with(Query { facts, tried, now }, rng, aside)
    }

    fn dispatch_with(
        &self,
        query: Query<'_>,
        rng: &mut fastrand::Rng,
        aside: Aside<'_>,
    ) -> Result<Dispatched, Refusal> {
        let mut gate = locked(&self.gate);
        self.arrive(&mut gate, query.tried.is_empty());
        match self.seek(&mut gate, query, rng, aside) {
            Sought::Placed(dispatched) => Ok(dispatched),
            Sought::Nowhere => Err(Refusal::NoBackend(self.model.clone())),
            // Nobody waits on this way in, so that the time of the next look is of no use.
            Sought::Full(_) => Err(Refusal::WaitRoomFull(self.model.clone())),
        }
    }

    /// Returns the backend that a request would get now, without taking a place on it; none where nobody may have it, or has room.
    #[must_use]
    pub fn preview(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Option<Arc<Backend>> {
        let mut gate = locked(&self.gate);
        let gate = &mut *gate;
        let mut rows = gate.take_rows(facts.arm);
        let decided = {
            let loads = self.loads(&gate.slots, gate.mean_prompt(now), gate.pace.lived(now), now);
            let buffers = Buffers { admitted: &mut gate.admitted, rows: &mut rows, affinity: &mut gate.affinity };
            let query = Query { facts, tried, now };
            decide(self.rules(gate.room.held(), &gate.slots, facts), query, &loads, buffers, rng, Aside::default())
        };
        let member = match decided {
            Decided::Row(index, _) => Some(rows.as_slice()[index].member),
            Decided::Full(_) | Decided::Nowhere => None,
        };
        rows.finish();
        gate.put_back(facts.arm, rows);
        member.map(|member| Arc::clone(&self.members[usize::from(member)].backend))
    }

    /// Returns where a request would go now, and how every member stands, without taking a place. `matched` supposes so many tokens of
    /// its prompt in a backend's cache, in place of what is expected there.
    #[must_use]
    pub fn explain(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        matched: &[(BackendId, u32)],
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Explained {
        let mut gate = locked(&self.gate);
        let gate = &mut *gate;
        let mut rows = gate.take_rows(facts.arm);
        let mut suppose = |rows: &mut [Candidate]| {
            for row in rows.iter_mut() {
                if let Some((_, tokens)) = matched.iter().find(|(id, _)| *id == row.id) {
                    row.matched = (*tokens).min(facts.est_tokens);
                }
            }
            // What the others would compute in vain depends on who has the most, so a supposed figure changes every
            // row.
            if !matched.is_empty() {
                affinity::compare(rows);
            }
        };
        let explained = {
            let loads = self.loads(&gate.slots, gate.mean_prompt(now), gate.pace.lived(now), now);
            let buffers = Buffers { admitted: &mut gate.admitted, rows: &mut rows, affinity: &mut gate.affinity };
            let query = Query { facts, tried, now };
            explain(self.rules(gate.room.held(), &gate.slots, facts), query, &loads, buffers, rng, &mut suppose)
        };
        gate.put_back(facts.arm, rows);
        explained
    }

    fn rules<'a>(&'a self, held: &'a [BackendId], slots: &Slots, facts: &RequestFacts) -> PoolRules<'a> {
        // Asked for oversized requests alone: it looks at every member, and they are rare.
        let another = || self.members.iter().any(|member| slots.get(member.backend.load.slot()).has_oversized());
        PoolRules {
            seats: &self.seats,
            cross_arm: self.cross_arm,
            policy: self.policy,
            max_in_flight: self.max_in_flight,
            held,
            oversized: self.is_oversized(facts) && another(),
            generation: self.generation,
        }
    }

    /// Returns whether the request makes more sequences than one backend may have.
    fn is_oversized(&self, facts: &RequestFacts) -> bool {
        self.max_in_flight.is_some_and(|limit| facts.engine_sequences() > limit)
    }

    fn loads<'a>(&'a self, slots: &'a Slots, mean_prompt: f64, lived: Time, now: Time) -> LoadsNow<'a> {
        LoadsNow { members: &self.members, slots, mean_prompt, now, lived }
    }

    /// A request comes to the gate; its first attempt (`first`) pays into the retry budget.
    pub(crate) fn arrive(&self, gate: &mut Gate<Pool>, first: bool) {
        // Retries pay nothing in, or a fleet where much fails would pay for more and more of them.
        if first {
            gate.budget.deposit();
        }
    }

    /// The decision, under the gate: a place on the backend that the policy chooses among those with room.
    pub(crate) fn seek(
        &self,
        gate: &mut Gate<Pool>,
        query: Query<'_>,
        rng: &mut fastrand::Rng,
        aside: Aside<'_>,
    ) -> Sought {
        let Query { facts, now, .. } = query;
        let mut rows = gate.take_rows(facts.arm);
        let decided = {
            let loads = self.loads(&gate.slots, gate.mean_prompt(now), gate.pace.lived(now), now);
            let buffers = Buffers { admitted: &mut gate.admitted, rows: &mut rows, affinity: &mut gate.affinity };
            decide(self.rules(gate.room.held(), &gate.slots, facts), query, &loads, buffers, rng, aside)
        };
        let sought = match decided {
            // Decision and place are one step under the lock: two requests cannot both take the last place.
            Decided::Row(index, decision) => Sought::Placed(self.place(gate, &rows.as_slice()[index], decision, query)),
            Decided::Full(emptiest) => Sought::Full(Full { emptiest, look_at: self.next_look(gate, facts, now) }),
            Decided::Nowhere => Sought::Nowhere,
        };
        rows.finish();
        gate.put_back(facts.arm, rows);
        sought
    }

    /// Takes the place that was chosen.
    fn place(&self, gate: &mut Gate<Pool>, row: &Candidate, decision: Decision, query: Query<'_>) -> Dispatched {
        let Query { facts, tried, now } = query;
        gate.turn += 1;
        // A request counts once, however many attempts it needs. What the engine never sees is no prompt.
        if facts.kind != Kind::Light && tried.is_empty() {
            gate.observe_prompt(facts.est_tokens, now);
        }
        let backend = &self.members[usize::from(row.member)].backend;
        let turn = gate.turn;
        let slot = backend.load.slot();
        // The pool's own time hardly goes on while it is idle, so that what was measured is not forgotten over a
        // quiet night.
        gate.pace.dispatch(now);
        let lived = gate.pace.lived(now);
        let numbers = gate.slots.get_mut(slot);
        let lease = numbers.enter(
            LeaseRequest {
                kind: facts.kind,
                sequences: self.counted(facts, row),
                oversized: self.is_oversized(facts),
                tokens: cost::uncached(facts, row.matched),
                prompt: facts.est_tokens,
                claimed: row.claimed,
                depth: row.depth,
                raw: decision.terms.raw,
                turn,
            },
            now,
            lived,
        );
        let generated = numbers.generated();
        // Past 65,536 slots a backend does without affinity; requests are still placed there.
        if let Ok(slot) = u16::try_from(slot) {
            gate.affinity.note(facts, Sent { backend: row.id, slot, generated, matched: row.matched, now });
        }
        // Beside vLLM's own count of hits this shows whether the index knows what is in the caches.
        backend.metrics.expected_cached_tokens.increment(u64::from(row.matched));
        self.count_crossing(&decision, tried);
        // Only a stream has a first token of its own to compare with.
        let predicted = (facts.kind == Kind::Stream)
            .then(|| Duration::try_from_secs_f64(decision.terms.ttft()).unwrap_or(Duration::MAX));
        Dispatched { ticket: Ticket::new(Arc::clone(backend), lease, predicted), decision, trace: None }
    }

    /// Seeks, with the rows that were considered where they are wanted.
    pub(crate) fn seek_traced(
        &self,
        gate: &mut Gate<Pool>,
        query: Query<'_>,
        rng: &mut fastrand::Rng,
        policy: Option<&dyn Policy>,
        explain: bool,
    ) -> Sought {
        let mut trace = explain.then(Box::<Trace>::default);
        let mut sought = self.seek(gate, query, rng, Aside { policy, trace: trace.as_deref_mut(), alter: None });
        // In place: a decision is large, and hardly any is traced.
        if let (Sought::Placed(dispatched), Some(_)) = (&mut sought, &trace) {
            dispatched.trace = trace;
        }
        sought
    }

    /// Returns how many sequences a request counts for on a backend. A client's `n` is a claim: more than run there at once would
    /// only make all others avoid the backend.
    fn counted(&self, facts: &RequestFacts, row: &Candidate) -> u32 {
        let runs = row.running_limit.unwrap_or(USUAL_RUNNING_LIMIT);
        facts.engine_sequences().min(self.max_in_flight.unwrap_or(runs))
    }

    /// Returns whether this member may have so many sequences more.
    pub(crate) fn fits(&self, gate: &Gate<Pool>, member: &Member, sequences: u32) -> bool {
        let in_flight = || gate.slots.get(member.backend.load.slot()).in_flight();
        self.max_in_flight.is_none_or(|limit| fits(in_flight(), sequences, limit))
    }

    /// Returns when the first back-off ends of an admitted backend that has room.
    fn next_look(&self, gate: &Gate<Pool>, facts: &RequestFacts, now: Time) -> Option<Time> {
        // The end of a back-off is no event: whoever waits for one has to know when to look again.
        let members = gate.admitted.iter().map(|&place| &self.members[usize::from(place)]);
        let with_room = members.filter(|member| self.fits(gate, member, facts.engine_sequences()));
        let left = with_room.map(|member| gate.slots.get(member.backend.load.slot()).open_for(now));
        left.filter(|left| !left.is_zero()).min().map(|left| now + left)
    }

    /// A request that leaves its arm counts once, however many backends it tries there.
    fn count_crossing(&self, decision: &Decision, tried: &[BackendId]) {
        if !decision.crossed() {
            return;
        }
        // If one of the tried backends is in another arm, the request left its own before.
        let before = self.seats.iter().any(|seat| seat.arm != decision.assigned && tried.contains(&seat.id));
        if let (false, Some(arm)) = (before, self.arm(decision.assigned)) {
            arm.crossed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
