//! Every recorded exchange with a real vLLM, replayed through Forebay: what the client gets is what the backend said, byte
//! for byte, however the bytes are cut.

use std::path::Path;

use serde_json::Value;

use crate::client::{Answer, Conn, End, chunked, post};
use crate::harness::{Forebay, Harness};
use crate::mock::{Mock, Script, Seen, Step, answer, stream, token};

const RECORDINGS: &str = "tests/fixtures/vllm-0.32.0/http";
/// POSTs to an allowed path among the recordings.
const ALLOWED: usize = 113;

/// Recordings whose answer is not passed on as it is, and why.
const CHANGED: &[(&str, &[&str])] = &[
    (
        "Forebay refuses the request itself: it is no JSON object",
        &[
            "chat-err-empty-body",
            "chat-err-json-not-object",
            "chat-err-malformed-json",
            "completion-err-empty-body",
            "completion-err-json-not-object",
            "completion-err-malformed-json",
        ],
    ),
    (
        "Forebay refuses the request itself: no pool serves the model",
        &[
            "chat-err-unknown-model",
            "chat-err-unknown-model-stream",
            "completion-err-unknown-model",
            "completion-err-unknown-model-stream",
            "messages-err-unknown-model",
            "responses-err-unknown-model",
        ],
    ),
    ("the backend never answered", &["dev-chat-while-paused", "sigterm-nonstream"]),
    (
        "the stream has no end: an error event and an unclean end (streams.rs)",
        &["sigterm-stream-running", "sigterm-stream-second"],
    ),
    ("an error event came first: it becomes a 500 (streams.rs)", &["worker-killed-stream-second"]),
];

/// Headers that are a connection's own, or Forebay's (docs/clients.md lists them).
const NOT_COMPARED: &[&str] = &[
    "connection",
    "keep-alive",
    "transfer-encoding",
    "retry-after",
    "x-request-id",
    "x-forebay-backend",
    "x-forebay-arm",
    "x-forebay-attempts",
    "x-should-retry",
    "x-accel-buffering",
];

/// How the backend sends its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    AsRecorded,
    /// A write for each byte.
    OneByteSegments,
    /// An HTTP chunk for each byte: Forebay reads no two together.
    OneByteChunks,
    /// The lines of a stream end in CRLF; each event is a chunk as it was.
    CrLf,
    CrLfOneByteChunks,
}

struct Recording {
    name: String,
    request: Vec<u8>,
    /// The answer's head with its blank line.
    head: Vec<u8>,
    /// The answer's body with its framing off, chunk by chunk.
    chunks: Vec<Vec<u8>>,
    is_chunked: bool,
}

fn split(message: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memmem::find(message, b"\r\n\r\n").map_or(message.len(), |at| at + 4);
    message.split_at(end)
}

fn unchunk(mut framed: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    while let Some(at) = memchr::memmem::find(framed, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&framed[..at]).unwrap(), 16).unwrap();
        if size == 0 || framed.len() < at + 2 + size {
            break;
        }
        chunks.push(framed[at + 2..at + 2 + size].to_vec());
        framed = &framed[at + 4 + size..];
    }
    chunks
}

impl Recording {
    fn read(path: &Path) -> Recording {
        let response = std::fs::read(path.with_extension("response")).unwrap();
        let (head, body) = split(&response);
        let is_chunked = String::from_utf8_lossy(head).contains("transfer-encoding: chunked");
        Recording {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            request: whole_request(&std::fs::read(path).unwrap()),
            head: head.to_vec(),
            chunks: if is_chunked { unchunk(body) } else { vec![body.to_vec()] },
            is_chunked,
        }
    }

    fn status(&self) -> u16 {
        String::from_utf8_lossy(&self.head).split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn headers(&self) -> Vec<(String, String)> {
        let head = String::from_utf8_lossy(&self.head).into_owned();
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect()
    }

    /// The chunks as they are sent; `with_usage` makes of them what a vLLM sends that is asked for usage: an event more, to which
    /// the fingerprint moves. A server started with `--enable-force-include-usage` (those of `opt-…`) sends usage in any case.
    fn pieces(&self, sent: Sent, with_usage: bool) -> Vec<Vec<u8>> {
        let mut pieces = self.chunks.clone();
        if with_usage && self.is_chunked && !self.name.starts_with("opt-") {
            let mut fingerprint = String::new();
            for piece in &mut pieces {
                let mut text = String::from_utf8(piece.clone()).unwrap();
                if let Some(at) = text.find(",\"system_fingerprint\":\"") {
                    let end = at + text[at..].find('}').unwrap();
                    fingerprint = text[at..end].to_owned();
                    text.replace_range(at..end, "");
                    *piece = text.into_bytes();
                }
            }
            let usage = format!(
                "data: {{\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\",\"choices\":[],\
                 \"usage\":{{\"prompt_tokens\":7,\"total_tokens\":9,\"completion_tokens\":2}}{fingerprint}}}\n\n"
            );
            pieces.insert(pieces.len() - 1, usage.into_bytes());
        }
        if matches!(sent, Sent::CrLf | Sent::CrLfOneByteChunks) {
            pieces = pieces.iter().map(|piece| crlf(piece)).collect();
        }
        pieces
    }

    /// What the client gets: what it got without Forebay.
    fn expected(&self, sent: Sent) -> Vec<u8> {
        self.pieces(sent, false).concat()
    }

    fn script(&self, sent: Sent, with_usage: bool) -> Script {
        let pieces = self.pieces(sent, with_usage);
        if !self.is_chunked {
            let bytes = [self.head.clone(), pieces.concat()].concat();
            return vec![if sent == Sent::OneByteSegments { Step::Trickle(bytes) } else { Step::Send(bytes) }];
        }
        let framed = match sent {
            Sent::OneByteChunks | Sent::CrLfOneByteChunks => chunked(&pieces.concat(), 1),
            _ => {
                let chunk = |piece: &Vec<u8>| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                pieces.iter().map(chunk).chain([b"0\r\n\r\n".to_vec()]).flatten().collect()
            }
        };
        let bytes = [self.head.clone(), framed].concat();
        vec![if sent == Sent::OneByteSegments { Step::Trickle(bytes) } else { Step::Send(bytes) }]
    }
}

/// Of long requests the recording has the beginning: a short one that means as much stands in for them.
fn whole_request(request: &[u8]) -> Vec<u8> {
    let (head, body) = split(request);
    let head = String::from_utf8(head.to_vec()).unwrap();
    let declared = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    match declared {
        Some(length) if length != body.len() => {
            let body = r#"{"model":"tiny","prompt":"too long","messages":[],"max_tokens":8}"#;
            let head = head.replace(&format!("Content-Length: {length}"), &format!("Content-Length: {}", body.len()));
            format!("{head}{body}").into_bytes()
        }
        _ => request.to_vec(),
    }
}

fn crlf(text: &[u8]) -> Vec<u8> {
    text.iter().flat_map(|byte| if *byte == b'\n' { b"\r\n".to_vec() } else { vec![*byte] }).collect()
}

/// Recordings made by a POST to an allowed path.
fn allowed() -> Vec<Recording> {
    let mut recordings: Vec<Recording> = std::fs::read_dir(RECORDINGS)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "request"))
        .map(|path| Recording::read(&path))
        .filter(|recording| {
            let line = String::from_utf8_lossy(&recording.request).lines().next().unwrap().to_owned();
            let path = line.split(' ').nth(1).unwrap_or_default();
            line.starts_with("POST ") && (path.starts_with("/v1/") || path.ends_with("tokenize"))
        })
        .collect();
    recordings.sort_by(|one, other| one.name.cmp(&other.name));
    recordings
}

fn passed_on() -> Vec<Recording> {
    let changed: Vec<&str> = CHANGED.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let all = allowed();
    assert_eq!(all.len(), ALLOWED, "recordings of a POST to an allowed path");
    for name in &changed {
        assert!(all.iter().any(|recording| recording.name == *name), "{name} is no recording");
    }
    all.into_iter().filter(|recording| !changed.contains(&recording.name.as_str())).collect()
}

struct Replay {
    mock: Mock,
    forebay: Forebay,
}

impl Replay {
    fn new() -> Replay {
        let mock = Mock::start();
        let keys = "aliases = [\"second-name\"]\nunknown_models = \"refuse\"";
        let forebay = Harness::new().pool_with("tiny", keys, &[&mock]).start();
        Replay { mock, forebay }
    }

    fn run(&self, recording: &Recording, sent: Sent) {
        let name = format!("{} {sent:?}", recording.name);
        let (_, asked) = split(&recording.request);
        let asked: Value = serde_json::from_slice(asked).unwrap_or_default();
        let injected = asks_for_no_usage(&recording.request, &asked);
        self.mock.next(recording.script(sent, injected));
        let answer = Conn::open(self.forebay.address).ask(&recording.request);
        compare(&name, &recording.expected(sent), recording, &answer);
        let seen = self.mock.last();
        let mut arrived: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        if injected {
            assert_eq!(arrived["stream_options"]["include_usage"], true, "{name}");
            arrived.as_object_mut().unwrap().remove("stream_options");
            assert_eq!(arrived, asked, "{name}");
        } else {
            assert_eq!(seen.text(), request_body(recording), "{name}: the request's body");
        }
    }
}

/// The request's body as the backend should get it: not chunked, and an alias that it does not list replaced.
fn request_body(recording: &Recording) -> String {
    let (_, body) = split(&recording.request);
    let body = match recording.name.as_str() {
        "completion-chunked-request" => unchunk(body).concat(),
        _ => body.to_vec(),
    };
    String::from_utf8(body).unwrap().replace("\"second-name\"", "\"tiny\"")
}

/// Whether Forebay asks for usage where the client did not.
fn asks_for_no_usage(request: &[u8], asked: &Value) -> bool {
    let line = String::from_utf8_lossy(request).lines().next().unwrap().to_owned();
    line.contains("completions") && asked["stream"] == true && asked["stream_options"]["include_usage"] != true
}

fn compare(name: &str, expected: &[u8], recording: &Recording, answer: &Answer) {
    assert_eq!(answer.status, recording.status(), "{name}: {}", answer.text());
    assert_eq!(answer.end, End::Whole, "{name}");
    let same = answer.body.iter().zip(expected).take_while(|(arrived, sent)| arrived == sent).count();
    let from = |body: &[u8]| String::from_utf8_lossy(&body[same..body.len().min(same + 200)]).into_owned();
    assert!(
        answer.body == expected,
        "{name}: the answer's body differs at {same}\n--- sent\n{}\n--- arrived\n{}",
        from(expected),
        from(&answer.body)
    );
    let compared = |headers: &[(String, String)]| {
        let mut kept: Vec<(String, String)> =
            headers.iter().filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str())).cloned().collect();
        kept.sort();
        kept
    };
    assert_eq!(compared(&answer.headers), compared(&recording.headers()), "{name}: the answer's headers");
}

/// Replays every recording that is passed on, in these ways; says how often.
fn replay(ways: &[Sent], only_streams: bool) -> usize {
    let replay = Replay::new();
    let mut count = 0;
    for recording in passed_on().iter().filter(|recording| recording.is_chunked || !only_streams) {
        for sent in ways {
            // A body of hundreds of kilobytes takes long byte by byte, and shows nothing more.
            if *sent != Sent::AsRecorded && recording.chunks.concat().len() > 100_000 {
                continue;
            }
            replay.run(recording, *sent);
        }
        count += 1;
    }
    count
}

#[test]
fn every_recorded_answer_arrives_byte_for_byte() {
    assert_eq!(replay(&[Sent::AsRecorded], false), 96);
}

#[test]
fn every_recorded_answer_arrives_byte_for_byte_in_segments_of_one_byte() {
    assert_eq!(replay(&[Sent::OneByteSegments], false), 96);
}

#[test]
fn every_recorded_stream_arrives_byte_for_byte_in_chunks_of_one_byte_and_with_crlf() {
    assert_eq!(replay(&[Sent::OneByteChunks, Sent::CrLf, Sent::CrLfOneByteChunks], true), 31);
}

// ---- with and without usage ----------------------------------------------------------------------------------------

/// A vLLM 0.32.0 as it streams by its options: `serving.py` of chat and of completions.
fn streaming(seen: &Seen, forced: bool, fingerprint: Option<&str>, early: bool) -> Script {
    let body = seen.json();
    let chat = seen.target.contains("chat");
    let asked = body["stream_options"]["include_usage"] == true;
    let each = forced || (asked && body["stream_options"]["continuous_usage_stats"] == true);
    let n = body["n"].as_u64().unwrap_or(1);
    let usage = |tokens: u64| {
        format!("\"usage\":{{\"prompt_tokens\":7,\"total_tokens\":{},\"completion_tokens\":{tokens}}}", 7 + tokens)
    };
    let stamp = fingerprint.map_or_else(String::new, |text| format!(",\"system_fingerprint\":\"{text}\""));
    let event = |choice: &str, tokens: u64, last: bool| {
        let usage = if each { format!(",{}", usage(tokens)) } else { String::new() };
        let stamp = if last && !asked && !forced { &stamp } else { "" };
        format!(
            "data: {{\"id\":\"x\",\"object\":\"x\",\"created\":1,\"model\":\"tiny\",\"choices\":[{choice}]{usage}{stamp}}}\n\n"
        )
    };
    let deltas: &[&str] = match (chat, body["play"].as_str()) {
        (true, Some("tools")) => &[
            r#""delta":{"tool_calls":[{"id":"c","type":"function","index":0,"function":{"name":"f","arguments":""}}]}"#,
            r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"usage\":{}, \"finish_reason\":\"x\"}"}}]}"#,
        ],
        (true, Some("reasoning")) => &[r#""delta":{"reasoning":"hm"}"#, r#""delta":{"content":"so"}"#],
        (true, _) => &[r#""delta":{"content":"a"}"#, r#""delta":{"content":"b"}"#],
        (false, _) => &[r#""text":"a""#, r#""text":"b""#],
    };
    let mut pieces = Vec::new();
    if chat {
        pieces.extend((0..n).map(|i| {
            event(
                &format!(
                    "{{\"index\":{i},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"finish_reason\":null}}"
                ),
                0,
                false,
            )
        }));
    }
    for (step, delta) in (1..).zip(deltas) {
        for i in 0..n {
            // One sequence may end a token before the others.
            let ends = if early && i == 0 { 1 } else { 2 };
            if step <= ends {
                let finish = if step == ends { "\"stop\"" } else { "null" };
                let choice = format!("{{\"index\":{i},{delta},\"logprobs\":null,\"finish_reason\":{finish}}}");
                pieces.push(event(&choice, step, step == ends));
            }
        }
    }
    if asked || forced {
        let usage = usage(2 * n);
        pieces.push(format!(
            "data: {{\"id\":\"x\",\"object\":\"x\",\"created\":1,\"model\":\"tiny\",\"choices\":[],{usage}{stamp}}}\n\n"
        ));
    }
    pieces.push("data: [DONE]\n\n".to_owned());
    stream(&pieces)
}

#[test]
fn a_client_gets_what_it_gets_without_forebay_whatever_it_asks_and_however_the_server_was_started() {
    const OPTIONS: [&str; 6] = [
        "",
        r#","stream_options":null"#,
        r#","stream_options":{"include_usage":false}"#,
        r#","stream_options":{"continuous_usage_stats":true}"#,
        r#","stream_options":{"include_usage":true}"#,
        r#","stream_options":{"include_usage":true,"continuous_usage_stats":true}"#,
    ];
    const PLAYS: [&str; 4] = ["", r#","play":"tools""#, r#","play":"reasoning""#, r#","n":3"#];
    for (forced, fingerprint) in [(false, Some("vllm-1")), (false, None), (true, Some("vllm-1"))] {
        let mock = Mock::replying(move |seen: &Seen| streaming(seen, forced, fingerprint, false));
        let forebay = Harness::new().pool("tiny", &[&mock]).start();
        let direct = mock.authority().parse().unwrap();
        for path in ["/v1/chat/completions", "/v1/completions"] {
            for (options, play) in OPTIONS.iter().flat_map(|options| PLAYS.map(|play| (options, play))) {
                let body = format!(r#"{{"model":"tiny","stream":true,"prompt":"x","messages":[]{options}{play}}}"#);
                let without = Conn::open(direct).ask(&post(path, &[], body.as_bytes()));
                let with = forebay.post(path, &body);
                let what = format!("{path} {body}, forced: {forced}, {fingerprint:?}");
                assert_eq!(with.end, End::Whole, "{what}");
                assert_eq!(with.text(), without.text(), "{what}");
            }
        }
    }
}

#[test]
fn a_sequence_that_ends_early_has_its_fingerprint_once_the_backend_is_known() {
    let mock = Mock::replying(|seen: &Seen| streaming(seen, false, Some("vllm-1"), true));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let direct = mock.authority().parse().unwrap();
    let body = r#"{"model":"tiny","stream":true,"n":2,"messages":[]}"#;
    assert_eq!(forebay.post("/v1/chat/completions", body).status, 200);
    let without = Conn::open(direct).ask(&post("/v1/chat/completions", &[], body.as_bytes()));
    assert_eq!(forebay.post("/v1/chat/completions", body).text(), without.text());
}

// ---- the ends of a stream ------------------------------------------------------------------------------------------

#[test]
fn comments_before_the_first_event_arrive_with_it_and_are_bounded() {
    let play = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let plays = std::sync::Arc::clone(&play);
    let mock = Mock::replying(move |_: &Seen| stream(&plays.lock().unwrap()));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let body = r#"{"model":"tiny","stream":true,"messages":[]}"#;
    let keep_alive = || ": keep-alive\n\n".to_owned();
    for first in [vec![keep_alive()], vec![keep_alive(), ": two\n: lines\n\n".to_owned(), "\n".to_owned()], vec![]] {
        let pieces = [first, vec![token("a"), keep_alive(), "data: [DONE]\n\n".to_owned()]].concat();
        play.lock().unwrap().clone_from(&pieces);
        assert_eq!(forebay.post("/v1/chat/completions", body).text(), pieces.concat());
    }
    let many = vec![keep_alive(); 5000];
    *play.lock().unwrap() = [many, vec![token("a"), "data: [DONE]\n\n".to_owned()]].concat();
    let got = forebay.post("/v1/chat/completions", body);
    assert!(got.text().starts_with(": keep-alive") && got.text().ends_with("data: [DONE]\n\n"));
    assert!(got.body.len() < 20 << 10, "{} bytes", got.body.len());
}

#[test]
fn the_last_bytes_of_a_stream_arrive_without_a_line_end() {
    let usage = "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}";
    let last = token("b");
    let cases: [(Vec<String>, Option<String>); 7] = [
        (vec![token("a"), "data: [DONE]".to_owned()], None),
        (vec![token("a"), "data: [DONE]\n".to_owned()], None),
        (vec![token("a"), "data: [DONE]\r\n".to_owned()], None),
        (vec!["data: [DONE]".to_owned()], None),
        (vec![format!("{}data: [DONE]", token("a"))], None),
        // The usage that Forebay asked for is taken out there, too.
        (
            vec![token("a"), "data: [DONE]\n\n".to_owned(), usage.to_owned()],
            Some(format!("{}data: [DONE]\n\n", token("a"))),
        ),
        (vec![token("a"), "data: [DONE]\n\n".to_owned(), ": bye".to_owned()], None),
    ];
    for (pieces, expected) in cases {
        let mock = Mock::playing(stream(&pieces));
        let forebay = Harness::new().pool("tiny", &[&mock]).start();
        let got = forebay.post("/v1/chat/completions", r#"{"model":"tiny","stream":true,"messages":[]}"#);
        let expected = expected.unwrap_or_else(|| pieces.concat());
        assert_eq!((got.status, got.text(), got.end), (200, expected, End::Whole), "{pieces:?}");
        assert_eq!(forebay.record(got.header("x-request-id").unwrap())["outcome"], "success", "{pieces:?}");
    }
    // Without its end mark the stream was cut: its last event arrives, and then an event of its own says so.
    let mock = Mock::playing(stream(&[token("a"), last.trim_end().to_owned()]));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let got = forebay.post("/v1/chat/completions", r#"{"model":"tiny","stream":true,"messages":[]}"#);
    assert!(got.text().starts_with(&format!("{}{last}data: {{\"error\"", token("a"))), "{}", got.text());
    assert_eq!(got.end, End::Cut);
    // A first event without its line end is one.
    let mock = Mock::playing(stream(&[last.trim_end()]));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let got = forebay.post("/v1/chat/completions", r#"{"model":"tiny","stream":true,"messages":[]}"#);
    assert!(got.text().starts_with(&last), "{}", got.text());
}

#[test]
fn what_forebay_refuses_itself_reaches_no_backend() {
    let replay = Replay::new();
    let refused: Vec<&str> = CHANGED[..2].iter().flat_map(|(_, names)| names.iter().copied()).collect();
    for recording in allowed().iter().filter(|recording| refused.contains(&recording.name.as_str())) {
        let answer = replay.forebay.open().ask(&recording.request);
        assert_eq!(answer.status, recording.status(), "{}: {}", recording.name, answer.text());
        let kind = answer.header("x-forebay-error").unwrap();
        assert!(kind.starts_with("forebay_"), "{}: {kind}", recording.name);
        if kind == "forebay_unknown_model" {
            let recorded: Value = serde_json::from_slice(&recording.chunks.concat()).unwrap();
            for member in ["type", "param", "code"] {
                assert_eq!(answer.json()["error"][member], recorded["error"][member], "{}", recording.name);
            }
        }
    }
    assert!(replay.mock.seen().is_empty());
}

#[test]
fn a_recorded_error_event_that_came_first_becomes_a_500() {
    let replay = Replay::new();
    let recording = allowed().into_iter().find(|recording| recording.name == "worker-killed-stream-second").unwrap();
    replay.mock.next(recording.script(Sent::AsRecorded, false));
    let got = replay.forebay.open().ask(&recording.request);
    assert_eq!(got.status, 500, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], 500);
    // Another request is not hurt.
    replay.mock.next(answer(200, &[], crate::mock::CHAT));
    assert_eq!(replay.forebay.post("/v1/chat/completions", r#"{"messages":[]}"#).status, 200);
}
