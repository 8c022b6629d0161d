//! A difference of two groups of values that drift together over time. Pure.

use super::estimate::{Estimate, mean};

/// A value and when it was made, in any unit.
pub type Timed = (f64, f64);

/// The sums that the least squares of two groups with one common slope need.
struct TrendSums {
    count: f64,
    at: f64,
    value: f64,
    /// Squares of times around their mean.
    spread: f64,
    /// Times around their mean by values.
    cross: f64,
}

impl TrendSums {
    fn of(values: &[Timed]) -> TrendSums {
        let count = values.len() as f64;
        let at = values.iter().map(|one| one.0).sum::<f64>() / count;
        let value = values.iter().map(|one| one.1).sum::<f64>() / count;
        let spread = values.iter().map(|one| (one.0 - at).powi(2)).sum();
        let cross = values.iter().map(|one| (one.0 - at) * one.1).sum();
        TrendSums { count, at, value, spread, cross }
    }

    fn squares(&self, values: &[Timed], slope: f64) -> f64 {
        values.iter().map(|one| (one.1 - self.value - slope * (one.0 - self.at)).powi(2)).sum()
    }
}

/// The mean of `b` less the mean of `a` beside a linear trend that both share. The variances of the groups may differ: each is
/// estimated from its residuals' squares, and the degrees of freedom are Satterthwaite's, so that without a trend this is Welch's.
/// None with fewer than two values in a group or four in all, or where all times of each group are one.
#[must_use]
pub fn difference(a: &[Timed], b: &[Timed]) -> Option<Estimate> {
    if a.len() < 2 || b.len() < 2 || a.len() + b.len() < 4 {
        return None;
    }
    let (of_a, of_b) = (TrendSums::of(a), TrendSums::of(b));
    let spread = of_a.spread + of_b.spread;
    if spread <= 0.0 {
        return None;
    }
    // One slope for both: the machine drifts, whichever arm runs on it. A slope each would take the difference with it.
    let slope = (of_a.cross + of_b.cross) / spread;
    let apart = of_b.at - of_a.at;
    let estimate = of_b.value - of_a.value - slope * apart;
    // The sum of a group's squared residuals is on average `rest` × the variances: a group's own, and the other's by the slope.
    let share = [of_a.spread / spread, of_b.spread / spread];
    let own = |group: &TrendSums, share: f64| group.count - 1.0 - 2.0 * share + share * share;
    let rest = [own(&of_a, share[0]), own(&of_b, share[1])];
    let other = share[0] * share[1];
    let whole = rest[0] * rest[1] - other * other;
    // Two values a side and a slope leave nothing that tells the two variances apart.
    if whole <= 0.0 {
        return None;
    }
    let squares = [of_a.squares(a, slope), of_b.squares(b, slope)];
    let variance = [
        // Each group's residuals hold a part of the other's variance, since the slope is common. Two equations, solved; a small
        // one may come out below 0.
        ((rest[1] * squares[0] - other * squares[1]) / whole).max(0.0),
        ((rest[0] * squares[1] - other * squares[0]) / whole).max(0.0),
    ];
    let weight = [
        1.0 / of_a.count + apart * apart * of_a.spread / (spread * spread),
        1.0 / of_b.count + apart * apart * of_b.spread / (spread * spread),
    ];
    let squared = weight[0] * variance[0] + weight[1] * variance[1];
    // The estimate of the variance is a quadratic form of the values: twice its square over its own variance.
    let w = [(rest[1] * weight[0] - other * weight[1]) / whole, (rest[0] * weight[1] - other * weight[0]) / whole];
    // Satterthwaite's degrees of freedom need the variance of the variance: 2 tr(QΩQΩ) of its quadratic form, here in closed
    // form.
    let mixed = (w[0] * of_a.spread + w[1] * of_b.spread) / (spread * spread);
    let form = |group: &TrendSums, w: f64| {
        let tilt = mixed - 2.0 * w / spread;
        w * w * (group.count - 1.0) + 2.0 * w * tilt * group.spread + (tilt * group.spread).powi(2)
    };
    let between = (mixed - (w[0] + w[1]) / spread).powi(2) * of_a.spread * of_b.spread;
    let noise = form(&of_a, w[0]) * variance[0].powi(2)
        + form(&of_b, w[1]) * variance[1].powi(2)
        + 2.0 * between * variance[0] * variance[1];
    // Without any spread nothing is estimated, and the count of values less the three means and slopes stands in.
    let df = if noise > 0.0 { squared * squared / noise } else { of_a.count + of_b.count - 3.0 };
    Some(Estimate { mean: estimate, se: squared.sqrt(), df })
}

/// The slope of values over time by least squares, with its error; none with fewer than three, or at one time.
#[must_use]
pub fn slope(values: &[Timed]) -> Option<Estimate> {
    let sums = TrendSums::of(values);
    if values.len() < 3 || sums.spread <= 0.0 {
        return None;
    }
    let (mean, df) = (sums.cross / sums.spread, sums.count - 2.0);
    Some(Estimate { mean, se: (sums.squares(values, mean) / df / sums.spread).sqrt(), df })
}

/// The median slope of any two values of one group: what a few odd values leave as it is (Theil and Sen). None without two times.
#[must_use]
pub fn median_slope(groups: &[&[Timed]]) -> Option<f64> {
    let mut slopes: Vec<f64> = Vec::new();
    for group in groups {
        for (place, one) in group.iter().enumerate() {
            // Within a group alone: a slope between the groups would hold the very difference that is asked for.
            let earlier = group[..place].iter().filter(|other| other.0 != one.0);
            slopes.extend(earlier.map(|other| (one.1 - other.1) / (one.0 - other.0)));
        }
    }
    slopes.sort_by(f64::total_cmp);
    let last = slopes.len().checked_sub(1)?;
    // The mean of the two middle ones where their number is even; both indices are one where it is odd.
    Some((slopes[last / 2] + slopes[last.div_ceil(2)]) / 2.0)
}

/// The mean of differences of pairs, less what a trend adds to them: `gap` later is one of each pair than the other, and values
/// that share the trend say its slope. None with fewer than three of either.
#[must_use]
pub fn without_slope(differences: &[f64], gap: f64, drift: &[Timed]) -> Option<Estimate> {
    let (plain, slope) = (mean(differences)?, slope(drift)?);
    let (u, v) = (plain.se.powi(2), (gap * slope.se).powi(2));
    // The slope is estimated from sums of pairs and the mean from their differences, which are independent where both arms
    // spread alike. So the errors add up, and Satterthwaite's formula holds.
    let df = if u + v > 0.0 { (u + v).powi(2) / (u.powi(2) / plain.df + v.powi(2) / slope.df) } else { plain.df };
    Some(Estimate { mean: plain.mean - gap * slope.mean, se: (u + v).sqrt(), df })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::estimate::welch;

    const A: [f64; 5] = [5.1, 4.8, 5.6, 5.0, 5.4];
    const B: [f64; 5] = [5.9, 5.2, 6.3, 5.3, 6.6];

    fn timed(values: &[f64], first: f64, slope: f64) -> Vec<Timed> {
        (0..)
            .zip(values)
            .map(|(n, value)| (first + 2.0 * f64::from(n), value + slope * (first + 2.0 * f64::from(n))))
            .collect()
    }

    #[test]
    fn without_a_trend_in_time_it_is_nearly_welch_s() {
        let plain = welch(&A, &B).unwrap();
        // Times that are the same for both groups: the trend takes a degree of freedom, and moves nothing.
        let found = difference(&timed(&A, 0.0, 0.0), &timed(&B, 0.0, 0.0)).unwrap();
        assert!((found.mean - plain.mean).abs() < 1e-12);
        assert!(found.df < 8.0 && found.df > 3.5, "{found:?}");
    }

    #[test]
    fn a_trend_of_any_size_changes_nothing() {
        let at = |slope: f64| difference(&timed(&A, 0.0, slope), &timed(&B, 1.0, slope)).unwrap();
        let (flat, steep) = (at(0.0), at(100.0));
        assert!((flat.mean - steep.mean).abs() < 1e-9 && (flat.se - steep.se).abs() < 1e-9);
        assert!((flat.df - steep.df).abs() < 1e-6);
        // numpy: least squares with matrices, and tr(QΩQΩ) for the degrees of freedom.
        let near = |value: f64, other: f64| (value - other).abs() < 1e-6;
        assert!(near(flat.mean, 0.6225) && near(flat.se, 0.310_447_55) && near(flat.df, 5.103_613_44), "{flat:?}");
    }

    #[test]
    fn the_median_slope_does_not_see_one_odd_value() {
        let mut values = timed(&A, 0.0, 3.0);
        values[4].1 += 1000.0;
        let slope = median_slope(&[&values]).unwrap();
        assert!((slope - 3.0).abs() < 0.5, "{slope}");
        assert_eq!(median_slope(&[&[(1.0, 2.0)], &[(1.0, 3.0), (1.0, 4.0)]]), None);
    }

    #[test]
    fn pairs_that_are_always_in_one_order_lose_the_trend() {
        let drift: Vec<Timed> = (0..6).map(|n| (2.0 * f64::from(n), 4.0 * f64::from(n))).collect();
        let found = without_slope(&[2.1, 1.9, 2.0, 2.2, 1.8, 2.0], 1.0, &drift).unwrap();
        assert!(found.mean.abs() < 1e-12 && found.p() > 0.9);
    }
}
