//! The single writer of the snapshot: takes configurations and signs of health, keeps every backend's identity, and publishes a
//! new snapshot on a change. Any thread may call it, but not under a pool's gate, which it takes itself. It is on no hot path.
//!
//! A backend is the same as before if pool model, arm name and URL are: it keeps its id, its load and its listed models. One
//! that was removed and comes back is another: its old tickets count on the old load until they end.

mod discovery;
pub mod drains;
mod replication;
mod settings;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;

use super::record::{Change, MemberKey, MemberRecord};
use super::replicas::{Replication, agree, identity};
use super::snapshot::{Fleet, Snapshot};
use crate::config::model::{self, UnknownModels};
use crate::health::reports::{HealthKeeper, Reports};
use crate::health::{Effect, Probed};
use crate::load::{Load, LoadState};
use crate::locked;
use crate::pool::backend::Backend;
use crate::pool::gate::Gate;
use crate::pool::{Arm, Member, Pool, wait};
use crate::reach::Endpoint;
use crate::telemetry::Telemetry;
use crate::telemetry::figures::Figures;
use crate::telemetry::metrics::NONE;
use crate::tls::ClientTls;
use discovery::Discovered;
use drains::AddressDrain;
use forebay_core::clock::Time;
use forebay_core::error::Failure;
use forebay_core::routing::eligible::Seat;
use forebay_core::routing::facts::ArmIndex;
use forebay_core::routing::split::Split;
use forebay_core::units::BackendId;
pub use settings::Settings;
use settings::bucket;

/// The writer.
#[derive(Debug)]
pub struct Controller(Arc<Core>);

/// The models that backends list, by the URLs of the backends.
pub type Lists = HashMap<String, Arc<Vec<serde_json::Value>>>;

/// The state that the writer and those who report to it share.
#[derive(Debug)]
pub(crate) struct Core {
    fleet: Fleet,
    pub(crate) inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// Those of all replicas together.
    pub(super) settings: Settings,
    pub(super) replication: Replication,
    telemetry: Arc<Telemetry>,
    /// The pools that hold: the configured ones with what was found.
    pools: Vec<model::PoolConfig>,
    discovered: Discovered,
    pub(crate) entries: HashMap<MemberKey, MemberRecord>,
    /// The drains by hand, by the address of the backends: an address may move to another arm, or be left out for a while.
    pub(crate) drains: BTreeMap<String, AddressDrain>,
    pub(super) gates: HashMap<String, Arc<Mutex<Gate<Pool>>>>,
    crossed: HashMap<(String, String), Arc<AtomicU64>>,
    figures: HashMap<(String, String), Arc<Figures>>,
    next_id: u32,
    generation: u64,
    /// The models that each backend is known to list, where the pools are made of that.
    lists: Option<Lists>,
    /// Spreads ejections.
    rng: fastrand::Rng,
}

impl Controller {
    /// A controller of no pools; backends get their metric handles from `telemetry`.
    #[must_use]
    pub fn new(settings: Settings, telemetry: Arc<Telemetry>) -> Controller {
        let inner = Inner {
            replication: Replication::configured(settings.replicas, settings.counted_by.as_ref()),
            settings,
            telemetry,
            pools: Vec::new(),
            discovered: Discovered::default(),
            entries: HashMap::new(),
            drains: BTreeMap::new(),
            gates: HashMap::new(),
            crossed: HashMap::new(),
            figures: HashMap::new(),
            next_id: 0,
            generation: 0,
            lists: None,
            rng: fastrand::Rng::new(),
        };
        Controller(Arc::new(Core { fleet: Fleet::default(), inner: Mutex::new(inner) }))
    }

    /// Returns the controller with chance that repeats itself, for virtual time.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Controller {
        locked(&self.0.inner).rng = fastrand::Rng::with_seed(seed);
        self
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// The handle that readers get.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.0.fleet
    }

    /// Takes over these pools, which were made of what backends list, in place of all there were.
    pub fn apply_listed(&self, pools: &[model::PoolConfig], lists: Lists, now: Time) {
        locked(&self.0.inner).lists = Some(lists);
        self.apply(pools, now);
    }

    /// Takes over these pools in place of all there were. What the sources of their arms have found stays.
    pub fn apply(&self, pools: &[model::PoolConfig], now: Time) {
        let mut inner = locked(&self.0.inner);
        let Inner { discovered, pools: before, .. } = &mut *inner;
        discovered.configure(pools, before);
        self.settle(&mut inner, now);
    }

    /// Makes the snapshot of the configured pools and of what was found.
    pub(super) fn settle(&self, inner: &mut Inner, now: Time) {
        let pools = inner.discovered.effective();
        let mut kept = HashMap::new();
        for pool in &pools {
            for arm in &pool.arms {
                for config in &arm.backends {
                    let key = MemberKey::of(pool, arm, config);
                    // Weak, since the core owns the backends, which own their reports.
                    let keeper: Weak<Core> = Arc::downgrade(&self.0);
                    let reports = Reports::to(keeper);
                    let tls = pool.tls.as_ref().map(|tls| &tls.client);
                    let mut entry = inner.entry(&key, (config, tls), reports, now);
                    entry.named(inner.discovered.leaves(&key), now);
                    kept.insert(key, entry);
                }
            }
        }
        // What is not in the new configuration is dropped here. Attempts under way hold their backend until they end.
        inner.entries = kept;
        let is_arm = |(model, name): &(String, String)| {
            pools.iter().any(|pool| pool.model == *model && pool.arms.iter().any(|arm| arm.name == *name))
        };
        inner.figures.retain(|arm, _| is_arm(arm));
        let is_kept = |model: &String| pools.iter().any(|pool| pool.model == *model);
        // Readers must not find a pool whose waiters were sent away, so the snapshot is replaced before they are told.
        let gone: Vec<_> = inner.gates.extract_if(|model, _| !is_kept(model)).collect();
        inner.pools = pools;
        self.0.publish(inner, now);
        for (model, gate) in gone {
            wait::close(&gate, &model);
        }
    }

    /// An answer of the backend's `/health`. Here and below: an unknown id is ignored, the backend was removed meanwhile.
    pub fn health(&self, id: BackendId, verdict: Result<(), String>, now: Time) {
        self.0.change(id, now, |change| change.health.answered(verdict, change.rules, now, change.rng));
    }

    /// The backend's `/health` had no answer in time.
    pub fn unanswered(&self, id: BackendId, reason: String, now: Time) {
        self.0.change(id, now, |change| change.health.unanswered(reason, change.rules, now, change.rng));
    }

    /// The backend's port refuses connections: nobody is there.
    pub fn gone(&self, id: BackendId, now: Time) {
        let reason = "its port refuses connections".to_owned();
        self.0.change(id, now, |change| change.health.died(reason, change.rules, now, change.rng));
    }

    /// The watchdog found that the backend makes no progress.
    pub fn hung(&self, id: BackendId, reason: impl Into<String>, now: Time) {
        let reason = reason.into();
        self.0.change(id, now, |change| change.health.hung(reason, change.rules, now, change.rng));
    }

    /// Returns whether a probe with a request shall go to the backend now. Its result is told by [`Controller::probed`].
    #[must_use]
    pub fn wants_probe(&self, id: BackendId, now: Time) -> bool {
        let mut due = false;
        self.0.change(id, now, |change| {
            due = change.health.probe(now);
            Effect::None
        });
        due
    }

    /// Takes the result of a probe with a request.
    pub fn probed(&self, id: BackendId, probed: Probed, now: Time) {
        self.0.change(id, now, |change| change.health.probed(probed, change.rules, now, change.rng));
    }
}

impl Core {
    /// Changes the health of one backend and publishes what that changed.
    pub(crate) fn change(&self, id: BackendId, now: Time, act: impl FnOnce(Change<'_>) -> Effect) {
        let mut inner = locked(&self.inner);
        let Inner { settings, entries, rng, .. } = &mut *inner;
        let Some(entry) = entries.values_mut().find(|entry| entry.backend.id == id) else { return };
        if entry.change(&settings.rules, rng, now, act) {
            self.publish(&mut inner, now);
        }
    }

    pub(crate) fn publish(&self, inner: &mut Inner, now: Time) {
        inner.generation += 1;
        inner.telemetry.process.replicas.set(f64::from(inner.replication.count.get()));
        let configs = std::mem::take(&mut inner.pools);
        let pools: Vec<Arc<Pool>> = configs.iter().map(|config| Arc::new(inner.pool(config, now))).collect();
        inner.pools = configs;
        self.fleet.publish(Snapshot::new(inner.generation, pools.clone(), inner.replication.clone()));
        // Whoever waits may now have somewhere to go, or nothing left to wait for.
        pools.iter().for_each(Pool::take_over);
    }
}

impl HealthKeeper for Core {
    fn failed(&self, id: BackendId, row: u32, failure: Failure, now: Time) {
        self.change(id, now, |change| change.health.failed(row, failure.label(), change.rules, now, change.rng));
    }

    fn served(&self, id: BackendId, now: Time) {
        self.change(id, now, |change| change.health.served(now));
    }
}

impl MemberKey {
    fn of(pool: &model::PoolConfig, arm: &model::ArmConfig, backend: &model::BackendConfig) -> MemberKey {
        MemberKey { pool: pool.model.clone(), arm: arm.name.clone(), url: backend.url.to_string() }
    }
}

impl Inner {
    /// Returns the models that this backend is known to list.
    fn listed(&self, url: &model::BackendUrl) -> Arc<Vec<serde_json::Value>> {
        self.lists.as_ref().and_then(|lists| lists.get(&url.to_string()).cloned()).unwrap_or_default()
    }

    /// The entry of this backend: the one there is, brought up to date, or a new one.
    fn entry(
        &mut self,
        key: &MemberKey,
        (config, tls): (&model::BackendConfig, Option<&ClientTls>),
        reports: Reports,
        now: Time,
    ) -> MemberRecord {
        if let Some(mut entry) = self.entries.remove(key) {
            let old_way = entry.backend.endpoint.is_met_by(&config.url, tls);
            // A new backend over the same load, alarm and figures: readers hold the old one, which nobody may change.
            if entry.config != *config || !old_way {
                let endpoint = if old_way {
                    Arc::clone(&entry.backend.endpoint)
                } else {
                    Arc::new(Endpoint::new(&config.url, tls))
                };
                entry.backend = Arc::new(Backend {
                    url: config.url.clone(),
                    endpoint,
                    speed: config.speed,
                    key: config.key.clone(),
                    reports,
                    ..Backend::clone(&entry.backend)
                });
                entry.backend.load.retune(config.speed, self.stale_after());
                if entry.config.key != config.key || !old_way {
                    // A backend that refused our key or our certificate may take the new one.
                    entry.health.configured();
                }
                entry.config = config.clone();
            }
            entry.settle(now);
            return entry;
        }
        let id = BackendId(self.next_id);
        self.next_id += 1;
        let gate = self.gate(&key.pool, now);
        // The slot is in the pool's gate, where a decision reads all loads under one lock.
        let slot = locked(&gate).slots.take(LoadState::new(config.speed, self.stale_after()));
        let backend = Backend {
            id,
            identity: identity(&config.url),
            url: config.url.clone(),
            endpoint: Arc::new(Endpoint::new(&config.url, tls)),
            pool: key.pool.as_str().into(),
            arm: key.arm.as_str().into(),
            speed: config.speed,
            key: config.key.clone(),
            load: Arc::new(Load::new(gate, slot)),
            alarm: Arc::default(),
            doubt: Arc::default(),
            models: Arc::new(ArcSwap::new(self.listed(&config.url))),
            reports,
            metrics: self.telemetry.backend(&key.pool, &key.arm, config.url.authority()),
            figures: Arc::new(Figures::new(now)),
        };
        let drained = self.drains.get(config.url.authority()).map(|drain| drain.words.clone());
        MemberRecord::new(config.clone(), Arc::new(backend), (drained, Arc::clone(&self.telemetry.events)), now)
    }

    fn pool(&mut self, config: &model::PoolConfig, now: Time) -> Pool {
        let arms: Vec<Arm> = config
            .arms
            .iter()
            .map(|arm| Arm {
                name: arm.name.as_str().into(),
                share: arm.share,
                gpus: arm.gpus,
                source: self.discovered.source(&config.model, &arm.name),
                crossed: Arc::clone(self.crossed.entry((config.model.clone(), arm.name.clone())).or_default()),
                figures: Arc::clone(
                    self.figures
                        .entry((config.model.clone(), arm.name.clone()))
                        .or_insert_with(|| Arc::new(Figures::new(now))),
                ),
            })
            .collect();
        let members = self.members(config);
        let seats: Vec<Seat> = members
            .iter()
            .map(|member| Seat { id: member.backend.id, arm: member.arm, standing: member.standing })
            .collect();
        // By model: waiters and loads outlive the pool that a reload replaces.
        let gate = self.gate(&config.model, now);
        // Now, so that no dispatch allocates under the lock.
        let mut held = locked(&gate);
        held.reserve(members.len(), arms.len(), config.affinity);
        agree(&mut held.affinity, self.replication.count, &members);
        drop(held);
        Pool {
            model: config.model.clone(),
            aliases: config.aliases.clone(),
            tries_unknown: config.unknown_models == UnknownModels::Try,
            by_list: self.lists.is_some(),
            policy: config.policy,
            session: config.session.clone(),
            affinity: config.affinity,
            split_salt: config.split_salt.clone(),
            cross_arm: config.cross_arm,
            max_in_flight: config.backend_max_in_flight.map(|limit| self.replication.count.part(limit)),
            wait_room: self.replication.count.part_of_room(config.wait_room),
            telemetry: Arc::clone(&self.telemetry),
            unrouted: self.telemetry.backend(&config.model, NONE, NONE),
            split: Split::new(&config.split_salt, config.arms.iter().map(|arm| (arm.name.clone(), arm.share))),
            arms,
            members,
            seats,
            gate,
            generation: self.generation,
        }
    }

    /// The gate of this pool, made when the pool is.
    fn gate(&mut self, model: &str, now: Time) -> Arc<Mutex<Gate<Pool>>> {
        let budget = self.replication.count.part_of_budget(self.settings.budget);
        let gate =
            self.gates.entry(model.to_owned()).or_insert_with(|| Arc::new(Mutex::new(Gate::new(bucket(budget, now)))));
        Arc::clone(gate)
    }

    fn members(&self, config: &model::PoolConfig) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        for (index, arm) in (0_u16..).zip(&config.arms) {
            for backend in &arm.backends {
                let Some(entry) = self.entries.get(&MemberKey::of(config, arm, backend)) else { continue };
                if members.iter().any(|member| member.backend.id == entry.backend.id) {
                    continue; // one address written twice is one backend
                }
                members.push(Member {
                    backend: Arc::clone(&entry.backend),
                    arm: ArmIndex(index),
                    state: entry.state.clone(),
                    standing: entry.health.standing(entry.drain().is_some()),
                    since: entry.since,
                    stalled: entry.health.stalled_since(),
                });
            }
        }
        members
    }
}
