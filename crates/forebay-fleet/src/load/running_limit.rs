//! The most sequences that an engine runs at once (vLLM's `--max-num-seqs`). vLLM does not report it, so it is learned from
//! scrapes: the most that were ever running, once requests have waited beside that many again and again.

use forebay_core::sample::Sample;

/// Scrapes with that many running and others waiting, before the figure is believed. A prompt that fills the engine's step also
/// makes others wait, but it does so beside any number of running sequences.
const ENOUGH: u8 = 3;

/// Share of the KV cache from which requests may wait for its room instead.
const KV_MAY_BE_FULL: f64 = 0.9;

/// Evidence of the scrapes since the engine's start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RunningLimit {
    most: u32,
    /// Scrapes with that many running while others waited.
    seen: u8,
}

impl RunningLimit {
    /// Takes a scrape into account.
    pub(super) fn observe(&mut self, sample: &Sample) {
        let (Some(running), Some(waiting)) = (sample.running, sample.waiting) else { return };
        // The reader of metrics keeps them finite and not negative; the conversion saturates.
        let running = running as u32;
        // It ran more than was ever seen, so what was seen was no limit.
        if running > self.most {
            *self = RunningLimit { most: running, seen: 0 };
        }
        let kv_may_be_full = sample.kv_usage.is_some_and(|usage| usage >= KV_MAY_BE_FULL);
        if running == self.most && running > 0 && waiting >= 1.0 && !kv_may_be_full {
            self.seen = self.seen.saturating_add(1);
        }
    }

    /// The limit; none while it is not known.
    pub(super) fn known(self) -> Option<u32> {
        (self.seen >= ENOUGH).then_some(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(scrapes: &[(f64, f64, f64)]) -> Option<u32> {
        let mut limit = RunningLimit::default();
        for (running, waiting, kv_usage) in scrapes {
            let (running, waiting, kv_usage) = (Some(*running), Some(*waiting), Some(*kv_usage));
            limit.observe(&Sample { running, waiting, kv_usage, ..Sample::default() });
        }
        limit.known()
    }

    #[test]
    fn a_limit_is_what_others_waited_beside_three_times() {
        assert_eq!(after(&[(20.0, 0.0, 0.1), (32.0, 1.0, 0.2), (31.0, 2.0, 0.2), (32.0, 5.0, 0.2)]), None);
        assert_eq!(after(&[(32.0, 1.0, 0.2), (32.0, 2.0, 0.2), (30.0, 0.0, 0.2), (32.0, 5.0, 0.2)]), Some(32));
    }

    #[test]
    fn more_than_the_limit_refutes_it() {
        let four = [(4.0, 1.0, 0.1); 5];
        assert_eq!(after(&four), Some(4));
        assert_eq!(after(&[&four[..], &[(5.0, 0.0, 0.1)]].concat()), None);
    }

    #[test]
    fn what_waits_for_kv_room_or_is_alone_shows_no_limit() {
        assert_eq!(after(&[(32.0, 9.0, 0.97); 9]), None);
        assert_eq!(after(&[(32.0, 0.0, 0.2); 9]), None);
        assert_eq!(after(&[(0.0, 3.0, 0.0); 9]), None, "an engine that stands still");
        let mut unknown = RunningLimit::default();
        (0..9).for_each(|_| unknown.observe(&Sample { running: Some(3.0), ..Sample::default() }));
        assert_eq!(unknown.known(), None);
    }
}
