//! Requests that are under way and no longer watched: a picker leaves an answer at its first token. The next scrape counts them
//! among others' load. Until then they are counted here, or simultaneous requests would all find the same backend idle.
//!
//! Hot path: two additions.

use std::time::Duration;

use forebay_core::clock::Time;

/// The requests that departed from one backend's count since its last scrape.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Departed {
    sequences: u32,
    kv_tokens: u64,
    last: Time,
}

impl Departed {
    /// An attempt is no longer watched. What is older than `stale_after` is forgotten: no scrape came to count it.
    pub(crate) fn add(&mut self, (sequences, kv_tokens): (u32, u64), now: Time, stale_after: Duration) {
        if self.is_stale(now, stale_after) {
            *self = Departed::default();
        }
        self.sequences = self.sequences.saturating_add(sequences);
        self.kv_tokens = self.kv_tokens.saturating_add(kv_tokens);
        self.last = now;
    }

    /// Returns the sequences and their tokens in the KV cache, as far as nothing newer has counted them.
    pub(crate) fn counted(&self, now: Time, stale_after: Duration) -> (u32, u64) {
        if self.is_stale(now, stale_after) { (0, 0) } else { (self.sequences, self.kv_tokens) }
    }

    fn is_stale(&self, now: Time, stale_after: Duration) -> bool {
        now.since(self.last) > stale_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    #[test]
    fn what_departed_counts_until_it_is_stale() {
        let (mut departed, stale) = (Departed::default(), Duration::from_secs(1));
        departed.add((1, 100), at(0), stale);
        departed.add((2, 50), at(500), stale);
        assert_eq!(departed.counted(at(1500), stale), (3, 150));
        assert_eq!(departed.counted(at(1501), stale), (0, 0));
        departed.add((1, 10), at(2000), stale);
        assert_eq!(departed.counted(at(2000), stale), (1, 10));
    }
}
