//! HTTP/2 clients that take nothing of their answers, reset what they asked for, or ask while their connection ends.

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
        // What is less than a KiB is h2's as soon as a byte of it is.
        let given_up = if window == 0 { vec![1, 3, 5] } else { vec![1, 3] };
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
    assert_eq!(forebay.logged("resets most of its requests"), 1, "{}", forebay.log());
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
