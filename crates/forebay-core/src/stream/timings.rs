//! The latencies of one request from its moments. One home for the definitions, so that metrics, log and benchmark agree.
//!
//! Hot path: once a request, a few subtractions.

use std::time::Duration;

use crate::clock::Time;

/// The moments of one request. `None`: it did not come to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// The request's head was parsed.
    pub arrival: Time,
    /// Its body was read.
    pub body_read: Option<Time>,
    /// The first token: the event that proves the engine at work. Streams only.
    pub first_token: Option<Time>,
    /// The end of the answer.
    pub end: Option<Time>,
}

impl Timings {
    /// A request that has just arrived.
    #[must_use]
    pub fn new(arrival: Time) -> Timings {
        Timings { arrival, body_read: None, first_token: None, end: None }
    }

    /// Arrival to the body being read: the part of TTFT that is the client's.
    #[must_use]
    pub fn body(&self) -> Option<Duration> {
        Some(self.body_read?.since(self.arrival))
    }

    /// TTFT: arrival to first token, failed attempts included.
    #[must_use]
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first_token?.since(self.arrival))
    }

    /// E2E: arrival to the end of the answer.
    #[must_use]
    pub fn e2e(&self) -> Option<Duration> {
        Some(self.end?.since(self.arrival))
    }

    /// TPOT: (E2E − TTFT) / (output tokens − 1). `None` for fewer than two tokens or an answer without first token or end.
    #[must_use]
    pub fn tpot(&self, output_tokens: u64) -> Option<Duration> {
        let gaps = output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        let decode = self.e2e()?.saturating_sub(self.ttft()?);
        Some(Duration::from_secs_f64(decode.as_secs_f64() / gaps as f64))
    }
}

/// TPOT of a request with several sequences: the mean over the tokens of all of them but the first of each. `decoding` is the time
/// from the first token of a sequence to its last, summed up. `None` where no sequence has two tokens.
#[must_use]
pub fn tpot_of_sequences(decoding: Duration, output_tokens: u64, sequences: u64) -> Option<Duration> {
    let gaps = output_tokens.checked_sub(sequences).filter(|gaps| *gaps > 0 && sequences > 0)?;
    Some(Duration::from_secs_f64(decoding.as_secs_f64() / gaps as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    #[test]
    fn latencies_follow_the_definitions() {
        let mut timings = Timings::new(at(100));
        timings.body_read = Some(at(110));
        timings.first_token = Some(at(200));
        timings.end = Some(at(500));
        assert_eq!(timings.body(), Some(Duration::from_millis(10)));
        assert_eq!(timings.ttft(), Some(Duration::from_millis(100)));
        assert_eq!(timings.e2e(), Some(Duration::from_millis(400)));
        assert_eq!(timings.tpot(4), Some(Duration::from_millis(100)));
    }

    #[test]
    fn several_sequences_have_the_tpot_of_one() {
        let decoding = Duration::from_millis(4 * 350);
        assert_eq!(tpot_of_sequences(decoding, 4 * 8, 4), Some(Duration::from_millis(50)));
        assert_eq!(tpot_of_sequences(Duration::ZERO, 4, 4), None);
        assert_eq!(tpot_of_sequences(Duration::ZERO, 9, 0), None);
    }

    #[test]
    fn what_is_undefined_is_absent() {
        let mut timings = Timings::new(at(100));
        timings.end = Some(at(500));
        assert_eq!((timings.ttft(), timings.tpot(10)), (None, None));
        timings.first_token = Some(at(200));
        assert_eq!((timings.tpot(0), timings.tpot(1)), (None, None));
        assert_eq!(timings.tpot(2), Some(Duration::from_millis(300)));
        timings.end = None;
        assert_eq!((timings.e2e(), timings.tpot(2)), (None, None));
    }
}
