//! The difference between two arms so far, with an interval by session: what the live page says of running traffic. It describes and does
//! not judge; `forebay compare` does.
//!
//! Requests of one session are alike, so sessions and not requests are the units. Each falls by a hash into one of [`GROUPS`] groups,
//! which bounds the memory. The mean of an arm is a ratio of sums over groups, and its variance that of the delete-one-group jackknife
//! (Wolter, *Introduction to Variance Estimation*, 2nd ed. 2007, chapter 4), which one busy session cannot mislead.
//!
//! A page is looked at again and again, so an interval for one look would show false differences in the end. This one holds at all
//! looks together: the two-sided normal mixture boundary of Robbins (*Annals of Mathematical Statistics* 41, 1970), as in Howard et al.
//! (*Annals of Statistics* 49, 2021, equation 14), over the information of the estimate. Few groups widen it as Student's t does
//! (Abramowitz and Stegun, 26.7.5). Values are logarithms, so that a difference is a ratio of geometric means.
//!
//! Hot path: [`Sessions::add`] is two adds.

/// Groups that sessions fall into, by arm.
pub const GROUPS: usize = 64;
/// Groups of each arm that must have a request before anything is said: the variance of fewer is not known well.
const ENOUGH: usize = 12;
/// Chance that a difference is shown, at any look, between arms that are alike.
const ALPHA: f64 = 0.05;
/// Information (1 over the variance) that sets where the boundary is tightest: at a standard error of 1.7 %, where 5 % begin to show.
const MIXTURE: f64 = 450.0;

/// The sums of one group of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Group {
    count: f64,
    sum: f64,
}

/// The times of one arm, summed by groups of sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct Sessions([Group; GROUPS]);

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions([Group::default(); GROUPS])
    }
}

/// The ratio of two arms, with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrast {
    /// The estimate: geometric mean of the first over that of the second.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The mean of one arm's values, its variance and the groups that it rests on.
struct Mean {
    value: f64,
    variance: f64,
    groups: f64,
}

impl Sessions {
    /// Adds the time of one request of the session with this hash. Times that are not positive are left out.
    pub fn add(&mut self, session: u64, seconds: f64) {
        // A zero has no logarithm, and no token takes no time: such a value is a fault of a clock.
        if seconds > 0.0 && seconds.is_finite() {
            let group = &mut self.0[(session % GROUPS as u64) as usize];
            group.count += 1.0;
            group.sum += seconds.ln();
        }
    }

    /// Returns the ratio of these times to those of the other arm, among `arms` that are all compared with one; none while too few
    /// sessions have been seen to tell.
    #[must_use]
    pub fn over(&self, other: &Sessions, arms: usize) -> Option<Contrast> {
        let (a, b) = (self.mean()?, other.mean()?);
        let variance = a.variance + b.variance;
        // Times that are all the same leave no variance, and no interval either.
        if variance <= 0.0 {
            return None;
        }
        // Welch and Satterthwaite: the arm with fewer groups, or with more spread, decides how well the variance is known.
        let freedom = variance * variance
            / (a.variance * a.variance / (a.groups - 1.0) + b.variance * b.variance / (b.groups - 1.0));
        // Bonferroni: with three arms there are two chances of a false difference.
        let alpha = ALPHA / (arms.max(2) - 1) as f64;
        let half = variance.sqrt() * student(boundary(1.0 / variance, alpha), freedom);
        let difference = a.value - b.value;
        Some(Contrast { value: difference.exp(), low: (difference - half).exp(), high: (difference + half).exp() })
    }

    fn mean(&self) -> Option<Mean> {
        let used: Vec<&Group> = self.0.iter().filter(|group| group.count > 0.0).collect();
        if used.len() < ENOUGH {
            return None;
        }
        let count: f64 = used.iter().map(|group| group.count).sum();
        let value = used.iter().map(|group| group.sum).sum::<f64>() / count;
        let groups = used.len() as f64;
        // A group that has nearly all requests pulls the mean to itself and would look as if it had no spread. Divided by the share of
        // the others, its distance is that from the mean without it.
        let distance = |group: &&Group| (group.sum - value * group.count) / (1.0 - group.count / count);
        let squares: f64 = used.iter().map(|group| distance(group).powi(2)).sum();
        Some(Mean { value, variance: (groups - 1.0) / groups * squares / (count * count), groups })
    }
}

impl Contrast {
    /// Returns whether the interval leaves out that both are alike.
    #[must_use]
    pub fn shows_a_difference(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// The half-width of the interval in standard errors, at this information.
fn boundary(information: f64, alpha: f64) -> f64 {
    let more = (information + MIXTURE) / MIXTURE;
    ((1.0 + MIXTURE / information) * (more / (alpha * alpha)).ln()).sqrt()
}

/// The quantile of Student's t that stands where `z` stands among normal values.
fn student(z: f64, freedom: f64) -> f64 {
    let cube = z.powi(3);
    z + (cube + z) / (4.0 * freedom) + (5.0 * z.powi(5) + 16.0 * cube + 3.0 * z) / (96.0 * freedom * freedom)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions with an effect of their own and requests that vary about it, in log seconds.
    struct Traffic {
        rng: fastrand::Rng,
        between: f64,
        within: f64,
        /// Mean number of a session's requests.
        requests: f64,
    }

    impl Traffic {
        fn normal(&mut self) -> f64 {
            let (a, b) = (self.rng.f64().max(1e-12), self.rng.f64());
            (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
        }

        /// Plays `sessions` sessions, of which each arm gets half; the second is slower by `factor`. Looks after each session.
        fn play(&mut self, sessions: usize, factor: f64, mut look: impl FnMut(usize, &[Sessions; 2]) -> bool) {
            let mut arms = [Sessions::default(), Sessions::default()];
            for session in 0..sessions {
                let (hash, arm) = (self.rng.u64(..), usize::from(self.rng.bool()));
                let own = 0.02_f64.ln() + self.between * self.normal();
                loop {
                    let slower = if arm == 1 { factor.ln() } else { 0.0 };
                    let time = own + slower + self.within * self.normal();
                    arms[arm].add(hash, time.exp());
                    if self.rng.f64() < 1.0 / self.requests {
                        break;
                    }
                }
                if look(session, &arms) {
                    return;
                }
            }
        }
    }

    fn traffic(seed: u64, between: f64, within: f64, requests: f64) -> Traffic {
        Traffic { rng: fastrand::Rng::with_seed(seed), between, within, requests }
    }

    #[test]
    fn arms_that_are_alike_show_a_difference_in_at_most_six_of_a_hundred_watches() {
        // From sessions of one request to long ones, and from steady to wild times. Each is watched at every session.
        for (between, within, requests) in [(0.02, 0.05, 1.0), (0.2, 0.3, 5.0), (0.6, 0.2, 20.0), (0.05, 1.0, 3.0)] {
            let (trials, mut false_ones) = (500, 0);
            for seed in 0..trials {
                let mut shown = false;
                traffic(seed, between, within, requests).play(1_000, 1.0, |_, [a, b]| {
                    shown = b.over(a, 2).is_some_and(|ratio| ratio.shows_a_difference());
                    shown
                });
                false_ones += u32::from(shown);
            }
            let rate = f64::from(false_ones) / trials as f64;
            println!(
                "between {between}, within {within}, {requests} requests: false in {:.1} % of watches",
                100.0 * rate
            );
            assert!(rate <= 0.06, "{rate}");
        }
    }

    #[test]
    fn a_difference_of_eight_percent_shows_within_some_hundred_sessions_and_covers_the_truth() {
        let (mut shown, mut covered) = (0, 0);
        for seed in 0..200 {
            let (mut first, mut last) = (None, None);
            traffic(seed, 0.1, 0.2, 5.0).play(600, 1.08, |session, [a, b]| {
                last = b.over(a, 2);
                if first.is_none() && last.is_some_and(|ratio| ratio.shows_a_difference()) {
                    first = Some(session);
                }
                false
            });
            let last = last.unwrap();
            shown += u32::from(first.is_some());
            covered += u32::from(last.low <= 1.08 && 1.08 <= last.high);
        }
        println!("shown in {shown} of 200, covered in {covered}");
        assert!(shown >= 190 && covered >= 190);
    }

    #[test]
    fn few_sessions_and_times_without_spread_say_nothing() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        assert_eq!(a.over(&b, 2), None);
        for session in 0..ENOUGH as u64 - 1 {
            a.add(session, 0.02 + session as f64 * 1e-3);
            b.add(session, 0.2 + session as f64 * 1e-3);
        }
        assert_eq!(a.over(&b, 2), None, "eleven groups each");
        let (mut same, mut too) = (Sessions::default(), Sessions::default());
        for session in 0..1_000 {
            same.add(session, 1.0);
            too.add(session, 1.0);
            same.add(session, 0.0);
            too.add(session, f64::NAN);
        }
        assert_eq!(same.over(&too, 2), None);
    }

    #[test]
    fn one_busy_session_is_one_session() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        for session in 0..40 {
            a.add(session, 0.020 + (session % 7) as f64 * 1e-4);
            b.add(session, 0.020 + (session % 5) as f64 * 1e-4);
        }
        // Ten thousand slow requests of one client are one client.
        (0..10_000).for_each(|_| b.add(3, 0.030));
        assert!(!b.over(&a, 2).unwrap().shows_a_difference());
    }

    #[test]
    fn more_arms_widen_the_interval() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        for session in 0..500_u64 {
            a.add(session, 0.02 * (1.0 + (session % 11) as f64 / 50.0));
            b.add(session, 0.02 * (1.0 + (session % 13) as f64 / 50.0));
        }
        let (two, four) = (b.over(&a, 2).unwrap(), b.over(&a, 4).unwrap());
        assert!(four.low < two.low && two.high < four.high && (four.value - two.value).abs() < 1e-12);
    }
}
