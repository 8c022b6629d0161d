//! The figures of all rounds: their middle and spread, and how a contender's compare with another's of the same rounds.

use std::collections::BTreeMap;

use forebay_lab::stats::estimate;
use serde::Serialize;

use super::options::{Name, Work};
use super::works::{Against, Figure};

/// One figure of one work, by contender and round.
pub(super) struct Table {
    pub(super) work: Work,
    pub(super) figure: Figure,
    rounds: BTreeMap<Name, BTreeMap<u32, f64>>,
}

/// The figures of one contender over its rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// A contender's figure against another's.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Compared {
    /// Ratio: the geometric mean of the rounds' ratios. Difference: the mean of the rounds' differences.
    pub(super) middle: f64,
    /// The 95 % interval of it, by Student's t on the rounds' pairs; none of one round.
    pub(super) interval: Option<(f64, f64)>,
}

impl Table {
    /// A table without a round.
    pub(super) fn new(work: Work, figure: Figure) -> Table {
        Table { work, figure, rounds: BTreeMap::new() }
    }

    /// Adds the figure of a round.
    pub(super) fn push(&mut self, name: Name, round: u32, value: f64) {
        self.rounds.entry(name).or_default().insert(round, value);
    }

    /// The contenders that have a figure.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> {
        self.rounds.keys().copied()
    }

    /// The figures of a contender by round, in order.
    pub(super) fn rounds(&self, name: Name) -> Vec<f64> {
        self.rounds.get(&name).map(|rounds| rounds.values().copied().collect()).unwrap_or_default()
    }

    /// The middle and the ends of a contender's figures.
    pub(super) fn spread(&self, name: Name) -> Option<Spread> {
        let mut values = self.rounds(name);
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Spread { median, least, most })
    }

    /// A contender's figure against another's, in pairs of one round, so that what slows a whole round falls out.
    pub(super) fn against(&self, name: Name, other: Name) -> Option<Compared> {
        let (ours, theirs) = (self.rounds.get(&name)?, self.rounds.get(&other)?);
        let pairs = ours.iter().filter_map(|(round, value)| Some((*theirs.get(round)?, *value)));
        let ratio = self.figure.against == Against::Ratio;
        let pairs: Vec<(f64, f64)> = pairs.map(|(a, b)| if ratio { (a.ln(), b.ln()) } else { (a, b) }).collect();
        let back = |value: f64| if ratio { value.exp() } else { value };
        let compared = paired(&pairs)?;
        let interval = compared.interval.map(|(low, high)| (back(low), back(high)));
        Some(Compared { middle: back(compared.middle), interval })
    }

    /// How much more a contender adds to the figure of a direct connection than `most` times what another adds, in the figure's own
    /// unit.
    pub(super) fn excess(&self, name: Name, other: Name, most: f64) -> Option<Compared> {
        let of = |name| self.rounds.get(&name);
        let (ours, theirs, direct) = (of(name)?, of(other)?, of(Name::Direct)?);
        let pair = |(round, ours): (&u32, &f64)| {
            let direct = direct.get(round)?;
            Some((most * (theirs.get(round)? - direct), ours - direct))
        };
        paired(&ours.iter().filter_map(pair).collect::<Vec<_>>())
    }
}

/// The mean difference of pairs, the second less the first, with its interval.
fn paired(pairs: &[(f64, f64)]) -> Option<Compared> {
    if let [(a, b)] = pairs {
        return Some(Compared { middle: b - a, interval: None }).filter(|compared| compared.middle.is_finite());
    }
    let estimate = estimate::paired(pairs).filter(|estimate| estimate.mean.is_finite())?;
    Some(Compared { middle: estimate.mean, interval: Some(estimate.interval(0.95)) })
}

/// The value below which this share of the values lies.
pub(super) fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(values[(share * last as f64).round() as usize])
}
