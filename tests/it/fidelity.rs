//! Every recorded exchange with a real vLLM, replayed through Forebay: what the client gets is what the backend said, byte
//! for byte, however the bytes are cut.

use std::path::Path;

use serde_json::Value;

use crate::client::{Answer, Conn, End, chunked};
use crate::harness::{Forebay, Harness};
use crate::mock::{Mock, Script, Step, answer};

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

/// Headers that are a connection's own, or Forebay's.
const NOT_COMPARED: &[&str] = &[
    "connection",
    "keep-alive",
    "transfer-encoding",
    "retry-after",
    "x-request-id",
    "x-forebay-backend",
    "x-forebay-arm",
    "x-forebay-attempts",
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

    /// The chunks as they are sent; `with_usage` adds what a vLLM adds that is asked for usage.
    fn pieces(&self, sent: Sent, with_usage: bool) -> Vec<Vec<u8>> {
        let mut pieces = self.chunks.clone();
        if with_usage && self.is_chunked {
            let usage = b"data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"tiny\",\"choices\":[],\
                          \"usage\":{\"prompt_tokens\":7,\"total_tokens\":9,\"completion_tokens\":2}}\n\n";
            pieces.insert(pieces.len() - 1, usage.to_vec());
        }
        if matches!(sent, Sent::CrLf | Sent::CrLfOneByteChunks) {
            pieces = pieces.iter().map(|piece| crlf(piece)).collect();
        }
        pieces
    }

    /// What the client gets. A server started with `--enable-force-include-usage` (those of `opt-…`) sends usage unasked;
    /// where Forebay asked for it, it goes no further.
    fn expected(&self, sent: Sent, injected: bool) -> Vec<u8> {
        let mut pieces = self.pieces(sent, false);
        if injected && self.name.starts_with("opt-") {
            let is_usage = |piece: &[u8]| memchr::memmem::find(piece, b"\"choices\":[],\"usage\":{").is_some();
            pieces.retain(|piece| !is_usage(piece));
        }
        // Comments before the first event are dropped with the head that is held.
        if self.is_chunked {
            let first = pieces.iter().position(|piece| !piece.starts_with(b":")).unwrap_or(0);
            pieces.drain(..first);
        }
        pieces.concat()
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
        compare(&name, &recording.expected(sent, injected), recording, &answer);
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

#[test]
fn what_forebay_refuses_itself_reaches_no_backend() {
    let replay = Replay::new();
    let refused: Vec<&str> = CHANGED[..2].iter().flat_map(|(_, names)| names.iter().copied()).collect();
    for recording in allowed().iter().filter(|recording| refused.contains(&recording.name.as_str())) {
        let answer = replay.forebay.open().ask(&recording.request);
        assert_eq!(answer.status, recording.status(), "{}: {}", recording.name, answer.text());
        let kind = answer.json()["error"]["type"].as_str().unwrap().to_owned();
        assert!(kind.starts_with("forebay_"), "{}: {kind}", recording.name);
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
