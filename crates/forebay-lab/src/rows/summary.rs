//! The figures of a run, from its records; quantiles are exact, between two values in proportion, as numpy has them. Pure.

use serde::Serialize;

use super::record::Record;

/// Sorted values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution(Vec<f64>);

impl FromIterator<f64> for Distribution {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Distribution {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        Distribution(values)
    }
}

impl Distribution {
    /// The distribution of values of which some are infinite, such as times to a token that never came.
    #[must_use]
    pub fn with_infinite(values: impl IntoIterator<Item = f64>) -> Distribution {
        let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        values.sort_by(f64::total_cmp);
        Distribution(values)
    }

    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value below which this share lies; none of no values. Every percentile of the reports is made here, or by this rule:
    /// between the two neighbours of the place `share` × (n − 1), in proportion.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let place = share.clamp(0.0, 1.0) * self.0.len().checked_sub(1)? as f64;
        let (below, above) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        // Infinity times nothing would be no number.
        Some(if place.fract() > 0.0 { below + (above - below) * place.fract() } else { below })
    }

    /// The mean; none of no values.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }
}

/// A distribution in a report: milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// The mean.
    pub mean: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// 95 of 100 are below.
    pub p95: Option<f64>,
    /// 99 of 100 are below.
    pub p99: Option<f64>,
}

impl From<&Distribution> for Latency {
    fn from(values: &Distribution) -> Latency {
        let at = |share| values.quantile(share);
        Latency { mean: values.mean(), p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

/// The figures of a run, or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Requests that got a whole answer; all figures are theirs.
    pub requests: u64,
    /// Requests that did not.
    pub failed: u64,
    /// From the first sending to the last end, in seconds.
    pub duration_s: f64,
    /// Tokens of prompts.
    pub input_tokens: u64,
    /// The share of prompt tokens that were in the prefix cache, 0 to 1, over the answers that say it; none where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_share: Option<f64>,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// To the first event with a choice.
    pub ttft_ms: Latency,
    /// For each token after the first.
    pub tpot_ms: Latency,
    /// Between two events.
    pub itl_ms: Latency,
    /// To the last event with a choice.
    pub e2e_ms: Latency,
}

impl Summary {
    /// Gaps between the tokens of an answer, on average; 1 at least.
    #[must_use]
    pub fn gaps_an_answer(&self) -> f64 {
        (self.output_tokens as f64 / self.requests.max(1) as f64 - 1.0).max(1.0)
    }

    /// The figures of these records.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Summary {
        let records: Vec<&Record> = records.into_iter().collect();
        let good: Vec<&Record> = records.iter().copied().filter(|record| record.succeeded()).collect();
        // Of all requests: a failed one was part of the load while it lasted.
        let begin = records.iter().map(|record| record.sent_us).min().unwrap_or(0);
        let end = records.iter().map(|record| record.sent_us + record.end_us).max().unwrap_or(0);
        let latency = |of: fn(&Record) -> Option<std::time::Duration>| {
            let values: Distribution =
                good.iter().filter_map(|record| of(record)).map(|span| span.as_secs_f64() * 1e3).collect();
            Latency::from(&values)
        };
        let gaps: Distribution =
            good.iter().flat_map(|record| &record.gaps_us).map(|micros| *micros as f64 / 1e3).collect();
        Summary {
            requests: good.len() as u64,
            failed: (records.len() - good.len()) as u64,
            duration_s: (end - begin) as f64 / 1e6,
            input_tokens: good.iter().map(|record| record.prompt_tokens).sum(),
            cached_share: cached_share(&good),
            output_tokens: good.iter().map(|record| record.output_tokens).sum(),
            ttft_ms: latency(Record::ttft),
            tpot_ms: latency(Record::tpot),
            itl_ms: Latency::from(&gaps),
            e2e_ms: latency(Record::e2e),
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        if self.duration_s > 0.0 { count as f64 / self.duration_s } else { 0.0 }
    }

    /// Answers a second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        self.per_second(self.requests)
    }

    /// Tokens of prompts a second.
    #[must_use]
    pub fn input_tokens_per_second(&self) -> f64 {
        self.per_second(self.input_tokens)
    }

    /// Tokens of answers a second.
    #[must_use]
    pub fn output_tokens_per_second(&self) -> f64 {
        self.per_second(self.output_tokens)
    }
}

fn cached_share(records: &[&Record]) -> Option<f64> {
    // An answer that does not say it counts on neither side, so that the share is of those that do.
    let told = records.iter().filter_map(|record| Some((record.cached_tokens?, record.prompt_tokens)));
    let (cached, prompts) = told.fold((0, 0), |(cached, prompts), one| (cached + one.0, prompts + one.1));
    (prompts > 0).then(|| cached as f64 / prompts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::record::{Outcome, tests::record};

    #[test]
    fn quantiles_are_numpy_s() {
        let values: Distribution = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        assert_eq!((values.quantile(0.5), values.quantile(0.75)), (Some(2.5), Some(3.25)));
        assert_eq!((values.quantile(0.0), values.quantile(1.0), values.mean()), (Some(1.0), Some(4.0), Some(2.5)));
        assert_eq!(Distribution::default().quantile(0.5), None);
    }

    #[test]
    fn the_cached_share_is_that_of_the_answers_that_say_it() {
        let told = |cached_tokens| Record { cached_tokens, ..record(0) };
        assert_eq!(Summary::of([&told(Some(80)), &told(Some(0)), &told(None)]).cached_share, Some(0.4));
        assert_eq!(Summary::of([&told(None)]).cached_share, None);
    }

    #[test]
    fn failures_count_in_no_figure_but_their_own_and_the_duration() {
        let late = Record { sent_us: 2_000_000, outcome: Outcome::Truncated, ..record(1) };
        let summary = Summary::of([&record(0), &late]);
        assert_eq!((summary.requests, summary.failed, summary.output_tokens), (1, 1, 6));
        assert!((summary.duration_s - 2.3).abs() < 1e-9);
        assert_eq!(
            (summary.ttft_ms.p50, summary.tpot_ms.p99, summary.e2e_ms.mean),
            (Some(200.0), Some(20.0), Some(300.0))
        );
        assert_eq!(Summary::of([]), Summary::default());
    }
}
