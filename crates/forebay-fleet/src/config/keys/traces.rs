//! The keys of traces: where spans of requests go, and which requests have any.

use serde::Serialize;

use super::super::kinds::Collector;
use forebay_core::section;
use forebay_core::toml_reader::kinds::{choice, number, set};

section! {
    name: "trace", head: "[trace]", form: "[trace] and its keys below";
    /// Traces of requests, in the form of OpenTelemetry.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Trace {
        /// Collector that gets the spans, by OTLP over HTTP. Forebay adds `/v1/traces`. `"off"` turns traces off, whatever the environment
        /// says.
        endpoint: Option<Option<String>> {
            takes: set(Collector),
            default: None,
            said: "`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else `OTEL_EXPORTER_OTLP_ENDPOINT`, else no traces",
            reload: Restart,
        },
        /// Share of the requests that are traced where the caller has not decided. A caller decides by `traceparent`, and that holds.
        sample: f64 { takes: number(0.0..=1.0), default: 1.0, reload: AtOnce },
        /// Requests whose failure is traced. With `"always"`, a request that failed is traced, also where neither the caller nor `sample`
        /// chose it. With `"sampled"`, failures are traced as other requests are.
        errors: TracedErrors { takes: choice(TracedErrors::ALL), default: TracedErrors::Always, reload: AtOnce },
    }
}

/// The choice of which failed requests are traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TracedErrors {
    /// All of them.
    #[default]
    Always,
    /// Those that were chosen before they failed.
    Sampled,
}

impl TracedErrors {
    /// All values, as written in the configuration.
    pub const ALL: [(&str, TracedErrors); 2] = [("always", TracedErrors::Always), ("sampled", TracedErrors::Sampled)];
}
