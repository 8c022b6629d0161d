//! Every metric: its name, help, labels and buckets, declared once, and the handles by which the rest of the program records.
//! Label values come from the enums of `labels.rs`, from `error.rs` and from the config (pool, arm, backend); never from a request.
//! Handles are made when a backend is. Where no backend was chosen, `backend` is [`NONE`].
//! It must never look up a metric by name, or format a label, while a request is served.
//!
//! Hot path: `handle.increment` and `handle.record` only. A failure has its place, other reasons a search through at most 32 static
//! words first.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::counters::{ByFailure, ByLabel, ByOutcome};
pub use super::labels::{
    AbortPhase, BackendState, Ejection, Outcome, Panicked, ProbeFailure, Reload, SpanEnd, TokenSource,
};
use super::labels::{labels_of, later_refusal_labels, refusal_labels};
use super::recorder::{Def, Kind, Registry};
use forebay_core::error::{Failure, Over};
use forebay_core::stream::Api;

/// The label value where no pool, arm or backend was chosen.
pub const NONE: &str = "none";
/// The label value of the client keys that have no series of their own.
pub const OTHER: &str = "other";

// vLLM 0.32's own edges (its `le` labels), so that quantiles can be set beside the engine's, with finer ones below 10
// ms (E2E: below 300 ms, where embeddings, errors and small models are; of tokens up to 100 ms).
const TTFT_EDGES: &[f64] = &[
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
// Each edge is at most 1.15 times the one before, from 1 to 100 ms: the range in which the tokens of two layouts differ. With
// vLLM's edges alone (10, 25, 50 ms) medians of 16.5 and 17.8 ms are in one bucket, and read as equal.
const TOKEN_EDGES: &[f64] = &[
    0.001, 0.0011, 0.00125, 0.0014, 0.0016, 0.0018, 0.002, 0.00229, 0.00262, 0.003, 0.0034, 0.0039, 0.0044, 0.005,
    0.0057, 0.00655, 0.0075, 0.0082, 0.0091, 0.01, 0.0114, 0.013, 0.0148, 0.0169, 0.0193, 0.022, 0.025, 0.0287, 0.033,
    0.0379, 0.0435, 0.05, 0.057, 0.0655, 0.075, 0.082, 0.091, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
];
const E2E_EDGES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
const OVERHEAD_EDGES: &[f64] =
    &[0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];
const BODY_EDGES: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const WAIT_EDGES: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];
const ERROR_EDGES: &[f64] = &[0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];

macro_rules! defs {
    ($($ident:ident = $name:literal, $kind:expr, $help:literal;)*) => {
        $(#[doc = $help] pub static $ident: Def = Def { name: $name, help: $help, kind: $kind };)*
        /// Every metric that there is.
        pub static ALL: &[&Def] = &[$(&$ident),*];
    };
}

defs! {
    REQUESTS = "forebay_requests_total", Kind::Counter, "Requests ended, by API and outcome.";
    TTFT = "forebay_ttft_seconds", Kind::Histogram(TTFT_EDGES), "Request arrival to first token, the client's view; streams only.";
    BACKEND_TTFT = "forebay_backend_ttft_seconds", Kind::Histogram(TTFT_EDGES), "Attempt sent to the backend to first token; streams only.";
    TPOT = "forebay_tpot_seconds", Kind::Histogram(TOKEN_EDGES), "Time per output token after the first: (E2E - TTFT) / (output tokens - 1).";
    ITL = "forebay_itl_seconds", Kind::Histogram(TOKEN_EDGES), "Gap between two token events of a stream, without those in which the client did not read.";
    E2E = "forebay_e2e_seconds", Kind::Histogram(E2E_EDGES), "Request arrival to the end of the answer.";
    PROMPT_TOKENS = "forebay_prompt_tokens_total", Kind::Counter, "Prompt tokens, as the backends' usage counts them.";
    EXPECTED_CACHED = "forebay_expected_cached_tokens_total", Kind::Counter, "Prompt tokens that routing expected in the prefix cache of the backend that it chose.";
    OUTPUT_TOKENS = "forebay_output_tokens_total", Kind::Counter, "Output tokens, from the backends' usage or, where there is none, counted as token events.";
    IN_FLIGHT = "forebay_in_flight", Kind::Gauge, "Sequences under way, counted here, by phase.";
    RETRIES = "forebay_retries_total", Kind::Counter, "Attempts that failed on this backend and were followed by another, by reason.";
    ABORTS = "forebay_aborts_total", Kind::Counter, "Requests whose client left, by phase.";
    SLO = "forebay_slo_total", Kind::Counter, "Streams that ended well, by whether they met every latency objective.";
    SLO_LIMIT = "forebay_slo_limit_seconds", Kind::Gauge, "Limit of an objective, as the section slo of the configuration has it.";
    STATE = "forebay_backend_state", Kind::Gauge, "1 for the state that the backend is in, 0 for the others.";
    QUEUE_DEPTH = "forebay_backend_queue_depth", Kind::Gauge, "Sequences waiting in the backend, as last scraped; absent where unknown.";
    RUNNING = "forebay_backend_running", Kind::Gauge, "Sequences running in the backend, as last scraped; absent where unknown.";
    KV_USAGE = "forebay_backend_kv_usage_ratio", Kind::Gauge, "Share of the backend's KV cache in use, as last scraped; absent where unknown.";
    SCRAPE_AGE = "forebay_backend_scrape_age_seconds", Kind::Gauge, "Age of the last good scrape of the backend.";
    SCRAPE_ERRORS = "forebay_backend_scrape_errors_total", Kind::Counter, "Scrapes of the backend that failed, by reason.";
    PREDICTED_TTFT = "forebay_backend_predicted_ttft_seconds", Kind::Gauge, "TTFT that routing would now predict for a typical request on the backend.";
    PREDICTION_ERROR = "forebay_prediction_error_ratio", Kind::Histogram(ERROR_EDGES), "Distance of the predicted from the measured TTFT, over the measured.";
    EJECTIONS = "forebay_ejections_total", Kind::Counter, "Times the backend was put out of routing, by reason.";
    STALLED = "forebay_backend_stalled_seconds", Kind::Gauge, "Time since the backend was found to show no progress: /health has no answer, or work stands still; 0 while it works.";
    ARM_GPUS = "forebay_arm_gpus", Kind::Gauge, "GPUs of the arm, as configured.";
    ARM_SHARE = "forebay_arm_share", Kind::Gauge, "Share of its pool's sessions assigned to the arm, 0 to 1.";
    WAIT = "forebay_wait_seconds", Kind::Histogram(WAIT_EDGES), "Time in the wait room, of requests that waited there; a part of TTFT.";
    WAITING = "forebay_waiting", Kind::Gauge, "Requests in the wait room, by the arm that they are assigned to.";
    WAIT_ROOM_SIZE = "forebay_wait_room_size", Kind::Gauge, "Requests that the wait room of the pool holds, as configured.";
    ARM_CROSSED = "forebay_arm_crossed_total", Kind::Counter, "Requests assigned to the arm and served by another.";
    DISCOVERED = "forebay_discovered_backends", Kind::Gauge, "Backends that the arm's source named last and that take requests, by source.";
    DISCOVERY_AGE = "forebay_discovery_age_seconds", Kind::Gauge, "Age of the last good answer of the arm's source of backends.";
    DISCOVERY_ERRORS = "forebay_discovery_errors_total", Kind::Counter, "Questions to the arm's source of backends that went wrong, by reason.";
    OVERHEAD = "forebay_overhead_seconds", Kind::Histogram(OVERHEAD_EDGES), "Time of a request spent in the proxy itself, before the attempt that answered was sent.";
    BODY_READ = "forebay_body_read_seconds", Kind::Histogram(BODY_EDGES), "Request head parsed to request body read; a part of TTFT.";
    CLIENT_REQUESTS = "forebay_client_requests_total", Kind::Counter, "Requests of a client key that passed its limits.";
    CLIENT_LIMITED = "forebay_client_limited_total", Kind::Counter, "Requests of a client key that were refused, by the limit that they were over.";
    CLIENT_TOKENS = "forebay_client_tokens_total", Kind::Counter, "Tokens of a client key, as the backends' usage counts them, by kind.";
    CLIENT_IN_FLIGHT = "forebay_client_in_flight", Kind::Gauge, "Requests of a client key under way.";
    CONNECTIONS = "forebay_connections", Kind::Gauge, "Client connections open.";
    CONFIG_RELOADS = "forebay_config_reloads_total", Kind::Counter, "Times a new configuration was read, by result.";
    CONFIG_LAST_RELOAD = "forebay_config_last_reload_successful", Kind::Gauge, "1 if the configuration that was last read is in force, 0 if it was rejected.";
    CERTIFICATE_EXPIRY = "forebay_certificate_expiry_timestamp_seconds", Kind::Gauge, "Last second in which a certificate of the configuration is valid, since unix epoch; by the key that names it.";
    REPLICAS = "forebay_replicas", Kind::Gauge, "Replicas of Forebay that this one takes there to be, with itself.";
    PANICS = "forebay_panics_total", Kind::Counter, "Panics that were caught, by what they ended: bugs of Forebay's.";
    LOG_DROPPED = "forebay_access_log_dropped_total", Kind::Counter, "Access log lines dropped because their reader did not keep up.";
    PROCESS_LOG_DROPPED = "forebay_log_dropped_total", Kind::Counter, "Lines of the process's own log dropped because their reader did not keep up.";
    TRACE_SPANS = "forebay_trace_spans_total", Kind::Counter, "Spans of traced requests, by what became of them.";
    BUILD_INFO = "forebay_build_info", Kind::Gauge, "1; the version is a label.";
    PROCESS_CPU = "process_cpu_seconds_total", Kind::Counter, "Total user and system CPU time spent in seconds.";
    PROCESS_OPEN_FDS = "process_open_fds", Kind::Gauge, "Number of open file descriptors.";
    PROCESS_MAX_FDS = "process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.";
    PROCESS_VIRTUAL = "process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.";
    PROCESS_RESIDENT = "process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.";
    PROCESS_START = "process_start_time_seconds", Kind::Gauge, "Start time of the process since unix epoch in seconds.";
    PROCESS_THREADS = "process_threads", Kind::Gauge, "Number of OS threads in the process.";
}

/// The handles of one backend (or of a pool's, an arm's or the process's [`NONE`]). Recording never blocks.
#[derive(Debug)]
pub struct BackendMetrics {
    /// Seconds from arrival to first token; streams only.
    pub ttft: Histogram,
    /// Seconds from attempt sent to first token; streams only.
    pub backend_ttft: Histogram,
    /// Seconds per output token after the first.
    pub tpot: Histogram,
    /// Seconds between token events.
    pub itl: Histogram,
    /// Seconds from arrival to end.
    pub e2e: Histogram,
    /// Seconds in the wait room, where a request waited there.
    pub wait: Histogram,
    /// |predicted − measured TTFT| / measured.
    pub prediction_error: Histogram,
    /// Prompt tokens, from usage.
    pub prompt_tokens: Counter,
    /// Prompt tokens expected in its prefix cache.
    pub expected_cached_tokens: Counter,
    output_tokens: ByLabel,
    /// By API, in the order of `Api::ALL`.
    requests: [ByOutcome; Api::ALL.len()],
    retries: ByFailure,
    aborts: ByLabel,
    slo: ByLabel,
    scrape_errors: ByLabel,
    ejections: ByLabel,
}

impl BackendMetrics {
    /// Handles that are in no text, for tests and for tools that have no `/metrics`.
    #[must_use]
    pub fn unregistered() -> BackendMetrics {
        BackendMetrics::new(&Registry::new(ALL), "m", "default", "unregistered")
    }

    pub(crate) fn new(registry: &Registry, pool: &str, arm: &str, backend: &str) -> BackendMetrics {
        let labels = [("pool", pool), ("arm", arm), ("backend", backend)];
        let real = backend != NONE;
        // Where no backend was chosen there is no token, so no such series either.
        let histogram = |def| if real { registry.histogram(def, &labels) } else { Histogram::noop() };
        let counters = |def, label: &'static str, values: Vec<&'static str>| {
            // Every value of a label is there from the start, at zero, so that a rate over the first error is right.
            let one = |value| (value, registry.counter(def, &[labels[0], labels[1], labels[2], (label, value)]));
            ByLabel::new(values.into_iter().map(one))
        };
        let of_backend = |def, label, values| if real { counters(def, label, values) } else { ByLabel::new([]) };
        let retries = |reason| registry.counter(&RETRIES, &[labels[0], labels[1], labels[2], ("reason", reason)]);
        BackendMetrics {
            ttft: histogram(&TTFT),
            backend_ttft: histogram(&BACKEND_TTFT),
            tpot: histogram(&TPOT),
            itl: histogram(&ITL),
            e2e: registry.histogram(&E2E, &labels),
            wait: registry.histogram(&WAIT, &labels),
            prediction_error: histogram(&PREDICTION_ERROR),
            prompt_tokens: if real { registry.counter(&PROMPT_TOKENS, &labels) } else { Counter::noop() },
            expected_cached_tokens: if real { registry.counter(&EXPECTED_CACHED, &labels) } else { Counter::noop() },
            output_tokens: of_backend(&OUTPUT_TOKENS, "source", labels_of(TokenSource::ALL, TokenSource::label)),
            requests: Api::ALL.map(|api| {
                let refusals = if real { later_refusal_labels() } else { refusal_labels() };
                ByOutcome::new(refusals, |outcome| {
                    let of_api = [labels[0], labels[1], labels[2], ("api", api.label()), ("outcome", outcome)];
                    registry.counter(&REQUESTS, &of_api)
                })
            }),
            retries: if real { ByFailure::new(retries) } else { ByFailure::none() },
            aborts: counters(&ABORTS, "phase", labels_of(AbortPhase::ALL, AbortPhase::label)),
            slo: of_backend(&SLO, "met", vec!["true", "false"]),
            scrape_errors: of_backend(&SCRAPE_ERRORS, "reason", labels_of(ProbeFailure::ALL, ProbeFailure::label)),
            ejections: of_backend(&EJECTIONS, "reason", labels_of(Ejection::ALL, Ejection::label)),
        }
    }

    /// A request ended here.
    pub fn request(&self, api: Api, outcome: Outcome) {
        self.requests[api as usize].add(outcome);
    }

    /// An attempt here failed and is followed by another.
    pub fn retry(&self, failure: Failure) {
        self.retries.add(failure);
    }

    /// The client left.
    pub fn abort(&self, phase: AbortPhase) {
        self.aborts.add(phase.label(), 1);
    }

    /// A stream ended well, and met every objective or not.
    pub fn slo(&self, met: bool) {
        self.slo.add(if met { "true" } else { "false" }, 1);
    }

    /// Output tokens of one answer.
    pub fn output_tokens(&self, source: TokenSource, tokens: u64) {
        self.output_tokens.add(source.label(), tokens);
    }

    /// A scrape failed.
    pub fn scrape_error(&self, failure: ProbeFailure) {
        self.scrape_errors.add(failure.label(), 1);
    }

    /// The backend was put out of routing.
    pub fn ejected(&self, why: Ejection) {
        self.ejections.add(why.label(), 1);
    }

    /// The TTFT that was predicted at dispatch, and the one that came.
    pub fn predicted(&self, predicted: Duration, measured: Duration) {
        if !measured.is_zero() {
            self.prediction_error.record(predicted.abs_diff(measured).as_secs_f64() / measured.as_secs_f64());
        }
    }
}

/// The handles of one client key.
#[derive(Debug)]
pub struct ClientMetrics {
    /// Requests that passed its limits.
    pub requests: Counter,
    /// Requests under way.
    pub in_flight: Gauge,
    prompt_tokens: Counter,
    output_tokens: Counter,
    limited: ByLabel,
}

impl ClientMetrics {
    pub(crate) fn new(registry: &Registry, client: &str) -> ClientMetrics {
        let label = ("client", client);
        let tokens = |kind| registry.counter(&CLIENT_TOKENS, &[label, ("kind", kind)]);
        let limited =
            |over: &Over| (over.label(), registry.counter(&CLIENT_LIMITED, &[label, ("limit", over.label())]));
        ClientMetrics {
            requests: registry.counter(&CLIENT_REQUESTS, &[label]),
            in_flight: registry.gauge(&CLIENT_IN_FLIGHT, &[label]),
            prompt_tokens: tokens("prompt"),
            output_tokens: tokens("output"),
            limited: ByLabel::new(Over::ALL.iter().map(limited)),
        }
    }

    /// A request was refused for this limit.
    pub fn limited(&self, over: Over) {
        self.limited.add(over.label(), 1);
    }

    /// Tokens of one answer.
    pub fn tokens(&self, prompt: u64, output: u64) {
        self.prompt_tokens.increment(prompt);
        self.output_tokens.increment(output);
    }
}

/// The handles that are there once.
#[derive(Debug)]
pub struct ProcessMetrics {
    /// Seconds of our own in a request.
    pub overhead: Histogram,
    /// Seconds from head parsed to body read.
    pub body_read: Histogram,
    /// Client connections open: increment and decrement.
    pub connections: Gauge,
    /// Access log lines dropped.
    pub log_dropped: Counter,
    /// Lines of the process's own log dropped.
    pub process_log_dropped: Counter,
    /// Replicas of this proxy, with this one.
    pub replicas: Gauge,
    reloads: ByLabel,
    last_reload: Gauge,
    slo_limits: [Gauge; 2],
    panics: ByLabel,
    spans: ByLabel,
    /// Held so that the series stays.
    _build_info: Gauge,
}

impl ProcessMetrics {
    pub(crate) fn new(registry: &Registry) -> ProcessMetrics {
        let reload = |value: &Reload| (value.label(), registry.counter(&CONFIG_RELOADS, &[("result", value.label())]));
        let panic = |value: &Panicked| (value.label(), registry.counter(&PANICS, &[("where", value.label())]));
        let span = |value: &SpanEnd| (value.label(), registry.counter(&TRACE_SPANS, &[("result", value.label())]));
        let build_info = registry.gauge(&BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]);
        build_info.set(1.0);
        let last_reload = registry.gauge(&CONFIG_LAST_RELOAD, &[]);
        // The configuration that the process began with is in force.
        last_reload.set(1.0);
        ProcessMetrics {
            overhead: registry.histogram(&OVERHEAD, &[]),
            body_read: registry.histogram(&BODY_READ, &[]),
            connections: registry.gauge(&CONNECTIONS, &[]),
            log_dropped: registry.counter(&LOG_DROPPED, &[]),
            process_log_dropped: registry.counter(&PROCESS_LOG_DROPPED, &[]),
            replicas: registry.gauge(&REPLICAS, &[]),
            last_reload,
            slo_limits: ["ttft", "tpot"].map(|limit| registry.gauge(&SLO_LIMIT, &[("limit", limit)])),
            reloads: ByLabel::new(Reload::ALL.iter().map(reload)),
            panics: ByLabel::new(Panicked::ALL.iter().map(panic)),
            spans: ByLabel::new(SpanEnd::ALL.iter().map(span)),
            _build_info: build_info,
        }
    }

    /// A panic was caught.
    pub fn panicked(&self, place: Panicked) {
        self.panics.add(place.label(), 1);
    }

    /// Spans were sent, or dropped.
    pub fn spans(&self, end: SpanEnd, count: u64) {
        self.spans.add(end.label(), count);
    }

    /// The limits of the objectives that are in force.
    pub fn slo_limits(&self, ttft: Duration, tpot: Duration) {
        self.slo_limits[0].set(ttft.as_secs_f64());
        self.slo_limits[1].set(tpot.as_secs_f64());
    }

    /// The configuration was read again.
    pub fn reload(&self, result: Reload) {
        self.reloads.add(result.label(), 1);
        self.last_reload.set(if result == Reload::Rejected { 0.0 } else { 1.0 });
    }
}
