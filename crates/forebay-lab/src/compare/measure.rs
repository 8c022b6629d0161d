//! The figures of an epoch: as measured, and as they would have been of requests drawn again. Pure.

use std::collections::BTreeMap;

use super::figure::Figure;
use super::model::{Moment, QuantilePoint};
use super::trial::Trial;
use crate::rows::record::Record;
use crate::rows::row_file::Sample;
use crate::rows::slo::Slo;
use crate::rows::summary::{Distribution, Summary};
use crate::stats::bootstrap::Owned;

/// What an arm is divided by.
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
    if let Some(seconds) = trial.seconds {
        summary.duration_s = seconds;
    }
    let met = trial.records.iter().filter(|record| slo.is_some_and(|slo| slo.met(record))).count() as u64;
    let all = trial.records.len() as u64;
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
        (Figure::TtftMedian, summary.ttft_ms.p50),
        (Figure::TtftP95, summary.ttft_ms.p95),
        (Figure::TtftP99, summary.ttft_ms.p99),
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

fn throughput(tokens: f64, by: Divisors, put: &mut impl FnMut(Figure, Option<f64>)) {
    put(Figure::OutputTokensPerSecond, Some(tokens));
    put(Figure::OutputTokensPerGpu, by.gpus.map(|gpus| tokens / f64::from(gpus)));
    put(Figure::OutputTokensPerDollar, by.price_per_hour.map(|price| tokens * 3600.0 / price));
}

fn attainment(share: f64, all: u64, seconds: f64, by: Divisors, put: &mut impl FnMut(Figure, Option<f64>)) {
    let goodput = share * all as f64 / seconds;
    put(Figure::SloAttainment, Some(share));
    put(Figure::Goodput, Some(goodput));
    put(Figure::GoodputPerGpu, by.gpus.map(|gpus| goodput / f64::from(gpus)));
}

impl Measures {
    /// A figure for a logarithm. With `half`, half a request more met the SLO and half a one more did not (Haldane and Anscombe),
    /// so that a share of nothing has one; for a pair where some epoch had none.
    pub(super) fn positive(&self, figure: Figure, half: bool) -> Option<f64> {
        let value = *self.figures.get(&figure)?;
        let of_slo = matches!(figure, Figure::SloAttainment | Figure::Goodput | Figure::GoodputPerGpu);
        if !(half && of_slo) {
            return Some(value).filter(|value| *value > 0.0);
        }
        let (met, all) = (self.met as f64, self.all as f64);
        let share = (met + 0.5) / (all + 1.0);
        // The figure of one whole share: what multiplies it.
        let unit = match figure {
            Figure::SloAttainment => 1.0,
            _ if met > 0.0 => value / (met / all),
            _ => all / self.summary.duration_s,
        };
        Some(share * unit).filter(|value| *value > 0.0)
    }
}

/// An epoch's requests, to be drawn from again and again.
pub(super) struct Drawing {
    times: [(Owned, [(Figure, f64); 3]); 4],
    tokens: Vec<f64>,
    succeeded: Vec<bool>,
    met: Option<Vec<bool>>,
    seconds: f64,
    by: Divisors,
}

impl Drawing {
    pub(super) fn of(trial: &Trial, measures: &Measures, slo: Option<&Slo>, by: Divisors) -> Drawing {
        let good = || (0_u32..).zip(&trial.records).filter(|(_, record)| record.succeeded());
        let spans = |of: fn(&Record) -> Option<std::time::Duration>| -> Owned {
            good().filter_map(|(index, record)| Some((index, of(record)?.as_secs_f64() * 1e3))).collect()
        };
        let gaps = good().flat_map(|(index, record)| record.gaps_us.iter().map(move |gap| (index, *gap as f64 / 1e3)));
        let middle = |figure| (figure, 0.5);
        let end = |figure| (figure, 0.99);
        Drawing {
            times: [
                (spans(Record::ttft), [middle(Figure::TtftMedian), (Figure::TtftP95, 0.95), end(Figure::TtftP99)]),
                (spans(Record::tpot), [middle(Figure::TpotMedian), middle(Figure::TpotMedian), end(Figure::TpotP99)]),
                (gaps.collect(), [middle(Figure::ItlMedian), middle(Figure::ItlMedian), end(Figure::ItlP99)]),
                (spans(Record::e2e), [middle(Figure::E2eMedian), middle(Figure::E2eMedian), end(Figure::E2eP99)]),
            ],
            tokens: trial
                .records
                .iter()
                .map(|record| if record.succeeded() { record.output_tokens as f64 } else { 0.0 })
                .collect(),
            succeeded: trial.records.iter().map(|record| record.succeeded()).collect(),
            met: slo.map(|slo| trial.records.iter().map(|record| slo.met(record)).collect()),
            seconds: measures.summary.duration_s,
            by,
        }
    }

    /// How many requests there are.
    pub(super) fn count(&self) -> usize {
        self.tokens.len()
    }

    /// The figures of requests drawn so often each, over the same time.
    pub(super) fn figures(&self, drawn: &[u32]) -> BTreeMap<Figure, f64> {
        let mut figures = BTreeMap::new();
        let mut put = |figure, value: Option<f64>| {
            if let Some(value) = value.filter(|value| *value > 0.0 && value.is_finite()) {
                figures.insert(figure, value);
            }
        };
        let sum = |of: &dyn Fn(usize) -> f64| -> f64 {
            drawn.iter().enumerate().map(|(index, times)| f64::from(*times) * of(index)).sum()
        };
        let share = |of: &Vec<bool>| sum(&|index| f64::from(u8::from(of[index])));
        throughput(sum(&|index| self.tokens[index]) / self.seconds, self.by, &mut put);
        put(Figure::RequestsPerSecond, Some(share(&self.succeeded) / self.seconds));
        if let Some(met) = &self.met {
            let all = self.count() as u64;
            attainment(share(met) / all as f64, all, self.seconds, self.by, &mut put);
        }
        for (values, wanted) in &self.times {
            for (figure, at) in wanted {
                put(*figure, values.quantile(*at, drawn));
            }
        }
        figures
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
    let slot = (last / 200).max(1_000_000);
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
