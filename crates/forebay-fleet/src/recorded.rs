//! A fleet that was written down, as `/api/fleet` answers it, and the decisions that it would make: by the same admission,
//! rows and policies as the live one's. What the live one keeps to itself is the table of who was sent which prompt: it is
//! keyed by the process, so tokens that are to count as cached are the caller's to say.

use serde::Deserialize;

use super::snapshot::policy;
use crate::config::model::{Affinity, PolicyName, SessionKey};
use forebay_core::clock::Time;
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::eligible::{Seat, Standing};
use forebay_core::routing::explain::{Book, Explained, explain};
use forebay_core::routing::facts::{ArmIndex, RequestFacts};
use forebay_core::routing::split::Split;
use forebay_core::units::BackendId;

/// The fleet at one moment.
#[derive(Clone, Debug, Deserialize)]
pub struct Recorded {
    /// When that was, by the process's own clock.
    pub now: Time,
    /// The pools, in the order of the config.
    pub pools: Vec<RecordedPool>,
}

/// One pool.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedPool {
    /// The model's name.
    pub model: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// The policy's name.
    pub policy: PolicyName,
    /// What requests are recognised by.
    pub affinity: Affinity,
    /// What makes requests a session.
    pub session: SessionKey,
    split_salt: String,
    cross_arm: bool,
    backend_max_in_flight: Option<u32>,
    held: Vec<BackendId>,
    /// The arms.
    pub arms: Vec<RecordedArm>,
}

/// One arm.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedArm {
    /// Its name.
    pub name: String,
    share: f64,
    /// Its backends.
    pub backends: Vec<RecordedBackend>,
}

/// One backend.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedBackend {
    /// Its identity.
    pub id: BackendId,
    /// Where it listens.
    pub url: String,
    /// Its state, as it is shown.
    pub state: String,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    models: Vec<String>,
    standing: Standing,
    row: Candidate,
    load: RecordedLoad,
}

#[derive(Clone, Debug, Deserialize)]
struct RecordedLoad {
    scrape: Option<RecordedScrape>,
}

/// What its last scrape said.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct RecordedScrape {
    /// Its age.
    pub age_seconds: f64,
    /// Too old to be believed.
    pub stale: bool,
    /// Sequences that vLLM says are waiting.
    pub queue_depth: Option<f64>,
}

impl Recorded {
    /// The pool that serves this model, by its name, an alias or a backend's list; the only pool, where none is named.
    ///
    /// # Errors
    /// No pool serves it, or none is named and there are several.
    pub fn pool(&self, model: Option<&str>) -> Result<&RecordedPool, String> {
        let served = || self.pools.iter().map(|pool| pool.model.as_str()).collect::<Vec<_>>().join(", ");
        let Some(model) = model else {
            return match self.pools.as_slice() {
                [only] => Ok(only),
                _ => Err(format!("the request names no model; served are {}", served())),
            };
        };
        let named = self.pools.iter().find(|pool| pool.names(model));
        let listed = || self.pools.iter().find(|pool| pool.backends().any(|(_, backend)| backend.lists(model)));
        named.or_else(listed).ok_or_else(|| format!("no pool serves `{model}`; served are {}", served()))
    }
}

impl RecordedPool {
    fn names(&self, model: &str) -> bool {
        self.model == model || self.aliases.iter().any(|alias| alias == model)
    }

    /// Every backend with its arm, in the pool's order.
    pub fn backends(&self) -> impl Iterator<Item = (ArmIndex, &RecordedBackend)> {
        let arms = (0_u16..).map(ArmIndex).zip(&self.arms);
        arms.flat_map(|(index, arm)| arm.backends.iter().map(move |backend| (index, backend)))
    }

    /// The arm of this session; of a request without one, an arm drawn by share.
    #[must_use]
    pub fn assign(&self, session: Option<&str>, rng: &mut fastrand::Rng) -> ArmIndex {
        Split::new(&self.split_salt, self.arms.iter().map(|arm| (arm.name.clone(), arm.share))).assign(session, rng)
    }

    /// What the dispatcher would have decided for a request for `model`; `matched`: tokens of its prompt that are taken to be
    /// in a backend's prefix cache.
    #[must_use]
    pub fn explain(
        &self,
        model: Option<&str>,
        facts: &RequestFacts,
        matched: &[(BackendId, u32)],
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Explained {
        let row = |backend: &RecordedBackend| {
            let matched = matched.iter().find(|(id, _)| *id == backend.id).map_or(0, |(_, tokens)| *tokens);
            Candidate { matched: matched.min(facts.est_tokens), ..backend.row }
        };
        let book = Book {
            seats: self.backends().map(|(arm, one)| Seat { id: one.id, arm, standing: one.standing }).collect(),
            rows: (0_u16..).zip(self.backends()).map(|(member, (_, one))| Candidate { member, ..row(one) }).collect(),
            cross_arm: self.cross_arm,
            policy: self.policy.as_str(),
            max_in_flight: self.backend_max_in_flight,
            held: self.held.clone(),
        };
        let adapter = model.filter(|model| !self.names(model));
        let not_serving: Vec<BackendId> = match adapter {
            Some(model) => self.backends().filter(|(_, one)| !one.lists(model)).map(|(_, one)| one.id).collect(),
            None => Vec::new(),
        };
        explain(&book, policy(self.policy), facts, &not_serving, now, rng)
    }
}

impl RecordedBackend {
    fn lists(&self, model: &str) -> bool {
        self.models.iter().any(|listed| listed == model)
    }

    /// What its last good scrape said; none before the first.
    #[must_use]
    pub fn scrape(&self) -> Option<RecordedScrape> {
        self.load.scrape
    }
}
