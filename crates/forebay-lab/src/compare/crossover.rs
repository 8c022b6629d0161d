//! The load at which the better arm changes, over a sweep, with its interval. Pure.

use super::figure::Figure;
use super::judge::LEVEL;
use super::verdict::Crossing;
use crate::stats::estimate::Estimate;

/// The number of times that the curve is drawn anew within its errors.
const DRAWS: usize = 2000;

/// A load of a sweep, and the logarithm of arm ÷ baseline there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SweepPoint {
    /// The load, above 0.
    pub load: f64,
    /// The logarithm of the ratio.
    pub log: Estimate,
    /// True if a difference is shown there, by the rule that names a winner.
    pub shown: bool,
}

/// Finds the crossings of a sweep (lightest first) in a figure: every change of the better arm between loads that show a
/// difference in opposite directions. Loads between them that show none are part of the curve.
pub fn crossings(figure: Figure, names: (&str, &str), sweep: &[SweepPoint], rng: &mut fastrand::Rng) -> Vec<Crossing> {
    let better = |sign: f64| if (sign > 0.0) == figure.more_is_better() { names.1 } else { names.0 }.to_owned();
    let shown: Vec<(usize, f64)> = sweep
        .iter()
        .enumerate()
        // By the rule that names winners, with Holm's adjustment. By ratios alone, any sweep without a difference has crossings.
        .filter(|(_, place)| place.shown)
        .map(|(index, place)| (index, place.log.mean.signum()))
        .collect();
    let (Some(first), Some(last)) = (shown.first(), shown.last()) else { return vec![Crossing::Unshown] };
    let changes: Vec<(usize, usize, f64)> =
        shown.windows(2).filter(|pair| pair[0].1 != pair[1].1).map(|pair| (pair[0].0, pair[1].0, pair[0].1)).collect();
    // Signs that agree wherever a difference shows: between the loads anything may be, and nothing is said of it.
    if changes.is_empty() {
        let (from, to) = (sweep[first.0].load, sweep[last.0].load);
        return vec![Crossing::Never { better: better(first.1), from, to }];
    }
    let logs: Vec<f64> = sweep.iter().map(|place| place.log.mean).collect();
    let mut found = Vec::new();
    for (from, to, sign) in changes {
        // The curve may cross several times between two loads that show something. The first is named, and the interval holds
        // the rest.
        let Some(load) = zeros(sweep, &logs, sign).find(|(index, _)| (from..to).contains(index)) else { continue };
        let (low, high) = interval(sweep, sign, load.1, rng);
        found.push(Crossing::At { below: better(sign), above: better(-sign), load: load.1, low, high });
    }
    found
}

/// Finds where the curve goes through 0 from this sign: the index of the load below, and the load, in proportion to its logarithm.
fn zeros<'a>(sweep: &'a [SweepPoint], logs: &'a [f64], sign: f64) -> impl Iterator<Item = (usize, f64)> + 'a {
    (0..logs.len().saturating_sub(1)).filter_map(move |index| {
        let (a, b) = (logs[index] * sign, logs[index + 1] * sign);
        let (from, to) = (sweep[index].load.ln(), sweep[index + 1].load.ln());
        (a > 0.0 && b <= 0.0).then(|| (index, (from + (to - from) * a / (a - b)).exp()))
    })
}

/// Returns the interval of the change when every load's ratio is drawn from its own error. A curve that then never changes puts it
/// beyond the lightest or the heaviest load.
fn interval(sweep: &[SweepPoint], sign: f64, load: f64, rng: &mut fastrand::Rng) -> (Option<f64>, Option<f64>) {
    let mut at: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let logs: Vec<f64> = sweep.iter().map(|place| place.log.mean + noise(place.log, rng)).collect();
            // A drawn curve may cross several times. The crossing at hand is the one next to it.
            let nearest = zeros(sweep, &logs, sign)
                .map(|(_, at)| at)
                .min_by(|a, b| (a / load).ln().abs().total_cmp(&(b / load).ln().abs()));
            // A drawn curve without a crossing is no reason to draw again: it says that the crossing may lie outside the sweep.
            let beyond = if logs.iter().sum::<f64>() * sign > 0.0 { f64::INFINITY } else { 0.0 };
            nearest.unwrap_or(beyond)
        })
        .collect();
    at.sort_by(f64::total_cmp);
    let place = |share: f64| at[(share * (at.len() - 1) as f64).round() as usize];
    let inside = |value: f64| (value > 0.0 && value.is_finite()).then_some(value);
    (inside(place(0.5 - LEVEL / 2.0)), inside(place(0.5 + LEVEL / 2.0)))
}

/// A normal error, stretched to the width that the t-interval has.
fn noise(log: Estimate, rng: &mut fastrand::Rng) -> f64 {
    let half = log.interval(LEVEL).1 - log.mean;
    let angle = std::f64::consts::TAU * rng.f64();
    let normal = (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * angle.cos();
    // Normal draws have no heavy tails. So they are stretched until their 95 % is that of the t, with few degrees of
    // freedom.
    normal * half / 1.96
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(ratios: &[f64], se: f64) -> Vec<SweepPoint> {
        let place = |(step, ratio): (i32, &f64)| SweepPoint {
            load: 2.0_f64.powi(step),
            log: Estimate { mean: ratio.ln(), se, df: 8.0 },
            shown: Estimate { mean: ratio.ln(), se, df: 8.0 }.p() < 0.05 && ratio.max(1.0 / ratio) > 1.02,
        };
        (0..).zip(ratios).map(place).collect()
    }

    fn at(ratios: &[f64], se: f64) -> Vec<Crossing> {
        crossings(Figure::TtftP95, ("tp2", "tp1x2"), &sweep(ratios, se), &mut fastrand::Rng::with_seed(1))
    }

    #[test]
    fn the_change_lies_between_two_loads_in_proportion_with_an_interval() {
        let found = at(&[1.3, 1.1, 1.0 / 1.1, 0.7], 0.01);
        let [Crossing::At { below, above, load, low: Some(low), high: Some(high) }] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((below.as_str(), above.as_str()), ("tp2", "tp1x2"), "a longer TTFT is worse");
        assert!((load - 8.0_f64.sqrt()).abs() < 1e-9 && 2.0 < *low && low < load && load < high && *high < 4.0);
    }

    #[test]
    fn a_wide_error_leaves_the_interval_open() {
        let found = at(&[1.25, 1.02, 0.98, 0.8], 0.09);
        assert!(matches!(&found[..], [Crossing::At { .. }] | [Crossing::Unshown]), "{found:?}");
        let found = at(&[1.4, 0.75], 0.1);
        let [Crossing::At { low, high, .. }] = found.as_slice() else { panic!("{found:?}") };
        assert!(low.is_none_or(|low| low < 1.3) && high.is_none_or(|high| high > 1.6));
    }

    #[test]
    fn noise_between_loads_is_no_change() {
        assert_eq!(at(&[1.01, 0.99, 1.01], 0.02), [Crossing::Unshown]);
        let better = "tp1x2".to_owned();
        assert_eq!(at(&[1.01, 0.9, 0.8], 0.01), [Crossing::Never { better, from: 2.0, to: 4.0 }]);
    }

    #[test]
    fn each_change_of_several_is_told() {
        assert_eq!(at(&[1.3, 0.7, 1.3], 0.01).len(), 2);
    }
}
