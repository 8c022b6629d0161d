//! What sources find becomes backends, and what they no longer name leaves after its last request. The configuration stays what
//! the file says: what was found lies over it, and a reload keeps it.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Controller, Inner, MemberKey};
use crate::config::model::PoolConfig;
use crate::locked;
use crate::membership::roster::{self, ArmKey, Found, Roster};
use crate::source::Source;
use forebay_core::clock::Time;

/// The sources and what they have found.
#[derive(Debug, Default)]
pub(super) struct Discovered {
    /// The pools as the configuration has them.
    configured: Vec<PoolConfig>,
    rosters: HashMap<ArmKey, Roster>,
    sources: HashMap<ArmKey, Arc<Source>>,
    leaving: HashMap<(String, String, String), &'static str>,
    /// URLs of which it was said that two arms have found them.
    told: Vec<String>,
}

impl Discovered {
    /// Takes over the configured pools; `before` are those that hold. What an arm has found, or had before it got a source, stays until
    /// the source answers, also where the new configuration asks another one.
    pub(super) fn configure(&mut self, pools: &[PoolConfig], before: &[PoolConfig]) {
        let (mut rosters, mut sources) = (HashMap::new(), HashMap::new());
        for pool in pools {
            for arm in &pool.arms {
                let Some(discover) = &arm.discover else { continue };
                let key = (pool.model.clone(), arm.name.clone());
                let had = before.iter().find(|old| old.model == pool.model);
                let had = had.and_then(|old| old.arms.iter().find(|old| old.name == arm.name));
                let roster = self.rosters.remove(&key);
                let roster = roster.unwrap_or_else(|| Roster::of(had.map_or(&[], |arm| arm.backends.as_slice())));
                // The same source goes on, with its age and its task. A reload of something else must not ask anew.
                let same = self.sources.remove(&key).filter(|source| source.discover == *discover);
                sources.insert(key.clone(), same.unwrap_or_else(|| Arc::new(Source::new(discover.clone()))));
                rosters.insert(key, roster);
            }
        }
        (self.rosters, self.sources, self.configured) = (rosters, sources, pools.to_vec());
    }

    /// Returns the pools that hold now.
    pub(super) fn effective(&mut self) -> Vec<PoolConfig> {
        let all = roster::effective(&self.configured, &self.rosters);
        // At each answer the same two would be named.
        let news: Vec<&String> = all.doubled.iter().filter(|url| !self.told.contains(url)).collect();
        if !news.is_empty() {
            tracing::warn!(urls = ?news, "two arms of a pool find the same backend: it counts for the first of them");
        }
        (self.told, self.leaving) = (all.doubled, all.leaving);
        all.pools
    }

    /// Returns why this backend finishes what it has and takes no more, where its source says so.
    pub(super) fn leaves(&self, key: &MemberKey) -> Option<&'static str> {
        if self.leaving.is_empty() {
            return None;
        }
        self.leaving.get(&(key.pool.clone(), key.arm.clone(), key.url.clone())).copied()
    }

    /// The source of this arm, if it has one.
    pub(super) fn source(&self, model: &str, arm: &str) -> Option<Arc<Source>> {
        if self.sources.is_empty() {
            return None;
        }
        self.sources.get(&(model.to_owned(), arm.to_owned())).cloned()
    }
}

impl Controller {
    /// Takes over one whole answer of a source, in place of all that it named before. An answer of a source that the arm no longer has
    /// counts for nothing. Returns whether anything changed.
    pub fn found(&self, pool: &str, arm: &str, source: &Arc<Source>, found: Vec<Found>, now: Time) -> bool {
        let mut inner = locked(&self.core().inner);
        let key = (pool.to_owned(), arm.to_owned());
        let discovered = &mut inner.discovered;
        // A reload came between the question and its answer.
        if !discovered.sources.get(&key).is_some_and(|own| Arc::ptr_eq(own, source)) {
            return false;
        }
        let first = !source.has_answered();
        let taken = discovered.rosters.entry(key).or_default().take(found, &source.discover);
        if source.took(&taken, now) {
            let (left_out, most) = (taken.left_out, source.discover.max_backends);
            tracing::warn!(
                pool,
                arm,
                left_out,
                most,
                "more backends are found than max_backends: the rest gets no requests"
            );
        }
        if first || !taken.joined.is_empty() || !taken.gone.is_empty() {
            let target = source.discover.source.target();
            let (ready, unready, joined, gone) = (taken.ready, taken.unready, &taken.joined, &taken.gone);
            tracing::info!(pool, arm, target, ready, unready, ?joined, ?gone, "backends are found");
        }
        // A snapshot for each answer would make every pool anew, many times a minute.
        if taken.changed {
            self.settle(&mut inner, now);
        }
        taken.changed
    }

    /// Lets go of backends that no source names any more and that have nothing left to do. Returns whether any went.
    pub fn retire(&self, now: Time) -> bool {
        let mut inner = locked(&self.core().inner);
        // Called five times a second, and mostly for nothing.
        if !inner.discovered.rosters.values().any(Roster::is_waited_for) {
            return false;
        }
        let Inner { discovered, entries, .. } = &mut *inner;
        let mut any = false;
        for ((pool, arm), roster) in &mut discovered.rosters {
            any |= roster.retire(|url| {
                let key = MemberKey { pool: pool.clone(), arm: arm.clone(), url: url.to_owned() };
                // One that another arm has, too, has no entry here.
                entries.get(&key).is_none_or(|entry| entry.backend.load.is_idle())
            });
        }
        if any {
            self.settle(&mut inner, now);
        }
        any
    }
}
