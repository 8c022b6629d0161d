//! What a run comes to: latencies, goodput, shares, and the table in which policies stand beside the oracle.

use std::fmt::Write as _;

use forebay_core::clock::Time;
use forebay_sim::engine::EngineConfig;

use crate::world::{Run, Served};

/// A time between tokens above which an answer is no good.
const TPOT_GOOD: f64 = 0.060;

/// The figures of one run.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// TTFT in seconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) mean: f64,
    /// Time per output token after the first, p99 in seconds.
    pub(crate) tpot99: f64,
    /// Share of requests that were served well: TTFT within 1 s and twice the prompt's prefill on the slowest engine, and
    /// 60 ms a token.
    pub(crate) good: f64,
    /// Requests of each backend.
    pub(crate) counts: Vec<usize>,
    /// Prompt tokens found in prefix caches, over those looked up.
    pub(crate) hits: f64,
    /// Requests that the figures are of, as they were served.
    pub(crate) served: Vec<Served>,
    pub(crate) lost: u32,
    pub(crate) preemptions: u64,
}

impl Figures {
    /// Of the requests that came at `from` or later.
    pub(crate) fn of(run: Run, from: Time, engines: &[EngineConfig]) -> Figures {
        let served: Vec<Served> = run.served.into_iter().filter(|served| served.arrived >= from).collect();
        let slowest = engines.iter().map(|engine| engine.cost.prefill_us).fold(0.0, f64::max) * 1e-6;
        let mut ttft: Vec<f64> = served.iter().map(Served::ttft).collect();
        let mut tpot: Vec<f64> = served.iter().filter_map(Served::tpot).collect();
        let good = |s: &&Served| {
            s.ttft() <= 1.0 + 2.0 * slowest * f64::from(s.prompt) && s.tpot().is_none_or(|tpot| tpot <= TPOT_GOOD)
        };
        let mut counts = vec![0; engines.len()];
        for served in &served {
            counts[served.backend] += 1;
        }
        Figures {
            mean: ttft.iter().sum::<f64>() / ttft.len() as f64,
            p50: quantile(&mut ttft, 0.5),
            p99: quantile(&mut ttft, 0.99),
            tpot99: quantile(&mut tpot, 0.99),
            good: served.iter().filter(good).count() as f64 / served.len() as f64,
            counts,
            hits: run.found as f64 / run.looked_up.max(1) as f64,
            served,
            lost: run.lost,
            preemptions: run.preemptions,
        }
    }

    /// Share of one backend among the requests that came in this span of seconds.
    pub(crate) fn share(&self, backend: usize, from: f64, to: f64) -> f64 {
        let within = |served: &&Served| (from..to).contains(&served.arrived.secs_since(Time::ZERO));
        let all = self.served.iter().filter(within).count();
        let its = self.served.iter().filter(within).filter(|served| served.backend == backend).count();
        its as f64 / all.max(1) as f64
    }
}

impl Served {
    /// Seconds to the first token.
    pub(crate) fn ttft(&self) -> f64 {
        self.first.secs_since(self.arrived)
    }

    /// Seconds for each token after the first.
    pub(crate) fn tpot(&self) -> Option<f64> {
        (self.output > 1).then(|| self.ended.secs_since(self.first) / f64::from(self.output - 1))
    }
}

/// The nearest rank.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// One policy's figures on each seed.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) seeds: Vec<Figures>,
}

/// A workload's rows beside the oracle's, on the same seeds.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) workload: &'static str,
    pub(crate) oracle: Row,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// The row of a policy.
    pub(crate) fn row(&self, name: &str) -> &Row {
        self.rows.iter().find(|row| row.name == name).unwrap()
    }

    /// A figure of a policy over the oracle's, seed by seed.
    pub(crate) fn ratios(&self, name: &str, figure: impl Fn(&Figures) -> f64) -> Vec<f64> {
        let pairs = self.row(name).seeds.iter().zip(&self.oracle.seeds);
        pairs.map(|(one, oracle)| figure(one) / figure(oracle)).collect()
    }

    /// The table as text: means over seeds, for p99 also least and most.
    pub(crate) fn text(&self) -> String {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let of = |row: &Row, figure: &dyn Fn(&Figures) -> f64| mean(&row.seeds.iter().map(figure).collect::<Vec<_>>());
        let mut out = String::new();
        let o = &self.oracle;
        let _ = writeln!(
            out,
            "{}: {} seeds, {:.0} requests each; oracle: TTFT p50 {:.0} p99 {:.0} mean {:.0} ms, TPOT p99 {:.0} ms, \
             goodput {:.1} %, hits {:.2}, preemptions {:.0}, shares {}",
            self.workload,
            o.seeds.len(),
            of(o, &|f| f.served.len() as f64),
            of(o, &|f| f.p50 * 1e3),
            of(o, &|f| f.p99 * 1e3),
            of(o, &|f| f.mean * 1e3),
            of(o, &|f| f.tpot99 * 1e3),
            of(o, &|f| f.good * 100.0),
            of(o, &|f| f.hits),
            of(o, &|f| f.preemptions as f64),
            shares(o)
        );
        let _ = writeln!(
            out,
            "  {:<24} {:>6} {:>20} {:>6} {:>13} {:>8} {:>5}  shares %",
            "ratio to the oracle", "p50", "p99 (least..most)", "mean", "TPOT99 (most)", "goodput", "hits"
        );
        for row in &self.rows {
            let [p50, p99, average, tpot]: [Vec<f64>; 4] = [
                self.ratios(row.name, |f| f.p50),
                self.ratios(row.name, |f| f.p99),
                self.ratios(row.name, |f| f.mean),
                self.ratios(row.name, |f| f.tpot99),
            ];
            let least = p99.iter().copied().fold(f64::MAX, f64::min);
            let _ = writeln!(
                out,
                "  {:<24} {:>6.2} {:>6.2} ({:>5.2}..{:>5.2}) {:>6.2} {:>6.2} ({:>4.2}) {:>7.1}% {:>5.2}  {}",
                row.name,
                mean(&p50),
                mean(&p99),
                least,
                most(&p99),
                mean(&average),
                mean(&tpot),
                most(&tpot),
                of(row, &|f| f.good * 100.0),
                of(row, &|f| f.hits),
                shares(row)
            );
        }
        out
    }
}

/// The largest.
pub(crate) fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MIN, f64::max)
}

/// Shares of the backends in percent, over all seeds.
fn shares(row: &Row) -> String {
    let backends = row.seeds[0].counts.len();
    let sums: Vec<usize> = (0..backends).map(|place| row.seeds.iter().map(|f| f.counts[place]).sum()).collect();
    let all: usize = sums.iter().sum();
    sums.iter().map(|sum| format!("{:.0}", *sum as f64 * 100.0 / all as f64)).collect::<Vec<_>>().join(" ")
}
