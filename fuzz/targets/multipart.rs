//! The form of an audio request: its model is read or it has none, whatever the bytes and the boundary.

#![no_main]

use bytes::Bytes;
use forebay::proxy::request::multipart::model;
use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first line is the content type, the rest the body.
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (head, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(head) {
        headers.insert(CONTENT_TYPE, value);
    }
    // The whole body is there, so nothing is waited for; a wait would be one for ever.
    let found = model(&headers, &Bytes::copy_from_slice(body)).now_or_never().expect("the reader waits for more");
    if let Some(model) = found {
        assert!(model.len() <= 3 * body.len(), "a model out of nothing: {model}");
    }
});
