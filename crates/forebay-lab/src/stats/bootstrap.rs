//! The bootstrap: what a figure would have been, had the same things been drawn again with replacement. It knows nothing of a
//! spread between runs.

/// Values, each of one of the things that are drawn, sorted once and then weighed by how often each thing was drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owned(Vec<(f64, u32)>);

/// More values than these are thinned: the quantiles move by less than their own error.
const MOST: usize = 10_000;

impl FromIterator<(u32, f64)> for Owned {
    /// From pairs of a thing and a value of it.
    fn from_iter<I: IntoIterator<Item = (u32, f64)>>(values: I) -> Owned {
        let mut values: Vec<(f64, u32)> = values.into_iter().map(|(owner, value)| (value, owner)).collect();
        // Once, and then weighed in each of a thousand draws: to sort anew would be most of the time of a report.
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        // Evenly in their order, from the middle of a step on, so that the quantiles stay where they are.
        let step = values.len().div_ceil(MOST).max(1);
        Owned(values.into_iter().skip(step / 2).step_by(step).collect())
    }
}

impl Owned {
    /// The value below which this share lies, between two in proportion, as of the values repeated as often as `drawn` says;
    /// none if nothing of it was drawn.
    #[must_use]
    pub fn quantile(&self, share: f64, drawn: &[u32]) -> Option<f64> {
        let times = |owner: u32| u64::from(drawn.get(owner as usize).copied().unwrap_or(0));
        let total: u64 = self.0.iter().map(|(_, owner)| times(*owner)).sum();
        // The rule of all percentiles here (numpy's), so that the figure and its interval are of one definition.
        let place = share.clamp(0.0, 1.0) * total.checked_sub(1)? as f64;
        let (floor, ceil) = (place.floor() as u64, place.ceil() as u64);
        let (mut passed, mut below) = (0, None);
        for (value, owner) in &self.0 {
            passed += times(*owner);
            // The two neighbours of a place may lie far apart in the list, with values that were not drawn between them.
            if below.is_none() && passed > floor {
                below = Some(*value);
            }
            if passed > ceil {
                return below.map(|below| below + (value - below) * place.fract());
            }
        }
        below
    }
}

/// Counts how often each of `count` things comes up in as many draws with replacement.
pub fn draw(count: usize, rng: &mut fastrand::Rng) -> Vec<u32> {
    let mut times = vec![0; count];
    for _ in 0..count {
        times[rng.usize(..count)] += 1;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_that_of_the_repeated_values() {
        let owned: Owned = [(0, 1.0), (1, 2.0), (2, 4.0)].into_iter().collect();
        assert_eq!(owned.quantile(0.5, &[1, 1, 1]), Some(2.0));
        assert_eq!(owned.quantile(0.5, &[2, 0, 2]), Some(2.5), "of 1, 1, 4, 4");
        assert_eq!((owned.quantile(0.0, &[0, 3, 1]), owned.quantile(1.0, &[0, 3, 1])), (Some(2.0), Some(4.0)));
        assert_eq!(owned.quantile(0.5, &[0, 0, 0]), None);
    }

    #[test]
    fn as_many_are_drawn_as_there_are() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(draw(100, &mut rng).iter().sum::<u32>(), 100);
        assert!(draw(0, &mut rng).is_empty());
    }

    #[test]
    fn many_values_are_thinned_and_keep_their_quantiles() {
        let owned: Owned = (0..1_000_000).map(|value| (value % 7, f64::from(value))).collect();
        assert!(owned.0.len() <= MOST);
        let median = owned.quantile(0.5, &[1; 7]).unwrap();
        assert!((median / 500_000.0 - 1.0).abs() < 1e-3, "{median}");
    }
}
