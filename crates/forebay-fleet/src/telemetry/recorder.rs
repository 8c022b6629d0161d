//! Where the metrics live: a [`metrics::Recorder`] of our own, one for each `Telemetry`, never installed globally, so that
//! several proxies can live in one process. Ours, because metrics-exporter-prometheus' own cannot delete a series: here one
//! whose backend has left is dropped from the text and, once nobody holds its handle, from memory. The text format itself
//! is written by metrics-exporter-prometheus.
//! It must never lock, allocate or format on recording.
//!
//! Hot path: a count is one atomic add; an observation a binary search over ≤ 64 edges and two atomic writes. No allocation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::lock::locked;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{write_help_line, write_metric_line, write_type_line};

/// The declaration of one metric: the only place where its name, help and buckets are written.
#[derive(Clone, Copy, Debug)]
pub struct Def {
    /// The full name, with unit and, for a counter, `_total`.
    pub name: &'static str,
    /// The HELP line.
    pub help: &'static str,
    /// The TYPE line, and a histogram's buckets.
    pub kind: Kind,
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Counts by upper edge, ascending, `+Inf` understood.
    Histogram(&'static [f64]),
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// Every series of one `Telemetry`. Locked when a handle is made and when the text is rendered, never on recording.
#[derive(Debug)]
pub(crate) struct Registry {
    defs: &'static [&'static Def],
    series: Mutex<BTreeMap<(&'static str, Labels), Series>>,
}

/// The labels of a series, in the order in which they were given. Compared as text, which is what keeps `/metrics` sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels(Vec<(String, String)>);

impl Labels {
    /// The value of a label, if the series has it.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug)]
enum Series {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

impl Series {
    fn is_held(&self) -> bool {
        match self {
            Series::Counter(cell) | Series::Gauge(cell) => Arc::strong_count(cell) > 1,
            Series::Histogram(buckets) => Arc::strong_count(buckets) > 1,
        }
    }
}

impl Registry {
    pub(crate) fn new(defs: &'static [&'static Def]) -> Registry {
        Registry { defs, series: Mutex::new(BTreeMap::new()) }
    }

    /// The handle of a counter, made on the first call for these labels.
    pub(crate) fn counter(&self, def: &Def, labels: &[(&'static str, &str)]) -> Counter {
        self.register_counter(&key(def, labels), &METADATA)
    }

    /// The handle of a gauge, made on the first call for these labels.
    pub(crate) fn gauge(&self, def: &Def, labels: &[(&'static str, &str)]) -> Gauge {
        self.register_gauge(&key(def, labels), &METADATA)
    }

    /// The handle of a histogram, made on the first call for these labels.
    pub(crate) fn histogram(&self, def: &Def, labels: &[(&'static str, &str)]) -> Histogram {
        self.register_histogram(&key(def, labels), &METADATA)
    }

    /// Writes every series for whose labels `keep` is true; forgets the others once their handles are gone.
    pub(crate) fn render(&self, text: &mut Text, keep: impl Fn(&Labels) -> bool) {
        let mut all = locked(&self.series);
        // Nobody counts there any more, and nobody is shown it: this is what bounds memory while backends come and go.
        all.retain(|(_, labels), series| series.is_held() || keep(labels));
        for ((name, labels), series) in all.iter().filter(|((_, labels), _)| keep(labels)) {
            let Some(def) = self.defs.iter().find(|def| def.name == *name) else { continue };
            let labels: Vec<(&str, &str)> =
                labels.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            match series {
                Series::Counter(cell) => text.integer(def, &labels, cell.load(Ordering::Relaxed)),
                Series::Gauge(cell) => text.number(def, &labels, f64::from_bits(cell.load(Ordering::Relaxed))),
                Series::Histogram(buckets) => buckets.render(def, &labels, text),
            }
        }
    }

    /// Gets or makes a series. A name that is not declared gets nothing: the caller's handle then does nothing.
    fn series<T>(
        &self,
        key: &Key,
        make: impl Fn(Kind) -> Option<Series>,
        take: impl Fn(&Series) -> Option<T>,
    ) -> Option<T> {
        let def = self.defs.iter().find(|def| def.name == key.name())?;
        let labels = Labels(key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect());
        let mut all = locked(&self.series);
        let id = (def.name, labels);
        // A backend that comes back goes on where it was: a counter that began anew would look like a restart.
        if let Some(series) = all.get(&id) {
            return take(series);
        }
        let series = make(def.kind)?;
        let handle = take(&series);
        all.insert(id, series);
        handle
    }
}

const METADATA: Metadata<'static> = Metadata::new("forebay", metrics::Level::INFO, None);

fn key(def: &Def, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<metrics::Label> =
        labels.iter().map(|(name, value)| metrics::Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(def.name, labels)
}

/// Units and help come from [`Def`]; what others would describe is not taken.
impl Recorder for Registry {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let make = |kind| (kind == Kind::Counter).then(|| Series::Counter(Arc::default()));
        let take = |series: &Series| match series {
            Series::Counter(cell) => Some(Counter::from_arc(Arc::clone(cell))),
            _ => None,
        };
        self.series(key, make, take).unwrap_or_else(Counter::noop)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let make = |kind| (kind == Kind::Gauge).then(|| Series::Gauge(Arc::default()));
        let take = |series: &Series| match series {
            Series::Gauge(cell) => Some(Gauge::from_arc(Arc::clone(cell))),
            _ => None,
        };
        self.series(key, make, take).unwrap_or_else(Gauge::noop)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let make = |kind| match kind {
            Kind::Histogram(edges) => Some(Series::Histogram(Arc::new(Buckets::new(edges)))),
            _ => None,
        };
        let take = |series: &Series| match series {
            Series::Histogram(buckets) => Some(Histogram::from_arc(Arc::clone(buckets))),
            _ => None,
        };
        self.series(key, make, take).unwrap_or_else(Histogram::noop)
    }
}

/// Counts by upper edge. The count of the text is the sum of the buckets, so a text is consistent in itself also when it is
/// rendered while others record; its `_sum` may be one observation ahead.
#[derive(Debug)]
struct Buckets {
    edges: &'static [f64],
    /// One more than there are edges: the last is past them all.
    counts: Vec<AtomicU64>,
    /// The bits of an f64.
    sum: AtomicU64,
}

impl Buckets {
    fn new(edges: &'static [f64]) -> Buckets {
        let counts = (0..=edges.len()).map(|_| AtomicU64::new(0)).collect();
        Buckets { edges, counts, sum: AtomicU64::new(0f64.to_bits()) }
    }

    fn render(&self, def: &Def, labels: &[(&str, &str)], text: &mut Text) {
        let mut below = 0;
        for (i, count) in self.counts.iter().enumerate() {
            below += count.load(Ordering::Relaxed);
            // As vLLM writes them: `1.0`, so that both series can be matched by label.
            let edge = self.edges.get(i).map_or_else(|| "+Inf".to_owned(), |edge| format!("{edge:?}"));
            text.line(def, Some("bucket"), labels, Some(("le", &edge)), below);
        }
        text.line(def, Some("sum"), labels, None, f64::from_bits(self.sum.load(Ordering::Relaxed)));
        text.line(def, Some("count"), labels, None, below);
    }
}

impl HistogramFn for Buckets {
    /// NaN and infinite values are not counted: one would spoil `_sum` for ever.
    fn record(&self, value: f64) {
        if !value.is_finite() {
            return;
        }
        let i = self.edges.partition_point(|edge| *edge < value);
        self.counts[i].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // Never fails: `add` always has an answer.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// The Prometheus text format, version 0.0.4. Samples may come in any order; each family is written once, with its HELP and
/// TYPE, and families are sorted by name. A family without a sample is not written.
#[derive(Debug, Default)]
pub(crate) struct Text {
    families: BTreeMap<&'static str, String>,
}

impl Text {
    /// One sample whose value is a whole number.
    pub(crate) fn integer(&mut self, def: &Def, labels: &[(&str, &str)], value: u64) {
        self.line(def, None, labels, None, value);
    }

    /// One sample.
    pub(crate) fn number(&mut self, def: &Def, labels: &[(&str, &str)], value: f64) {
        self.line(def, None, labels, None, value);
    }

    fn line(
        &mut self,
        def: &Def,
        suffix: Option<&'static str>,
        labels: &[(&str, &str)],
        edge: Option<(&'static str, &str)>,
        value: impl std::fmt::Display,
    ) {
        let Def { name, help, kind } = *def;
        let out = self.families.entry(name).or_insert_with(|| {
            let mut head = String::new();
            write_help_line(&mut head, name, None, None, help);
            write_type_line(&mut head, name, None, None, kind.label());
            head
        });
        let labels: Vec<_> = labels.iter().map(|(key, value)| Label::new(key.to_string(), value.to_string())).collect();
        let labels = LabelSet::from_key_and_global(&Key::from_parts(name, labels), &Default::default());
        write_metric_line(out, name, suffix, &labels, edge, value, None);
    }

    /// The whole text.
    pub(crate) fn finish(self) -> String {
        self.families.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SECONDS: Def = Def { name: "t_seconds", help: "A time.", kind: Kind::Histogram(&[0.25, 1.0, 2.5]) };
    static ERRORS: Def = Def { name: "t_errors_total", help: "Errors.", kind: Kind::Counter };
    static DEFS: &[&Def] = &[&SECONDS, &ERRORS];

    fn text(registry: &Registry, keep: impl Fn(&Labels) -> bool) -> String {
        let mut text = Text::default();
        registry.render(&mut text, keep);
        text.finish()
    }

    #[test]
    fn buckets_are_cumulative_and_an_edge_belongs_to_its_bucket() {
        let registry = Registry::new(DEFS);
        let histogram = registry.histogram(&SECONDS, &[("a", "x")]);
        for value in [0.25, 0.5, 1.0, 3.0, f64::NAN, f64::INFINITY] {
            histogram.record(value);
        }
        let expected = "# HELP t_seconds A time.\n# TYPE t_seconds histogram\n\
            t_seconds_bucket{a=\"x\",le=\"0.25\"} 1\nt_seconds_bucket{a=\"x\",le=\"1.0\"} 3\n\
            t_seconds_bucket{a=\"x\",le=\"2.5\"} 3\nt_seconds_bucket{a=\"x\",le=\"+Inf\"} 4\n\
            t_seconds_sum{a=\"x\"} 4.75\nt_seconds_count{a=\"x\"} 4\n";
        assert_eq!(text(&registry, |_| true), expected);
    }

    #[test]
    fn same_labels_are_the_same_series() {
        let registry = Registry::new(DEFS);
        registry.counter(&ERRORS, &[("a", "x")]).increment(1);
        registry.counter(&ERRORS, &[("a", "x")]).increment(2);
        assert!(text(&registry, |_| true).contains("t_errors_total{a=\"x\"} 3\n"));
    }

    #[test]
    fn a_dropped_series_is_forgotten_only_when_its_handle_is_gone() {
        let registry = Registry::new(DEFS);
        let held = registry.counter(&ERRORS, &[("a", "x")]);
        held.increment(5);
        assert_eq!(text(&registry, |_| false), "");
        assert!(text(&registry, |_| true).contains(" 5\n"));
        drop(held);
        assert_eq!(text(&registry, |_| false), "");
        assert_eq!(text(&registry, |_| true), "");
    }

    #[test]
    fn label_values_are_escaped() {
        let registry = Registry::new(DEFS);
        registry.counter(&ERRORS, &[("a", "q\"b\\n\nx")]).increment(1);
        assert!(text(&registry, |_| true).contains(r#"{a="q\"b\\n\nx"} 1"#));
    }

    #[test]
    fn an_undeclared_name_does_nothing() {
        static STRAY: Def = Def { name: "stray_total", help: "Not declared.", kind: Kind::Counter };
        let registry = Registry::new(DEFS);
        registry.counter(&STRAY, &[]).increment(1);
        assert_eq!(text(&registry, |_| true), "");
    }
}
