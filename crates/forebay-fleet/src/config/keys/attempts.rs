//! The keys of what happens to a request: time limits of its answer, retries, and what counts as good service.

use std::time::Duration;

use serde::Serialize;

use forebay_core::section;
use forebay_core::toml_reader::Nested;
use forebay_core::toml_reader::kinds::{choice, hinted, limit, number, or_off, whole};

section! {
    name: "stream", head: "[stream]", form: "[stream] and its keys below";
    /// Time limits of an answer, and what Forebay adds to a request.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Stream {
        /// Time after which a waiting client gets the head of its stream, and then comments, before the first token. It is for
        /// clients and middleboxes that must see bytes. Another backend may still serve the request.
        head_after: Option<Duration> { takes: or_off(limit()), default: None, reload: AtOnce },
        /// Longest time that one backend may take to the first token of a stream. Then another backend is tried, and at last the
        /// client gets a 504.
        first_token_timeout: Option<Duration> { takes: or_off(limit()), default: None, reload: AtOnce },
        /// Longest gap between two events after the first token, where the backend's metrics show no progress or are not known.
        /// Then the stream ends with an error event.
        idle_timeout: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(60)), reload: AtOnce },
        /// Longest gap between two events while the backend's metrics show progress. An engine may hold a tool call's arguments
        /// back for minutes. But its metrics do not say which stream it works on.
        busy_idle_timeout: Option<Duration> {
            takes: or_off(limit()), default: Some(Duration::from_secs(10 * 60)), reload: AtOnce
        },
        /// Longest time from a request to the end of its answer. Then the client gets a 504, or an error event if its stream has
        /// begun.
        total_timeout: Option<Duration> {
            takes: or_off(limit()), default: Some(Duration::from_secs(30 * 60)), reload: AtOnce
        },
        /// The way to count the tokens of streamed chats and completions. With `"inject"` Forebay asks the backend for usage, and
        /// hides the answer from a client that did not ask. With `"as_sent"` requests stay as they are.
        usage: UsageMode { takes: choice(UsageMode::ALL), default: UsageMode::Inject, reload: AtOnce },
    }
}

section! {
    name: "retry", head: "[retry]", form: "[retry] and its keys below";
    /// Rules for an attempt that fails before the first token. After it nothing is retried.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Retry {
        /// Attempts for one request, with the first. `1` means no retry.
        attempts: u32 { takes: hinted(whole(1..=10), "1 means the first attempt only"), default: 3, reload: AtOnce },
        /// Retries that a pool may make, as a token bucket that is full at the start.
        budget: Budget { takes: Nested, default: Budget::default(), reload: AtOnce },
    }
}

section! {
    name: "retry.budget", head: "retry.budget", form: "budget = { burst = 100, ratio = 0.2, per_second = 10 }";
    /// Retries that a pool may make, as a token bucket that is full at the start.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Budget {
        /// Retries that fit into the bucket.
        burst: f64 { takes: number(0.0..=1e6), default: 100.0, reload: AtOnce },
        /// Retries that each request adds.
        ratio: f64 { takes: number(0.0..=1.0), default: 0.2, reload: AtOnce },
        /// Retries that each second adds.
        per_second: f64 { takes: number(0.0..=1e6), default: 10.0, reload: AtOnce },
    }
}

section! {
    name: "slo", head: "[slo]", form: "[slo] and its keys below";
    /// Limits that count as good service. `forebay_slo_total` counts the streams that met both limits. Routing does not use them.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Slo {
        /// Limit for the time to the first token.
        ttft: Duration { takes: limit(), default: Duration::from_secs(1), reload: AtOnce },
        /// Limit for the time per output token after the first.
        tpot: Duration { takes: limit(), default: Duration::from_millis(60), reload: AtOnce },
    }
}

/// The choice whether backends are asked for token counts that the client did not ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageMode {
    /// Ask for them, and hide them from a client that did not.
    #[default]
    Inject,
    /// Leave the request as the client sent it.
    AsSent,
}

impl UsageMode {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, UsageMode); 2] = [("inject", UsageMode::Inject), ("as_sent", UsageMode::AsSent)];
}
