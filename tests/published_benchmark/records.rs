//! What an engine's events are to a client, as `forebay bench` notes it.

use forebay_lab::rows::record::{Outcome, Record};
use forebay_sim::engine::Event;

/// Notes an event of a request in its record. Times in a record count from its sending.
pub(crate) fn note(record: &mut Record, event: &Event) {
    let at = event.at.as_micros() - record.sent_us;
    match record.first_event_us {
        None => record.first_event_us = Some(at),
        Some(_) => record.gaps_us.push(at - record.end_us),
    }
    record.end_us = at;
    record.output_tokens = u64::from(event.tokens);
    if event.finished {
        record.outcome = Outcome::Success;
    }
}
