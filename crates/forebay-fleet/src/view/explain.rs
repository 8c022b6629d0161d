//! Where a request would go, and why, as `POST /api/explain` answers it and `forebay explain` prints it. Shows numbers of the
//! request and never its text.

use serde::{Deserialize, Serialize};

use crate::pool::{Member, Pool};
use forebay_core::clock::Time;
use forebay_core::routing::decision::{Considered, Decision};
use forebay_core::routing::explain::{Explained, Fate};
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::units::BackendId;

/// The answer.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Explanation {
    /// The pool's model.
    pub pool: String,
    /// Its policy.
    pub policy: PolicyName,
    /// The facts that routing weighs the request by.
    pub request: WeighedRequest,
    /// The decision; none if no backend may have it, or none has room.
    pub decision: Option<Decision>,
    /// The reason, in a sentence.
    pub why: String,
    /// Every backend of the pool, in its order.
    pub backends: Vec<ExplainedBackend>,
    /// Notes on how the answer was found.
    pub notes: Vec<String>,
}

/// The facts that routing weighs a request by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct WeighedRequest {
    /// Estimated tokens of its prompt.
    pub prompt_tokens_estimated: u32,
    /// Sequences that it makes in the engine.
    pub sequences: u32,
    /// The way in which it shows its progress.
    pub kind: Kind,
    /// The arm that it is assigned to.
    pub arm: String,
}

/// One backend in a decision.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ExplainedBackend {
    /// Its id.
    pub id: String,
    /// Its URL.
    pub url: String,
    /// Its arm.
    pub arm: String,
    /// Its state.
    pub state: String,
    /// Reason why it is in that state.
    pub state_reason: Option<String>,
    /// Its fate in the decision.
    pub verdict: Fate,
    /// Requests that wait there, as its last scrape said.
    pub queue_depth: Option<f64>,
    /// Age of that, in seconds; none if it was never scraped.
    pub scrape_age_seconds: Option<f64>,
    /// True if that is too old to be used.
    pub scrape_stale: Option<bool>,
    /// The predicted TTFT, in seconds.
    pub predicted_ttft_seconds: f64,
    /// The figure that `predicted_ttft` compares, in seconds.
    pub score: f64,
    /// Its numbers, and the prediction by its terms.
    pub row: Considered,
}

impl Pool {
    /// Returns where a request would go now, and why; it takes no place. `not_serving` do not list its model; `matched` supposes so many
    /// tokens of its prompt in a backend's prefix cache, in place of what is expected there.
    #[must_use]
    pub fn explanation(
        &self,
        facts: &RequestFacts,
        not_serving: &[BackendId],
        matched: &[(BackendId, u32)],
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Explanation {
        // Those that do not list the model count as tried: dispatch treats them so.
        let explained = self.explain(facts, not_serving, matched, now, rng);
        let arm = |index: ArmIndex| self.arm(index).map_or("?".to_owned(), |arm| arm.name.to_string());
        let backends = self.members().iter().zip(&explained.members);
        Explanation {
            pool: self.model.clone(),
            policy: self.policy,
            request: WeighedRequest {
                prompt_tokens_estimated: facts.est_tokens,
                sequences: facts.sequences,
                kind: facts.kind,
                arm: arm(facts.arm),
            },
            decision: explained.decision,
            why: self.why(&explained),
            backends: backends
                .map(|(member, (fate, row))| ExplainedBackend::new(member, arm(member.arm), *fate, *row, now))
                .collect(),
            notes: Vec::new(),
        }
    }

    fn why(&self, explained: &Explained) -> String {
        let name = |id: BackendId| {
            let found = self.members().iter().find(|member| member.backend.id == id);
            found.map_or(id.to_string(), |one| format!("{id} ({})", one.backend.url.authority()))
        };
        match &explained.decision {
            Some(decision) => explained.trace.why_named(decision, &name),
            None if explained.members.iter().any(|(fate, _)| *fate == Fate::Full) => {
                "no backend has room: the request would wait for one".to_owned()
            }
            None => "no backend may have the request".to_owned(),
        }
    }
}

impl ExplainedBackend {
    fn new(member: &Member, arm: String, fate: Fate, row: Considered, now: Time) -> ExplainedBackend {
        let backend = &member.backend;
        // A moment after the decision. The row has what was decided by; this is only shown beside it.
        let scrape = backend.load.view(now).scrape;
        ExplainedBackend {
            id: backend.id.to_string(),
            url: backend.url.to_string(),
            arm,
            state: member.state.label().to_owned(),
            state_reason: member.state.reason().map(str::to_owned),
            verdict: fate,
            queue_depth: scrape.as_ref().and_then(|scrape| scrape.queue_depth),
            scrape_age_seconds: scrape.as_ref().map(|scrape| scrape.age_seconds),
            scrape_stale: scrape.as_ref().map(|scrape| scrape.stale),
            predicted_ttft_seconds: row.terms.ttft(),
            score: row.terms.score(),
            row,
        }
    }
}
