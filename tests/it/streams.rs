//! Streams from the head to their end: what the client gets and when, how a cut stream ends, and what follows a failure
//! before the first token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::BodyExt;

use crate::client::{A_WHILE, Answer, Conn, End, on_h2, post, read_h2};
use crate::harness::{Forebay, Harness, eventually, free_port, ms};
use crate::mock::{
    CHAT, DONE, Gate, Mock, Script, Seen, Step, USAGE, answer, chunk, last_chunk, like_vllm, stream, stream_head, token,
};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const WITH_USAGE: &str = r#"{"model":"tiny","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;

fn one(mock: &Mock) -> Forebay {
    Harness::new().pool("tiny", &[mock]).start()
}

fn one_with(mock: &Mock, config: &str) -> Forebay {
    Harness::new().config(config).pool("tiny", &[mock]).start()
}

/// Two backends, of which the one that gets the first request plays this for it.
fn first_plays(script: Script) -> (Mock, Mock) {
    let played = Arc::new(AtomicBool::new(false));
    let handler = move |seen: &Seen| if played.swap(true, Ordering::SeqCst) { like_vllm(seen) } else { script.clone() };
    let handler = Arc::new(handler);
    let same = Arc::clone(&handler);
    (Mock::replying(move |seen| handler(seen)), Mock::replying(move |seen| same(seen)))
}

fn two(mocks: &(Mock, Mock)) -> Forebay {
    Harness::new().pool("tiny", &[&mocks.0, &mocks.1]).start()
}

fn assert_clean(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.end, End::Whole, "{}", answer.text());
    assert!(answer.text().ends_with(DONE), "{}", answer.text());
}

// ---- the head ------------------------------------------------------------------------------------------------------

#[test]
fn the_head_is_held_until_the_first_token() {
    let (sent, go) = (Gate::new(), Gate::new());
    let mock = Mock::playing(vec![
        stream_head(),
        chunk(": keep-alive\n\n"),
        chunk(": keep-alive\n\n"),
        Step::Tell(sent.clone()),
        Step::Wait(go.clone()),
        chunk(token("Hi")),
        chunk(": passed on\n\n"),
        chunk(DONE),
        last_chunk(),
    ]);
    let forebay = one(&mock);
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    sent.pass();
    assert!(client.is_quiet_for(A_WHILE));
    go.open();
    let answer = client.answer();
    assert_clean(&answer);
    assert_eq!(answer.text(), format!("{}{}: passed on\n\n{DONE}", ": keep-alive\n\n".repeat(2), token("Hi")));
}

#[test]
fn the_head_is_held_over_the_preamble_of_responses() {
    let (sent, go) = (Gate::new(), Gate::new());
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
    let progress = created.replace("created", "in_progress");
    let delta =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n";
    let done =
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\"}}\n\n";
    let mock = Mock::playing(vec![
        stream_head(),
        chunk(created),
        chunk(&progress),
        Step::Tell(sent.clone()),
        Step::Wait(go.clone()),
        chunk(delta),
        chunk(done),
        last_chunk(),
    ]);
    let forebay = one(&mock);
    let mut client = forebay.open();
    client.send(&post("/v1/responses", &[], br#"{"model":"tiny","stream":true,"input":"x"}"#));
    sent.pass();
    assert!(client.is_quiet_for(A_WHILE));
    go.open();
    assert_eq!(client.answer().text(), [created, progress.as_str(), delta, done].concat());
}

#[test]
fn each_token_reaches_the_client_before_the_next_is_sent() {
    let gates: Vec<Gate> = (0..5).map(|_| Gate::new()).collect();
    let mut script = vec![stream_head()];
    for (n, gate) in gates.iter().enumerate() {
        script.extend([chunk(token(&format!("t{n}"))), Step::Wait(gate.clone())]);
    }
    script.extend([chunk(DONE), last_chunk()]);
    let mock = Mock::playing(script);
    let forebay = one(&mock);
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    assert_eq!(client.head().status, 200);
    for (n, gate) in gates.iter().enumerate() {
        assert_eq!(client.chunk().unwrap(), token(&format!("t{n}")).as_bytes());
        gate.open();
    }
}

#[test]
fn our_headers_say_who_served_it() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for body in [STREAM, UNARY] {
        let answer = forebay.post(PATH, body);
        assert_eq!(answer.header("x-forebay-backend"), Some(mock.authority().as_str()));
        assert_eq!(answer.header("x-forebay-arm"), Some("default"));
        assert_eq!(answer.header("x-forebay-attempts"), Some("1"));
        assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
    }
}

// ---- usage ---------------------------------------------------------------------------------------------------------

#[test]
fn usage_is_asked_for_and_its_event_kept_from_a_client_that_did_not_ask() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let answer = forebay.post(PATH, STREAM);
    assert_clean(&answer);
    assert_eq!(answer.text(), [token("Hel"), token("lo"), DONE.to_owned()].concat());
    let seen = mock.only().json();
    assert_eq!(seen["stream_options"]["include_usage"], true);
    let record = forebay.record(answer.header("x-request-id").unwrap());
    assert_eq!((&record["prompt_tokens"], &record["output_tokens"]), (&7.into(), &2.into()));
    assert_eq!(record["token_source"], "usage");
}

#[test]
fn usage_goes_to_a_client_that_asked_for_it() {
    let mock = Mock::start();
    let answer = one(&mock).post(PATH, WITH_USAGE);
    assert_eq!(answer.text(), [&token("Hel"), &token("lo"), USAGE, DONE].concat());
    assert_eq!(mock.only().text(), WITH_USAGE);
}

#[test]
fn include_usage_false_means_no_usage_event() {
    let mock = Mock::start();
    let body = r#"{"stream_options":{"include_usage":false,"other":1},"stream":true,"messages":[]}"#;
    let answer = one(&mock).post(PATH, body);
    assert_eq!(answer.text(), [token("Hel"), token("lo"), DONE.to_owned()].concat());
    let options = &mock.only().json()["stream_options"];
    assert_eq!((&options["include_usage"], &options["other"]), (&true.into(), &1.into()));
}

#[test]
fn usage_as_sent_leaves_the_request_alone() {
    let mock = Mock::start();
    let forebay = one_with(&mock, "[stream]\nusage = \"as_sent\"");
    assert_clean(&forebay.post(PATH, STREAM));
    assert_eq!(mock.only().text(), STREAM);
}

#[test]
fn the_usage_event_is_kept_from_the_client_wherever_the_bytes_are_cut() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let mut client = forebay.open();
    for ends in ["\n", "\r\n"] {
        let events = [token("Hi"), USAGE.to_owned(), DONE.to_owned()].map(|event| event.replace('\n', ends));
        let whole = events.concat();
        let expected = [events[0].as_str(), &events[2]].concat();
        // Cut within the usage event, each byte of it, and around.
        for at in events[0].len() - 2..events[0].len() + events[1].len() + 2 {
            mock.next(stream(&[&whole[..at], &whole[at..]]));
            let answer = client.ask(&post(PATH, &[], STREAM.as_bytes()));
            assert_eq!(answer.text(), expected, "cut at {at}");
            assert_eq!(answer.end, End::Whole);
        }
    }
}

// ---- how a stream ends badly ---------------------------------------------------------------------------------------

/// The last event, as JSON.
fn last_event(text: &str) -> serde_json::Value {
    let line = text.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    serde_json::from_str(&line[6..]).unwrap_or_else(|_| panic!("no JSON at the end of {text}"))
}

fn assert_cut(text: &str, first: &str, reason: &str) {
    assert!(text.starts_with(first), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    assert!(text.ends_with("\n\n"), "{text}");
    let error = &last_event(text)["error"];
    assert_eq!(error["type"], "forebay_stream_cut", "{text}");
    assert!(error["message"].as_str().unwrap().contains(reason), "{text}");
}

/// Streams that break off after a token, and what the error event calls it.
fn broken() -> Vec<(Script, &'static str)> {
    let begin = vec![stream_head(), chunk(token("Hi"))];
    let with = |steps: Vec<Step>| [begin.clone(), steps].concat();
    vec![
        (with(vec![last_chunk()]), "truncated"),
        (with(vec![Step::Close]), "truncated"),
        (with(vec![Step::Send(b"5\r\ndat".to_vec()), Step::Close]), "truncated"),
        (with(vec![Step::AwaitClose]), "idle_timeout"),
    ]
}

#[test]
fn a_stream_without_its_end_ends_with_an_error_event_and_uncleanly() {
    let mock = Mock::start();
    let forebay = one_with(&mock, "[stream]\nidle_timeout = \"300ms\"");
    for (script, reason) in broken() {
        mock.next(script);
        let answer = forebay.post(PATH, STREAM);
        assert_eq!(answer.status, 200);
        assert_cut(&answer.text(), &token("Hi"), reason);
        assert_eq!(answer.end, End::Cut, "{reason}: the last chunk was sent");
        let record = forebay.record(answer.header("x-request-id").unwrap());
        assert_eq!(record["outcome"], reason);
    }
    mock.await_closes(1);
}

#[test]
fn a_reset_mid_stream_ends_with_an_error_event_and_uncleanly() {
    let go = Gate::new();
    let mock = Mock::playing(vec![stream_head(), chunk(token("Hi")), Step::Wait(go.clone()), Step::Reset]);
    let forebay = one(&mock);
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    go.open();
    let answer = client.answer();
    assert_cut(&answer.text(), &token("Hi"), "truncated");
    assert_eq!(answer.end, End::Cut);
}

#[test]
fn over_h2_a_stream_without_its_end_ends_with_an_error_event_and_a_reset() {
    let mock = Mock::start();
    let forebay = one_with(&mock, "[stream]\nidle_timeout = \"300ms\"");
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        for (script, reason) in broken() {
            mock.next(script);
            let answer = h2.post(PATH, STREAM).await;
            assert_eq!(answer.status(), 200);
            let (body, end) = read_h2(answer.into_body()).await;
            assert_cut(&String::from_utf8(body).unwrap(), &token("Hi"), reason);
            let error = end.expect_err("a reset");
            assert!(error.contains("Reset"), "{error}");
        }
    });
}

#[test]
fn each_api_is_told_of_a_cut_in_its_own_form() {
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{}}}\n\n";
    let mock = Mock::playing(stream(&[start]));
    let forebay = one(&mock);
    let answer = forebay.post("/v1/messages", r#"{"model":"tiny","stream":true,"max_tokens":1,"messages":[]}"#);
    assert!(answer.text().contains("event: error\ndata: "), "{}", answer.text());
    let event = last_event(&answer.text());
    assert_eq!((&event["type"], &event["error"]["type"]), (&"error".into(), &"forebay_stream_cut".into()));
    let delta =
        "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n";
    mock.next(stream(&[delta]));
    let answer = forebay.post("/v1/responses", r#"{"model":"tiny","stream":true,"input":"x"}"#);
    assert!(answer.text().contains("event: error\ndata: "), "{}", answer.text());
    assert_eq!(last_event(&answer.text())["code"], "forebay_stream_cut");
    assert_eq!(answer.end, End::Cut);
}

#[test]
fn the_total_time_ends_a_stream_that_never_stops() {
    let mock = Mock::playing(vec![stream_head(), Step::Flood(chunk_bytes(&token("Hi")))]);
    let forebay = one_with(&mock, "[stream]\ntotal_timeout = \"400ms\"");
    let answer = forebay.post(PATH, STREAM);
    assert_cut(&answer.text(), &token("Hi"), "total_timeout");
    assert_eq!(answer.end, End::Cut);
    mock.await_closes(1);
}

fn chunk_bytes(text: &str) -> Vec<u8> {
    match chunk(text) {
        Step::Send(bytes) => bytes,
        _ => unreachable!("a chunk is bytes to send"),
    }
}

#[test]
fn the_total_time_before_any_token_is_504() {
    let mock = Mock::playing(vec![stream_head(), Step::AwaitClose]);
    let forebay = one_with(&mock, "[stream]\ntotal_timeout = \"300ms\"");
    for body in [STREAM, UNARY] {
        let answer = forebay.post(PATH, body);
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "forebay_timeout");
    }
    mock.await_closes(2);
}

#[test]
fn no_first_token_in_time_moves_on() {
    let mocks = first_plays(vec![stream_head(), chunk(": keep-alive\n\n"), Step::AwaitClose]);
    let forebay =
        Harness::new().config("[stream]\nfirst_token_timeout = \"250ms\"").pool("tiny", &[&mocks.0, &mocks.1]).start();
    let answer = forebay.post(PATH, STREAM);
    assert_clean(&answer);
    assert_eq!(answer.header("x-forebay-attempts"), Some("2"));
    eventually("the first backend's connection is closed", || {
        (mocks.0.closes().len() + mocks.1.closes().len() == 1).then_some(())
    });
}

#[test]
fn an_error_event_after_the_first_token_passes_as_it_came() {
    let error =
        "data: {\"error\":{\"message\":\"boom\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}\n\n";
    let mock = Mock::playing(stream(&[&token("Hi"), error, DONE]));
    let forebay = one(&mock);
    let answer = forebay.post(PATH, STREAM);
    assert_clean(&answer);
    assert_eq!(answer.text(), [&token("Hi"), error, DONE].concat());
    assert_eq!(forebay.record(answer.header("x-request-id").unwrap())["outcome"], "error_event");
}

#[test]
fn a_unary_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let long = "x".repeat(200_000);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 200001\r\n\r\n";
    let mock = Mock::playing(vec![Step::Send(format!("{head}{long}").into_bytes()), Step::Close]);
    let forebay = one(&mock);
    let answer = forebay.post(PATH, UNARY);
    assert_eq!((answer.status, answer.end), (200, End::Cut));
    // A small one is read whole before anything is sent.
    mock.next(vec![
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{".to_vec()),
        Step::Close,
    ]);
    let answer = forebay.post(PATH, UNARY);
    assert_eq!(answer.status, 502, "{}", answer.text());
}

#[test]
fn a_client_that_leaves_in_any_way_closes_the_backends_connection() {
    let mock = Mock::playing(vec![stream_head(), chunk(token("Hi")), Step::AwaitClose]);
    let forebay = one(&mock);
    let leaves: [fn(Conn); 3] = [drop, Conn::reset, |client| {
        client.half_close();
        // A client that has closed its half is gone, though it could still read.
        std::mem::forget(client);
    }];
    for (n, leave) in leaves.into_iter().enumerate() {
        let mut client = forebay.open();
        client.send(&post(PATH, &[], STREAM.as_bytes()));
        client.until("Hi");
        leave(client);
        mock.await_closes(n + 1);
    }
    eventually("all are logged", || (forebay.access().len() == 3).then_some(()));
    assert!(forebay.access().iter().all(|record| record["outcome"] == "client_left"));
}

// ---- failures before the first token -------------------------------------------------------------------------------

#[test]
fn a_failure_before_the_first_token_goes_to_the_next_backend() {
    let error =
        "data: {\"error\":{\"message\":\"boom\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}\n\n";
    let failures: Vec<(&str, Script)> = vec![
        ("closed", vec![Step::Close]),
        ("reset", vec![Step::Reset]),
        ("head and closed", vec![stream_head(), Step::Close]),
        ("head, comment and end", stream(&[": keep-alive\n\n"])),
        ("error event", stream(&[error, DONE])),
        ("500", answer(500, &[], "{}")),
        ("502", answer(502, &[], "{}")),
        ("504", answer(504, &[], "{}")),
        ("503", answer(503, &[], "{}")),
        ("429", answer(429, &[("retry-after", "7")], "{}")),
        ("404 for the model", answer(404, &[], MODEL_UNKNOWN)),
        ("no HTTP", vec![Step::Send(b"garbage\r\n\r\n".to_vec()), Step::Close]),
    ];
    for (name, script) in failures {
        let mocks = first_plays(script);
        let forebay = two(&mocks);
        let answer = forebay.post(PATH, STREAM);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_clean(&answer);
        assert_eq!(answer.header("x-forebay-attempts"), Some("2"), "{name}");
        let (one, other) = (mocks.0.only(), mocks.1.only());
        assert_eq!(one.body, other.body, "{name}");
        assert_eq!(one.header("x-request-id"), other.header("x-request-id"), "{name}");
    }
}

#[test]
fn a_refused_connection_goes_to_the_next_backend() {
    let mock = Mock::start();
    let dead = free_port();
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\npolicy = \"round_robin\"\nbackends = [{{ url = \"http://127.0.0.1:{dead}\" }}, \
         {{ url = \"{}\" }}]\n",
        mock.url()
    );
    let forebay = Harness::new().pools(&pools).start();
    for _ in 0..3 {
        let answer = forebay.post(PATH, UNARY);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-forebay-backend"), Some(mock.authority().as_str()));
    }
}

#[test]
fn a_pool_whose_backends_were_never_there_is_503() {
    let pools = format!(
        "[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"http://127.0.0.1:{}\" }}, {{ url = \"http://127.0.0.1:{}\" }}]\n",
        free_port(),
        free_port()
    );
    let forebay = Harness::new().pools(&pools).start();
    let answer = forebay.post(PATH, UNARY);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.text());
    assert_eq!(answer.json()["error"]["type"], "forebay_no_backend");
    assert!(answer.header("x-request-id").is_some());
}

#[test]
fn the_last_real_answer_passes_with_retry_after() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for (status, given, expected) in [
        (503, None, Some("1")),
        (503, Some("9"), Some("9")),
        (429, None, Some("1")),
        (500, None, None),
        (502, None, None),
    ] {
        let body = format!("{{\"error\":{{\"message\":\"mine\",\"code\":{status}}}}}");
        let header = given.map(|value| ("retry-after", value));
        mock.next(answer(status, header.as_slice(), &body));
        let got = forebay.post(PATH, UNARY);
        assert_eq!((got.status, got.text()), (status, body));
        assert_eq!(got.header("retry-after"), expected, "{status}");
        assert_eq!(got.header("x-forebay-attempts"), Some("1"));
    }
}

#[test]
fn a_client_fault_passes_and_is_tried_once() {
    let (one, other) = (Mock::start(), Mock::start());
    for mock in [&one, &other] {
        mock.reply(|_| answer(400, &[], "{\"error\":{\"code\":400}}"));
    }
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    let got = forebay.post(PATH, STREAM);
    assert_eq!((got.status, got.text().as_str()), (400, "{\"error\":{\"code\":400}}"));
    assert_eq!(one.seen().len() + other.seen().len(), 1);
    // So does an error event with a client's code that comes first.
    let event = "data: {\"error\":{\"message\":\"no\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}}\n\n";
    for mock in [&one, &other] {
        mock.reply(move |_| stream(&[event, DONE]));
    }
    assert_eq!(forebay.post(PATH, STREAM).text(), [event, DONE].concat());
    assert_eq!(one.seen().len() + other.seen().len(), 2);
}

#[test]
fn two_deaths_end_a_request() {
    let mocks = [Mock::start(), Mock::start(), Mock::start()];
    for mock in &mocks {
        mock.reply(|_| vec![Step::Close]);
    }
    let forebay = Harness::new().pool("tiny", &[&mocks[0], &mocks[1], &mocks[2]]).start();
    let answer = forebay.post(PATH, UNARY);
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(mocks.iter().map(|mock| mock.seen().len()).sum::<usize>(), 2);
}

/// What vLLM says of a model that it does not serve.
const MODEL_UNKNOWN: &str =
    r#"{"error":{"message":"The model `tiny` does not exist.","type":"NotFoundError","param":"model","code":404}}"#;

#[test]
fn a_404_of_anything_but_the_model_is_the_clients_and_ejects_nobody() {
    let mock = Mock::playing(answer(404, &[], "{\"detail\":\"Not Found\"}"));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    for path in ["/v1/audio/transcriptions", "/v1/messages", PATH] {
        let got = forebay.post(path, UNARY);
        assert_eq!((got.status, got.text().as_str()), (404, "{\"detail\":\"Not Found\"}"), "{path}");
    }
    assert_eq!(forebay.metric("forebay_backend_state", &["state=\"misconfigured\""]), 0.0);
    assert_eq!(forebay.metric("forebay_retries_total", &[]), 0.0);
}

#[test]
fn a_small_answer_that_stops_after_its_head_is_504_in_time() {
    let head =
        Step::Send(b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\ncontent-type: application/json\r\n\r\n{".to_vec());
    let mock = Mock::playing(vec![head, Step::AwaitClose]);
    let forebay = one_with(&mock, "[stream]\ntotal_timeout = \"300ms\"");
    assert_eq!(forebay.post(PATH, UNARY).status, 504);
    mock.await_closes(1);
}

#[test]
fn a_failure_that_nothing_follows_is_no_retry() {
    let mock = Mock::playing(answer(500, &[], "{}"));
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    assert_eq!(forebay.post(PATH, UNARY).status, 500);
    assert_eq!(forebay.metric("forebay_retries_total", &[]), 0.0);
}

#[test]
fn a_404_for_a_model_that_we_resolved_is_never_the_clients() {
    let mock = Mock::playing(answer(404, &[], MODEL_UNKNOWN));
    let forebay = one(&mock);
    let got = forebay.post(PATH, UNARY);
    assert_eq!(got.status, 502, "{}", got.text());
    assert!(!got.text().contains("does not exist"));
    assert!(got.text().contains("misconfigured"), "{}", got.text());
}

#[test]
fn a_failure_on_a_reused_connection_is_retried_on_a_fresh_one_free_of_charge() {
    let mock = Mock::replying(|seen| if seen.before == 1 { vec![Step::Close] } else { like_vllm(seen) });
    let forebay = one(&mock);
    let mut client = forebay.open();
    for body in [STREAM, UNARY, STREAM] {
        let before = mock.seen().len();
        assert_eq!(client.ask(&post(PATH, &[], UNARY.as_bytes())).status, 200);
        // The backend closes exactly when this comes on the same connection.
        let answer = client.ask(&post(PATH, &[], body.as_bytes()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-forebay-attempts"), Some("1"));
        let seen = mock.seen().split_off(before);
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[0].connection, seen[1].connection);
        assert_ne!(seen[1].connection, seen[2].connection);
        let record = forebay.record(answer.header("x-request-id").unwrap());
        assert_eq!((&record["outcome"], &record["attempts"]), (&"success".into(), &1.into()));
    }
}

// ---- HTTP ----------------------------------------------------------------------------------------------------------

#[test]
fn a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection() {
    let mock = Mock::start();
    let forebay = one(&mock);
    for body in [UNARY, STREAM] {
        let request = String::from_utf8(post(PATH, &[], body.as_bytes())).unwrap().replace("HTTP/1.1", "HTTP/1.0");
        let mut client = forebay.open();
        client.send(request.as_bytes());
        let head = client.head();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("transfer-encoding"), None);
        let (text, end) = client.body(&head);
        assert_eq!(end, End::Whole);
        let expected = if body == UNARY { CHAT.to_owned() } else { [&token("Hel"), &token("lo"), DONE].concat() };
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}

#[test]
fn a_second_request_in_the_pipe_is_answered_second() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let mut client = forebay.open();
    let both = [post(PATH, &[], STREAM.as_bytes()), post(PATH, &[], UNARY.as_bytes())].concat();
    client.send(&both);
    assert_clean(&client.answer());
    assert_eq!(client.answer().text(), CHAT);
    assert!(client.is_quiet_for(ms(20)));
}

#[test]
fn many_streams_share_one_h2_connection() {
    let mock = Mock::start();
    let forebay = one(&mock);
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        let mut answers = Vec::new();
        for _ in 0..10 {
            answers.push(h2.post(PATH, STREAM).await);
        }
        for answer in answers {
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(body.ends_with(DONE.as_bytes()));
        }
    });
    assert_eq!(mock.seen().len(), 10);
}

#[test]
fn a_connection_serves_one_client_after_another_kind_of_answer() {
    let mock = Mock::start();
    let forebay = one(&mock);
    let mut client: Conn = forebay.open();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: f\r\n\r\n").into_bytes();
    assert_eq!(client.ask(&get("/v1/models")).status, 200);
    assert_eq!(client.ask(&get("/nothing")).status, 404);
    assert_clean(&client.ask(&post(PATH, &[], STREAM.as_bytes())));
    assert_eq!(client.ask(&post(PATH, &[], b"not json")).status, 400);
    assert_eq!(client.ask(&post(PATH, &[], UNARY.as_bytes())).status, 200);
}

#[test]
fn a_clients_pause_is_no_token_gap() {
    // More than the sockets between can hold.
    let (tokens, caught_up) = (token("Hi").repeat(30_000), Gate::new());
    let waits = Step::Wait(caught_up.clone());
    let mock = Mock::replying(move |seen| match seen.json()["stream"] == true {
        true => {
            let paused = [stream_head(), chunk(token("Hi")), chunk(&tokens), chunk(token("last")), waits.clone()];
            // Of the first one the gap is the client's doing, too.
            let rest = [chunk(token("1")), Step::Pause(ms(20)), chunk(token("2")), chunk(DONE), last_chunk()];
            paused.into_iter().chain(rest).collect()
        }
        // Longer than the edge that is looked at.
        false => [vec![Step::Pause(ms(700))], answer(200, &[], CHAT)].concat(),
    });
    let forebay = one(&mock);
    let mut client = Conn::open_narrow(forebay.address);
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    let head = client.head();
    // The client reads nothing for as long as another answer takes.
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
    let is_last = |piece: Vec<u8>| memchr::memmem::find(&piece, b"last").is_some();
    while !is_last(client.chunk().expect("the stream goes on")) {}
    caught_up.open();
    assert_eq!(client.body(&head).1, End::Whole);
    let observed = |edge: &str| forebay.metric("forebay_itl_seconds_bucket", &[edge]);
    eventually("gaps are observed", || (observed("le=\"+Inf\"") > 0.0).then_some(()));
    assert_eq!(observed("le=\"0.5\""), observed("le=\"+Inf\""));
}
