//! Takes out of a stream what Forebay's own wish for usage put into it, so that the client gets what it would get without that
//! wish. vLLM moves `system_fingerprint` from the events with a `finish_reason` to the usage event, and Forebay moves it back. A
//! server started with `--enable-force-include-usage` sends usage in every event, unasked: then nothing is taken out.
//!
//! Hot path: one `memmem` scan an event, no allocation; events that end a sequence are rewritten.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;

use forebay_core::stream::{EventKind, Segment};

static FINISHED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"finish_reason\":\""));

/// Most events that are held until the usage event comes: one for each sequence of a usual request.
const HELD_MAX: usize = 64;

/// The stream of a request that Forebay asked for usage.
pub(crate) struct Injected {
    /// Events that end a sequence, held until the next event shows whether the usage event follows.
    held: Vec<Bytes>,
    /// The fingerprint of the backend as JSON, once known.
    fingerprint: Option<Bytes>,
    /// The fingerprint was read from this stream.
    learned: bool,
}

impl Injected {
    /// A stream at its beginning. `fingerprint`: what the backend's latest stream said.
    pub(crate) fn new(fingerprint: Option<Bytes>) -> Injected {
        Injected { held: Vec::new(), fingerprint, learned: false }
    }

    /// Returns whether the next events pass as they came.
    pub(crate) fn passes(&self, segments: &[Segment]) -> bool {
        self.held.is_empty() && segments.iter().all(|segment| !is_usage(segment) && !ends_sequence(segment))
    }

    /// Appends to `out` what the client gets at this event.
    pub(crate) fn take(&mut self, segment: &Segment, out: &mut Vec<Bytes>) {
        if is_usage(segment) {
            self.fingerprint = fingerprint(segment);
            self.learned = true;
            self.release(out);
        } else if ends_sequence(segment) && self.held.len() < HELD_MAX {
            self.held.push(segment.raw.clone());
        } else {
            self.release(out);
            out.push(segment.raw.clone());
        }
    }

    /// Appends to `out` the events that are held.
    pub(crate) fn release(&mut self, out: &mut Vec<Bytes>) {
        let fingerprint = self.fingerprint.as_deref();
        out.extend(self.held.drain(..).map(|event| match fingerprint {
            Some(json) => with_fingerprint(&event, json),
            None => event,
        }));
    }

    /// The fingerprint that this stream's usage event had.
    pub(crate) fn learned(&self) -> Option<&Bytes> {
        self.fingerprint.as_ref().filter(|_| self.learned)
    }
}

fn is_usage(segment: &Segment) -> bool {
    matches!(segment.kind, EventKind::Usage)
}

fn ends_sequence(segment: &Segment) -> bool {
    matches!(segment.kind, EventKind::Token) && FINISHED.find(&segment.raw).is_some()
}

/// The fingerprint in a usage event; none where it is null.
fn fingerprint(segment: &Segment) -> Option<Bytes> {
    #[derive(Deserialize)]
    struct WithFingerprint<'a> {
        #[serde(borrow)]
        system_fingerprint: Option<&'a RawValue>,
    }
    let data = segment.data()?;
    let json = serde_json::from_slice::<WithFingerprint<'_>>(&data).ok()?.system_fingerprint?.get();
    json.starts_with('"').then(|| Bytes::copy_from_slice(json.as_bytes()))
}

/// The event with the fingerprint as its object's last member, where vLLM puts it.
fn with_fingerprint(event: &Bytes, json: &[u8]) -> Bytes {
    const MEMBER: &[u8] = b",\"system_fingerprint\":";
    // The last brace of the event is that of its JSON object. A parse and a new text would change spaces and the order of
    // keys.
    let Some(end) = memchr::memrchr(b'}', event) else { return event.clone() };
    let mut whole = BytesMut::with_capacity(event.len() + MEMBER.len() + json.len());
    for part in [&event[..end], MEMBER, json, &event[end..]] {
        whole.extend_from_slice(part);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::stream::{Api, Parser};

    const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    const TOKEN: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
    const LAST: &str =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n";
    const STAMPED: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}],\
                           \"system_fingerprint\":\"v-1\"}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2},\
                         \"system_fingerprint\":\"v-1\"}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn client_gets(events: &[&str], known: Option<&'static str>) -> String {
        let mut parser = Parser::new(Api::Chat);
        let (mut segments, mut out) = (Vec::new(), Vec::new());
        let mut injected = Injected::new(known.map(|json| Bytes::from_static(json.as_bytes())));
        parser.push(Bytes::from(events.concat()), &mut segments);
        segments.iter().for_each(|segment| injected.take(segment, &mut out));
        injected.release(&mut out);
        String::from_utf8(out.concat()).unwrap()
    }

    #[test]
    fn the_fingerprint_goes_back_to_the_events_that_end_a_sequence() {
        assert_eq!(client_gets(&[ROLE, TOKEN, LAST, USAGE, DONE], None), [ROLE, TOKEN, STAMPED, DONE].concat());
        assert_eq!(client_gets(&[ROLE, LAST, LAST, USAGE, DONE], None), [ROLE, STAMPED, STAMPED, DONE].concat());
    }

    #[test]
    fn a_sequence_that_ends_before_the_others_has_the_fingerprint_known_before() {
        let events = [ROLE, LAST, TOKEN, LAST, USAGE, DONE];
        assert_eq!(client_gets(&events, Some("\"v-1\"")), [ROLE, STAMPED, TOKEN, STAMPED, DONE].concat());
        assert_eq!(client_gets(&events, None), [ROLE, LAST, TOKEN, STAMPED, DONE].concat());
    }

    #[test]
    fn without_a_fingerprint_the_usage_event_alone_is_taken_out() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2},\"system_fingerprint\":null}\n\n";
        assert_eq!(client_gets(&[ROLE, LAST, usage, DONE], None), [ROLE, LAST, DONE].concat());
        assert_eq!(client_gets(&[ROLE, LAST], None), [ROLE, LAST].concat());
    }
}
