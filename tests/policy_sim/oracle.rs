//! The yardstick: greedy and clairvoyant. For each request it clones every backend's engine as it is, adds the request, runs
//! the clone until its first token with no later arrivals, and takes the backend with the least. It knows the true lengths of
//! what runs and nothing of what will come, so a policy may beat it now and then.

use forebay_core::clock::Time;
use forebay_sim::engine::{Engine, Event, RequestId, Submission};

/// Finds the backend with the earliest first token.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    events: Vec<Event>,
}

const PROBE: RequestId = RequestId(u64::MAX);

impl Oracle {
    /// The place of the best engine among those that are `up`.
    pub(crate) fn choose(&mut self, engines: &[Engine], up: &[bool], now: Time, request: &Submission) -> usize {
        let request = Submission { id: PROBE, output_tokens: 1, ..request.clone() };
        let mut order: Vec<usize> = (0..engines.len()).filter(|&place| up[place]).collect();
        // The idlest first: the others' clones then stop early.
        order.sort_by_key(|&place| (engines[place].waiting(), engines[place].running()));
        let (mut best, mut earliest) = (order[0], Time::from_micros(u64::MAX));
        for place in order {
            if let Some(first) = self.first_token(&engines[place], now, &request, earliest) {
                (best, earliest) = (place, first);
            }
        }
        best
    }

    /// When the engine would give the request's first token, if that is before `limit`.
    fn first_token(&mut self, engine: &Engine, now: Time, request: &Submission, limit: Time) -> Option<Time> {
        if engine.next_step_at().is_some_and(|at| at >= limit) {
            return None;
        }
        let mut clone = engine.clone();
        clone.submit(now, request).unwrap();
        while let Some(next) = clone.next_step_at().filter(|&next| next < limit) {
            self.events.clear();
            clone.step(next, &mut self.events);
            if let Some(event) = self.events.iter().find(|event| event.id == PROBE) {
                return Some(event.at);
            }
        }
        None
    }
}
