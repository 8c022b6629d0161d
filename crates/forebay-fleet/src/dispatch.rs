//! Pick and dispatch as one critical section under the pool's gate: the next pick sees this one's load, so simultaneous
//! requests never herd. Exact; anything cleverer must be measured first.
//!
//! Hot path: no allocation, since the gate keeps the rows from one decision to the next. `cargo bench --bench routing` prints what a
//! decision costs, with and without a known prefix.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::gate::Gate;
use super::lease::Entry;
use super::locked;
use super::rows::{Rows, Wanted};
use super::snapshot::{Member, Pool};
use super::ticket::Ticket;
use super::waiting::{Full, Room};
use forebay_core::clock::Time;
use forebay_core::error::Refusal;
use forebay_core::routing::affinity::Sent;
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::cost;
use forebay_core::routing::decision::{Decision, Scope, Trace};
use forebay_core::routing::eligible;
use forebay_core::routing::facts::{Kind, RequestFacts};
use forebay_core::routing::policy::Policy;
use forebay_core::routing::wait_room::fits;
use forebay_core::units::BackendId;

/// A dispatch: the place on the backend, and why it is there.
#[derive(Debug)]
#[must_use = "dropping the ticket frees its slot"]
pub struct Dispatched {
    /// The place on the backend.
    pub ticket: Ticket,
    /// Why.
    pub decision: Decision,
    /// The rows that were considered, where somebody asked for them.
    pub trace: Option<Box<Trace>>,
}

/// What came of a look for a backend.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would allocate for each request")]
pub(super) enum Sought {
    /// A place on one.
    Placed(Dispatched),
    /// Those that may have the request are at their limit.
    Full(Full),
    /// There is none that may have it.
    Nowhere,
}

/// Drops the rows without room for the request. If that leaves none, and it needs more than any request does, it is told the
/// emptiest that nobody else is promised.
fn keep_with_room(room: &Room, rows: &mut Vec<Candidate>, facts: &RequestFacts, limit: u32) -> Option<BackendId> {
    let sequences = facts.engine_sequences();
    if sequences == 0 {
        return None;
    }
    let free = |row: &&Candidate| !room.holds(row.id);
    let emptiest = rows.iter().filter(free).min_by_key(|row| row.in_flight()).map(|row| row.id);
    rows.retain(|row| fits(row.in_flight(), sequences, limit) && !room.holds(row.id));
    emptiest.filter(|_| sequences > 1)
}

/// What is asked of a decision.
#[derive(Clone, Copy)]
struct Query<'a> {
    facts: &'a RequestFacts,
    tried: &'a [BackendId],
    now: Time,
}

/// What a decision says.
enum Chosen {
    /// The row at this place.
    Row(usize, Decision),
    /// All are at their limit.
    Full(Full),
    /// There are none.
    Nowhere,
}

/// What may change the rows before they are compared.
type Alter<'a> = dyn FnMut(&mut [Candidate]) + 'a;

/// How a decision is made.
pub(super) struct Way<'a> {
    policy: &'a dyn Policy,
    alter: Option<&'a mut Alter<'a>>,
    trace: Option<&'a mut Trace>,
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
        self.dispatch_with(facts, tried, now, rng, self.its_way())
    }

    /// The same, and takes the rows that were considered down in `trace`.
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
        self.dispatch_with(facts, tried, now, rng, Way { trace: Some(trace), ..self.its_way() })
    }

    /// The same under another policy, and with rows that `alter` changed before it saw them: the way to ask what a policy or
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
        self.dispatch_with(facts, tried, now, rng, Way { policy, alter: Some(&mut alter), trace: None })
    }

    /// How this pool decides.
    fn its_way<'a>(&self) -> Way<'a> {
        Way { policy: self.policy(), alter: None, trace: None }
    }

    fn dispatch_with(
        &self,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
        way: Way<'_>,
    ) -> Result<Dispatched, Refusal> {
        let mut gate = locked(&self.gate);
        self.arrive(&mut gate, tried);
        match self.seek(&mut gate, facts, tried, now, rng, way) {
            Sought::Placed(dispatched) => Ok(dispatched),
            Sought::Nowhere => Err(Refusal::NoBackend(self.model.clone())),
            Sought::Full(_) => Err(Refusal::WaitRoomFull(self.model.clone())),
        }
    }

    /// A request comes to the gate; its first attempt pays into the retry budget.
    pub(super) fn arrive(&self, gate: &mut Gate, tried: &[BackendId]) {
        if tried.is_empty() {
            gate.budget.deposit();
        }
    }

    /// The decision, under the gate: a place on the backend that the policy chooses among those with room.
    pub(super) fn seek(
        &self,
        gate: &mut Gate,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
        way: Way<'_>,
    ) -> Sought {
        let query = Query { facts, tried, now };
        let mut rows = gate.take_rows(facts.arm);
        let sought = match self.choose(gate, &mut rows, query, rng, way) {
            Chosen::Row(index, decision) => Sought::Placed(self.place(gate, &rows.as_slice()[index], decision, query)),
            Chosen::Full(full) => Sought::Full(full),
            Chosen::Nowhere => Sought::Nowhere,
        };
        rows.finish();
        gate.put_back(facts.arm, rows);
        sought
    }

    fn choose(
        &self,
        gate: &mut Gate,
        rows: &mut Rows,
        query: Query<'_>,
        rng: &mut fastrand::Rng,
        mut way: Way<'_>,
    ) -> Chosen {
        let Query { facts, now, .. } = query;
        let Some((scope, all_backing_off)) = self.candidates(gate, rows, query, &mut way) else {
            return Chosen::Nowhere;
        };
        if let Some(limit) = self.max_in_flight {
            let emptiest = keep_with_room(&gate.room, rows.changing(), facts, limit);
            if let Some(trace) = way.trace {
                trace.keep_with_room(rows.as_slice());
            }
            if rows.as_slice().is_empty() {
                return Chosen::Full(Full { emptiest, look_at: self.next_look(gate, facts, now) });
            }
        }
        let rows = rows.as_slice();
        let Some(choice) = way.policy.pick(rows, facts, now, rng) else { return Chosen::Nowhere };
        let arm = self.members[usize::from(rows[choice.index].member)].arm;
        let by = (scope, arm, self.policy.as_str());
        Chosen::Row(choice.index, Decision::new(rows, choice, by, facts, now, all_backing_off))
    }

    /// Takes the place that was chosen.
    fn place(&self, gate: &mut Gate, row: &Candidate, decision: Decision, query: Query<'_>) -> Dispatched {
        let Query { facts, tried, now } = query;
        gate.turn += 1;
        if facts.kind != Kind::Light && tried.is_empty() {
            gate.observe_prompt(facts.est_tokens, now);
        }
        let backend = &self.members[usize::from(row.member)].backend;
        let turn = gate.turn;
        let slot = backend.load.slot();
        gate.pace.dispatch(now);
        let lived = gate.pace.lived(now);
        let numbers = gate.slots.get_mut(slot);
        let lease = numbers.enter(
            Entry {
                kind: facts.kind,
                sequences: facts.engine_sequences(),
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
        if let Ok(slot) = u16::try_from(slot) {
            gate.affinity.note(facts, Sent { backend: row.id, slot, generated, matched: row.matched, now });
        }
        backend.metrics.expected_cached_tokens.increment(u64::from(row.matched));
        self.count_crossing(&decision, tried);
        let predicted = (facts.kind == Kind::Stream)
            .then(|| Duration::try_from_secs_f64(decision.terms.ttft()).unwrap_or(Duration::MAX));
        Dispatched { ticket: Ticket::new(Arc::clone(backend), lease, predicted), decision, trace: None }
    }

    /// The same, with the rows that were considered where they are wanted.
    pub(super) fn seek_traced(
        &self,
        gate: &mut Gate,
        facts: &RequestFacts,
        tried: &[BackendId],
        now: Time,
        rng: &mut fastrand::Rng,
        explain: bool,
    ) -> Sought {
        let mut trace = explain.then(Box::<Trace>::default);
        let way = Way { trace: trace.as_deref_mut(), ..self.its_way() };
        match self.seek(gate, facts, tried, now, rng, way) {
            Sought::Placed(dispatched) => Sought::Placed(Dispatched { trace, ..dispatched }),
            other => other,
        }
    }

    /// Whether this member may have so many sequences more.
    pub(super) fn fits(&self, gate: &Gate, member: &Member, sequences: u32) -> bool {
        let in_flight = || gate.slots.get(member.backend.load.slot()).in_flight();
        self.max_in_flight.is_none_or(|limit| fits(in_flight(), sequences, limit))
    }

    /// When the first back-off ends of an admitted backend that has room.
    fn next_look(&self, gate: &Gate, facts: &RequestFacts, now: Time) -> Option<Time> {
        let members = gate.admitted.iter().map(|&place| &self.members[usize::from(place)]);
        let with_room = members.filter(|member| self.fits(gate, member, facts.engine_sequences()));
        let left = with_room.map(|member| gate.slots.get(member.backend.load.slot()).open_for(now));
        left.filter(|left| !left.is_zero()).min().map(|left| now + left)
    }

    /// Fills the rows with the backends to choose from.
    fn candidates(
        &self,
        gate: &mut Gate,
        rows: &mut Rows,
        query: Query<'_>,
        way: &mut Way<'_>,
    ) -> Option<(Scope, bool)> {
        let Query { facts, tried, now } = query;
        let scope = eligible::admit(&self.seats, facts, tried, self.cross_arm, &mut gate.admitted)?;
        let wanted = Wanted {
            generation: self.generation,
            members: &self.members,
            admitted: &gate.admitted,
            mean_prompt: gate.mean_prompt(now),
            now,
            lived: gate.pace.lived(now),
        };
        rows.prepare(wanted, &gate.slots);
        rows.claim(facts, &mut gate.affinity, now);
        if let Some(alter) = &mut way.alter {
            alter(rows.changing());
        }
        if let Some(trace) = &mut way.trace {
            trace.record(rows.as_slice(), facts, now);
        }
        let all_backing_off = rows.skip_backing_off();
        Some((scope, all_backing_off))
    }

    /// A request that leaves its arm counts once, however many backends it tries there.
    fn count_crossing(&self, decision: &Decision, tried: &[BackendId]) {
        if !decision.crossed() {
            return;
        }
        let before = self.seats.iter().any(|seat| seat.arm != decision.assigned && tried.contains(&seat.id));
        if let (false, Some(arm)) = (before, self.arm(decision.assigned)) {
            arm.crossed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
