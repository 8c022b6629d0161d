//! How the process starts and ends, and what a client that stops reading costs.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;

use crate::client::{Conn, End, on_h2, post, read_h2};
use crate::harness::{DEADLINE, Forebay, Harness, eventually, eventually_within, ms};
use crate::mock::{CHAT, DONE, Gate, Mock, Script, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
/// What has nothing to wait for is over by then.
const AT_ONCE: Duration = ms(2000);

/// A stream that ends when the test says so.
fn gated(gate: &Gate) -> Script {
    vec![stream_head(), chunk(token("Hi")), Step::Wait(gate.clone()), chunk(DONE), last_chunk()]
}

fn open_stream(forebay: &Forebay) -> Conn {
    let mut client = forebay.open();
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    client.until("Hi");
    client
}

fn refuses_connections(forebay: &Forebay) -> bool {
    std::net::TcpStream::connect(forebay.address).is_err()
}

#[test]
fn an_address_in_use_is_a_clear_error_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (key, flag, other) in [("listen.address", "--listen", "--admin"), ("admin.address", "--admin", "--listen")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["serve", "--backend", "http://127.0.0.1:1", flag, &address, other, "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = eventually_within(AT_ONCE, "forebay gives up", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(1));
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert!(said.contains(&address) && said.contains(key) && said.contains("in use"), "{said}");
    }
}

#[test]
fn a_wrong_config_is_exit_2_and_a_port_of_0_is_a_free_one() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let output = command.args(["serve", "--config", "tests/bad_config/arm_name.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("arm_name.toml"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["serve", "--backend", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let said = lines.find_map(|line| line.ok().filter(|line| line.contains("forebay is listening"))).unwrap();
    drop(child.kill());
    drop(child.wait());
    let address = said.split("requests=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(!address.ends_with(":0"), "{said}");
}

#[test]
fn sigterm_with_nothing_running_ends_at_once() {
    let mock = Mock::start();
    for signal in ["TERM", "INT"] {
        let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
        // An idle kept-alive connection is nothing running.
        let mut client = forebay.open();
        assert_eq!(client.ask(&post(PATH, &[], UNARY.as_bytes())).status, 200);
        forebay.signal(signal);
        let status = forebay.exit(AT_ONCE);
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(client.closed() < AT_ONCE);
    }
}

#[test]
fn sigterm_lets_a_stream_finish_refuses_new_connections_and_then_ends() {
    let gate = Gate::new();
    let mock = Mock::playing(gated(&gate));
    let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut client = open_stream(&forebay);
    forebay.signal("TERM");
    eventually("new connections are refused", || refuses_connections(&forebay).then_some(()));
    assert!(client.received().contains("Hi"));
    gate.open();
    let answer = client.answer();
    assert_eq!((answer.status, answer.end), (200, End::Whole));
    assert!(answer.text().ends_with(DONE));
    assert_eq!(forebay.exit(AT_ONCE).code(), Some(0));
    assert_eq!(forebay.access().len(), 1);
}

#[test]
fn a_connection_that_was_accepted_before_the_end_has_its_first_request_answered() {
    let (gate, mock) = (Gate::new(), Mock::start());
    mock.next(gated(&gate));
    let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut stream = open_stream(&forebay);
    let (mut early, mut silent) = (forebay.open(), forebay.open());
    forebay.signal("TERM");
    eventually("the listener is closed", || refuses_connections(&forebay).then_some(()));
    early.send(&post(PATH, &[], UNARY.as_bytes()));
    let answer = early.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    gate.open();
    assert_eq!(stream.answer().end, End::Whole);
    // One that never says anything does not hold the end up.
    assert_eq!(forebay.exit(DEADLINE).code(), Some(0));
    silent.closed();
}

#[test]
fn sigterm_lets_an_h2_stream_finish() {
    let gate = Gate::new();
    let mock = Mock::playing(gated(&gate));
    let mut forebay = Harness::new().pool("tiny", &[&mock]).start();
    let address = forebay.address;
    on_h2(address, 1 << 20, async |mut h2| {
        let mut body = h2.post(PATH, STREAM).await.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        forebay.signal("TERM");
        eventually("new connections are refused", || refuses_connections(&forebay).then_some(()));
        gate.open();
        let rest = body.collect().await.unwrap().to_bytes();
        assert!(rest.ends_with(DONE.as_bytes()));
    });
    assert_eq!(forebay.exit(AT_ONCE).code(), Some(0));
}

#[test]
fn while_the_ready_delay_runs_requests_are_served_and_readiness_is_off() {
    let mock = Mock::start();
    let drain = "[listen]\ndrain = { ready_delay = \"1s\", limit = \"10s\" }";
    let mut forebay = Harness::new().config(drain).pool("tiny", &[&mock]).start();
    assert_eq!(forebay.get("/ready").status, 200);
    forebay.signal("TERM");
    eventually_within(ms(900), "readiness is off", || (forebay.get("/ready").status == 503).then_some(()));
    assert_eq!(forebay.post(PATH, UNARY).status, 200);
    assert_eq!(forebay.exit(ms(4000)).code(), Some(0));
}

#[test]
fn at_the_drain_limit_each_that_is_left_is_told_in_its_apis_form_and_cut() {
    let mock = Mock::replying(|seen| {
        let first = match seen.target.as_str() {
            "/v1/messages" => "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n".to_owned(),
            _ => token("Hi"),
        };
        let whole = !seen.text().contains("stream");
        if whole { vec![Step::AwaitClose] } else { vec![stream_head(), chunk(first), Step::AwaitClose] }
    });
    let drain = "[listen]\ndrain = { limit = \"500ms\" }";
    let limit = "backend_max_in_flight = 3";
    let mut forebay = Harness::new().config(drain).pool_with("tiny", limit, &[&mock]).start();
    let mut chat = open_stream(&forebay);
    let mut messages = forebay.open();
    messages.send(&post("/v1/messages", &[], STREAM.as_bytes()));
    messages.until("message_start");
    let mut unary = forebay.open();
    unary.send(&post(PATH, &[], UNARY.as_bytes()));
    mock.await_requests(3);
    let mut waits = forebay.open();
    waits.send(&post(PATH, &[], STREAM.as_bytes()));
    eventually("it waits", || (forebay.metric("forebay_waiting", &[]) == 1.0).then_some(()));
    let started = Instant::now();
    forebay.signal("TERM");
    for client in [&mut unary, &mut waits] {
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("retry-after"), answer.end), (503, Some("1"), End::Whole));
        assert_eq!(answer.json()["error"]["type"], "forebay_shutting_down");
    }
    for (client, mark) in [(&mut chat, "data: {\"error\":"), (&mut messages, "event: error\ndata: {\"error\":")] {
        let answer = client.answer();
        assert_eq!(answer.end, End::Cut);
        let text = answer.text();
        assert!(text.contains(mark) && text.contains("shutdown") && !text.contains(DONE), "{text}");
    }
    assert_eq!(forebay.exit(ms(4000)).code(), Some(0));
    assert!(started.elapsed() >= ms(500));
    mock.await_closes(3);
    assert_eq!(mock.seen().len(), 3, "who waited was sent nowhere");
    forebay.tells("listen.drain.limit");
    let mut outcomes: Vec<String> =
        forebay.access().iter().map(|record| record["outcome"].as_str().unwrap().to_owned()).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["forebay_shutting_down", "forebay_shutting_down", "shutdown", "shutdown"]);
}

#[test]
fn at_the_drain_limit_an_h2_stream_gets_its_error_event_and_a_reset() {
    let mock = Mock::playing(vec![stream_head(), chunk(token("Hi")), Step::AwaitClose]);
    let drain = "[listen]\ndrain = { limit = \"300ms\" }";
    let mut forebay = Harness::new().config(drain).pool("tiny", &[&mock]).start();
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        let body = h2.post(PATH, STREAM).await.into_body();
        forebay.signal("TERM");
        let (bytes, end) = read_h2(body).await;
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("data: {\"error\":") && text.contains("shutdown"), "{text}");
        assert!(end.is_err(), "it ended well");
    });
    assert_eq!(forebay.exit(ms(4000)).code(), Some(0));
}

#[test]
fn a_client_that_stops_reading_is_cut_and_its_backend_closed() {
    let flood = vec![stream_head(), Step::Flood(chunk_bytes(&token(&"x".repeat(60_000))))];
    let mock = Mock::playing(flood);
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    let mut client = Conn::open_narrow(forebay.address);
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    mock.await_requests(1);
    mock.await_closes(1);
    eventually("the request is over", || forebay.access().first().map(drop));
    assert_eq!(forebay.access()[0]["outcome"], "client_left");
    // What was sent is there, and its end is none.
    let head = client.head();
    assert_eq!(client.body(&head).1, End::Cut);
}

#[test]
fn a_client_that_reads_slowly_is_not_cut() {
    let mut script = vec![stream_head()];
    script.extend((0..200).map(|_| chunk(token(&"x".repeat(60_000)))));
    script.extend([chunk(DONE), last_chunk()]);
    let mock = Mock::playing(script);
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    let mut client = Conn::open_narrow(forebay.address);
    client.send(&post(PATH, &[], STREAM.as_bytes()));
    assert_eq!(client.head().status, 200);
    // Over the limit in all, under it in each step.
    let read = client.read_slowly(1_200_000, ms(150));
    assert!(read > 200 * 60_000);
}

fn chunk_bytes(text: &str) -> Vec<u8> {
    match chunk(text) {
        Step::Send(bytes) => bytes,
        _ => unreachable!("a chunk is bytes to send"),
    }
}

#[test]
fn one_stalled_h2_stream_is_cut_and_its_sibling_goes_on() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"700ms\"").pool("tiny", &[&mock]).start();
    on_h2(forebay.address, 64 << 10, async |mut h2| {
        mock.next(vec![stream_head(), Step::Flood(chunk_bytes(&token(&"x".repeat(10_000))))]);
        let stalled = h2.post(PATH, STREAM).await;
        assert_eq!(stalled.status(), 200);
        // Its window is full and is not opened: the sibling gets its answers all the same, before and after the cut.
        let started = Instant::now();
        while mock.closes().is_empty() {
            assert!(started.elapsed() < DEADLINE, "the stalled stream's backend is closed");
            let sibling = h2.post(PATH, UNARY).await;
            assert_eq!(sibling.into_body().collect().await.unwrap().to_bytes(), CHAT);
        }
        assert!(started.elapsed() > ms(500));
        assert_eq!(h2.post(PATH, UNARY).await.status(), 200);
        let error = stalled.into_body().collect().await.err();
        assert!(error.is_some(), "the stalled stream ended well");
    });
}

#[test]
fn an_answer_of_the_backend_before_it_has_read_the_body_is_passed_on() {
    // A server that refuses a large body does not read it: it answers and closes.
    let mock = Mock::start();
    let early = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", early.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in early.incoming().map_while(Result::ok) {
            let mut head = [0; 1024];
            drop(std::io::Read::read(&mut stream, &mut head));
            let text = if head.starts_with(b"GET") { "" } else { "{\"error\":{\"code\":400}}" };
            let status = if text.is_empty() { 200 } else { 400 };
            if let Step::Send(bytes) = &answer(status, &[], text)[0] {
                drop(std::io::Write::write_all(&mut stream, bytes));
            }
            // Keeps the connection, and never reads on.
            std::mem::forget(stream);
        }
    });
    drop(mock);
    let pool = format!("[[pools]]\nmodel = \"tiny\"\nbackends = [{{ url = \"{url}\" }}]\n");
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"1s\"").pools(&pool).start();
    let body = format!("{{\"model\":\"tiny\",\"messages\":[],\"x\":\"{}\"}}", "x".repeat(20_000_000));
    let got = forebay.open().ask(&post(PATH, &[], body.as_bytes()));
    assert_eq!((got.status, got.text().as_str()), (400, "{\"error\":{\"code\":400}}"));
}

#[test]
fn a_changed_file_is_in_force_without_a_restart_and_a_wrong_one_is_not() {
    let gate = Gate::new();
    let mock = Mock::start();
    mock.next(gated(&gate));
    let forebay = Harness::new().pool_with("tiny", "unknown_models = \"refuse\"", &[&mock]).start();
    let mut client = open_stream(&forebay);
    let nick = r#"{"model":"nick","messages":[]}"#;
    assert_eq!(forebay.post(PATH, nick).status, 404);
    let before = std::fs::read_to_string(&forebay.config).unwrap();
    let after = before.replace("model = \"tiny\"", "model = \"tiny\"\naliases = [\"nick\"]");
    std::fs::write(&forebay.config, &after).unwrap();
    forebay.signal("HUP");
    eventually("the alias is served", || (forebay.post(PATH, nick).status == 200).then_some(()));
    // A wrong one changes nothing and is told.
    std::fs::write(&forebay.config, "nonsense = true").unwrap();
    forebay.signal("HUP");
    forebay.tells("nonsense");
    assert_eq!(forebay.post(PATH, nick).status, 200);
    // A stream that began before goes on to its end.
    gate.open();
    assert_eq!(client.answer().end, End::Whole);
}
