//! Asks the sources of backends: each arm that has one gets a task, which ends with the source. What they find is the controller's
//! to take over. An error changes nothing, so no pool is ever emptied by one.

mod api;
mod dns;
mod kubernetes;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

pub use self::dns::Resolve;
use super::MEMBERSHIP;
use forebay_core::clock::Clock;
use forebay_fleet::config::model::{DiscoverySource, Whom};
use forebay_fleet::membership::controller::Controller;
use forebay_fleet::membership::roster::Found;
use forebay_fleet::source::Source;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::labels::{DiscoveryFailure, Panicked};
use forebay_fleet::telemetry::panics::caught;

/// Reason why a source gave no answer that could be used.
#[derive(Debug)]
struct Fault {
    failure: DiscoveryFailure,
    reason: String,
}

impl Fault {
    fn new(failure: DiscoveryFailure, reason: impl Into<String>) -> Fault {
        Fault { failure, reason: reason.into() }
    }
}

/// The task that asks all sources.
#[derive(Clone)]
pub struct Sources {
    /// The controller that takes over what is found; its fleet has the sources.
    pub controller: Arc<Controller>,
    /// The fleet's clock.
    pub clock: Clock,
    /// The place where panics are counted.
    pub telemetry: Arc<Telemetry>,
    /// The resolver of names.
    pub resolve: Resolve,
    /// The address at which this proxy itself listens.
    pub listener: Arc<dyn Fn() -> SocketAddr + Send + Sync>,
    /// Called after backends have come or gone.
    pub changed: Arc<dyn Fn() + Send + Sync>,
}

/// One arm's source, and whom to tell what it says.
#[derive(Clone)]
struct ArmSource {
    all: Sources,
    pool: String,
    arm: String,
    source: Arc<Source>,
}

impl Sources {
    /// Asks until it is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut running: Vec<(ArmSource, AbortHandle)> = Vec::new();
        loop {
            let wanted = self.arms();
            // By the source itself and not by its name: a reload that changes an arm's source must not leave the old one asking.
            running.retain(|(arm, handle)| {
                let stays = wanted.iter().any(|one| one.is(arm)) && !handle.is_finished();
                if !stays {
                    handle.abort();
                }
                stays
            });
            for arm in wanted {
                if !running.iter().any(|(one, _)| one.is(&arm)) {
                    let (telemetry, task) = (Arc::clone(&self.telemetry), arm.clone().follow());
                    // One that panics is missed at the next look, and begins anew.
                    let handle = tasks.spawn(async move { _ = caught(&telemetry, Panicked::Task, task).await });
                    running.push((arm, handle));
                }
            }
            // Ended tasks are taken out, or the set would grow with each reload.
            while tasks.try_join_next().is_some() {}
            if self.controller.retire(self.clock.now()) {
                (self.changed)();
            }
            tokio::time::sleep(MEMBERSHIP).await;
        }
    }

    /// Asks each source once and waits for their answers, but no longer than `limit`: so a process that takes over the traffic of
    /// another one has its backends when the first request comes. Returns whether all have answered.
    pub async fn ask_once(&self, limit: Duration) -> bool {
        let mut questions = JoinSet::new();
        for arm in self.arms() {
            questions.spawn(async move { arm.ask_once().await });
        }
        // Whatever answers within the limit is used. The rest goes on being asked once the server runs.
        _ = tokio::time::timeout(limit, async { while questions.join_next().await.is_some() {} }).await;
        self.arms().iter().all(|arm| arm.source.has_answered())
    }

    fn arms(&self) -> Vec<ArmSource> {
        let snapshot = self.controller.fleet().snapshot();
        let of_pool = |pool: &Arc<forebay_fleet::Pool>| {
            let with_source = pool.arms().iter().filter_map(|arm| Some((arm.name.to_string(), arm.source.clone()?)));
            let arms =
                with_source.map(|(arm, source)| ArmSource { all: self.clone(), pool: pool.model.clone(), arm, source });
            arms.collect::<Vec<_>>()
        };
        snapshot.pools.iter().flat_map(of_pool).collect()
    }
}

impl ArmSource {
    fn is(&self, other: &ArmSource) -> bool {
        Arc::ptr_eq(&self.source, &other.source)
    }

    async fn follow(self) {
        match &self.source.discover.source {
            DiscoverySource::Dns { name, interval } => dns::follow(&self, name, *interval).await,
            DiscoverySource::Kubernetes(asked) => match &asked.whom {
                Whom::Pool(name) => pool::follow(&self, (asked, name), &kubernetes::WATCH_TIMES).await,
                Whom::Selector(_) | Whom::Service(_) => {
                    kubernetes::follow(&self, asked, &kubernetes::WATCH_TIMES).await;
                }
            },
        }
    }

    async fn ask_once(&self) {
        let asked = match &self.source.discover.source {
            DiscoverySource::Dns { name, .. } => dns::ask(self, name).await,
            DiscoverySource::Kubernetes(asked) => {
                let members = match &asked.whom {
                    Whom::Pool(name) => pool::ask(self, (asked, name)).await,
                    Whom::Selector(_) | Whom::Service(_) => kubernetes::ask(asked).await,
                };
                members.map(|members| kubernetes::backends(&members, self.source.discover.https))
            }
        };
        self.take(asked);
    }

    /// Takes over a whole answer, or notes why there is none.
    fn take(&self, asked: Result<Vec<Found>, Fault>) {
        let mut found = match asked {
            Ok(found) => found,
            Err(fault) => return self.note(&fault),
        };
        let listener = (self.all.listener)();
        found.retain(|one| {
            let leads_back = one.url.leads_to(listener);
            if leads_back {
                debug!(pool = self.pool, arm = self.arm, url = %one.url, "found Forebay itself, which is no backend");
            }
            !leads_back
        });
        if self.all.controller.found(&self.pool, &self.arm, &self.source, found, self.all.clock.now()) {
            (self.all.changed)();
        }
    }

    /// Notes that there was no answer; said once for each reason.
    fn note(&self, fault: &Fault) {
        let (pool, arm, target) = (&self.pool, &self.arm, self.source.discover.source.target());
        let (reason, failure) = (&fault.reason, fault.failure.label());
        if self.source.failed(fault.failure, reason) {
            warn!(
                pool,
                arm, target, failure, reason, "the source of backends gave no answer: those that are known stay"
            );
        } else {
            debug!(pool, arm, target, failure, reason, "the source of backends gave no answer");
        }
    }
}

#[cfg(test)]
mod tests;
