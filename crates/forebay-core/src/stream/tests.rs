//! The streams that no recording has: other events, hostile bytes, any split.

mod recorded;

use bytes::Bytes;
use proptest::prelude::*;

use super::{Api, EventKind, Parser, Segment, StreamError, Usage};

const FAILED: EventKind = EventKind::Error { code: 500, engine_dead: false };

fn read(api: Api, chunks: &[&[u8]]) -> (Vec<Segment>, Parser) {
    let (mut parser, mut out) = (Parser::new(api), Vec::new());
    for chunk in chunks {
        parser.push(Bytes::copy_from_slice(chunk), &mut out);
    }
    (out, parser)
}

fn kinds(api: Api, text: &str) -> Vec<EventKind> {
    read(api, &[text.as_bytes()]).0.iter().map(|segment| segment.kind).collect()
}

fn chat(json: &str) -> (EventKind, bool, Option<Usage>) {
    let (out, parser) = read(Api::Chat, &[TOKEN.as_bytes(), format!("data: {json}\n\n").as_bytes()]);
    (out[1].kind, out[1].token, parser.usage())
}

const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";

#[test]
fn a_chunk_that_is_one_event_is_not_copied() {
    let chunk = Bytes::from_static(TOKEN.as_bytes());
    let (mut parser, mut out) = (Parser::new(Api::Chat), Vec::new());
    parser.push(chunk.clone(), &mut out);
    let two = Bytes::from([TOKEN, TOKEN].concat());
    parser.push(two.clone(), &mut out);
    assert_eq!(out[0].raw.as_ptr(), chunk.as_ptr());
    assert_eq!(out[1].raw.as_ptr(), two.as_ptr());
    assert_eq!(out[2].raw.as_ptr(), two[TOKEN.len()..].as_ptr());
    assert_eq!(parser.token_events(), 3);
}

#[test]
fn what_a_model_writes_is_no_usage_and_no_error() {
    let content = r#"{\"usage\": {\"prompt_tokens\": 1}, \"error\": {}, \"choices\": []} data: [DONE]"#;
    let json = format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{content}"}}}}]}}"#);
    assert_eq!(chat(&json), (EventKind::Token, true, None));
    let json =
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"x":{"usage":{"prompt_tokens":1},"error":{"code":1}}}]}}]}"#;
    assert_eq!(chat(json), (EventKind::Token, true, None));
    let json = r#"{"choices":[{"index":0,"delta":{"content":"y"}}],"usage":null,"error":null}"#;
    assert_eq!(chat(json), (EventKind::Token, true, None));
}

#[test]
fn usage_with_choices_is_a_token_and_is_taken() {
    let json = r#"{"choices":[{"index":0,"delta":{"content":"y"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
    let usage = Usage { prompt_tokens: 5, completion_tokens: 2, cached_tokens: None };
    assert_eq!(chat(json), (EventKind::Token, true, Some(usage)));
    let json = r#"{"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":null},"choices":[ ]}"#;
    assert_eq!(chat(json), (EventKind::Usage, false, Some(usage)));
    assert_eq!(chat(r#"{"choices":[],"usage":null}"#), (EventKind::Token, false, None));
}

#[test]
fn a_first_event_is_proof_whatever_it_holds_but_an_error() {
    for json in [r#"{"choices":[]}"#, "{}", "7", "not json", r#"{"choices":"x"}"#] {
        assert_eq!(kinds(Api::Completions, &format!("data: {json}\n\n")), [EventKind::Token], "{json}");
    }
    for text in ["data\n\n", "data:\n\n", "id: 5\n\n", "event: x\n\n", "retry: 5\n\n"] {
        assert_eq!(kinds(Api::Chat, text), [EventKind::Other], "{text:?}");
    }
    assert_eq!(kinds(Api::Chat, ": a\n: b\n\n\n"), [EventKind::Comment, EventKind::Comment]);
    assert!(
        !EventKind::Other.commits()
            && !EventKind::Preamble.commits()
            && !EventKind::Comment.commits()
            && !FAILED.commits()
    );
}

#[test]
fn a_role_event_is_proof_and_no_token_event() {
    let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
    let both = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"}}]}"#;
    let tool = r#"{"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0}]}}]}"#;
    for (json, counts) in [(role, false), (both, true), (tool, true)] {
        let (out, parser) = read(Api::Chat, &[format!("data: {json}\n\n").as_bytes()]);
        assert_eq!((out[0].kind, out[0].token), (EventKind::Token, counts), "{json}");
        assert_eq!(parser.token_events(), u64::from(counts));
    }
}

#[test]
fn errors_are_read_in_every_form() {
    for (json, code, engine_dead, message) in [
        (r#"{"error":{"message":"m","code":503}}"#, 503, false, "m"),
        (r#"{"error":{"message":"m","code":"429"}}"#, 429, false, "m"),
        (r#"{"error":{"message":"m","code":"server_error"}}"#, 500, false, "m"),
        (r#"{"error":{"message":"m","code":7}}"#, 500, false, "m"),
        (r#"{"error":{"message":"m","code":null,"type":"BadRequestError"}}"#, 400, false, "m"),
        (
            r#"{"error":{"message":"EngineCore encountered an issue. See"}}"#,
            500,
            true,
            "EngineCore encountered an issue. See",
        ),
        (
            r#"{"error":{"message":"no: EngineCore encountered an issue"}}"#,
            500,
            false,
            "no: EngineCore encountered an issue",
        ),
        (r#"{"error":"gone","choices":[]}"#, 500, false, "gone"),
        (r#"{"error":{"message":7}}"#, 500, false, ""),
        (r#"{"object":"error","message":"old","code":404}"#, 404, false, "old"),
    ] {
        for before in ["", TOKEN] {
            let (out, parser) = read(Api::Chat, &[format!("{before}data: {json}\n\n").as_bytes()]);
            assert_eq!(out.last().unwrap().kind, EventKind::Error { code, engine_dead }, "{json}");
            let error = StreamError { code, engine_dead, message: message.to_owned() };
            assert_eq!(parser.failed(), Some(&error), "{json}");
            assert!(!parser.ended());
        }
    }
    let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(2000));
    let (_, parser) = read(Api::Chat, &[format!("data: {long}\n\n").as_bytes()]);
    assert_eq!(parser.failed().unwrap().message.len(), StreamError::MAX_MESSAGE);
}

#[test]
fn an_error_in_several_data_lines_is_one() {
    assert_eq!(
        kinds(Api::Chat, "data: {\"error\":\r\ndata: {\"code\": 501}}\r\n\r\n"),
        [EventKind::Error { code: 501, engine_dead: false }]
    );
}

#[test]
fn responses_end_in_three_ways() {
    let event = |name: &str, json: &str| format!("event: {name}\ndata: {json}\n\n");
    let usage = r#"{"input_tokens":3,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}"#;
    for name in ["response.completed", "response.incomplete", "response.failed"] {
        let text = event(name, &format!(r#"{{"response":{{"error":null,"usage":{usage}}}}}"#));
        let (out, parser) = read(Api::Responses, &[text.as_bytes()]);
        assert_eq!((out[0].kind, parser.ended()), (EventKind::End, true), "{name}");
        let expected = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: Some(1) };
        assert_eq!(parser.usage(), Some(expected));
    }
    let text = event("response.failed", r#"{"response":{"error":{"code":"server_error","message":"m"}}}"#);
    let (out, parser) = read(Api::Responses, &[text.as_bytes()]);
    assert_eq!((out[0].kind, parser.ended()), (FAILED, true));
    for text in [
        event("error", r#"{"type":"error","code":"server_error","message":"m","param":null}"#),
        event("error", r#"{"type":"error","error":{"code":500,"message":"m"}}"#),
        event("unknown", r#"{"error":{"code":500,"message":"m"}}"#),
        "data: {\"error\":{\"message\":\"m\"}}\n\n".to_owned(),
    ] {
        let (out, parser) = read(Api::Responses, &[text.as_bytes()]);
        assert_eq!((out[0].kind, &*parser.failed().unwrap().message), (FAILED, "m"), "{text}");
    }
}

#[test]
fn an_event_without_a_name_is_known_by_its_type() {
    let text = "data: {\"type\":\"response.queued\"}\n\ndata: {\"type\":\"response.output_text.delta\"}\n\n\
                data: {\"type\":\"response.completed\"}\n\n";
    assert_eq!(kinds(Api::Responses, text), [EventKind::Preamble, EventKind::Token, EventKind::End]);
    let text =
        "data: {\"type\":\"ping\"}\n\ndata: {\"type\":\"message_start\"}\n\ndata: {\"type\":\"message_stop\"}\n\n";
    assert_eq!(kinds(Api::Messages, text), [EventKind::Other, EventKind::Token, EventKind::End]);
}

#[test]
fn messages_fail_with_a_code_by_their_type() {
    for (kind, code) in [("overloaded_error", 529), ("api_error", 500), ("invalid_request_error", 400)] {
        let text = format!(
            "event: ping\ndata: {{\"type\":\"ping\"}}\n\nevent: error\ndata: \
             {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"m\"}}}}\n\n"
        );
        assert_eq!(kinds(Api::Messages, &text), [EventKind::Other, EventKind::Error { code, engine_dead: false }]);
    }
}

#[test]
fn messages_usage_is_gathered_from_two_events() {
    let text = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":0}}}\n\n\
                event: message_delta\ndata: {\"usage\":{\"output_tokens\":4}}\n\n";
    let usage = Usage { prompt_tokens: 9, completion_tokens: 4, cached_tokens: None };
    assert_eq!(read(Api::Messages, &[text.as_bytes()]).1.usage(), Some(usage));
}

#[test]
fn opaque_bytes_are_proof_and_need_no_end() {
    let (out, mut parser) = read(Api::Other, &[b"", b"\0RIFF", b"data: [DONE]\n\n"]);
    assert_eq!(
        out.iter().map(|segment| (segment.kind, segment.token)).collect::<Vec<_>>(),
        [(EventKind::Token, false); 2]
    );
    assert!(parser.ended() && parser.finish().is_none());
}

#[test]
fn what_ends_without_a_blank_line_is_the_tail() {
    let (out, mut parser) = read(Api::Chat, &[TOKEN.as_bytes(), b"data: [DONE]\n"]);
    assert_eq!((out.len(), parser.ended()), (1, false));
    let tail = parser.finish().unwrap();
    assert_eq!((&tail.raw[..], tail.kind, parser.ended()), (&b"data: [DONE]\n"[..], EventKind::End, true));
    assert_eq!(parser.finish(), None);
}

#[test]
fn the_tail_is_read_as_an_event_if_it_is_whole() {
    for (tail, kind, tokens) in [
        (TOKEN.trim_end(), EventKind::Token, 2),
        ("data: {\"choices\":[{\"ind", EventKind::Other, 1),
        (": keep-alive", EventKind::Comment, 1),
        ("data: {\"error\":{\"message\":\"x\",\"code\":500}}", EventKind::Error { code: 500, engine_dead: false }, 1),
    ] {
        let (_, mut parser) = read(Api::Chat, &[TOKEN.as_bytes(), tail.as_bytes()]);
        let read = parser.finish().unwrap();
        assert_eq!((&read.raw[..], read.kind, parser.token_events()), (tail.as_bytes(), kind, tokens), "{tail}");
    }
}

#[test]
fn an_oversize_event_is_passed_on_and_known_by_its_name() {
    let read = |api, text: &str| {
        let (mut parser, mut out) = (Parser::with_max_event(api, 40), Vec::new());
        for chunk in text.as_bytes().chunks(25) {
            parser.push(Bytes::copy_from_slice(chunk), &mut out);
        }
        assert_eq!(out.iter().flat_map(|segment| segment.raw.to_vec()).collect::<Vec<_>>(), text.as_bytes());
        (out.iter().map(|segment| segment.kind).collect::<Vec<_>>(), parser.ended())
    };
    let long = "x".repeat(60);
    assert_eq!(read(Api::Chat, &format!("data: {long}\n\n")), (vec![EventKind::Token, EventKind::Other], false));
    let text = format!("event: response.completed\ndata: {long}\n\n");
    assert_eq!(read(Api::Responses, &text), (vec![EventKind::Token, EventKind::Other, EventKind::End], true));
    let text = format!("event: response.created\ndata: {long}\n\n");
    assert_eq!(read(Api::Responses, &text), (vec![EventKind::Other, EventKind::Other, EventKind::Preamble], false));
    let text = format!(": {long}\n\ndata: [DONE]\n\n");
    assert_eq!(read(Api::Chat, &text).0.last(), Some(&EventKind::End));
}

fn apis() -> impl Strategy<Value = Api> {
    prop_oneof![Just(Api::Chat), Just(Api::Completions), Just(Api::Responses), Just(Api::Messages), Just(Api::Other)]
}

/// Streams of likely and unlikely lines with each line end.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(TOKEN.trim_end().to_owned()),
        Just("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}".to_owned()),
        Just("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}".to_owned()),
        Just("data: [DONE]".to_owned()),
        Just("data: {\"error\":{\"code\":503}}".to_owned()),
        Just("event: response.output_text.delta".to_owned()),
        Just("event: response.completed".to_owned()),
        Just("event: message_start".to_owned()),
        Just(": keep-alive".to_owned()),
        Just("\u{feff}data: x".to_owned()),
        "[a-z:]{0,6}",
    ];
    let end =
        prop_oneof![Just("\n"), Just("\n\n"), Just("\r\n"), Just("\r\n\r\n"), Just("\r"), Just("\r\r"), Just("\n\r\n")];
    proptest::collection::vec((line, end), 0..12)
        .prop_map(|lines| lines.into_iter().flat_map(|(line, end)| [line.into_bytes(), end.into()].concat()).collect())
}

fn split(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

type Reading = (Vec<Segment>, Option<Segment>, Option<Usage>, bool, u64, Option<StreamError>);

fn reading(api: Api, chunks: &[Vec<u8>]) -> Reading {
    let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
    let (out, mut parser) = read(api, &chunks);
    let tail = parser.finish();
    (out, tail, parser.usage(), parser.ended(), parser.token_events(), parser.failed().cloned())
}

proptest! {
    #[test]
    fn any_split_reads_the_same(
        api in apis().prop_filter("opaque bytes have no events", |api| *api != Api::Other),
        stream in streams(),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let whole = reading(api, std::slice::from_ref(&stream));
        let raw: Vec<u8> = whole.0.iter().chain(&whole.1).flat_map(|segment| segment.raw.to_vec()).collect();
        prop_assert_eq!(&raw, &stream);
        prop_assert_eq!(&reading(api, &split(&stream, &cuts)), &whole);
        let bytes: Vec<Vec<u8>> = stream.iter().map(|byte| vec![*byte]).collect();
        prop_assert_eq!(&reading(api, &bytes), &whole);
    }

    #[test]
    fn arbitrary_bytes_pass_whole_and_in_bounds(
        api in apis(),
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b':')], 0..300),
        cuts in proptest::collection::vec(any::<usize>(), 0..20),
        max in 1..60_usize,
    ) {
        let (mut parser, mut out) = (Parser::with_max_event(api, max), Vec::new());
        let (mut taken, mut given) = (0, 0);
        for chunk in split(&bytes, &cuts) {
            taken += chunk.len();
            out.clear();
            parser.push(Bytes::from(chunk), &mut out);
            for segment in &out {
                prop_assert_eq!(&segment.raw, &bytes[given..given + segment.raw.len()]);
                given += segment.raw.len();
            }
            prop_assert!(taken - given <= max, "no more is held than the limit");
        }
        let tail = parser.finish().map_or_else(Bytes::new, |segment| segment.raw);
        prop_assert_eq!(&tail, &bytes[given..]);
    }
}
