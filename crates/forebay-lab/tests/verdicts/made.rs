//! Experiments that were made up: when each run was, on which start of the servers, and what its figure was.

use fastrand::Rng;
use forebay_lab::compare::design::{Design, Turn};
use forebay_lab::compare::judge::{Judged, judge};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// How the runs of an arm follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// A, B, A, B.
    Abab,
    /// A, B, B, A.
    Abba,
    /// The same, and the rows say which two are a block.
    AbbaBlocks,
    /// A, B, A, B in blocks.
    AbabBlocks,
}

/// How the logarithms of figures spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The figures are normal, not their logarithms.
    Normal,
    Lognormal,
    /// Student's t with three degrees of freedom.
    T3,
    /// One run in four takes 1.6 times as long.
    OneSlow,
    /// Each run resembles the one before it by half.
    Ar1,
    /// A line, over all runs so many times the spread.
    Trend(f64),
    /// An arch of such a height.
    Arch(f64),
    /// The second arm spreads three times as much.
    Unlike,
}

/// A design with one run on each start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone {
    pub(crate) shape: Shape,
    pub(crate) order: Order,
    pub(crate) each: usize,
    pub(crate) cv: f64,
    pub(crate) ratio: f64,
}

/// Marsaglia's polar method.
pub(crate) fn normal(rng: &mut Rng) -> f64 {
    loop {
        let (u, v) = (2.0 * rng.f64() - 1.0, 2.0 * rng.f64() - 1.0);
        let square = u * u + v * v;
        if square > 0.0 && square < 1.0 {
            return u * (-2.0 * square.ln() / square).sqrt();
        }
    }
}

fn t3(rng: &mut Rng) -> f64 {
    let chi: f64 = (0..3).map(|_| normal(rng).powi(2)).sum();
    // Of variance 1, as the others.
    normal(rng) / (chi / 3.0).sqrt() / 3.0_f64.sqrt()
}

/// Which arm has each turn.
pub(crate) fn turns(order: Order, each: usize) -> Vec<usize> {
    let swapped = |pair: usize| matches!(order, Order::Abba | Order::AbbaBlocks) && pair % 2 == 1;
    (0..each).flat_map(|pair| if swapped(pair) { [1, 0] } else { [0, 1] }).collect()
}

/// The logarithms of the figures of all turns, without a difference.
fn spread(shape: Shape, cv: f64, arms: &[usize], rng: &mut Rng) -> Vec<f64> {
    let count = arms.len();
    let mut before = normal(rng);
    let along = |turn: usize| turn as f64 / (count - 1) as f64;
    let one = |turn: usize, rng: &mut Rng, before: &mut f64| match shape {
        Shape::Normal => (1.0 + cv * normal(rng)).max(0.1).ln(),
        Shape::Lognormal => cv * normal(rng),
        Shape::T3 => cv * t3(rng),
        Shape::OneSlow => cv * normal(rng) + if rng.f64() < 0.25 { 1.6_f64.ln() } else { 0.0 },
        Shape::Ar1 => {
            *before = 0.5 * *before + 0.75_f64.sqrt() * normal(rng);
            cv * *before
        }
        Shape::Trend(size) => cv * (normal(rng) + size * along(turn)),
        Shape::Arch(size) => cv * (normal(rng) + size * 4.0 * (along(turn) - 0.5).powi(2)),
        Shape::Unlike => cv * normal(rng) * if arms[turn] == 1 { 3.0 } else { 1.0 },
    };
    (0..count).map(|turn| one(turn, rng, &mut before)).collect()
}

/// What was measured: both arms' runs, and their figures.
pub(crate) struct Made {
    pub(crate) turns: [Vec<Turn>; 2],
    pub(crate) values: [Vec<f64>; 2],
}

impl Made {
    pub(crate) fn design(&self) -> Design {
        Design::of(&self.turns[0], &self.turns[1], false)
    }

    pub(crate) fn judged(&self) -> Option<Judged> {
        self.judged_as(&self.design())
    }

    pub(crate) fn judged_as(&self, design: &Design) -> Option<Judged> {
        judge(design, &self.values[0], &self.values[1])
    }

    /// The p of Welch's t test on the logarithms of runs: what the verdict's power is set beside.
    pub(crate) fn welch(&self) -> f64 {
        let logs = self.values.each_ref().map(|values| values.iter().map(|value| value.ln()).collect::<Vec<f64>>());
        welch(&logs[0], &logs[1])
    }
}

/// The p of Welch's t test.
pub(crate) fn welch(a: &[f64], b: &[f64]) -> f64 {
    let of = |values: &[f64]| {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count, count - 1.0)
    };
    let ((m, u, df_a), (n, v, df_b)) = (of(a), of(b));
    let df = (u + v).powi(2) / (u * u / df_a + v * v / df_b);
    2.0 * StudentsT::new(0.0, 1.0, df).unwrap().sf(((n - m) / (u + v).sqrt()).abs())
}

/// One run a start.
pub(crate) fn alone(design: Alone, rng: &mut Rng) -> Made {
    let arms = turns(design.order, design.each);
    let logs = spread(design.shape, design.cv, &arms, rng);
    let mut made = Made { turns: [vec![], vec![]], values: [vec![], vec![]] };
    for (turn, (arm, log)) in arms.iter().zip(&logs).enumerate() {
        let blocks = matches!(design.order, Order::AbbaBlocks | Order::AbabBlocks);
        let block = blocks.then_some((turn / 2) as u32);
        made.turns[*arm].push(Turn { block, start: Some(turn as u32), at: turn as f64 });
        made.values[*arm].push(100.0 * log.exp() * if *arm == 1 { design.ratio } else { 1.0 });
    }
    made
}

/// Several runs on each start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared {
    pub(crate) starts: u32,
    pub(crate) each: u32,
    /// The share of the variance that is between starts.
    pub(crate) icc: f64,
    pub(crate) cv: f64,
    /// How alike two arms are on one start; none: each arm has starts of its own.
    pub(crate) together: Option<f64>,
    pub(crate) told: bool,
    pub(crate) ratio: f64,
}

pub(crate) fn shared(design: Shared, rng: &mut Rng) -> Made {
    let mut made = Made { turns: [vec![], vec![]], values: [vec![], vec![]] };
    let (between, within) = (design.cv * design.icc.sqrt(), design.cv * (1.0 - design.icc).sqrt());
    let mut at = 0.0;
    for start in 0..design.starts {
        let common = normal(rng);
        let alike = design.together.unwrap_or(0.0);
        let level = [0, 1].map(|_| between * (alike.sqrt() * common + (1.0 - alike).sqrt() * normal(rng)));
        let mut run = |arm: usize, block: Option<u32>, number: u32, rng: &mut Rng| {
            let ratio = if arm == 1 { design.ratio } else { 1.0 };
            made.turns[arm].push(Turn { block, start: design.told.then_some(number), at });
            made.values[arm].push(100.0 * ratio * (level[arm] + within * normal(rng)).exp());
            at += 1.0;
        };
        if design.together.is_some() {
            for turn in 0..design.each {
                let block = start * design.each + turn;
                let order = if block.is_multiple_of(2) { [0, 1] } else { [1, 0] };
                order.into_iter().for_each(|arm| run(arm, Some(block), start, rng));
            }
        } else {
            let order = if start % 2 == 0 { [0, 1] } else { [1, 0] };
            for arm in order {
                (0..design.each).for_each(|_| run(arm, None, 2 * start + arm as u32, rng));
            }
        }
    }
    made
}

/// Runs that resemble the ones before them by half, so many of an arm in a row.
pub(crate) fn clumps(row: u32, each: u32, rng: &mut Rng) -> Made {
    let mut made = Made { turns: [vec![], vec![]], values: [vec![], vec![]] };
    let arms: Vec<usize> = (0..2 * each).map(|turn| (turn / row % 2) as usize).collect();
    for (turn, log) in spread(Shape::Ar1, 0.1, &arms, rng).into_iter().enumerate() {
        made.turns[arms[turn]].push(Turn { block: None, start: Some(turn as u32), at: turn as f64 });
        made.values[arms[turn]].push(100.0 * log.exp());
    }
    made
}
