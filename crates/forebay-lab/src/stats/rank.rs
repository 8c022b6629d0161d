//! Exact rank tests of a shift, and the intervals that they leave: Wilcoxon's for pairs, that of Mann and Whitney for two groups.
//! One odd value in a few moves them little (Hodges and Lehmann 1963; Hollander and Wolfe, chapters 3 and 4).

use statrs::distribution::{ContinuousCDF, Normal};

/// From so many values a side on the null distribution is taken for normal.
const EXACT: usize = 25;

/// The shifts that pairs of values tell, and how probable each number of them below 0 is without a shift.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    /// All of them, sorted.
    shifts: Vec<f64>,
    /// The chance of at most so many below 0.
    chance: Vec<f64>,
}

impl Ranks {
    /// The shifts of `b` over `a`: every difference of one of each.
    #[must_use]
    pub fn of_groups(a: &[f64], b: &[f64]) -> Ranks {
        let shifts = a.iter().flat_map(|a| b.iter().map(move |b| b - a)).collect();
        let (n, m) = (a.len(), b.len());
        let chance = if n.max(m) > EXACT {
            // Mean and variance of the count of ordered pairs under no shift (Mann and Whitney 1947).
            let (count, values) = ((n * m) as f64, (n + m + 1) as f64);
            normal(n * m, count / 2.0, (count * values / 12.0).sqrt())
        } else {
            cumulative(of_two_groups(n, m))
        };
        Ranks::new(shifts, chance)
    }

    /// The shifts of differences of pairs: the mean of every two of them, and each by itself.
    #[must_use]
    pub fn of_differences(differences: &[f64]) -> Ranks {
        let count = differences.len();
        let means = (0..count).flat_map(|i| (0..=i).map(move |j| (differences[i] + differences[j]) / 2.0));
        let whole = count * (count + 1) / 2;
        let chance = if count > 2 * EXACT {
            // Mean and variance of Wilcoxon's sum of positive ranks, n (n + 1) (2n + 1) / 24.
            let values = whole as f64;
            normal(whole, values / 2.0, (values * (2 * count + 1) as f64 / 12.0).sqrt())
        } else {
            cumulative(of_signs(count))
        };
        Ranks::new(means.collect(), chance)
    }

    fn new(mut shifts: Vec<f64>, chance: Vec<f64>) -> Ranks {
        // Sorted once: the estimate and both ends of the interval are places in this order.
        shifts.sort_by(f64::total_cmp);
        Ranks { shifts, chance }
    }

    /// The median of the shifts.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        let count = self.shifts.len();
        let middle = |place: usize| self.shifts.get(place).copied().unwrap_or(0.0);
        (middle(count.saturating_sub(1) / 2) + middle(count / 2)) / 2.0
    }

    /// The chance of shifts at least as one-sided, on either side, if there were none. A shift of 0 speaks against one.
    #[must_use]
    pub fn p(&self) -> f64 {
        // Ties count on both sides, which makes p larger. Figures that are equal to the last digit are no evidence of either.
        let below = self.shifts.iter().filter(|shift| **shift <= 0.0).count();
        let above = self.shifts.iter().filter(|shift| **shift >= 0.0).count();
        self.chance.get(below.min(above)).map_or(1.0, |chance| (2.0 * chance).min(1.0))
    }

    /// The shifts that the test does not reject at this level (0.95 for 95 %); none where so few values reject none at all.
    #[must_use]
    pub fn interval(&self, level: f64) -> Option<(f64, f64)> {
        // A thousandth of a thousandth: 1 - 0.95 is not 0.05.
        let rejected = self.chance.iter().take_while(|chance| 2.0 * **chance <= (1.0 - level) * (1.0 + 1e-6)).count();
        let last = self.shifts.len().checked_sub(1)?;
        (rejected > 0 && 2 * rejected <= last + 1)
            .then(|| (self.shifts[rejected - 1], self.shifts[last + 1 - rejected]))
    }
}

fn cumulative(counts: Vec<f64>) -> Vec<f64> {
    let whole: f64 = counts.iter().sum();
    counts
        .iter()
        .scan(0.0, |sum, count| {
            *sum += count;
            Some((*sum / whole).min(1.0))
        })
        .collect()
}

/// In how many ways two groups lie so that so many pairs are in order: the coefficients of a Gaussian binomial.
fn of_two_groups(n: usize, m: usize) -> Vec<f64> {
    let most = n * m;
    let mut ways = vec![0.0; most + 1];
    ways[0] = 1.0;
    for step in 1..=n {
        // times 1 - q^(m + step), over 1 - q^step
        // From above, so that each place is read before it is changed.
        for place in (m + step..=most).rev() {
            ways[place] -= ways[place - m - step];
        }
        for place in step..=most {
            ways[place] += ways[place - step];
        }
    }
    ways
}

/// In how many ways the signs of ranks 1 to n give each sum of the positive ones.
fn of_signs(n: usize) -> Vec<f64> {
    let most = n * (n + 1) / 2;
    let mut ways = vec![0.0; most + 1];
    ways[0] = 1.0;
    for rank in 1..=n {
        // From above, so that no rank counts twice.
        for place in (rank..=most).rev() {
            ways[place] += ways[place - rank];
        }
    }
    ways
}

fn normal(most: usize, mean: f64, deviation: f64) -> Vec<f64> {
    let unit = Normal::new(mean, deviation).expect("the deviation of a count is above 0");
    // Half a count more: the continuity correction of a count by a continuous distribution.
    (0..=most).map(|count| unit.cdf(count as f64 + 0.5)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 6] = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88];
    const B: [f64; 6] = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29];

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn p_values_are_those_of_scipy() {
        // SciPy 1.17: mannwhitneyu(A, B, method="exact"), wilcoxon(A, B, method="exact").
        assert!(near(Ranks::of_groups(&A, &B).p(), 0.240_259_74), "{}", Ranks::of_groups(&A, &B).p());
        let differences: Vec<f64> = A.iter().zip(B).map(|(a, b)| b - a).collect();
        assert!(near(Ranks::of_differences(&differences).p(), 0.062_5), "{}", Ranks::of_differences(&differences).p());
        assert!(near(Ranks::of_groups(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]).p(), 2.0 / 70.0));
        assert!(near(Ranks::of_differences(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).p(), 2.0 / 64.0));
    }

    #[test]
    fn the_interval_leaves_out_what_the_test_rejects() {
        let apart = Ranks::of_groups(&[1.0, 2.0, 3.0, 4.0], &[5.5, 6.0, 7.5, 8.0]);
        assert_eq!(apart.interval(1.0 - 2.0 / 70.0), Some((1.5, 7.0)), "the least and the greatest difference");
        assert_eq!(apart.interval(0.99), None, "so few reject nothing at 1 %");
        for shift in [-1.3, -0.4, 0.0, 0.3, 2.0] {
            let moved: Vec<f64> = B.iter().map(|value| value + shift).collect();
            let ranks = Ranks::of_groups(&A, &moved);
            let (low, high) = ranks.interval(0.95).unwrap();
            assert_eq!(ranks.p() <= 0.05, low > 0.0 || high < 0.0, "{shift}");
            assert!(low <= ranks.estimate() && ranks.estimate() <= high);
        }
    }

    #[test]
    fn many_values_have_nearly_the_chance_of_few() {
        let chance = |of: &[f64], at: usize| of[at];
        let exact = cumulative(of_two_groups(EXACT, EXACT));
        let (count, values) = ((EXACT * EXACT) as f64, (2 * EXACT + 1) as f64);
        let near = normal(EXACT * EXACT, count / 2.0, (count * values / 12.0).sqrt());
        assert!((chance(&exact, 210) - chance(&near, 210)).abs() < 5e-4);
        assert!((0.0..0.02).contains(&Ranks::of_groups(&[0.0; 30], &[1.0; 40]).p()));
        assert_eq!(Ranks::of_groups(&[1.0; 5], &[1.0; 5]).p(), 1.0);
    }
}
