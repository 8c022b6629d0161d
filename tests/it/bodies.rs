//! Request bodies: whole at the backend whatever their size and framing, and refused in a way that the client sees.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::client::{A_WHILE, Conn, H2Body, on_h2, post, post_chunked, read_h2};
use crate::harness::{DEADLINE, Harness, eventually, ms};
use crate::mock::{Gate, Mock, Step, answer};

const CHAT: &str = "/v1/chat/completions";
const MIB: usize = 1 << 20;

/// A request of exactly this many bytes, no two pages of it alike.
fn body_of(bytes: usize) -> Vec<u8> {
    let head = br#"{"model":"tiny","messages":[{"role":"user","content":""#;
    let tail = br#""}]}"#;
    let mut rng = fastrand::Rng::with_seed(bytes as u64);
    let mut body = Vec::with_capacity(bytes);
    body.extend(head);
    while body.len() < bytes - tail.len() {
        body.extend(format!("{:016x}", rng.u64(..)).bytes().take(bytes - tail.len() - body.len()));
    }
    body.extend(tail);
    body
}

/// The large size that every framing gets: 50 MB each in the full size of the tests, 1 MB else.
fn large() -> usize {
    if std::env::var("FOREBAY_SIZE").is_ok_and(|size| size == "full") { 50_000_000 } else { 1_000_000 }
}

fn sizes() -> Vec<usize> {
    vec![65_535, 65_536, 70_000, 1_000_000, large()]
}

fn assert_arrived(mock: &Mock, body: &[u8], how: &str) {
    let seen = mock.last();
    assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()), "{how}");
    assert!(seen.body == body, "{how}: {} bytes are others at the backend", body.len());
}

#[test]
fn bodies_of_every_size_arrive_whole_with_a_length_and_chunked() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    for size in sizes() {
        let body = body_of(size);
        assert_eq!(client.ask(&post(CHAT, &[], &body)).status, 200);
        assert_arrived(&mock, &body, "length");
        assert_eq!(client.ask(&post_chunked(CHAT, &body, 60_000)).status, 200);
        assert_arrived(&mock, &body, "chunked");
    }
}

#[test]
fn a_body_of_50_mb_arrives_whole() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let body = body_of(50_000_000);
    assert_eq!(forebay.open().ask(&post_chunked(CHAT, &body, 1_000_000)).status, 200);
    assert_arrived(&mock, &body, "chunked");
}

fn in_frames(body: &[u8]) -> H2Body {
    let frames: Vec<_> =
        body.chunks(50_000).map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

#[test]
fn bodies_of_every_size_arrive_whole_over_h2_with_and_without_a_length() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    on_h2(forebay.address, 1 << 20, async |mut h2| {
        for size in sizes() {
            let body = body_of(size);
            let answer = h2.post(CHAT, body.clone()).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(read_h2(answer.into_body()).await.1, Ok(()));
            assert_arrived(&mock, &body, "h2 with a length");
            let answer = h2.send(CHAT, in_frames(&body)).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(read_h2(answer.into_body()).await.1, Ok(()));
            assert_arrived(&mock, &body, "h2 without a length");
        }
    });
}

#[test]
fn the_same_body_goes_to_the_next_backend() {
    let (one, other) = (Mock::playing(vec![Step::Close]), Mock::playing(vec![Step::Close]));
    let forebay = Harness::new().pool("tiny", &[&one, &other]).start();
    for (first, second) in [(&one, &other), (&other, &one)] {
        second.reply(|_| answer(200, &[], crate::mock::CHAT));
        let body = body_of(300_000);
        eventually("both backends saw the request", || {
            assert_eq!(forebay.open().ask(&post(CHAT, &[], &body)).status, 200);
            (!first.seen().is_empty() && !second.seen().is_empty()).then_some(())
        });
        assert_arrived(first, &body, "first");
        assert_arrived(second, &body, "second");
        assert_eq!(first.last().sha256(), second.last().sha256());
        second.reply(|_| vec![Step::Close]);
    }
}

#[test]
fn expect_100_continue_is_answered_here_and_not_passed_on() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    let request = post(CHAT, &[("expect", "100-continue")], b"{\"messages\":[]}");
    let (head, body) = request.split_at(request.len() - 15);
    client.send(head);
    assert_eq!(client.head().status, 100);
    client.send(body);
    assert_eq!(client.answer().status, 200);
    assert_eq!(mock.only().header("expect"), None);
}

#[test]
fn a_client_that_waits_for_100_continue_is_refused_without_its_body() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nbody = \"1MiB\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    let declared = (MIB + 1).to_string();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: f\r\nexpect: 100-continue\r\ncontent-length: {declared}\r\n\r\n");
    let answer = client.ask(head.as_bytes());
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(mock.seen().is_empty());
}

#[test]
fn a_declared_length_over_the_limit_is_413_and_a_client_that_sends_on_sees_it() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nbody = \"1MiB\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(CHAT, &[], &body_of(MIB + 500_000)));
    let answer = client.answer();
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["error"]["code"], 413);
    assert!(mock.seen().is_empty());
    // At the limit it passes.
    assert_eq!(forebay.open().ask(&post(CHAT, &[], &body_of(MIB))).status, 200);
}

#[test]
fn a_chunked_body_over_the_limit_is_413_and_a_client_that_sends_on_sees_it() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nbody = \"1MiB\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post_chunked(CHAT, &body_of(MIB + 500_000), 10_000));
    assert_eq!(client.answer().status, 413);
    assert!(mock.seen().is_empty());
}

#[test]
fn a_client_that_is_refused_early_sees_the_answer_before_it_has_sent_all() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    for (path, encoding, status) in [("/pause", "identity", 404), (CHAT, "br", 415)] {
        let mut client = forebay.open();
        let request = post(path, &[("content-encoding", encoding)], &body_of(500_000));
        client.send(&request[..200_000]);
        let head = client.head();
        assert_eq!(head.status, status);
        let (body, _) = client.body(&head);
        assert!(String::from_utf8(body).unwrap().contains("forebay_"));
        client.try_send(&request[200_000..]);
    }
    assert!(mock.seen().is_empty());
}

#[test]
fn an_encoded_json_body_is_415() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let answer = forebay.open().ask(&post(CHAT, &[("content-encoding", "br")], b"\x1f\x8b"));
    assert_eq!(answer.status, 415);
    assert!(answer.text().contains("content-encoding"), "{}", answer.text());
    assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"));
}

#[test]
fn bodies_that_are_declared_and_not_sent_cost_no_memory() {
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    // What the first requests allocate once is there before.
    let warm_up: Vec<Conn> = (0..32).map(|_| forebay.open()).collect();
    assert_eq!(forebay.open().ask(&post(CHAT, &[], &body_of(200_000))).status, 200);
    let before = forebay.rss_kib();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: f\r\ncontent-length: {}\r\n\r\n{{", 64 << 20);
    let mut clients = warm_up;
    for client in &mut clients {
        client.send(head.as_bytes());
    }
    // They were all read: an answer to one that came later proves it on one thread.
    assert_eq!(forebay.open().ask(&post(CHAT, &[], &body_of(1000))).status, 200);
    let after = forebay.rss_kib();
    assert!(after < before + 4096, "32 clients cost {} KiB", after - before);
    // And they can still send.
    drop(clients);
}

#[test]
fn a_body_that_stops_coming_is_408_in_time() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nbody_timeout = \"300ms\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    let request = post(CHAT, &[], &body_of(1000));
    client.send(&request[..request.len() - 1]);
    let answer = client.answer();
    assert_eq!(answer.status, 408, "{}", answer.text());
    assert!(mock.seen().is_empty());
}

#[test]
fn a_body_that_trickles_is_408_in_time() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nbody_timeout = \"300ms\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: f\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n");
    // Each piece is in time, the whole is not.
    while client.is_quiet_for(ms(20)) {
        assert!(client.try_send(b" "));
    }
    assert_eq!(client.answer().status, 408);
    assert!(mock.seen().is_empty());
}

#[test]
fn when_the_memory_for_bodies_is_full_a_new_one_is_refused_and_the_oldest_goes_on() {
    let mock = Mock::start();
    let limits = "[limits]\nbody = \"1MiB\"\nbodies_in_memory = \"1MiB\"";
    let forebay = Harness::new().config(limits).pool("tiny", &[&mock]).start();
    let mut oldest = forebay.open();
    let request = post(CHAT, &[], &body_of(1_000_000));
    oldest.send(&request[..990_000]);
    // The rest of the memory is less than this; until Forebay has read the oldest, it may still fit.
    eventually("a body is refused", || {
        let answer = forebay.open().ask(&post(CHAT, &[], &body_of(200_000)));
        (answer.status == 503 && answer.header("retry-after").is_some()).then_some(())
    });
    oldest.send(&request[990_000..]);
    assert_eq!(oldest.answer().status, 200);
    assert_eq!(forebay.open().ask(&post(CHAT, &[], &body_of(200_000))).status, 200);
}

#[test]
fn a_head_over_the_limit_is_431() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[limits]\nhead = \"16KiB\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.try_send(&post(CHAT, &[("x-long", &"x".repeat(20_000))], b"{}"));
    assert_eq!(client.head().status, 431);
    let fits = post(CHAT, &[("x-long", &"x".repeat(10_000))], br#"{"messages":[]}"#);
    assert_eq!(forebay.open().ask(&fits).status, 200);
}

#[test]
fn a_slow_head_and_a_silent_connection_end_in_time() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nheader_timeout = \"400ms\"").pool("tiny", &[&mock]).start();
    let mut silent = forebay.open();
    let mut slow = forebay.open();
    slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: f\r\n");
    assert!(silent.is_quiet_for(A_WHILE));
    assert!(silent.closed() < ms(5000));
    assert!(slow.closed() < ms(5000));
    // The second head of a connection has the same time.
    let mut again = forebay.open();
    assert_eq!(again.ask(&post(CHAT, &[], br#"{"messages":[]}"#)).status, 200);
    again.send(b"POST /v1/chat");
    assert!(again.closed() < ms(5000));
}

#[test]
fn a_kept_alive_connection_ends_after_its_idle_time_and_not_before() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nkeep_alive = \"600ms\"").pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    for _ in 0..2 {
        assert_eq!(client.ask(&post(CHAT, &[], br#"{"messages":[]}"#)).status, 200);
        assert!(client.is_quiet_for(A_WHILE));
    }
    assert!(client.closed() < ms(5000));
}

#[test]
fn a_request_under_way_is_not_idle() {
    let gate = Gate::new();
    let script = [vec![Step::Wait(gate.clone())], answer(200, &[], crate::mock::CHAT)].concat();
    let mock = Mock::playing(script);
    let limits = "[listen]\nkeep_alive = \"200ms\"\nheader_timeout = \"200ms\"";
    let forebay = Harness::new().config(limits).pool("tiny", &[&mock]).start();
    let mut client = forebay.open();
    client.send(&post(CHAT, &[], br#"{"messages":[]}"#));
    // Longer than either limit.
    assert!(client.is_quiet_for(ms(700)));
    gate.open();
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_connection_over_the_cap_is_told_503() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nmax_connections = 2").pool("tiny", &[&mock]).start();
    // Forebay's own first look at its listener is over once two connections are served.
    let mut held: Vec<Conn> = Vec::new();
    eventually("two connections are served", || {
        let mut client = forebay.open();
        if client.try_send(&post(CHAT, &[], br#"{"messages":[]}"#)) && client.head().status == 200 {
            held.push(client);
        }
        (held.len() == 2).then_some(())
    });
    let mut third = forebay.open();
    let head = third.head();
    assert_eq!(head.status, 503);
    assert_eq!(head.header("retry-after"), Some("1"));
    assert!(third.closed() < DEADLINE);
    drop(held);
    eventually("a new connection is served", || {
        let mut client = forebay.open();
        (client.try_send(&post(CHAT, &[], br#"{"messages":[]}"#)) && client.head().status == 200).then_some(())
    });
}
