//! What a real vLLM 0.32.0 streamed is read as what it is, however its bytes are cut and with either line end.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::stream::{Api, EventKind, Parser, Usage, usage_of_body};

/// Prompt, completion and cached tokens.
type Counts = (u64, u64, Option<u64>);

/// Runs of: `c`omment, `p`reamble, `r` an event of a token that is no token event (role, block start), `t`oken event,
/// `u`sage, `e`rror, `.` end.
const STREAMS: [(&str, &str, Option<Counts>); 34] = [
    ("chat-stream", "r1 t8 .1", None),
    ("chat-stream-logprobs", "r1 t3 .1", None),
    ("chat-stream-n2", "r2 t16 u1 .1", Some((18, 16, None))),
    ("chat-stream-one-token", "r1 t1 .1", None),
    ("chat-stream-request-id", "r1 t7 .1", None),
    ("chat-stream-stop", "r1 t23 .1", None),
    ("chat-stream-token-ids", "r1 t8 .1", None),
    ("chat-stream-usage", "r1 t8 u1 .1", Some((18, 8, None))),
    ("chat-stream-usage-continuous", "r1 t7 u1 .1", Some((18, 8, None))),
    ("completion-echo-stream", "t2 .1", None),
    ("completion-stream", "t7 .1", None),
    ("completion-stream-n2", "t16 u1 .1", Some((7, 16, None))),
    ("completion-stream-one-token", "t1 .1", None),
    ("completion-stream-request-id", "t8 .1", None),
    ("completion-stream-stop", "t17 .1", None),
    ("completion-stream-token-ids", "t8 .1", None),
    ("completion-stream-usage", "t8 u1 .1", Some((7, 8, None))),
    ("completion-stream-usage-continuous", "t8 u1 .1", Some((7, 8, None))),
    ("completion-two-prompts-stream", "t6 u1 .1", Some((2, 6, None))),
    ("dev-stream-when-paused", "r1 t7 .1", None),
    ("drain-stream-running", "r1 t1474 u1 .1", Some((18, 1500, None))),
    ("drain-stream-second", "t1474 .1", None),
    ("engine-killed-stream-running", "r1 t178 e1 .1", None),
    ("engine-killed-stream-second", "t170 e1 .1", None),
    ("messages-stream", "r2 t8 r2 .1", Some((12, 8, None))),
    ("opt-chat-stream-cached-tokens-1", "r1 t8 u1 .1", Some((212, 8, Some(0)))),
    ("opt-chat-stream-cached-tokens-2", "r1 t7 u1 .1", Some((212, 8, Some(192)))),
    ("opt-chat-stream-queued", "c2 r1 t4 u1 .1", Some((18, 4, Some(0)))),
    ("opt-completion-stream-queued", "c2 t4 u1 .1", Some((7, 4, Some(0)))),
    ("responses-stream", "p2 r2 t2 r3 .1", Some((12, 8, Some(0)))),
    ("sigterm-stream-running", "r1 t179", None),
    ("sigterm-stream-second", "t172", None),
    ("worker-killed-stream-running", "r1 t128 e1 .1", None),
    ("worker-killed-stream-second", "e1 .1", None),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vllm-0.32.0/http")
}

/// Head and body of a recorded answer, the chunk framing taken off as far as the recording goes.
fn answer(name: &str) -> (String, Vec<u8>) {
    let raw = fs::read(folder().join(format!("{name}.response"))).unwrap();
    let Some(end) = memchr::memmem::find(&raw, b"\r\n\r\n") else { return (String::new(), raw) };
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let mut rest = &raw[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (head, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(line) = memchr::memmem::find(rest, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
    (head, body)
}

fn api(name: &str) -> Api {
    let request = fs::read(folder().join(format!("{name}.request"))).unwrap();
    match request.split(|byte| *byte == b' ').nth(1).unwrap() {
        b"/v1/chat/completions" => Api::Chat,
        b"/v1/completions" => Api::Completions,
        b"/v1/responses" => Api::Responses,
        b"/v1/messages" => Api::Messages,
        _ => Api::Other,
    }
}

/// Returns what the stream is read as, checked to be the input byte for byte.
fn read(api: Api, body: &[u8], size: usize) -> (String, Parser) {
    let (mut parser, mut out) = (Parser::new(api), Vec::new());
    for chunk in body.chunks(size) {
        parser.push(Bytes::copy_from_slice(chunk), &mut out);
    }
    let tail = parser.finish();
    let raw: Vec<u8> = out.iter().chain(&tail).flat_map(|segment| segment.raw.to_vec()).collect();
    assert_eq!(raw, body);
    let mut runs: Vec<(char, u32)> = Vec::new();
    for segment in &out {
        let letter = match segment.kind {
            EventKind::Comment => 'c',
            EventKind::Preamble => 'p',
            EventKind::Token if segment.token => 't',
            EventKind::Token => 'r',
            EventKind::Usage => 'u',
            EventKind::Error { .. } => 'e',
            EventKind::End => '.',
            EventKind::Other => 'o',
        };
        match runs.last_mut() {
            Some((last, count)) if *last == letter => *count += 1,
            _ => runs.push((letter, 1)),
        }
    }
    (runs.iter().map(|(letter, count)| format!("{letter}{count}")).collect::<Vec<_>>().join(" "), parser)
}

#[test]
fn recorded_streams_are_read_as_what_they_are() {
    for (name, kinds, usage) in STREAMS {
        let (api, (_, body)) = (api(name), answer(name));
        assert!(api != Api::Other && !body.is_empty(), "{name}");
        let crlf = String::from_utf8(body.clone()).unwrap().replace('\n', "\r\n").into_bytes();
        let cr = String::from_utf8(body.clone()).unwrap().replace('\n', "\r").into_bytes();
        for body in [&body, &crlf, &cr] {
            for size in [body.len(), 1, 7, 4096] {
                let (read, mut parser) = read(api, body, size);
                assert_eq!(read, kinds, "{name}, {size} bytes at a time");
                let usage = usage.map(|(prompt_tokens, completion_tokens, cached_tokens)| Usage {
                    prompt_tokens,
                    completion_tokens,
                    cached_tokens,
                });
                assert_eq!(parser.usage(), usage, "{name}");
                assert_eq!(parser.ended(), kinds.ends_with(".1"), "{name}");
                assert_eq!(parser.failed().is_some(), kinds.contains('e'), "{name}");
                assert!(parser.failed().is_none_or(|error| error.engine_dead && error.code == 500), "{name}");
                let tokens = kinds.split(' ').find_map(|run| run.strip_prefix('t')).map_or(0, |n| n.parse().unwrap());
                assert_eq!(parser.token_events(), tokens, "{name}");
                assert_eq!(parser.finish(), None, "{name}");
            }
        }
    }
}

#[test]
fn no_recorded_stream_is_left_out() {
    let mut streams: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".response")?.to_owned()))
        .filter(|name| answer(name).0.contains("text/event-stream"))
        .collect();
    streams.sort();
    let mut table = STREAMS.map(|(name, _, _)| name.to_owned());
    table.sort();
    assert_eq!(streams, table);
}

#[test]
fn recorded_unary_answers_tell_their_usage() {
    for (name, prompt_tokens, completion_tokens) in [
        ("chat", 18, 8),
        ("completion", 7, 8),
        ("completion-token-prompt", 4, 3),
        ("responses", 12, 8),
        ("messages", 12, 8),
    ] {
        let usage = usage_of_body(api(name), &answer(name).1);
        let expected = Usage { prompt_tokens, completion_tokens, cached_tokens: usage.and_then(|u| u.cached_tokens) };
        assert_eq!(usage, Some(expected), "{name}");
    }
    for name in ["chat-err-no-messages", "tokenize", "get-models", "overflow-messages-503"] {
        assert_eq!(usage_of_body(Api::Chat, &answer(name).1), None, "{name}");
    }
}
