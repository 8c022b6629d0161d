//! One stretch of time of the live figures: counts, exact sums, two histograms. Two may be merged.
//!
//! Hot path: some adds and two array writes; no allocation, but for the first failure of a kind in a slot.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Ended, Point, Spread, Summary};
use crate::telemetry::metrics::Outcome;

/// Unit that the histograms count in.
const UNIT: Duration = Duration::from_micros(10);
/// TTFTs up to an hour and TPOTs up to a minute are told apart; longer ones count as that long.
const MAX_TTFT: u64 = 360_000_000;
const MAX_TPOT: u64 = 6_000_000;
const DIGITS: u8 = 2;

#[derive(Debug)]
pub(super) struct Slot {
    /// Number of the stretch.
    pub(super) number: u64,
    counts: Counts,
    /// Requests without a whole answer, by outcome: a few of some forty words.
    outcomes: Vec<(&'static str, u64)>,
    ttft: Histogram<u32>,
    tpot: Histogram<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    succeeded: u64,
    failed: u64,
    client_errors: u64,
    refused: u64,
    client_left: u64,
    crossed: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    slo_met: u64,
    slo_missed: u64,
    ttft: Sum,
    tpot: Sum,
    e2e: Sum,
    error: Sum,
    predicted: Sum,
    measured: Sum,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: u64,
    sum: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
    }

    fn merge(&mut self, other: Sum) {
        self.count += other.count;
        self.sum += other.sum;
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl Default for Slot {
    fn default() -> Slot {
        let of = |max| Histogram::new_with_bounds(1, max, DIGITS).expect("the bounds are in order and the digits few");
        Slot { number: 0, counts: Counts::default(), outcomes: Vec::new(), ttft: of(MAX_TTFT), tpot: of(MAX_TPOT) }
    }
}

impl Slot {
    pub(super) fn is_empty(&self) -> bool {
        self.counts.requests == 0
    }

    pub(super) fn clear(&mut self, number: u64) {
        self.number = number;
        self.counts = Counts::default();
        self.outcomes.clear();
        self.ttft.reset();
        self.tpot.reset();
    }

    pub(super) fn record(&mut self, ended: &Ended) {
        let counts = &mut self.counts;
        counts.requests += 1;
        *match ended.outcome {
            _ if ended.client_left() => &mut counts.client_left,
            Outcome::Success => &mut counts.succeeded,
            Outcome::ClientError => &mut counts.client_errors,
            Outcome::Failed(_) => &mut counts.failed,
            Outcome::Refused(_) => &mut counts.refused,
        } += 1;
        // By its variant: to compare two outcomes compares what is in them, too.
        if !matches!(ended.outcome, Outcome::Success) {
            add(&mut self.outcomes, ended.outcome.label(), 1);
        }
        counts.crossed += u64::from(ended.crossed);
        counts.prompt_tokens += ended.prompt_tokens;
        counts.output_tokens += ended.output_tokens;
        match ended.slo_met {
            Some(true) => counts.slo_met += 1,
            Some(false) => counts.slo_missed += 1,
            None => {}
        }
        if let Some(ttft) = ended.ttft {
            counts.ttft.add(ttft.as_secs_f64());
            self.ttft.saturating_record(units(ttft));
        }
        if let Some(tpot) = ended.tpot {
            counts.tpot.add(tpot.as_secs_f64());
            self.tpot.saturating_record(units(tpot));
        }
        if let Some(e2e) = ended.e2e {
            counts.e2e.add(e2e.as_secs_f64());
        }
        // The error is relative: a first token in no time would make it infinite.
        if let Some((predicted, measured)) = ended.predicted.filter(|(_, measured)| !measured.is_zero()) {
            counts.error.add(predicted.abs_diff(measured).as_secs_f64() / measured.as_secs_f64());
            counts.predicted.add(predicted.as_secs_f64());
            counts.measured.add(measured.as_secs_f64());
        }
    }

    pub(super) fn merge(&mut self, other: &Slot) {
        let (mine, theirs) = (&mut self.counts, other.counts);
        mine.requests += theirs.requests;
        mine.succeeded += theirs.succeeded;
        mine.failed += theirs.failed;
        mine.client_errors += theirs.client_errors;
        mine.refused += theirs.refused;
        mine.client_left += theirs.client_left;
        mine.crossed += theirs.crossed;
        mine.prompt_tokens += theirs.prompt_tokens;
        mine.output_tokens += theirs.output_tokens;
        mine.slo_met += theirs.slo_met;
        mine.slo_missed += theirs.slo_missed;
        mine.ttft.merge(theirs.ttft);
        mine.tpot.merge(theirs.tpot);
        mine.e2e.merge(theirs.e2e);
        mine.error.merge(theirs.error);
        mine.predicted.merge(theirs.predicted);
        mine.measured.merge(theirs.measured);
        for (outcome, count) in &other.outcomes {
            add(&mut self.outcomes, outcome, *count);
        }
        for (mine, theirs) in [(&mut self.ttft, &other.ttft), (&mut self.tpot, &other.tpot)] {
            mine.add(theirs).expect("all slots have the same bounds");
        }
    }

    pub(super) fn summary(&self, covers_seconds: f64) -> Summary {
        let counts = self.counts;
        let per_second = |count: u64| if covers_seconds > 0.0 { count as f64 / covers_seconds } else { 0.0 };
        Summary {
            covers_seconds,
            requests: counts.requests,
            succeeded: counts.succeeded,
            failed: counts.failed,
            client_errors: counts.client_errors,
            refused: counts.refused,
            client_left: counts.client_left,
            outcomes: self.outcomes.iter().copied().collect(),
            crossed: counts.crossed,
            prompt_tokens: counts.prompt_tokens,
            output_tokens: counts.output_tokens,
            output_tokens_per_second: per_second(counts.output_tokens),
            slo_met: counts.slo_met,
            slo_missed: counts.slo_missed,
            goodput_per_second: per_second(counts.slo_met),
            ttft: spread(&self.ttft, counts.ttft),
            tpot: spread(&self.tpot, counts.tpot),
            e2e_mean_seconds: counts.e2e.mean(),
            predictions: counts.error.count,
            prediction_error: counts.error.mean(),
            prediction_bias: (counts.measured.sum > 0.0).then(|| counts.predicted.sum / counts.measured.sum),
        }
    }

    pub(super) fn point(&self) -> Point {
        Point {
            at: self.number,
            requests: self.counts.requests,
            failed: self.counts.failed,
            refused: self.counts.refused,
            client_errors: self.counts.client_errors,
            client_left: self.counts.client_left,
            output_tokens: self.counts.output_tokens,
            ttft_p50_seconds: quantile(&self.ttft, 0.5),
            ttft_p95_seconds: quantile(&self.ttft, 0.95),
            tpot_p50_seconds: quantile(&self.tpot, 0.5),
            tpot_p95_seconds: quantile(&self.tpot, 0.95),
        }
    }

    /// Bytes of the histograms' counts.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        (self.ttft.distinct_values() + self.tpot.distinct_values()) * size_of::<u32>()
    }
}

fn add(outcomes: &mut Vec<(&'static str, u64)>, outcome: &'static str, more: u64) {
    match outcomes.iter_mut().find(|(known, _)| *known == outcome) {
        Some((_, count)) => *count += more,
        None => outcomes.push((outcome, more)),
    }
}

fn units(time: Duration) -> u64 {
    // A unit divides a second, so that 64 bits are enough: the division of a wider number is a call.
    const NANOS: u64 = UNIT.as_nanos() as u64;
    let within = (u64::from(time.subsec_nanos()) + NANOS / 2) / NANOS;
    time.as_secs().saturating_mul(1_000_000_000 / NANOS).saturating_add(within)
}

fn quantile(histogram: &Histogram<u32>, quantile: f64) -> Option<f64> {
    // As `forebay bench` and `compare` have it: between the two neighbours of a place, in proportion. By rank alone the P99 of fewer
    // than a hundred requests would be the slowest one.
    let place = quantile * histogram.len().checked_sub(1)? as f64;
    // Half a rank below, since a share that is rounded up would be the next one's.
    let at = |rank: f64| histogram.value_at_quantile((rank + 0.5) / histogram.len() as f64) as f64;
    let (below, above) = (at(place.floor()), at(place.ceil()));
    Some((below + (above - below) * place.fract()) * UNIT.as_secs_f64())
}

fn spread(histogram: &Histogram<u32>, sum: Sum) -> Spread {
    Spread {
        count: sum.count,
        mean_seconds: sum.mean(),
        p50_seconds: quantile(histogram, 0.50),
        p95_seconds: quantile(histogram, 0.95),
        p99_seconds: quantile(histogram, 0.99),
    }
}
