//! Backends by Kubernetes: a list, which is the truth, and a watch that keeps it up to date. Whatever ends the watch, the list is made
//! anew, so that nothing that was missed outlives the next one. An error changes nothing.

use std::ops::Range;
use std::time::Duration;

use tracing::debug;

use super::api::{Api, fault, of_code};
use super::{Fault, SourceQuestion};
use forebay_core::clock::Time;
use forebay_core::kubernetes::{EventMeaning, Lines, Members, Objects, Readiness, TooLong, Unusable};
use forebay_fleet::config::model::{BackendUrl, Kubernetes, Whom};
use forebay_fleet::membership::roster::Found;
use forebay_fleet::telemetry::labels::DiscoveryFailure;

/// Objects of one page of a list.
const PAGE: u32 = 250;
/// Bytes of one page: a pod has 5 to 20 KB.
pub(super) const LARGEST_PAGE: usize = 32 << 20;
/// Bytes of one event: etcd takes objects of at most 1.5 MB.
pub(super) const LARGEST_EVENT: usize = 4 << 20;
const NOT_READY: &str = "it is not Ready, as Kubernetes says";
const TERMINATING: &str = "it is terminating, as Kubernetes says";

/// The times of a watch.
pub(super) struct WatchTimes {
    /// Seconds after which the server ends a watch; drawn anew for each, so that several proxies do not list at once.
    pub(super) watch: Range<u64>,
    /// A watch that is silent for so much longer is dead.
    pub(super) grace: Duration,
    /// The pause before the next list after the first trouble. It doubles with each further one.
    pub(super) pause: Duration,
    pub(super) longest_pause: Duration,
    /// A watch that lasted as long was no trouble.
    pub(super) steady: Duration,
}

/// The times of a process.
pub(super) const WATCH_TIMES: WatchTimes = WatchTimes {
    watch: 240..300,
    grace: Duration::from_secs(30),
    pause: Duration::from_millis(200),
    longest_pause: Duration::from_secs(10),
    steady: Duration::from_secs(30),
};

/// Lists and watches pods or slices until it is dropped.
pub(super) async fn follow(question: &SourceQuestion, asked: &Kubernetes, times: &WatchTimes) {
    let (mut api, mut members) = (Api::new(asked), members(asked));
    let mut pauses = Pauses::new(times);
    loop {
        let started = question.all.clock.now();
        let ended = match list(&mut api, &mut members).await {
            Ok(()) => {
                question.take_members(&members);
                watch(&api, &mut members, question, times).await
            }
            Err(fault) => Err(fault),
        };
        pauses.after(question, started, ended).await;
    }
}

/// The pauses between the end of a watch and the next list: a server that ends each at once must not be asked for a list each time.
pub(super) struct Pauses<'a> {
    times: &'a WatchTimes,
    next: Duration,
}

impl<'a> Pauses<'a> {
    pub(super) fn new(times: &'a WatchTimes) -> Pauses<'a> {
        Pauses { times, next: times.pause }
    }

    /// Notes how a list and its watch ended, and waits.
    pub(super) async fn after(&mut self, question: &SourceQuestion, started: Time, ended: Result<(), Fault>) {
        match &ended {
            Ok(()) => debug!(about = %question.about, "the watch is over; listing anew"),
            Err(fault) => question.note(fault),
        }
        let lasted = question.all.clock.now().since(started);
        let was_steady = lasted >= self.times.steady;
        let pause = if was_steady { self.times.pause } else { self.next };
        tokio::time::sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        self.next = if was_steady { self.times.pause } else { (pause * 2).min(self.times.longest_pause) };
    }
}

/// Lists once.
pub(super) async fn ask(asked: &Kubernetes) -> Result<Members, Fault> {
    let (mut api, mut members) = (Api::new(asked), members(asked));
    list(&mut api, &mut members).await?;
    Ok(members)
}

fn members(asked: &Kubernetes) -> Members {
    let objects = match asked.whom {
        // An InferencePool is read by itself, and what it names are pods.
        Whom::Selector(_) | Whom::Pool(_) => Objects::Pods,
        Whom::Service(_) => Objects::EndpointSlices,
    };
    Members::new(objects, asked.ports.clone())
}

/// Makes the list anew, page by page. What is known stays until it is whole.
async fn list(api: &mut Api<'_>, members: &mut Members) -> Result<(), Fault> {
    api.find().await?;
    let (mut listing, mut next) = (members.begin(), None);
    loop {
        let body = api.list(PAGE, next.as_deref(), LARGEST_PAGE).await?;
        next = listing.page(&body).map_err(|error| unusable(&error))?;
        if next.is_none() {
            return members.replace(listing).map_err(|error| unusable(&error));
        }
    }
}

/// Follows the list until the watch ends. `Ok`: the server ended it in its time.
async fn watch(
    api: &Api<'_>,
    members: &mut Members,
    question: &SourceQuestion,
    times: &WatchTimes,
) -> Result<(), Fault> {
    let seconds = fastrand::u64(times.watch.clone());
    // Not only silence is an end: a server that never ends a watch would put off the next list for ever.
    let (started, limit) = (question.all.clock.now(), Duration::from_secs(seconds) + times.grace);
    let mut stream = api.watch(members.version(), seconds).await?;
    let mut lines = Lines::of_at_most(LARGEST_EVENT);
    loop {
        let left = limit.saturating_sub(question.all.clock.now().since(started));
        let Some(data) = stream.next(left).await.map_err(fault)? else { return Ok(()) };
        lines.push(&data);
        let (mut alive, mut changed) = (false, false);
        while let Some(line) = lines.next_line().map_err(|error: TooLong| too_long(&error))? {
            alive = true;
            match members.event(&line).map_err(|error| unusable(&error))? {
                EventMeaning::Changed => changed = true,
                EventMeaning::Same => {}
                EventMeaning::Ended(code, message) => {
                    return Err(Fault::new(of_code(code), format!("the API server ended the watch: {code} {message}")));
                }
            }
        }
        if changed {
            question.take_members(members);
        } else if alive {
            question.source.confirmed(question.all.clock.now());
        }
    }
}

/// The backends that Kubernetes names.
pub(super) fn backends(members: &Members, https: bool) -> Vec<Found> {
    let found = members.endpoints().into_iter().map(|endpoint| Found {
        url: BackendUrl::found(https, endpoint.address, None),
        drained: match endpoint.readiness {
            Readiness::Ready => None,
            Readiness::NotReady => Some(NOT_READY),
            Readiness::Terminating => Some(TERMINATING),
        },
    });
    found.collect()
}

pub(super) fn unusable(error: &Unusable) -> Fault {
    let failure = match error {
        Unusable::TooMany => DiscoveryFailure::TooLarge,
        Unusable::Malformed(_) | Unusable::NoVersion | Unusable::Pool(_) => DiscoveryFailure::Unreadable,
    };
    Fault::new(failure, format!("the API server: {error}"))
}

pub(super) fn too_long(error: &TooLong) -> Fault {
    Fault::new(DiscoveryFailure::TooLarge, format!("the API server: {error}"))
}
