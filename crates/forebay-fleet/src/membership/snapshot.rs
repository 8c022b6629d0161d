//! One immutable picture of the fleet: pools, arms, members and their health. Readers load it once a request and may keep it
//! for as long as they like; only the controller makes one.
//!
//! Hot path: reads only. What changes with every request (loads, a pool's gate) is behind pointers that outlive a snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::replicas::Replication;
use crate::pool::Pool;
use crate::pool::backend::Backend;
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
    pub(crate) fn publish(&self, snapshot: Snapshot) {
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
    /// The replicas of this proxy.
    pub replication: Replication,
    names: HashMap<String, usize>,
    backends: HashMap<BackendId, Arc<Backend>>,
}

impl Snapshot {
    pub(crate) fn new(generation: u64, pools: Vec<Arc<Pool>>, replication: Replication) -> Snapshot {
        let mut names = HashMap::new();
        for (at, pool) in pools.iter().enumerate() {
            for name in std::iter::once(&pool.model).chain(&pool.aliases) {
                // The configuration refuses a name of two pools. Should one come by another way, the first has it.
                names.entry(name.clone()).or_insert(at);
            }
        }
        let backends =
            pools.iter().flat_map(|pool| pool.members()).map(|member| (member.backend.id, Arc::clone(&member.backend)));
        Snapshot { generation, names, backends: backends.collect(), pools, replication }
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
