//! The load generator's reader of a streamed answer: any split of the bytes gives the same events, text and usage.

#![no_main]

use bytes::Bytes;
use forebay_core::stream::Api;
use forebay_lab::load::answer::{AnswerEvent, AnswerReader};
use libfuzzer_sys::fuzz_target;

fn read(api: Api, data: &[u8], size: usize) -> (Vec<AnswerEvent>, String, String) {
    let (mut reader, mut events) = (AnswerReader::keeping_text(api), Vec::new());
    for piece in data.chunks(size.max(1)) {
        reader.push(Bytes::copy_from_slice(piece), |event| events.push(event));
    }
    (events, format!("{:?}", reader.usage()), reader.into_text())
}

fuzz_target!(|data: &[u8]| {
    let size = 1 + data.len() % 17;
    for api in [Api::Chat, Api::Completions] {
        assert_eq!(read(api, data, data.len()), read(api, data, size), "{api:?} in pieces of {size}");
    }
});
