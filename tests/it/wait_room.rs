//! The wait room on the wire: requests wait while every backend is at its limit, in turn, for no longer than they may, and
//! a client that leaves is gone from it at once.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::client::{Conn, End, on_h2, post};
use crate::harness::{Forebay, Harness, awaited, eventually, ms};
use crate::mock::{DONE, Gate, Mock, Script, Step, answer, chunk, last_chunk, like_vllm, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;
const LIMIT: &str = "backend_max_in_flight = 1";

/// Clients that leave, in each way.
fn leavers() -> usize {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 200 } else { 50 }
}

/// A stream that ends when the test says so.
fn gated(gate: &Gate) -> Script {
    vec![stream_head(), chunk(token("Hi")), Step::Wait(gate.clone()), chunk(DONE), last_chunk()]
}

fn fleet(forebay: &Forebay) -> Value {
    Conn::open(forebay.admin).ask(b"GET /api/fleet HTTP/1.1\r\nhost: admin\r\n\r\n").json()
}

fn waiting(forebay: &Forebay) -> u64 {
    fleet(forebay)["pools"][0]["wait_room"]["waiting"].as_u64().unwrap()
}

fn await_waiting(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} wait"), || (waiting(forebay) == count as u64).then_some(()));
}

fn send(forebay: &Forebay, headers: &[(&str, &str)], body: &str) -> Conn {
    let mut conn = forebay.open();
    conn.send(&post(PATH, headers, body.as_bytes()));
    conn
}

/// A pool of one backend that is at its limit of one until the gate opens, and its first client.
fn full(keys: &str) -> (Forebay, Mock, Gate, Conn) {
    let (gate, mock) = (Gate::new(), Mock::start());
    mock.next(gated(&gate));
    let forebay = Harness::new().pool_with("tiny", &format!("{LIMIT}\n{keys}"), &[&mock]).start();
    let mut first = send(&forebay, &[], STREAM);
    first.until("Hi");
    (forebay, mock, gate, first)
}

#[test]
fn a_request_waits_for_room_and_its_wait_is_told() {
    let (forebay, mock, gate, mut first) = full("");
    let mut second = send(&forebay, &[("x-request-id", "waits")], STREAM);
    await_waiting(&forebay, 1);
    assert_eq!(forebay.metric("forebay_waiting", &["pool=\"tiny\"", "arm=\"default\""]), 1.0);
    let shown = &fleet(&forebay)["pools"][0];
    assert_eq!((shown["backend_max_in_flight"].as_u64(), shown["wait_room"]["size"].as_u64()), (Some(1), Some(512)));
    assert!(shown["wait_room"]["longest_wait_seconds"].as_f64().unwrap() > 0.0);
    let longest = || fleet(&forebay)["pools"][0]["wait_room"]["longest_wait_seconds"].as_f64().unwrap();
    eventually("it has waited for 100 ms", || (longest() >= 0.1).then_some(()));
    assert_eq!(mock.seen().len(), 1, "it is bound late");
    gate.open();
    assert_eq!(first.answer().end, End::Whole);
    let answer = second.answer();
    assert_eq!((answer.status, answer.end, answer.header("x-forebay-attempts")), (200, End::Whole, Some("1")));
    let record = forebay.record("waits");
    let of = |name: &str| record[name].as_f64().unwrap_or_else(|| panic!("{name} in {record}"));
    assert!(of("wait_ms") >= 100.0 && of("ttft_ms") >= of("wait_ms"), "TTFT is the client's: {record}");
    assert_eq!(forebay.metric("forebay_wait_seconds_count", &[]), 1.0, "the first did not wait");
    assert!(forebay.metric("forebay_wait_seconds_sum", &[&format!("backend=\"{}\"", mock.authority())]) >= 0.1);
    assert!(forebay.metric("forebay_overhead_seconds_sum", &[]) < 0.1, "a wait is not our own time");
    await_waiting(&forebay, 0);
}

#[test]
fn a_full_room_refuses_at_once_and_says_when_to_come_again() {
    let (forebay, mock, gate, first) = full("wait_room = { size = 1 }");
    let mut second = send(&forebay, &[], UNARY);
    await_waiting(&forebay, 1);
    let started = Instant::now();
    let refused = forebay.post(PATH, STREAM);
    assert!(started.elapsed() < ms(2000));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "forebay_wait_room_full");
    let refused = forebay.post("/v1/messages", STREAM);
    assert_eq!((refused.status, refused.json()["type"].as_str()), (503, Some("error")));
    let full = ["outcome=\"forebay_wait_room_full\"", "backend=\"none\""];
    eventually("both are counted", || (forebay.metric("forebay_requests_total", &full) == 2.0).then_some(()));
    gate.open();
    assert_eq!(second.answer().status, 200);
    assert_eq!(mock.seen().len(), 2);
    drop(first);
}

#[test]
fn a_room_of_no_size_lets_nobody_wait() {
    let (forebay, _mock, _gate, first) = full("wait_room = { size = 0 }");
    assert_eq!(forebay.post(PATH, UNARY).status, 503);
    drop(first);
    eventually("there is room again", || (forebay.post(PATH, UNARY).status == 200).then_some(()));
}

#[test]
fn who_waits_for_too_long_is_told() {
    let (forebay, mock, _gate, _first) = full("wait_room = { timeout = \"300ms\" }");
    let started = Instant::now();
    let refused = forebay.post(PATH, STREAM);
    assert!(started.elapsed() >= ms(300));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "forebay_wait_timeout");
    let outcome = ["outcome=\"forebay_wait_timeout\""];
    eventually("it is counted", || (forebay.metric("forebay_requests_total", &outcome) == 1.0).then_some(()));
    assert!(forebay.metric("forebay_wait_seconds_sum", &["backend=\"none\""]) >= 0.3);
    assert_eq!((waiting(&forebay), mock.seen().len()), (0, 1));
}

#[test]
fn the_limit_counts_sequences_of_any_request_and_not_what_never_reaches_the_engine() {
    let (gate, mock) = (Gate::new(), Mock::start());
    mock.next(vec![Step::Wait(gate.clone()), answer(200, &[], "{}").remove(0)]);
    let forebay = Harness::new().pool_with("tiny", "backend_max_in_flight = 3", &[&mock]).start();
    let mut first = send(&forebay, &[], r#"{"model":"tiny","n":2,"messages":[]}"#);
    mock.await_requests(1);
    let mut two = send(&forebay, &[], r#"{"model":"tiny","n":2,"messages":[]}"#);
    await_waiting(&forebay, 1);
    let embed = |input: &str| {
        let mut conn = forebay.open();
        conn.send(&post("/v1/embeddings", &[], format!(r#"{{"model":"tiny","input":{input}}}"#).as_bytes()));
        conn
    };
    let mut batch = embed(r#"["a","b","c","d","e"]"#);
    await_waiting(&forebay, 2);
    let tokenize = forebay.post("/tokenize", r#"{"model":"tiny","prompt":"x"}"#);
    assert_eq!(tokenize.status, 200);
    assert_eq!(mock.seen().len(), 2, "the first and the tokenizing");
    gate.open();
    for conn in [&mut first, &mut two, &mut batch] {
        assert_eq!(conn.answer().status, 200, "also what is larger than the limit");
    }
    await_waiting(&forebay, 0);
}

#[test]
fn a_request_waits_again_after_a_failed_attempt() {
    let (one, two, gate) = (Mock::start(), Mock::start(), Gate::new());
    for mock in [&one, &two] {
        let gate = gate.clone();
        mock.reply(move |_| gated(&gate));
    }
    let forebay = Harness::new().pool_with("tiny", LIMIT, &[&one, &two]).start();
    let mut first = send(&forebay, &[], STREAM);
    first.until("Hi");
    let (holder, other) = if one.seen().is_empty() { (&two, &one) } else { (&one, &two) };
    holder.reply(like_vllm);
    other.reply(|_| answer(500, &[], "{\"error\":{\"message\":\"no\",\"code\":500}}"));
    let mut second = send(&forebay, &[("x-request-id", "again")], STREAM);
    await_waiting(&forebay, 1);
    gate.open();
    let answer = second.answer();
    assert_eq!((answer.status, answer.header("x-forebay-attempts")), (200, Some("2")));
    assert_eq!(answer.header("x-forebay-backend"), Some(holder.authority().as_str()));
    assert!(forebay.record("again")["wait_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(first.answer().end, End::Whole);
}

#[test]
fn a_session_that_sends_much_does_not_keep_another_waiting() {
    let (gate, mock) = (Gate::new(), Mock::start());
    mock.next(gated(&gate));
    let keys = format!("{LIMIT}\nwait_room = {{ size = 20 }}");
    let forebay = Harness::new().pool_with("tiny", &keys, &[&mock]).start();
    let mut first = send(&forebay, &[], STREAM);
    first.until("Hi");
    let body = |who: &str| format!(r#"{{"model":"tiny","messages":[],"user":"{who}"}}"#);
    let mut noisy: Vec<Conn> = (0..20).map(|_| send(&forebay, &[("x-session-id", "noisy")], &body("noisy"))).collect();
    await_waiting(&forebay, 20);
    // The room is full, and makes place for who has less.
    let mut quiet = send(&forebay, &[("x-session-id", "quiet")], &body("quiet"));
    eventually("a second lane", || (fleet(&forebay)["pools"][0]["wait_room"]["lanes"] == 2).then_some(()));
    gate.open();
    assert_eq!(quiet.answer().status, 200);
    let answered: Vec<u16> = noisy.iter_mut().map(|conn| conn.answer().status).collect();
    assert_eq!(answered.iter().filter(|status| **status == 503).count(), 1, "{answered:?}");
    let order: Vec<bool> = mock.seen().iter().skip(1).map(|seen| seen.text().contains("quiet")).collect();
    assert_eq!((order.len(), order.iter().position(|quiet| *quiet)), (20, Some(1)), "its turn is the second");
}

/// After all have left: nobody waits, no backend saw any of them, and each was counted where it was.
fn check_left(forebay: &Forebay, mock: &Mock, left: usize) {
    await_waiting(forebay, 0);
    let counted = || forebay.metric("forebay_aborts_total", &["phase=\"waiting\""]);
    eventually("each is counted", || (counted() == left as f64).then_some(()));
    assert_eq!(forebay.metric("forebay_aborts_total", &[]), left as f64);
    assert_eq!(mock.seen().len(), 1, "none of them reached the backend");
    let load = &fleet(forebay)["pools"][0]["arms"][0]["backends"][0]["load"];
    assert_eq!((load["open_attempts"].as_u64(), load["decoding"].as_u64()), (Some(1), Some(1)), "{load}");
    println!("{left} of {left} left the wait room, 0 reached a backend");
}

fn leave_by(leave: impl Fn(Conn)) {
    let (forebay, mock, gate, mut first) = full("");
    let clients: Vec<Conn> = (0..leavers()).map(|_| send(&forebay, &[], STREAM)).collect();
    await_waiting(&forebay, leavers());
    clients.into_iter().for_each(leave);
    check_left(&forebay, &mock, leavers());
    // The room is as good as new.
    let mut next = send(&forebay, &[], STREAM);
    await_waiting(&forebay, 1);
    gate.open();
    assert_eq!((first.answer().end, next.answer().status), (End::Whole, 200));
}

#[test]
fn a_client_that_leaves_by_fin_is_gone_from_the_room() {
    leave_by(|conn| {
        conn.half_close();
        drop(conn);
    });
}

#[test]
fn a_client_that_leaves_by_reset_is_gone_from_the_room() {
    leave_by(Conn::reset);
}

#[test]
fn an_h2_stream_that_is_reset_is_gone_from_the_room_and_leaves_its_connection_alone() {
    let (forebay, mock, gate, mut first) = full("");
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        for _ in 0..leavers() {
            tokio::select! {
                answer = h2.post(PATH, STREAM) => panic!("it was answered: {answer:?}"),
                () = awaited(|| (waiting(&forebay) > 0).then_some(())) => {}
            }
            awaited(|| (waiting(&forebay) == 0).then_some(())).await;
        }
        check_left(&forebay, &mock, leavers());
        gate.open();
        assert_eq!(h2.post(PATH, UNARY).await.status(), 200);
    });
    assert_eq!(first.answer().end, End::Whole);
}

#[test]
fn who_waits_when_the_process_is_told_to_end_is_served_before_it_does() {
    let (mut forebay, mock, gate, mut first) = full("");
    let mut second = send(&forebay, &[], STREAM);
    await_waiting(&forebay, 1);
    forebay.signal("TERM");
    eventually("new connections are refused", || std::net::TcpStream::connect(forebay.address).is_err().then_some(()));
    gate.open();
    assert_eq!((first.answer().end, second.answer().end), (End::Whole, End::Whole));
    assert_eq!(mock.seen().len(), 2);
    assert_eq!(forebay.exit(ms(5000)).code(), Some(0));
}

#[test]
fn a_reload_that_raises_the_limit_serves_who_waits() {
    let (forebay, mock, gate, mut first) = full("");
    let mut second = send(&forebay, &[], STREAM);
    await_waiting(&forebay, 1);
    let text = std::fs::read_to_string(&forebay.config).unwrap();
    std::fs::write(&forebay.config, text.replace(LIMIT, "backend_max_in_flight = 2")).unwrap();
    assert_eq!(second.answer().status, 200, "while the first goes on");
    mock.await_requests(2);
    std::fs::write(&forebay.config, text).unwrap();
    eventually("the limit is down again", || (fleet(&forebay)["pools"][0]["backend_max_in_flight"] == 1).then_some(()));
    let mut third = send(&forebay, &[], STREAM);
    await_waiting(&forebay, 1);
    gate.open();
    assert_eq!((first.answer().end, third.answer().end), (End::Whole, End::Whole));
}

/// Room that a backend makes by its end is no room: its requests move on and wait for the other.
#[test]
fn a_backend_that_dies_sends_its_requests_to_wait_for_another() {
    let (one, two) = (Mock::start(), Mock::start());
    let forebay = Harness::new().pool_with("tiny", LIMIT, &[&one, &two]).start();
    let gates: Arc<[Gate; 2]> = Arc::new([Gate::new(), Gate::new()]);
    one.next(vec![Step::Wait(gates[0].clone()), Step::Reset]);
    two.next(vec![Step::Wait(gates[1].clone()), answer(200, &[], "{}").remove(0)]);
    let mut clients = [send(&forebay, &[], UNARY), send(&forebay, &[], UNARY)];
    one.await_requests(1);
    two.await_requests(1);
    gates[0].open();
    await_waiting(&forebay, 1);
    gates[1].open();
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!((one.seen().len(), two.seen().len()), (1, 2));
}
