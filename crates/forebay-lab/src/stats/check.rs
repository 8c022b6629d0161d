//! Tests that a comparison was what it was meant to be.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Tests whether counts fit shares: Pearson's chi-squared. Gives the counts expected, and the chance of counts at least as uneven;
/// none with fewer than two shares, one that is not above 0, or nothing counted.
#[must_use]
pub fn sample_ratio(counts: &[u64], shares: &[f64]) -> Option<(Vec<f64>, f64)> {
    let total = counts.iter().sum::<u64>() as f64;
    let whole: f64 = shares.iter().sum();
    if counts.len() < 2 || counts.len() != shares.len() || total == 0.0 || shares.iter().any(|share| *share <= 0.0) {
        return None;
    }
    let expected: Vec<f64> = shares.iter().map(|share| total * share / whole).collect();
    let squares = counts.iter().zip(&expected).map(|(count, expected)| (*count as f64 - expected).powi(2) / expected);
    // The total is given, so that one count follows from the others.
    let chi = ChiSquared::new((counts.len() - 1) as f64).ok()?;
    let p = chi.sf(squares.sum());
    Some((expected, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_set_against_shares() {
        let (expected, p) = sample_ratio(&[520, 480], &[50.0, 50.0]).unwrap();
        assert_eq!(expected, [500.0, 500.0]);
        assert!((p - 0.205_903).abs() < 1e-4, "chi-squared 1.6 with one degree of freedom: {p}");
        assert!(sample_ratio(&[300, 100], &[3.0, 1.0]).unwrap().1 > 0.999);
        assert!(sample_ratio(&[2650, 2350], &[1.0, 1.0]).unwrap().1 < 0.001);
        assert!(sample_ratio(&[5], &[1.0]).is_none() && sample_ratio(&[0, 0], &[1.0, 1.0]).is_none());
        assert!(sample_ratio(&[1, 1], &[1.0, 0.0]).is_none());
    }
}
