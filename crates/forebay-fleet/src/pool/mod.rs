//! A pool: the backends that serve one model, and how a request gets a place on one of them. `gate` holds what changes with every
//! request; `dispatch` decides under it and takes the place; `wait` is for requests that find every place taken; a `ticket`
//! gives the place back.
//!
//! Hot path: reads only; what changes is behind the gate, which outlives a pool of one configuration.

pub(crate) mod backend;
pub(crate) mod dispatch;
pub(crate) mod gate;
pub(crate) mod placed;
pub(crate) mod room;
pub(crate) mod ticket;
pub(crate) mod wait;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::model::{Affinity, SessionKey, WaitRoom};
use crate::health::HealthState;
use crate::locked;
use crate::source::Source;
use crate::telemetry::Telemetry;
use crate::telemetry::figures::Figures;
use crate::telemetry::metrics::BackendMetrics;
use backend::Backend;
use forebay_core::clock::Time;
use forebay_core::routing::eligible::{Seat, Standing};
use forebay_core::routing::facts::ArmIndex;
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::split::{Session, Split};
use gate::Gate;

/// A labelled part of a pool.
#[derive(Clone, Debug)]
pub struct Arm {
    /// Its name, a metric label.
    pub name: Arc<str>,
    /// Its part of the sessions, relative to the other arms' shares.
    pub share: f64,
    /// GPUs that it occupies.
    pub gpus: u32,
    /// The source that names its backends; none: the configuration lists them.
    pub source: Option<Arc<Source>>,
    pub(crate) crossed: Arc<AtomicU64>,
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
    /// Its state.
    pub state: HealthState,
    /// Moment since which it is so.
    pub since: Time,
    /// Moment at which it was found to show no progress, while that lasts.
    pub stalled: Option<Time>,
    /// The standing that routing makes of that.
    pub(crate) standing: Standing,
}

/// The backends that serve one model.
#[derive(Debug)]
pub struct Pool {
    /// The model's name as its backends know it.
    pub model: String,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// True if a backend is asked for a model that none lists.
    pub tries_unknown: bool,
    /// True if the pool was made of what its backends list: a backend then serves the names on its list and no other.
    pub by_list: bool,
    /// The policy's name.
    pub policy: PolicyName,
    /// The fact that makes requests a session.
    pub session: SessionKey,
    /// Another salt, another split of the same sessions.
    pub split_salt: String,
    /// The facts that requests are recognised by, to send them where their prompt's beginning is cached.
    pub affinity: Affinity,
    /// True if a request may leave its arm.
    pub cross_arm: bool,
    /// Sequences that one backend may have in flight; none: no limit.
    pub max_in_flight: Option<u32>,
    /// A place where requests wait while every backend is at its limit.
    pub wait_room: WaitRoom,
    /// The metric handles of requests that got no backend.
    pub unrouted: Arc<BackendMetrics>,
    /// Panics of decisions for those that wait.
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) arms: Vec<Arm>,
    pub(crate) members: Vec<Member>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) split: Split,
    /// Outlives the snapshot: old and new dispatch through the same gate.
    pub(crate) gate: Arc<Mutex<Gate<Pool>>>,
    /// Of its snapshot.
    pub(crate) generation: u64,
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

    /// The arm of a request whose session was kept by another pool.
    #[must_use]
    pub fn assign_kept(&self, session: Option<&Session>, rng: &mut fastrand::Rng) -> ArmIndex {
        self.split.assign_kept(session, rng)
    }

    /// A session as it is kept while its request lasts.
    #[must_use]
    pub fn session_of(&self, session: &str) -> Session {
        self.split.session(session)
    }

    /// Returns whether nobody is there: each backend is out, or has not answered yet, as while all of them load.
    #[must_use]
    pub fn is_up_nowhere(&self) -> bool {
        self.members.iter().all(|member| !member.state.is_usable() || !member.backend.load.was_heard())
    }

    /// Pays for one retry out of the pool's budget; false if it is spent.
    #[must_use]
    pub fn retry(&self, now: Time) -> bool {
        locked(&self.gate).budget.withdraw(now)
    }
}
