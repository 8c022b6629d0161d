//! How backends are watched: their health, and the figures that they show of themselves.

use std::time::Duration;

use serde::Serialize;

use forebay_core::toml_reader::written;

/// How backends are probed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Between two probes of a backend.
    #[serde(serialize_with = "written::duration")]
    pub interval: Duration,
    /// For one probe; at most `interval`.
    #[serde(serialize_with = "written::duration")]
    pub timeout: Duration,
    /// Failures in a row that take a backend out; at least 1.
    pub failures: u32,
    /// For how long it is then left alone.
    pub ejection: Ejection,
    /// How long a backend with work to do may show no progress; `None`: for ever.
    #[serde(serialize_with = "written::duration_or_off")]
    pub stall_timeout: Option<Duration>,
}

/// For how long a backend that is out is left alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ejection {
    /// The first time; each that follows closely on a return is twice as long.
    #[serde(serialize_with = "written::duration")]
    pub base: Duration,
    /// The longest time; at least `base`.
    #[serde(serialize_with = "written::duration")]
    pub max: Duration,
}

/// How backends' own figures are read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scrape {
    /// Between two scrapes of a backend.
    #[serde(serialize_with = "written::duration")]
    pub interval: Duration,
    /// For one scrape; at most `interval`.
    #[serde(serialize_with = "written::duration")]
    pub timeout: Duration,
    /// The age from which a figure is no longer believed; at least `interval`.
    #[serde(serialize_with = "written::duration")]
    pub stale_after: Duration,
}
