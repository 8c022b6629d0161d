//! HTTP/2 clients that take nothing of their answers, reset what they asked for, or ask while their connection ends.

use std::collections::HashSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Instant;

use crate::client::{on_h2, read_h2};
use crate::frames::{Frames, HEADERS, RST_STREAM};
use crate::harness::{Harness, eventually, ms, time_passes};
use crate::mock::{CHAT, DONE, Gate, Mock, Step, answer, chunk, last_chunk, stream_head, token};

const PATH: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"tiny","stream":true,"messages":[]}"#;
const UNARY: &str = r#"{"model":"tiny","messages":[]}"#;

#[test]
fn answers_of_every_form_that_a_stream_takes_nothing_of_are_given_up() {
    let mock = Mock::replying(|seen| {
        if seen.json()["stream"] == true {
            return vec![stream_head(), chunk(token(&"x".repeat(30_000))), chunk(DONE), last_chunk()];
        }
        answer(200, &[], &CHAT.replace("ok", &"x".repeat(30_000)))
    });
    let known = "unknown_models = \"refuse\"";
    let config = "[limits]\nwrite_stall = \"700ms\"";
    let mut forebay = Harness::new().config(config).pool_with("tiny", known, &[&mock]).start();
    let mut open = Vec::new();
    // One with a window of nothing, and one with a byte, after which hyper hands h2 all the rest.
    for window in [0, 1] {
        let mut frames = Frames::open(forebay.address, window);
        for (at, body) in [UNARY, STREAM, r#"{"model":"no such model","messages":[]}"#].into_iter().enumerate() {
            frames.request(1 + 2 * u32::try_from(at).unwrap(), PATH, body.as_bytes());
        }
        let given_up = [1, 3, 5];
        let mut reset: Vec<u32> = given_up.iter().map(|_| frames.until(RST_STREAM).stream).collect();
        reset.sort_unstable();
        assert_eq!(reset, given_up, "window {window}");
        // The connection is good for more.
        frames.window = 1 << 20;
        frames.settings();
        frames.request(7, PATH, UNARY.as_bytes());
        assert_eq!(frames.until(HEADERS).stream, 7);
        open.push(frames);
    }
    forebay.signal("TERM");
    assert!(forebay.exit(ms(10_000)).success(), "a drain waits for none of them");
}

#[test]
fn a_stream_of_small_pieces_whose_client_takes_a_byte_now_and_then_is_given_up() {
    let mock = Mock::replying(|_| {
        let mut script = vec![stream_head()];
        script.extend((0..20).map(|_| chunk(token("a token of some letters"))));
        script.extend([chunk(DONE), last_chunk()]);
        script
    });
    let config = "[limits]\nwrite_stall = \"1s\"";
    let forebay = Harness::new().config(config).pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1);
    frames.request(1, PATH, STREAM.as_bytes());
    let (over, ended) = mpsc::channel::<()>();
    let mut widened = frames.twin();
    let trickle = std::thread::spawn(move || {
        // Less than a piece in all of the time that it has.
        while ended.recv_timeout(ms(200)) == Err(RecvTimeoutError::Timeout) && widened.widen(1, 1) {}
    });
    let started = Instant::now();
    assert_eq!(frames.until(RST_STREAM).stream, 1);
    assert!(started.elapsed() < ms(6000), "after {:?}", started.elapsed());
    drop(over);
    trickle.join().unwrap();
}

#[test]
fn a_connection_whose_open_heads_hold_too_much_is_refused_more_of_them() {
    const HEADS: u32 = 200;
    let mock = Mock::start();
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1 << 20);
    let before = forebay.rss_kib();
    for at in 0..HEADS {
        frames.open_request(1 + 2 * at, PATH, 60_000);
    }
    // Two mebibytes of the twelve have a place; the rest is answered at once, long before a body is too slow.
    let started = Instant::now();
    let refused: HashSet<u32> = (0..HEADS - 40).map(|_| frames.until(HEADERS).stream).collect();
    assert!(started.elapsed() < ms(8000), "after {:?}", started.elapsed());
    let grown = forebay.rss_kib().saturating_sub(before);
    println!("{HEADS} open heads of 60 KB: {} refused, {grown} KiB held", refused.len());
    // The connection is good for more once they are gone.
    for stream in (0..HEADS).map(|at| 1 + 2 * at).filter(|stream| !refused.contains(stream)) {
        frames.reset(stream);
    }
    let answer = on_h2(forebay.address, 1 << 20, async |mut h2| h2.post(PATH, UNARY).await.status());
    assert_eq!(answer, 200, "another connection has its own share");
    eventually("its place is free again", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    frames.request(1 + 2 * HEADS, PATH, UNARY.as_bytes());
    assert!(frames.is_served(1 + 2 * HEADS));
}

#[test]
fn a_client_that_resets_most_of_its_requests_at_once_is_closed() {
    let gate = Gate::new();
    let held = gate.clone();
    let mock = Mock::replying(move |_| vec![Step::Hold(held.clone())]);
    let forebay = Harness::new().pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1 << 16);
    let sent = (0..5000_u32).take_while(|at| frames.request_and_reset(1 + 2 * at, PATH)).count();
    assert!(sent < 5000);
    assert!(frames.is_closed(), "{sent} requests were reset, and it is still open");
    eventually("nothing is in flight", || (forebay.metric("forebay_in_flight", &[]) == 0.0).then_some(()));
    assert_eq!(forebay.tells("resets most of its requests"), 1, "{}", forebay.log());
    gate.open();
}

#[test]
fn an_idle_h2_connection_is_told_twice_that_it_ends_and_serves_what_comes_between() {
    let mock = Mock::start();
    let forebay = Harness::new().config("[listen]\nkeep_alive = \"500ms\"").pool("tiny", &[&mock]).start();
    let mut frames = Frames::open(forebay.address, 1 << 20);
    frames.request(1, PATH, UNARY.as_bytes());
    assert_eq!(frames.until(HEADERS).stream, 1);
    let first = frames.goaway_unanswered();
    assert_eq!(first, (1 << 31) - 1, "the first names no last stream");
    // The way of a request that its client sent before it read that.
    time_passes(ms(300));
    frames.request(3, PATH, UNARY.as_bytes());
    assert_eq!(frames.until(HEADERS).stream, 3, "a request that was on its way is served");
    frames.pong();
    assert_eq!(frames.goaway(), 3, "the second names the last that is served");
    assert!(frames.is_closed());
    assert_eq!(mock.seen().len(), 2);
}

#[test]
fn a_stream_that_takes_its_answer_slowly_is_served_whole() {
    let text = "x".repeat(300_000);
    let body = CHAT.replace("ok", &text);
    let mock = Mock::replying(move |_| answer(200, &[], &body));
    let forebay = Harness::new().config("[limits]\nwrite_stall = \"2s\"").pool("tiny", &[&mock]).start();
    let bytes = on_h2(forebay.address, 20_000, async |mut h2| {
        let answer = h2.post(PATH, UNARY).await;
        read_h2(answer.into_body()).await.0.len()
    });
    assert!(bytes > 300_000);
}
