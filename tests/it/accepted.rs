//! What vLLM accepts, Forebay accepts: bodies that only Python's parser takes, every spelling of a path, many headers. What it
//! does not serve is told as vLLM tells it.

use crate::client::post;
use crate::harness::{Forebay, Harness};
use crate::mock::{CHAT, Mock, answer};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

fn one(mock: &Mock) -> Forebay {
    Harness::new().pool("tiny", &[mock]).start()
}

fn in_utf16(text: &str, mark: &[u8], bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    mark.iter().copied().chain(text.encode_utf16().flat_map(bytes)).collect()
}

// ---- bodies --------------------------------------------------------------------------------------------------------

#[test]
fn a_body_that_pythons_parser_takes_is_passed_on_as_it_came() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let bodies: [&[u8]; 12] = [
        b"\xEF\xBB\xBF{\"model\":\"tiny\",\"messages\":[]}",
        b"{\"model\":\"tiny\",\"messages\":[],\"temperature\":NaN}",
        b"{\"model\":\"tiny\",\"x\":[Infinity,-Infinity],\"messages\":[]}",
        b"{\"model\":\"tiny\",\"messages\":[],\"user\":\"\\ud800\"}",
        b"{\"model\":\"tiny\",\"messages\":[],\"\\udfff\":1}",
        b"{\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"\\ud83d\"}]}",
        b"{\"model\":\"tiny\",\"messages\":[],\"x\":\"\xED\xA0\x80\"}",
        b"{\"model\":\"\",\"messages\":[]}",
        b"{\"model\":null,\"messages\":[]}",
        b"{\"model\":\"tiny\",\"stream\":0e0,\"messages\":[]}",
        b"{\"model\":\"tiny\",\"stream\":-0.0,\"messages\":[]}",
        b"\r\n\t {\"model\":\"tiny\",\"messages\":[]} \n",
    ];
    for body in bodies {
        let text = String::from_utf8_lossy(body);
        let answer = forebay.open().ask(&post(PATH, &[], body));
        assert_eq!((answer.status, answer.text().as_str()), (200, CHAT), "{text}: {}", answer.text());
        assert_eq!(mock.last().body, body, "{text}");
    }
}

#[test]
fn utf_16_and_utf_32_are_read_and_sent_on_in_utf_8() {
    let mock = Mock::start();
    let forebay = one(&mock);
    // The longer one is read on another thread.
    for content in ["h\u{e9}\u{1f600}".to_owned(), "\u{e9}\u{1f600}".repeat(10_000)] {
        let text = format!("{{\"model\":\"tiny\",\"messages\":[{{\"role\":\"user\",\"content\":\"{content}\"}}]}}");
        let utf32: Vec<u8> = text.chars().flat_map(|character| u32::from(character).to_le_bytes()).collect();
        for body in [
            in_utf16(&text, b"\xff\xfe", u16::to_le_bytes),
            in_utf16(&text, b"\xfe\xff", u16::to_be_bytes),
            in_utf16(&text, b"", u16::to_le_bytes),
            in_utf16(&text, b"", u16::to_be_bytes),
            utf32,
        ] {
            let answer = forebay.open().ask(&post(PATH, &[], &body));
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(mock.last().text() == text);
        }
    }
}

#[test]
fn a_body_in_utf_16_may_be_no_longer_in_utf_8_than_any_other() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nbody = \"24KiB\"").pool("tiny", &[&mock]).start();
    let ask = |characters: usize| {
        let text = format!("{{\"model\":\"tiny\",\"messages\":[],\"user\":\"{}\"}}", "\u{6f22}".repeat(characters));
        let body = in_utf16(&text, b"\xff\xfe", u16::to_le_bytes);
        assert!(body.len() < 24 << 10);
        forebay.open().ask(&post(PATH, &[], &body)).status
    };
    assert_eq!((ask(8_000), ask(10_000)), (200, 413));
}

#[test]
fn a_stream_that_is_asked_for_by_a_number_is_a_stream_with_usage() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for stream in ["1e0", "1.0", "10e-1", "\"TRUE\"", "NaN"] {
        let body = format!("{{\"model\":\"tiny\",\"stream\":{stream},\"messages\":[]}}");
        let answer = forebay.post(PATH, &body);
        assert_eq!(answer.status, 200, "{stream}: {}", answer.text());
        let asked = mock.last().text().contains("\"include_usage\":true");
        assert_eq!(asked, stream != "NaN", "{stream}");
    }
}

#[test]
fn what_no_parser_takes_is_refused() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for body in [
        &b"\xff\xfe"[..],
        b"\xff\xfe{",
        b"{\"model\":\"tiny\",\"x\":nan}",
        b"\xEF\xBB\xBF",
        b"\xEF\xBB\xBF[]",
        b"{\"x\":\xff}",
    ] {
        let answer = forebay.open().ask(&post(PATH, &[], body));
        assert_eq!(answer.status, 400, "{}: {}", String::from_utf8_lossy(body), answer.text());
        assert_eq!(answer.header("x-forebay-error"), Some("forebay_bad_request"));
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn a_body_that_is_not_encoded_may_say_so() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for (encoding, status) in
        [("Identity", 200), ("", 200), ("identity, IDENTITY", 200), ("br", 415), ("identity, br", 415)]
    {
        let answer = forebay.open().ask(&post(PATH, &[("content-encoding", encoding)], UNARY.as_bytes()));
        assert_eq!(answer.status, status, "{encoding:?}: {}", answer.text());
    }
}

// ---- paths ---------------------------------------------------------------------------------------------------------

#[test]
fn a_model_is_found_under_the_path_that_the_sdks_send() {
    let mock = Mock::start().serving("org/name");
    let forebay = one_named(&mock, "org/name");
    for path in ["/v1/models/org/name", "/v1/models/org%2Fname", "/v1/models/org%2fname/", "/v1/model%73/org%2Fname"] {
        let answer = forebay.get(path);
        assert_eq!((answer.status, answer.json()["id"].as_str()), (200, Some("org/name")), "{path}");
    }
    assert_eq!(forebay.get("/v1/models/org%252Fname").status, 404);
}

fn one_named(mock: &Mock, model: &str) -> Forebay {
    Harness::new().pool(model, &[mock]).start()
}

#[test]
fn a_path_is_served_in_every_spelling_and_sent_on_in_one() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for path in
        ["/v1/chat/completions/", "/v1%2Fchat%2Fcompletions", "/v1/chat/%63ompletions", "/%76%31/chat/completions//"]
    {
        let answer = forebay.post(&format!("{path}?a=%2F"), UNARY);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(mock.last().target, "/v1/chat/completions?a=%2F", "{path}");
    }
    assert_eq!(forebay.get("/health/").status, 200);
    assert_eq!(forebay.get("/v1/models/").status, 200);
}

#[test]
fn development_paths_stay_closed_in_every_spelling() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for path in [
        "/pause",
        "/pause/",
        "//pause",
        "/%70ause",
        "/%2Fpause",
        "/%2570ause",
        "/v1/../pause",
        "/v1/%2e%2e/pause",
        "/v1/..%2Fpause",
        "/v1/chat/completions/../../../pause",
        "/v1/chat/completions%2F..%2F..%2F..%2Fpause",
        "/v1/responses/../pause",
        "/v1/responses/..%2F..%2Fpause",
        "/v1/responses/%2e%2e/cancel",
        "/v1/models/../../pause",
        "/reset_prefix_cache%00",
        "/%ff/pause",
    ] {
        let answer = forebay.post(path, UNARY);
        assert!(matches!(answer.status, 404 | 405), "{path}: {}", answer.status);
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn a_wrong_method_is_405_and_names_the_right_ones() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for (method, path, allowed) in [
        ("GET", PATH, "POST"),
        ("PUT", "/v1/embeddings/", "POST"),
        ("TRACE", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("PATCH", "/v1/responses/r", "GET, DELETE"),
    ] {
        let answer =
            forebay.open().ask(format!("{method} {path} HTTP/1.1\r\nhost: f\r\ncontent-length: 0\r\n\r\n").as_bytes());
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        assert_eq!(answer.header("x-forebay-error"), Some("forebay_method_not_allowed"));
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn an_unknown_model_is_told_as_vllm_tells_it() {
    let mock = Mock::start();
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    for path in [PATH, "/v1/completions", "/v1/responses"] {
        let answer = forebay.post(path, r#"{"model":"nope","messages":[]}"#);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["type"].as_str(), error["param"].as_str(), error["code"].as_u64()),
            (404, Some("NotFoundError"), Some("model"), Some(404)),
            "{path}"
        );
        assert!(error["message"].as_str().unwrap().starts_with("The model `nope` does not exist"), "{error}");
        assert_eq!(answer.header("x-forebay-error"), Some("forebay_unknown_model"));
    }
    let answer = forebay.post("/v1/messages", r#"{"model":"nope","messages":[]}"#);
    assert_eq!(answer.json()["error"]["type"], "NotFoundError");
    let answer = forebay.get("/v1/models/nope");
    assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (404, Some("model")));
    let counted = ["outcome=\"forebay_unknown_model\""];
    crate::harness::eventually("five are counted", || {
        (forebay.metric("forebay_requests_total", &counted) == 5.0).then_some(())
    });
}

// ---- heads ---------------------------------------------------------------------------------------------------------

#[test]
fn a_head_may_have_many_short_headers_in_both_directions() {
    for count in [120, 900] {
        let many: Vec<(String, String)> = (0..count).map(|n| (format!("x-{n}"), n.to_string())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mock = Mock::playing(answer(200, &many, CHAT));
        let forebay = one(&mock);
        let answer = forebay.open().ask(&post(PATH, &many, UNARY.as_bytes()));
        assert_eq!(answer.status, 200, "{count}: {}", answer.text());
        let last = format!("x-{}", count - 1);
        assert_eq!(mock.only().header(&last), Some((count - 1).to_string().as_str()));
        assert_eq!(answer.header(&last), Some((count - 1).to_string().as_str()));
    }
}

#[test]
fn a_head_over_its_limit_is_refused() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let long = "x".repeat(70 << 10);
    assert_eq!(forebay.open().ask(&post(PATH, &[("x-long", &long)], b"")).status, 431);
}

// ---- forms ---------------------------------------------------------------------------------------------------------

#[test]
fn an_alias_in_a_form_is_sent_on_under_the_pools_name() {
    let mock = Mock::playing(answer(200, &[], "{}"));
    let forebay = Harness::new().pool_with("tiny", "aliases = [\"short\"]", &[&mock]).start();
    let form = |model: &str| {
        format!(
            "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF{}\r\n\
             --B\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n\
             --B\r\ncontent-disposition: form-data; name=\"language\"\r\n\r\nen\r\n--B--\r\n",
            // Long enough to be read on another thread.
            "s".repeat(20_000)
        )
    };
    let kind = [("content-type", "multipart/form-data; boundary=B")];
    let ask = |model: &str| forebay.open().ask(&post("/v1/audio/transcriptions", &kind, form(model).as_bytes()));
    assert_eq!(ask("short").status, 200);
    assert!(mock.last().text() == form("tiny"));
    assert_eq!(ask("tiny").status, 200);
    assert!(mock.last().text() == form("tiny"));
    // A backend that lists the alias gets it as it came.
    mock.probes(|target| {
        (target == "/v1/models").then(|| answer(200, &[], r#"{"data":[{"id":"tiny"},{"id":"short"}]}"#))
    });
    crate::harness::eventually("the alias is listed", || {
        assert_eq!(ask("short").status, 200);
        (mock.last().text() == form("short")).then_some(())
    });
}
