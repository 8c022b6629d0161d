//! How late this process is: a generator that lags measures itself, and has to say so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::Clock;

/// Between two looks.
const BEAT: Duration = Duration::from_millis(10);
/// More is taken for this much.
const MOST: Duration = Duration::from_secs(600);
/// What a timer of tokio may be late by design.
const GRANULARITY: Duration = Duration::from_millis(1);

/// Looks all the time, until it is dropped, at how late a timer of this runtime fires, and at how long its event loop takes
/// for one turn: the time for which an event that has come may lie before it is noted.
pub(super) struct Lag {
    beats: Arc<Mutex<Histogram<u64>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Lag {
    pub(super) fn watch(clock: Clock) -> Lag {
        let beats = Histogram::new_with_bounds(1, MOST.as_micros() as u64, 3).expect("the bounds are in order");
        let beats = Arc::new(Mutex::new(beats));
        let noted = Arc::clone(&beats);
        let task = tokio::spawn(async move {
            loop {
                let due = clock.now() + BEAT;
                tokio::time::sleep(BEAT).await;
                let late = clock.now().since(due).saturating_sub(GRANULARITY);
                let turn = clock.now();
                tokio::task::yield_now().await;
                let worse = late.max(clock.now().since(turn));
                let mut beats = noted.lock().unwrap_or_else(PoisonError::into_inner);
                beats.saturating_record(u64::try_from(worse.as_micros()).unwrap_or(u64::MAX));
            }
        });
        Lag { beats, task }
    }

    /// The worse of both, at the 99th percentile.
    pub(super) fn p99(&self) -> Duration {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(beats.value_at_quantile(0.99))
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the runtime is really kept from its work")]
    async fn a_loop_that_is_kept_busy_is_seen() {
        let clock = Clock::system();
        let lag = Lag::watch(clock.clone());
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(12)).await;
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(40) {
                std::hint::spin_loop();
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(lag.p99() > Duration::from_millis(10), "{:?}", lag.p99());
    }
}
