//! The sentence that a pool on the live page leads with. It describes what was seen so far and gives no verdict: a page that somebody
//! watches sees chance at work, and says nothing of the hours that it did not see. Pure.

use forebay_core::so_far::{Contrast, Sessions};

/// An arm as it is compared: its name, its times by session, and the requests that were assigned to it.
pub(super) struct Compared<'a> {
    pub(super) name: &'a str,
    pub(super) tpot: Sessions,
    pub(super) requests: u64,
}

/// Returns the sentence of a pool with these arms and so many backends, of which so many take requests.
pub(super) fn of(arms: &[Compared<'_>], usable: usize, backends: usize) -> String {
    let [first, others @ ..] = arms else { return String::new() };
    if others.is_empty() {
        return match (usable, backends) {
            (0, _) => "No backend takes requests.".to_owned(),
            (1, 1) => "The one backend takes requests.".to_owned(),
            (usable, all) if usable == all => format!("All {all} backends take requests."),
            (usable, all) => format!("{usable} of {all} backends take requests."),
        };
    }
    if arms.iter().all(|arm| arm.requests == 0) {
        return "No request so far, so nothing to tell between the arms.".to_owned();
    }
    let said = others.iter().map(|other| of_pair(first, other, arms.len()));
    format!("So far {}.", said.collect::<Vec<_>>().join("; "))
}

fn of_pair(first: &Compared<'_>, other: &Compared<'_>, arms: usize) -> String {
    let nothing = |why: &str| format!("no difference shown between {} and {} ({why})", first.name, other.name);
    let Some(ratio) = other.tpot.over(&first.tpot, arms) else {
        return nothing("too few sessions yet");
    };
    if !ratio.shows_a_difference() {
        let Contrast { low, high, .. } = ratio;
        let (low, high) = (percent(low - 1.0), percent(high - 1.0));
        return nothing(&format!("time per token of {} is {low} to {high} % from that of {}", other.name, first.name));
    }
    // The arm with the shorter times streams faster by the ratio of the other's times to its own.
    let (fast, slow, ratio) = if ratio.value > 1.0 { (first, other, ratio) } else { (other, first, inverse(ratio)) };
    format!(
        "{} streams {} % faster per token than {} ({} to {} %, by session)",
        fast.name,
        percent(ratio.value - 1.0).trim_start_matches('+'),
        slow.name,
        percent(ratio.low - 1.0).trim_start_matches('+'),
        percent(ratio.high - 1.0).trim_start_matches('+'),
    )
}

fn inverse(ratio: Contrast) -> Contrast {
    Contrast { value: ratio.value.recip(), low: ratio.high.recip(), high: ratio.low.recip() }
}

/// Returns a share in percent with its sign; whole, and with one digit where it is small.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent.abs() < 10.0 { format!("{percent:+.1}") } else { format!("{percent:+.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times about this mean, in seconds, of so many sessions.
    fn times(sessions: u64, mean: f64) -> Sessions {
        let mut times = Sessions::default();
        for session in 0..sessions {
            times.add(session.wrapping_mul(0x9E37_79B9_7F4A_7C15), mean * (1.0 + (session % 9) as f64 / 100.0));
        }
        times
    }

    fn arm(name: &str, tpot: Sessions) -> Compared<'_> {
        Compared { name, tpot, requests: 1 }
    }

    #[test]
    fn a_pool_of_one_arm_says_who_takes_requests() {
        let one = [arm("default", Sessions::default())];
        assert_eq!(of(&one, 3, 3), "All 3 backends take requests.");
        assert_eq!(of(&one, 1, 3), "1 of 3 backends take requests.");
        assert_eq!(of(&one, 1, 1), "The one backend takes requests.");
        assert_eq!(of(&one, 0, 2), "No backend takes requests.");
    }

    #[test]
    fn a_difference_is_described_with_its_interval_and_who_is_faster_comes_first() {
        for (tp2, tp1x2) in [(0.0100, 0.0108), (0.0108, 0.0100)] {
            let said = of(&[arm("tp2", times(900, tp2)), arm("tp1x2", times(900, tp1x2))], 3, 3);
            let (fast, slow) = if tp2 < tp1x2 { ("tp2", "tp1x2") } else { ("tp1x2", "tp2") };
            assert!(said.starts_with(&format!("So far {fast} streams 8.0 % faster per token than {slow} (")), "{said}");
            assert!(said.ends_with(" %, by session)."), "{said}");
        }
    }

    #[test]
    fn without_a_difference_none_is_claimed() {
        let said = of(&[arm("a", times(900, 0.01)), arm("b", times(900, 0.01001))], 2, 2);
        assert!(said.starts_with("So far no difference shown between a and b (time per token of b is -"), "{said}");
        let said = of(&[arm("a", times(5, 0.01)), arm("b", times(900, 0.02))], 2, 2);
        assert_eq!(said, "So far no difference shown between a and b (too few sessions yet).");
        let none = || Compared { requests: 0, ..arm("a", Sessions::default()) };
        assert_eq!(of(&[none(), none()], 2, 2), "No request so far, so nothing to tell between the arms.");
    }

    #[test]
    fn no_sentence_judges() {
        for factor in [0.5, 0.9, 1.0, 1.1, 3.0] {
            let said =
                of(&[arm("a", times(900, 0.01)), arm("b", times(900, 0.01 * factor)), arm("c", times(3, 1.0))], 2, 2);
            assert!(!["better", "worse", "best", "wins", "winner"].iter().any(|word| said.contains(word)), "{said}");
            assert_eq!(said.matches(" and c ").count(), 1, "{said}");
        }
    }
}
