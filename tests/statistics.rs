//! How often the verdict is right, on experiments that were made up: the error rate where there is no difference, how often the
//! interval holds the truth, how often a true difference is named. Through the code that `forebay compare` judges by.
//! `cargo test --test statistics -- --nocapture --test-threads 1` prints the table; each figure is of 20,000 experiments.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use forebay_lab::compare::figure::Figure;
use forebay_lab::compare::judge::{EpochValue, Judged, judge};
use forebay_lab::compare::verdict::{Scope, Verdict};

const EXPERIMENTS: u32 = 20_000;

/// An experiment: epochs a side, and how they spread.
#[derive(Clone, Copy)]
struct Design {
    /// Starts of the servers, a side.
    starts: u32,
    /// Epochs of each start.
    epochs_per_start: u32,
    /// Coefficient of variation from start to start.
    start_cv: f64,
    /// Coefficient of variation from epoch to epoch of a start.
    epoch_cv: f64,
    /// Coefficient of variation of what the epochs of a block have in common.
    block_cv: f64,
    /// Whether the epochs are in blocks.
    blocks: bool,
    /// Whether the starts are told.
    told: bool,
    /// True arm ÷ baseline.
    ratio: f64,
}

/// Epochs with a start of their own each.
fn independent(epochs: u32, cv: f64, ratio: f64) -> Design {
    Design {
        starts: epochs,
        epochs_per_start: 1,
        start_cv: 0.0,
        epoch_cv: cv,
        block_cv: 0.0,
        blocks: false,
        told: true,
        ratio,
    }
}

/// Box and Muller's.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// One plus a normal error; what would be below a tenth is drawn again.
fn factor(cv: f64, rng: &mut fastrand::Rng) -> f64 {
    loop {
        let factor = 1.0 + cv * normal(rng);
        if factor > 0.1 {
            return factor;
        }
    }
}

fn side(design: &Design, level: f64, first_start: u32, blocks: &[f64], rng: &mut fastrand::Rng) -> Vec<EpochValue> {
    let mut units = Vec::new();
    for start in 0..design.starts {
        let of_start = factor(design.start_cv, rng);
        for _ in 0..design.epochs_per_start {
            let block = units.len();
            let value = 1000.0 * level * of_start * blocks[block] * factor(design.epoch_cv, rng);
            units.push(EpochValue {
                block: design.blocks.then_some(block as u32),
                start: design.told.then_some(first_start + start),
                value,
            });
        }
    }
    units
}

fn experiment(design: &Design, rng: &mut fastrand::Rng) -> Judged {
    let blocks: Vec<f64> = (0..design.starts * design.epochs_per_start).map(|_| factor(design.block_cv, rng)).collect();
    let a = side(design, 1.0, 0, &blocks, rng);
    let b = side(design, design.ratio, design.starts, &blocks, rng);
    judge(&a, &b, false).unwrap()
}

/// What came of many experiments, in percent.
struct Rates {
    winner: f64,
    right: f64,
    covered: f64,
    scope: Scope,
}

fn rates(name: &str, design: &Design, seed: u64) -> Rates {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut winner, mut right, mut covered, mut scope) = (0, 0, 0, Scope::AnyStart);
    for _ in 0..EXPERIMENTS {
        let judged = experiment(design, &mut rng);
        let interval = judged.interval();
        covered += u32::from(interval.low <= design.ratio && design.ratio <= interval.high);
        scope = judged.scope;
        // At one load with two arms nothing is adjusted for.
        if let Verdict::Winner { arm, .. } = judged.verdict(Figure::OutputTokensPerGpu, ("a", "b"), judged.log.p()) {
            winner += 1;
            right += u32::from(arm == if design.ratio > 1.0 { "b" } else { "a" });
        }
    }
    let percent = |count: u32| 100.0 * f64::from(count) / f64::from(EXPERIMENTS);
    let rates = Rates { winner: percent(winner), right: percent(right), covered: percent(covered), scope };
    println!("{name:<66} {:>7.2} {:>7.2} {:>9.2}   {:?}", rates.winner, rates.right, rates.covered, rates.scope);
    rates
}

fn head(title: &str) {
    println!("\n{title}, {EXPERIMENTS} experiments each, in %");
    println!("{:<66} {:>7} {:>7} {:>9}   scope", "", "winner", "right", "covered");
}

#[test]
fn without_a_difference_a_winner_is_rare_and_the_interval_holds_the_truth() {
    head("No difference");
    for epochs in [3, 5, 10] {
        for cv in [0.03, 0.2] {
            for blocks in [false, true] {
                let design = Design { blocks, ..independent(epochs, cv, 1.0) };
                let name = format!(
                    "{epochs} epochs a side, CV {:.0} %{}",
                    cv * 100.0,
                    if blocks { ", in blocks" } else { "" }
                );
                let rates = rates(&name, &design, u64::from(epochs) * 100 + (cv * 100.0) as u64);
                assert!(rates.winner <= 5.5, "{name}: a winner in {} %", rates.winner);
                if epochs >= 5 {
                    assert!((94.0..=97.0).contains(&rates.covered), "{name}: covered in {} %", rates.covered);
                }
            }
        }
    }
}

#[test]
fn a_true_tenth_is_named_and_named_rightly() {
    head("A true difference");
    for (epochs, cv, ratio, blocks, least) in [
        (5, 0.03, 1.1, false, 90.0),
        (5, 0.03, 1.1, true, 90.0),
        (10, 0.03, 1.1, false, 99.0),
        (5, 0.03, 1.0 / 1.1, false, 0.0),
        (10, 0.2, 1.5, false, 90.0),
    ] {
        let name = format!(
            "{epochs} epochs a side, CV {:.0} %, ratio {ratio:.2}{}",
            cv * 100.0,
            if blocks { ", in blocks" } else { "" }
        );
        let rates = rates(&name, &Design { blocks, ..independent(epochs, cv, ratio) }, 7);
        assert!(rates.right >= least, "{name}: {} %", rates.right);
        assert!(rates.winner - rates.right < 0.1, "{name}: the wrong one in {} %", rates.winner - rates.right);
        assert!((94.0..=97.0).contains(&rates.covered), "{name}: covered in {} %", rates.covered);
    }
}

#[test]
fn what_a_block_has_in_common_is_taken_out_by_pairing() {
    head("A true difference, and 10 % that the epochs of a block have in common");
    let design = Design { block_cv: 0.1, ..independent(5, 0.03, 1.1) };
    let apart = rates("5 epochs a side, CV 3 %, ratio 1.10, not in blocks", &design, 11);
    let paired = rates("5 epochs a side, CV 3 %, ratio 1.10, in blocks", &Design { blocks: true, ..design }, 11);
    assert!(paired.right >= 90.0 && apart.right < 60.0);
}

#[test]
fn clustering_by_start_keeps_the_error_rate_that_epochs_of_shared_starts_do_not() {
    head("No difference, starts differ by 10 % and epochs of a start by 3 %");
    let clustered = Design { starts: 5, epochs_per_start: 4, start_cv: 0.1, ..independent(5, 0.03, 1.0) };
    let kept = rates("5 starts of 4 epochs a side, clustered by start", &clustered, 13);
    assert!(kept.winner <= 5.5 && (94.0..=97.0).contains(&kept.covered) && kept.scope == Scope::AnyStart);
    let naive = rates("the same, starts not told: epochs as the unit", &Design { told: false, ..clustered }, 13);
    assert!(naive.winner > 20.0 && naive.scope == Scope::TheseStarts, "it must say that it holds for these starts");
    let two = rates("2 starts of 10 epochs a side", &Design { starts: 2, epochs_per_start: 10, ..clustered }, 13);
    assert!(two.scope == Scope::TheseStarts);
    head("A true difference");
    let named = rates("5 starts of 4 epochs a side, ratio 1.50", &Design { ratio: 1.5, ..clustered }, 13);
    assert!(named.right >= 90.0);
}

#[test]
fn the_detectable_difference_is_shown_in_four_of_five() {
    let mut rng = fastrand::Rng::with_seed(17);
    for epochs in [5, 10] {
        let null = independent(epochs, 0.05, 1.0);
        // The geometric mean of what designs of this kind say.
        let logs: f64 = (0..2000).map(|_| experiment(&null, &mut rng).detectable().ln()).sum();
        let ratio = (logs / 2000.0).exp();
        head("The smallest detectable difference");
        let rates = rates(&format!("{epochs} epochs a side, CV 5 %, ratio {ratio:.3}"), &Design { ratio, ..null }, 19);
        assert!((70.0..90.0).contains(&rates.right), "{}", rates.right);
    }
}
