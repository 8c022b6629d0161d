//! What prefix affinity must keep to, beside the rules of other routers on the same arrivals. The best of them in a figure sets
//! the bound: P99 TTFT within 1.25 times, mean TTFT within 1.15 times (and 5 ms), goodput within 5 points.
//!
//! A build without optimisation runs one seed of a few workloads. `FOREBAY_SIZE=full` adds the largest fleets, and shows beside the others
//! what more knowledge is worth: the oracle, and exact knowledge of the caches.

#![cfg_attr(
    debug_assertions,
    allow(dead_code, unused_imports, reason = "a build without optimisation runs a few tests")
)]

use std::fmt::Write as _;

use forebay_core::clock::Time;
use forebay_core::routing::candidate::Candidate;
use forebay_core::routing::policy::PolicyName;
use forebay_core::routing::policy::PredictedTtft;

use crate::figures::{Figures, Row};
use crate::peers::{BoundedHash, CacheAware, StickyUntilSaturated};
use crate::prefixes::{self, Prefixes};
use crate::traffic::at;
use crate::world::{self, Chooser};

type Contender = (&'static str, Chooser<'static>);

pub(crate) const OURS: Contender = ("predicted_ttft", Chooser::Named(PolicyName::PredictedTtft));
/// The same policy with the caches as they are: what knowledge is worth.
const EXACT: Contender = ("exact caches", Chooser::Exact);
const PEERS: [Contender; 4] = [
    ("sticky_until_saturated", Chooser::Peer(|| Box::new(StickyUntilSaturated))),
    ("cache_aware", Chooser::Peer(|| Box::<CacheAware>::default())),
    ("bounded_hash", Chooser::Peer(|| Box::new(BoundedHash))),
    ("least_tokens", Chooser::Named(PolicyName::LeastTokens)),
];
/// The earliest first token, with knowledge that no router has: engines, caches and the lengths of answers.
const ORACLE: Contender = ("oracle", Chooser::Oracle);

const P99: f64 = 1.25;
const MEAN: f64 = 1.15;
/// Seconds beside the ratios: a step or two, which decide nothing for a user.
const STEP: f64 = 0.005;
/// Points of goodput.
const GOODPUT: f64 = 0.05;

fn full() -> bool {
    std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full")
}

pub(crate) fn row(workload: &Prefixes, (name, chooser): (&'static str, Chooser<'_>)) -> Row {
    let seeds = if cfg!(debug_assertions) { 1 } else { workload.seeds };
    let figures = |seed| {
        let run = world::run(&workload.fleet, &workload.requests(seed), chooser, seed);
        assert_eq!(run.starved, 0, "{}: requests that {name} never served", workload.name);
        Figures::of(run, at(workload.from), &workload.fleet.engines)
    };
    Row { name, seeds: (301..301 + seeds).map(figures).collect() }
}

pub(crate) fn mean(row: &Row, figure: impl Fn(&Figures) -> f64) -> f64 {
    row.seeds.iter().map(figure).sum::<f64>() / row.seeds.len() as f64
}

/// Output tokens a second, from the first arrival to the last end.
fn throughput(figures: &Figures) -> f64 {
    let tokens: f64 = figures.served.iter().map(|served| f64::from(served.output)).sum();
    tokens / figures.served.iter().map(|served| served.ended.secs_since(Time::ZERO)).fold(0.0, f64::max)
}

pub(crate) fn print(workload: &Prefixes, rows: &[&Row]) {
    let mut text = format!("{}: TTFT in ms, means over {} seeds\n", workload.name, rows[0].seeds.len());
    for row in rows {
        let _ = writeln!(
            text,
            "  {:<22} p99 {:>6.0} mean {:>6.0} p50 {:>5.0}, goodput {:>5.1} %, hits {:.3}, {:>6.0} tokens/s; p99 by seed {}",
            row.name,
            mean(row, |f| f.p99 * 1e3),
            mean(row, |f| f.mean * 1e3),
            mean(row, |f| f.p50 * 1e3),
            mean(row, |f| f.good * 100.0),
            mean(row, |f| f.hits),
            mean(row, throughput),
            row.seeds.iter().map(|f| format!("{:.0}", f.p99 * 1e3)).collect::<Vec<_>>().join(" "),
        );
    }
    println!("{text}");
}

/// Runs the default policy and its peers, prints the table, and holds the default policy to the best of them.
fn hold(workload: &Prefixes) {
    let ours = row(workload, OURS);
    let peers: Vec<Row> = PEERS.iter().map(|&peer| row(workload, peer)).collect();
    // What knows more than a router can is shown, and sets no bound.
    let exact = full().then(|| row(workload, EXACT));
    // The oracle clones every engine for every request: it stays out where there are many.
    let oracle = (full() && workload.fleet.engines.len() <= 8).then(|| row(workload, ORACLE));
    print(workload, &std::iter::once(&ours).chain(&exact).chain(&peers).chain(&oracle).collect::<Vec<_>>());
    let least = |figure: fn(&Figures) -> f64| peers.iter().map(|peer| mean(peer, figure)).fold(f64::MAX, f64::min);
    let (p99, average) = (mean(&ours, |f| f.p99), mean(&ours, |f| f.mean));
    let (best_p99, best_average) = (least(|f| f.p99), least(|f| f.mean));
    let lost = -least(|f| -f.good) - mean(&ours, |f| f.good);
    println!(
        "  {}: p99 {:.2}, mean {:.2} of the best peer's; goodput {:.1} points lost\n",
        workload.name,
        p99 / best_p99,
        average / best_average,
        lost * 100.0
    );
    assert!(p99 <= P99 * best_p99 + STEP, "{}: p99 {p99:.3} s, best peer {best_p99:.3} s", workload.name);
    assert!(average <= MEAN * best_average + STEP, "{}: mean {average:.3} s, best {best_average:.3} s", workload.name);
    assert!(lost <= GOODPUT, "{}: {lost:.3} of goodput lost", workload.name);
}

macro_rules! held {
    ($($(#[$small:meta])* $test:ident: $($workload:ident),+;)+) => {$(
        #[test]
        $(#[$small])*
        fn $test() {
            for workload in [$(prefixes::$workload()),+] {
                hold(&workload);
            }
        }
    )+};
}

held! {
    prefixes_that_fit_once: a3;
    prefixes_without_metrics: a12;
}

#[cfg(not(debug_assertions))]
held! {
    two_servers_on_one_gpu: a1, a1l, a2;
    popular_prefixes: a4, a5, a19;
    bursts_of_new_prefixes: a6;
    conversations: a7, a7s;
    servers_that_come_and_go: a9, a10, a17;
    sixteen_servers: a13;
    nothing_shared: a15;
    kv_capacity_that_is_short: a20;
    business_to_business: b2b20, b2b30;
    code_generation: code20;
    unseen_caches: unequal_caches, beyond_capacity;
    unseen_bursts: large_bursts;
    unseen_conversations: conversations_that_do_not_fit;
    unseen_prefixes: prefixes_within_prefixes, mixed;
    unseen_speeds: a_slow_server;
}

/// Answers of thousands of tokens: output tokens a second decide.
#[test]
#[cfg(not(debug_assertions))]
fn reasoning() {
    let workload = prefixes::reason();
    let ours = row(&workload, OURS);
    let peers: Vec<Row> = PEERS.iter().map(|&peer| row(&workload, peer)).collect();
    print(&workload, &std::iter::once(&ours).chain(&peers).collect::<Vec<_>>());
    let best = peers.iter().map(|peer| mean(peer, throughput)).fold(0.0, f64::max);
    let seen = mean(&ours, throughput) / best;
    println!("  reason: {seen:.3} of the best peer's output tokens/s\n");
    assert!(seen >= 0.97, "{seen}");
}

/// A hundred and twenty-eight servers, to which 1,100 requests a second come.
#[test]
#[cfg(not(debug_assertions))]
fn a_hundred_and_twenty_eight_servers() {
    let workload = prefixes::a14();
    if full() {
        hold(&workload);
    } else {
        // `row` asserts that every request is served.
        print(&workload, &[&row(&workload, OURS)]);
    }
}

/// Takes a part of the rule away: the bound that holds with it is broken without.
fn needed(workload: &Prefixes, what: &str, limit: f64, figure: fn(&Figures) -> f64, without: fn(&mut [Candidate])) {
    let whole = mean(&row(workload, OURS), figure);
    let part = mean(&row(workload, ("without", Chooser::Trial(&PredictedTtft, without))), figure);
    println!("  {} {what}: {whole:.3} s with the part, {part:.3} s without, bound {limit:.3}\n", workload.name);
    assert!(whole <= limit && part > limit, "{whole} {part}");
}

#[test]
#[cfg(not(debug_assertions))]
fn redundancy_prevents_the_melt_down() {
    let without = |rows: &mut [Candidate]| rows.iter_mut().for_each(|row| row.redundant = 0);
    needed(&prefixes::a5(), "p99 without redundancy", 0.6, |f| f.p99, without);
}

#[test]
#[cfg(not(debug_assertions))]
fn eviction_places_new_prefixes() {
    let without = |rows: &mut [Candidate]| rows.iter_mut().for_each(|row| row.evicts = 0.0);
    needed(&prefixes::a19(), "p99 without eviction", 0.2, |f| f.p99, without);
}
