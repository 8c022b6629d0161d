//! A refusal reaches the client, also one that sends all of its body before it reads, and stops what it should stop: the
//! libraries of OpenAI and Anthropic do not repeat a call that backends died of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::client::{Conn, chunked, post};
use crate::harness::{Forebay, Harness, eventually, free_port, ms};
use crate::mock::{CHAT, Mock, Script, Seen, Step, answer, stream, stream_head};

const PATH: &str = "/v1/chat/completions";
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const ENGINE_DEAD: &str = r#"{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}"#;

// ---- the lingering close -------------------------------------------------------------------------------------------

/// Sends all of a body, as Python's `http.client` does, and only then reads. The status of the answer.
fn sends_all_first(forebay: &Forebay, head: &str, body: &[u8]) -> u16 {
    let mut conn = Conn::open(forebay.address);
    conn.send(head.as_bytes());
    for piece in body.chunks(1 << 20) {
        conn.send(piece);
    }
    conn.answer().status
}

#[test]
fn a_refusal_reaches_a_client_that_sends_all_before_it_reads() {
    let mock = Mock::start();
    let hash: String = Sha256::digest(b"right").iter().map(|byte| format!("{byte:02x}")).collect();
    let forebay = Harness::new()
        .config("[clients]\nkeys_file = \"keys\"\n[limits]\nbody = \"4MiB\"")
        .file("keys", &format!("team = {hash}\n"))
        .pool("tiny", &[&mock])
        .start();
    let body = vec![b'x'; 20 << 20];
    let length = format!("content-length: {}\r\n", body.len());
    let right = "authorization: Bearer right\r\n";
    for _ in 0..3 {
        for (what, path, headers, status) in [
            ("a wrong key", PATH, format!("authorization: Bearer wrong\r\n{length}"), 401),
            ("an unknown path", "/nothing", format!("{right}{length}"), 404),
            ("a wrong method", "/v1/models", format!("{right}{length}"), 405),
            ("a declared length over the limit", PATH, format!("{right}{length}"), 413),
            ("an encoded body", PATH, format!("{right}content-encoding: br\r\ncontent-length: {}\r\n", 3 << 20), 415),
            ("two hosts", PATH, format!("host: g\r\n{right}{length}"), 400),
        ] {
            let head = format!("POST {path} HTTP/1.1\r\nhost: f\r\n{headers}\r\n");
            let sent = if status == 415 { &body[..3 << 20] } else { &body };
            assert_eq!(sends_all_first(&forebay, &head, sent), status, "{what}");
        }
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: f\r\n{right}transfer-encoding: chunked\r\n\r\n");
        assert_eq!(sends_all_first(&forebay, &head, &chunked(&body, 64 << 10)), 413, "a chunked body over the limit");
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn what_hyper_itself_refuses_reaches_a_client_that_sends_all_before_it_reads() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let body = vec![b'x'; 12 << 20];
    let length = format!("content-length: {}\r\n", body.len());
    let filler = "y".repeat(200_000);
    for _ in 0..3 {
        for (what, head, status) in [
            (
                "a head over its limit",
                format!("POST {PATH} HTTP/1.1\r\nhost: f\r\n{length}x-filler: {filler}\r\n\r\n"),
                431,
            ),
            ("a header with no name", format!("POST {PATH} HTTP/1.1\r\nhost: f\r\n{length}: x\r\n\r\n"), 400),
            ("two lengths", format!("POST {PATH} HTTP/1.1\r\nhost: f\r\n{length}content-length: 1\r\n\r\n"), 400),
            ("a path that is far too long", format!("POST /{filler} HTTP/1.1\r\nhost: f\r\n{length}\r\n"), 431),
        ] {
            assert_eq!(sends_all_first(&forebay, &head, &body), status, "{what}");
        }
        // A chunk whose size is none, in the middle of a body.
        let head =
            format!("POST {PATH} HTTP/1.1\r\nhost: f\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\nno size\r\n");
        assert_eq!(sends_all_first(&forebay, &head, &body), 400, "a chunk without a size");
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn a_client_that_sends_the_rest_after_the_refusal_is_read_on() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut conn = forebay.open();
    conn.send(
        format!("POST {PATH} HTTP/1.1\r\nhost: f\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\nno size\r\n")
            .as_bytes(),
    );
    // Nothing more was on its way when the connection ended.
    assert_eq!(conn.answer().status, 400);
    for piece in vec![b'x'; 12 << 20].chunks(1 << 20) {
        assert!(conn.try_send(piece), "a reset, which may take the answer with it");
    }
}

#[test]
fn a_client_that_stops_sending_a_refused_body_is_not_waited_for() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut conn = forebay.open();
    conn.send(b"POST /nothing HTTP/1.1\r\nhost: f\r\ncontent-length: 1000000\r\n\r\nx");
    assert_eq!(conn.answer().status, 404);
    let waited = conn.closed();
    assert!(waited < Duration::from_secs(9), "{waited:?}");
}

#[test]
fn a_connection_whose_refused_body_came_whole_goes_on() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut conn = forebay.open();
    assert_eq!(conn.ask(&post("/nothing", &[], &vec![b'x'; 4 << 20])).status, 404);
    assert_eq!(conn.ask(&post(PATH, &[], UNARY.as_bytes())).status, 200);
}

#[test]
fn a_connection_over_the_cap_reads_its_refusal_though_it_sends_first() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nmax_connections = 1").pool("tiny", &[&mock]).start();
    // Forebay's own first look at its listener is over once a connection is served.
    let first = eventually("a connection is served", || {
        let mut conn = forebay.open();
        (conn.try_send(&post(PATH, &[], UNARY.as_bytes())) && conn.head().status == 200).then_some(conn)
    });
    for _ in 0..10 {
        let mut conn = forebay.open();
        conn.send(&post(PATH, &[], &vec![b'x'; 1 << 20]));
        let answer = conn.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    }
    drop(first);
    eventually("there is room again", || {
        let mut conn = forebay.open();
        (conn.try_send(&post(PATH, &[], UNARY.as_bytes())) && conn.answer().status == 200).then_some(())
    });
}

// ---- what is not to be repeated ------------------------------------------------------------------------------------

/// As the libraries of OpenAI and Anthropic do: up to two retries, unless the answer forbids them.
fn call_as_the_libraries_do(forebay: &Forebay, body: &str) -> u16 {
    let mut last = 0;
    for _ in 0..3 {
        let answer = forebay.post(PATH, body);
        last = answer.status;
        let retries = match answer.header("x-should-retry") {
            Some("true") => true,
            Some("false") => false,
            _ => matches!(answer.status, 408 | 409 | 429 | 500..),
        };
        if !retries {
            break;
        }
    }
    last
}

#[test]
fn of_a_deadly_prompt_one_call_meets_at_most_two_engines() {
    type Play = fn() -> Script;
    let deaths: [(&str, bool, Play); 6] = [
        ("the connection closes", false, || vec![Step::Close]),
        ("the connection closes", true, || vec![Step::Close]),
        ("a stream ends without an event", true, || vec![stream_head(), Step::Close]),
        ("a 500 says so", false, || answer(500, &[], ENGINE_DEAD)),
        ("a 500 says so", true, || answer(500, &[], ENGINE_DEAD)),
        ("an event says so", true, || stream(&[format!("data: {ENGINE_DEAD}\n\n"), "data: [DONE]\n\n".to_owned()])),
    ];
    for (what, streamed, death) in deaths {
        let mocks = [0; 6].map(|_| Mock::replying(move |_: &Seen| death()));
        let forebay = Harness::new().config("[health]\nfailures = 100").pool("tiny", &mocks.each_ref()).start();
        let status = call_as_the_libraries_do(&forebay, if streamed { STREAM } else { UNARY });
        let met: usize = mocks.iter().map(|mock| mock.seen().len()).sum();
        assert_eq!((met, status), (2, 502), "{what}, stream: {streamed}");
    }
}

#[test]
fn a_single_engine_that_dies_of_a_prompt_is_not_given_it_again() {
    let mock = Mock::playing(vec![Step::Close]);
    let forebay = Harness::new().config("[health]\nfailures = 100").pool("tiny", &[&mock]).start();
    assert_eq!(call_as_the_libraries_do(&forebay, UNARY), 502);
    assert_eq!(mock.seen().len(), 1);
}

#[test]
fn one_death_and_another_failure_are_not_repeated_either() {
    // What the libraries repeat by itself.
    for status in [408, 409, 429, 500, 503] {
        let (one, other) = (Mock::start(), Mock::start());
        let first = Arc::new(AtomicBool::new(true));
        for mock in [&one, &other] {
            let first = Arc::clone(&first);
            mock.reply(move |_| {
                let dies = first.swap(false, Ordering::SeqCst);
                if dies { vec![Step::Close] } else { answer(status, &[], "{}") }
            });
        }
        let forebay = Harness::new().config("[health]\nfailures = 100").pool("tiny", &[&one, &other]).start();
        let answer = forebay.post(PATH, UNARY);
        assert_eq!((answer.status, answer.header("x-should-retry")), (status, Some("false")));
    }
}

#[test]
fn an_answer_that_took_too_long_is_not_to_be_repeated() {
    let mock = Mock::playing(vec![Step::AwaitClose]);
    for config in ["[stream]\ntotal_timeout = \"1s\"", "[stream]\nfirst_token_timeout = \"1s\"\n[retry]\nattempts = 1"]
    {
        let forebay = Harness::new().config(config).pool("tiny", &[&mock]).start();
        let answer = forebay.post(PATH, STREAM);
        assert_eq!((answer.status, answer.header("x-should-retry")), (504, Some("false")), "{config}");
    }
}

#[test]
fn what_may_be_repeated_is_not_forbidden() {
    let mock = Mock::playing(answer(500, &[], "{}"));
    let forebay = Harness::new().config("[health]\nfailures = 100").pool("tiny", &[&mock]).start();
    assert_eq!(forebay.post(PATH, UNARY).header("x-should-retry"), None);
    mock.reply(|_| answer(503, &[], "{}"));
    assert_eq!(forebay.post(PATH, UNARY).header("x-should-retry"), None);
    mock.reply(|_| answer(200, &[], CHAT));
    assert_eq!(forebay.post(PATH, UNARY).header("x-should-retry"), None);
}

// ---- while engines load --------------------------------------------------------------------------------------------

#[test]
fn while_all_engines_load_a_request_is_told_to_come_again() {
    let urls = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
    let pools =
        format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{}\" }}, {{ url = \"{}\" }}]", urls[0], urls[1]);
    let named_in_the_file = Harness::new().pools(&pools);
    let named_on_the_command_line = urls.iter().fold(Harness::new(), |harness, url| harness.arg("--backend").arg(url));
    for harness in [named_in_the_file, named_on_the_command_line] {
        let forebay = harness.start();
        let until = Instant::now() + ms(1500);
        // At once, and when they have been found out.
        while Instant::now() < until {
            for body in [UNARY, STREAM] {
                let answer = forebay.post(PATH, body);
                assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
                assert_eq!(answer.header("x-forebay-error"), Some("forebay_no_backend"));
                assert_eq!(answer.header("x-should-retry"), None);
            }
        }
    }
}

#[test]
fn engines_that_restart_are_loading_again() {
    let mocks = [Mock::start(), Mock::start()];
    let forebay = Harness::new()
        .config("[health]\ninterval = \"250ms\"\ntimeout = \"250ms\"")
        .pool("tiny", &mocks.each_ref())
        .start();
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
    mocks.iter().for_each(Mock::refuse);
    for mock in &mocks {
        forebay.await_state(mock, "ejected");
    }
    let answer = forebay.post(PATH, UNARY);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    mocks.iter().for_each(Mock::listen_again);
    eventually("they are back", || (forebay.post(PATH, UNARY).status == 200).then_some(()));
}
