//! Means and differences of means with what is known of their error, by Student's t. On logarithms a difference is a ratio.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::statistics::Statistics;

/// An estimate, its standard error and the degrees of freedom of that error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The estimate.
    pub mean: f64,
    /// Its standard error.
    pub se: f64,
    /// Degrees of freedom of the standard error, above 0.
    pub df: f64,
}

impl Estimate {
    /// The interval that holds the truth with this chance (0.95 for 95 %).
    #[must_use]
    pub fn interval(&self, level: f64) -> (f64, f64) {
        let half = self.se * self.quantile(0.5 + level / 2.0);
        (self.mean - half, self.mean + half)
    }

    /// The chance of an estimate at least as far from 0, on either side, if the truth were 0.
    #[must_use]
    pub fn p(&self) -> f64 {
        if self.se > 0.0 {
            2.0 * self.student().sf((self.mean / self.se).abs())
        } else if self.mean == 0.0 {
            1.0
        } else {
            0.0
        }
    }

    /// The smallest truth that a test at this level shows with this chance: (t + z(power) × √(1 + t² / 2 df)) × se with the test's
    /// critical t, an approximation to the noncentral t that also holds for small α and few degrees of freedom (Johnson and Welch).
    #[must_use]
    pub fn detectable(&self, level: f64, power: f64) -> f64 {
        // The usual (t + z) × se takes the critical t for known. At two degrees of freedom it would promise 80 % and give 60 %.
        let t = self.quantile(0.5 + level / 2.0);
        let normal = Normal::standard().inverse_cdf(power);
        self.se * (t + normal * (1.0 + t * t / (2.0 * self.df)).sqrt())
    }

    fn quantile(&self, share: f64) -> f64 {
        self.student().inverse_cdf(share)
    }

    fn student(&self) -> StudentsT {
        StudentsT::new(0.0, 1.0, self.df).expect("degrees of freedom are above 0")
    }
}

/// The mean of values; none of fewer than two.
#[must_use]
pub fn mean(values: &[f64]) -> Option<Estimate> {
    let count = values.len() as f64;
    (values.len() >= 2).then(|| Estimate {
        mean: values.mean(),
        se: (values.variance() / count).sqrt(),
        df: count - 1.0,
    })
}

/// The mean of `b` less the mean of `a`, whose variances may differ: Welch's, with Satterthwaite's degrees of freedom. None if
/// either has fewer than two values.
#[must_use]
pub fn welch(a: &[f64], b: &[f64]) -> Option<Estimate> {
    let (a, b) = (mean(a)?, mean(b)?);
    let (u, v) = (a.se.powi(2), b.se.powi(2));
    // Without any spread Satterthwaite's formula is nothing over nothing.
    let df = if u + v > 0.0 { (u + v).powi(2) / (u.powi(2) / a.df + v.powi(2) / b.df) } else { a.df + b.df };
    Some(Estimate { mean: b.mean - a.mean, se: (u + v).sqrt(), df })
}

/// The mean of the differences `b` − `a` of pairs. None of fewer than two.
#[must_use]
pub fn paired(pairs: &[(f64, f64)]) -> Option<Estimate> {
    mean(&pairs.iter().map(|(a, b)| b - a).collect::<Vec<_>>())
}

/// The mean of each group's values, in the order of the groups.
#[must_use]
pub fn group_means<G: Ord + Copy>(values: &[(G, f64)]) -> Vec<f64> {
    let mut groups: std::collections::BTreeMap<G, Vec<f64>> = std::collections::BTreeMap::new();
    for (group, value) in values {
        groups.entry(*group).or_default().push(*value);
    }
    groups.values().map(|values| values.mean()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-3
    }

    #[test]
    fn welch_is_that_of_another_implementation() {
        // SciPy 1.17: ttest_ind(b, a, equal_var=False).
        let a = [19.8, 20.4, 19.6, 17.8, 18.5, 18.9, 18.3, 18.9, 19.5, 22.0];
        let b = [
            28.2, 26.6, 20.1, 23.3, 25.2, 22.1, 17.7, 27.6, 20.6, 13.7, 23.2, 17.5, 20.6, 18.0, 23.9, 21.6, 24.3, 20.4,
            24.0, 13.2,
        ];
        let estimate = welch(&a, &b).unwrap();
        let (low, high) = estimate.interval(0.95);
        assert!(near(estimate.mean / estimate.se, 2.219_24) && near(estimate.df, 24.496_22), "{estimate:?}");
        assert!(near(estimate.p(), 0.035_97) && near(low, 0.157_61) && near(high, 4.282_39), "{low} {high}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (df, t) in [(2.0, 4.302_65), (4.0, 2.776_45), (8.0, 2.306_00), (30.0, 2.042_27)] {
            let unit = Estimate { mean: 0.0, se: 1.0, df };
            assert!(near(unit.interval(0.95).1, t), "{df}: {:?}", unit.interval(0.95));
            assert!(near(Estimate { mean: t, ..unit }.p(), 0.05));
        }
    }

    #[test]
    fn pairing_takes_out_what_a_block_has_in_common() {
        let pairs = [(1.0, 1.1), (2.0, 2.2), (5.0, 5.1), (9.0, 9.2)];
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let (paired, welch) = (paired(&pairs).unwrap(), welch(&a, &b).unwrap());
        assert!(near(paired.mean, 0.15) && near(welch.mean, 0.15));
        assert!(paired.p() < 0.02 && welch.p() > 0.9);
    }

    #[test]
    fn values_without_spread_have_an_interval_without_width() {
        let same = welch(&[1.0, 1.0, 1.0], &[1.0, 1.0]).unwrap();
        assert_eq!((same.interval(0.95), same.p(), same.detectable(0.95, 0.8)), ((0.0, 0.0), 1.0, 0.0));
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]).unwrap().p(), 0.0);
        assert_eq!((mean(&[1.0]), welch(&[1.0], &[1.0, 2.0])), (None, None));
    }

    #[test]
    fn groups_count_alike_whatever_their_size() {
        assert_eq!(group_means(&[(2, 8.0), (1, 1.0), (1, 3.0), (1, 2.0)]), [2.0, 8.0]);
    }
}
