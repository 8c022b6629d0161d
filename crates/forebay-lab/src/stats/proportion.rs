//! Two shares of counts, such as of requests that missed a limit. Pure.

use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// Returns the standard error of the logarithm of the ratio of two shares, each so many of so many, by their counts alone. Half a count
/// is added to either share, so that a share of nothing has one.
///
/// It is the smaller of two. The delta method (Gart 1966) says little of a share of nothing, whatever the other is. So where an exact
/// test of equal shares, given the sum of the counts, is surer, the error is what makes a normal test as sure (the test-based limits of
/// Miettinen 1976).
pub fn log_ratio_error(a: (u64, u64), b: (u64, u64)) -> f64 {
    // Half a count is Haldane's and Anscombe's correction, which takes most of the bias out of a logarithm of small counts.
    let share = |(count, all): (u64, u64)| (count as f64 + 0.5) / (all as f64 + 1.0);
    let variance = |(count, all): (u64, u64)| 1.0 / (count as f64 + 0.5) - 1.0 / (all as f64 + 1.0);
    let delta = (variance(a) + variance(b)).sqrt();
    let log_ratio = (share(b) / share(a)).ln().abs();
    match normal_of(equal_shares(a, b)) {
        // Near no difference both are near nothing, and their quotient tells nothing.
        Some(deviate) if deviate > 1.0 => delta.min(log_ratio / deviate),
        _ => delta,
    }
}

/// Returns the p of equal shares, two-sided: the chance of counts as unequal as these, or more, were each of them as likely on one side
/// as that side is large.
fn equal_shares(a: (u64, u64), b: (u64, u64)) -> Option<f64> {
    let sum = a.0 + b.0;
    let chances = Binomial::new(b.1 as f64 / (a.1 + b.1).max(1) as f64, sum).ok()?;
    let at_most = chances.cdf(b.0);
    // `sf` is the chance of more than, and the counts as seen belong to either tail.
    let at_least = b.0.checked_sub(1).map_or(1.0, |below| chances.sf(below));
    Some((2.0 * at_most.min(at_least)).min(1.0))
}

/// Returns the normal deviate whose two-sided p is this.
fn normal_of(p: Option<f64>) -> Option<f64> {
    // Below the least number that has a logarithm there is nothing left to tell apart.
    p.map(|p| -Normal::standard().inverse_cdf(p.max(1e-300) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_misses_tell_little_and_many_beside_none_tell_much() {
        // By R: binom.test(27, 27)$p.value is 1.49e-8, a deviate of 5.66.
        let none = log_ratio_error((0, 2112), (27, 2112));
        assert!((equal_shares((0, 2112), (27, 2112)).unwrap() / 1.49e-8 - 1.0).abs() < 0.01);
        assert!((none - 55.0_f64.ln() / 5.66).abs() < 0.01, "{none}");
        assert_eq!(none, log_ratio_error((27, 2112), (0, 2112)));
        assert!(log_ratio_error((0, 500), (1, 500)) > 1.0);
        assert!(log_ratio_error((0, 500), (0, 500)) > 1.9);
        assert!(log_ratio_error((0, 3180), (3037, 3180)) < 0.3);
    }

    #[test]
    fn large_counts_have_the_error_of_the_delta_method() {
        let error = log_ratio_error((300, 10_000), (360, 10_000));
        assert!((error - (1.0_f64 / 300.5 + 1.0 / 360.5 - 2.0 / 10_001.0).sqrt()).abs() < 0.002, "{error}");
    }
}
