//! Replicas of Forebay before the same backends: how many there are, what each takes of a limit, and what they have in common without
//! talking. Their number stands in the configuration, or a Service of their own has them as endpoints.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::model::{BackendUrl, Budget, Discover, WaitRoom};
use crate::pool::Member;
use crate::source::{Source, SourceView};
use forebay_core::clock::Time;
use forebay_core::routing::affinity::Index;

/// A number of replicas, with this one: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ReplicaCount(NonZeroU32);

impl Default for ReplicaCount {
    fn default() -> ReplicaCount {
        ReplicaCount(NonZeroU32::MIN)
    }
}

impl ReplicaCount {
    /// Returns so many; one at least.
    #[must_use]
    pub fn of(count: u32) -> ReplicaCount {
        NonZeroU32::new(count).map_or_else(ReplicaCount::default, ReplicaCount)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The part of a limit that is this replica's: rounded up, so that a limit of 1 is still one for each.
    #[must_use]
    pub fn part(self, limit: u32) -> u32 {
        limit.div_ceil(self.get())
    }

    /// This replica's part of a wait room.
    #[must_use]
    pub fn part_of_room(self, room: WaitRoom) -> WaitRoom {
        WaitRoom { size: room.size.div_ceil(self.get() as usize), ..room }
    }

    /// This replica's part of a retry budget. What each request pays in needs no division: each replica has its part of the requests.
    #[must_use]
    pub fn part_of_budget(self, budget: Budget) -> Budget {
        let count = f64::from(self.get());
        Budget { burst: budget.burst / count, per_second: budget.per_second / count, ..budget }
    }

    /// The interval at which one replica does what all together do at this one.
    #[must_use]
    pub fn stretch(self, interval: Duration) -> Duration {
        interval.saturating_mul(self.get())
    }
}

/// The replicas as this one knows them.
#[derive(Clone, Debug, Default)]
pub struct Replication {
    /// Their number.
    pub count: ReplicaCount,
    /// The source that counts them; none: the configuration says how many there are.
    pub source: Option<Arc<Source>>,
    /// A source has said how many there are.
    is_counted: bool,
}

/// The replicas at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplicationView {
    /// Their number, with this one.
    pub count: ReplicaCount,
    /// The source that counts them, and how it does; none: the configuration says how many there are.
    pub source: Option<SourceView>,
}

impl Replication {
    /// Replicas of a configured number, until the source that is to count them, if there is one, has answered.
    pub(super) fn configured(count: ReplicaCount, source: Option<&Discover>) -> Replication {
        let source = source.map(|discover| Arc::new(Source::new(discover.clone())));
        Replication { count, source, is_counted: false }
    }

    /// Takes over another configuration. The number that a source has counted stays for as long as there is a source, also where another
    /// one is asked.
    pub(super) fn configure(&mut self, count: ReplicaCount, source: Option<&Discover>) {
        let mut new = Replication::configured(count, source);
        if self.is_counted && source.is_some() {
            (new.count, new.is_counted) = (self.count, true);
        }
        // The same source goes on, with its age and its task.
        let same = self.source.take().filter(|old| source == Some(&old.discover));
        new.source = same.or(new.source);
        *self = new;
    }

    /// Takes over what the source has counted. Returns the number before.
    pub(super) fn counted(&mut self, count: ReplicaCount) -> ReplicaCount {
        self.is_counted = true;
        std::mem::replace(&mut self.count, count)
    }

    /// Returns how they are at `now`.
    #[must_use]
    pub fn view(&self, now: Time) -> ReplicationView {
        ReplicationView { count: self.count, source: self.source.as_ref().map(|source| source.view(now)) }
    }
}

/// Tells the index of a pool by what all replicas know the backends.
pub(super) fn agree(index: &mut Index, replicas: ReplicaCount, members: &[Member]) {
    index.set_replicas(replicas.get());
    if replicas.get() > 1 {
        for backend in members.iter().map(|member| &member.backend) {
            index.identify(backend.load.slot(), backend.id, backend.identity);
        }
    }
}

/// Returns what every replica calls the backend at this URL, and every version: a hash, which may never change.
pub(super) fn identity(url: &BackendUrl) -> u64 {
    let digest = Sha256::digest(url.to_string().as_bytes());
    u64::from_be_bytes(*digest.first_chunk().expect("SHA-256 has 32 bytes"))
}
