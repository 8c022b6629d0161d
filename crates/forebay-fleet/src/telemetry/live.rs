//! What is read, not recorded: the gauges of backends and arms as they are at the moment of the scrape. Rows are plain values,
//! so that telemetry does not know the fleet.

use super::metrics::{CERTIFICATE_EXPIRY, NONE};
use super::recorder::{Def, Text};

/// The value of one gauge.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The gauge.
    pub def: &'static Def,
    /// A label beside those of the row.
    pub label: Option<(&'static str, &'static str)>,
    /// The value.
    pub value: f64,
}

impl Reading {
    /// A value without a label of its own.
    #[must_use]
    pub fn of(def: &'static Def, value: f64) -> Reading {
        Reading { def, label: None, value }
    }
}

/// The state of one backend now.
#[derive(Clone, Debug)]
pub struct BackendRow {
    /// Label: the pool's model.
    pub pool: String,
    /// Label: the arm's name.
    pub arm: String,
    /// Label: as given to [`super::Telemetry::backend`].
    pub backend: String,
    /// Its gauges; one whose value is unknown is absent.
    pub readings: Vec<Reading>,
}

/// The state of one arm now, or of a pool as a whole.
#[derive(Clone, Debug)]
pub struct ArmRow {
    /// Label: the pool's model.
    pub pool: String,
    /// Label: the arm's name; none for what its pool has as a whole.
    pub arm: Option<String>,
    /// Its gauges.
    pub readings: Vec<Reading>,
}

/// A certificate of ours.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Label: the key of the configuration that names it, such as `listen.tls`.
    pub key: &'static str,
    /// Label: the pool whose backends it is shown to.
    pub pool: Option<String>,
    /// The last second in which it is valid, since 1970.
    pub not_after: u64,
}

/// Writes when each certificate ends.
pub(crate) fn render_certificates(text: &mut Text, rows: &[CertificateRow]) {
    for row in rows {
        let labels = [("certificate", row.key), ("pool", row.pool.as_deref().unwrap_or(NONE))];
        text.number(&CERTIFICATE_EXPIRY, &labels, row.not_after as f64);
    }
}

/// Writes every gauge of the rows.
pub(crate) fn render(text: &mut Text, backends: &[BackendRow], arms: &[ArmRow]) {
    let mut write = |labels: &[(&str, &str)], readings: &[Reading]| {
        for reading in readings {
            let labels: Vec<(&str, &str)> = labels.iter().copied().chain(reading.label).collect();
            text.number(reading.def, &labels, reading.value);
        }
    };
    for row in backends {
        write(&[("pool", &row.pool), ("arm", &row.arm), ("backend", &row.backend)], &row.readings);
    }
    for row in arms {
        let labels = [("pool", row.pool.as_str()), ("arm", row.arm.as_deref().unwrap_or_default())];
        write(if row.arm.is_some() { &labels } else { &labels[..1] }, &row.readings);
    }
}
