//! Whether a run's servers kept up with what was offered: below saturation throughput is the load's, and says nothing of them.
//! The report, the page and the diagnosis ask here. Pure.

use serde::Serialize;

use super::record::Record;
use super::row_file::Offered;
use crate::stats::estimate::Estimate;
use crate::stats::trend::{self, Timed};

/// Answers a second during the arrivals, as a share of what was offered, from which an arm keeps up.
const ANSWERED: f64 = 0.97;
/// A TTFT that grows by more than this for each second of the arrivals is a backlog that takes 3 % of the load.
const GROWTH: f64 = 0.03;
/// The share of failed requests from which on servers do not keep up.
const FAILED: f64 = 0.01;
/// Servers that were idle at first are faster then: this share of the arrivals says nothing of a trend.
const EARLY: f64 = 0.2;
/// With fewer requests nothing is known.
const FEWEST: usize = 20;
/// A trend is known where it lies so many of its own errors from the limit.
const SURE: f64 = 2.0;

/// The finding on how well what was offered was answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KeptUp {
    /// True if the servers kept up.
    pub holds: bool,
    /// Answers a second during the arrivals over requests a second. Where an answer comes `g` seconds later for each second that
    /// passes, it is 1 ÷ (1 + g).
    pub answered: f64,
    /// Seconds by which TTFT grew for each second of the arrivals.
    pub growth: f64,
    /// The share of requests that failed.
    pub failed: f64,
}

/// Finds whether the servers of these requests kept up with what was offered: answers a second during the arrivals are at least
/// 0.97 of it, TTFT has no trend, and less than 1 % failed. None where nothing was offered at a rate of its own (all at once, a
/// closed loop, conversations), and where too few requests leave it open.
#[must_use]
pub fn kept_up(offered: Option<Offered>, records: &[&Record]) -> Option<KeptUp> {
    if !matches!(offered?, Offered::Rate(_) | Offered::Trace(_) | Offered::Traffic)
        || records.iter().any(|record| record.turn.is_some())
    {
        return None;
    }
    let good = || records.iter().filter(|record| record.succeeded());
    let failed = 1.0 - good().count() as f64 / records.len().max(1) as f64;
    if failed >= FAILED {
        return Some(KeptUp { holds: false, answered: 1.0 - failed, growth: 0.0, failed });
    }
    let sent = || records.iter().map(|record| record.sent_us);
    let (first, last) = (sent().min()?, sent().max()?);
    // The first requests of a run meet empty servers. Any run has that growth, also one far below saturation.
    let from = first + ((last - first) as f64 * EARLY) as u64;
    let later = |of: fn(&Record) -> Option<u64>| -> Option<Estimate> {
        let one = |record: &&&Record| Some((record.sent_us as f64, of(record)? as f64));
        let values: Vec<Timed> =
            good().filter(|record| record.sent_us >= from).filter_map(|record| one(&record)).collect();
        trend::slope(&values).filter(|_| values.len() >= FEWEST)
    };
    // Where a queue builds up, each request is later than the one before by (offered ÷ served − 1) of the time between them.
    let answers = later(|record| Some(record.end_us))?;
    let firsts = later(|record| record.first_event_us)?;
    let most = 1.0 / ANSWERED - 1.0;
    let above = |slope: Estimate, limit: f64| slope.mean > limit;
    let surely = |slope: Estimate, limit: f64| slope.mean - SURE * slope.se > limit;
    // Either by its estimate and the opposite only where it is sure. In between nothing is said, and throughput stays
    // unclear.
    let holds = !above(answers, most) && !above(firsts, GROWTH);
    if !holds && !surely(answers, most) && !surely(firsts, GROWTH) {
        return None;
    }
    // If each second of arrivals takes 1 + slope seconds to answer, this is the share that was answered in its time.
    let answered = 1.0 / (1.0 + answers.mean.max(-0.5));
    Some(KeptUp { holds, answered, growth: firsts.mean, failed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::record::{Outcome, tests::record};

    /// Requests every 0.1 s, answered by a server of so many a second, each for `takes` seconds once it begins.
    fn served(per_second: f64, takes: f64, rng: &mut fastrand::Rng) -> Vec<Record> {
        let mut free = 0.0_f64;
        (0..300)
            .map(|id| {
                let sent = f64::from(id) * 0.1;
                free = free.max(sent) + 1.0 / per_second;
                let first = free - sent + 0.02 * rng.f64();
                let us = |seconds: f64| (seconds * 1e6) as u64;
                let end = first + takes * (0.5 + rng.f64());
                Record { sent_us: us(sent), first_event_us: Some(us(first)), end_us: us(end), ..record(id) }
            })
            .collect()
    }

    fn at(per_second: f64, takes: f64) -> Option<KeptUp> {
        let rows = served(per_second, takes, &mut fastrand::Rng::with_seed(3));
        kept_up(Some(Offered::Rate(10.0)), &rows.iter().collect::<Vec<_>>())
    }

    #[test]
    fn servers_below_their_limit_keep_up_however_long_an_answer_is() {
        for takes in [0.1, 1.0, 5.0] {
            let found = at(12.0, takes).unwrap();
            assert!(found.holds && (found.answered - 1.0).abs() < 0.03, "{takes}: {found:?}");
        }
    }

    #[test]
    fn a_backlog_that_grows_is_no_keeping_up() {
        for (rate, answered) in [(9.3, 0.93), (8.7, 0.87), (5.0, 0.5)] {
            let found = at(rate, 1.0).unwrap();
            assert!(!found.holds && (found.answered - answered).abs() < 0.03, "{rate}: {found:?}");
        }
    }

    #[test]
    fn failures_are_no_keeping_up_and_other_loads_are_not_known() {
        let mut rows = served(12.0, 1.0, &mut fastrand::Rng::with_seed(3));
        let all = |rows: &[Record], offered| kept_up(offered, &rows.iter().collect::<Vec<_>>());
        assert_eq!(all(&rows, Some(Offered::Concurrency(8))), None);
        assert_eq!(all(&rows[..15], Some(Offered::Rate(10.0))), None, "too few");
        for record in rows.iter_mut().step_by(50) {
            record.outcome = Outcome::Status;
        }
        assert!(!all(&rows, Some(Offered::Rate(10.0))).unwrap().holds);
    }
}
