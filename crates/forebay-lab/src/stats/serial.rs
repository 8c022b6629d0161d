//! The harm that values do which resemble the ones before them, where errors are computed as if none did. Pure.

use super::estimate::Estimate;

/// Correlations of neighbours that are tried: of a process whose next value keeps this much of the last.
const KEPT: [f64; 7] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
/// More values than these are not tried in pairs: their degrees of freedom stay as they are.
const MOST: usize = 128;

/// The harm at the correlation where it is worst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Harm {
    /// The factor by which the square of a standard error is too small on average; at least 1.
    pub inflation: f64,
    /// The degrees of freedom that the square of the error has then; infinite where it is not too small.
    pub df: f64,
    /// The factor by which both make the half of a 95 % interval too short; at least 1.
    pub wider: f64,
}

impl Harm {
    /// No harm at all.
    pub const NONE: Harm = Harm { inflation: 1.0, df: f64::INFINITY, wider: 1.0 };
}

/// Returns the harm to an estimate where values follow each other as a first-order autoregression, at the worst of its correlations
/// from 0 to 1.
///
/// `estimate` gets values in the order of time. Its mean must be linear in them, and the square of its error a quadratic form.
/// The harm follows from the order of the values alone: mean and variance of quadratic forms under correlated errors, as Box (1954,
/// "Some theorems on quadratic forms", part II) computes them for an analysis of variance. To estimate the correlation itself would
/// take many more values than an experiment has.
pub fn harm(count: usize, estimate: impl Fn(&[f64]) -> Option<Estimate>) -> Harm {
    let mut worst = Harm::NONE;
    for kept in KEPT {
        // How strongly runs really resemble their neighbours cannot be told from a dozen of them. So the worst of all is taken,
        // whatever the runs say.
        let Some(found) = harm_at(kept, count, &estimate) else { return worst };
        if found.inflation > 1.0 && found.wider >= worst.wider {
            worst = found;
        }
    }
    worst
}

fn harm_at(kept: f64, count: usize, estimate: &impl Fn(&[f64]) -> Option<Estimate>) -> Option<Harm> {
    // The process is a sum of independent shocks, each of which fades. So the estimate's variance, and what its squared error is on
    // average, are sums over shocks.
    let shock = |first: usize| -> Vec<f64> {
        // The first value has the whole variance of the process behind it, the later shocks what keeps that variance as it is.
        let size: f64 = if first == 0 { 1.0 } else { (1.0 - kept * kept).sqrt() };
        (0..count).map(|at| if at < first { 0.0 } else { size * kept.powi((at - first) as i32) }).collect()
    };
    let shocks: Vec<Vec<f64>> = (0..count).map(shock).collect();
    let found: Vec<Estimate> = shocks.iter().map(|values| estimate(values)).collect::<Option<_>>()?;
    let squares: Vec<f64> = found.iter().map(|one| one.se * one.se).collect();
    let (variance, expected) = (found.iter().map(|one| one.mean * one.mean).sum::<f64>(), squares.iter().sum::<f64>());
    if expected <= 0.0 {
        return None;
    }
    // What the mean really varies by over what its error says on average. Above 1 the error is too small.
    let inflation = variance / expected;
    let own = found.iter().map(|one| one.df).fold(1.0, f64::max);
    let half = |df: f64| Estimate { mean: 0.0, se: 1.0, df }.interval(0.95).1;
    // Few degrees of freedom do as much harm as an error that is too small.
    let with = |df: f64| Harm { inflation, df, wider: (inflation.sqrt() * half(df) / half(own)).max(1.0) };
    if inflation <= 1.0 || count > MOST {
        return Some(with(own));
    }
    // A quadratic form of two shocks at once tells how they act on it together.
    let mut spread: f64 = squares.iter().map(|square| square * square).sum();
    for (place, one) in shocks.iter().enumerate() {
        for (other, two) in shocks[..place].iter().enumerate() {
            let both: Vec<f64> = one.iter().zip(two).map(|(one, two)| one + two).collect();
            // Polarisation: a quadratic form of a sum, less that of each part, is twice the mixed term.
            let mixed = (estimate(&both)?.se.powi(2) - squares[place] - squares[other]) / 2.0;
            spread += 2.0 * mixed * mixed;
        }
    }
    Some(with((expected * expected / spread).max(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::estimate::{mean, paired};

    #[test]
    fn neighbours_that_resemble_each_other_widen_a_mean() {
        // Of very many values (1 + r) / (1 - r): without end where r nears 1.
        let plain = harm(12, mean);
        assert!(plain.inflation > 10.0 && plain.df < 8.0, "{plain:?}");
        let independent = harm_at(0.0, 12, &mean).unwrap();
        assert!((independent.inflation - 1.0).abs() < 1e-9, "{independent:?}");
        let nearly = harm_at(1e-6, 12, &mean).unwrap();
        assert!((nearly.df - 11.0).abs() < 1e-3, "{nearly:?}");
    }

    #[test]
    fn pairs_in_turned_order_are_widened_by_a_fifth_and_alternating_pairs_not_at_all() {
        let pairs = |turned: bool| {
            harm(40, move |values| {
                let pair = |(place, two): (usize, &[f64])| {
                    if turned && place % 2 == 1 { (two[1], two[0]) } else { (two[0], two[1]) }
                };
                paired(&values.chunks(2).enumerate().map(pair).collect::<Vec<_>>())
            })
        };
        // Of very many pairs: the spectra of both at a quarter of a turn, (1 + r) / (1 + r²), at most (1 + √2) / 2.
        assert!((pairs(true).inflation - 1.207).abs() < 0.02 && pairs(true).df > 15.0, "{:?}", pairs(true));
        assert_eq!(pairs(false), Harm::NONE);
    }

    #[test]
    fn an_estimate_that_cannot_be_had_changes_nothing() {
        assert_eq!(harm(1, mean), Harm::NONE);
    }
}
