//! A decision in words, and the decision of a fleet that was written down: the same admission, rows and policy as the
//! dispatcher's, over rows that were recorded instead of read. Never on the request path, but for the words of a decision that
//! somebody asked for.

use std::fmt::Write as _;

use serde::Serialize;

use super::affinity;
use super::candidate::{Candidate, PoolRatios};
use super::cost;
use super::decision::{Considered, Decision, Reason, Scope, Trace};
use super::eligible::{Seat, Standing, admit, skip_backing_off};
use super::facts::RequestFacts;
use super::policy::Policy;
use super::wait_room::fits;
use crate::clock::Time;
use crate::units::BackendId;

/// From so much on a difference of measured speeds is named before what it lengthens.
const SLOWER: f64 = 1.25;

/// A pool as it was at one moment: who, whether, and with what to do.
#[derive(Clone, Debug)]
pub struct Book {
    /// The members and where they stand.
    pub seats: Vec<Seat>,
    /// Their rows, in the same order, before the pool's ratios are filled in; with the tokens that the request is matched.
    pub rows: Vec<Candidate>,
    /// Whether a request may leave its arm.
    pub cross_arm: bool,
    /// The policy's name.
    pub policy: &'static str,
    /// Sequences that one backend may have in flight; none: no limit.
    pub max_in_flight: Option<u32>,
    /// Backends that are kept free for a request that waits.
    pub held: Vec<BackendId>,
}

/// What became of a member in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It got the request.
    Chosen,
    /// It was compared with the others.
    Compared,
    /// It backs off, and others do not.
    BackingOff,
    /// It is at its limit.
    Full,
    /// It belongs to another arm, and the assigned one has a backend.
    OtherArm,
    /// It is out of routing.
    Out,
    /// It is not what the config says it is.
    Misconfigured,
    /// It finishes what it has.
    Drained,
    /// It was tried, or does not serve what is asked for.
    Tried,
    /// The request is bound to another backend.
    NotPinned,
}

/// A decision with every member's part in it.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Every member in order, with the prediction for it.
    pub members: Vec<(Verdict, Considered)>,
    /// The rows that were considered, as the dispatcher takes them down.
    pub trace: Trace,
    /// The decision; none where no backend may have the request.
    pub decision: Option<Decision>,
}

/// Decides as the dispatcher would.
#[must_use]
pub fn explain(
    book: &Book,
    policy: &dyn Policy,
    facts: &RequestFacts,
    tried: &[BackendId],
    now: Time,
    rng: &mut fastrand::Rng,
) -> Explained {
    let (mut admitted, mut trace) = (Vec::new(), Trace::default());
    let scope = admit(&book.seats, facts, tried, book.cross_arm, &mut admitted);
    let mut rows: Vec<Candidate> = admitted.iter().map(|&place| book.rows[usize::from(place)]).collect();
    let ratios = PoolRatios::of(&rows);
    ratios.fill(&mut rows);
    affinity::compare(&mut rows);
    trace.record(&rows, facts, now);
    let all_backing_off = skip_backing_off(&mut rows);
    affinity::compare(&mut rows);
    let sequences = facts.engine_sequences();
    if let Some(limit) = book.max_in_flight.filter(|_| sequences > 0) {
        rows.retain(|row| fits(row.in_flight(), sequences, limit) && !book.held.contains(&row.id));
        trace.keep_with_room(&rows);
    }
    let decision = scope.zip(policy.pick(&rows, facts, now, rng)).map(|(scope, choice)| {
        let arm = book.seats[usize::from(rows[choice.index].member)].arm;
        Decision::new(&rows, choice, (scope, arm, book.policy), facts, now, all_backing_off)
    });
    let mut all = book.rows.clone();
    ratios.fill(&mut all);
    affinity::compare(&mut all);
    let mut members = Trace::default();
    members.record(&all, facts, now);
    let verdict = |considered: &Considered, seat: &Seat| match seat.standing {
        _ if decision.is_some_and(|decision| decision.backend == seat.id) => Verdict::Chosen,
        _ if trace.rows.iter().any(|row| row.backend == seat.id && row.skipped) => Verdict::BackingOff,
        _ if trace.rows.iter().any(|row| row.backend == seat.id && row.full) => Verdict::Full,
        _ if trace.rows.iter().any(|row| row.backend == considered.backend) => Verdict::Compared,
        _ if facts.pinned.is_some_and(|pinned| pinned != seat.id) => Verdict::NotPinned,
        Standing::Drained => Verdict::Drained,
        Standing::Misconfigured { .. } => Verdict::Misconfigured,
        Standing::Out { .. } => Verdict::Out,
        Standing::In if tried.contains(&seat.id) => Verdict::Tried,
        Standing::In => Verdict::OtherArm,
    };
    let members = members.rows.iter().zip(&book.seats).map(|(row, seat)| (verdict(row, seat), *row)).collect();
    Explained { members, trace, decision }
}

impl Trace {
    /// Why the decision went as it did, in words: visible ASCII, backends by their number.
    #[must_use]
    pub fn why(&self, decision: &Decision) -> String {
        self.why_named(decision, &|id| id.to_string())
    }

    /// The same with names for the backends.
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
        let others = self.rows.iter().filter(|row| row.backend != chosen.backend && !row.skipped && !row.full);
        if let Some(other) = others.min_by(|a, b| rank(decision, a).total_cmp(&rank(decision, b)))
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
        if decision.policy == "predicted_ttft" && !decision.measured {
            text.push_str("; nothing was measured, so prompt tokens decide");
        }
        text
    }
}

/// By what the policy puts the rows in order.
fn rank(decision: &Decision, row: &Considered) -> f64 {
    match decision.policy {
        "least_tokens" => row.queued_tokens as f64,
        "least_inflight" | "p2c" => f64::from(row.prefilling + row.decoding),
        _ => row.terms.score(),
    }
}

fn choice_in_words(decision: &Decision, chosen: &Considered) -> String {
    let what = match decision.policy {
        "least_tokens" => format!("outstanding prompt tokens, {}", grouped(chosen.queued_tokens as f64)),
        "least_inflight" => format!("requests in flight, {}", chosen.prefilling + chosen.decoding),
        _ => format!("predicted TTFT {}", seconds(chosen.terms.ttft())),
    };
    match decision.reason {
        Reason::Only => format!("the only one that may have it, predicted TTFT {}", seconds(chosen.terms.ttft())),
        Reason::Lowest => format!("least {what}"),
        Reason::Tie(count) => format!("drawn from {count} that are alike, least {what}"),
        Reason::Drawn => "the less loaded of two drawn".to_owned(),
        Reason::Turn => "its turn".to_owned(),
    }
}

/// What speaks against the next best.
fn difference(decision: &Decision, chosen: &Considered, other: &Considered) -> String {
    match decision.policy {
        "least_tokens" => return format!("has {}", grouped(other.queued_tokens as f64)),
        "least_inflight" => return format!("has {}", other.prefilling + other.decoding),
        "p2c" | "round_robin" => return format!("has {} in flight", other.prefilling + other.decoding),
        _ => {}
    }
    let (mine, theirs) = (&chosen.terms, &other.terms);
    let ttft = seconds(theirs.ttft());
    if theirs.score() <= mine.score() * (1.0 + super::policy::TIE) {
        return format!("would do as well ({ttft})");
    }
    let slower = if mine.k > 0.0 { theirs.k / mine.k } else { 1.0 };
    let behind = |term: fn(&cost::Terms) -> f64| term(theirs) - term(mine);
    let at_speed = |term: fn(&cost::Terms) -> f64| term(theirs) / slower - term(mine);
    let scaled: [fn(&cost::Terms) -> f64; 6] =
        [|t| t.step, |t| t.queue, |t| t.prompt, |t| t.others, |t| t.redundancy, |t| t.eviction];
    let unexplained = scaled.iter().map(|term| at_speed(*term)).sum::<f64>() + behind(|t| t.kv_wait);
    if slower >= SLOWER && unexplained < 0.5 * (theirs.score() - mine.score()) {
        return format!("({ttft}) was measured {slower:.1} times as slow");
    }
    let busy = if other.running > chosen.running {
        format!("has {:.0} sequences running", other.running)
    } else {
        "takes longer for a step".to_owned()
    };
    let words: [(f64, String); 5] = [
        (behind(|t| t.queue), format!("waits behind {} queued prompt tokens", grouped(other.ahead_tokens))),
        (
            behind(|t| t.prompt + t.redundancy),
            format!("would compute {} prompt tokens", grouped(f64::from(other.uncached))),
        ),
        (behind(|t| t.step + t.others), busy),
        (behind(|t| t.kv_wait), "waits for room in its KV cache".to_owned()),
        (behind(|t| t.eviction), "would evict what is likely wanted again".to_owned()),
    ];
    let (by, words) = words.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
    format!("({ttft}) {words} ({} more)", seconds(by))
}

/// `0.18 s`; milliseconds where seconds would say nothing.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}

/// `3,200`.
#[must_use]
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
