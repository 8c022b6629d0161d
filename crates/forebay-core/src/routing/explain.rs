//! A decision in words, and how every backend of a pool stood in it. Never on the request path, but for the words of a decision
//! that somebody asked for.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::affinity;
use super::candidate::Candidate;
use super::cost;
use super::decide::{Alter, Aside, Buffers, Decided, PoolRules, Query, decide};
use super::decision::{Considered, Decision, Reason, Scope, Trace};
use super::eligible::{Seat, Standing};
use super::rows::Loads;
use crate::units::{BackendId, brief_seconds, grouped};

/// A backend measured this many times as slow as the chosen one is said to be slow.
const SLOWER: f64 = 1.25;

/// The fate of one member of the pool in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was chosen.
    Chosen,
    /// It was compared, and another was chosen.
    Compared,
    /// It is left alone after failures.
    BackingOff,
    /// It has as many sequences as it may have, or is kept for another request.
    Full,
    /// It is of another arm than the one that the request may use.
    OtherArm,
    /// It is out, or on probation.
    Out,
    /// It is misconfigured.
    Misconfigured,
    /// It is drained.
    Drained,
    /// The request was there before, or may not go there.
    Tried,
    /// The request is bound to another backend.
    NotPinned,
}

/// A decision, and how every member of the pool stood in it.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The members in the pool's order: what became of each, and its numbers.
    pub members: Vec<(Fate, Considered)>,
    /// The rows that were considered.
    pub trace: Trace,
    /// The decision; none if no backend may have the request, or none has room.
    pub decision: Option<Decision>,
}

/// Decides as the dispatcher would now, and takes down how everybody stood. `alter` changes rows before they are compared.
pub fn explain(
    rules: PoolRules<'_>,
    query: Query<'_>,
    loads: &impl Loads,
    buffers: Buffers<'_>,
    rng: &mut fastrand::Rng,
    alter: &mut Alter<'_>,
) -> Explained {
    let Query { facts, tried, now } = query;
    let Buffers { admitted, rows, affinity } = buffers;
    let mut trace = Trace::default();
    // The decision below sees the admitted rows alone. An explanation shows every member, so the others get rows of
    // their own.
    let mut all: Vec<Candidate> = (0_u16..).zip(rules.seats).map(|(member, _)| loads.row(member)).collect();
    // Looked up once: the caller may hold its pool's lock.
    let members: HashMap<usize, usize> =
        (0_u16..).zip(rules.seats).map(|(member, _)| (loads.slot(member), usize::from(member))).collect();
    let place_of_slot = |slot: u16| members.get(&usize::from(slot)).copied().unwrap_or(usize::MAX);
    // Cached tokens of those that may not have the request: often the very reason for the question.
    affinity.claim(facts, &mut all, place_of_slot);
    affinity.weigh_evictions(facts, &mut all, now, place_of_slot);
    alter(&mut all);
    let aside = Aside { policy: None, alter: Some(alter), trace: Some(&mut trace) };
    let decided = decide(rules, query, loads, Buffers { admitted, rows, affinity }, rng, aside);
    // Ratios come from the admitted rows, as they did in the decision. The others are measured with the same ones.
    rows.ratios().fill(&mut all);
    rows.finish();
    affinity::compare(&mut all);
    let decision = match decided {
        Decided::Row(_, decision) => Some(decision),
        Decided::Full(_) | Decided::Nowhere => None,
    };
    let mut members = Trace::default();
    members.record(&all, facts, now);
    // The first reason that applies is told. A chosen backend was also compared, and one that was tried may also be
    // out.
    let fate = |considered: &Considered, seat: &Seat| match seat.standing {
        _ if decision.is_some_and(|decision| decision.backend == seat.id) => Fate::Chosen,
        _ if trace.rows.iter().any(|row| row.backend == seat.id && row.skipped) => Fate::BackingOff,
        _ if trace.rows.iter().any(|row| row.backend == seat.id && row.full) => Fate::Full,
        _ if trace.rows.iter().any(|row| row.backend == considered.backend) => Fate::Compared,
        _ if facts.pinned.is_some_and(|pinned| pinned != seat.id) => Fate::NotPinned,
        Standing::Drained => Fate::Drained,
        Standing::Misconfigured { .. } => Fate::Misconfigured,
        Standing::Out { .. } => Fate::Out,
        Standing::In if tried.contains(&seat.id) => Fate::Tried,
        Standing::In => Fate::OtherArm,
    };
    let members = members.rows.iter().zip(rules.seats).map(|(row, seat)| (fate(row, seat), *row)).collect();
    Explained { members, trace, decision }
}

impl Trace {
    /// Returns why the decision went as it did, in words: visible ASCII, backends by their number.
    #[must_use]
    pub fn why(&self, decision: &Decision) -> String {
        self.why_named(decision, &|id| id.to_string())
    }

    /// Returns what [`Trace::why`] says, with names for the backends.
    #[must_use]
    pub fn why_named(&self, decision: &Decision, name: &dyn Fn(BackendId) -> String) -> String {
        let Some(chosen) = self.rows.iter().find(|row| row.backend == decision.backend) else { return String::new() };
        let mut text = format!("{}: {}", name(chosen.backend), choice_in_words(decision, chosen));
        match decision.scope {
            Scope::Assigned => {}
            Scope::Crossed => text.push_str(", of another arm, since its own has none left"),
            Scope::Pinned => text.push_str(", which holds what the request refers to"),
            Scope::Panic => text.push_str(", of those out longest, since all are out"),
        }
        if decision.all_backing_off {
            text.push_str(", though all are left alone after failures");
        }
        let policy = decision.policy.policy();
        // The next best tells more than all of them: what would have had to be different for another choice.
        let others = self.rows.iter().filter(|row| row.backend != chosen.backend && !row.skipped && !row.full);
        if let Some(other) = others.min_by(|a, b| policy.cost(a).total_cmp(&policy.cost(b)))
            && decision.considered > 1
        {
            let words = difference(decision, chosen, other);
            _ = write!(text, "; {} {words}", name(other.backend));
        }
        let skipped = self.rows.iter().filter(|row| row.skipped).count();
        if skipped > 0 {
            _ = write!(text, "; {skipped} left alone after failures");
        }
        let full = self.rows.iter().filter(|row| row.full).count();
        if full > 0 {
            _ = write!(text, "; {full} at their limit");
        }
        if policy.predicts() && !decision.measured {
            text.push_str("; nothing was measured, so prompt tokens decide");
        }
        text
    }
}

fn choice_in_words(decision: &Decision, chosen: &Considered) -> String {
    let what = decision.policy.policy().least_of(chosen);
    match decision.reason {
        Reason::Only => format!("the only eligible backend, predicted TTFT {}", brief_seconds(chosen.terms.ttft())),
        Reason::Lowest => format!("least {what}"),
        Reason::Tie(count) => format!("drawn from {count} that are alike, least {what}"),
        Reason::LessOfTwo => "the less loaded of two drawn".to_owned(),
        Reason::Turn => "its turn".to_owned(),
    }
}

/// Returns what speaks against the next best.
fn difference(decision: &Decision, chosen: &Considered, other: &Considered) -> String {
    if let Some(words) = decision.policy.policy().other_has(other) {
        return words;
    }
    let (mine, theirs) = (&chosen.terms, &other.terms);
    let ttft = brief_seconds(theirs.ttft());
    // Within the tie chance decided, and no term is a reason.
    if theirs.score() <= mine.score() * (1.0 + super::policy::TIE) {
        return format!("would do as well ({ttft})");
    }
    let slower = if mine.k > 0.0 { theirs.k / mine.k } else { 1.0 };
    let behind = |term: fn(&cost::Terms) -> f64| term(theirs) - term(mine);
    let at_speed = |term: fn(&cost::Terms) -> f64| term(theirs) / slower - term(mine);
    let scaled: [fn(&cost::Terms) -> f64; 6] =
        [|t| t.step, |t| t.queue, |t| t.prompt, |t| t.others, |t| t.redundancy, |t| t.eviction];
    // A slow backend is behind in every term. Where the difference goes away at equal speed, speed is the reason, not
    // a queue.
    let unexplained = scaled.iter().map(|term| at_speed(*term)).sum::<f64>() + behind(|t| t.kv_wait + t.slot_wait);
    if slower >= SLOWER && unexplained < 0.5 * (theirs.score() - mine.score()) {
        return format!("({ttft}) was measured {slower:.1} times as slow");
    }
    let busy = if other.running > chosen.running {
        format!("has {:.0} sequences running", other.running)
    } else {
        "takes longer for a step".to_owned()
    };
    let words: [(f64, String); 6] = [
        (behind(|t| t.queue), format!("waits behind {} queued prompt tokens", grouped(other.ahead_tokens))),
        (
            behind(|t| t.prompt + t.redundancy),
            format!("would compute {} prompt tokens", grouped(f64::from(other.uncached))),
        ),
        (behind(|t| t.step + t.others), busy),
        (behind(|t| t.kv_wait), "waits for room in its KV cache".to_owned()),
        (behind(|t| t.slot_wait), "waits for one of the sequences that it runs at once to end".to_owned()),
        (behind(|t| t.eviction), "would evict what is likely wanted again".to_owned()),
    ];
    let (by, words) = words.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
    format!("({ttft}) {words} ({} more)", brief_seconds(by))
}

#[cfg(test)]
mod tests;
