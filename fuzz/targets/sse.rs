//! A backend's stream, of any bytes and cut anywhere: no byte is changed, lost or reordered, and where the cuts are does not
//! change what the events say.

#![no_main]

use bytes::Bytes;
use forebay_core::stream::{Api, EventKind, Parser, Segment, Usage, usage_of_body};
use libfuzzer_sys::fuzz_target;

const APIS: [Api; 5] = [Api::Chat, Api::Completions, Api::Responses, Api::Messages, Api::Other];

/// What is known of an answer at its end.
#[derive(Debug, PartialEq)]
struct Outcome {
    segments: Vec<(Bytes, EventKind, bool)>,
    tail: Option<Bytes>,
    usage: Option<Usage>,
    ended: bool,
    token_events: u64,
    failed: Option<(u16, bool, String)>,
}

fn read(mut parser: Parser, data: &[u8], size: usize) -> Outcome {
    let mut out: Vec<Segment> = Vec::new();
    for piece in data.chunks(size.max(1)) {
        parser.push(Bytes::copy_from_slice(piece), &mut out);
    }
    let tail = parser.finish();
    let bytes: Vec<u8> = out
        .iter()
        .map(|segment| &segment.raw[..])
        .chain(tail.as_ref().map(|tail| &tail.raw[..]))
        .flatten()
        .copied()
        .collect();
    assert_eq!(bytes, data, "the segments are not the input");
    for segment in &out {
        let data = segment.data().map_or(0, |data| data.len());
        assert!(data <= segment.raw.len());
    }
    Outcome {
        segments: out.into_iter().map(|segment| (segment.raw, segment.kind, segment.token)).collect(),
        tail: tail.map(|tail| tail.raw),
        usage: parser.usage(),
        ended: parser.ended(),
        token_events: parser.token_events(),
        failed: parser.failed().map(|error| (error.code, error.engine_dead, error.message.clone())),
    }
}

fuzz_target!(|data: &[u8]| {
    // The length decides on the cuts, so that the fuzzer can vary them and a seed is a stream as it is.
    let size = 1 + data.len() % 17;
    for api in APIS {
        let whole = read(Parser::new(api), data, data.len());
        let pieces = read(Parser::new(api), data, size);
        if api == Api::Other {
            // Nothing is cut here, so a segment is a chunk.
            assert_eq!((whole.ended, &whole.failed), (pieces.ended, &pieces.failed));
        } else {
            assert_eq!(whole, pieces, "{api:?} in pieces of {size}");
        }
        if let Some((code, _, message)) = &pieces.failed {
            assert!((400..600).contains(code) && message.len() <= 1024, "{code} {message}");
        }
        // With a small limit events pass in parts, whose number depends on the cuts. Their bytes do not.
        let small = read(Parser::with_max_event(api, 48), data, size);
        assert!(small.tail.is_none_or(|tail| tail.len() <= 48));
        let _ = usage_of_body(api, data);
    }
});
