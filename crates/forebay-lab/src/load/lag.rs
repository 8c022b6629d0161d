//! How late this process notes what has come: a generator that lags measures itself, and has to say so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use forebay_core::clock::{Clock, Time};

mod alarm;

use alarm::Alarm;

/// Between two looks, on average. The waits differ, so that no look keeps step with a server's tokens.
const BEAT: Duration = Duration::from_millis(5);
/// More is taken for this much.
const MOST: Duration = Duration::from_secs(600);

/// Looks all the time, until it is dropped, at how long what the kernel has lies before it is noted. The way is that of an
/// event of a stream: a descriptor is readable, the event loop wakes the task that owns it, and this one hands on to the task
/// that looks at the clock.
pub(super) struct Lag {
    noted: Arc<Mutex<Moments>>,
    ringing: tokio::task::JoinHandle<()>,
}

impl Lag {
    pub(super) fn watch(clock: Clock) -> Lag {
        let noted = Arc::new(Mutex::new(Moments::new()));
        let (hand_on, handed_on) = mpsc::unbounded_channel();
        let ringing = tokio::spawn(ring(Alarm::new(), clock.clone(), hand_on));
        tokio::spawn(note(handed_on, clock, Arc::clone(&noted)));
        Lag { noted, ringing }
    }

    /// At the 99th percentile.
    pub(super) fn p99(&self) -> Duration {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).p99()
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.ringing.abort();
    }
}

/// Hands on, at each alarm, when it was due.
async fn ring(mut alarm: Alarm, clock: Clock, hand_on: mpsc::UnboundedSender<Time>) {
    let mut rng = fastrand::Rng::new();
    loop {
        let wait = Duration::from_micros(rng.u64(1..2 * BEAT.as_micros() as u64));
        let due = alarm.after(wait, &clock).await;
        if hand_on.send(due).is_err() {
            return;
        }
    }
}

async fn note(mut handed_on: mpsc::UnboundedReceiver<Time>, clock: Clock, noted: Arc<Mutex<Moments>>) {
    while let Some(due) = handed_on.recv().await {
        noted.lock().unwrap_or_else(PoisonError::into_inner).note(clock.now().since(due));
    }
}

/// The delays with which something that came at any moment was noted. A late look keeps others from being made, which would have
/// been late as well, by less and less: they are counted.
struct Moments(Histogram<u64>);

impl Moments {
    fn new() -> Moments {
        Moments(Histogram::new_with_bounds(1, MOST.as_micros() as u64, 3).expect("the bounds are in order"))
    }

    fn note(&mut self, late: Duration) {
        let late = late.clamp(Duration::from_micros(1), MOST).as_micros() as u64;
        self.0.record_correct(late, BEAT.as_micros() as u64).expect("no time is above the longest");
    }

    fn p99(&self) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_is_kept_busy_is_seen() {
        let clock = Clock::system();
        let lag = Lag::watch(clock.clone());
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(12)).await;
            let begun = clock.now();
            while clock.now().since(begun) < Duration::from_millis(40) {
                std::hint::spin_loop();
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(lag.p99() > Duration::from_millis(10), "{:?}", lag.p99());
    }

    #[test]
    fn one_long_stop_counts_for_as_long_as_it_took() {
        let mut moments = Moments::new();
        (0..180).for_each(|_| moments.note(Duration::from_micros(50)));
        assert!(moments.p99() < Duration::from_millis(1));
        // A tenth of a second in which twenty looks were due. As one look of 181 it would be above the percentile.
        moments.note(Duration::from_millis(100));
        assert!(moments.p99() > Duration::from_millis(80), "{:?}", moments.p99());
    }

    #[tokio::test]
    async fn an_idle_loop_is_not_late_for_the_rounding_of_timers() {
        let clock = Clock::system();
        let begin = clock.now();
        // Another process may take the core for a while, not for ever.
        loop {
            let lag = Lag::watch(clock.clone());
            tokio::time::sleep(Duration::from_millis(100)).await;
            if lag.p99() < Duration::from_millis(1) {
                return;
            }
            assert!(clock.now().since(begin) < Duration::from_secs(20), "{:?}", lag.p99());
        }
    }
}
