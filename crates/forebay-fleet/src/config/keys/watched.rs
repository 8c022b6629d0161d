//! The keys of how backends are watched: their health, and the metrics that they show of themselves.

use std::time::Duration;

use super::super::between::{both, in_time, shown};
use super::super::discover::{Kubernetes, ServiceName};
use forebay_core::section;
use forebay_core::toml_reader::kinds::{interval, limit, or_off, set, whole};
use forebay_core::toml_reader::notation::duration_text;
use forebay_core::toml_reader::{ByHand, Nested, Table};

section! {
    name: "health", head: "[health]", form: "[health] and its keys below", check: probes_are_in_time;
    /// Rules for ejecting a backend, and for its return.
    #[derive(Clone, Debug, PartialEq)]
    pub struct HealthConfig {
        /// Time between two probes of a backend's `/health`.
        interval: Duration { takes: interval(), default: Duration::from_secs(2), reload: AtOnce },
        /// Time limit of a probe. At most `health.interval`.
        timeout: Duration { takes: limit(), default: Duration::from_secs(1), reload: AtOnce },
        /// Failures in a row, of requests or of probes, that eject a backend.
        failures: u32 { takes: whole(1..=1000), default: 3, reload: AtOnce },
        /// Time for which an ejected backend gets no requests. Then a request of Forebay's own decides whether it returns.
        ejection: Ejection { takes: Nested, default: Ejection::default(), reload: AtOnce },
        /// Time without progress after which a backend that has work counts as hung. It is ejected, and its requests move or get
        /// an error event. The time is three times as long where its metrics do not say that it has work, or cannot be read. Without
        /// metrics only streams count: an answer that is no stream shows nothing before its end.
        stall_timeout: Option<Duration> { takes: or_off(limit()), default: Some(Duration::from_secs(20)), reload: AtOnce },
    }
}

section! {
    name: "health.ejection", head: "health.ejection", form: "ejection = { base = \"5s\", max = \"60s\" }", check: base_is_shortest;
    /// Time for which an ejected backend gets no requests.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Ejection {
        /// Length of the first ejection. Each one that follows soon after a return is twice as long. At most
        /// `health.ejection.max`.
        base: Duration { takes: interval(), default: Duration::from_secs(5), reload: AtOnce },
        /// Length of the longest ejection.
        max: Duration { takes: interval(), default: Duration::from_secs(60), reload: AtOnce },
    }
}

section! {
    name: "scrape", head: "[scrape]", form: "[scrape] and its keys below", check: scrapes_are_in_time;
    /// Rules for reading the backends' own `/metrics`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct ScrapeConfig {
        /// Time between two scrapes of a backend.
        interval: Duration { takes: interval(), default: Duration::from_secs(1), reload: AtOnce },
        /// Time limit of a scrape. At most `scrape.interval`.
        timeout: Duration { takes: limit(), default: Duration::from_millis(800), reload: AtOnce },
        /// Age from which scraped metrics are ignored. At least `scrape.interval`.
        stale_after: Duration { takes: limit(), default: Duration::from_secs(3), reload: AtOnce },
    }
}

section! {
    name: "replicas", head: "[replicas]", form: "[replicas] and its keys below";
    /// Replicas of Forebay before the same backends. They share nothing at run time.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Replicas {
        /// Replicas, with this one. With `service`, the number until that has answered. The intervals of scrapes and probes and
        /// `scrape.stale_after` become so many times as long. Each replica takes its part of `backend_max_in_flight`, the wait room and
        /// the retry budget. A prompt that it has not seen goes where the others would send it, if all have the same `split_salt`. Limits
        /// of client keys are not divided.
        count: u32 { takes: whole(1..=1_000), default: 1, reload: AtOnce },
        /// Service of Forebay itself in Kubernetes. Its Ready endpoints are the replicas, and the number follows them. An error
        /// leaves the number as it is.
        service: Option<String> { takes: set(ServiceName), default: None, said: "not set: the number is `count`", reload: AtOnce },
        /// Cluster and namespace of that Service, where they are not those that Forebay runs in: `namespace`, `api`, `token_file` and
        /// `ca_file`, as in `pools.discover.kubernetes`.
        kubernetes: Option<Kubernetes> {
            takes: ByHand("the keys of `pools.discover.kubernetes` that name a cluster"),
            default: None,
            said: "the cluster and the namespace that Forebay runs in",
            reload: AtOnce,
        },
    }
}

fn probes_are_in_time(health: &HealthConfig, table: &Table<'_>) {
    in_time(table, health.timeout, health.interval);
}

/// Notes a first time out that is longer than the longest.
fn base_is_shortest(ejection: &Ejection, table: &Table<'_>) {
    let (base, max) = (table.got("base", ejection.base), table.got("max", ejection.max));
    if !base.wrong && !max.wrong && base.value > max.value {
        let message = format!(
            "health.ejection: base {} is longer than max {}",
            shown(&base, duration_text(base.value)),
            shown(&max, duration_text(max.value))
        );
        let hint = "the first time out is the shortest: base is doubled up to max";
        both(table.notes(), message, hint, (&base.span, &max.span), "the longest time out");
    }
}

/// Notes a scrape that may outlast its interval, and figures that would be stale before the next scrape.
fn scrapes_are_in_time(scrape: &ScrapeConfig, table: &Table<'_>) {
    in_time(table, scrape.timeout, scrape.interval);
    let (stale_after, interval) =
        (table.got("stale_after", scrape.stale_after), table.got("interval", scrape.interval));
    if !stale_after.wrong && !interval.wrong && stale_after.value < interval.value {
        let message = format!(
            "scrape.stale_after: {} is shorter than scrape.interval ({})",
            shown(&stale_after, duration_text(stale_after.value)),
            duration_text(interval.value)
        );
        let hint = "figures would be stale before the next ones come; three intervals are usual";
        both(table.notes(), message, hint, (&stale_after.span, &interval.span), "the interval");
    }
}
