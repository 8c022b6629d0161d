//! The single writer of the snapshot: takes configurations and probe verdicts, keeps the identity of every backend, publishes
//! a new snapshot when membership, health or configuration changed. Never on the request path; may be called from any thread.
//!
//! A backend is the same as before if pool model, arm name and URL are: it keeps its id, its load and its listed models. One
//! that was removed and comes back is another: its old tickets count on the old load until they end.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::backend::Backend;
use super::gate::Gate;
use super::health::{Health, State};
use super::load::Load;
use super::locked;
use super::snapshot::{Arm, Fleet, Member, Pool, Snapshot};
use super::waiting;
use crate::clock::Time;
use crate::config::model::{self, Budget, Config};
use crate::routing::eligible::Seat;
use crate::routing::facts::ArmIndex;
use crate::routing::retry::Bucket;
use crate::routing::split::Split;
use crate::telemetry::Telemetry;
use crate::telemetry::labels::Ejection;
use crate::telemetry::metrics::NONE;
use crate::units::BackendId;

/// What the fleet takes from the configuration beside its pools.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The age from which a scraped figure counts as absent.
    pub stale_after: Duration,
    /// Bad probes in a row that take a backend out; at least 1.
    pub failures: u32,
    /// The retry budget of each pool.
    pub budget: Budget,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            stale_after: config.scrape.stale_after,
            failures: config.health.failures,
            budget: config.retry.budget,
        }
    }
}

/// The writer.
#[derive(Debug)]
pub struct Controller {
    fleet: Fleet,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    telemetry: Arc<Telemetry>,
    pools: Vec<model::Pool>,
    entries: HashMap<Key, Entry>,
    gates: HashMap<String, Arc<Mutex<Gate>>>,
    crossed: HashMap<(String, String), Arc<AtomicU64>>,
    next_id: u32,
    generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    pool: String,
    arm: String,
    url: String,
}

/// One backend over the time that it is configured.
#[derive(Debug)]
struct Entry {
    config: model::Backend,
    backend: Arc<Backend>,
    health: Health,
    state: State,
    since: Time,
}

impl Entry {
    /// Takes over what health and config say now; whether that changed the state.
    fn settle(&mut self, now: Time) -> bool {
        let state = self.health.state(self.config.drain);
        let changed = state.label() != self.state.label();
        if changed {
            self.since = now;
        }
        let differs = state != self.state;
        self.state = state;
        if changed {
            let (id, url, state, reason) =
                (self.backend.id, &self.backend.url, self.state.label(), self.state.reason());
            tracing::info!(backend = %id, %url, state, reason, "backend changed state");
            match &self.state {
                State::Ejected(_) => self.backend.metrics.ejected(Ejection::Health),
                State::Misconfigured(_) => self.backend.metrics.ejected(Ejection::Misconfigured),
                State::Healthy | State::Drained => {}
            }
        }
        differs
    }
}

impl Controller {
    /// A controller of no pools; backends get their metric handles from `telemetry`.
    #[must_use]
    pub fn new(settings: Settings, telemetry: Arc<Telemetry>) -> Controller {
        Controller {
            fleet: Fleet::default(),
            inner: Mutex::new(Inner {
                settings,
                telemetry,
                pools: Vec::new(),
                entries: HashMap::new(),
                gates: HashMap::new(),
                crossed: HashMap::new(),
                next_id: 0,
                generation: 0,
            }),
        }
    }

    /// The handle that readers get.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Takes over changed settings. A changed retry budget starts full.
    pub fn configure(&self, settings: Settings, now: Time) {
        let mut inner = locked(&self.inner);
        let budget_changed = inner.settings.budget != settings.budget;
        inner.settings = settings;
        if budget_changed {
            for gate in inner.gates.values() {
                locked(gate).budget = bucket(settings.budget, now);
            }
        }
        for entry in inner.entries.values() {
            entry.backend.load.retune(entry.config.speed, settings.stale_after);
        }
    }

    /// Takes over these pools in place of all there were.
    pub fn apply(&self, pools: &[model::Pool], now: Time) {
        let mut inner = locked(&self.inner);
        inner.pools = pools.to_vec();
        let mut kept = HashMap::new();
        for pool in pools {
            for arm in &pool.arms {
                for config in &arm.backends {
                    let key = Key::of(pool, arm, config);
                    let entry = inner.entry(&key, config, now);
                    kept.insert(key, entry);
                }
            }
        }
        inner.entries = kept;
        let is_kept = |model: &String| pools.iter().any(|pool| pool.model == *model);
        let gone: Vec<_> = inner.gates.extract_if(|model, _| !is_kept(model)).collect();
        self.publish(&mut inner, now);
        for (model, gate) in gone {
            waiting::close(&gate, &model);
        }
    }

    /// One probe's verdict. An unknown id is ignored: the backend was removed meanwhile.
    pub fn probe(&self, id: BackendId, verdict: Result<(), String>, now: Time) {
        self.change(id, now, |health, settings| health.probe(verdict, settings.failures));
    }

    /// The backend refused what the config says it serves, or our key: out until `configured`, or until its config changes.
    pub fn misconfigured(&self, id: BackendId, reason: impl Into<String>, now: Time) {
        let reason = reason.into();
        self.change(id, now, |health, _| health.misconfigured(Some(reason)));
    }

    /// The backend serves what the config says again (its `/v1/models` lists the model and takes our key).
    pub fn configured(&self, id: BackendId, now: Time) {
        self.change(id, now, |health, _| health.misconfigured(None));
    }

    fn change(&self, id: BackendId, now: Time, change: impl FnOnce(&mut Health, &Settings)) {
        let mut inner = locked(&self.inner);
        let settings = inner.settings;
        let Some(entry) = inner.entries.values_mut().find(|entry| entry.backend.id == id) else { return };
        change(&mut entry.health, &settings);
        if entry.settle(now) {
            self.publish(&mut inner, now);
        }
    }

    fn publish(&self, inner: &mut Inner, now: Time) {
        inner.generation += 1;
        let configs = std::mem::take(&mut inner.pools);
        let pools: Vec<Arc<Pool>> = configs.iter().map(|config| Arc::new(inner.pool(config, now))).collect();
        inner.pools = configs;
        self.fleet.publish(Snapshot::new(inner.generation, pools.clone()));
        // Whoever waits may now have somewhere to go, or nothing left to wait for.
        pools.iter().for_each(Pool::take_over);
    }
}

impl Key {
    fn of(pool: &model::Pool, arm: &model::Arm, backend: &model::Backend) -> Key {
        Key { pool: pool.model.clone(), arm: arm.name.clone(), url: backend.url.to_string() }
    }
}

impl Inner {
    /// The entry of this backend: the one there is, brought up to date, or a new one.
    fn entry(&mut self, key: &Key, config: &model::Backend, now: Time) -> Entry {
        if let Some(mut entry) = self.entries.remove(key) {
            if entry.config != *config {
                entry.backend = Arc::new(Backend {
                    id: entry.backend.id,
                    url: config.url.clone(),
                    pool: Arc::clone(&entry.backend.pool),
                    arm: Arc::clone(&entry.backend.arm),
                    speed: config.speed,
                    key: config.key.clone(),
                    drain: config.drain,
                    load: Arc::clone(&entry.backend.load),
                    alarm: Arc::clone(&entry.backend.alarm),
                    models: Arc::clone(&entry.backend.models),
                    metrics: Arc::clone(&entry.backend.metrics),
                });
                entry.backend.load.retune(config.speed, self.settings.stale_after);
                if entry.config.key != config.key {
                    entry.health.misconfigured(None);
                }
                entry.config = config.clone();
            }
            entry.settle(now);
            return entry;
        }
        let id = BackendId(self.next_id);
        self.next_id += 1;
        let gate = self.gate(&key.pool, now);
        let backend = Backend {
            id,
            url: config.url.clone(),
            pool: key.pool.as_str().into(),
            arm: key.arm.as_str().into(),
            speed: config.speed,
            key: config.key.clone(),
            drain: config.drain,
            load: Arc::new(Load::new(&gate, config.speed, self.settings.stale_after)),
            alarm: Arc::default(),
            models: Arc::new(ArcSwap::default()),
            metrics: self.telemetry.backend(&key.pool, &key.arm, config.url.authority()),
        };
        let health = Health::default();
        let state = health.state(config.drain);
        Entry { config: config.clone(), backend: Arc::new(backend), health, state, since: now }
    }

    fn pool(&mut self, config: &model::Pool, now: Time) -> Pool {
        let arms: Vec<Arm> = config
            .arms
            .iter()
            .map(|arm| Arm {
                name: arm.name.as_str().into(),
                share: arm.share,
                gpus: arm.gpus,
                crossed: Arc::clone(self.crossed.entry((config.model.clone(), arm.name.clone())).or_default()),
            })
            .collect();
        let members = self.members(config);
        let seats: Vec<Seat> = members
            .iter()
            .map(|member| Seat {
                id: member.backend.id,
                arm: member.arm,
                standing: member.state.standing(member.since),
            })
            .collect();
        let gate = self.gate(&config.model, now);
        locked(&gate).reserve(members.len(), config.affinity);
        Pool {
            model: config.model.clone(),
            aliases: config.aliases.clone(),
            policy: config.policy,
            session: config.session.clone(),
            affinity: config.affinity,
            cross_arm: config.cross_arm,
            max_in_flight: config.backend_max_in_flight,
            wait_room: config.wait_room,
            unrouted: self.telemetry.backend(&config.model, NONE, NONE),
            split: Split::new(&config.split_salt, config.arms.iter().map(|arm| (arm.name.clone(), arm.share))),
            arms,
            members,
            seats,
            gate,
        }
    }

    /// The gate of this pool, made when the pool is.
    fn gate(&mut self, model: &str, now: Time) -> Arc<Mutex<Gate>> {
        let budget = self.settings.budget;
        let gate =
            self.gates.entry(model.to_owned()).or_insert_with(|| Arc::new(Mutex::new(Gate::new(bucket(budget, now)))));
        Arc::clone(gate)
    }

    fn members(&self, config: &model::Pool) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        for (index, arm) in (0_u16..).zip(&config.arms) {
            for backend in &arm.backends {
                let Some(entry) = self.entries.get(&Key::of(config, arm, backend)) else { continue };
                if members.iter().any(|member| member.backend.id == entry.backend.id) {
                    continue; // one address written twice is one backend
                }
                members.push(Member {
                    backend: Arc::clone(&entry.backend),
                    arm: ArmIndex(index),
                    state: entry.state.clone(),
                    since: entry.since,
                });
            }
        }
        members
    }
}

fn bucket(budget: Budget, now: Time) -> Bucket {
    Bucket::new(budget.burst, budget.ratio, budget.per_second, now)
}
