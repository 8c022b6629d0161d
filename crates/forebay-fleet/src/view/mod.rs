//! The fleet as JSON for `/api/fleet`: every number that the router sees, and what it would predict for a request of 500
//! tokens. Shows no secret.

pub mod explain;
mod gauges;

use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::config::model::{Affinity, SessionKey};
use crate::health::HealthState;
use crate::load::view::LoadView;
use crate::locked;
use crate::membership::replicas::ReplicationView;
use crate::membership::snapshot::Snapshot;
use crate::pool::{Member, Pool};
use crate::source::SourceView;
use forebay_core::clock::Time;
use forebay_core::routing::affinity::Marks;
use forebay_core::routing::candidate::{Candidate, PoolRatios};
use forebay_core::routing::cost::{self, Terms};
use forebay_core::routing::eligible::Standing;
use forebay_core::routing::facts::{ArmIndex, Kind, RequestFacts};
use forebay_core::routing::policy::PolicyName;
use forebay_core::units::BackendId;

/// Prompt tokens of the request that predictions are shown for.
pub const SAMPLE_PROMPT: u32 = 500;

/// The fleet at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FleetView {
    /// Counts the snapshots of this process.
    pub generation: u64,
    /// Now, in microseconds of the process's own clock: what the times in `row` and `standing` are measured by.
    pub now: Time,
    /// The replicas of this proxy.
    pub replicas: ReplicationView,
    /// The pools, in the order of the config.
    pub pools: Vec<PoolView>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolView {
    /// The model's name.
    pub model: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// The policy's name.
    pub policy: PolicyName,
    /// The facts that requests are recognised by, to send them where their prompt's beginning is cached.
    pub affinity: Affinity,
    /// The fact that makes requests a session.
    pub session: SessionKey,
    /// Another salt, another split of the same sessions.
    pub split_salt: String,
    /// True if a request may leave its arm.
    pub cross_arm: bool,
    /// TTFT ratio of the pool: what a backend without samples is taken for.
    pub k: f64,
    /// Step time ratio of the pool.
    pub v: f64,
    /// Prompt tokens assumed for a foreign waiting request.
    pub mean_prompt_tokens: f64,
    /// Retries that the budget would pay for now.
    pub retry_budget: f64,
    /// Sequences that one backend may have in flight; none: no limit.
    pub backend_max_in_flight: Option<u32>,
    /// Backends that are kept free for a request that waits.
    pub held: Vec<BackendId>,
    /// The wait room.
    pub wait_room: WaitRoomView,
    /// The arms.
    pub arms: Vec<ArmView>,
}

/// A place where requests wait while every backend is at its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WaitRoomView {
    /// Requests that wait.
    pub waiting: u32,
    /// Requests that may.
    pub size: usize,
    /// Time that one may wait, in seconds.
    pub timeout_seconds: f64,
    /// Sessions, or clients without one, that take turns.
    pub lanes: usize,
    /// Time that the one that came first has waited.
    pub longest_wait_seconds: Option<f64>,
}

/// One arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmView {
    /// Its name.
    pub name: String,
    /// Its part of the sessions, relative to the other arms' shares.
    pub share: f64,
    /// GPUs that it occupies.
    pub gpus: u32,
    /// Requests assigned to it that another arm served.
    pub crossed: u64,
    /// Requests assigned to it that wait for a backend with room.
    pub waiting: u32,
    /// The source that names its backends, and how it does; none: the configuration lists them.
    pub source: Option<SourceView>,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendView {
    /// Its identity.
    pub id: BackendId,
    /// Host and port: its label in metrics.
    #[serde(skip)]
    pub authority: String,
    /// The URL that it listens at.
    pub url: String,
    /// The operator's prior.
    pub speed: f64,
    /// The models that it lists.
    pub models: Vec<String>,
    /// `healthy`, `ejected`, `probing`, `misconfigured` or `drained`.
    pub state: &'static str,
    /// The reason, where there is something to say.
    pub reason: Option<String>,
    /// For how long it has been in this state.
    pub state_for_seconds: f64,
    /// Time since it was found to show no progress, while that lasts.
    pub stalled_for_seconds: Option<f64>,
    /// TTFT ratio: 1 is as expected, 2 twice as slow.
    pub k: f64,
    /// Seconds of expected TTFT behind `k`, decayed.
    pub k_weight_seconds: f64,
    /// Step time ratio.
    pub v: f64,
    /// Seconds of expected gaps behind `v`, decayed.
    pub v_weight_seconds: f64,
    /// Predicted TTFT of a streamed request of `SAMPLE_PROMPT` tokens, in seconds.
    pub predicted_ttft_seconds: f64,
    /// The prediction by its terms.
    pub terms: Terms,
    /// Its load.
    pub load: LoadView,
    /// The standing that eligibility makes of its state.
    pub standing: Standing,
    /// The row that a policy sees of it, as `forebay explain` decides by it; times in microseconds, as `now`.
    pub row: Candidate,
}

impl FleetView {
    /// The fleet of this snapshot, with loads as of `now`.
    #[must_use]
    pub fn new(snapshot: &Snapshot, now: Time) -> FleetView {
        FleetView {
            generation: snapshot.generation,
            now,
            replicas: snapshot.replication.view(now),
            pools: snapshot.pools.iter().map(|pool| PoolView::new(pool, now)).collect(),
        }
    }
}

impl PoolView {
    /// One pool, with loads as of `now`.
    #[must_use]
    pub fn new(pool: &Pool, now: Time) -> PoolView {
        let (mean_prompt, retry_budget, room, mut rows) = {
            let gate = locked(&pool.gate);
            let mean_prompt = gate.mean_prompt(now);
            let row = |(place, member): (u16, &Member)| {
                gate.slots.get(member.backend.load.slot()).row(
                    member.backend.id,
                    place,
                    mean_prompt,
                    now,
                    gate.pace.lived(now),
                )
            };
            let rows: Vec<Candidate> = (0_u16..).zip(&pool.members).map(row).collect();
            (mean_prompt, gate.budget.left(now), gate.room.view(now), rows)
        };
        let healthy = |row: &&Candidate| pool.members[usize::from(row.member)].state == HealthState::Healthy;
        let ratios = PoolRatios::of(rows.iter().filter(healthy));
        ratios.fill(&mut rows);
        let arms = (0_u16..).zip(&pool.arms).map(|(index, arm)| ArmView {
            name: arm.name.to_string(),
            share: arm.share,
            gpus: arm.gpus,
            crossed: arm.crossed.load(Ordering::Relaxed),
            waiting: room.waiting_for(ArmIndex(index)),
            source: arm.source.as_ref().map(|source| source.view(now)),
            backends: pool
                .members
                .iter()
                .zip(&pool.seats)
                .zip(&rows)
                .filter(|((member, _), _)| member.arm == ArmIndex(index))
                .map(|((member, seat), row)| BackendView::new(member, seat.standing, row, now))
                .collect(),
        });
        PoolView {
            model: pool.model.clone(),
            aliases: pool.aliases.clone(),
            policy: pool.policy,
            affinity: pool.affinity,
            session: pool.session.clone(),
            split_salt: pool.split_salt.clone(),
            cross_arm: pool.cross_arm,
            k: ratios.k,
            v: ratios.v,
            mean_prompt_tokens: mean_prompt,
            retry_budget,
            backend_max_in_flight: pool.max_in_flight,
            held: room.held.clone(),
            wait_room: WaitRoomView {
                waiting: room.waiting(),
                size: pool.wait_room.size,
                timeout_seconds: pool.wait_room.timeout.as_secs_f64(),
                lanes: room.lanes,
                longest_wait_seconds: room.longest.map(|wait| wait.as_secs_f64()),
            },
            arms: arms.collect(),
        }
    }
}

impl BackendView {
    fn new(member: &Member, standing: Standing, row: &Candidate, now: Time) -> BackendView {
        let facts = RequestFacts {
            est_tokens: SAMPLE_PROMPT,
            sequences: 1,
            kind: Kind::Stream,
            arm: member.arm,
            pinned: None,
            marks: Marks::NONE,
        };
        let terms = cost::terms(row, &facts, now);
        let backend = &member.backend;
        BackendView {
            id: backend.id,
            authority: backend.url.authority().to_owned(),
            url: backend.url.to_string(),
            speed: backend.speed,
            models: backend.models.load().iter().filter_map(|card| card["id"].as_str().map(str::to_owned)).collect(),
            state: member.state.label(),
            reason: member.state.reason().map(str::to_owned),
            state_for_seconds: now.secs_since(member.since),
            stalled_for_seconds: member.stalled.map(|since| now.secs_since(since)),
            k: row.k,
            k_weight_seconds: row.ttft.expected,
            v: row.v,
            v_weight_seconds: row.gap.expected,
            predicted_ttft_seconds: terms.ttft(),
            terms,
            load: backend.load.view(now),
            standing,
            row: *row,
        }
    }
}
