//! The one decision: who may have a request, how each of them stands, and which one the policy takes. The dispatcher calls it
//! under its pool's lock and then takes the place; `explain` calls it and takes none. Never changes what it decides on.
//!
//! Hot path: no allocation, since the caller keeps the buffers from one decision to the next.

use super::affinity::Index;
use super::candidate::Candidate;
use super::decision::{Decision, Scope, Trace};
use super::eligible::{Seat, admit};
use super::facts::RequestFacts;
use super::policy::{Policy, PolicyName};
use super::rows::{Loads, Rows};
use super::wait_room::fits;
use crate::clock::Time;
use crate::units::BackendId;

/// The rules for every request of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolRules<'a> {
    /// Its members and how they stand, in the pool's order.
    pub seats: &'a [Seat],
    /// Requests may leave their arm when it has nobody left.
    pub cross_arm: bool,
    /// The policy that chooses.
    pub policy: PolicyName,
    /// The most sequences that a backend takes at once, if there is a limit.
    pub max_in_flight: Option<u32>,
    /// Backends that are kept free for requests larger than others'.
    pub held: &'a [BackendId],
    /// A backend has a request that is larger than the limit, as this one is: such requests take one backend at a time from the
    /// others, whatever they claim.
    pub oversized: bool,
    /// The snapshot that all this is of.
    pub generation: u64,
}

/// The question that a decision answers.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The request.
    pub facts: &'a RequestFacts,
    /// Backends that must not have it: it was there already, or they do not serve its model.
    pub tried: &'a [BackendId],
    /// The moment.
    pub now: Time,
}

/// Buffers that one decision leaves to the next.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// The places of the admitted members.
    pub admitted: &'a mut Vec<u16>,
    /// Their rows.
    pub rows: &'a mut Rows,
    /// The index of prompts and the backends that they were sent to.
    pub affinity: &'a mut Index,
}

/// A function that may change the rows before they are compared.
pub type Alter<'a> = dyn FnMut(&mut [Candidate]) + 'a;

/// The things done beside deciding.
#[derive(Default)]
pub struct Aside<'a> {
    /// Another policy than the pool's: for trials.
    pub policy: Option<&'a dyn Policy>,
    /// Changes the rows before anything compares them.
    pub alter: Option<&'a mut Alter<'a>>,
    /// Place where the rows are taken down.
    pub trace: Option<&'a mut Trace>,
}

/// The result of a decision.
#[derive(Clone, Copy, Debug)]
pub enum Decided {
    /// The row at this place.
    Row(usize, Decision),
    /// All that may have it are at their limit; the emptiest that nobody else is promised, if it needs more room than one
    /// sequence does.
    Full(Option<BackendId>),
    /// There is none that may have it.
    Nowhere,
}

/// Decides. The chosen row stays in `buffers.rows`; call [`Rows::finish`] when it has been read.
// It has three callers, two of which ask and take nothing. Called by the third, it costs a request 100 instructions more than in it.
#[inline(always)]
pub fn decide(
    rules: PoolRules<'_>,
    query: Query<'_>,
    loads: &impl Loads,
    buffers: Buffers<'_>,
    rng: &mut fastrand::Rng,
    aside: Aside<'_>,
) -> Decided {
    let Query { facts, tried, now } = query;
    let Buffers { admitted, rows, affinity } = buffers;
    let Aside { policy, alter, mut trace } = aside;
    // Who may have the request is settled before who is best: a policy must not be able to leave the arm.
    let Some(scope) = admit(rules.seats, facts, tried, rules.cross_arm, admitted) else { return Decided::Nowhere };
    // Rows are kept from the decision before: only what changed since is read from the loads.
    rows.prepare(rules.generation, admitted, now, loads);
    // After the rows are up to date and before anybody looks: claims belong to this request alone, and are undone by
    // `finish`.
    rows.claim(facts, affinity, now);
    if let Some(alter) = alter {
        alter(rows.changing());
    }
    if let Some(trace) = &mut trace {
        trace.record(rows.as_slice(), facts, now);
    }
    // Before the limit: a backend that backs off has room, and would get every request that finds the others full.
    let all_backing_off = rows.skip_backing_off();
    if let Some(limit) = rules.max_in_flight {
        let emptiest = keep_with_room(&rules, rows.changing(), facts, limit);
        if let Some(trace) = trace {
            trace.keep_with_room(rows.as_slice());
        }
        if rows.as_slice().is_empty() {
            return Decided::Full(emptiest);
        }
    }
    // From here on nothing is dropped, so that an index into these rows is still good when the caller reads the
    // chosen one.
    let rows = rows.as_slice();
    let picked = policy.unwrap_or(rules.policy.policy()).pick(rows, facts, now, rng);
    let Some(choice) = picked else { return Decided::Nowhere };
    let arm = rules.seats[usize::from(rows[choice.index].member)].arm;
    let by: (Scope, _, _) = (scope, arm, rules.policy);
    Decided::Row(choice.index, Decision::new(rows, choice, by, facts, now, all_backing_off))
}

/// Drops the rows without room for the request. If that leaves none, and it needs more than any request does, it is told the
/// emptiest that nobody else is promised; one that is larger than the limit only if no backend is kept free at all.
fn keep_with_room(
    rules: &PoolRules<'_>,
    rows: &mut Vec<Candidate>,
    facts: &RequestFacts,
    limit: u32,
) -> Option<BackendId> {
    let sequences = facts.engine_sequences();
    if sequences == 0 {
        return None;
    }
    let PoolRules { held, oversized, .. } = *rules;
    if oversized {
        rows.clear();
        return None;
    }
    let free = |row: &&Candidate| !held.contains(&row.id);
    let emptiest = rows.iter().filter(free).min_by_key(|row| row.in_flight()).map(|row| row.id);
    rows.retain(|row| fits(row.in_flight(), sequences, limit) && !held.contains(&row.id));
    emptiest.filter(|_| if sequences > limit { held.is_empty() } else { sequences > 1 })
}
