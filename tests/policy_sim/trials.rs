//! One workload under several policies, seed by seed, on the same arrivals.

use forebay_core::clock::Time;
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::decision::{Choice, Reason};
use forebay_core::routing::facts::RequestFacts;
use forebay_core::routing::policy::Policy;
use forebay_core::routing::policy::PolicyName;

use crate::figures::{Figures, Row, Table};
use crate::traffic::at;
use crate::workloads::Workload;
use crate::world::{self, Chooser};

/// A backend drawn evenly: what no balancing at all comes to.
#[derive(Debug)]
pub(crate) struct Random;

impl Policy for Random {
    fn pick(&self, rows: &[Candidate], _: &RequestFacts, _: Time, rng: &mut fastrand::Rng) -> Option<Choice> {
        (!rows.is_empty()).then(|| Choice { index: rng.usize(..rows.len()), reason: Reason::Tie(rows.len() as u16) })
    }
}

/// Takes nothing away.
pub(crate) fn whole(_: &mut [Candidate]) {}

/// The policies that each table shows: the default, one more, the others, and a draw. Where nothing is optimised, the first two.
pub(crate) fn policies() -> Vec<(&'static str, Chooser<'static>)> {
    let first = [PolicyName::default(), PolicyName::RoundRobin];
    let others = PolicyName::ALL.iter().copied().filter(|policy| !first.contains(policy));
    let named = first.into_iter().chain(others).map(|policy| (policy.as_str(), Chooser::Named(policy)));
    let all = named.chain([("random", Chooser::Trial(&Random, whole))]);
    all.take(if cfg!(debug_assertions) { 2 } else { usize::MAX }).collect()
}

/// The seeds: five, or one where nothing is optimised.
pub(crate) fn seeds() -> std::ops::Range<u64> {
    if cfg!(debug_assertions) { 301..302 } else { 301..306 }
}

/// Runs every chooser and the oracle on each seed, and prints the table.
pub(crate) fn compare(workload: &Workload, choosers: &[(&'static str, Chooser<'_>)]) -> Table {
    let mut oracle = Row { name: "oracle", seeds: Vec::new() };
    let mut rows: Vec<Row> = choosers.iter().map(|&(name, _)| Row { name, seeds: Vec::new() }).collect();
    for seed in seeds() {
        let requests = workload.requests(seed);
        let figures = |chooser| {
            let run = world::run(&workload.fleet, &requests, chooser, seed);
            assert_eq!(run.starved, 0, "{}: requests that were never served", workload.name);
            Figures::of(run, at(workload.warm_up), &workload.fleet.engines)
        };
        oracle.seeds.push(figures(Chooser::Oracle));
        for (row, &(_, chooser)) in rows.iter_mut().zip(choosers) {
            row.seeds.push(figures(chooser));
        }
    }
    let table = Table { workload: workload.name, oracle, rows };
    println!("{}", table.text());
    table
}
