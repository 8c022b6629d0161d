//! The backends that died of a request, by its id, over the repetitions of a gateway: each of them is a question of its own here.
//! After two deaths the request is refused, so that it kills no third engine.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use http::HeaderValue;

use forebay_core::clock::Time;
use forebay_core::units::BackendId;
use forebay_fleet::lock::locked;

/// The time for which a death is remembered. A gateway repeats at once, a client's library within seconds.
const KEPT: Duration = Duration::from_secs(60);
/// The most requests that are remembered.
const MOST_KEPT: usize = 4096;

/// The memory of deaths.
#[derive(Default)]
pub(crate) struct Deaths(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    by_id: HashMap<HeaderValue, Vec<BackendId>>,
    /// The requests in the order of their first deaths.
    order: VecDeque<(Time, HeaderValue)>,
}

impl Deaths {
    /// The deaths after which a request is refused.
    pub(crate) const MOST: usize = 2;

    /// The backends that died of the request with this id.
    pub(crate) fn of(&self, id: &HeaderValue, now: Time) -> Vec<BackendId> {
        let mut memory = locked(&self.0);
        memory.forget(now);
        memory.by_id.get(id).cloned().unwrap_or_default()
    }

    /// Another backend died of it. Returns how many have by now.
    pub(crate) fn note(&self, id: &HeaderValue, backend: BackendId, now: Time) -> usize {
        let mut memory = locked(&self.0);
        memory.forget(now);
        if !memory.by_id.contains_key(id) {
            memory.order.push_back((now, id.clone()));
        }
        let dead = memory.by_id.entry(id.clone()).or_default();
        dead.push(backend);
        dead.len()
    }
}

impl Memory {
    fn forget(&mut self, now: Time) {
        while let Some((at, _)) = self.order.front()
            && (now.since(*at) > KEPT || self.order.len() > MOST_KEPT)
        {
            if let Some((_, id)) = self.order.pop_front() {
                self.by_id.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn deaths_of_one_id_add_up_and_are_forgotten_in_time() {
        let (deaths, id) = (Deaths::default(), HeaderValue::from_static("one"));
        assert_eq!(deaths.note(&id, BackendId(1), at(0)), 1);
        assert_eq!(deaths.note(&id, BackendId(2), at(30)), 2);
        assert_eq!(deaths.of(&id, at(60)), [BackendId(1), BackendId(2)]);
        assert!(deaths.of(&HeaderValue::from_static("other"), at(60)).is_empty());
        assert!(deaths.of(&id, at(61)).is_empty());
    }

    #[test]
    fn no_flood_of_ids_fills_the_memory() {
        let deaths = Deaths::default();
        for number in 0..3 * MOST_KEPT {
            deaths.note(&HeaderValue::from(number), BackendId(1), at(1));
        }
        let memory = locked(&deaths.0);
        assert!(memory.by_id.len() <= MOST_KEPT + 1 && memory.order.len() == memory.by_id.len());
    }
}
