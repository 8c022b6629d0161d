//! Several tests at once.

/// Holm's step-down adjustment (Holm 1979): those below α are rejected with a chance of at most α that any was wrong, whatever
/// depends on whatever. In the order given.
#[must_use]
pub fn holm(ps: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..ps.len()).collect();
    order.sort_by(|a, b| ps[*a].total_cmp(&ps[*b]));
    let mut adjusted = vec![0.0; ps.len()];
    let mut least = 0.0_f64;
    for (rank, index) in order.into_iter().enumerate() {
        // Never below a smaller p's: else the order of the adjusted would not be that of the tests.
        least = least.max(ps[index] * (ps.len() - rank) as f64).min(1.0);
        adjusted[index] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_adjustment_is_holm_s() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (adjusted, expected) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((adjusted - expected).abs() < 1e-12, "{adjusted} {expected}");
        }
        assert_eq!((holm(&[0.2]), holm(&[]), holm(&[0.9, 0.8])), (vec![0.2], vec![], vec![1.0, 1.0]));
    }
}
