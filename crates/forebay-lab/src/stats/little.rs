//! Little's law.

/// Returns the mean number inside: arrivals a second × mean seconds inside (Little 1961). It holds for any order of service and any
/// distribution, over a time that begins and ends empty.
#[must_use]
pub fn inside(per_second: f64, mean_seconds: f64) -> f64 {
    per_second * mean_seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_law_gives_the_concurrency_of_a_published_table() {
        // 3344.91 output tokens a second at a median of 48.38 ms for each.
        assert_eq!(inside(3344.91, 0.048_38).round(), 162.0);
    }
}
