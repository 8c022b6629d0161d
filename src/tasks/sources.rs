//! Asks the sources of backends, and the one that counts the replicas of Forebay: each gets a task, which ends with the source. What they
//! find is the controller's to take over. An error changes nothing, so no pool is ever emptied by one.

mod api;
mod dns;
mod kubernetes;
mod pool;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

pub use self::dns::Resolve;
use super::MEMBERSHIP;
use forebay_core::clock::Clock;
use forebay_core::kubernetes::Members;
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

/// One source, and what it is asked for.
#[derive(Clone)]
struct SourceQuestion {
    all: Sources,
    about: About,
    source: Arc<Source>,
}

/// The subject of a source's answers.
#[derive(Clone)]
enum About {
    /// The backends of an arm.
    Arm { pool: String, arm: String },
    /// The number of replicas of Forebay.
    Replicas,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            About::Arm { pool, arm } => write!(f, "backends of the arm {arm} of {pool}"),
            About::Replicas => f.write_str("replicas of Forebay"),
        }
    }
}

impl Sources {
    /// Asks until it is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut running: Vec<(SourceQuestion, AbortHandle)> = Vec::new();
        loop {
            let wanted = self.wanted();
            // By the source itself and not by its name: a reload that changes an arm's source must not leave the old one asking.
            running.retain(|(question, handle)| {
                let stays = wanted.iter().any(|one| one.is(question)) && !handle.is_finished();
                if !stays {
                    handle.abort();
                }
                stays
            });
            for question in wanted {
                if !running.iter().any(|(one, _)| one.is(&question)) {
                    let (telemetry, task) = (Arc::clone(&self.telemetry), question.clone().follow());
                    // One that panics is missed at the next look, and begins anew.
                    let handle = tasks.spawn(async move { _ = caught(&telemetry, Panicked::Task, task).await });
                    running.push((question, handle));
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
        for question in self.wanted() {
            questions.spawn(async move { question.ask_once().await });
        }
        // Whatever answers within the limit is used. The rest goes on being asked once the server runs.
        _ = tokio::time::timeout(limit, async { while questions.join_next().await.is_some() {} }).await;
        self.wanted().iter().all(|one| one.source.has_answered())
    }

    /// The sources that there are now.
    fn wanted(&self) -> Vec<SourceQuestion> {
        let snapshot = self.controller.fleet().snapshot();
        let of_pool = |pool: &Arc<forebay_fleet::Pool>| {
            let with_source = pool.arms().iter().filter_map(|arm| Some((arm.name.to_string(), arm.source.clone()?)));
            let questions = with_source.map(|(arm, source)| {
                let about = About::Arm { pool: pool.model.clone(), arm };
                SourceQuestion { all: self.clone(), about, source }
            });
            questions.collect::<Vec<_>>()
        };
        let replicas = snapshot.replication.source.iter();
        let replicas = replicas.map(|source| SourceQuestion {
            all: self.clone(),
            about: About::Replicas,
            source: Arc::clone(source),
        });
        snapshot.pools.iter().flat_map(of_pool).chain(replicas).collect()
    }
}

impl SourceQuestion {
    fn is(&self, other: &SourceQuestion) -> bool {
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
        let members = match &self.source.discover.source {
            DiscoverySource::Dns { name, .. } => return self.take(dns::ask(self, name).await),
            DiscoverySource::Kubernetes(asked) => match &asked.whom {
                Whom::Pool(name) => pool::ask(self, (asked, name)).await,
                Whom::Selector(_) | Whom::Service(_) => kubernetes::ask(asked).await,
            },
        };
        match members {
            Ok(members) => self.take_members(&members),
            Err(fault) => self.note(&fault),
        }
    }

    /// Takes over what Kubernetes names.
    fn take_members(&self, members: &Members) {
        if matches!(self.about, About::Arm { .. }) {
            return self.take(Ok(kubernetes::backends(members, self.source.discover.https)));
        }
        match members.ready_hosts() {
            // All begin, or none has a backend: a number that is too small would let each take what all may have together.
            0 => self.source.confirmed(self.all.clock.now()),
            replicas => _ = self.all.controller.counted(&self.source, replicas, self.all.clock.now()),
        }
    }

    /// Takes over a whole answer, or notes why there is none.
    fn take(&self, asked: Result<Vec<Found>, Fault>) {
        let mut found = match asked {
            Ok(found) => found,
            Err(fault) => return self.note(&fault),
        };
        let About::Arm { pool, arm } = &self.about else { return };
        let listener = (self.all.listener)();
        found.retain(|one| {
            let leads_back = one.url.leads_to(listener);
            if leads_back {
                debug!(pool, arm, url = %one.url, "found Forebay itself, which is no backend");
            }
            !leads_back
        });
        if self.all.controller.found(pool, arm, &self.source, found, self.all.clock.now()) {
            (self.all.changed)();
        }
    }

    /// Notes that there was no answer; said once for each reason.
    fn note(&self, fault: &Fault) {
        let (reason, failure, target) = (&fault.reason, fault.failure.label(), self.source.discover.source.target());
        let news = self.source.failed(fault.failure, reason);
        match &self.about {
            About::Arm { pool, arm } if news => {
                let words = "the source of backends gave no answer: those that are known stay";
                warn!(pool, arm, target, failure, reason, "{words}");
            }
            About::Replicas if news => {
                warn!(failure, reason, target, "replicas of Forebay cannot be counted: their number stays");
            }
            about => debug!(%about, target, failure, reason, "a source gave no answer"),
        }
    }
}

#[cfg(test)]
mod tests;
