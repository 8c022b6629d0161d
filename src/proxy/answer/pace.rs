//! The gaps between the token events of a stream, and, where it has several sequences, the time that each of them decoded: what
//! vLLM calls inter-token latency and time per output token is of one sequence.
//!
//! Hot path: a few additions a chunk; where a request has several sequences, one `memmem` scan a token event. No allocation after
//! the first.

use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem::Finder;

use crate::proxy::record::Record;
use forebay_core::clock::Time;
use forebay_core::stream::{Parser, Segment};
use forebay_fleet::Ticket;

static INDEX: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"index\":"));

/// Of a request with more sequences than this, none is timed.
const MOST_SEQUENCES: u32 = 1024;

/// The gaps between token events.
pub(crate) struct Pace {
    last: Time,
    counted: u64,
    choices: Option<Choices>,
}

/// The sequences of a request that has several.
struct Choices {
    seen: Vec<Option<Sequence>>,
    /// Each token event so far said whose it is.
    told: bool,
}

#[derive(Clone, Copy)]
struct Sequence {
    first: Time,
    last: Time,
}

impl Pace {
    /// A stream whose `first` events came at the commit.
    pub(crate) fn new(first: &[Segment], first_at: Time, parser: &Parser, sequences: u32) -> Pace {
        let choices = (sequences > 1).then(|| {
            let timed = if sequences <= MOST_SEQUENCES { sequences as usize } else { 0 };
            let mut choices = Choices { seen: vec![None; timed], told: true };
            choices.observe(first, first_at, |_| {});
            choices
        });
        Pace { last: first_at, counted: parser.token_events(), choices }
    }

    /// Notes the events that came at `now`.
    pub(crate) fn observe(
        &mut self,
        (parser, segments): (&Parser, &[Segment]),
        now: Time,
        blocked: bool,
        ticket: &mut Ticket,
        record: &mut Record,
    ) {
        for _ in self.counted..parser.token_events() {
            // The first token's event ends TTFT, not a gap; chat announces it by a role event of its own.
            if self.counted > 0 {
                ticket.event(now, blocked);
                if !blocked && self.choices.is_none() {
                    record.gap(now.since(self.last));
                }
            }
            self.counted += 1;
            self.last = now;
        }
        if let Some(choices) = &mut self.choices {
            choices.observe(segments, now, |gap| {
                if !blocked {
                    record.gap(gap);
                }
            });
        }
    }

    /// Returns how long the sequences decoded, all together, from the first token of each to its last, and how many they were. Both
    /// are zero where that cannot be told; nothing for one sequence.
    pub(crate) fn decode_time(&self) -> Option<(Duration, u64)> {
        let choices = self.choices.as_ref()?;
        let sequences = choices.seen.iter().flatten();
        if !choices.told || choices.seen.iter().any(Option::is_none) {
            return Some((Duration::ZERO, 0));
        }
        Some((sequences.map(|one| one.last.since(one.first)).sum(), choices.seen.len() as u64))
    }
}

impl Choices {
    fn observe(&mut self, segments: &[Segment], now: Time, mut gap: impl FnMut(Duration)) {
        for segment in segments.iter().filter(|segment| segment.token) {
            let Some(seen) = index(&segment.raw).and_then(|index| self.seen.get_mut(index)) else {
                self.told = false;
                continue;
            };
            match seen {
                Some(sequence) => {
                    gap(now.since(sequence.last));
                    sequence.last = now;
                }
                None => *seen = Some(Sequence { first: now, last: now }),
            }
        }
    }
}

/// The index of an event's choice, which vLLM puts first in it. In the text of a choice the quotes would be escaped.
fn index(event: &[u8]) -> Option<usize> {
    let digits = event.get(INDEX.find(event)? + b"\"index\":".len()..)?.trim_ascii_start();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use forebay_core::stream::Api;

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn segments(indices: &[usize]) -> Vec<Segment> {
        let (mut parser, mut out) = (Parser::new(Api::Completions), Vec::new());
        for index in indices {
            let event = format!("data: {{\"choices\":[{{\"index\":{index},\"text\":\"\\\"index\\\":7\"}}]}}\n\n");
            parser.push(Bytes::from(event), &mut out);
        }
        out
    }

    #[test]
    fn each_sequence_has_its_own_gaps() {
        let mut gaps = Vec::new();
        let mut choices = Choices { seen: vec![None; 2], told: true };
        for (millis, indices) in [(0, &[0, 1][..]), (50, &[0, 1]), (90, &[0]), (100, &[1])] {
            choices.observe(&segments(indices), at(millis), |gap| gaps.push(gap.as_millis()));
        }
        assert_eq!(gaps, [50, 50, 40, 50]);
        let pace = Pace { last: at(0), counted: 0, choices: Some(choices) };
        assert_eq!(pace.decode_time(), Some((Duration::from_millis(190), 2)));
    }

    #[test]
    fn what_cannot_be_told_has_no_time() {
        for indices in [&[0, 5][..], &[0]] {
            let pace = Pace::new(&segments(indices), at(0), &Parser::new(Api::Completions), 2);
            assert_eq!(pace.decode_time(), Some((Duration::ZERO, 0)));
        }
        assert_eq!(Pace::new(&[], at(0), &Parser::new(Api::Chat), 1).decode_time(), None);
    }
}
