//! What the live page shows, as one JSON value: of each arm the figures of what was *assigned* to it (a comparison by what
//! served would flatter the arm that hands its hard cases on), of each backend the figures of what it *served*. It must never
//! turn an unknown figure into a zero.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::sentence::{self, Compared};
use forebay_core::clock::Time;
use forebay_core::units::BackendId;
use forebay_fleet::clients::KnownClients;
use forebay_fleet::clients::view::ClientsView;
use forebay_fleet::config::Config;
use forebay_fleet::source::SourceView;
use forebay_fleet::telemetry::Telemetry;
use forebay_fleet::telemetry::decisions::Told;
use forebay_fleet::telemetry::events::Event;
use forebay_fleet::telemetry::figures::{Figures, Point, Scratch, Summary, Window};
use forebay_fleet::view::{ArmView, BackendView, FleetView, PoolView, WaitRoomView};
use forebay_fleet::{Pool, Snapshot};

/// Events that are shown.
const EVENTS: usize = 50;

/// Everything, at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Live {
    /// Of this Forebay.
    pub(super) version: &'static str,
    /// The time since its start, in seconds.
    pub(super) uptime_seconds: f64,
    /// Counts the snapshots of this process.
    pub(super) generation: u64,
    /// The address that takes requests.
    pub(super) listen: String,
    /// The reason why requests should not be sent here, if there is one.
    pub(super) not_ready: Option<String>,
    /// The objectives that a request must meet to count as good.
    pub(super) slo: SloView,
    /// The windows that figures are given for, the shortest first.
    pub(super) windows: Vec<&'static str>,
    /// The client keys and their limits, where keys are configured.
    pub(super) clients: Option<ClientsView>,
    /// In the order of the config.
    pub(super) pools: Vec<LivePool>,
    /// The latest first; a sample, taken while somebody watches.
    pub(super) decisions: Vec<DecisionView>,
    /// The last things that happened to the fleet, the latest first.
    pub(super) events: Vec<EventView>,
}

/// The objectives, in seconds.
#[derive(Debug, Serialize)]
pub(super) struct SloView {
    /// Of the time to the first token.
    pub(super) ttft_seconds: f64,
    /// Of the time for each token after it.
    pub(super) tpot_seconds: f64,
}

/// One pool.
#[derive(Debug, Serialize)]
pub(super) struct LivePool {
    /// Its model.
    pub(super) model: String,
    /// Its policy.
    pub(super) policy: &'static str,
    /// A sentence on its arms so far, which describes and does not judge.
    pub(super) sentence: String,
    /// The requests that wait for room.
    pub(super) wait_room: WaitRoomView,
    /// Its arms.
    pub(super) arms: Vec<LiveArm>,
}

/// One arm, by assignment.
#[derive(Debug, Serialize)]
pub(super) struct LiveArm {
    /// Its name.
    pub(super) name: String,
    /// Its part of the pool's sessions, 0 to 1.
    pub(super) share: f64,
    /// GPUs that it occupies.
    pub(super) gpus: u32,
    /// Requests assigned to it that wait for a backend with room.
    pub(super) waiting: u32,
    /// Of the requests that were assigned to it, by window.
    pub(super) figures: BTreeMap<&'static str, ArmFigures>,
    /// The last fifteen minutes of them.
    pub(super) timeline: Vec<Point>,
    /// The number of the timeline's point that is under way now.
    pub(super) timeline_now: u64,
    /// The source of its backends, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<SourceView>,
    /// Its backends.
    pub(super) backends: Vec<LiveBackend>,
}

/// The figures of an arm, those that a comparison goes by first.
#[derive(Debug, Serialize)]
pub(super) struct ArmFigures {
    /// Output tokens a second on each of its GPUs.
    pub(super) output_tokens_per_second_per_gpu: f64,
    /// Good requests a second on each of its GPUs.
    pub(super) goodput_per_second_per_gpu: f64,
    /// All of them together.
    #[serde(flatten)]
    pub(super) all: Summary,
}

/// One backend, by what it served.
#[derive(Debug, Serialize)]
pub(super) struct LiveBackend {
    /// Its identity, as decisions name it.
    pub(super) id: BackendId,
    /// Host and port, by which it goes on the page and in metrics.
    pub(super) name: String,
    /// The URL that it listens at.
    pub(super) url: String,
    /// `healthy`, `ejected`, `probing`, `misconfigured` or `drained`.
    pub(super) state: &'static str,
    /// The reason for this state.
    pub(super) reason: Option<String>,
    /// For how long.
    pub(super) state_for_seconds: f64,
    /// Time since it was found to show no progress, while that lasts.
    pub(super) stalled_for_seconds: Option<f64>,
    /// Own sequences without a first token.
    pub(super) prefilling: u32,
    /// Own sequences past it.
    pub(super) decoding: u32,
    /// Sequences waiting in it, as last scraped; none where that is unknown or stale.
    pub(super) queue_depth: Option<f64>,
    /// Sequences running in it, likewise.
    pub(super) running: Option<f64>,
    /// Share of its KV cache in use, likewise.
    pub(super) kv_usage: Option<f64>,
    /// Age of the last good scrape.
    pub(super) scrape_age_seconds: Option<f64>,
    /// Too old to be believed.
    pub(super) scrape_stale: bool,
    /// Predicted TTFT of a request of 500 tokens.
    pub(super) predicted_ttft_seconds: f64,
    /// For how much longer it is left alone after a failure.
    pub(super) open_for_seconds: f64,
    /// Of the requests that it served, by window.
    pub(super) figures: BTreeMap<&'static str, Summary>,
}

/// One decision in words.
#[derive(Debug, Serialize)]
pub(super) struct DecisionView {
    /// Counts those that were told.
    pub(super) number: u64,
    /// The time since the decision, in seconds.
    pub(super) ago_seconds: f64,
    /// The pool's model.
    pub(super) pool: String,
    /// The id of the request, as its client and the access log have it.
    pub(super) request_id: String,
    /// The choice and its reason, in words.
    pub(super) why: String,
    /// The decision in figures, with the other backends that were considered.
    pub(super) figures: String,
    /// The number of the attempt, of its request, that it was for.
    pub(super) attempt: u32,
    /// The predicted time from here to the first token.
    pub(super) predicted_seconds: Option<f64>,
    /// The time that it took, once it came.
    pub(super) measured_seconds: Option<f64>,
}

/// One thing that happened.
#[derive(Debug, Serialize)]
pub(super) struct EventView {
    /// Counts the events of this process.
    pub(super) number: u64,
    /// The time since then, in seconds.
    pub(super) ago_seconds: f64,
    /// The new state of a backend, or the result of a reload.
    pub(super) what: &'static str,
    /// The backend, by host and port.
    pub(super) backend: Option<String>,
    /// The reason.
    pub(super) why: Option<String>,
}

impl Live {
    /// The fleet, its figures and its decisions as of `now`.
    #[must_use]
    pub(super) fn new(
        snapshot: &Snapshot,
        clients: &KnownClients,
        telemetry: &Telemetry,
        config: &Config,
        not_ready: Option<String>,
        now: Time,
    ) -> Live {
        let fleet = FleetView::new(snapshot, now);
        let mut scratch = Scratch::default();
        let pools = fleet.pools.into_iter().zip(&snapshot.pools);
        Live {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.secs_since(Time::ZERO),
            generation: fleet.generation,
            listen: config.listen.address.to_string(),
            not_ready,
            slo: SloView { ttft_seconds: config.slo.ttft.as_secs_f64(), tpot_seconds: config.slo.tpot.as_secs_f64() },
            // The page makes its buttons of these, so that a window is named in one place.
            windows: Window::ALL.map(Window::key).to_vec(),
            clients: clients.view(now),
            pools: pools.map(|(view, pool)| LivePool::new(view, pool, now, &mut scratch)).collect(),
            decisions: telemetry.decisions.latest().into_iter().map(|told| DecisionView::new(told, now)).collect(),
            events: telemetry.events.latest(EVENTS).into_iter().map(|event| EventView::new(event, now)).collect(),
        }
    }
}

impl LivePool {
    fn new(view: PoolView, pool: &Pool, now: Time, scratch: &mut Scratch) -> LivePool {
        // The configuration has weights, such as 1 and 3; whoever looks wants parts of one.
        let shares: f64 = view.arms.iter().map(|arm| arm.share).sum();
        let sentence = sentence_of(&view, pool, now, scratch);
        let arms = view.arms.into_iter().zip(pool.arms()).map(|(view, arm)| {
            // Not a number otherwise, which JSON does not have.
            let share = if shares > 0.0 { view.share / shares } else { 0.0 };
            LiveArm::new(view, share, &arm.figures, pool, now, scratch)
        });
        LivePool {
            model: view.model,
            policy: view.policy.as_str(),
            sentence,
            wait_room: view.wait_room,
            arms: arms.collect(),
        }
    }
}

fn sentence_of(view: &PoolView, pool: &Pool, now: Time, scratch: &mut Scratch) -> String {
    let compared: Vec<Compared<'_>> = pool
        .arms()
        .iter()
        .map(|arm| Compared {
            name: &arm.name,
            tpot: arm.figures.sessions(),
            requests: arm.figures.summary(Window::Start, now, scratch).requests,
        })
        .collect();
    let backends = || view.arms.iter().flat_map(|arm| &arm.backends);
    sentence::of(&compared, backends().filter(|backend| backend.state == "healthy").count(), backends().count())
}

impl LiveArm {
    fn new(view: ArmView, share: f64, figures: &Figures, pool: &Pool, now: Time, scratch: &mut Scratch) -> LiveArm {
        // An arm whose GPUs are not told counts as one: a figure for each GPU must not be infinite.
        let gpus = f64::from(view.gpus.max(1));
        let of_window = |window: Window| {
            let all = figures.summary(window, now, scratch);
            let figures = ArmFigures {
                output_tokens_per_second_per_gpu: all.output_tokens_per_second / gpus,
                goodput_per_second_per_gpu: all.goodput_per_second / gpus,
                all,
            };
            (window.key(), figures)
        };
        let by_window = Window::ALL.map(of_window).into_iter().collect();
        let backends = view.backends.into_iter().filter_map(|view| {
            // The view is of the same snapshot, so a member is missing only if a later change breaks that: then a row less, no
            // panic.
            let member = pool.members().iter().find(|member| member.backend.id == view.id)?;
            Some(LiveBackend::new(view, &member.backend.figures, now, scratch))
        });
        LiveArm {
            name: view.name,
            share,
            gpus: view.gpus,
            waiting: view.waiting,
            figures: by_window,
            timeline: figures.timeline(now),
            timeline_now: Figures::point_of(now),
            source: view.source,
            backends: backends.collect(),
        }
    }
}

impl LiveBackend {
    fn new(view: BackendView, figures: &Figures, now: Time, scratch: &mut Scratch) -> LiveBackend {
        let scrape = view.load.scrape.as_ref();
        // A figure that is too old would look like one of now: its place stays empty, and its age is shown.
        let fresh = scrape.filter(|scrape| !scrape.stale);
        LiveBackend {
            id: view.id,
            state: view.state,
            reason: view.reason,
            state_for_seconds: view.state_for_seconds,
            stalled_for_seconds: view.stalled_for_seconds,
            name: view.authority,
            prefilling: view.load.prefilling,
            decoding: view.load.decoding,
            queue_depth: fresh.and_then(|scrape| scrape.sample.waiting),
            running: fresh.and_then(|scrape| scrape.sample.running),
            kv_usage: fresh.and_then(|scrape| scrape.sample.kv_usage),
            scrape_age_seconds: scrape.map(|scrape| scrape.age_seconds),
            scrape_stale: scrape.is_some_and(|scrape| scrape.stale),
            predicted_ttft_seconds: view.predicted_ttft_seconds,
            open_for_seconds: view.load.open_for_seconds,
            figures: Window::ALL.map(|window| (window.key(), figures.summary(window, now, scratch))).into(),
            url: view.url,
        }
    }
}

impl EventView {
    fn new(event: Event, now: Time) -> EventView {
        let Event { number, at, what, backend, why } = event;
        EventView { number, ago_seconds: now.secs_since(at), what, backend, why }
    }
}

impl DecisionView {
    fn new(told: Told, now: Time) -> DecisionView {
        // The log has both in one line; the page shows the words and keeps the figures for whoever opens it.
        let (why, figures) = told.line.split_once(" | ").unwrap_or((&told.line, ""));
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        DecisionView {
            number: told.number,
            ago_seconds: now.secs_since(told.at),
            why: why.to_owned(),
            figures: figures.to_owned(),
            pool: told.pool.to_string(),
            request_id: told.request_id,
            attempt: told.attempt,
            predicted_seconds: seconds(told.predicted),
            measured_seconds: seconds(told.measured),
        }
    }
}
