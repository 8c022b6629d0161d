//! A request's JSON body: what is peeked of it agrees with a whole parse, and a splice changes what it should and no more.

#![no_main]

use bytes::Bytes;
use forebay::proxy::request::peek::{Peek, PeekError, StreamOptionsForm, peek};
use forebay::proxy::request::splice::Splice;
use forebay_core::stream::Api;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// A name with what must be escaped.
const MODEL: &str = "other \"model\"\\\u{e9}";

fn agrees_with_a_whole_parse(body: &[u8], read: &Result<Peek, PeekError>) {
    // A whole parse refuses what is deep, a number out of range or half a surrogate pair, which the peek passes on.
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return };
    match read {
        Ok(peek) => {
            assert!(value.is_object());
            // An empty name is none, as to vLLM.
            let model = value.get("model").and_then(Value::as_str).filter(|model| !model.is_empty());
            assert_eq!(peek.model.as_deref(), model);
            if let Some(Value::Bool(stream)) = value.get("stream") {
                assert_eq!(peek.stream, *stream);
            }
            let options = value.get("stream_options");
            assert_eq!(peek.stream_options.is_some(), options.is_some());
        }
        Err(PeekError::NotObject) => assert!(!value.is_object()),
        Err(PeekError::WrongType { .. }) => assert!(value.is_object()),
        Err(error) => panic!("{error} of what is JSON"),
    }
}

/// What must be the same before and after a splice.
fn kept(peek: &Peek) -> impl PartialEq + std::fmt::Debug {
    (
        (peek.stream, peek.max_tokens, peek.claims.n, peek.text_bytes, peek.media_parts, peek.token_ids),
        (peek.sessions.clone(), peek.previous_response_id.clone(), peek.marks.clone(), peek.inside),
    )
}

fn spliced(body: &Bytes, before: &Peek, api: Api) {
    let mut splice = Splice::default();
    let injected = splice.inject_usage(api, before);
    splice.replace_model(before, MODEL);
    let pieces = splice.apply(body);
    let whole = pieces.slices().cloned().collect::<Vec<Bytes>>().concat();
    assert_eq!(pieces.len(), whole.len() as u64);
    let after = peek(&whole, Some("user"), Some(7)).expect("a spliced body can be read");
    // The model of a body that names `user` or `model` for its session may be the session, too.
    assert_eq!(format!("{:?}", kept(before)), format!("{:?}", kept(&after)));
    assert_eq!(after.model.as_deref(), before.model.as_ref().map(|_| MODEL));
    let asked = |peek: &Peek| match peek.stream_options.as_ref().map(|options| &options.form) {
        Some(StreamOptionsForm::Object { include_usage: Some(flag), .. }) => flag.on,
        _ => false,
    };
    let wants = before.stream && matches!(api, Api::Chat | Api::Completions);
    assert_eq!(injected, wants && !asked(before));
    assert_eq!(asked(&after), wants || asked(before));
}

fuzz_target!(|data: &[u8]| {
    let body = Bytes::copy_from_slice(data);
    let read = peek(&body, Some("user"), Some(7));
    agrees_with_a_whole_parse(&body, &read);
    if let Ok(before) = &read {
        let _ = before.est_tokens();
        spliced(&body, before, Api::Chat);
        spliced(&body, before, Api::Messages);
    }
});
