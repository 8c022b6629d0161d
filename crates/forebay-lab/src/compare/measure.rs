//! The figures of an epoch: as measured, and as they would have been of requests drawn again. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::model::{Moment, QuantilePoint};
use super::trial::Trial;
use crate::rows::record::Record;
use crate::rows::row_file::Sample;
use crate::rows::slo::Slo;
use crate::rows::summary::{Distribution, Summary};

/// The numbers that an arm's figures are divided by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Divisors {
    pub(super) gpus: Option<u32>,
    pub(super) price_per_hour: Option<f64>,
}

/// The figures of an epoch, and what its requests met.
#[derive(Clone, Debug)]
pub(super) struct Measures {
    pub(super) summary: Summary,
    pub(super) figures: BTreeMap<Figure, f64>,
    /// Requests that met the SLO, and all.
    pub(super) met: u64,
    pub(super) all: u64,
}

pub(super) fn measure(trial: &Trial, slo: Option<&Slo>, by: Divisors) -> Measures {
    let mut summary = Summary::of(trial.records.iter().copied());
    // A block of a live split lasts as long as its clock says, also where nothing came near its end.
    if let Some(seconds) = trial.seconds {
        summary.duration_s = seconds;
    }
    measures(summary, &trial.records, slo, by)
}

/// The figures of these requests, whose summary has the right duration.
pub(super) fn measures(summary: Summary, records: &[&Record], slo: Option<&Slo>, by: Divisors) -> Measures {
    let met = records.iter().filter(|record| slo.is_some_and(|slo| slo.met(record))).count() as u64;
    let all = records.len() as u64;
    let mut figures = BTreeMap::new();
    let mut put = |figure, value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            figures.insert(figure, value);
        }
    };
    put(Figure::RequestsPerSecond, Some(summary.requests_per_second()));
    throughput(summary.output_tokens_per_second(), by, &mut put);
    if slo.is_some() && all > 0 {
        attainment(met as f64 / all as f64, all, summary.duration_s, by, &mut put);
    }
    for (figure, value) in [
        (Figure::TtftMedian, ttft(records, 0.5)),
        (Figure::TtftP95, ttft(records, 0.95)),
        (Figure::TtftP99, ttft(records, 0.99)),
        (Figure::TpotMedian, summary.tpot_ms.p50),
        (Figure::TpotP99, summary.tpot_ms.p99),
        (Figure::ItlMedian, summary.itl_ms.p50),
        (Figure::ItlP99, summary.itl_ms.p99),
        (Figure::E2eMedian, summary.e2e_ms.p50),
        (Figure::E2eP99, summary.e2e_ms.p99),
    ] {
        put(figure, value);
    }
    Measures { summary, figures, met, all }
}

/// A quantile of TTFT in milliseconds over all requests, where one that failed never had its first token; none where the quantile
/// lies among those.
fn ttft(records: &[&Record], share: f64) -> Option<f64> {
    let of = |record: &&Record| {
        // Infinite and not left out: an arm that fails its slowest requests would else be the faster one.
        record.ttft().filter(|_| record.succeeded()).map_or(f64::INFINITY, |ttft| ttft.as_secs_f64() * 1e3)
    };
    Distribution::with_infinite(records.iter().map(of)).quantile(share).filter(|value| value.is_finite())
}

pub(super) fn throughput(tokens: f64, by: Divisors, put: &mut impl FnMut(Figure, Option<f64>)) {
    put(Figure::OutputTokensPerSecond, Some(tokens));
    put(Figure::OutputTokensPerGpu, by.gpus.map(|gpus| tokens / f64::from(gpus)));
    put(Figure::OutputTokensPerDollar, by.price_per_hour.map(|price| tokens * 3600.0 / price));
}

pub(super) fn attainment(share: f64, all: u64, seconds: f64, by: Divisors, put: &mut impl FnMut(Figure, Option<f64>)) {
    let goodput = share * all as f64 / seconds;
    put(Figure::SloAttainment, Some(share));
    put(Figure::SloMisses, Some(1.0 - share));
    put(Figure::Goodput, Some(goodput));
    put(Figure::GoodputPerGpu, by.gpus.map(|gpus| goodput / f64::from(gpus)));
}

impl Measures {
    /// A figure for a logarithm. With `half`, half a request more met the SLO and half a one more did not (Haldane and Anscombe),
    /// so that a share of nothing has one; for a pair where some epoch had none.
    pub(super) fn positive(&self, figure: Figure, half: bool) -> Option<f64> {
        let value = *self.figures.get(&figure)?;
        if !half {
            return Some(value).filter(|value| *value > 0.0);
        }
        let (met, all) = (self.met as f64, self.all as f64);
        let share = (met + 0.5) / (all + 1.0);
        let value = match figure {
            Figure::SloMisses => 1.0 - share,
            Figure::SloAttainment => share,
            // The figure of one whole share: what multiplies it.
            Figure::Goodput | Figure::GoodputPerGpu if met > 0.0 => share * value / (met / all),
            Figure::Goodput | Figure::GoodputPerGpu => share * all / self.summary.duration_s,
            _ => value,
        };
        Some(value).filter(|value| *value > 0.0)
    }
}

/// A distribution by its hundredths, and the last few thousandths.
pub(super) fn quantiles(values: impl Iterator<Item = std::time::Duration>) -> Vec<QuantilePoint> {
    let values: Distribution = values.map(|span| span.as_secs_f64() * 1e3).collect();
    let shares = (0..=99).map(|hundredth| f64::from(hundredth) / 100.0).chain([0.995, 0.999, 1.0]);
    shares.filter_map(|share| Some(QuantilePoint { share, ms: values.quantile(share)? })).collect()
}

/// Looks at single servers as looks at the arm, at most 200: in each slot of time the last look at each server counts.
pub(super) fn timeline(samples: &[Sample]) -> Vec<Moment> {
    let Some(last) = samples.iter().map(|sample| sample.at_us).max() else { return Vec::new() };
    // Servers are looked at once a second: a shorter slot would have gaps.
    let slot = (last / 200).max(1_000_000);
    // A plot is about 200 points wide. More moments would be drawn over each other and make the page large.
    let mut slots: BTreeMap<u64, BTreeMap<&str, &Sample>> = BTreeMap::new();
    for sample in samples {
        slots.entry(sample.at_us / slot).or_default().insert(&sample.backend, sample);
    }
    let moment = |(place, servers): (u64, BTreeMap<&str, &Sample>)| {
        let values = |of: fn(&Sample) -> Option<f64>| -> Vec<f64> {
            servers.values().filter_map(|sample| of(sample)).filter(|value| value.is_finite()).collect()
        };
        let sum = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>());
        let usage = values(|sample| sample.kv_usage);
        let servers = usage.len() as f64;
        Moment {
            at_s: (place * slot) as f64 / 1e6,
            running: sum(values(|sample| sample.running)),
            waiting: sum(values(|sample| sample.waiting)),
            kv_usage: sum(usage).map(|sum| sum / servers),
        }
    };
    slots.into_iter().map(moment).collect()
}
