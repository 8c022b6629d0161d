//! Why a request went where it went. The decision itself is a small copy made at every pick; the rows that were considered
//! are kept only where someone asks for them, in a [`Trace`] that the asker owns.
//!
//! Hot path: no allocation and no formatting; text is made when it is read.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
pub use super::choice::{Choice, Considered, Reason};
use super::cost::{self, Terms};
use super::facts::{ArmIndex, RequestFacts};
use super::policy::PolicyName;
use crate::clock::Time;
use crate::units::BackendId;

/// By which rule the candidates were admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Backends of the assigned arm.
    Assigned,
    /// None of the assigned arm's was left: backends of the other arms.
    Crossed,
    /// The one backend that holds what the request refers to.
    Pinned,
    /// All are out: those out longest.
    Panic,
}

impl Scope {
    /// The word in logs and headers.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Scope::Assigned => "assigned",
            Scope::Crossed => "crossed",
            Scope::Pinned => "pinned",
            Scope::Panic => "panic",
        }
    }
}

/// One decision, with the prediction for the backend that won.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub struct Decision {
    /// The backend that was chosen.
    pub backend: BackendId,
    /// Its arm: the serving one.
    pub arm: ArmIndex,
    /// The arm that the request was assigned to.
    pub assigned: ArmIndex,
    /// By which rule the candidates were admitted.
    pub scope: Scope,
    /// The pool's policy.
    pub policy: PolicyName,
    /// The way in which the policy chose.
    pub reason: Reason,
    /// Rows that the policy compared.
    pub considered: u16,
    /// Every candidate was backing off, so none was skipped for it.
    pub all_backing_off: bool,
    /// Some candidate has measured TTFT. If none has, the prediction rests on queued prompt tokens alone.
    pub measured: bool,
    /// The prediction for the winner.
    pub terms: Terms,
}

impl Decision {
    /// The choice among `rows`, by a rule, in an arm, under a policy.
    #[must_use]
    #[inline]
    pub fn new(
        rows: &[Candidate],
        choice: Choice,
        (scope, arm, policy): (Scope, ArmIndex, PolicyName),
        facts: &RequestFacts,
        now: Time,
        all_backing_off: bool,
    ) -> Decision {
        let row = &rows[choice.index];
        Decision {
            backend: row.id,
            arm,
            assigned: facts.arm,
            scope,
            policy,
            reason: choice.reason,
            considered: u16::try_from(rows.len()).unwrap_or(u16::MAX),
            all_backing_off,
            measured: rows.iter().any(|row| row.ttft.expected > 0.0),
            terms: cost::terms(row, facts, now),
        }
    }

    /// Returns whether another arm than the assigned one serves the request.
    #[must_use]
    pub fn crossed(&self) -> bool {
        self.arm != self.assigned
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = &self.terms;
        write!(
            f,
            "{} {} of {} by {} scope={} ttft={:.4} step={:.4} queue={:.4} prompt={:.4} kv_wait={:.4} slot_wait={:.4} others={:.4} redundancy={:.4} eviction={:.4} k={:.2} v={:.2}",
            self.backend,
            self.reason.label(),
            self.considered,
            self.policy,
            self.scope.label(),
            t.ttft(),
            t.step,
            t.queue,
            t.prompt,
            t.kv_wait,
            t.slot_wait,
            t.others,
            t.redundancy,
            t.eviction,
            t.k,
            t.v
        )?;
        if !self.measured && self.policy.policy().predicts() {
            f.write_str(" unmeasured=as_least_tokens")?;
        }
        if self.all_backing_off {
            f.write_str(" all_backing_off")?;
        }
        Ok(())
    }
}

/// The rows of one decision, kept for whoever asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    /// The rows, in the pool's order.
    pub rows: Vec<Considered>,
}

impl Trace {
    /// Takes the rows down before those that back off are dropped.
    pub fn record(&mut self, rows: &[Candidate], facts: &RequestFacts, now: Time) {
        // If all back off, nobody is skipped: see `Rows::skip_backing_off`.
        let all_off = rows.iter().all(Candidate::backing_off);
        self.rows.clear();
        self.rows.extend(rows.iter().map(|row| Considered {
            terms: cost::terms(row, facts, now),
            ahead_tokens: cost::ahead(row, now),
            running: f64::from(row.decoding) + row.foreign.running,
            foreign_waiting: row.foreign.waiting,
            uncached: cost::uncached(facts, row.matched),
            backend: row.id,
            prefilling: row.prefilling,
            decoding: row.decoding,
            queued_tokens: row.queued_tokens,
            matched: row.matched,
            skipped: row.backing_off() && !all_off,
            full: false,
            open_for: row.open_for.max(Duration::ZERO).as_secs_f64(),
        }));
    }

    /// Takes down which of the rows that do not back off are not among those `left`: they have no room.
    pub fn keep_with_room(&mut self, left: &[Candidate]) {
        for row in self.rows.iter_mut().filter(|row| !row.skipped) {
            row.full = !left.iter().any(|other| other.id == row.backend);
        }
    }

    /// Returns the reason, the decision and its rows as one line of visible ASCII, at most `limit` bytes: rows that do not fit are counted.
    #[must_use]
    pub fn line(&self, decision: &Decision, limit: usize) -> String {
        let mut line = format!("{} | {decision}", self.why(decision));
        // Only the reason can be cut; of the rows there are whole ones or none.
        line.truncate(limit);
        for (at, row) in self.rows.iter().enumerate() {
            let part = format!(
                "; {} ttft={:.4} score={:.4} p={} n={} q={} matched={}{}",
                row.backend,
                row.terms.ttft(),
                row.terms.score(),
                row.prefilling,
                row.decoding,
                row.queued_tokens,
                row.matched,
                if row.skipped {
                    " skipped"
                } else if row.full {
                    " full"
                } else {
                    ""
                }
            );
            // Room for the count of what is left out is kept free at each row, or the last one that fits would take it.
            let rest = format!("; {} more", self.rows.len() - at);
            if line.len() + part.len() + rest.len() > limit {
                if line.len() + rest.len() <= limit {
                    line.push_str(&rest);
                }
                break;
            }
            line.push_str(&part);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::affinity::Marks;
    use crate::routing::facts::Kind;

    fn decision() -> Decision {
        Decision {
            backend: BackendId(3),
            arm: ArmIndex(1),
            assigned: ArmIndex(0),
            scope: Scope::Crossed,
            policy: PolicyName::PredictedTtft,
            reason: Reason::Lowest,
            considered: 2,
            all_backing_off: false,
            measured: false,
            terms: Terms::default(),
        }
    }

    #[test]
    fn a_decision_says_its_terms_and_that_nothing_was_measured() {
        let text = decision().to_string();
        assert!(text.starts_with("b3 lowest of 2 by predicted_ttft scope=crossed ttft=0.0000"), "{text}");
        assert!(text.ends_with("unmeasured=as_least_tokens"), "{text}");
        assert!(decision().crossed());
    }

    #[test]
    fn an_explanation_keeps_its_limit_and_counts_what_it_leaves_out() {
        let facts = RequestFacts {
            est_tokens: 9,
            sequences: 1,
            kind: Kind::Stream,
            arm: ArmIndex(0),
            pinned: None,
            marks: Marks::NONE,
        };
        let rows: Vec<Candidate> = (0..40).map(|id| Candidate::idle(BackendId(id), 0)).collect();
        let mut trace = Trace::default();
        trace.record(&rows, &facts, Time::ZERO);
        let line = trace.line(&decision(), 1024);
        assert!(line.len() <= 1024 && line.ends_with(" more"), "{line}");
        assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        trace.rows.truncate(2);
        assert!(!trace.line(&decision(), 1024).contains("more"));
    }
}
