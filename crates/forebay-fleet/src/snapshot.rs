//! One immutable picture of the fleet: pools, arms, members and their health. Readers load it once a request and may keep it
//! for as long as they like; only the controller makes one.
//!
//! Hot path: reads only. What changes with every request (loads, a pool's gate) is behind pointers that outlive a snapshot.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::backend::Backend;
use super::gate::Gate;
use super::health::State;
use super::locked;
use crate::config::model::{Affinity, SessionKey, WaitRoom};
use crate::telemetry::Telemetry;
use crate::telemetry::figures::Figures;
use crate::telemetry::metrics::BackendMetrics;
use forebay_core::clock::Time;
use forebay_core::routing::eligible::{Seat, Standing};
use forebay_core::routing::facts::ArmIndex;
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::split::Split;
use forebay_core::units::BackendId;

/// A handle to the fleet as it is now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fleet(Arc<ArcSwap<Snapshot>>);

impl Fleet {
    /// The present snapshot. Load it once a request.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Replaces the snapshot; the controller alone calls it.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

/// The fleet at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the snapshots of this process.
    pub generation: u64,
    /// The pools, in the order of the config.
    pub pools: Vec<Arc<Pool>>,
    names: HashMap<String, usize>,
    backends: HashMap<BackendId, Arc<Backend>>,
}

impl Snapshot {
    pub(super) fn new(generation: u64, pools: Vec<Arc<Pool>>) -> Snapshot {
        let mut names = HashMap::new();
        for (at, pool) in pools.iter().enumerate() {
            for name in std::iter::once(&pool.model).chain(&pool.aliases) {
                names.entry(name.clone()).or_insert(at);
            }
        }
        let backends =
            pools.iter().flat_map(|pool| pool.members()).map(|member| (member.backend.id, Arc::clone(&member.backend)));
        Snapshot { generation, names, backends: backends.collect(), pools }
    }

    /// The pool that serves this model, by its name or an alias.
    #[must_use]
    pub fn pool(&self, model_or_alias: &str) -> Option<&Arc<Pool>> {
        self.names.get(model_or_alias).and_then(|&at| self.pools.get(at))
    }

    /// Every backend, in the order of pools, arms and config.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.pools.iter().flat_map(|pool| pool.members()).map(|member| &member.backend)
    }

    /// The backend with this id, if it is still configured.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> Option<&Arc<Backend>> {
        self.backends.get(&id)
    }
}

/// A labelled part of a pool.
#[derive(Clone, Debug)]
pub struct Arm {
    /// Its name, a metric label.
    pub name: Arc<str>,
    /// Its part of the sessions, relative to the other arms' shares.
    pub share: f64,
    /// GPUs that it occupies.
    pub gpus: u32,
    pub(super) crossed: Arc<AtomicU64>,
    /// The live figures of the requests that are assigned to it, whoever serves them.
    pub figures: Arc<Figures>,
}

impl Arm {
    /// Requests assigned to this arm that another arm served, since the start of the process.
    #[must_use]
    pub fn crossed(&self) -> u64 {
        self.crossed.load(Ordering::Relaxed)
    }
}

/// A backend in its pool, with its health as of the snapshot.
#[derive(Clone, Debug)]
pub struct Member {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Its arm.
    pub arm: ArmIndex,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// What routing makes of that.
    pub(super) standing: Standing,
}

/// The backends that serve one model.
#[derive(Debug)]
pub struct Pool {
    /// The model's name as its backends know it.
    pub model: String,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// The policy's name.
    pub policy: PolicyName,
    /// What makes requests a session.
    pub session: SessionKey,
    /// Another salt, another split of the same sessions.
    pub split_salt: String,
    /// What requests are recognised by, to send them where their prompt's beginning is cached.
    pub affinity: Affinity,
    /// Whether a request may leave its arm.
    pub cross_arm: bool,
    /// Sequences that one backend may have in flight; none: no limit.
    pub max_in_flight: Option<u32>,
    /// Where requests wait while every backend is at its limit.
    pub wait_room: WaitRoom,
    /// The metric handles of requests that got no backend.
    pub unrouted: Arc<BackendMetrics>,
    /// Panics of decisions for those that wait.
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) arms: Vec<Arm>,
    pub(super) members: Vec<Member>,
    pub(super) seats: Vec<Seat>,
    pub(super) split: Split,
    /// Outlives the snapshot: old and new dispatch through the same gate.
    pub(super) gate: Arc<Mutex<Gate>>,
    /// Of its snapshot.
    pub(super) generation: u64,
}

impl Pool {
    /// The arms, by `ArmIndex`.
    #[must_use]
    pub fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// The arm at this place, if the pool has it.
    #[must_use]
    pub fn arm(&self, index: ArmIndex) -> Option<&Arm> {
        self.arms.get(usize::from(index.0))
    }

    /// The backends with their health, arm by arm.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The arm of this session, sticky; of a request without one, an arm drawn by share.
    #[must_use]
    pub fn assign(&self, session: Option<&str>, rng: &mut fastrand::Rng) -> ArmIndex {
        self.split.assign(session, rng)
    }

    /// Pays for one retry out of the pool's budget; false if it is spent.
    #[must_use]
    pub fn retry(&self, now: Time) -> bool {
        locked(&self.gate).budget.withdraw(now)
    }
}
