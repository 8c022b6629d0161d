//! The rates of verdicts by one figure at one load.

use std::thread;

use fastrand::Rng;
use forebay_lab::compare::design::{Design, Turn};
use forebay_lab::compare::figure::Figure;
use forebay_lab::compare::judge::Judged;
use forebay_lab::compare::verdict::{Unjudged, Verdict};

use crate::made::{Alone, Made, Order, Shape, Shared, alone, clumps, normal, shared};

/// Whether everything is made at its full size.
pub(crate) fn full() -> bool {
    std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full")
}

pub(crate) fn experiments() -> u32 {
    if full() { 20_000 } else { 2000 }
}

/// What fewer experiments may lie beside a bound, in points.
pub(crate) fn margin() -> f64 {
    if full() { 0.0 } else { 1.0 }
}

/// A generator of its own for each table: `FOREBAY_SEED` moves them all, so that a method is tried on chance that it never saw.
pub(crate) fn generator(number: u64) -> Rng {
    let moved = std::env::var("FOREBAY_SEED").map_or(0, |seed| seed.parse().expect("FOREBAY_SEED is a number"));
    Rng::with_seed(number.wrapping_add(u64::wrapping_mul(moved, 1_000_003)))
}

/// What came of many experiments, in percent.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    winner: f64,
    right: f64,
    covered: f64,
    welch: f64,
}

fn rates(name: &str, ratio: f64, seed: u64, mut make: impl FnMut(&mut Rng) -> Made) -> Rates {
    let mut rng = generator(seed);
    let (mut winner, mut right, mut covered, mut welch) = (0, 0, 0, 0);
    // Experiments of a table have one design, and what follows from it alone is worked out once.
    let design = make(&mut generator(seed)).design();
    for _ in 0..experiments() {
        let made = make(&mut rng);
        welch += u32::from(made.welch() < 0.05);
        let judged = made.judged_as(&design).unwrap();
        let interval = judged.interval();
        covered += u32::from(interval.low <= ratio && ratio <= interval.high);
        if design.bar.is_some() {
            continue;
        }
        if let Verdict::Winner { arm, .. } = judged.verdict(Figure::OutputTokensPerGpu, ("a", "b"), judged.p(), 1) {
            winner += 1;
            right += u32::from(arm == if ratio > 1.0 { "b" } else { "a" });
        }
    }
    let percent = |count: u32| 100.0 * f64::from(count) / f64::from(experiments());
    let rates =
        Rates { winner: percent(winner), right: percent(right), covered: percent(covered), welch: percent(welch) };
    println!("{name:<64} {:>7.2} {:>7.2} {:>9.2} {:>7.2}", rates.winner, rates.right, rates.covered, rates.welch);
    rates
}

fn head(title: &str) {
    println!("\n{title}, {} experiments each, in %", experiments());
    println!("{:<64} {:>7} {:>7} {:>9} {:>7}", "", "winner", "right", "covered", "Welch");
}

/// What lies outside its bounds. A table is finished before it fails, so that it can be read whole.
#[derive(Default)]
struct Outside(Vec<String>);

impl Outside {
    /// No difference: at most 6 % winners, and the interval holds 1 at its rate; in plain data not more often either.
    fn without_a_difference(&mut self, name: &str, rates: Rates, plain: bool) {
        self.hold(rates.winner <= 6.0 + margin(), name, rates);
        self.hold(rates.covered >= 93.5 - margin(), name, rates);
        self.hold(!plain || rates.covered <= 97.0 + margin(), name, rates);
    }

    fn hold(&mut self, holds: bool, name: &str, rates: Rates) {
        if !holds {
            self.0.push(format!("{name}: {rates:?}"));
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "outside: {:#?}", self.0);
    }
}

#[test]
fn without_a_difference_a_winner_is_rare_and_the_interval_holds_the_truth() {
    head("No difference, one run a start");
    let shapes = [
        (Shape::Normal, 0.05),
        (Shape::Normal, 0.2),
        (Shape::Lognormal, 0.1),
        (Shape::T3, 0.1),
        (Shape::OneSlow, 0.03),
        (Shape::Ar1, 0.1),
        (Shape::Trend(3.0), 0.05),
        (Shape::Trend(12.0), 0.05),
        (Shape::Arch(4.0), 0.05),
        (Shape::Unlike, 0.05),
    ];
    // Each shape on a thread of its own: their seeds are their own as well, and this table takes half of all the time.
    let outside = thread::scope(|scope| {
        let all =
            shapes.iter().zip(0_u64..).map(|((shape, cv), place)| scope.spawn(move || of_shape(*shape, *cv, place)));
        let started: Vec<_> = all.collect();
        started.into_iter().flat_map(|one| one.join().unwrap()).collect()
    });
    drop(Outside(outside));
}

/// What lies outside of its bounds of one shape, in all orders and sizes.
fn of_shape(shape: Shape, cv: f64, place: u64) -> Vec<String> {
    let sizes = [3, 4, 5, 6, 7, 10, 20];
    let orders = [Order::Abab, Order::Abba, Order::AbbaBlocks, Order::AbabBlocks];
    let mut outside = Outside::default();
    let mut seed = place * (orders.len() * sizes.len()) as u64;
    for order in orders {
        for each in sizes {
            seed += 1;
            let name = format!("{shape:?}, CV {:.0} %, {order:?}, {each} a side", cv * 100.0);
            let design = Alone { shape, order, each, cv, ratio: 1.0 };
            let rates = rates(&name, 1.0, seed, |rng| alone(design, rng));
            outside.without_a_difference(&name, rates, matches!(shape, Shape::Normal | Shape::Lognormal));
        }
    }
    std::mem::take(&mut outside.0)
}

#[test]
fn runs_that_come_in_clumps_and_resemble_their_neighbours_make_no_false_winners() {
    head("No difference, runs that resemble the one before by half, so many of an arm in a row");
    let mut outside = Outside::default();
    for (row, each) in [(2, 4), (2, 6), (2, 10), (3, 6), (3, 9), (3, 12), (4, 12)] {
        let make = |rng: &mut Rng| clumps(row, each, rng);
        let name = format!("{row} in a row, {each} a side");
        let rates = rates(&name, 1.0, 300 + u64::from(row * 50 + each), make);
        outside.without_a_difference(&name, rates, false);
    }
}

/// The first so many turns of each side.
fn first(made: &Made, each: usize) -> Made {
    Made {
        turns: made.turns.each_ref().map(|turns| turns[..each].to_vec()),
        values: made.values.each_ref().map(|values| values[..each].to_vec()),
    }
}

#[test]
fn a_report_read_after_every_block_names_many_false_winners_unless_there_is_a_plan() {
    head("No difference, a report after every block from the third to the twelfth");
    let whole = Alone { shape: Shape::Lognormal, order: Order::AbbaBlocks, each: 12, cv: 0.05, ratio: 1.0 };
    let mut rng = generator(18);
    let designs: Vec<Design> = (3..=12).map(|each| first(&alone(whole, &mut rng), each).design()).collect();
    let (mut at_any, mut at_last) = (0, 0);
    for _ in 0..experiments() {
        let made = alone(whole, &mut rng);
        let named = |(each, design): (usize, &Design)| {
            let judged = first(&made, each).judged_as(design).unwrap();
            judged.shows(judged.p()).is_ok()
        };
        at_any += u32::from((3..).zip(&designs).any(named));
        at_last += u32::from(named((12, &designs[9])));
    }
    let percent = |count: u32| 100.0 * f64::from(count) / f64::from(experiments());
    println!("the first winner ends it: {:.2} %; twelve were planned: {:.2} %", percent(at_any), percent(at_last));
    // What the documents warn of, and what `Unjudged::Interim` prevents.
    assert!(percent(at_any) > 10.0, "the warning says more than is so: {:.2} %", percent(at_any));
    assert!(percent(at_last) <= 6.0 + margin(), "{:.2} %", percent(at_last));
}

#[test]
fn starts_of_several_runs_are_one_each() {
    head("No difference, starts of three runs that differ between starts by ICC 0.8");
    let mut outside = Outside::default();
    for starts in 3..=6 {
        for together in [None, Some(0.9)] {
            let design = Shared { starts, each: 3, icc: 0.8, cv: 0.1, together, told: true, ratio: 1.0 };
            let name = format!("{starts} starts of 3, {}", together.map_or("of each arm's own", |_| "of both arms"));
            let rates = rates(&name, 1.0, 100 + u64::from(starts), |rng| shared(design, rng));
            outside.without_a_difference(&name, rates, true);
        }
    }
    for starts in [1, 2] {
        let design = Shared { starts, each: 6, icc: 0.8, cv: 0.1, together: None, told: true, ratio: 1.0 };
        let few = shared(design, &mut Rng::with_seed(1));
        assert!(matches!(
            Design::of(&few.turns[0], &few.turns[1], false).bar,
            Some(Unjudged::FewStarts { .. } | Unjudged::NotAlternating)
        ));
    }
    let design = Shared { starts: 5, each: 3, icc: 0.8, cv: 0.1, together: Some(0.9), told: false, ratio: 1.0 };
    let untold = shared(design, &mut Rng::with_seed(1));
    assert_eq!(Design::of(&untold.turns[0], &untold.turns[1], false).bar, Some(Unjudged::StartsUnknown));
}

#[test]
fn unequal_numbers_of_starts_make_no_false_winners() {
    head("No difference, unequal numbers");
    let mut outside = Outside::default();
    for (few, many, spreads) in [(5, 20, 1.0), (8, 16, 1.0), (5, 9, 3.0), (5, 20, 3.0), (6, 12, 0.3)] {
        let make = |rng: &mut Rng| {
            let side = |count: usize, first: u32, cv: f64, rng: &mut Rng| -> (Vec<Turn>, Vec<f64>) {
                let turn = |n: usize| Turn {
                    block: None,
                    start: Some(first + n as u32),
                    at: (n as f64 + 0.5 + f64::from(first) / 1000.0) * 100.0 / count as f64,
                };
                ((0..count).map(turn).collect(), (0..count).map(|_| (cv * normal(rng)).exp()).collect())
            };
            let (a, b) = (side(few, 0, 0.05 * spreads, rng), side(many, 100, 0.05, rng));
            Made { turns: [a.0, b.0], values: [a.1, b.1] }
        };
        let name = format!("{few} beside {many}, the few spread {spreads} times as much");
        let rates = rates(&name, 1.0, few as u64 + many as u64, make);
        outside.hold(rates.winner <= 7.0 + margin() && rates.covered >= 93.5 - margin(), &name, rates);
    }
}

#[test]
fn a_true_tenth_is_named_nearly_as_often_as_by_welch_and_rightly() {
    head("A true 10 %");
    let mut outside = Outside::default();
    let of = |shape, order, each, cv| Alone { shape, order, each, cv, ratio: 1.1 };
    for (design, behind) in [
        (of(Shape::Lognormal, Order::Abab, 3, 0.03), 5.0),
        (of(Shape::Lognormal, Order::Abab, 4, 0.04), 5.0),
        (of(Shape::Normal, Order::Abab, 5, 0.03), 5.0),
        (of(Shape::Lognormal, Order::Abab, 5, 0.05), 15.0),
        (of(Shape::Lognormal, Order::Abba, 6, 0.05), 15.0),
        (of(Shape::Normal, Order::Abab, 8, 0.07), 15.0),
        (of(Shape::Normal, Order::Abab, 10, 0.08), 15.0),
        (of(Shape::Lognormal, Order::Abab, 20, 0.1), 15.0),
    ] {
        let name = format!("{:?}, CV {:.0} %, {} a side", design.shape, design.cv * 100.0, design.each);
        let rates = rates(&name, design.ratio, 7, |rng| alone(design, rng));
        outside.hold(rates.right >= rates.welch - behind - margin(), &name, rates);
        outside.hold(rates.winner - rates.right < 0.2, &name, rates);
        outside.hold((93.5 - margin()..=97.0 + margin()).contains(&rates.covered), &name, rates);
    }
    let slow = of(Shape::OneSlow, Order::Abab, 10, 0.03);
    let rates = rates("one run in four 1.6 times as slow, CV 3 %, 10 a side", 1.1, 8, |rng| alone(slow, rng));
    assert!(rates.right >= 50.0 && rates.winner - rates.right < 1.0, "{rates:?}");
}

#[test]
fn pairing_survives_starts_that_runs_share() {
    head("A true 10 %, six starts of three runs of both arms, alike by 0.92");
    let design = Shared { starts: 6, each: 3, icc: 0.9, cv: 0.1, together: Some(0.92), told: true, ratio: 1.1 };
    let rates = rates("6 starts of 3, of both arms", 1.1, 9, |rng| shared(design, rng));
    assert!(rates.right >= 95.0 - margin(), "{rates:?}");
    assert!((93.5 - margin()..=97.0 + margin()).contains(&rates.covered), "{rates:?}");
}

/// Output tokens/s of S2 and S4 on two H200 (benches/results/two-h200), three blocks on each of six starts.
#[rustfmt::skip]
const H200: [[f64; 18]; 2] = [
    [13817.4, 15269.3, 15614.6, 14926.6, 17293.2, 14313.2, 14014.0, 12612.4, 12840.2,
     16530.4, 19188.6, 14759.9, 18142.8, 20678.4, 14388.7, 14894.3, 11676.4, 15671.5],
    [27223.0, 37731.1, 29637.9, 29210.4, 26195.7, 28441.4, 33681.7, 29805.5, 25729.5,
     37085.9, 36197.0, 29785.8, 37370.3, 23772.5, 27601.7, 23774.6, 28634.6, 26131.0],
];

#[test]
fn the_paired_difference_is_that_of_a_mixed_model() {
    let turn =
        |side: u32| move |n: u32| Turn { block: Some(n), start: Some(n / 3), at: f64::from(2 * n + (n + side) % 2) };
    let turns = [0, 1].map(|side| (0..18).map(turn(side)).collect::<Vec<Turn>>());
    let judged = Made { turns, values: H200.map(|values| values.to_vec()) }.judged().unwrap();
    // statsmodels 0.14, MixedLM: y ~ arm, by start, re_formula ~arm, and blocks as a variance component: 1.944, 0.0456.
    assert!((judged.log.mean.exp() - 1.944).abs() < 5e-4 && (judged.log.se - 0.0456).abs() < 5e-5, "{judged:?}");
}

#[test]
fn a_drift_costs_little_where_it_is_fitted() {
    head("A true 10 %, and a line of ten times the spread");
    for (order, each) in [(Order::Abab, 5), (Order::Abab, 6), (Order::Abba, 6), (Order::Abab, 10)] {
        let design = Alone { shape: Shape::Trend(10.0), order, each, cv: 0.03, ratio: 1.1 };
        let rates = rates(&format!("{order:?}, {each} a side"), 1.1, 10, |rng| alone(design, rng));
        assert!(rates.right >= 90.0 && rates.covered >= 93.5 - margin(), "{rates:?}");
    }
}

#[test]
fn the_detectable_difference_is_shown_in_four_of_five() {
    head("The smallest detectable difference, of one test and of one among ten");
    for (each, tests) in [(5, 1), (10, 1), (5, 10), (10, 10)] {
        let null = Alone { shape: Shape::Lognormal, order: Order::Abab, each, cv: 0.05, ratio: 1.0 };
        let mut rng = generator(17);
        let logs: f64 = (0..1000).map(|_| alone(null, &mut rng).judged().unwrap().detectable(tests).ln()).sum();
        let ratio = (logs / 1000.0).exp();
        // One of so many tests, the others of no difference: Holm's first step.
        let adjusted = |judged: &Judged| tests as f64 * if tests > 1 { judged.p_of_many() } else { judged.p() };
        let mut shown = 0;
        for _ in 0..experiments() {
            let judged = alone(Alone { ratio, ..null }, &mut rng).judged().unwrap();
            shown += u32::from(judged.shows(adjusted(&judged).min(1.0)).is_ok());
        }
        let power = 100.0 * f64::from(shown) / f64::from(experiments());
        println!("{each} a side, one of {tests}, ratio {ratio:.3}: shown in {power:.1} %");
        assert!((72.0..90.0).contains(&power), "{power}");
    }
}
