//! The requests of one backend without a first token, in the order of their dispatch, so that the oldest is known whichever
//! of them leaves.
//!
//! Hot path: constant time to enter, leave and look; allocates only when more wait at once than ever before.

use std::collections::VecDeque;

use forebay_core::clock::Time;

/// A request that waits for its first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueuedPrompt {
    /// Its dispatch.
    pub(crate) since: Time,
    /// Its uncached prompt tokens.
    pub(crate) tokens: u32,
}

/// An ordered set by dispatch. Who left is a gap until all older ones have left.
#[derive(Debug)]
pub(crate) struct PrefillQueue {
    /// The number of the entry at the front.
    first: u64,
    entries: VecDeque<Option<QueuedPrompt>>,
}

impl PrefillQueue {
    pub(crate) fn new() -> PrefillQueue {
        PrefillQueue { first: 0, entries: VecDeque::with_capacity(64) }
    }

    /// Enters at the end; the number is what `leave` takes.
    pub(crate) fn enter(&mut self, waiting: QueuedPrompt) -> u64 {
        self.entries.push_back(Some(waiting));
        self.first + (self.entries.len() as u64 - 1)
    }

    /// Leaves; a number that has left already is ignored.
    pub(crate) fn leave(&mut self, number: u64) {
        let place = number.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some(entry) = place.and_then(|place| self.entries.get_mut(place)) {
            *entry = None;
        }
        // Those that left out of turn are skipped when they come to the front, so that leaving costs no search.
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
    }

    /// The oldest.
    pub(crate) fn head(&self) -> Option<QueuedPrompt> {
        self.entries.front().copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn waiting(tokens: u32) -> QueuedPrompt {
        QueuedPrompt { since: Time::from_micros(u64::from(tokens)), tokens }
    }

    #[test]
    fn the_head_survives_the_end_of_the_oldest_and_of_those_in_between() {
        let mut queue = PrefillQueue::new();
        let numbers: Vec<u64> = (0..4).map(|tokens| queue.enter(waiting(tokens))).collect();
        queue.leave(numbers[1]);
        assert_eq!(queue.head(), Some(waiting(0)));
        queue.leave(numbers[0]);
        assert_eq!(queue.head(), Some(waiting(2)));
        queue.leave(numbers[0]);
        assert_eq!(queue.head(), Some(waiting(2)), "leaving twice changes nothing");
        queue.leave(numbers[3]);
        queue.leave(numbers[2]);
        assert_eq!(queue.head(), None);
        assert!(queue.entries.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_the_least_of_a_plain_set(steps in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 0..200)) {
            let (mut queue, mut model) = (PrefillQueue::new(), Vec::<(u64, QueuedPrompt)>::new());
            for (tokens, step) in (0..).zip(steps) {
                match step {
                    Some(at) if !model.is_empty() => queue.leave(model.remove(at.index(model.len())).0),
                    _ => model.push((queue.enter(waiting(tokens)), waiting(tokens))),
                }
                prop_assert_eq!(queue.head(), model.first().map(|entry| entry.1));
            }
        }
    }
}
