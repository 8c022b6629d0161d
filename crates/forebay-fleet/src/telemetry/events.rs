//! The last things that happened to the fleet: a backend went out, came back or was drained, the configuration was read again. A
//! bounded ring in memory, for the live page; the log has them all. It must never keep anything of a request.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::lock::locked;
use forebay_core::clock::Time;

/// Events that are kept.
pub const KEPT: usize = 200;
/// The longest reason that is kept, in characters.
const LONGEST: usize = 300;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts the events of this process.
    pub number: u64,
    /// The moment at which it happened.
    pub at: Time,
    /// The thing that happened, in a word: the new state of a backend, or the result of a reload.
    pub what: &'static str,
    /// The backend that it happened to, by host and port; none for what concerns all.
    pub backend: Option<String>,
    /// The reason, where there is one.
    pub why: Option<String>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct Events(Mutex<(u64, VecDeque<Event>)>);

impl Events {
    /// Keeps one, in place of the oldest.
    pub fn tell(&self, what: &'static str, backend: Option<&str>, why: Option<&str>, now: Time) {
        let mut kept = locked(&self.0);
        kept.0 += 1;
        let event = Event {
            number: kept.0,
            at: now,
            what,
            backend: backend.map(str::to_owned),
            // A reason may repeat what a server said: its length is the server's to choose.
            why: why.map(|why| why.chars().take(LONGEST).collect()),
        };
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(event);
    }

    /// Returns up to `most` of those that are kept, the latest first.
    #[must_use]
    pub fn latest(&self, most: usize) -> Vec<Event> {
        locked(&self.0).1.iter().rev().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_and_the_latest_comes_first() {
        let events = Events::default();
        for number in 0..KEPT as u64 + 50 {
            events.tell("ejected", Some("a:1"), Some(&"x".repeat(1000)), Time::from_micros(number));
        }
        let latest = events.latest(usize::MAX);
        assert_eq!((latest.len(), latest[0].number), (KEPT, KEPT as u64 + 50));
        assert_eq!(latest[0].why.as_ref().map(String::len), Some(LONGEST));
        assert_eq!(events.latest(3).len(), 3);
    }
}
